"""Every level on the tiny model, and the shapes that llama.cpp treats differently."""

from __future__ import annotations

import errno
import math
import shutil
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from tests.worker.methods.conftest import (
    TINY,
    Counter,
    Made,
    gguf_spec,
    make,
    short_calibration,
    workspace,
)
from tests.worker.methods.damage import swapped, zeroed
from tests.worker.methods.models import random_llama, random_mixtral

from kubequant.api.enums import Device, Method
from kubequant.api.outcome import FailureReason
from kubequant.api.params import GGUFType
from kubequant_worker.datasets import Role, bundled_text, text_set
from kubequant_worker.errors import BadRequestError
from kubequant_worker.evaluation.perplexity import (
    Comparison,
    Original,
    Windows,
    measure_original,
    measure_variant,
    windows,
)
from kubequant_worker.methods import quantizer
from kubequant_worker.methods.gguf import GGUFQuantizer
from kubequant_worker.methods.gguf_file import read_float_tensors, read_header
from kubequant_worker.methods.gguf_types import LEVELS

if TYPE_CHECKING:
    from collections.abc import Callable

    from kubequant_worker.evaluation.runtime import Runtime

LADDER = ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q3_K_S", "Q2_K")
TOKENS = 12_000


def held_out(runtime: Runtime) -> Windows:
    tokens = np.concatenate(runtime.tokenize(bundled_text(Role.MEASUREMENT).documents))
    return windows(tokens, context_length=512, bos_token=runtime.bos_token, max_tokens=TOKENS)


@pytest.fixture(scope="session")
def original(every_type: Made) -> tuple[Windows, Original]:
    with every_type.quantizer.open_runtime(every_type.baseline, 0) as runtime:
        cut = held_out(runtime)
        keep = every_type.work.scratch / "kept"
        return cut, measure_original(runtime, cut, keep=keep, meter=Counter())


def compared(made: Made, name: str, original: tuple[Windows, Original]) -> Comparison:
    with made.quantizer.open_runtime(made.variants[name], 0) as runtime:
        return measure_variant(runtime, *original, meter=Counter())


@pytest.fixture(scope="session")
def ladder(every_type: Made, original: tuple[Windows, Original]) -> dict[str, Comparison]:
    return {name: compared(every_type, name, original) for name in ("F16", "BF16", *LADDER)}


@pytest.mark.parametrize("kind", list(GGUFType))
def test_every_level_is_produced_loads_and_generates(every_type: Made, kind: GGUFType) -> None:
    made = every_type.variants[kind.value]
    (note,) = every_type.quantizer.verify(made, Counter())
    assert note.startswith("loaded again and held against the original over ")
    header = read_header(every_type.work.artifact / made.files[0])
    assert header.metadata["general.file_type"] == LEVELS[kind].file_type
    main_type = {tensor.type.name for tensor in header.tensors}
    assert LEVELS[kind].tensor_type in main_type
    assert made.size_bytes == header.weight_bytes
    assert "tensor types: " in made.notes[0]
    assert len(made.notes) == 1, "rows of 256 and 768 need no fall-back"


def test_quantizing_counts_a_unit_for_every_type(every_type: Made) -> None:
    assert every_type.meter.total == len(GGUFType)
    assert every_type.meter.done == pytest.approx(len(GGUFType))
    assert any("Q4_K_M: tensor 39 of 39" in line for line in every_type.meter.messages)


def test_a_bfloat16_checkpoint_becomes_bf16_and_is_not_copied(every_type: Made) -> None:
    assert every_type.baseline.name == "BF16"
    published = every_type.work.artifact / every_type.variants["BF16"].files[0]
    assert published.samefile(every_type.baseline.path)


def test_the_conversion_agrees_with_transformers(every_type: Made) -> None:
    assert every_type.warnings == ()


def test_fewer_bits_lose_more(ladder: dict[str, Comparison]) -> None:
    divergences = [ladder[name].mean_kl_divergence for name in LADDER]
    assert divergences == sorted(divergences)
    agreements = [ladder[name].top_token_agreement_percent for name in LADDER]
    assert agreements == sorted(agreements, reverse=True)
    perplexities = [ladder[name].perplexity.value for name in ("F16", *LADDER)]
    # Neighbours may lie within each other's error; none may be clearly better than the one above.
    for above, below in pairwise(perplexities):
        assert below > above * 0.998
    assert ladder["Q2_K"].perplexity_increase_percent > 4


def test_the_original_against_itself_has_lost_nothing(ladder: dict[str, Comparison]) -> None:
    same = ladder["BF16"]
    assert same.mean_kl_divergence < 1e-5
    assert same.top_token_agreement_percent == 100
    assert same.perplexity_increase_percent == 0


def test_perplexity_equals_what_transformers_computes(ladder: dict[str, Comparison]) -> None:
    import torch  # noqa: PLC0415 - seconds, and only this test needs it
    from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: PLC0415 - as above

    tokenizer = AutoTokenizer.from_pretrained(TINY)
    stream: list[int] = []
    for text in bundled_text(Role.MEASUREMENT).documents:
        stream += tokenizer(text, add_special_tokens=False)["input_ids"]
        if len(stream) > TOKENS:
            break
    model = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32).eval()
    total, count = 0.0, 0
    with torch.inference_mode():
        for start in range(0, TOKENS, 511):
            ids = torch.tensor([[1, *stream[start : min(start + 511, TOKENS)]]])
            loss = model(input_ids=ids, labels=ids).loss.item()
            total, count = total + loss * (ids.shape[1] - 1), count + ids.shape[1] - 1
    assert count == TOKENS == ladder["F16"].perplexity.tokens
    assert ladder["F16"].perplexity.value == pytest.approx(math.exp(total / count), rel=0.005)


def test_an_importance_matrix_makes_two_bits_better(
    weighed: Made, ladder: dict[str, Comparison], original: tuple[Windows, Original]
) -> None:
    with_matrix = compared(weighed, "Q2_K", original)
    assert with_matrix.mean_kl_divergence < ladder["Q2_K"].mean_kl_divergence
    assert weighed.variants["Q2_K"].settings["importanceMatrix"] == "true"
    assert weighed.quantizer.shared_files() == (Path("imatrix.gguf"),)
    assert weighed.quantizer.calibration_tokens() > 5000


def test_too_little_calibration_text_is_refused_with_the_numbers(every_type: Made) -> None:
    few = text_set("few", ["Too short."], bundled=False)
    with pytest.raises(BadRequestError, match=r"gives \d tokens; .* at least 512") as caught:
        next(every_type.quantizer.variants(few, Counter()))
    assert caught.value.reason is FailureReason.UNUSABLE_DATASET


def test_rows_of_192_fall_back_and_say_so(tmp_path: Path) -> None:
    model = random_llama(tmp_path / "model")
    made = make(workspace(tmp_path / "run", model, types=["Q4_K_M", "Q4_0"]))
    with made.quantizer:
        fallen = made.variants["Q4_K_M"].notes[1:]
        assert any("fell back to Q5_0 because their rows are 192 wide" in note for note in fallen)
        assert len(made.variants["Q4_0"].notes) == 1, "blocks of 32 divide 192 and 320"
        made.quantizer.verify(made.variants["Q4_K_M"], Counter())


@pytest.mark.parametrize(
    ("field", "weight"),
    [("outputTensorType", "output.weight"), ("tokenEmbeddingType", "token_embd.weight")],
)
def test_a_type_whose_blocks_do_not_divide_a_row_is_refused(
    tmp_path: Path, field: str, weight: str
) -> None:
    model = random_llama(tmp_path / "model")
    work = workspace(tmp_path / "run", model, types=["Q8_0"], **{field: "Q6_K"})
    with GGUFQuantizer(work) as quantizer, pytest.raises(BadRequestError) as caught:
        quantizer.baseline(Counter())
    assert f"spec.gguf.{field}: Q6_K holds values in blocks of 256" in caught.value.message
    assert weight in caught.value.message


def test_tied_embeddings_and_shards_and_asked_types_work_together(tmp_path: Path) -> None:
    model = random_llama(tmp_path / "model", shard="400KB", tie_word_embeddings=True)
    assert len(list(model.glob("*.safetensors"))) > 1
    work = workspace(tmp_path / "run", model, types=["Q4_0"], tokenEmbeddingType="Q8_0")
    made = make(work)
    with made.quantizer:
        header = read_header(work.artifact / made.variants["Q4_0"].files[0])
        types = {tensor.name: tensor.type.name for tensor in header.tensors}
        assert "output.weight" not in types
        assert types["token_embd.weight"] == "Q8_0"
        assert made.variants["Q4_0"].settings["tokenEmbeddingType"] == "Q8_0"
        assert made.warnings == ()


def test_experts_are_weighed_one_by_one(tmp_path: Path) -> None:
    work = workspace(
        tmp_path / "run", random_mixtral(tmp_path / "model"), types=["Q2_K"], importanceMatrix=True
    )
    made = make(work, short_calibration())
    with made.quantizer:
        assert made.baseline.name == "F16"
        matrix = read_float_tensors(work.artifact / "imatrix.gguf")
        router = matrix["blk.0.ffn_gate_inp.weight.in_sum2"]
        experts = matrix["blk.0.ffn_gate_exps.weight.in_sum2"]
        counts = matrix["blk.0.ffn_gate_exps.weight.counts"]
        assert experts.shape == (4, 256)
        # Each token goes to two experts, which both see what the router saw.
        assert counts.sum() == 2 * matrix["blk.0.ffn_gate_inp.weight.counts"].sum()
        np.testing.assert_allclose(experts.sum(axis=0), 2 * router[0], rtol=1e-4)
        made.quantizer.verify(made.variants["Q2_K"], Counter())


@pytest.mark.parametrize("damage", [zeroed, swapped], ids=lambda one: one.__name__)
def test_a_damaged_file_that_loads_is_not_the_originals_likeness(
    every_type: Made, damage: Callable[[Path], None]
) -> None:
    whole = every_type.variants["Q8_0"]
    broken = every_type.work.artifact / f"broken-{damage.__name__}.gguf"
    shutil.copyfile(every_type.work.artifact / whole.files[0], broken)
    damage(broken)
    files = (broken.relative_to(every_type.work.artifact),)
    try:
        with pytest.raises(BadRequestError, match=r"is not the original's likeness") as caught:
            every_type.quantizer.verify(replace(whole, files=files), Counter())
    finally:
        broken.unlink()
    assert caught.value.reason is FailureReason.VERIFICATION_FAILED


def test_a_quantizer_that_follows_makes_more_types_of_the_same_conversion(tmp_path: Path) -> None:
    work = workspace(tmp_path / "run", TINY, types=["Q2_K"], importanceMatrix=True)
    first = make(work, short_calibration())
    matrix = (work.artifact / "imatrix.gguf").stat()
    asked = gguf_spec(types=["Q3_K_M"], importanceMatrix=True)
    second = GGUFQuantizer(replace(work, spec=asked))
    second.follow(first.quantizer)
    first.quantizer.close()
    with second:
        (made,) = second.variants(short_calibration(), Counter())
        assert second.verify(made, Counter())
        assert second.shared_files() == (Path("imatrix.gguf"),)
        assert second.calibration_tokens() == first.quantizer.calibration_tokens() > 0
    again = (work.artifact / "imatrix.gguf").stat()
    assert (again.st_ino, again.st_mtime_ns) == (matrix.st_ino, matrix.st_mtime_ns)


def test_a_full_disk_is_an_error_of_the_disk(every_type: Made) -> None:
    with pytest.raises(OSError, match="No space left") as caught:
        every_type.quantizer._engine.quantize(
            every_type.baseline.path, Path("/dev/full"), file_type=7, output_type=None,
            embedding_type=None, matrix=None, low_memory=False, on_tensor=lambda *_: None,
        )  # fmt: skip
    assert caught.value.errno == errno.ENOSPC


def test_usage_names_the_file_to_serve(every_type: Made) -> None:
    usage = every_type.quantizer.usage(every_type.variants["Q4_0"])
    assert usage.command == "llama-server -m tiny-Q4_0.gguf"


def test_needs_grow_with_what_is_asked_for() -> None:
    files = {"model-1.safetensors": 8 << 30, "model-2.safetensors": 8 << 30, "config.json": 700}
    one = GGUFQuantizer.needs(gguf_spec(types=["Q4_0"]), files)
    two = GGUFQuantizer.needs(gguf_spec(types=["Q4_0", "Q8_0"]), files)
    assert one.scratch_bytes > 2 * (16 << 30), "the checkpoint and its conversion"
    assert 8 << 30 < two.scratch_bytes - one.scratch_bytes < 12 << 30
    assert one.memory_bytes == pytest.approx((1 << 30) + 1.2 * (8 << 30))


def test_needs_are_enough_for_the_tiny_model(every_type: Made) -> None:
    files = {path.name: path.stat().st_size for path in TINY.iterdir()}
    needs = GGUFQuantizer.needs(every_type.work.spec, files)
    folders = (every_type.work.scratch, every_type.work.artifact)
    used = sum(path.stat().st_size for folder in folders for path in folder.iterdir())
    assert used + sum(files.values()) < needs.scratch_bytes


def test_the_registry_gives_the_class_and_refuses_what_the_image_does_not_hold() -> None:
    assert quantizer(gguf_spec())[0] is GGUFQuantizer
    other = gguf_spec().model_copy(update={"method": Method.GPTQ, "gguf": None})
    with pytest.raises(BadRequestError, match=r"GPTQ is done by LLMCompressor.* holds .*LlamaCpp"):
        quantizer(other)
    with pytest.raises(BadRequestError, match=r"spec\.method: this version does not do GGUF on"):
        quantizer(gguf_spec().model_copy(update={"device": Device.GPU}))
