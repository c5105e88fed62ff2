"""Method Prune on the tiny model: what is zero in the saved files, and what is lost by it.

All checkpoints are made in one process of the image's environment and loaded in another; zeros are
counted here, by torch and not by the worker.
"""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
from tests.worker.engines.made import Made
from tests.worker.engines.runs import program
from tests.worker.environments import interpreter, variables
from tests.worker.methods.conftest import TINY
from tests.worker.methods.models import (
    EVEN,
    changed_config,
    random_gpt2,
    random_llama,
    random_mixtral,
    random_qwen3_moe,
)

if TYPE_CHECKING:
    from pathlib import Path

    import torch

ENGINE = "kubequant_worker.methods.llmcompressor_child"
SHORT = {"samples": 16, "sequenceLength": 256}


def spec(**parameters: Any) -> dict[str, Any]:
    return {"method": "Prune", "calibration": SHORT, "prune": parameters}


# Case -> (spec, the share of zeros asked for).
MADE = {
    "SparseGPT": (spec(), 0.5),
    "Wanda": (spec(algorithm="Wanda"), 0.5),
    "Magnitude": (spec(algorithm="Magnitude"), 0.5),
    "SparseGPT, two of four": (spec(pattern="TwoOfFour"), 0.5),
    "Wanda, two of four": (spec(algorithm="Wanda", pattern="TwoOfFour"), 0.5),
    "Magnitude, two of four": (spec(algorithm="Magnitude", pattern="TwoOfFour"), 0.5),
    "SparseGPT, 0.3": (spec(sparsity="0.3"), 0.3),
    "Wanda, 0.75": (spec(algorithm="Wanda", sparsity="0.75"), 0.75),
    "Magnitude, 0.314": (spec(algorithm="Magnitude", sparsity="0.314"), 0.314),
}
TWO_OF_FOUR = tuple(case for case in MADE if "two of four" in case)
# Case -> (spec, the case that it must differ from).
PARAMETERS = {
    "prune.algorithm": (spec(algorithm="Wanda"), "SparseGPT"),
    "prune.sparsity": (spec(sparsity="0.3"), "SparseGPT"),
    "prune.pattern": (spec(pattern="TwoOfFour"), "SparseGPT"),
    "prune.ignore": (spec(ignore=["lm_head", "re:.*down_proj"]), "SparseGPT"),
    "prune.ignore of nothing": (spec(ignore=[]), "SparseGPT"),
    "calibration.seed": ({**spec(), "calibration": {**SHORT, "seed": 1}}, "SparseGPT"),
    "calibration.samples": ({**spec(), "calibration": {**SHORT, "samples": 4}}, "SparseGPT"),
    "calibration.sequenceLength": (
        {**spec(), "calibration": {**SHORT, "sequenceLength": 128}},
        "SparseGPT",
    ),
}
# Case -> (model, spec, what is said, what is advised).
REFUSALS = {
    "a model without linear modules": (
        "gpt2", spec(), "in GPT2LMHeadModel there is nothing to prune", "another model",
    ),
    "everything ignored": (
        "tiny", spec(ignore=["re:.*"]), "29 linear modules, and all are ignored", "fewer",
    ),
    "a head that shares the embeddings": (
        "tied", spec(ignore=[]), "spec.prune.ignore: lm_head shares its weights", "lm_head in",
    ),
    "experts that are saved by other names": (
        "mixtral", spec(), "saves the experts of MixtralForCausalLM by names", "none here prunes",
    ),
    "rows that are no whole fours": (
        "odd", spec(pattern="TwoOfFour"), "TwoOfFour needs rows of whole fours", "Unstructured",
    ),
    "a model that is quantized already": (
        "quantized", spec(), "config.json says that the model is quantized already", "made",
    ),
}  # fmt: skip
SHAPES = {
    "tied embeddings": ("tied", spec(), 0.5),
    "shards": ("sharded", spec(algorithm="Magnitude"), 0.5),
    "narrow rows": ("odd", spec(algorithm="Wanda", sparsity="0.333"), 0.333),
}


@dataclass(frozen=True)
class Pruned(Made):
    """Checkpoints whose matrices are looked into."""

    def tensors(self, case: str) -> dict[str, torch.Tensor]:
        return tensors(self.artifact(case))

    def pruned(self, case: str) -> dict[str, torch.Tensor]:
        """Return the matrices of the layers, all of which are linear modules'."""
        return {
            name: tensor
            for name, tensor in self.tensors(case).items()
            if ".layers." in name and tensor.ndim == 2
        }


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file  # noqa: PLC0415 - imports torch

    return {k: v for path in folder.glob("*.safetensors") for k, v in load_file(path).items()}


def zeros(tensor: torch.Tensor) -> float:
    return (tensor == 0).float().mean().item()


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {
        "tiny": TINY,
        "gpt2": random_gpt2(folder / "gpt2"),
        "tied": random_llama(folder / "tied", tie_word_embeddings=True, **EVEN),
        "experts": random_qwen3_moe(folder / "experts"),
        "mixtral": random_mixtral(folder / "mixtral"),
        "odd": random_llama(folder / "odd", intermediate_size=322),
        "sharded": random_llama(folder / "sharded", shard="600KB", **EVEN),
        "quantized": changed_config(
            TINY, folder / "quantized", quantization_config={"quant_method": "gptq"}
        ),
    }


@pytest.fixture(scope="module")
def made(models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Pruned:
    folder = tmp_path_factory.mktemp("prune")
    cases: dict[str, dict[str, Any]] = {}
    cases |= {name: {"spec": row[0]} for name, row in {**MADE, **PARAMETERS}.items()}
    shapes = {name: (row[0], row[1]) for name, row in {**REFUSALS, **SHAPES}.items()}
    cases |= {name: {"spec": asked, "model": model} for name, (model, asked) in shapes.items()}
    cases["again"] = {"spec": MADE["SparseGPT"][0]}
    for name in ("SparseGPT", "Magnitude"):
        cases[f"{name}, spilled"] = {"spec": MADE[name][0], "cpu_bytes": 6_000_000}
    cases["a name of nothing"] = {"spec": spec(algorithm="Magnitude", ignore=["nothing"])}
    for name in ("Magnitude", "SparseGPT"):
        cases[f"experts by {name}"] = {"spec": MADE[name][0], "model": "experts"}
    for case in cases.values():
        case["model"] = str(models[case.get("model", "tiny")])
    # The model of this one is made by another.
    pruned = folder / "SparseGPT" / "artifact"
    cases["quantized afterwards"] = {"spec": {"method": "INT4"}, "model": str(pruned)}
    said = program("llmcompressor", "quantize_cases", ENGINE, folder, given=cases)
    loaded = (*MADE, *SHAPES, "SparseGPT, spilled", "quantized afterwards")
    originals = {**cases, "quantized afterwards": cases["SparseGPT"]}
    pairs = {name: [originals[name]["model"], str(folder / name / "artifact")] for name in loaded}
    return Pruned(folder, said, program("llmcompressor", "load_checkpoints", given=pairs))


@pytest.mark.parametrize("case", MADE)
def test_the_saved_weights_are_as_sparse_as_asked(made: Pruned, case: str) -> None:
    asked = MADE[case][1]
    found = {name: zeros(tensor) for name, tensor in made.pruned(case).items()}

    assert len(found) == 28

    assert {n: s for n, s in found.items() if abs(s - asked) > 0.001} == {}
    assert zeros(made.tensors(case)["lm_head.weight"]) < 0.001


@pytest.mark.parametrize("case", TWO_OF_FOUR)
def test_two_of_four_are_exactly_two_zeros_in_each_four(made: Pruned, case: str) -> None:
    for name, tensor in made.pruned(case).items():
        counts = (tensor.reshape(-1, 4) == 0).sum(1)
        assert counts.unique().tolist() == [2], name


def test_unstructured_is_not_two_of_four(made: Pruned) -> None:
    tensor = made.pruned("SparseGPT")["model.layers.0.mlp.up_proj.weight"]

    assert (tensor.reshape(-1, 4) == 0).sum(1).unique().tolist() == [0, 1, 2, 3, 4]


def test_magnitude_drops_the_smallest_and_changes_nothing_else(made: Pruned) -> None:
    before = tensors(TINY)
    for name, after in made.pruned("Magnitude").items():
        kept = after != 0
        assert after[kept].equal(before[name][kept]), name
        assert before[name][~kept].abs().max() <= before[name][kept].abs().min(), name


def test_sparse_gpt_loses_less_than_wanda_and_wanda_less_than_magnitude(made: Pruned) -> None:
    for pattern in ("", ", two of four"):
        cases = [f"{name}{pattern}" for name in ("SparseGPT", "Wanda", "Magnitude")]
        lost = [made.numbers[case]["perplexity"] for case in cases]

        assert lost == sorted(lost)
        assert lost[0] < 0.97 * lost[2]


def test_less_sparsity_loses_less(made: Pruned) -> None:
    assert (
        made.numbers["SparseGPT, 0.3"]["divergence"] < made.numbers["SparseGPT"]["divergence"] / 2
    )


@pytest.mark.parametrize("case", PARAMETERS)
def test_every_parameter_reaches_the_engine(made: Pruned, case: str) -> None:
    assert made.weights(case) != made.weights(PARAMETERS[case][1])


def test_the_same_spec_gives_the_same_bytes(made: Pruned) -> None:
    assert made.weights("again") == made.weights("SparseGPT")


def test_what_is_ignored_stays_as_it_was(made: Pruned) -> None:
    before, after = tensors(TINY), made.tensors("prune.ignore")
    same = {name for name in before if before[name].equal(after[name])}

    assert {name for name in before if "_proj" in name and "down" not in name} & same == set()
    assert {name for name in before if "_proj" not in name or "down" in name} == same


def test_what_is_not_ignored_is_pruned_even_if_it_is_the_head(made: Pruned) -> None:
    assert zeros(made.tensors("prune.ignore of nothing")["lm_head.weight"]) == pytest.approx(
        0.5, abs=0.001
    )


@pytest.mark.parametrize("case", ["SparseGPT", "Magnitude"])
def test_a_pruned_checkpoint_is_a_plain_one_of_the_same_types(made: Pruned, case: str) -> None:
    before, after = tensors(TINY), made.tensors(case)
    config = json.loads((made.artifact(case) / "config.json").read_text())

    assert {n: (t.dtype, t.shape) for n, t in after.items()} == {
        n: (t.dtype, t.shape) for n, t in before.items()
    }
    assert "quantization_config" not in config
    assert config["dtype"] == "bfloat16"


def test_what_was_counted_is_told_and_that_the_files_are_no_smaller(made: Pruned) -> None:
    notes = " ".join(made.said["SparseGPT, two of four"]["notes"])

    assert "28 of 29 linear modules are pruned" in notes
    assert "50.00 % of the weights of 28 linear modules are zero in the saved files" in notes
    assert "of every four weights in a row of these modules at least two are zero" in notes
    assert "the files are no smaller" in notes
    assert "calibrated with 16 sequences of 256 tokens" in notes


def test_magnitude_reads_no_text(made: Pruned) -> None:
    assert made.said["Magnitude"]["tokens"] == 0
    assert made.said["Wanda"]["tokens"] == 16 * 256


def test_progress_counts_layers_and_comes_to_its_end(made: Pruned) -> None:
    layers = [line for line in made.said["SparseGPT"]["messages"] if "part" in line]

    assert layers == [f"SparseGPT: part {number} of 5" for number in range(1, 6)]
    assert all(0.85 < said["progress"] <= 1 for said in made.said.values() if "notes" in said)


@pytest.mark.parametrize("case", REFUSALS)
def test_what_cannot_be_pruned_is_refused_with_a_sentence(made: Pruned, case: str) -> None:
    _, _, sentence, advice = REFUSALS[case]

    assert sentence in made.said[case]["refused"]
    assert advice in made.said[case]["advice"]


@pytest.mark.parametrize("case", SHAPES)
def test_other_shapes_load_elsewhere_too(made: Pruned, case: str) -> None:
    asked = SHAPES[case][2]
    for name, tensor in made.pruned(case).items():
        assert asked - 1 / tensor.shape[1] < zeros(tensor) < asked + 0.001, name
    # Random weights have no structure, and so lose more than trained ones.
    assert 0 < made.numbers[case]["divergence"] < 2


@pytest.mark.parametrize("algorithm", ["SparseGPT", "Magnitude"])
def test_a_model_that_is_spilled_to_disk_is_pruned_as_well(made: Pruned, algorithm: str) -> None:
    case = f"{algorithm}, spilled"

    assert list((made.folder / case / "scratch" / "spill").iterdir())
    assert {round(zeros(tensor), 2) for tensor in made.pruned(case).values()} == {0.5}


@pytest.mark.parametrize("algorithm", ["Magnitude", "SparseGPT"])
def test_experts_are_pruned_like_other_modules(made: Pruned, algorithm: str) -> None:
    case = f"experts by {algorithm}"
    found = {name: zeros(tensor) for name, tensor in made.pruned(case).items()}
    experts = {name: share for name, share in found.items() if ".experts." in name}

    assert len(experts) == 2 * 4 * 3
    assert {name: share for name, share in experts.items() if abs(share - 0.5) > 0.001} == {}
    assert "32 of 33 linear modules are pruned" in made.said[case]["notes"]


def test_a_name_that_is_no_modules_is_told(made: Pruned) -> None:
    assert "ignore: nothing is the name of no module" in made.said["a name of nothing"]["notes"]


def test_a_pruned_model_can_be_quantized(made: Pruned) -> None:
    both, pruned = made.numbers["quantized afterwards"], made.numbers["SparseGPT"]

    assert "28 of 29 linear modules are quantized" in made.said["quantized afterwards"]["notes"]
    assert pruned["divergence"] < both["divergence"] < pruned["divergence"] + 0.05


def test_the_pinned_library_has_no_format_left_that_stores_zeros_in_less_room() -> None:
    # Where this fails after an upgrade, Prune should write what the library can.
    asked = "import json; from compressed_tensors.compressors import BaseCompressor as base; "
    done = subprocess.run(
        [interpreter("llmcompressor"), "-c", f"{asked}print(json.dumps(base.registered_names()))"],
        env=variables(),
        capture_output=True,
        text=True,
        check=True,
    )
    formats = json.loads(done.stdout.splitlines()[-1])

    assert "pack-quantized" in formats
    assert [name for name in formats if "sparse" in name or "24" in name] == []
