"""Whole runs on transformers' road: from the manifest to the published folder."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import pytest
from tests.worker.engines.runs import kubequant
from tests.worker.environments import interpreter, variables
from tests.worker.run.commands import commands_of, typed
from tests.worker.run.documents import assert_documents_are_sound
from tests.worker.run.manifests import TINY, manifest

from kubequant_worker.methods.int8 import TorchAOINT8
from kubequant_worker.sources.safetensors_header import read_header

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True)
class Run:
    """One method by one engine: what is asked for, and what the report is to say."""

    id: str
    environment: str
    spec: dict[str, Any]
    engine: str
    reason: str
    runtime: str
    libraries: frozenset[str]
    most_divergence: float
    format: str
    usage: dict[str, str] = field(
        default_factory=lambda: {"runtime": "vLLM", "command": "vllm serve ."}
    )
    calibration_tokens: int = 0
    bits: int = 4
    loader: str = ""
    """The environment whose transformers loads the format, where it is not the engine's own."""


# Bits -> the most that the tiny model's perplexity may grow, in percent. Over 2,048 tokens 4 bits
# were measured to cost 0.3 to 1.0, 8 bits at most 0.1.
MOST_INCREASE = {8: 1.0, 4: 3.0}
# Scales, zero points and what is written around the tensors, in percent of the original.
MOST_BESIDE = 2.5

CALIBRATION = {"samples": 8, "sequenceLength": 128}


def by_llmcompressor(method: str, reason: str, most_divergence: float, **said: Any) -> Run:
    """Return a run of that method, whose spec has `parameters` beside."""
    return Run(
        f"{method} by llmcompressor",
        "llmcompressor",
        {"method": method, **said.pop("parameters", {})},
        engine="llmcompressor 0.14.0.1",
        reason=reason,
        runtime="transformers 5.17.0 in float32 on cpu",
        libraries=frozenset({"llmcompressor", "compressed-tensors", "torch"}),
        most_divergence=most_divergence,
        format="compressed-tensors",
        **said,
    )


RUNS = (
    by_llmcompressor(
        "GPTQ",
        "LLMCompressor does GPTQ on a CPU: ",
        0.02,
        parameters={"gptq": {"trueSequential": False}, "calibration": CALIBRATION},
        calibration_tokens=8 * 128,
    ),
    by_llmcompressor(
        "INT8",
        "The spec names engine LLMCompressor.",
        0.002,
        parameters={"int8": {"engine": "LLMCompressor"}, "calibration": CALIBRATION},
        calibration_tokens=8 * 128,
        bits=8,
    ),
    by_llmcompressor("FP8", "The spec names method FP8.", 0.005, bits=8),
    by_llmcompressor("INT4", "LLMCompressor does INT4 on a CPU: ", 0.02),
    by_llmcompressor(
        "AWQ",
        "The spec names engine LLMCompressor.",
        0.02,
        parameters={"awq": {"engine": "LLMCompressor"}, "calibration": CALIBRATION},
        calibration_tokens=8 * 128,
    ),
    Run(
        "INT4 by AutoRound",
        "auto-round",
        {
            "method": "INT4",
            "int4": {"rounding": "Tuned", "iterations": 16},
            "calibration": {"samples": 8, "sequenceLength": 96},
        },
        engine="auto-round 0.16.1",
        reason="AutoRound does INT4 on a CPU: it learns the rounding",
        runtime="transformers 5.17.0 in float32 on cpu",
        libraries=frozenset({"auto-round", "compressed-tensors", "torch"}),
        most_divergence=0.02,
        format="compressed-tensors",
        calibration_tokens=8 * 96,
    ),
    Run(
        "AWQ by AutoAWQ",
        "awq-legacy",
        {
            "method": "AWQ",
            "awq": {"engine": "AutoAWQ"},
            # Clipping takes minutes of a CPU, the more the more tokens there are.
            "calibration": {"samples": 2, "sequenceLength": 64},
        },
        engine="autoawq 0.2.9",
        reason="The spec names engine AutoAWQ.",
        runtime="transformers 4.51.3 in float32 on cpu",
        libraries=frozenset({"autoawq", "accelerate", "torch"}),
        most_divergence=0.02,
        format="awq",
        calibration_tokens=2 * 64,
        loader="gptqmodel",
    ),
    Run(
        "BitsAndBytes in 4 bits",
        "transformers",
        {"method": "BitsAndBytes", "bitsAndBytes": {"bits": 4}},
        engine="bitsandbytes 0.50.2",
        reason="The spec names method BitsAndBytes.",
        runtime="transformers 5.23.0 in float32 on cpu",
        libraries=frozenset({"bitsandbytes", "accelerate", "torch"}),
        most_divergence=0.02,
        format="bitsandbytes",
    ),
    Run(
        "INT8 by torchao",
        "transformers",
        {"method": "INT8"},
        engine="torchao 0.18.0",
        reason="TorchAO does INT8 on a CPU: ",
        runtime="transformers 5.23.0 in float32 on cpu",
        libraries=frozenset({"torchao", "torch"}),
        bits=8,
        most_divergence=0.002,
        format="torchao",
        usage=TorchAOINT8.USAGE.model_dump(mode="json"),
    ),
)


@dataclass(frozen=True)
class Published:
    """What a run left: the artifact's folder, and the report."""

    run: Run
    folder: Path
    report: dict[str, Any]


@pytest.fixture(scope="module", params=RUNS, ids=lambda run: run.id)
def published(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Published:
    """Each of the runs, done once."""
    run: Run = request.param
    folder = tmp_path_factory.mktemp("published")
    gates = [{"metric": "PerplexityIncreasePercent", "max": "5"}]
    path = manifest(folder, **{"device": "CPU", "gates": gates, **run.spec})
    code, report, error = kubequant(run.environment, path)
    assert code == 0, error
    return Published(run, next((folder / "out" / "tiny").iterdir()), report)


def test_the_report_says_who_did_it_and_why(published: Published) -> None:
    run, report = published.run, published.report

    assert report["resolved"]["engine"] == run.engine
    assert run.reason in report["resolved"]["reason"]
    assert report["original"]["runtime"].startswith(run.runtime)
    assert run.libraries <= {library["name"] for library in report["environment"]["versions"]}


def test_both_were_measured_on_the_same_tokens(published: Published) -> None:
    report = published.report
    (variant,) = report["variants"]

    assert variant["name"] == published.run.spec["method"]
    assert variant["perplexityDetail"]["tokens"] == 2048
    assert report["original"]["perplexityDetail"]["tokens"] == 2048
    assert 0 < float(variant["meanKLDivergence"]) < published.run.most_divergence
    most = MOST_INCREASE[published.run.bits]
    assert abs(float(variant["perplexityIncreasePercent"])) < most
    assert 90 < float(variant["topTokenAgreementPercent"]) < 100
    assert variant["gatesPassed"] is True
    assert variant["generations"][0]["quantized"]


def test_the_size_is_what_the_bits_imply(published: Published) -> None:
    # The embeddings, the output matrix and the norms stay; all other matrices have fewer bits.
    spans = read_header(TINY / "model.safetensors")
    counts = {span.name: math.prod(span.shape) for span in spans}
    quantized = sum(count for name, count in counts.items() if name.endswith("_proj.weight"))
    implied = 100 * quantized / sum(counts.values()) * (1 - published.run.bits / 16)
    (variant,) = published.report["variants"]

    assert implied - MOST_BESIDE < float(variant["sizeReductionPercent"]) < implied


def test_verification_held_it_against_the_original(published: Published) -> None:
    report = published.report
    notes = report["variants"][0]["notes"]

    assert any("loaded again and held against the original" in note for note in notes)
    assert any("what was loaded again is what the engine had made" in note for note in notes)
    assert [stage["stage"] for stage in report["stages"]][2:6] == [
        "Measuring",
        "Quantizing",
        "Verifying",
        "Evaluating",
    ]


def test_what_calibrated_is_told(published: Published) -> None:
    texts = [text for text in published.report["datasets"] if text["role"] == "calibration"]

    assert sum(text["tokens"] for text in texts) == published.run.calibration_tokens
    assert all(text["bundled"] is True and len(text["sha256"]) == 64 for text in texts)


def test_the_folder_is_whole(published: Published) -> None:
    folder, report = published.folder, published.report
    config = json.loads((folder / "config.json").read_text())
    listed = {
        entry["path"] for entry in json.loads((folder / "manifest.json").read_text())["files"]
    }

    assert config["quantization_config"]["quant_method"] == published.run.format
    assert {"model.safetensors", "config.json", "tokenizer.json", "report.json"} <= listed
    assert (folder / "tokenizer.model").read_bytes() == (TINY / "tokenizer.model").read_bytes()
    assert (folder / "model.safetensors").stat().st_mode & 0o777 == 0o644
    assert report["usage"] == published.run.usage
    assert published.run.usage["command"] in (folder / "README.md").read_text()


def test_page_and_card_are_sound(published: Published) -> None:
    assert_documents_are_sound(published.folder)


def test_the_command_for_transformers_in_the_page_is_right_when_copied(
    published: Published,
) -> None:
    run, folder = published.run, published.folder
    commands = commands_of((folder / "report.html").read_text())

    assert commands[run.usage["runtime"]] == run.usage["command"]
    written = typed(
        commands["transformers"],
        folder,
        interpreter=interpreter(run.loader or run.environment),
        variables=variables(),
    )
    assert len(written.split()) > 2


def test_a_gpu_that_is_not_there_is_told_before_anything_is_fetched(tmp_path: Path) -> None:
    path = manifest(tmp_path, method="GPTQ", device="GPU")
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
        check_room(replace(needs, scratch_bytes=0), asked.memory, TINY, 2**33)

    assert "spec.memory.offload: Disk would make do with 2050.0 GiB" in refused.value.advice
