"""BitsAndBytes, and INT8 by torchao, on the tiny model and shapes that they treat differently.

Each engine makes its checkpoints in one process of the image's environment. They are loaded in
another, which knows nothing of kubequant.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
from tests.worker.engines.made import Made
from tests.worker.engines.runs import program
from tests.worker.environments import interpreter, variables
from tests.worker.methods.conftest import TINY
from tests.worker.methods.models import (
    EVEN,
    random_gpt2,
    random_llama,
    random_mixtral,
    random_qwen2,
    rotated_llama,
)

from kubequant_worker.methods.checkpoint_check import MOST_DIVERGENCE
from kubequant_worker.methods.int8 import TorchAOINT8
from kubequant_worker.sources.safetensors_header import read_header

if TYPE_CHECKING:
    from pathlib import Path

ENGINES = {
    "BitsAndBytes": "kubequant_worker.methods.bits_and_bytes_child",
    "INT8": "kubequant_worker.methods.torchao_child",
}


def spec(method: str, **parameters: Any) -> dict[str, Any]:
    member = {"BitsAndBytes": "bitsAndBytes", "INT8": "int8"}[method]
    return {"method": method, member: parameters}


def bits4(**parameters: Any) -> dict[str, Any]:
    return spec("BitsAndBytes", bits=4, **parameters)


# Case -> (spec, the range of the size in MiB, the most divergence: half of it was measured).
METHODS = {
    "8 bits": (spec("BitsAndBytes"), (5.0, 5.1), 0.0007),
    "NF4": (bits4(), (3.5, 3.7), 0.017),
    "FP4": (bits4(quantType="FP4"), (3.5, 3.7), 0.029),
    "INT8": (spec("INT8"), (5.0, 5.1), 0.0015),
    "INT8 weights": (spec("INT8", scheme="WeightOnly"), (5.0, 5.1), 0.0001),
}
# Case -> (spec, the case it must differ from, what its config then says, whether the weights do).
PARAMETERS = {
    "bitsAndBytes.bits": (bits4(), "8 bits", {"load_in_4bit": True, "load_in_8bit": False}, True),
    "bitsAndBytes.threshold": (
        spec("BitsAndBytes", threshold="3.5"), "8 bits", {"llm_int8_threshold": 3.5}, False,
    ),
    "bitsAndBytes.quantType": (
        bits4(quantType="FP4"), "NF4", {"bnb_4bit_quant_type": "fp4"}, True,
    ),
    "bitsAndBytes.doubleQuantization": (
        bits4(doubleQuantization=False), "NF4", {"bnb_4bit_use_double_quant": False}, True,
    ),
    "bitsAndBytes.computeDType": (
        bits4(computeDType="BFloat16"), "NF4", {"bnb_4bit_compute_dtype": "bfloat16"}, False,
    ),
    "bitsAndBytes.ignore": (
        spec("BitsAndBytes", ignore=["lm_head", "re:.*k_proj"]),
        "8 bits",
        {"llm_int8_skip_modules": [
            "lm_head", *(f"model.layers.{n}.self_attn.k_proj" for n in range(4)),
        ]},
        True,
    ),
    "bitsAndBytes.ignore of 4 bits": (
        bits4(ignore=["re:.*down_proj"]),
        "NF4",
        {"llm_int8_skip_modules": [f"model.layers.{n}.mlp.down_proj" for n in range(4)]},
        True,
    ),
    "int8.scheme": (spec("INT8", scheme="WeightOnly"), "INT8", {}, True),
    "int8.ignore": (
        spec("INT8", ignore=["lm_head", "model.layers.0.mlp.up_proj"]),
        "INT8",
        {"modules_to_not_convert": ["lm_head", "model.layers.0.mlp.up_proj"]},
        True,
    ),
}  # fmt: skip
# Case -> (model, spec, what is said, what is advised).
REFUSALS = {
    "a model without linear modules by torchao": (
        "gpt2", spec("INT8"), "in GPT2LMHeadModel there is nothing for torchao", "BitsAndBytes",
    ),
    "everything ignored by bitsandbytes": (
        "tiny", bits4(ignore=["re:.*"]), "it has 29 modules of the kind that bitsandbytes", "fewer",
    ),
}  # fmt: skip
# Case -> (model, spec, the most divergence). Random weights have no structure, and lose more.
SHAPES = {
    "Qwen2 in 4 bits": ("qwen2", bits4(), 0.6),
    "tied embeddings in 8 bits": ("tied", spec("BitsAndBytes"), 0.02),
    "shards in 4 bits": ("sharded", bits4(), 0.6),
    "GPT-2 in 8 bits": ("gpt2", spec("BitsAndBytes"), 0.02),
    "GPT-2 in 4 bits": ("gpt2", bits4(), 0.6),
    "Qwen2 by torchao": ("qwen2", spec("INT8"), 0.05),
    "tied embeddings by torchao": ("tied", spec("INT8"), 0.05),
    "shards by torchao": ("sharded", spec("INT8"), 0.05),
    "another rotation in 4 bits": ("rotated", bits4(), 0.6),
    "another rotation by torchao": ("rotated", spec("INT8"), 0.05),
}
OTHERS = {
    "again in 8 bits": {"spec": spec("BitsAndBytes")},
    "again in 4 bits": {"spec": bits4()},
    "again by torchao": {"spec": spec("INT8")},
    "the output head too": {"spec": bits4(ignore=["nothing"])},
    "the output head too, by torchao": {"spec": spec("INT8", ignore=[])},
    "a tied output head": {"spec": spec("INT8", ignore=[]), "model": "tied"},
    "experts": {"spec": bits4(), "model": "experts"},
    "rows of 200": {"spec": bits4(), "model": "rows200"},
    "half precision": {"spec": bits4(computeDType="Float16")},
    "spilled to disk": {"spec": {**bits4(), "memory": {"offload": "Disk"}}},
}
LOADED = (*METHODS, *SHAPES, "the output head too", "the output head too, by torchao")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {
        "tiny": TINY,
        "gpt2": random_gpt2(folder / "gpt2"),
        "qwen2": random_qwen2(folder / "qwen2"),
        "tied": random_llama(folder / "tied", tie_word_embeddings=True, **EVEN),
        "sharded": random_llama(folder / "sharded", shard="600KB", **EVEN),
        "rotated": rotated_llama(folder / "rotated"),
        "experts": random_mixtral(folder / "experts"),
        "rows200": random_llama(folder / "rows200", intermediate_size=200),
    }


@pytest.fixture(scope="module")
def made(models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("made")
    cases: dict[str, dict[str, Any]] = dict(OTHERS)
    cases |= {name: {"spec": row[0]} for name, row in {**METHODS, **PARAMETERS}.items()}
    cases |= {
        name: {"spec": row[1], "model": row[0]} for name, row in {**REFUSALS, **SHAPES}.items()
    }
    given = {
        name: {**case, "model": str(models[case.get("model", "tiny")])}
        for name, case in cases.items()
    }
    said: dict[str, dict[str, Any]] = {}
    for method, child in ENGINES.items():
        own = {name: case for name, case in given.items() if case["spec"]["method"] == method}
        said |= program("transformers", "quantize_cases", child, folder, given=own)
    pairs = {name: [given[name]["model"], str(folder / name / "artifact")] for name in LOADED}
    for name, scale in (("8 bits", ".SCB"), ("INT8", "_weight_scale")):
        wrong = garbled(folder / name / "artifact", folder / f"garbled {name}", scale)
        pairs[f"garbled {name}"] = [str(TINY), str(wrong)]
    return Made(folder, said, program("transformers", "load_checkpoints", given=pairs))


def garbled(source: Path, folder: Path, scale: str) -> Path:
    """Copy a checkpoint and give each row of the weights the scale of another: it still loads."""
    from safetensors import safe_open  # noqa: PLC0415 - imports torch
    from safetensors.torch import load_file, save_file  # noqa: PLC0415 - as above

    shutil.copytree(source, folder)
    path = folder / "model.safetensors"
    with safe_open(path, framework="pt") as opened:
        metadata = opened.metadata()
    tensors = load_file(path)
    for name, tensor in tensors.items():
        if name.endswith(scale):
            tensors[name] = tensor.roll(1, 0)
    save_file(tensors, path, metadata=metadata)
    return folder


@pytest.mark.parametrize("case", METHODS)
def test_a_checkpoint_loads_elsewhere_and_is_its_originals_likeness(made: Made, case: str) -> None:
    _, (smallest, largest), most = METHODS[case]
    size = (made.artifact(case) / "model.safetensors").stat().st_size / 2**20
    found = made.numbers[case]

    assert smallest < size < largest
    assert most / 4 < found["divergence"] < most
    assert abs(found["perplexity"] / found["original"] - 1) < 0.02


@pytest.mark.parametrize("case", ["8 bits", "INT8"])
def test_a_checkpoint_with_the_wrong_scales_is_outside_the_band(made: Made, case: str) -> None:
    assert made.numbers[f"garbled {case}"]["divergence"] > MOST_DIVERGENCE[8]
    assert made.numbers[case]["divergence"] * 10 < MOST_DIVERGENCE[8]


def test_fewer_bits_lose_more_and_nf4_less_than_fp4(made: Made) -> None:
    lost = [made.numbers[case]["divergence"] for case in ("8 bits", "NF4", "FP4")]

    assert lost == sorted(lost)
    assert lost[0] * 10 < lost[1]


@pytest.mark.parametrize("case", PARAMETERS)
def test_every_parameter_reaches_the_engine(made: Made, case: str) -> None:
    _, other, expected, in_the_weights = PARAMETERS[case]
    config = made.quantization(case)

    assert {key: config[key] for key in expected} == expected
    assert config != made.quantization(other)
    assert (made.weights(case) != made.weights(other)) is in_the_weights


@pytest.mark.parametrize("case", ["8 bits", "4 bits", "by torchao"])
def test_the_same_spec_gives_the_same_bytes(made: Made, case: str) -> None:
    first = {"8 bits": "8 bits", "4 bits": "NF4", "by torchao": "INT8"}[case]
    again = made.artifact(f"again {'' if case.startswith('by') else 'in '}{case}")

    for path in made.artifact(first).iterdir():
        assert (again / path.name).read_bytes() == path.read_bytes()


@pytest.mark.parametrize("case", ["8 bits", "NF4", "INT8"])
def test_what_is_not_quantized_stays_as_it_was(made: Made, case: str) -> None:
    before = {span.name: span.dtype for span in read_header(TINY / "model.safetensors")}
    after = made.types(case)
    untouched = {name for name in before if "proj" not in name}

    assert {name: after[name] for name in untouched} == {name: before[name] for name in untouched}
    assert after["lm_head.weight"] == before["lm_head.weight"] == "BF16"
    assert made.config(case)["dtype"] == "bfloat16"


@pytest.mark.parametrize("case", ["in 4 bits", "by torchao"])
def test_the_config_is_the_originals_but_for_what_was_done(
    made: Made, models: dict[str, Path], case: str
) -> None:
    original = json.loads((models["rotated"] / "config.json").read_text())
    config = made.config(f"another rotation {case}")

    assert config.items() >= original.items()
    assert config.keys() - original.keys() == {"dtype", "quantization_config"}


def test_torchaos_weights_are_labelled_with_the_type_of_the_checkpoint(made: Made) -> None:
    from safetensors import safe_open  # noqa: PLC0415 - only here

    with safe_open(made.artifact("INT8") / "model.safetensors", framework="np") as opened:
        metadata = opened.metadata()
    described = json.loads(metadata["model.layers.0.mlp.up_proj.weight"])

    assert described["_data"]["dtype"] == {"_type": "torch.dtype", "_data": "bfloat16"}
    assert "lm_head.weight" in json.loads(metadata["tensor_names"])


def test_everybody_can_read_the_files_and_the_tokenizer_is_the_originals(made: Made) -> None:
    for case in ("8 bits", "INT8"):
        folder = made.artifact(case)
        assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o644}
        for name in ("tokenizer.json", "tokenizer.model", "tokenizer_config.json"):
            assert (folder / name).read_bytes() == (TINY / name).read_bytes()


@pytest.mark.parametrize("case", ["8 bits", "NF4", "INT8"])
def test_progress_counts_weights_and_comes_to_its_end(made: Made, case: str) -> None:
    said = made.said[case]
    modules = [line for line in said["messages"] if line.startswith("module")]

    assert len(modules) == 28
    assert modules[0].startswith("module 1 of 28: model.layers.0.")
    assert said["progress"] == pytest.approx(1 / 1.1)
    assert said["messages"][-1] == "saving"


def test_the_report_says_how_much_is_quantized(made: Made) -> None:
    (note,) = made.said["8 bits"]["notes"]

    assert note == "28 of 29 linear modules are quantized, which hold 75 % of the model's numbers"


def test_a_name_that_is_no_modules_is_told(made: Made) -> None:
    assert "ignore: nothing is the name of no module" in made.said["the output head too"]["notes"]


@pytest.mark.parametrize("case", ["the output head too", "the output head too, by torchao"])
def test_the_output_head_is_quantized_where_nothing_ignores_it(made: Made, case: str) -> None:
    assert made.said[case]["notes"][0].startswith("29 of 29 linear modules are quantized")
    assert made.types(case).get("lm_head.weight") != "BF16"
    assert made.numbers[case]["divergence"] < 0.04


def test_an_output_head_that_shares_its_weights_is_left_and_told(made: Made) -> None:
    notes = made.said["a tied output head"]["notes"]

    assert "lm_head stays as it is: it shares its weights" in notes
    assert made.types("a tied output head")["model.embed_tokens.weight"] == "BF16"


def test_weights_that_no_engine_knows_are_told(made: Made) -> None:
    assert "the rest is in layers of another kind" in made.said["experts"]["notes"][0]


@pytest.mark.parametrize("case", REFUSALS)
def test_what_the_engine_cannot_do_is_refused_with_a_sentence(made: Made, case: str) -> None:
    _, _, sentence, advice = REFUSALS[case]

    assert sentence in made.said[case]["refused"]
    assert advice in made.said[case]["advice"]


@pytest.mark.parametrize("case", SHAPES)
def test_other_shapes_load_elsewhere_too(made: Made, case: str) -> None:
    assert 0 < made.numbers[case]["divergence"] < SHAPES[case][2]


def test_a_model_that_is_spilled_to_disk_gives_the_same_bytes(made: Made) -> None:
    assert made.weights("spilled to disk") == made.weights("NF4")


def test_a_cpu_computes_in_float32_whatever_config_json_names(made: Made) -> None:
    cases = ("NF4", "bitsAndBytes.computeDType", "half precision", "rows of 200", "8 bits", "INT8")
    given = {case: str(made.artifact(case)) for case in cases}
    found = program("transformers", "measure_checkpoints", given=given)

    # On a CPU with AVX512-BF16 bitsandbytes by itself refuses rows that are no multiple of 32.
    assert [one["half"] for one in found.values()] == [False] * len(cases)
    assert found["NF4"] == found["bitsAndBytes.computeDType"] == found["half precision"]


def test_the_command_that_usage_names_loads_a_checkpoint(made: Made) -> None:
    words = TorchAOINT8.USAGE.command.replace("python", str(interpreter("transformers")), 1)
    done = subprocess.run(
        ["/bin/sh", "-c", words],
        cwd=made.artifact("INT8"),
        env=variables(),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )

    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.startswith("The")
