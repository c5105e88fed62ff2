"""AutoGPTQ: its own loop on a CPU in the GPU's place, its refusal without one, and a run on a GPU.

It quantizes on GPUs only. What a CPU can stand in for is everything but where tensors lie, so that
parameters, packing, progress and files are held here; the run as users have it is marked `gpu`.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
from tests.worker.engines.layers import first_layers
from tests.worker.engines.runs import kubequant, program
from tests.worker.methods.conftest import TINY
from tests.worker.methods.models import EVEN, random_gpt2, random_llama, random_qwen2
from tests.worker.run.manifests import manifest

from kubequant.api.base import LOCAL
from kubequant.api.spec import QuantizationJobSpec
from kubequant_worker.methods.gptq import AutoGPTQGPTQ
from kubequant_worker.sources.safetensors_header import read_header

if TYPE_CHECKING:
    from pathlib import Path

SHORT = {"samples": 8, "sequenceLength": 128}
DEFAULTS = {
    "bits": 4,
    "group_size": 128,
    "damp_percent": 0.01,
    "desc_act": False,
    "static_groups": False,
    "sym": True,
    "true_sequential": True,
}
NO_DOWN = r"-:.*\.mlp\.down_proj$"


def spec(**parameters: Any) -> dict[str, Any]:
    return {"method": "GPTQ", "calibration": SHORT, "gptq": {"engine": "AutoGPTQ", **parameters}}


# Case -> (spec, what the engine is told and config.json says). All differ from "layer".
PARAMETERS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "gptq.bits of 2": (spec(bits=2), {"bits": 2}),
    "gptq.bits of 3": (spec(bits=3), {"bits": 3}),
    "gptq.bits of 8": (spec(bits=8), {"bits": 8}),
    "gptq.groupSize": (spec(groupSize=32), {"group_size": 32}),
    "gptq.groupSize of a row": (spec(groupSize=-1), {"group_size": -1}),
    "gptq.dampingFraction": (spec(dampingFraction="0.2"), {"damp_percent": 0.2}),
    "gptq.activationOrder": (spec(activationOrder=True), {"desc_act": True}),
    "gptq.symmetric": (spec(symmetric=False), {"sym": False}),
    "gptq.trueSequential": (spec(trueSequential=False), {"true_sequential": False}),
    "calibration.seed": ({**spec(), "calibration": {**SHORT, "seed": 1}}, {}),
}
# Case -> (model, spec, what is said).
REFUSALS = {
    "the head": ("layer", spec(ignore=[]), "spec.gptq.ignore: engine AutoGPTQ quantizes"),
    "a model left on disk": (
        "layer", {**spec(), "memory": {"offload": "Disk"}}, "spec.memory.offload: engine AutoGPTQ",
    ),
    "a module ignored in one layer of several": (
        "tiny",
        spec(ignore=["lm_head", "model.layers.0.mlp.down_proj"]),
        "mlp.down_proj is ignored in some layers and not in model.layers.1.mlp.down_proj",
    ),
    "a kind of model whose layers are not linear": (
        "gpt2", spec(), "there is nothing for AutoGPTQ to quantize",
    ),
    "rows that are no whole number of groups": (
        "rows192", spec(), "groupSize: 128 does not divide the 192 columns of",
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Made:
    """Everything that one process made, and what another measured of it."""

    folder: Path
    said: dict[str, dict[str, Any]]
    numbers: dict[str, dict[str, float]]

    def artifact(self, case: str) -> Path:
        return self.folder / case / "artifact"

    def weights(self, case: str) -> str:
        return hashlib.sha256((self.artifact(case) / "model.safetensors").read_bytes()).hexdigest()

    def config(self, case: str) -> dict[str, Any]:
        content = json.loads((self.artifact(case) / "config.json").read_text())
        found: dict[str, Any] = content["quantization_config"]
        return found


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("autogptq")
    models = {
        "tiny": TINY,
        "layer": first_layers(TINY, folder / "models" / "layer", 1),
        "gpt2": random_gpt2(folder / "models" / "gpt2"),
        "qwen2": random_qwen2(folder / "models" / "qwen2"),
        "rows192": random_llama(folder / "models" / "rows192"),
        "sharded": random_llama(folder / "models" / "sharded", shard="600KB", **EVEN),
    }
    assert len(list(models["sharded"].glob("*.safetensors"))) > 1
    cases: dict[str, dict[str, Any]] = {
        "tiny": {"model": "tiny", "spec": spec()},
        "layer": {"model": "layer", "spec": spec()},
        "again": {"model": "layer", "spec": spec()},
        "qwen2": {"model": "qwen2", "spec": spec()},
        "shards": {"model": "sharded", "spec": spec()},
        "ignored": {"model": "tiny", "spec": spec(ignore=["lm_head", "re:.*down_proj"])},
    }
    cases |= {name: {"model": "layer", "spec": row[0]} for name, row in PARAMETERS.items()}
    cases |= {name: {"model": row[0], "spec": row[1]} for name, row in REFUSALS.items()}
    for case in cases.values():
        case["model"] = str(models[case["model"]])
    said = program("gptq-legacy", "autogptq_on_cpu", folder, given=cases, seconds=1200)
    loaded = ("tiny", "layer", "qwen2", "shards", "ignored", *PARAMETERS)
    pairs = {name: [cases[name]["model"], str(folder / name / "artifact")] for name in loaded}
    return Made(folder, said, program("gptq-legacy", "load_packed", given=pairs))


pytestmark = pytest.mark.timeout(1800)


@pytest.mark.parametrize("case", PARAMETERS)
def test_the_engine_is_told_what_the_spec_says(case: str) -> None:
    asked, differs = PARAMETERS[case]
    whole = {**asked, "model": {"uri": "hf://a/b"}, "output": {"uri": "s3://bucket/prefix"}}
    parsed = QuantizationJobSpec.model_validate(whole, context=LOCAL)

    assert AutoGPTQGPTQ.settings(parsed) == {**DEFAULTS, **differs}


@pytest.mark.parametrize("case", PARAMETERS)
def test_every_parameter_changes_the_weights_and_is_written_down(made: Made, case: str) -> None:
    config = made.config(case)

    assert made.weights(case) != made.weights("layer")
    assert {key: config[key] for key in PARAMETERS[case][1]} == PARAMETERS[case][1]


def test_a_checkpoint_is_its_originals_likeness(made: Made) -> None:
    size = (made.artifact("tiny") / "model.safetensors").stat().st_size / 2**20

    assert 3.5 < size < 3.7
    assert 0.001 < made.numbers["tiny"]["divergence"] < 0.03


def test_fewer_bits_lose_more(made: Made) -> None:
    cases = ("gptq.bits of 8", "layer", "gptq.bits of 3", "gptq.bits of 2")
    lost = [made.numbers[case]["divergence"] for case in cases]

    assert lost == sorted(lost)
    assert 0 < lost[0] * 10 < lost[1]


def test_what_is_read_is_what_the_engine_had_rounded(made: Made) -> None:
    others = ("gptq.groupSize", "gptq.groupSize of a row", "gptq.activationOrder", "gptq.symmetric")

    assert all(0 < made.numbers[case]["divergence"] < 0.03 for case in others)


@pytest.mark.parametrize("case", ["qwen2", "shards"])
def test_biases_tied_embeddings_and_shards_come_through(made: Made, case: str) -> None:
    # Random weights have no structure, and so lose more than trained ones.
    assert 0 < made.numbers[case]["divergence"] < 0.6


def test_the_same_spec_gives_the_same_bytes(made: Made) -> None:
    assert made.weights("again") == made.weights("layer")


def test_what_is_ignored_stays_and_readers_are_told(made: Made) -> None:
    path = made.artifact("ignored") / "model.safetensors"
    after = {span.name: span.dtype for span in read_header(path)}
    config = made.config("ignored")

    assert after["model.layers.3.mlp.down_proj.weight"] == "BF16"
    assert "model.layers.3.mlp.up_proj.qweight" in after
    assert ["mlp.down_proj"] not in config["modules_in_block_to_quantize"]
    assert ["mlp.up_proj"] in config["modules_in_block_to_quantize"]
    assert config["dynamic"] == {NO_DOWN: {}}
    assert 0 < made.numbers["ignored"]["divergence"] < 0.03


def test_the_config_names_the_format_and_nothing_of_this_machine(made: Made) -> None:
    assert made.config("tiny") == {
        **DEFAULTS,
        "quant_method": "gptq",
        "checkpoint_format": "gptq",
    }
    after = {span.name for span in read_header(made.artifact("tiny") / "model.safetensors")}
    assert not [name for name in after if name.endswith(".bias")]
    assert {path.stat().st_mode & 0o777 for path in made.artifact("tiny").iterdir()} == {0o644}


def test_progress_counts_modules_and_comes_to_its_end(made: Made) -> None:
    said = made.said["tiny"]
    modules = [line for line in said["messages"] if "module" in line]

    assert modules == [f"GPTQ: module {number} of 28" for number in range(1, 29)]
    assert said["messages"][-3:] == ["packing", "saving", "saved"]
    assert said["progress"] == pytest.approx(1)
    assert said["tokens"] == 8 * 128


@pytest.mark.parametrize("case", REFUSALS)
def test_what_the_engine_cannot_do_is_refused_with_a_sentence(made: Made, case: str) -> None:
    assert REFUSALS[case][2] in made.said[case]["refused"]


def asked(folder: Path, **changes: Any) -> Path:
    """Write a manifest of a whole run."""
    return manifest(folder, **{**spec(), **changes})


def test_without_a_gpu_a_run_ends_before_anything_is_fetched(tmp_path: Path) -> None:
    code, report, error = kubequant("gptq-legacy", asked(tmp_path))

    assert code == 10
    assert report["failure"]["reason"] == "DeviceNotFound"
    assert "name another engine than AutoGPTQ" in report["failure"]["message"]
    assert [stage["stage"] for stage in report["stages"]] == ["Preflight"]
    assert "Traceback" not in error


def test_a_cpu_is_refused_by_the_spec_itself(tmp_path: Path) -> None:
    code, _, error = kubequant("gptq-legacy", asked(tmp_path, device="CPU"))

    assert code != 0
    assert "must be GPU with engine AutoGPTQ, which refuses a CPU" in error
    assert "Traceback" not in error


@pytest.mark.gpu
def test_a_whole_run_on_a_gpu_is_verified(tmp_path: Path) -> None:
    code, report, error = kubequant("gptq-legacy", asked(tmp_path), gpus=True)

    assert code == 0, error
    assert report["resolved"]["engine"] == "auto-gptq 0.7.1"
    notes = report["variants"][0]["notes"]
    assert any("loaded again and held against the original" in note for note in notes)
    assert any("what was loaded again is what the engine had made" in note for note in notes)
    assert 0 < float(report["variants"][0]["meanKLDivergence"]) < 0.03
