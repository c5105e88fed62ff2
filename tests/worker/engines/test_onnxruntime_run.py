"""One whole run of INT8 by ONNX Runtime: from the manifest to the published folder."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from tests.worker.benchmarks.test_harness import ASKED, LOADING, TASKS, own_files
from tests.worker.benchmarks.test_harness import spec as asking
from tests.worker.engines.runs import kubequant
from tests.worker.environments import interpreter, variables
from tests.worker.evaluation.meters import Recorder
from tests.worker.run.commands import commands_of, typed
from tests.worker.run.documents import assert_documents_are_sound
from tests.worker.run.manifests import TINY, manifest

from kubequant_worker.benchmarks.harness import Harness
from kubequant_worker.methods.transformers_runtime import TransformersEngine, TransformersRuntime

if TYPE_CHECKING:
    from pathlib import Path


def ran(folder: Path, evaluation: dict[str, Any], **spec: Any) -> tuple[Path, dict[str, Any]]:
    """Run INT8 by ONNX Runtime; return the artifact's folder and the report."""
    path = manifest(folder, method="INT8", int8={"engine": "ONNXRuntime"}, **spec)
    content = yaml.safe_load(path.read_text())
    content["spec"]["evaluation"] |= evaluation
    path.write_text(yaml.safe_dump(content))
    code, report, error = kubequant("onnxruntime", path)
    assert code == 0, error
    return next((folder / "out" / "tiny").iterdir()), report


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """One run: (the artifact's folder, the report)."""
    return ran(
        tmp_path_factory.mktemp("published"),
        {"benchmarks": list(ASKED), "taskFiles": {"uri": f"file://{TASKS}"}},
        gates=[{"metric": "PerplexityIncreasePercent", "max": "5"}],
    )


def test_the_report_says_who_did_it_and_why(published: tuple[Path, dict[str, Any]]) -> None:
    _, report = published

    assert report["resolved"]["engine"] == "onnxruntime 1.32.0"
    assert report["resolved"]["reason"].endswith("The spec names engine ONNXRuntime.")
    assert report["original"]["runtime"] == "onnxruntime 1.32.0 on cpu, float32"
    assert {"onnxruntime", "onnx", "onnxscript", "torch", "transformers"} <= {
        library["name"] for library in report["environment"]["versions"]
    }


def test_both_were_measured_by_onnx_runtime_on_the_same_tokens(
    published: tuple[Path, dict[str, Any]],
) -> None:
    _, report = published
    (variant,) = report["variants"]

    assert variant["perplexityDetail"]["tokens"] == 2048
    assert report["original"]["perplexityDetail"]["tokens"] == 2048
    assert 0 < float(variant["meanKLDivergence"]) < 0.02
    assert abs(float(variant["perplexityIncreasePercent"])) < 5
    assert 90 < float(variant["topTokenAgreementPercent"]) < 100
    assert variant["gatesPassed"] is True
    assert variant["generations"][0]["quantized"]


def test_verification_held_it_against_the_original(
    published: tuple[Path, dict[str, Any]],
) -> None:
    _, report = published
    notes = report["variants"][0]["notes"]

    assert any("loaded again and held against the original" in note for note in notes)
    assert "Verifying" in [stage["stage"] for stage in report["stages"]]


def test_both_were_timed_by_onnx_runtime_in_processes_of_their_own(
    published: tuple[Path, dict[str, Any]],
) -> None:
    _, report = published
    timed = [report["original"], *report["variants"]]
    details = [model["performanceDetail"] for model in timed]

    assert len({detail["processId"] for detail in details}) == 2
    for model, detail in zip(timed, details, strict=True):
        assert float(model["tokensPerSecond"]) > 0
        assert (detail["promptTokens"], detail["newTokens"], detail["repetitions"]) == (32, 8, 2)
        assert [batch["batchSize"] for batch in detail["batches"]] == [2]
        assert model["peakMemoryBytes"] > model["sizeBytes"]


def test_onnx_runtime_answers_benchmarks_as_transformers_does(
    published: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    _, report = published
    harness = Harness(asking(*ASKED), tmp_path, threads=1)
    harness.look_up(own_files().configs)
    harness.load(lambda _: None)
    with TransformersRuntime(TransformersEngine(2), TINY, LOADING) as runtime:
        expected = harness.ask(runtime, Recorder())
    harness.close()
    found = {(one["task"], one["metric"]): one for one in report["variants"][0]["benchmarkDetails"]}

    assert {(score.task, score.metric) for score in expected} == set(found)
    for score in expected:
        one = found[score.task, score.metric]
        assert float(one["original"]) == pytest.approx(score.value, rel=1e-4), score
        assert float(one["quantized"]) == pytest.approx(score.value, rel=0.1), score
    prose = found["python_prose", "word_perplexity"]
    assert prose["quantized"] != prose["original"]


def test_the_size_is_held_against_the_checkpoint_and_not_the_export(
    published: tuple[Path, dict[str, Any]],
) -> None:
    _, report = published
    (variant,) = report["variants"]

    assert report["original"]["sizeBytes"] == (TINY / "model.safetensors").stat().st_size
    assert 36 < float(variant["sizeReductionPercent"]) < 40


def test_the_folder_is_whole(published: tuple[Path, dict[str, Any]]) -> None:
    folder, report = published
    listed = {
        entry["path"] for entry in json.loads((folder / "manifest.json").read_text())["files"]
    }

    assert {"model.onnx", "config.json", "generation_config.json", "tokenizer.json"} <= listed
    assert (folder / "config.json").read_bytes() == (TINY / "config.json").read_bytes()
    assert (folder / "model.onnx").stat().st_mode & 0o777 == 0o644
    assert report["usage"]["runtime"] == "ONNX Runtime"
    assert report["usage"]["command"] in (folder / "README.md").read_text()


def test_page_and_card_are_sound(published: tuple[Path, dict[str, Any]]) -> None:
    assert_documents_are_sound(published[0])


def test_the_command_that_users_are_told_works_when_it_is_copied(
    published: tuple[Path, dict[str, Any]],
) -> None:
    folder, report = published
    commands = commands_of((folder / "report.html").read_text())

    assert commands == {"ONNX Runtime": report["usage"]["command"]}
    written = typed(
        commands["ONNX Runtime"],
        folder,
        interpreter=interpreter("onnxruntime"),
        variables={key: value for key, value in variables().items() if key != "PYTHONPATH"},
    )
    assert written.startswith("Once upon a time")
    assert len(written.split()) > 10


def test_weights_alone_follow_where_a_gate_does_not_hold_and_nothing_is_exported_again(
    tmp_path: Path,
) -> None:
    folder, report = ran(
        tmp_path,
        {"skip": ["Generations", "Performance"]},
        gates=[{"metric": "MeanKLDivergence", "max": "0.001"}],
        onGateFailure="Escalate",
    )
    stages = [one["stage"] for one in report["stages"]]
    (variant,) = report["variants"]

    assert [one["gatesPassed"] for one in report["escalation"]] == [False, True]
    assert stages.count("Measuring") == 1
    assert stages.count("Quantizing") == stages.count("Verifying") == 2
    assert float(variant["meanKLDivergence"]) < 0.0001
    assert b"MatMulNBits" in (folder / "model.onnx").read_bytes()
