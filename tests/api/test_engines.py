"""Which engine does what: the table itself, and what Auto makes of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, get_args

import pytest
from tests.api.cases import SMALLEST

from kubequant.api.engines import (
    AUTO_ROUND,
    ENGINES,
    LLM_COMPRESSOR,
    ONNX_RUNTIME,
    TORCH,
    TORCH_AO,
    candidates,
    engine_choice,
)
from kubequant.api.resource import read_manifest
from kubequant.api.spec import MEMBERS, QuantizationJobSpec
from kubequant.controller.catalog import IMAGES, ImageKey
from kubequant_worker.methods import LIBRARIES, METHODS

if TYPE_CHECKING:
    from kubequant.api.enums import Method


def spec(**fields: Any) -> QuantizationJobSpec:
    return read_manifest({**SMALLEST, "spec": {**SMALLEST["spec"], **fields}}).spec


@pytest.mark.parametrize("method", ENGINES)
def test_every_engine_has_its_word_its_image_its_module_and_its_library(method: Method) -> None:
    fields = MEMBERS[method][1].model_fields
    words = get_args(fields["engine"].annotation) if "engine" in fields else ()
    for engine in ENGINES[method]:
        assert not words or engine.name in words
        assert engine.name in IMAGES
        assert engine.name in LIBRARIES
        assert (method, engine.name) in METHODS


def test_every_image_and_module_belongs_to_an_engine_of_the_table() -> None:
    rows = {(method, engine.name) for method, engines in ENGINES.items() for engine in engines}
    assert set(METHODS) == rows
    assert {IMAGES[name].key for _, name in rows} == set(ImageKey)


def test_auto_takes_the_first_engine_and_says_why() -> None:
    choice = engine_choice(spec(method="GPTQ", device="CPU"))
    assert choice is not None
    assert choice.name == LLM_COMPRESSOR
    assert choice.reason.startswith("LLMCompressor does GPTQ on a CPU: ")


@pytest.mark.parametrize("device", ["CPU", "GPU"])
def test_auto_takes_gptqmodel_for_awq_and_llmcompressor_where_only_that_is(device: str) -> None:
    asked = spec(method="AWQ", device=device)
    choice = engine_choice(asked)
    second = engine_choice(asked, there=frozenset({LLM_COMPRESSOR}))
    assert choice is not None
    assert second is not None
    assert choice.reason.startswith(f"GPTQModel does AWQ on a {device}: ")
    assert "GPTQModel, which Auto prefers, is not installed here" in second.reason


def test_an_engine_that_is_named_is_taken_or_nothing_is() -> None:
    named = engine_choice(spec(method="GPTQ", gptq={"engine": "LLMCompressor"}))
    assert named is not None
    assert named.reason == "The spec names engine LLMCompressor."
    asked = spec(method="GPTQ", gptq={"engine": "LLMCompressor"})
    assert engine_choice(asked, there=frozenset({"AutoGPTQ"})) is None


@pytest.mark.parametrize(("method", "engine"), [("GPTQ", "AutoGPTQ"), ("AWQ", "AutoAWQ")])
def test_a_legacy_engine_is_taken_by_its_name_alone(method: str, engine: str) -> None:
    named = engine_choice(spec(method=method, **{method.lower(): {"engine": engine}}))

    assert named is not None
    assert named.name == engine
    assert engine not in [one.name for one in candidates(spec(method=method))]
    assert engine_choice(spec(method=method), there=frozenset({engine})) is None


def test_an_engine_that_is_not_installed_is_passed_over() -> None:
    asked = spec(method="INT4")
    assert candidates(asked)
    assert engine_choice(asked, there=frozenset({TORCH_AO})) is None


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({"device": "CPU"}, TORCH_AO),
        ({"device": "GPU"}, LLM_COMPRESSOR),
        ({"device": "GPU", "int8": {"engine": TORCH_AO}}, TORCH_AO),
        ({"int8": {"engine": TORCH_AO}}, TORCH_AO),
        # Only LLMCompressor smooths; the API server writes the default out, which asks for nothing.
        ({"device": "CPU", "int8": {"smoothingStrength": "0.8"}}, LLM_COMPRESSOR),
        ({"device": "CPU", "int8": {"smoothingStrength": "0.50"}}, TORCH_AO),
        ({"device": "CPU", "int8": {"smoothingStrength": "0"}}, TORCH_AO),
        ({"int8": {"engine": ONNX_RUNTIME}}, ONNX_RUNTIME),
    ],
)
def test_auto_takes_the_engine_of_the_device_that_can_do_what_is_asked(
    asked: dict[str, Any], expected: str
) -> None:
    choice = engine_choice(spec(method="INT8", **asked))
    assert choice is not None
    assert choice.name == expected


def test_an_engine_that_auto_never_prefers_is_taken_where_nothing_else_is() -> None:
    asked = spec(method="INT8", device="CPU")
    assert [one.name for one in candidates(asked)][-1] == ONNX_RUNTIME
    choice = engine_choice(asked, there=frozenset({ONNX_RUNTIME}))
    assert choice is not None
    assert "TorchAO, which Auto prefers, is not installed here" in choice.reason


@pytest.mark.parametrize(
    ("algorithm", "expected"),
    [("SparseGPT", LLM_COMPRESSOR), ("Wanda", LLM_COMPRESSOR), ("Magnitude", TORCH)],
)
@pytest.mark.parametrize("device", ["CPU", "GPU"])
def test_the_algorithm_decides_who_prunes(algorithm: str, expected: str, device: str) -> None:
    asked = spec(method="Prune", device=device, prune={"algorithm": algorithm})

    assert [engine.name for engine in candidates(asked)] == [expected]
    assert engine_choice(asked, there=frozenset({TORCH_AO})) is None


def test_rounding_that_an_engine_cannot_do_is_not_its_own() -> None:
    for rounding, engine in (("Nearest", LLM_COMPRESSOR), ("Tuned", AUTO_ROUND)):
        found = candidates(spec(method="INT4", int4={"rounding": rounding}))
        assert [one.name for one in found] == [engine]


def test_a_method_without_a_choice_gives_no_reason() -> None:
    choice = engine_choice(spec(method="GGUF"))
    assert choice is not None
    assert choice.reason == ""
