"""Whole runs of gptqmodel's methods: from the manifest to the published folder."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from tests.worker.engines.runs import kubequant
from tests.worker.environments import interpreter, variables
from tests.worker.run.commands import commands_of, typed
from tests.worker.run.documents import assert_documents_are_sound
from tests.worker.run.manifests import TINY, manifest

if TYPE_CHECKING:
    from pathlib import Path

    Published = dict[str, tuple[Path, dict[str, Any]]]

METHODS = {
    "GPTQ": {"gptq": {"engine": "GPTQModel"}},
    "AWQ": {},
}
REASONS = {
    "GPTQ": "The spec names engine GPTQModel.",
    "AWQ": "GPTQModel does AWQ on a CPU: ",
}


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Published:
    """A run of each method: (the artifact's folder, the report)."""
    found = {}
    for method, member in METHODS.items():
        folder = tmp_path_factory.mktemp(method)
        asked = {
            "method": method,
            **member,
            "device": "CPU",
            "calibration": {"samples": 8, "sequenceLength": 128},
            "gates": [{"metric": "PerplexityIncreasePercent", "max": "5"}],
        }
        path = manifest(folder, **asked)
        code, report, error = kubequant("gptqmodel", path)
        assert code == 0, error
        found[method] = (next((folder / "out" / "tiny").iterdir()), report)
    return found


@pytest.mark.parametrize("method", METHODS)
def test_the_report_says_who_did_it_and_why(published: Published, method: str) -> None:
    _, report = published[method]

    assert report["resolved"]["engine"] == "gptqmodel 7.6.0"
    assert REASONS[method] in report["resolved"]["reason"]
    assert report["original"]["runtime"].startswith("transformers 5.23.0 in float32 on cpu")
    assert {"gptqmodel", "optimum", "torch"} <= {
        library["name"] for library in report["environment"]["versions"]
    }


@pytest.mark.parametrize("method", METHODS)
def test_it_was_measured_and_verified_against_the_original(
    published: Published, method: str
) -> None:
    _, report = published[method]
    (variant,) = report["variants"]

    assert variant["perplexityDetail"]["tokens"] == 2048
    assert 0 < float(variant["meanKLDivergence"]) < 0.02
    assert 90 < float(variant["topTokenAgreementPercent"]) < 100
    assert variant["gatesPassed"] is True
    assert any("held against the original" in note for note in variant["notes"])
    (again,) = [note for note in variant["notes"] if "what was loaded again is what" in note]
    assert float(again.rpartition("divergence ")[2].split()[0]) < 0.001
    (told,) = [text for text in report["datasets"] if text["role"] == "calibration"]
    assert told["tokens"] == 8 * 128


@pytest.mark.parametrize("method", METHODS)
def test_the_folder_is_whole(published: Published, method: str) -> None:
    folder, _ = published[method]
    config = json.loads((folder / "config.json").read_text())
    listed = {
        entry["path"] for entry in json.loads((folder / "manifest.json").read_text())["files"]
    }

    assert config["quantization_config"]["quant_method"] == method.lower()
    assert {"model.safetensors", "config.json", "tokenizer.json", "report.json"} <= listed
    assert (folder / "tokenizer.model").read_bytes() == (TINY / "tokenizer.model").read_bytes()
    assert (folder / "model.safetensors").stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("method", METHODS)
def test_page_and_card_are_sound_and_the_command_for_transformers_works(
    published: Published, method: str
) -> None:
    folder, _ = published[method]
    assert_documents_are_sound(folder)
    commands = commands_of((folder / "report.html").read_text())

    assert commands["vLLM"] == "vllm serve ."
    written = typed(
        commands["transformers"],
        folder,
        interpreter=interpreter("gptqmodel"),
        variables=variables(),
    )
    assert len(written.split()) > 2
