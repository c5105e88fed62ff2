"""Whole runs of TensorRT: a checkpoint from the manifest to the published folder, and no engine.

What needs a GPU is marked so, and runs by `make gpu-check` where TensorRT-LLM is.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from tests.worker.engines.runs import kubequant, program
from tests.worker.run.documents import assert_documents_are_sound
from tests.worker.run.manifests import files_below, manifest

from kubequant.api.outcome import ExitCode

if TYPE_CHECKING:
    from pathlib import Path

CALIBRATION = {"samples": 8, "sequenceLength": 128}


def written(folder: Path, name: str, **spec: Any) -> Path:
    """Write a manifest of method TensorRT into `folder` and return it."""
    return manifest(folder, name, method="TensorRT", calibration=CALIBRATION, **spec)


def run(folder: Path, name: str, **spec: Any) -> tuple[int, dict[str, Any], str]:
    """Run a manifest of method TensorRT."""
    return kubequant("tensorrt", written(folder, name, **spec))


@dataclass(frozen=True)
class Published:
    """A run that ended well: its report, and the folder."""

    report: dict[str, Any]
    folder: Path

    @property
    def variant(self) -> dict[str, Any]:
        (found,) = self.report["variants"]
        value: dict[str, Any] = found
        return value

    @property
    def notes(self) -> str:
        return " ".join(self.variant["notes"])


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Published:
    folder = tmp_path_factory.mktemp("tensorrt")
    code, report, error = run(folder, "fp8", tensorRT={"build": "Checkpoint"}, device="CPU")
    assert code == 0, error
    (artifact,) = (folder / "out" / "fp8").iterdir()
    return Published(report, artifact)


def test_the_report_says_what_was_made_and_what_it_cost(published: Published) -> None:
    variant = published.variant
    versions = {one["name"] for one in published.report["environment"]["versions"]}

    assert published.report["resolved"]["engine"] == "nvidia-modelopt 0.47.0"
    assert variant["setting"] == "8 bits, FP8"
    assert variant["bitsPerWeight"] == "8"
    assert 30 < float(variant["sizeReductionPercent"]) < 40
    assert 0.0001 < float(variant["meanKLDivergence"]) < 0.01
    assert abs(float(variant["perplexityIncreasePercent"])) < 1
    assert "nvidia-modelopt" in versions
    assert "engineDetail" not in variant


def test_it_was_loaded_again_by_our_reader_and_is_what_modelopt_had_made(
    published: Published,
) -> None:
    assert "loaded again and held against the original" in published.notes
    assert "what was loaded again is what the engine had made" in published.notes
    assert "weights that our own reader made plain" in published.notes


def test_the_report_says_that_transformers_reads_nonsense(published: Published) -> None:
    assert "never load the checkpoint with transformers" in published.notes
    assert "the mean divergence is" in published.notes


def test_card_and_page_offer_what_loads_it_and_never_transformers(published: Published) -> None:
    card = (published.folder / "README.md").read_text()
    page = (published.folder / "report.html").read_text()
    head = yaml.safe_load(card.split("---")[1])

    assert published.report["usage"] == {"runtime": "TensorRT-LLM", "command": "trtllm-serve ."}
    assert head["library_name"] == "tensorrt"
    for text in (card, page):
        assert "trtllm-serve ." in text
        assert "vllm serve ." in text
        assert "AutoModelForCausalLM" not in text


def test_page_and_card_are_sound(published: Published) -> None:
    assert_documents_are_sound(published.folder)


def test_the_speed_of_plain_weights_is_not_told_as_the_engines(published: Published) -> None:
    assert "speed and memory were not measured" in published.notes
    assert not {"tokensPerSecond", "speedup", "peakMemoryBytes"} & set(published.variant)
    assert float(published.report["original"]["tokensPerSecond"]) > 0


def test_the_artifact_is_a_unified_checkpoint_and_nothing_else(published: Published) -> None:
    names = {path.name for path in published.folder.iterdir()}
    manifest_ = json.loads((published.folder / "manifest.json").read_text())

    assert {"model.safetensors", "config.json", "hf_quant_config.json", "tokenizer.model"} <= names
    assert "engine" not in names
    assert "engine" not in manifest_
    assert json.loads((published.folder / "hf_quant_config.json").read_text())["quantization"][
        "quant_algo"
    ] == "FP8"  # fmt: skip


def test_the_advice_says_how_an_engine_would_be_had(published: Published) -> None:
    said = " ".join(published.report["recommendations"])

    assert "set spec.tensorRT.build: Engine" in said


@pytest.mark.parametrize(
    ("spec", "said", "way_out"),
    [
        pytest.param({}, "there is none here", "tensorRT.build: Checkpoint", id="no GPU"),
    ],
)
def test_an_engine_without_what_builds_it_ends_before_anything_is_fetched(
    tmp_path: Path, spec: dict[str, Any], said: str, way_out: str
) -> None:
    code, report, _ = run(tmp_path, "engine", **spec)
    failure = report["failure"]

    assert code == ExitCode.BAD_REQUEST
    assert said in failure["message"]
    assert way_out in f"{failure['message']} {failure.get('advice', '')}"
    assert [one["stage"] for one in report["stages"]] == ["Preflight"]


@pytest.mark.parametrize(
    ("kind", "precision", "code"),
    [
        pytest.param("Sound", "INT8", ExitCode.PUBLISHED, id="nothing broken"),
        pytest.param(
            "ReadByTransformers", "INT8", ExitCode.BAD_REQUEST, id="INT8 taken for weights"
        ),
        pytest.param("ReadByTransformers", "FP8", ExitCode.BAD_REQUEST, id="FP8 taken for weights"),
        pytest.param("OtherRowsScales", "INT8", ExitCode.BAD_REQUEST, id="scales of other rows"),
    ],
)
def test_a_checkpoint_that_loads_and_is_wrong_is_never_published(
    tmp_path: Path, kind: str, precision: str, code: ExitCode
) -> None:
    short = {"perplexity": {"maxTokens": 1024}, "skip": ["Generations", "Performance"]}
    asked = {"build": "Checkpoint"}
    path = written(tmp_path, "broken", tensorRT=asked, device="CPU", evaluation=short)
    given = {"kind": kind, "precision": precision}
    report = program("tensorrt", "broken_runs", path, tmp_path / "scratch", given=given)
    written_files = set(files_below(tmp_path / "out" / "broken"))

    assert report["exitCode"] == code
    if code is ExitCode.PUBLISHED:
        assert "0123abcd/manifest.json" in written_files
        return
    assert report["failure"]["reason"] == "VerificationFailed"
    assert "loads, and is not the original's likeness" in report["failure"]["message"]
    assert [one["stage"] for one in report["stages"]][-1] == "Verifying"
    assert written_files == {"0123abcd.failed/report.html", "0123abcd.failed/report.json"}


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["FP8", "INT8", "INT4AWQ", "FP16"])
def test_an_engine_is_built_verified_and_told_of(tmp_path: Path, precision: str) -> None:
    # In the image over NVIDIA's TensorRT-LLM, or where TENSORRT_LLM_PYTHON names its Python.
    assert os.environ.get("TENSORRT_LLM_PYTHON"), "name the Python that holds TensorRT-LLM"
    limits = {"maxBatchSize": 4, "maxInputLength": 256, "maxOutputLength": 64}
    path = written(tmp_path, "engine", tensorRT={"precision": precision, **limits})

    code, report, error = kubequant("tensorrt", path, gpus=True)

    assert code == 0, error
    (variant,) = report["variants"]
    (folder,) = (tmp_path / "out" / "engine").iterdir()
    built = json.loads((folder / "manifest.json").read_text())["engine"]
    assert built == variant["engineDetail"]
    assert built["gpu"] == report["environment"]["gpus"][0]["name"]
    assert {name: built[name] for name in limits} == limits
    assert (folder / "engine" / "rank0.engine").stat().st_size > 0
    assert "the engine answers" in " ".join(variant["notes"])
    assert "--backend tensorrt" in report["usage"]["command"]
