"""One whole run of INT8 by ONNX Runtime: from the manifest to the published folder."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from tests.worker.engines.runs import kubequant
from tests.worker.run.manifests import TINY, manifest

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """One run: (the artifact's folder, the report)."""
    folder = tmp_path_factory.mktemp("published")
    path = manifest(folder)
    content = yaml.safe_load(path.read_text())
    del content["spec"]["gguf"]
    content["spec"] |= {
        "method": "INT8",
        "int8": {"engine": "ONNXRuntime"},
        "gates": [{"metric": "PerplexityIncreasePercent", "max": "5"}],
    }
    path.write_text(yaml.safe_dump(content))
    code, report, error = kubequant("onnxruntime", path)
    assert code == 0, error
    return next((folder / "out" / "tiny").iterdir()), report


def test_the_report_says_who_did_it_and_why(published: tuple[Path, dict[str, Any]]) -> None:
    _, report = published

    assert report["resolved"]["engine"] == "onnxruntime 1.32.0"
    assert report["resolved"]["reason"] == "The spec names engine ONNXRuntime."
    assert report["original"]["runtime"] == "onnxruntime 1.32.0 on cpu"
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
