"""Every method of llmcompressor on the tiny model, and the shapes that it treats differently.

All checkpoints are made in one process of the image's environment and loaded in another, which
knows nothing of kubequant: importing the library takes most of the time.
"""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest
from tests.worker.engines.made import Made
from tests.worker.engines.runs import program
from tests.worker.methods.conftest import TINY
from tests.worker.methods.models import (
    EVEN,
    changed_config,
    random_gpt2,
    random_llama,
    random_mixtral,
    random_qwen2,
    random_qwen3_moe,
    rotated_llama,
)

from kubequant_worker.methods.checkpoint_check import MOST_DIVERGENCE
from kubequant_worker.sources.safetensors_header import read_header

if TYPE_CHECKING:
    from pathlib import Path

ENGINE = "kubequant_worker.methods.llmcompressor_child"
SHORT = {"samples": 8, "sequenceLength": 128}
# Quantizing whole layers at once is quicker and lets a parameter show as well.
LAYERS = {"trueSequential": False}


def spec(method: str, **parameters: Any) -> dict[str, Any]:
    member = "gguf" if method == "GGUF" else method.lower()
    found: dict[str, Any] = {"method": method, "calibration": SHORT}
    return {**found, member: parameters} if parameters else found


# Case -> (spec, the range of the size in MiB, the most divergence: half of it was measured).
METHODS = {
    "INT4": (spec("INT4"), (3.5, 3.7), 0.021),
    "FP8 Dynamic": (spec("FP8"), (4.9, 5.2), 0.004),
    "FP8 Static": (spec("FP8", scheme="Static"), (4.9, 5.2), 0.006),
    "FP8 Block": (spec("FP8", scheme="Block"), (4.9, 5.2), 0.004),
    "INT8": (spec("INT8"), (4.9, 5.2), 0.002),
    "INT8 weights": (spec("INT8", scheme="WeightOnly"), (4.9, 5.2), 0.0002),
    "GPTQ": (spec("GPTQ"), (3.5, 3.7), 0.015),
    "GPTQ 2": (spec("GPTQ", bits=2, **LAYERS), (2.8, 3.0), 0.5),
    "GPTQ 3": (spec("GPTQ", bits=3, **LAYERS), (3.1, 3.4), 0.08),
    "GPTQ 8": (spec("GPTQ", bits=8, **LAYERS), (5.0, 5.3), 0.0001),
    "AWQ": (spec("AWQ"), (3.5, 3.8), 0.018),
}
# Case -> (spec, the case that it must differ from, what its config then says).
PARAMETERS = {
    "int4.groupSize": (spec("INT4", groupSize=32), "INT4", {"group_size": 32}),
    "int4.groupSize of a row": (spec("INT4", groupSize=-1), "INT4", {"strategy": "channel"}),
    "int4.symmetric": (spec("INT4", symmetric=False), "INT4", {"symmetric": False}),
    "int4.ignore": (spec("INT4", ignore=["lm_head", "re:.*down_proj"]), "INT4", {}),
    "int8.smoothingStrength": (spec("INT8", smoothingStrength="0.8"), "INT8", {}),
    "int8.smoothingStrength of 0": (spec("INT8", smoothingStrength="0"), "INT8", {}),
    "int8.scheme": (spec("INT8", scheme="WeightOnly"), "INT8", {"num_bits": 8}),
    "int8.ignore": (spec("INT8", ignore=["lm_head", "re:.*k_proj"]), "INT8", {}),
    "fp8.scheme": (spec("FP8", scheme="Block"), "FP8 Dynamic", {"strategy": "block"}),
    "fp8.ignore": (spec("FP8", ignore=["lm_head", "re:.*k_proj"]), "FP8 Dynamic", {}),
    "gptq.trueSequential": (spec("GPTQ", **LAYERS), "GPTQ", {"actorder": None}),
    "gptq.bits": (spec("GPTQ", bits=3, **LAYERS), "gptq.trueSequential", {"num_bits": 3}),
    "gptq.groupSize": (
        spec("GPTQ", groupSize=64, **LAYERS), "gptq.trueSequential", {"group_size": 64},
    ),
    "gptq.dampingFraction": (
        spec("GPTQ", dampingFraction="0.2", **LAYERS), "gptq.trueSequential", {},
    ),
    "gptq.activationOrder": (
        spec("GPTQ", activationOrder=True, **LAYERS), "gptq.trueSequential", {"actorder": "static"},
    ),
    "gptq.symmetric": (
        spec("GPTQ", symmetric=False, **LAYERS), "gptq.trueSequential", {"symmetric": False},
    ),
    "gptq.ignore": (
        spec("GPTQ", ignore=["lm_head", "re:.*down_proj"], **LAYERS), "gptq.trueSequential", {},
    ),
    "calibration.seed": (
        {**spec("GPTQ", **LAYERS), "calibration": {**SHORT, "seed": 1}}, "gptq.trueSequential", {},
    ),
    "calibration.samples": (
        {**spec("GPTQ", **LAYERS), "calibration": {**SHORT, "samples": 4}},
        "gptq.trueSequential",
        {},
    ),
    "calibration.sequenceLength": (
        {**spec("GPTQ", **LAYERS), "calibration": {**SHORT, "sequenceLength": 64}},
        "gptq.trueSequential",
        {},
    ),
    "awq.zeroPoint": (spec("AWQ", zeroPoint=False), "AWQ", {"symmetric": True}),
    "awq.groupSize": (spec("AWQ", groupSize=32), "AWQ", {"group_size": 32}),
    "awq.ignore": (spec("AWQ", ignore=["lm_head", "re:.*down_proj"]), "AWQ", {}),
}  # fmt: skip
# Case -> (model, spec, what is said, what is advised).
REFUSALS = {
    "a model without linear modules": (
        "gpt2", spec("INT4"), "in GPT2LMHeadModel there is nothing for llmcompressor", "GGUF",
    ),
    "rows that are no whole number of groups": (
        "rows192", spec("GPTQ"), "groupSize: 128 does not divide the 192 columns of", "64, 32, -1",
    ),
    "rows that are no whole number of blocks": (
        "rows192", spec("FP8", scheme="Block"), "Block, whose width of 128 does not", "Dynamic",
    ),
    "experts that it saves by other names": (
        "mixtral", spec("INT4"), "saves the experts of MixtralForCausalLM by names that", "GGUF",
    ),
    "experts, one module after another": (
        "experts", spec("GPTQ"), "llmcompressor cannot do this with Qwen3MoeForCausalLM: ",
        "gptq.trueSequential: false",
    ),
    "everything ignored": (
        "tiny", spec("INT4", ignore=["re:.*"]), "29 linear modules, and all are ignored", "fewer",
    ),
    "a model that is quantized already": (
        "quantized", spec("INT4"), "config.json says that the model is quantized already", "made",
    ),
}  # fmt: skip
SHAPES = {
    "Qwen2 by AWQ": ("qwen2", spec("AWQ"), 0.6),
    "tied embeddings by GPTQ": ("tied", spec("GPTQ", **LAYERS), 0.6),
    "shards by INT8": ("sharded", spec("INT8"), 0.02),
    "another rotation": ("rotated", spec("INT4"), 0.6),
    "experts": ("experts", spec("INT4"), 0.6),
}


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {
        "tiny": TINY,
        "gpt2": random_gpt2(folder / "gpt2"),
        "qwen2": random_qwen2(folder / "qwen2"),
        "rows192": random_llama(folder / "rows192", intermediate_size=384),
        "tied": random_llama(folder / "tied", tie_word_embeddings=True, **EVEN),
        "sharded": random_llama(folder / "sharded", shard="600KB", **EVEN),
        "experts": random_qwen3_moe(folder / "experts"),
        "mixtral": random_mixtral(folder / "mixtral"),
        "rotated": rotated_llama(folder / "rotated"),
        "quantized": changed_config(
            TINY, folder / "quantized", quantization_config={"quant_method": "gptq"}
        ),
    }


def _same(cases: dict[str, Any]) -> dict[str, str]:
    """Return for each case that an earlier one equals the earlier one's name."""
    first: dict[str, str] = {}
    texts = {name: json.dumps(case, sort_keys=True) for name, case in cases.items()}
    return {
        name: first[text] for name, text in texts.items() if first.setdefault(text, name) != name
    }


@pytest.fixture(scope="session")
def made(models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("llmcompressor")
    cases: dict[str, dict[str, Any]] = {}
    cases |= {name: {"spec": row[0]} for name, row in METHODS.items()}
    cases |= {name: {"spec": row[0]} for name, row in PARAMETERS.items()}
    shapes = {name: (row[0], row[1]) for name, row in {**REFUSALS, **SHAPES}.items()}
    cases |= {name: {"spec": asked, "model": model} for name, (model, asked) in shapes.items()}
    cases |= {f"again {name}": {"spec": METHODS[name][0]} for name in ("FP8 Dynamic", "INT8")}
    cases["again"] = {"spec": PARAMETERS["gptq.trueSequential"][0]}
    cases["spilled to disk"] = {**cases["again"], "cpu_bytes": 6_000_000}
    cases["too little text"] = {**cases["again"], "text": ["Far too little text."]}
    cases["a name of nothing"] = {"spec": spec("INT4", ignore=["lm_head", "nothing"])}
    for case in cases.values():
        case["model"] = str(models[case.get("model", "tiny")])
    same = _same({name: case for name, case in cases.items() if not name.startswith("again")})
    different = {name: case for name, case in cases.items() if name not in same}
    said = program("llmcompressor", "quantize_cases", ENGINE, folder, given=different)
    loaded = (*METHODS, *SHAPES, "spilled to disk")
    pairs = {name: [cases[name]["model"], str(folder / name / "artifact")] for name in loaded}
    pairs["garbled"] = [str(TINY), str(garbled(folder / "GPTQ" / "artifact", folder / "garbled"))]
    return Made(folder, said, program("llmcompressor", "load_checkpoints", given=pairs), same)


def garbled(source: Path, folder: Path) -> Path:
    """Copy a checkpoint and give each row of the weights the scale of another: it still loads."""
    from safetensors.torch import load_file, save_file  # noqa: PLC0415 - imports torch

    shutil.copytree(source, folder)
    tensors = load_file(folder / "model.safetensors")
    for name, tensor in tensors.items():
        if name.endswith("weight_scale"):
            tensors[name] = tensor.roll(1, 0)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_a_checkpoint_with_the_wrong_scales_loads_and_is_outside_the_band(made: Made) -> None:
    assert made.numbers["garbled"]["divergence"] > MOST_DIVERGENCE[4]
    assert made.numbers["GPTQ"]["divergence"] * 10 < MOST_DIVERGENCE[4]


@pytest.mark.parametrize("case", METHODS)
def test_a_checkpoint_loads_elsewhere_and_is_its_originals_likeness(made: Made, case: str) -> None:
    _, (smallest, largest), most = METHODS[case]
    size = (made.artifact(case) / "model.safetensors").stat().st_size / 2**20
    found = made.numbers[case]

    assert smallest < size < largest
    assert most / 8 < found["divergence"] < most
    assert abs(found["perplexity"] / found["original"] - 1) < (0.25 if case == "GPTQ 2" else 0.05)


def test_fewer_bits_lose_more(made: Made) -> None:
    lost = [made.numbers[case]["divergence"] for case in ("GPTQ 8", "GPTQ", "GPTQ 3", "GPTQ 2")]

    assert lost == sorted(lost)
    assert lost[0] * 10 < lost[1]


def test_calibration_makes_four_bits_better(made: Made) -> None:
    blind = made.numbers["INT4"]["divergence"]

    assert made.numbers["GPTQ"]["divergence"] < blind
    assert made.numbers["AWQ"]["divergence"] < blind


@pytest.mark.parametrize("case", PARAMETERS)
def test_every_parameter_reaches_the_engine(made: Made, case: str) -> None:
    _, other, expected = PARAMETERS[case]
    weights = made.quantization(case)["config_groups"]["group_0"]["weights"]

    assert made.weights(case) != made.weights(other)
    assert {key: weights[key] for key in expected} == expected


@pytest.mark.parametrize(
    ("again", "first"),
    [
        ("again", "gptq.trueSequential"),
        ("again FP8 Dynamic", "FP8 Dynamic"),
        ("again INT8", "INT8"),
    ],
)
def test_the_same_spec_gives_the_same_bytes(made: Made, again: str, first: str) -> None:
    assert made.weights(again) == made.weights(first)


def test_what_is_ignored_stays_as_it_was(made: Made) -> None:
    before = {span.name: span.dtype for span in read_header(TINY / "model.safetensors")}
    after = {
        span.name: span.dtype
        for span in read_header(made.artifact("int4.ignore") / "model.safetensors")
    }
    untouched = {name for name in before if "down_proj" in name or "norm" in name}

    assert {name: after[name] for name in untouched} == {name: before[name] for name in untouched}
    assert after["lm_head.weight"] == before["lm_head.weight"] == "BF16"
    assert "model.layers.0.mlp.up_proj.weight_packed" in after


def test_the_config_names_the_type_that_the_original_is_stored_in(made: Made) -> None:
    case = next(iter(made.numbers))
    content = json.loads((made.artifact(case) / "config.json").read_text())

    assert content["dtype"] == "bfloat16"


def test_the_config_is_the_originals_but_for_what_was_done(
    made: Made, models: dict[str, Path]
) -> None:
    original = json.loads((models["rotated"] / "config.json").read_text())
    config = made.config("another rotation")

    assert config.items() >= original.items()
    assert config.keys() - original.keys() == {"dtype", "quantization_config"}


def test_everybody_can_read_the_files_and_the_tokenizer_is_the_originals(made: Made) -> None:
    folder = made.artifact("GPTQ")

    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o644}
    for name in ("tokenizer.json", "tokenizer.model", "tokenizer_config.json"):
        assert (folder / name).read_bytes() == (TINY / name).read_bytes()


def test_the_calibration_is_told_with_its_numbers(made: Made) -> None:
    said = made.said["calibration.samples"]

    assert said["tokens"] == 4 * 128
    assert "calibrated with 4 sequences of 128 tokens" in said["notes"]
    assert "28 of 29 linear modules are quantized" in said["notes"]


def test_progress_counts_layers_and_comes_to_its_end(made: Made) -> None:
    layers = [line for line in made.said["gptq.trueSequential"]["messages"] if "part" in line]
    smoothed = [line for line in made.said["INT8"]["messages"] if "part" in line]

    assert layers == [f"GPTQ: part {number} of 5" for number in range(1, 6)]
    assert len(made.said["GPTQ"]["messages"]) > 5 * len(layers)
    assert [line.split(":")[0] for line in smoothed][::5][:2] == ["SmoothQuant", "GPTQ"]
    assert all(0.85 < said["progress"] <= 1 for said in made.said.values() if "notes" in said)


def test_too_little_text_is_refused_with_the_numbers(made: Made) -> None:
    said = made.said["too little text"]

    assert said["refused"].startswith("spec.calibration: 8 samples of 127 tokens need 1016 tokens")
    assert "fewer or shorter samples" in said["advice"]


@pytest.mark.parametrize("case", REFUSALS)
def test_what_the_engine_cannot_do_is_refused_with_a_sentence(made: Made, case: str) -> None:
    _, _, sentence, advice = REFUSALS[case]

    assert sentence in made.said[case]["refused"]
    assert advice in made.said[case]["advice"]


@pytest.mark.parametrize("case", SHAPES)
def test_other_shapes_load_elsewhere_too(made: Made, case: str) -> None:
    # Random weights have no structure, and so lose more than trained ones.
    assert 0 < made.numbers[case]["divergence"] < SHAPES[case][2]


def test_experts_are_quantized_and_counted(made: Made) -> None:
    experts = [name for name in made.types("experts") if ".experts." in name]

    assert len([name for name in experts if name.endswith("weight_packed")]) == 2 * 4 * 3
    assert [name for name in experts if name.endswith("proj.weight")] == []
    assert "32 of 33 linear modules are quantized" in made.said["experts"]["notes"]


def test_a_model_that_is_spilled_to_disk_is_quantized_as_well(made: Made) -> None:
    assert list((made.folder / "spilled to disk" / "scratch" / "spill").iterdir())
    assert made.numbers["spilled to disk"]["divergence"] < METHODS["GPTQ"][2]


def test_a_name_that_is_no_modules_is_told(made: Made) -> None:
    notes = made.said["a name of nothing"]["notes"]

    assert "ignore: nothing is the name of no module" in notes
