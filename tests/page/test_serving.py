"""Commands to load an artifact: those of its format, of the variant to serve, safely quoted."""

from __future__ import annotations

import shlex
from typing import Any

import pytest
from tests.page.hostile import QUOTES
from tests.page.reports import ENGINES_OF_METHODS, METHODS, whole_report

from kubequant.api.engines import ENGINES
from kubequant.api.enums import Method
from kubequant_worker.serving import commands, served_variant


def by_runtime(method: Method, **changes: Any) -> dict[str, str]:
    return {one.runtime: one.text for one in commands(whole_report(method, **changes))}


@pytest.mark.parametrize("method", METHODS)
def test_every_method_has_commands_and_each_begins_a_line_that_a_shell_takes(
    method: Method,
) -> None:
    found = by_runtime(method)
    expected = {
        Method.GGUF: ["llama.cpp", "Ollama", "llama-cpp-python"],
        Method.TENSOR_RT: ["TensorRT-LLM", "vLLM"],
    }

    assert list(found) == expected.get(method, ["vLLM", "transformers"])
    assert all(shlex.split(text.splitlines()[0]) for text in found.values())


@pytest.mark.parametrize(("method", "engine"), ENGINES_OF_METHODS)
def test_what_every_engine_makes_is_loaded_by_what_the_table_of_engines_names(
    method: Method, engine: str
) -> None:
    (row,) = (one for one in ENGINES[method] if one.name == engine)
    found = {one.runtime for one in commands(whole_report(method, engine))}

    # llama-cpp-python is llama.cpp too.
    assert found - {"llama-cpp-python"} <= set(row.served_by.split(", "))
    assert found


def test_a_run_that_failed_has_nothing_to_load() -> None:
    assert by_runtime(Method.GPTQ, outcome="Failed", exitCode=11, artifact=None) == {}


@pytest.mark.parametrize(
    ("method", "bits", "says"),
    [
        pytest.param(Method.GPTQ, "4", "port 8000.", id="what every version loads"),
        pytest.param(Method.GPTQ, "3", "has kernels for 3 bits.", id="what not every one does"),
        pytest.param(Method.BITS_AND_BYTES, "4", "0.28 on vllm-bnb-plugin.", id="a package"),
    ],
)
def test_what_vllm_needs_is_said_with_its_command(method: Method, bits: str, says: str) -> None:
    (variant,) = whole_report(method).to_json()["variants"]
    report = whole_report(method, variants=[{**variant, "bitsPerWeight": bits}])
    first, *_ = commands(report)

    assert (first.runtime, first.text) == ("vLLM", "vllm serve .")
    assert first.note.endswith(says)


def test_the_recommended_variant_is_loaded_and_else_the_first() -> None:
    assert "Q4_K_M" in by_runtime(Method.GGUF)["llama.cpp"]
    assert "Q8_0" in by_runtime(Method.GGUF, recommended="")["llama.cpp"]
    assert served_variant(whole_report(variants=[], recommended="")) is None


def test_a_model_whose_code_was_trusted_is_loaded_with_it() -> None:
    settings = whole_report(Method.GPTQ).to_json()["settings"]
    settings["model"]["trustRemoteCode"] = True
    found = by_runtime(Method.GPTQ, settings=settings)

    # An option of https://docs.vllm.ai/en/latest/cli/serve.
    assert found["vLLM"] == "vllm serve . --trust-remote-code"
    assert found["transformers"].count("trust_remote_code=True") == 2
    settings = whole_report(Method.TENSOR_RT).to_json()["settings"]
    settings["model"]["trustRemoteCode"] = True
    found = by_runtime(Method.TENSOR_RT, settings=settings)
    assert found["TensorRT-LLM"] == "trtllm-serve . --trust_remote_code"


@pytest.mark.parametrize("precision", ["INT8", "INT4AWQ"])
def test_a_modelopt_checkpoint_is_offered_to_vllm_in_fp8_alone_and_never_to_transformers(
    precision: str,
) -> None:
    settings = whole_report(Method.TENSOR_RT).to_json()["settings"]
    settings["tensorRT"]["precision"] = precision

    assert list(by_runtime(Method.TENSOR_RT, settings=settings)) == ["TensorRT-LLM"]


def test_a_run_on_a_gpu_is_loaded_on_one() -> None:
    found = by_runtime(Method.GPTQ, resolved={"method": "GPTQ", "device": "GPU"})

    assert 'device_map="auto"' in found["transformers"]


@pytest.mark.parametrize("path", ["-x.gguf", f"{QUOTES}.gguf", "a b;$(touch x).gguf", "'.gguf"])
def test_no_file_name_leaves_its_quotes(path: str) -> None:
    variant = whole_report().variants[0].to_json()
    variant["files"] = [{**variant["files"][0], "path": path}]
    found = by_runtime(Method.GGUF, variants=[variant], recommended="", name="a b")

    assert shlex.split(found["llama.cpp"])[2].removeprefix("./") == path
    assert not shlex.split(found["llama.cpp"])[2].startswith("-")
    assert shlex.split(found["Ollama"].splitlines()[0])[2] == path
    assert shlex.split(found["Ollama"].splitlines()[2])[2] == "a b"
    (line,) = (line for line in found["llama-cpp-python"].splitlines() if "model_path" in line)
    compile(line, "typed", "exec")
