"""Tuned rounding by AutoRound: every parameter, the shapes it treats differently, what it refuses.

All checkpoints are made in one process of the image's environment and loaded in another, which
knows nothing of kubequant. Few steps over short texts let a parameter show; only the case that is
held against rounding to nearest tunes in earnest.
"""

from __future__ import annotations

import json
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
from tests.worker.engines.made import Made
from tests.worker.engines.runs import program
from tests.worker.environments import interpreter, variables
from tests.worker.methods.conftest import TINY
from tests.worker.methods.models import EVEN, random_gpt2, random_llama, random_qwen2, rotated_llama

from kubequant.api.base import LOCAL
from kubequant.api.spec import QuantizationJobSpec
from kubequant_worker.methods import Workspace
from kubequant_worker.methods.int4 import AutoRoundINT4
from kubequant_worker.sources.safetensors_header import read_header

if TYPE_CHECKING:
    from pathlib import Path

ENGINE = "kubequant_worker.methods.auto_round_child"
SHORT = {"samples": 8, "sequenceLength": 32}


def spec(calibration: dict[str, Any] = SHORT, **parameters: Any) -> dict[str, Any]:
    tuned = {"rounding": "Tuned", "iterations": 8, **parameters}
    return {"method": "INT4", "int4": tuned, "calibration": calibration}


QUICK = {"spec": spec()}
EARNEST = {"spec": spec({"samples": 16, "sequenceLength": 96}, iterations=24)}
NEAREST = {"spec": {"method": "INT4"}}
# Case -> (what differs from QUICK, what the weights' config then says).
PARAMETERS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "int4.groupSize": ({"spec": spec(groupSize=32)}, {"group_size": 32}),
    "int4.groupSize of a row": ({"spec": spec(groupSize=-1)}, {"strategy": "channel"}),
    "int4.symmetric": ({"spec": spec(symmetric=False)}, {"symmetric": False}),
    "int4.ignore": ({"spec": spec(ignore=["lm_head", "re:.*down_proj"])}, {}),
    "int4.ignore without the head": ({"spec": spec(ignore=["re:.*down_proj"])}, {}),
    "int4.iterations": ({"spec": spec(iterations=9)}, {}),
    "calibration.seed": ({"spec": spec({**SHORT, "seed": 1})}, {}),
    "calibration.samples": ({"spec": spec({**SHORT, "samples": 4})}, {}),
    "calibration.sequenceLength": ({"spec": spec({**SHORT, "sequenceLength": 48})}, {}),
    "calibration.dataset": ({**QUICK, "text": ["One text, over and over. " * 200]}, {}),
}
# Case -> (model, spec, what is said, what is advised).
REFUSALS = {
    "a model without linear modules": (
        "gpt2", spec(), "in GPT2LMHeadModel there is nothing for AutoRound", "GGUF",
    ),
    "rows that are no whole number of groups": (
        "rows192", spec(), "groupSize: 128 does not divide the 192 columns of", "64, 32, -1",
    ),
    "everything ignored": (
        "tiny", spec(ignore=["re:.*"]), "29 linear modules, and all are ignored", "fewer",
    ),
    "a model that is spilled to disk": (
        "tiny", {**spec(), "memory": {"offload": "Disk"}}, "spec.memory.offload: Disk", "Nearest",
    ),
}  # fmt: skip
SHAPES = {
    "Qwen2": ("qwen2", spec()),
    "tied embeddings": ("tied", spec()),
    "tied embeddings, the head not ignored": ("tied", spec(ignore=["nothing"])),
    "shards": ("sharded", spec()),
    "another rotation": ("rotated", spec()),
    "columns that are no multiple of 32": ("narrow", spec(groupSize=-1)),
}


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("auto-round")
    models = {
        "tiny": TINY,
        "gpt2": random_gpt2(folder / "gpt2"),
        "qwen2": random_qwen2(folder / "qwen2"),
        "rows192": random_llama(folder / "rows192", intermediate_size=384),
        "tied": random_llama(folder / "tied", tie_word_embeddings=True, **EVEN),
        "sharded": random_llama(folder / "sharded", shard="600KB", **EVEN),
        "rotated": rotated_llama(folder / "rotated"),
        "narrow": random_llama(folder / "narrow", **{**EVEN, "intermediate_size": 312}),
    }
    cases: dict[str, dict[str, Any]] = {"quick": QUICK, "again": QUICK, "earnest": EARNEST}
    cases |= {name: case for name, (case, _) in PARAMETERS.items()}
    shapes = {name: row[:2] for name, row in {**REFUSALS, **SHAPES}.items()}
    cases |= {name: {"spec": asked, "model": model} for name, (model, asked) in shapes.items()}
    cases["one by one"] = {"spec": {**spec(), "memory": {"lowMemory": True}}}
    cases["too little text"] = {**QUICK, "text": ["Far too little text."]}
    cases = {
        name: {**case, "model": str(models[case.get("model", "tiny")])}
        for name, case in cases.items()
    }
    said = program("auto-round", "quantize_cases", ENGINE, folder, given=cases)
    other = {"nearest": {**NEAREST, "model": str(TINY)}}
    engine = "kubequant_worker.methods.llmcompressor_child"
    said |= program("llmcompressor", "quantize_cases", engine, folder, given=other)
    everything = cases | other
    loaded = ("earnest", "nearest", "int4.symmetric", "int4.groupSize of a row", "one by one")
    loaded = (*loaded, "int4.ignore without the head", *SHAPES)
    pairs = {name: [everything[name]["model"], str(folder / name / "artifact")] for name in loaded}
    return Made(folder, said, program("auto-round", "load_checkpoints", given=pairs))


def test_tuned_rounding_is_nearer_to_the_original_than_rounding_to_nearest(made: Made) -> None:
    tuned, nearest = (made.numbers[case]["divergence"] for case in ("earnest", "nearest"))

    assert 0 < tuned < 0.75 * nearest


def test_transformers_loads_it_as_the_format_that_rounding_to_nearest_writes(made: Made) -> None:
    tuned, nearest = made.quantization("earnest"), made.quantization("nearest")

    assert tuned["quant_method"] == nearest["quant_method"] == "compressed-tensors"
    assert tuned["format"] == nearest["format"] == "pack-quantized"
    assert tuned["ignore"] == nearest["ignore"] == ["lm_head"]
    sizes = [(made.artifact(case) / "model.safetensors").stat().st_size for case in made.numbers]
    assert 3.5 < sizes[0] / 2**20 < 3.7


@pytest.mark.parametrize("case", PARAMETERS)
def test_every_parameter_reaches_the_engine(made: Made, case: str) -> None:
    _, expected = PARAMETERS[case]
    weights = made.quantization(case)["config_groups"]["group_0"]["weights"]

    assert made.weights(case) != made.weights("quick")
    assert {key: weights[key] for key in expected} == expected
    assert weights["num_bits"] == 4


def test_the_same_spec_gives_the_same_bytes(made: Made) -> None:
    assert made.weights("again") == made.weights("quick")


def test_what_is_ignored_stays_as_it_was(made: Made) -> None:
    before = {span.name: span.dtype for span in read_header(TINY / "model.safetensors")}
    path = made.artifact("int4.ignore") / "model.safetensors"
    after = {span.name: span.dtype for span in read_header(path)}
    untouched = {name for name in before if "down_proj" in name or "norm" in name}

    assert {name: after[name] for name in untouched} == {name: before[name] for name in untouched}
    assert after["lm_head.weight"] == before["lm_head.weight"] == "BF16"
    assert "model.layers.0.mlp.up_proj.weight_packed" in after


def test_an_output_head_that_is_not_ignored_is_tuned_too(made: Made) -> None:
    path = made.artifact("int4.ignore without the head") / "model.safetensors"
    names = {span.name for span in read_header(path)}

    assert "lm_head.weight_packed" in names
    assert "lm_head.weight" not in names
    assert (
        "25 of 29 linear modules are quantized"
        in made.said["int4.ignore without the head"]["notes"]
    )


def test_what_the_engine_leaves_out_is_told(made: Made) -> None:
    tied = made.said["tied embeddings, the head not ignored"]["notes"]
    narrow = made.said["columns that are no multiple of 32"]["notes"]

    assert "14 of 15 linear modules are quantized" in tied
    assert any(note.startswith("AutoRound left out lm_head: ") for note in tied)
    assert "ignore: nothing is the name of no module" in tied
    assert "8 of 15 linear modules are quantized" in narrow
    assert any("mlp.down_proj, " in note and "multiples of 32" in note for note in narrow)


def test_the_config_names_the_type_that_the_original_is_stored_in(made: Made) -> None:
    case = next(iter(made.numbers))
    content = json.loads((made.artifact(case) / "config.json").read_text())

    assert content["dtype"] == "bfloat16"


def test_the_config_is_the_originals_but_for_what_was_done(made: Made) -> None:
    original = json.loads((made.folder / "rotated" / "config.json").read_text())
    config = made.config("another rotation")

    assert config.items() >= original.items()
    assert config.keys() - original.keys() == {"dtype", "quantization_config"}


def test_everybody_can_read_the_files_and_the_tokenizer_is_the_originals(made: Made) -> None:
    folder = made.artifact("quick")

    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o644}
    for name in ("tokenizer.json", "tokenizer.model", "tokenizer_config.json"):
        assert (folder / name).read_bytes() == (TINY / name).read_bytes()


def test_the_calibration_is_told_with_its_numbers(made: Made) -> None:
    said = made.said["calibration.samples"]

    assert said["tokens"] == 4 * 32
    assert "calibrated with 4 sequences of 32 tokens" in said["notes"]
    assert "28 of 29 linear modules are quantized" in said["notes"]


def test_progress_counts_blocks_and_comes_to_its_end(made: Made) -> None:
    blocks = [line for line in made.said["quick"]["messages"] if line.startswith("block")]

    assert blocks == [f"block {number} of 4" for number in range(1, 5)]
    assert all(0.85 < said["progress"] <= 1 for said in made.said.values() if "notes" in said)


def test_too_little_text_is_refused_with_the_numbers(made: Made) -> None:
    said = made.said["too little text"]

    assert said["refused"].startswith("spec.calibration: 8 samples of 31 tokens need 248 tokens")


@pytest.mark.parametrize("case", REFUSALS)
def test_what_the_engine_cannot_do_is_refused_with_a_sentence(made: Made, case: str) -> None:
    _, _, sentence, advice = REFUSALS[case]

    assert sentence in made.said[case]["refused"]
    assert advice in made.said[case]["advice"]


@pytest.mark.parametrize("case", SHAPES)
def test_other_shapes_load_elsewhere_too(made: Made, case: str) -> None:
    # Random weights have no structure, and so lose more than trained ones.
    assert 0 < made.numbers[case]["divergence"] < 0.8


def test_with_little_memory_sequences_are_taken_one_by_one(made: Made) -> None:
    assert made.weights("one by one") != made.weights("quick")
    assert 0 < made.numbers["one by one"]["divergence"] < 0.05


# What a GPU alone shows: (spec.memory, what the child is told).
ON_A_GPU: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "nothing asked": (
        {}, {"spare_gpu": False, "one_by_one": False, "most_gpu_bytes": None},
    ),
    "memory.offload": ({"offload": "CPU"}, {"spare_gpu": True, "one_by_one": False}),
    "memory.lowMemory": ({"lowMemory": True}, {"spare_gpu": True, "one_by_one": True}),
    "memory.maxGPUMemory": ({"maxGPUMemory": "6Gi"}, {"most_gpu_bytes": 6 * 2**30}),
}  # fmt: skip


@pytest.mark.parametrize("case", ON_A_GPU)
def test_the_memory_of_a_gpu_is_told_to_the_engine(tmp_path: Path, case: str) -> None:
    memory, expected = ON_A_GPU[case]
    asked = spec()
    document = {
        "model": {"uri": "hf://example/model"},
        "device": "GPU",
        "output": {"uri": "s3://bucket/prefix"},
        "memory": memory,
        **asked,
    }
    parsed = QuantizationJobSpec.model_validate(document, context=LOCAL)
    work = Workspace(parsed, TINY, tmp_path, tmp_path, "tiny", threads=2)
    job = AutoRoundINT4(work).job(None)

    assert job["device"] == "cuda:0"
    # AutoRound itself brings each block to the GPU, and takes it back.
    assert job["loading"]["device"] == "cpu"
    assert {key: job[key] for key in expected} == expected


def test_the_older_auto_round_that_another_engine_brings_along_is_not_taken() -> None:
    code = "import json; from kubequant_worker.methods import installed_engines; "
    code += "print(json.dumps(sorted(installed_engines())))"
    found = {}
    for image in ("auto-round", "llmcompressor"):
        command = [interpreter(image), "-c", code]
        done = subprocess.run(command, env=variables(), check=True, capture_output=True, text=True)
        found[image] = json.loads(done.stdout)

    assert "AutoRound" in found["auto-round"]
    assert "LLMCompressor" in found["llmcompressor"]
    assert "AutoRound" not in found["llmcompressor"]
