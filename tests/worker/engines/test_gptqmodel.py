"""GPTQ and AWQ by gptqmodel on the tiny model, and the shapes that it treats differently.

All checkpoints are made in one process of the image's environment and loaded in another, which
knows nothing of kubequant. What only has to differ is made of a smaller model of random weights.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from tests.worker.engines.made import Made
from tests.worker.engines.runs import program
from tests.worker.methods.conftest import TINY
from tests.worker.methods.models import (
    EVEN,
    OLDER_WORDS,
    changed_config,
    random_gpt2,
    random_llama,
    random_qwen2,
)

from kubequant_worker.sources.safetensors_header import read_header

if TYPE_CHECKING:
    from pathlib import Path

ENGINE = "kubequant_worker.methods.gptqmodel_child"
SHORT = {"samples": 4, "sequenceLength": 64}
DOWN = ["lm_head", "re:.*down_proj"]


def spec(method: str, **parameters: Any) -> dict[str, Any]:
    member = {"engine": "GPTQModel", **parameters}
    return {"method": method, method.lower(): member, "calibration": SHORT}


# Case -> (spec, the range of the size in MiB, the most divergence: half of it was measured).
METHODS = {
    "GPTQ": (spec("GPTQ"), (3.5, 3.7), 0.020),
    "GPTQ 2": (spec("GPTQ", bits=2), (2.8, 3.0), 0.7),
    "GPTQ 3": (spec("GPTQ", bits=3), (3.1, 3.4), 0.1),
    "GPTQ 8": (spec("GPTQ", bits=8), (5.0, 5.3), 0.0001),
    "GPTQ asymmetric": (spec("GPTQ", symmetric=False), (3.5, 3.7), 0.017),
    "GPTQ without down_proj": (spec("GPTQ", ignore=DOWN), (4.6, 4.8), 0.008),
    "AWQ": (spec("AWQ"), (3.5, 3.7), 0.017),
    "AWQ symmetric": (spec("AWQ", zeroPoint=False), (3.5, 3.7), 0.025),
    "AWQ without down_proj": (spec("AWQ", ignore=DOWN), (4.6, 4.8), 0.008),
}
# How much the perplexity may change where few bits lose more than 5 % (measured: 57 % and 5.2 %).
CHANGES = {"GPTQ 2": 0.8, "GPTQ 3": 0.08}
# Case -> (spec, the case that it must differ from, what its config then says).
PARAMETERS = {
    "gptq": (spec("GPTQ"), "awq", {"quant_method": "gptq", "checkpoint_format": "gptq"}),
    "gptq.bits": (spec("GPTQ", bits=3), "gptq", {"bits": 3}),
    "gptq.groupSize": (spec("GPTQ", groupSize=32), "gptq", {"group_size": 32}),
    "gptq.groupSize of a row": (spec("GPTQ", groupSize=-1), "gptq", {"group_size": -1}),
    "gptq.dampingFraction": (spec("GPTQ", dampingFraction="0.2"), "gptq", {"desc_act": False}),
    "gptq.activationOrder": (spec("GPTQ", activationOrder=True), "gptq", {"desc_act": True}),
    "gptq.symmetric": (
        spec("GPTQ", symmetric=False), "gptq", {"sym": False, "checkpoint_format": "gptq_v2"},
    ),
    "gptq.trueSequential": (spec("GPTQ", trueSequential=False), "gptq", {"bits": 4}),
    "gptq.ignore": (spec("GPTQ", ignore=["lm_head", "model.layers.1.mlp.up_proj"]), "gptq", {}),
    "awq": (spec("AWQ"), "gptq", {"quant_method": "awq", "version": "gemm"}),
    "awq.zeroPoint": (spec("AWQ", zeroPoint=False), "awq", {"zero_point": False}),
    "awq.groupSize": (spec("AWQ", groupSize=32), "awq", {"group_size": 32}),
    "awq.groupSize of a row": (spec("AWQ", groupSize=-1), "awq", {"group_size": -1}),
    "awq.ignore": (
        spec("AWQ", ignore=["lm_head", "model.layers.1.mlp.up_proj"]),
        "awq",
        {"modules_to_not_convert": ["model.layers.1.mlp.up_proj", "lm_head"]},
    ),
    "calibration.seed": (
        {**spec("GPTQ"), "calibration": {**SHORT, "seed": 1}}, "gptq", {},
    ),
    "calibration.samples": (
        {**spec("GPTQ"), "calibration": {**SHORT, "samples": 3}}, "gptq", {},
    ),
    "calibration.sequenceLength": (
        {**spec("GPTQ"), "calibration": {**SHORT, "sequenceLength": 32}}, "gptq", {},
    ),
}  # fmt: skip
# Case -> (model, spec, what is said, what is advised).
REFUSALS = {
    "rows that are no whole number of groups": (
        "rows192", spec("GPTQ"), "groupSize: 128 does not divide the 192 columns of", "64, 32, -1",
    ),
    "an output head that is to be quantized": (
        "small", spec("AWQ", ignore=["re:.*down_proj"]), "the output head, lm_head, which", "",
    ),
    "a model whose layers are not linear modules": (
        "gpt2", spec("GPTQ", groupSize=32), "in GPT2LMHeadModel there is nothing for", "GGUF",
    ),
    "everything ignored": (
        "small", spec("GPTQ", ignore=["Linear"]), "15 linear modules all are ignored", "fewer",
    ),
    "a model that is quantized already": (
        "quantized", spec("AWQ"), "config.json says that the model is quantized already", "made",
    ),
}  # fmt: skip
SHAPES = {
    "Qwen2 by AWQ": ("qwen2", spec("AWQ"), 0.6),
    "tied embeddings by GPTQ": ("tied", spec("GPTQ"), 0.6),
    "shards by GPTQ": ("sharded", spec("GPTQ"), 0.6),
    "spilled to disk by GPTQ": ("tied", {**spec("GPTQ"), "memory": {"offload": "Disk"}}, 0.6),
    "spilled to disk by AWQ": ("qwen2", {**spec("AWQ"), "memory": {"offload": "Disk"}}, 0.6),
}


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    sizes = {"hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 2}
    return {
        "tiny": TINY,
        "small": random_llama(folder / "small", **sizes),
        "gpt2": random_gpt2(folder / "gpt2"),
        "qwen2": random_qwen2(folder / "qwen2"),
        "rows192": random_llama(folder / "rows192", intermediate_size=384),
        "tied": random_llama(folder / "tied", tie_word_embeddings=True, **EVEN),
        "sharded": random_llama(folder / "sharded", shard="600KB", **EVEN),
        "quantized": changed_config(
            TINY, folder / "quantized", quantization_config={"quant_method": "gptq"}
        ),
    }


@pytest.fixture(scope="session")
def made(models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("gptqmodel")
    cases: dict[str, dict[str, Any]] = {}
    cases |= {name: {"spec": row[0], "model": "tiny"} for name, row in METHODS.items()}
    cases |= {name: {"spec": row[0], "model": "small"} for name, row in PARAMETERS.items()}
    shapes = {name: (row[0], row[1]) for name, row in {**REFUSALS, **SHAPES}.items()}
    cases |= {name: {"spec": asked, "model": model} for name, (model, asked) in shapes.items()}
    cases["gptq again"], cases["awq again"] = dict(cases["gptq"]), dict(cases["awq"])
    cases["too little text"] = {**cases["gptq"], "text": ["Far too little text."]}
    cases["a name of nothing"] = {
        "spec": spec("GPTQ", ignore=["lm_head", "nothing"]), "model": "small",
    }  # fmt: skip
    for case in cases.values():
        case["model"] = str(models[case["model"]])
    said = program("gptqmodel", "quantize_cases", ENGINE, folder, given=cases)
    pairs = {
        name: [cases[name]["model"], str(folder / name / "artifact")]
        for name in (*METHODS, *SHAPES)
    }
    return Made(folder, said, program("gptqmodel", "load_checkpoints", given=pairs))


@pytest.mark.parametrize("case", METHODS)
def test_a_checkpoint_loads_elsewhere_and_is_its_originals_likeness(made: Made, case: str) -> None:
    _, (smallest, largest), most = METHODS[case]
    size = (made.artifact(case) / "model.safetensors").stat().st_size / 2**20
    found = made.numbers[case]

    assert smallest < size < largest
    assert most / 8 < found["divergence"] < most
    assert abs(found["perplexity"] / found["original"] - 1) < CHANGES.get(case, 0.05)


def test_fewer_bits_lose_more(made: Made) -> None:
    lost = [made.numbers[case]["divergence"] for case in ("GPTQ 8", "GPTQ", "GPTQ 3", "GPTQ 2")]

    assert lost == sorted(lost)
    assert lost[0] * 10 < lost[1]


@pytest.mark.parametrize("case", PARAMETERS)
def test_every_parameter_reaches_the_engine(made: Made, case: str) -> None:
    _, other, expected = PARAMETERS[case]
    words = made.quantization(case)

    assert made.weights(case) != made.weights(other)
    assert {key: words[key] for key in expected} == expected


@pytest.mark.parametrize("case", ["gptq", "awq"])
def test_the_same_spec_gives_the_same_bytes(made: Made, case: str) -> None:
    assert made.weights(f"{case} again") == made.weights(case)


@pytest.mark.parametrize("case", ["GPTQ without down_proj", "AWQ without down_proj"])
def test_what_is_ignored_stays_as_it_was_and_every_server_is_told(made: Made, case: str) -> None:
    before = {span.name: span.dtype for span in read_header(TINY / "model.safetensors")}
    after = made.types(case)
    words = made.quantization(case)
    untouched = {name for name in before if "down_proj" in name or "norm" in name}

    assert {name: after[name] for name in untouched} == {name: before[name] for name in untouched}
    assert after["lm_head.weight"] == before["lm_head.weight"] == "BF16"
    assert after["model.layers.0.mlp.up_proj.qweight"] == "I32"
    if words["quant_method"] == "awq":
        assert len(words["modules_to_not_convert"]) == 5
    else:
        assert len(words["dynamic"]) == 4
        assert len(words["modules_in_block_to_quantize"][0]) == 24


def test_the_config_is_the_originals_but_for_what_was_done(made: Made) -> None:
    for case in ("GPTQ", "AWQ"):
        config = made.config(case)
        words = config.pop("quantization_config")

        assert config == json.loads((TINY / "config.json").read_text()) | OLDER_WORDS
        assert (words["bits"], words["group_size"]) == (4, 128)
        assert words["meta"]["quantizer"] == ["gptqmodel:7.6.0"]
        assert "/" not in json.dumps(words).replace("https://github.com/modelcloud/gptqmodel", "")


def test_everybody_can_read_the_files_and_the_tokenizer_is_the_originals(made: Made) -> None:
    folder = made.artifact("AWQ")
    tokenizer = {"tokenizer.json", "tokenizer.model", "tokenizer_config.json"}

    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o644}
    for name in {*tokenizer, "generation_config.json"}:
        assert (folder / name).read_bytes() == (TINY / name).read_bytes()
    assert {path.name for path in folder.iterdir()} - {
        path.name for path in TINY.iterdir()
    } == set()


def test_the_calibration_is_told_with_its_numbers(made: Made) -> None:
    said = made.said["calibration.samples"]

    assert said["tokens"] == 3 * 64
    assert "calibrated with 3 sequences of 64 tokens" in said["notes"]
    assert "14 of 15 linear modules are quantized" in said["notes"]


def test_progress_counts_layers_and_comes_to_its_end(made: Made) -> None:
    sequential = [line for line in made.said["gptq"]["messages"] if "layer" in line]
    whole = [line for line in made.said["gptq.trueSequential"]["messages"] if "layer" in line]

    assert sequential[:2] == ["layer 1 of 2, part 1 of 4", "layer 1 of 2, part 2 of 4"]
    assert len(sequential) == 8
    assert whole == ["layer 1 of 2", "layer 2 of 2"]
    assert all(0.85 < said["progress"] <= 1 for said in made.said.values() if "notes" in said)


def test_too_little_text_is_refused_with_the_numbers(made: Made) -> None:
    said = made.said["too little text"]

    assert said["refused"].startswith("spec.calibration: 4 samples of 63 tokens need 252 tokens")


@pytest.mark.parametrize("case", REFUSALS)
def test_what_the_engine_cannot_do_is_refused_with_a_sentence(made: Made, case: str) -> None:
    _, _, sentence, advice = REFUSALS[case]

    assert sentence in made.said[case]["refused"]
    assert advice in made.said[case]["advice"]


@pytest.mark.parametrize("case", SHAPES)
def test_other_shapes_load_elsewhere_too(made: Made, case: str) -> None:
    # Random weights have no structure, and so lose more than trained ones.
    assert 0 < made.numbers[case]["divergence"] < SHAPES[case][2]


@pytest.mark.parametrize(
    ("spilled", "whole"),
    [
        ("spilled to disk by GPTQ", "tied embeddings by GPTQ"),
        ("spilled to disk by AWQ", "Qwen2 by AWQ"),
    ],
)
def test_a_model_that_is_spilled_to_disk_gives_the_same_checkpoint(
    made: Made, spilled: str, whole: str
) -> None:
    assert list((made.folder / spilled / "scratch" / "spill").iterdir())
    assert made.types(spilled) == made.types(whole)
    assert made.numbers[spilled]["divergence"] == pytest.approx(
        made.numbers[whole]["divergence"], rel=0.01
    )


def test_a_name_that_is_no_modules_is_told(made: Made) -> None:
    assert "ignore: nothing is the name of no module" in made.said["a name of nothing"]["notes"]
