"""What a run measures, end to end: speed, memory and benchmarks, each with how sure it is."""

from __future__ import annotations

import datetime as dt
import re
from pathlib import Path

import pytest
from tests.worker.run.manifests import Ended, files_below, kubequant, manifest

TASKS = Path(__file__).parents[1] / "benchmarks" / "tasks"


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Ended]:
    """One run of two levels: (its manifest, the artifact's folder, how it ended)."""
    folder = tmp_path_factory.mktemp("published")
    path = manifest(folder)
    ended = kubequant("run", path, "--json")
    assert ended.code == 0, ended.err
    return path, next((folder / "out" / "tiny").iterdir()), ended


def test_the_speed_of_every_model_is_known_and_how_it_was_measured(
    published: tuple[Path, Path, Ended],
) -> None:
    _, _, ended = published
    original, variants = ended.report["original"], ended.report["variants"]
    timed = [original, *variants]
    details = [model["performanceDetail"] for model in timed]

    assert len({detail["processId"] for detail in details}) == 3, "a process for each model"
    for model, detail in zip(timed, details, strict=True):
        assert float(model["tokensPerSecond"]) > 0
        assert float(detail["tokensPerSecondDeviation"]) > 0
        assert (detail["promptTokens"], detail["newTokens"], detail["repetitions"]) == (32, 8, 2)
        assert [batch["batchSize"] for batch in detail["batches"]] == [2]
        assert model["peakMemoryBytes"] == detail["peakResidentMemoryBytes"] > model["sizeBytes"]
        assert detail["device"]
        assert detail["threads"] == ended.report["environment"]["threads"]
        assert detail["meanwhile"].startswith("Nothing else of this run")
    for variant in variants:
        ratio = float(variant["tokensPerSecond"]) / float(original["tokensPerSecond"])
        assert float(variant["speedup"]) == pytest.approx(ratio, abs=1e-3)
        assert float(variant["speedupStandardError"]) > 0
    assert ended.report["environment"]["memoryBytes"] > 0
    assert ended.report["environment"]["gpus"] == []


def test_uploads_wait_until_speed_is_measured(published: tuple[Path, Path, Ended]) -> None:
    _, artifact, ended = published
    (evaluating,) = [one for one in ended.report["stages"] if one["stage"] == "Evaluating"]
    begun = dt.datetime.fromisoformat(evaluating["startedAt"]).timestamp()

    assert min(path.stat().st_ctime for path in artifact.glob("*.gguf")) > begun


def test_every_number_that_is_an_estimate_has_its_error(
    published: tuple[Path, Path, Ended],
) -> None:
    _, _, ended = published
    for variant in ended.report["variants"]:
        divergence = variant["divergenceDetail"]
        assert float(variant["perplexityIncreaseStandardError"]) > 0
        assert float(divergence["standardError"]) > 0
        assert float(divergence["topTokenAgreementStandardError"]) > 0
        assert (
            float(divergence["median"])
            <= float(divergence["percentile99"])
            <= float(divergence["maximum"])
        )


def test_the_card_says_how_fast_it_is(published: tuple[Path, Path, Ended]) -> None:
    _, artifact, _ = published
    card = (artifact / "README.md").read_text()

    _, _, won = card.partition("## What was won")
    won, _, _ = won.partition("\n## ")
    for model in ("original", "Q8_0", "Q2_K"):
        assert re.search(rf"^\| {model} \| [\d.]+ MiB \| [\d,.]+ ± ", won, re.MULTILINE)
    assert len(re.findall(r"\| [\d.]+\u00d7 \|", won)) == 2, "how many times as fast"
    assert "32 prompt tokens, 8 new tokens, 2 repetitions" in won
    assert "## Benchmarks" not in card


def test_benchmarks_are_asked_of_both_models(tmp_path: Path) -> None:
    path = manifest(
        tmp_path,
        gguf={"types": ["Q2_K"]},
        evaluation={
            "benchmarks": [{"task": "python_words", "fewShot": 1}, {"task": "python_prose"}],
            "taskFiles": {"uri": f"file://{TASKS}"},
            "skip": ["Perplexity", "Generations", "Performance"],
        },
    )

    ended = kubequant("run", path, "--json")

    assert ended.code == 0, ended.err
    (variant,) = ended.report["variants"]
    by_metric = {(one["task"], one["metric"]): one for one in variant["benchmarkDetails"]}
    words, prose = by_metric["python_words", "acc"], by_metric["python_prose", "word_perplexity"]
    assert (words["samples"], words["fewShot"], words["version"]) == (16, 1, "1.0")
    assert float(words["originalStandardError"]) > 0
    assert float(words["quantizedStandardError"]) > 0
    assert float(prose["quantized"]) > float(prose["original"]) > 1, "two bits lose something"
    assert variant["benchmarks"][0] == {
        "task": "python_words",
        "metric": "acc",
        "original": words["original"],
        "quantized": words["quantized"],
        "stderr": words["quantizedStandardError"],
    }
    assert "tokensPerSecond" not in variant, "what is skipped is left out"
    card = next((tmp_path / "out" / "tiny").iterdir()) / "README.md"
    assert "| Q2_K | python_words | acc | " in card.read_text()


def test_an_unknown_benchmark_is_refused_before_anything_is_fetched(tmp_path: Path) -> None:
    path = manifest(tmp_path, evaluation={"benchmarks": [{"task": "hellaswga"}]})

    ended = kubequant("run", path, "--json")

    assert ended.code == 10, ended.err
    assert files_below(tmp_path / "out") == {}
    assert [one["stage"] for one in ended.report["stages"]] == ["Preflight"]
    assert ended.report["failure"]["message"].startswith(
        "spec.evaluation.benchmarks[0].task: the lm-evaluation-harness has no task 'hellaswga'; "
        "did you mean hellaswag"
    )
