"""TensorRT's half that a CPU holds: ModelOpt's checkpoints on the tiny model, and who reads them.

All are made in one process of the image's environment. What they are is computed there by our
reader, by plain transformers and by hand.
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
    ROTATED,
    WORDS,
    random_gpt2,
    random_llama,
    random_qwen2,
    rotated_llama,
    worded,
)

from kubequant_worker.methods.checkpoint_check import MOST_CHANGED_BY_SAVING, MOST_DIVERGENCE
from kubequant_worker.sources.safetensors_header import read_header

if TYPE_CHECKING:
    from pathlib import Path

CHILD = "kubequant_worker.methods.modelopt_child"
# Precision -> (what it is called in the checkpoint, the most divergence: half of it was measured).
PRECISIONS = {
    "FP8": ("FP8", 0.012),
    "INT8": ("W8A8_SQ_PER_CHANNEL", 0.044),
    "INT4AWQ": ("W4A16_AWQ", 0.036),
}
CASES: dict[str, dict[str, Any]] = {
    **{name: {"precision": name, "plain": name != "INT4AWQ"} for name in PRECISIONS},
    **{f"{name} for an engine": {"precision": name, "engine": True} for name in PRECISIONS},
    "FP16 for an engine": {"precision": "FP16", "engine": True},
    "FP16 of words that contradict each other": {"precision": "FP16", "model": "worded"},
    "another rotation": {"precision": "FP8", "model": "rotated", "engine": True},
    "FP8 for two GPUs": {"precision": "FP8", "engine": True, "parallel": 2},
    "tied FP8": {"precision": "FP8", "model": "tied"},
    "tied INT4AWQ": {"precision": "INT4AWQ", "model": "tied"},
    "Qwen2 in INT8": {"precision": "INT8", "model": "qwen2"},
    "shards in FP8": {"precision": "FP8", "model": "sharded"},
    "garbled INT8": {"precision": "INT8", "garbled": True},
    "garbled INT4AWQ": {"precision": "INT4AWQ", "garbled": True},
    "the output head too": {"precision": "FP8", "ignore": []},
    "without one projection": {
        "precision": "FP8", "ignore": ["lm_head", "re:.*layers.0.mlp.up_proj"],
    },
}  # fmt: skip


def spec(**parameters: Any) -> dict[str, Any]:
    calibration = {"samples": 4, "sequenceLength": 64}
    asked = {"build": "Checkpoint", **parameters}
    return {"method": "TensorRT", "tensorRT": asked, "calibration": calibration}


# Case -> (model, spec, what is said, what is advised).
REFUSALS = {
    "a model without linear modules": (
        "gpt2", spec(), "in GPT2LMHeadModel there is nothing for ModelOpt", "BitsAndBytes",
    ),
    "rows that are no whole groups": (
        "rows200", spec(precision="INT4AWQ"),
        "spec.tensorRT.precision: INT4AWQ has groups of 128, and that", "precision: FP8",
    ),
    "weights on the disk": (
        "tiny", {**spec(), "memory": {"offload": "Disk"}}, "spec.memory.offload: Disk", "",
    ),
}  # fmt: skip
MADE = {"FP8": spec(), "again FP8": spec(), "INT4AWQ": spec(precision="INT4AWQ")}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {
        "tiny": TINY,
        "gpt2": random_gpt2(folder / "gpt2"),
        "qwen2": random_qwen2(folder / "qwen2"),
        "tied": random_llama(folder / "tied", tie_word_embeddings=True, **EVEN),
        "sharded": random_llama(folder / "sharded", shard="600KB", **EVEN),
        "rows200": random_llama(folder / "rows200", intermediate_size=200),
        "rotated": rotated_llama(folder / "rotated"),
        "worded": worded(folder / "worded"),
    }


@pytest.fixture(scope="module")
def computed(models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Each case of `CASES`, made and computed with."""
    folder = tmp_path_factory.mktemp("computed")
    given = {
        name: {**case, "model": str(models[case.get("model", "tiny")])}
        for name, case in CASES.items()
    }
    return Made(folder, {}, program("tensorrt", "modelopt_cases", folder, given=given))


@pytest.fixture(scope="module")
def made(models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Made:
    """What the method makes of a spec, and what it refuses."""
    folder = tmp_path_factory.mktemp("made")
    given = {name: {"spec": one, "model": str(TINY)} for name, one in MADE.items()}
    given |= {
        name: {"spec": row[1], "model": str(models[row[0]])} for name, row in REFUSALS.items()
    }
    return Made(folder, program("tensorrt", "quantize_cases", CHILD, folder, given=given), {})


@pytest.mark.parametrize("case", PRECISIONS)
def test_a_checkpoint_is_its_originals_likeness_and_what_modelopt_had_made(
    computed: Made, case: str
) -> None:
    algorithm, most = PRECISIONS[case]
    found = computed.numbers[case]

    assert computed.quantization(case)["quant_algo"] == algorithm
    assert computed.quantization(case)["quant_method"] == "modelopt"
    assert most / 6 < found["original"] < most
    assert found["saved"] < min(MOST_CHANGED_BY_SAVING, found["original"])


@pytest.mark.parametrize("case", [name for name in CASES if not name.startswith("FP16")])
def test_our_reader_computes_what_the_formats_words_say(computed: Made, case: str) -> None:
    assert computed.numbers[case]["hand"] < 1e-3


@pytest.mark.parametrize("case", ["FP8", "INT8"])
def test_transformers_loads_it_without_a_word_and_computes_nonsense(
    computed: Made, case: str
) -> None:
    # Were this to end, the sentences of the report and the documents would no longer be true.
    assert computed.numbers[case]["transformers"] > 10 * MOST_DIVERGENCE[8]


def test_fewer_bits_lose_more(computed: Made) -> None:
    lost = [computed.numbers[case]["original"] for case in ("FP8", "INT4AWQ")]

    assert lost == sorted(lost)


@pytest.mark.parametrize("case", PRECISIONS)
def test_that_an_engine_is_built_of_it_leaves_no_trace_in_a_checkpoints_config(
    computed: Made, case: str
) -> None:
    assert computed.config(case) == computed.config(f"{case} for an engine")


@pytest.mark.parametrize("case", ["INT8", "INT4AWQ"])
def test_that_an_engine_is_built_of_it_changes_nothing_in_a_checkpoint(
    computed: Made, case: str
) -> None:
    assert computed.weights(case) == computed.weights(f"{case} for an engine")


def test_in_fp8_what_an_engine_merges_shares_its_scale(computed: Made) -> None:
    from safetensors.torch import load_file  # noqa: PLC0415 - imports torch

    found = {
        case: load_file(computed.artifact(case) / "model.safetensors")
        for case in ("FP8", "FP8 for an engine")
    }
    scales = {
        case: {float(tensors[f"model.layers.0.self_attn.{one}_proj.weight_scale"]) for one in "qkv"}
        for case, tensors in found.items()
    }

    assert (len(scales["FP8"]), len(scales["FP8 for an engine"])) == (3, 1)


@pytest.mark.parametrize(
    ("case", "algorithm", "kind"),
    [
        ("FP8 for an engine", "FP8", "F8_E4M3"),
        ("INT8 for an engine", "W8A8_SQ_PER_CHANNEL", "I8"),
        ("INT4AWQ for an engine", "W4A16_AWQ", None),
        ("FP16 for an engine", None, "F16"),
    ],
)
def test_what_an_engine_is_built_of_is_in_tensorrt_llms_own_form(
    computed: Made, case: str, algorithm: str | None, kind: str | None
) -> None:
    ranks = computed.folder / case / "ranks"
    config = json.loads((ranks / "config.json").read_text())
    types = {span.name: span.dtype for span in read_header(ranks / "rank0.safetensors")}

    assert config["architecture"] == "LlamaForCausalLM"
    assert config["num_hidden_layers"] == 4
    assert config["mapping"]["tp_size"] == 1
    assert config["vocab_size"] == 2048
    assert config["quantization"].get("quant_algo") == algorithm
    assert kind in {None, types["transformer.layers.0.mlp.fc.weight"]}
    assert types["transformer.vocab_embedding.weight"] == ("F16" if algorithm is None else "BF16")


def test_an_engine_rotates_positions_as_the_original_does(computed: Made) -> None:
    ranks = computed.folder / "another rotation" / "ranks"
    config = json.loads((ranks / "config.json").read_text())

    assert config["rotary_base"] == ROTATED["rope_theta"]
    assert config["rotary_scaling"] == ROTATED["rope_scaling"]


def test_the_config_is_the_originals_but_for_what_was_done(
    computed: Made, models: dict[str, Path]
) -> None:
    original = json.loads((models["rotated"] / "config.json").read_text())
    config = computed.config("another rotation")

    assert config.items() >= original.items()
    assert config.keys() - original.keys() == {"dtype", "quantization_config"}


def test_the_engines_weights_are_the_checkpoints(computed: Made) -> None:
    from safetensors.torch import load_file  # noqa: PLC0415 - imports torch

    case = computed.folder / "FP8 for an engine"
    ranks = load_file(case / "ranks" / "rank0.safetensors")
    stored = load_file(case / "artifact" / "model.safetensors")
    layer = "transformer.layers.2"
    pairs = {
        f"{layer}.mlp.fc": "model.layers.2.mlp.gate_proj",
        f"{layer}.mlp.gate": "model.layers.2.mlp.up_proj",
        f"{layer}.mlp.proj": "model.layers.2.mlp.down_proj",
        f"{layer}.attention.dense": "model.layers.2.self_attn.o_proj",
    }
    for theirs, ours in pairs.items():
        left, right = ranks[f"{theirs}.weight"].float(), stored[f"{ours}.weight"].float()
        assert ranks[f"{theirs}.weights_scaling_factor"] == stored[f"{ours}.weight_scale"]
        # ModelOpt divides in bfloat16 here and in float32 there: some fall to the next number.
        assert (left != right).float().mean() < 0.08
        assert ((left - right).abs() <= right.abs() / 8 + 2**-9).all()


def test_layers_are_split_over_as_many_gpus_as_asked(computed: Made) -> None:
    ranks = computed.folder / "FP8 for two GPUs" / "ranks"
    whole = computed.folder / "FP8 for an engine" / "ranks"
    shapes = [
        {span.name: span.shape for span in read_header(path)}["transformer.layers.0.mlp.fc.weight"]
        for path in (ranks / "rank0.safetensors", ranks / "rank1.safetensors",
                     whole / "rank0.safetensors")
    ]  # fmt: skip

    assert json.loads((ranks / "config.json").read_text())["mapping"]["tp_size"] == 2
    assert shapes[0] == shapes[1] == (shapes[2][0] // 2, shapes[2][1])


def test_sixteen_bits_are_only_cast(computed: Made) -> None:
    case = "FP16 for an engine"

    assert set(computed.types(case).values()) == {"F16"}
    assert "quantization_config" not in computed.config(case)
    assert computed.numbers[case]["original"] < 1e-5


def test_how_to_generate_is_written_as_it_was(computed: Made) -> None:
    artifact = computed.artifact("FP16 of words that contradict each other")
    found = json.loads((artifact / "generation_config.json").read_text())

    assert found.items() >= WORDS.items()


def test_what_is_ignored_stays_and_what_is_not_does_not(computed: Made) -> None:
    some, less, more = (
        computed.types(case) for case in ("FP8", "without one projection", "the output head too")
    )
    kept = "model.layers.0.mlp.up_proj.weight"

    assert (some[kept], less[kept]) == ("F8_E4M3", "BF16")
    assert (some["lm_head.weight"], more["lm_head.weight"]) == ("BF16", "F8_E4M3")
    assert computed.numbers["without one projection"]["notes"][0].startswith("27 of 29 linear")
    assert "lm_head" in computed.quantization("FP8")["ignore"]


def test_what_is_not_quantized_stays_as_it_was(computed: Made) -> None:
    before = {span.name: span.dtype for span in read_header(TINY / "model.safetensors")}
    after = computed.types("FP8")
    untouched = {name for name in before if "proj" not in name}

    assert {name: after[name] for name in untouched} == {name: before[name] for name in untouched}
    assert computed.config("FP8")["dtype"] == "bfloat16"


@pytest.mark.parametrize("case", REFUSALS)
def test_what_cannot_be_done_is_a_sentence(made: Made, case: str) -> None:
    _, _, said, advised = REFUSALS[case]

    assert said in made.said[case]["refused"]
    assert advised in made.said[case]["advice"]


def test_the_same_spec_gives_the_same_bytes(made: Made) -> None:
    for path in made.artifact("FP8").iterdir():
        assert (made.artifact("again FP8") / path.name).read_bytes() == path.read_bytes()


@pytest.mark.parametrize("case", ["FP8", "INT4AWQ"])
def test_progress_counts_texts_and_comes_to_its_end(made: Made, case: str) -> None:
    said = made.said[case]
    passes = {"FP8": 1, "INT4AWQ": 2}[case]

    assert f"text {4 * passes} of {4 * passes}" in said["messages"]
    assert said["progress"] == pytest.approx(1)
    assert said["tokens"] == 4 * 64
    assert said["notes"][0] == "28 of 29 linear modules are quantized"
    assert "calibrated with 4 sequences of 64 tokens" in said["notes"]


@pytest.mark.parametrize("case", ["INT4AWQ", "INT8"])
def test_the_scales_of_other_rows_are_outside_the_band(computed: Made, case: str) -> None:
    bits = {"INT4AWQ": 4, "INT8": 8}[case]

    assert computed.numbers[f"garbled {case}"]["original"] > MOST_DIVERGENCE[bits]
    assert computed.numbers[case]["original"] * 4 < MOST_DIVERGENCE[bits]
