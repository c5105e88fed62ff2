"""A model's own words on how to generate: published as they are, whatever engine saves it.

transformers refuses to write a temperature without sampling, which many published models have.
"""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest
from tests.worker.engines.runs import program
from tests.worker.methods.models import WORDS, worded

if TYPE_CHECKING:
    from pathlib import Path

SHORT = {"samples": 2, "sequenceLength": 32}


def spec(method: str, member: str = "", **parameters: Any) -> dict[str, Any]:
    own = {member: parameters} if member else {}
    return {"method": method, "calibration": SHORT, **own}


# Environment, its child's module -> specs by name.
ENGINES: dict[tuple[str, str], dict[str, dict[str, Any]]] = {
    ("llmcompressor", "llmcompressor_child"): {
        "INT4": spec("INT4"),
        "Magnitude": spec("Prune", "prune", algorithm="Magnitude"),
    },
    ("auto-round", "auto_round_child"): {
        "Tuned": spec("INT4", "int4", rounding="Tuned", iterations=1),
    },
    ("transformers", "bits_and_bytes_child"): {"8 bits": spec("BitsAndBytes")},
    ("transformers", "torchao_child"): {"torchao": spec("INT8", "int8", engine="TorchAO")},
    ("transformers", "distill_child"): {
        "student": spec("Distill", "distill", steps=1, batchSize=1),
    },
    ("gptqmodel", "gptqmodel_child"): {"GPTQ": spec("GPTQ", "gptq", engine="GPTQModel")},
    ("tensorrt", "modelopt_child"): {
        "FP8": spec("TensorRT", "tensorRT", build="Checkpoint"),
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Models whose words stand in the file for them, and in config.json, where they once stood."""
    folder = tmp_path_factory.mktemp("models")
    beside = worded(folder / "beside")
    inside = folder / "inside"
    shutil.copytree(beside, inside)
    (inside / "generation_config.json").unlink()
    config = json.loads((inside / "config.json").read_text())
    (inside / "config.json").write_text(json.dumps({**config, **WORDS}))
    return {"beside": beside, "inside": inside}


@pytest.mark.parametrize("engine", ENGINES, ids=lambda engine: engine[1].removesuffix("_child"))
def test_words_that_contradict_each_other_come_through(
    models: dict[str, Path], tmp_path: Path, engine: tuple[str, str]
) -> None:
    environment, child = engine
    cases = {
        f"{name}, {where}": {"spec": asked, "model": str(model)}
        for name, asked in ENGINES[engine].items()
        for where, model in models.items()
    }

    said = program(
        environment, "quantize_cases", f"kubequant_worker.methods.{child}", tmp_path, given=cases
    )

    assert {name: one.get("refused") for name, one in said.items()} == dict.fromkeys(cases)
    for name in cases:
        folder = tmp_path / name / "artifact"
        if name.endswith("beside"):
            before = models["beside"] / "generation_config.json"
            assert (folder / before.name).read_bytes() == before.read_bytes()
        else:
            paths = (folder / "config.json", folder / "generation_config.json")
            found = [json.loads(path.read_text()) for path in paths if path.is_file()]
            assert {**found[0], **found[-1]}.items() >= WORDS.items()
