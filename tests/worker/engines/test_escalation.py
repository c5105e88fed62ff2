"""A run whose gates fail at first climbs to another method of the same image."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from tests.worker.engines.runs import kubequant
from tests.worker.run.documents import assert_documents_are_sound
from tests.worker.run.manifests import manifest

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def climbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Rounding to 4 bits (divergence 0.0096), then GPTQ (0.0042): (the artifact, the report)."""
    folder = tmp_path_factory.mktemp("climbed")
    path = manifest(
        folder,
        method="INT4",
        device="CPU",
        calibration={"samples": 8, "sequenceLength": 128},
        evaluation={"perplexity": {"maxTokens": 2048}, "skip": ["Generations", "Performance"]},
        gates=[{"metric": "MeanKLDivergence", "max": "0.0065"}],
        onGateFailure="Escalate",
    )
    code, report, error = kubequant("llmcompressor", path)
    assert code == 0, error
    return next((folder / "out" / "tiny").iterdir()), report


def test_the_next_method_is_tried_without_measuring_the_original_again(
    climbed: tuple[Path, dict[str, Any]],
) -> None:
    _, report = climbed
    stages = [one["stage"] for one in report["stages"]]

    assert [(one["variant"], one["gatesPassed"]) for one in report["escalation"]] == [
        ("INT4", False),
        ("GPTQ", True),
    ]
    assert stages.count("Fetching") == stages.count("Measuring") == 1
    assert stages.count("Quantizing") == stages.count("Verifying") == 2
    assert {text["role"] for text in report["datasets"]} == {"evaluation", "calibration"}


def test_page_and_card_are_sound(climbed: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = climbed

    assert_documents_are_sound(folder)


def test_the_folder_holds_the_method_that_held_and_nothing_of_the_one_before(
    climbed: tuple[Path, dict[str, Any]],
) -> None:
    folder, report = climbed
    (variant,) = report["variants"]
    config = json.loads((folder / "config.json").read_text())
    provenance = json.loads((folder / "provenance.json").read_text())
    made = provenance["predicate"]["buildDefinition"]["internalParameters"]["made"]

    assert (variant["name"], variant["method"], variant["inPlaceOf"]) == ("GPTQ", "GPTQ", ["INT4"])
    assert variant["gatesPassed"] is True
    assert report["resolved"]["method"] == "GPTQ"
    assert config["quantization_config"]["quant_method"] == "compressed-tensors"
    assert "GPTQModifier" in (folder / "recipe.yaml").read_text()
    assert "QuantizationModifier:" not in (folder / "recipe.yaml").read_text()
    assert made[0]["method"] == "GPTQ"
    # What the engine had made was held against what was loaded, for this method again.
    assert any("is what the engine had made" in note for note in variant["notes"])
