"""One whole run on transformers' road: from the manifest to the published folder."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from tests.worker.engines.runs import kubequant
from tests.worker.environments import interpreter, variables
from tests.worker.run.commands import commands_of, typed
from tests.worker.run.manifests import TINY, manifest

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """One run of GPTQ: (the artifact's folder, the report)."""
    folder = tmp_path_factory.mktemp("published")
    asked = {
        "method": "GPTQ",
        "gptq": {"trueSequential": False},
        "device": "CPU",
        "calibration": {"samples": 8, "sequenceLength": 128},
        "gates": [{"metric": "PerplexityIncreasePercent", "max": "5"}],
    }
    path = manifest(folder, gguf=None, **asked)
    path.write_text(path.read_text().replace("  gguf: null\n", ""))
    code, report, error = kubequant("llmcompressor", path)
    assert code == 0, error
    return next((folder / "out" / "tiny").iterdir()), report


def test_the_report_says_who_did_it_and_why(published: tuple[Path, dict[str, Any]]) -> None:
    _, report = published
    resolved = report["resolved"]

    assert resolved["engine"] == "llmcompressor 0.14.0.1"
    assert "LLMCompressor does GPTQ on a CPU: " in resolved["reason"]
    assert report["original"]["runtime"].startswith("transformers 5.17.0 in float32 on cpu")
    assert {"llmcompressor", "compressed-tensors", "torch"} <= {
        library["name"] for library in report["environment"]["versions"]
    }


def test_both_were_measured_on_the_same_tokens(published: tuple[Path, dict[str, Any]]) -> None:
    _, report = published
    (variant,) = report["variants"]

    assert variant["name"] == "GPTQ"
    assert variant["perplexityDetail"]["tokens"] == 2048
    assert report["original"]["perplexityDetail"]["tokens"] == 2048
    assert 0 < float(variant["meanKLDivergence"]) < 0.02
    assert abs(float(variant["perplexityIncreasePercent"])) < 5
    assert 90 < float(variant["topTokenAgreementPercent"]) < 100
    assert variant["gatesPassed"] is True
    assert variant["generations"][0]["quantized"]


def test_verification_held_it_against_the_original(published: tuple[Path, dict[str, Any]]) -> None:
    _, report = published
    notes = report["variants"][0]["notes"]

    assert any("loaded again and held against the original" in note for note in notes)
    assert any("what was loaded again is what the engine had made" in note for note in notes)
    assert [stage["stage"] for stage in report["stages"]][2:6] == [
        "Measuring",
        "Quantizing",
        "Verifying",
        "Evaluating",
    ]


def test_what_calibrated_is_told(published: tuple[Path, dict[str, Any]]) -> None:
    _, report = published
    (told,) = [text for text in report["datasets"] if text["role"] == "calibration"]

    assert told["tokens"] == 8 * 128
    assert told["bundled"] is True
    assert len(told["sha256"]) == 64


def test_the_folder_is_whole(published: tuple[Path, dict[str, Any]]) -> None:
    folder, report = published
    config = json.loads((folder / "config.json").read_text())
    listed = {
        entry["path"] for entry in json.loads((folder / "manifest.json").read_text())["files"]
    }

    assert config["quantization_config"]["quant_method"] == "compressed-tensors"
    assert {"model.safetensors", "config.json", "tokenizer.json", "report.json"} <= listed
    assert (folder / "tokenizer.model").read_bytes() == (TINY / "tokenizer.model").read_bytes()
    assert (folder / "model.safetensors").stat().st_mode & 0o777 == 0o644
    assert report["usage"] == {"runtime": "vLLM", "command": "vllm serve ."}
    assert "vllm serve ." in (folder / "README.md").read_text()


def test_the_command_for_transformers_in_the_page_is_right_when_copied(
    published: tuple[Path, dict[str, Any]],
) -> None:
    folder, _ = published
    commands = commands_of((folder / "report.html").read_text())

    assert commands["vLLM"] == "vllm serve ."
    written = typed(
        commands["transformers"],
        folder,
        interpreter=interpreter("llmcompressor"),
        variables=variables(),
    )
    assert written.startswith("Once upon a time")


def test_a_gpu_that_is_not_there_is_told_before_anything_is_fetched(tmp_path: Path) -> None:
    path = manifest(tmp_path, method="GPTQ", device="GPU")
    path.write_text(path.read_text().replace("  gguf:\n    types:\n    - Q8_0\n    - Q2_K\n", ""))
    code, report, _ = kubequant("llmcompressor", path)

    assert code == 10
    assert report["failure"]["reason"] == "DeviceNotFound"
    assert "spec.device: CPU" in report["failure"]["message"]


def test_a_model_larger_than_memory_is_refused_with_the_bytes_and_what_would_do() -> None:
    from tests.worker.run.test_preflight import spec  # noqa: PLC0415 - a maker

    from kubequant_worker.errors import MemoryExhaustedError  # noqa: PLC0415 - only here
    from kubequant_worker.methods.int4 import LLMCompressorINT4  # noqa: PLC0415 - only here
    from kubequant_worker.preflight import check_room  # noqa: PLC0415 - only here

    asked = spec(method="INT4")
    needs = LLMCompressorINT4.needs(asked, {"model.safetensors": 2**42, "config.json": 1000})
    with pytest.raises(MemoryExhaustedError, match=r"needs at least 9\.6 TiB of memory") as refused:
        check_room(needs.__class__(0, needs.memory_bytes, 0, 0, needs.memory_advice), TINY)

    assert "spec.memory.offload: Disk would make do with 2050.0 GiB" in refused.value.advice
