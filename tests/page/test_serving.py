"""Commands to load an artifact: those of its format, of the variant to serve, safely quoted."""

from __future__ import annotations

import shlex
from typing import Any

import pytest
from tests.page.hostile import QUOTES
from tests.page.reports import METHODS, whole_report

from kubequant.api.spec import Method
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
        Method.TENSOR_RT: ["TensorRT-LLM"],
        Method.BITS_AND_BYTES: ["transformers"],
    }

    assert list(found) == expected.get(method, ["vLLM", "transformers"])
    assert all(shlex.split(text.splitlines()[0]) for text in found.values())


def test_the_recommended_variant_is_loaded_and_else_the_first() -> None:
    assert "Q4_K_M" in by_runtime(Method.GGUF)["llama.cpp"]
    assert "Q8_0" in by_runtime(Method.GGUF, recommended="")["llama.cpp"]
    assert served_variant(whole_report(variants=[], recommended="")) is None


def test_a_model_whose_code_was_trusted_is_loaded_with_it() -> None:
    settings = whole_report(Method.GPTQ).to_json()["settings"]
    settings["model"]["trustRemoteCode"] = True
    found = by_runtime(Method.GPTQ, settings=settings)

    assert found["vLLM"] == "vllm serve . --trust-remote-code"
    assert found["transformers"].count("trust_remote_code=True") == 2


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
