"""Whole runs of Prune: from the manifest to the published folder, and quantized from there."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
from tests.worker.engines.runs import kubequant
from tests.worker.environments import interpreter, variables
from tests.worker.run.commands import commands_of, typed
from tests.worker.run.documents import assert_documents_are_sound
from tests.worker.run.manifests import manifest

if TYPE_CHECKING:
    from pathlib import Path

CALIBRATION = {"samples": 16, "sequenceLength": 256}


def run(folder: Path, name: str, **spec: Any) -> tuple[int, dict[str, Any], str]:
    """Run a manifest of that name."""
    path = manifest(folder, name, device="CPU", **spec)
    return kubequant("llmcompressor", path)


@dataclass(frozen=True)
class Both:
    """A run that prunes, and one that quantizes what the first published."""

    pruned: Path
    pruning: dict[str, Any]
    quantized: Path
    quantizing: dict[str, Any]


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Both:
    folder = tmp_path_factory.mktemp("both")
    code, first, error = run(folder, "pruned", method="Prune", calibration=CALIBRATION)
    assert code == 0, error
    (pruned,) = (folder / "out" / "pruned").iterdir()
    code, second, error = run(folder, "both", method="INT4", model={"uri": f"file://{pruned}"})
    assert code == 0, error
    (quantized,) = (folder / "out" / "both").iterdir()
    return Both(pruned, first, quantized, second)


def test_the_report_says_what_is_zero_and_what_it_cost(both: Both) -> None:
    (variant,) = both.pruning["variants"]
    zeros = variant["sparsityDetail"]

    assert both.pruning["resolved"]["engine"] == "llmcompressor 0.14.0.1"
    assert variant["setting"] == "50 % zeros, SparseGPT"
    assert float(zeros["percent"]) == pytest.approx(50, abs=0.1)
    assert zeros["moduleCount"] == len(zeros["modules"]) == 28
    assert {abs(float(one["percent"]) - 50) < 0.1 for one in zeros["modules"]} == {True}
    assert 0.001 < float(variant["meanKLDivergence"]) < 0.1
    assert 0 < float(variant["perplexityIncreasePercent"]) < 10
    assert variant["generations"][0]["quantized"]
    assert float(variant["tokensPerSecond"]) > 0


def test_it_was_loaded_again_and_is_what_the_engine_had_made(both: Both) -> None:
    notes = " ".join(both.pruning["variants"][0]["notes"])

    assert "loaded again and held against the original" in notes
    assert "what was loaded again is what the engine had made" in notes


def test_report_page_and_card_say_that_the_files_are_no_smaller(both: Both) -> None:
    (variant,) = both.pruning["variants"]
    texts = [(both.pruned / name).read_text() for name in ("report.html", "README.md")]

    assert float(variant["sizeReductionPercent"]) == pytest.approx(0, abs=0.1)
    assert ["the files are no smaller" in text for text in (*texts, str(variant["notes"]))] == (
        [True] * 3
    )
    assert ["What is zero, counted in the saved files" in text for text in texts] == [True] * 2


def test_page_and_card_are_sound_and_the_command_for_transformers_works(both: Both) -> None:
    for folder in (both.pruned, both.quantized):
        assert_documents_are_sound(folder)
    commands = commands_of((both.pruned / "report.html").read_text())

    assert list(commands) == ["vLLM", "transformers"]
    written = typed(
        commands["transformers"],
        both.pruned,
        interpreter=interpreter("llmcompressor"),
        variables=variables(),
    )
    assert len(written.split()) > 2


def test_a_gate_holds_a_pruned_model_as_any_other(tmp_path: Path) -> None:
    code, report, _ = run(
        tmp_path,
        "gated",
        method="Prune",
        prune={"algorithm": "Magnitude", "sparsity": "0.7"},
        gates=[{"metric": "PerplexityIncreasePercent", "max": "5"}],
        evaluation={"perplexity": {"maxTokens": 2048}, "skip": ["Performance", "Generations"]},
    )

    assert code == 11
    assert report["resolved"]["engine"].startswith("torch ")
    assert report["failure"]["reason"] == "GateFailed"


def test_what_lost_too_much_by_magnitude_is_pruned_more_carefully(tmp_path: Path) -> None:
    code, report, error = run(
        tmp_path,
        "escalated",
        method="Prune",
        prune={"algorithm": "Magnitude", "sparsity": "0.6"},
        calibration=CALIBRATION,
        gates=[{"metric": "PerplexityIncreasePercent", "max": "5"}],
        onGateFailure="Escalate",
        evaluation={"perplexity": {"maxTokens": 2048}, "skip": ["Performance", "Generations"]},
    )

    assert code == 0, error
    (variant,) = report["variants"]
    assert variant["setting"] == "50 % zeros, SparseGPT"
    assert report["resolved"]["engine"].startswith("llmcompressor ")
    assert report["escalation"][0]["setting"] == "60 % zeros, Magnitude"


def test_what_was_pruned_can_be_quantized_and_both_steps_are_named(both: Both) -> None:
    provenance = json.loads((both.quantized / "provenance.json").read_text())["predicate"]
    told = provenance["buildDefinition"]["internalParameters"]
    (before,) = told["before"]
    step = both.quantizing["source"]["steps"]

    assert float(both.quantizing["variants"][0]["sizeReductionPercent"]) > 50
    assert [one["method"] for one in told["made"]] == ["INT4"]
    assert before == {
        "method": "Prune",
        "setting": "50 % zeros, SparseGPT",
        "run": both.pruning["digest"],
        "uri": both.pruning["source"]["uri"],
    }
    assert step == [before]
    for name in ("report.html", "README.md"):
        assert "Prune (50 % zeros, SparseGPT) of file://" in (both.quantized / name).read_text()


def test_the_original_of_the_second_run_is_the_pruned_model(both: Both) -> None:
    pruned = both.pruning["variants"][0]["perplexity"]

    assert float(both.quantizing["original"]["perplexity"]) == pytest.approx(float(pruned))
