"""INT8 by ONNX Runtime on the tiny model, and on shapes that are exported differently.

All models are made in one process of the image's environment and loaded in another, which knows
nothing of kubequant: tracing a model takes most of the time, so each is exported once.
"""

from __future__ import annotations

from dataclasses import replace
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
    random_mamba,
    random_mixtral,
    random_qwen2,
)
from tests.worker.run.test_preflight import spec as asked

from kubequant_worker.errors import MemoryExhaustedError
from kubequant_worker.methods import ProducedVariant, Workspace
from kubequant_worker.methods.checkpoint_check import MOST_DIVERGENCE
from kubequant_worker.methods.int8 import ONNXRuntimeINT8
from kubequant_worker.preflight import check_room

if TYPE_CHECKING:
    from pathlib import Path

IMAGE = "onnxruntime"


def spec(**parameters: Any) -> dict[str, Any]:
    return {"method": "INT8", "int8": {"engine": "ONNXRuntime", **parameters}}


# Case -> (spec, the range of the weights in MiB, the most divergence: half of it was measured).
SCHEMES = {
    "INT8": (spec(), (4.9, 5.2), 0.01),
    "INT8 weights": (spec(scheme="WeightOnly"), (4.9, 5.2), 0.0001),
}
# Case -> (spec, how many modules are quantized, the products of 8 bits in the graph).
PARAMETERS = {
    "INT8": (spec(), "28 of 29", "MatMulInteger"),
    "int8.scheme": (spec(scheme="WeightOnly"), "28 of 29", "MatMulNBits"),
    "int8.ignore of a pattern": (
        spec(ignore=["lm_head", "re:.*down_proj"]), "24 of 29", "MatMulInteger",
    ),
    "int8.ignore of a name": (
        spec(ignore=["model.layers.0.mlp.up_proj"]), "28 of 29", "MatMulInteger",
    ),
    "int8.ignore of nothing": (spec(ignore=[]), "29 of 29", "MatMulInteger"),
}  # fmt: skip
# Case -> (model, spec and more, what is said, what is advised).
REFUSALS = {
    "everything ignored": (
        "tiny", {"spec": spec(ignore=["re:.*"])}, "has 29 linear modules, and all", "ignore fewer",
    ),
    "a model that is quantized already": (
        "quantized", {"spec": spec()}, "config.json says that the model is quantized", "made from",
    ),
    "a mixture of experts": (
        "mixtral", {"spec": spec()}, "are stacks of experts, against", "LLMCompressor",
    ),
    "an architecture without keys and values": (
        "mamba", {"spec": spec()}, "MambaForCausalLM keeps something else between", "LLMCompressor",
    ),
    "weights on the disk": (
        "tiny", {"spec": {**spec(), "memory": {"offload": "Disk"}}},
        "spec.memory.offload: Disk is nothing that engine ONNXRuntime does", "",
    ),
    "less memory": (
        "tiny", {"spec": {**spec(), "memory": {"lowMemory": True}}},
        "spec.memory.lowMemory: true is nothing that engine ONNXRuntime does", "",
    ),
    "an export that computes something else": (
        "tiny", {"spec": spec(), "damage": "export"},
        "the conversion to ONNX lost something", "LLMCompressor",
    ),
    "a file that is cut off": (
        "tiny", {"spec": spec(), "damage": "artifact", "verify": True},
        "ONNX Runtime does not load model.onnx", "",
    ),
}  # fmt: skip
# Case -> (model, spec, how many modules are quantized, the most divergence).
SHAPES = {
    "Qwen2": ("qwen2", spec(), "14 of 15", 0.1),
    "GPT-2": ("gpt2", spec(), "4 of 5", 0.1),
    "tied embeddings": ("tied", spec(), "14 of 15", 0.1),
    "shards": ("sharded", spec(), "14 of 15", 0.1),
}


class Exported(Made):
    """Folders that hold a `model.onnx`."""

    def model(self, case: str) -> bytes:
        return (self.artifact(case) / "model.onnx").read_bytes()


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {
        "tiny": TINY,
        "gpt2": random_gpt2(folder / "gpt2"),
        "mixtral": random_mixtral(folder / "mixtral"),
        "mamba": random_mamba(folder / "mamba"),
        "qwen2": random_qwen2(folder / "qwen2"),
        "tied": random_llama(folder / "tied", tie_word_embeddings=True, **EVEN),
        "sharded": random_llama(folder / "sharded", shard="600KB", **EVEN),
        "quantized": changed_config(
            TINY, folder / "quantized", quantization_config={"quant_method": "gptq"}
        ),
    }


@pytest.fixture(scope="session")
def made(models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Exported:
    folder = tmp_path_factory.mktemp("onnxruntime")
    cases: dict[str, dict[str, Any]] = {name: {"spec": row[0]} for name, row in PARAMETERS.items()}
    cases |= {name: {"spec": row[0], "verify": True} for name, row in SCHEMES.items()}
    cases |= {name: {**more, "model": model} for name, (model, more, _, _) in REFUSALS.items()}
    cases |= {name: {"spec": row[1], "model": row[0]} for name, row in SHAPES.items()}
    cases["again"] = {"spec": spec()}
    cases["beside"] = {"spec": spec(), "largest_file_bytes": 1 << 20}
    cases["a name of nothing"] = {"spec": spec(ignore=["lm_head", "nothing"])}
    said: dict[str, dict[str, Any]] = {}
    for model, path in models.items():  # each by a program of its own, which exports once
        its = {name: case for name, case in cases.items() if case.get("model", "tiny") == model}
        for case in its.values():
            case["model"] = str(path)
        said |= program(IMAGE, "onnx_cases", folder, given=its)
    loaded = (*SCHEMES, *SHAPES, "beside")
    pairs = {name: [cases[name]["model"], str(folder / name / "artifact")] for name in loaded}
    pairs["the export"] = [str(TINY), str(folder / f"scratch-{TINY.name}" / "float32")]
    return Exported(folder, said, program(IMAGE, "load_onnx", given=pairs))


def test_the_export_computes_what_the_model_does(made: Exported) -> None:
    found = made.numbers["the export"]

    assert found["divergence"] < 1e-6
    assert found["perplexity"] == pytest.approx(found["original"], rel=1e-4)
    assert found["stepwise"] < 1e-3
    assert found["padded"] < 1e-3


@pytest.mark.parametrize("case", SCHEMES)
def test_a_model_loads_elsewhere_and_is_its_originals_likeness(made: Exported, case: str) -> None:
    _, (smallest, largest), most = SCHEMES[case]
    found = made.numbers[case]

    assert smallest < made.said[case]["bytes"] / 2**20 < largest
    assert most / 8 < found["divergence"] < most
    assert found["divergence"] * 10 < MOST_DIVERGENCE[8]
    assert abs(found["perplexity"] / found["original"] - 1) < 0.05


def test_weights_alone_lose_less_than_weights_and_activations(made: Exported) -> None:
    weights, both = (made.numbers[case]["divergence"] for case in ("INT8 weights", "INT8"))

    assert weights * 10 < both


@pytest.mark.parametrize("case", PARAMETERS)
def test_every_parameter_reaches_the_engine(made: Exported, case: str) -> None:
    _, modules, product = PARAMETERS[case]

    assert f"{modules} linear modules are quantized" in made.said[case]["notes"]
    assert product.encode() in made.model(case)
    if case != "INT8":
        assert made.model(case) != made.model("INT8")


def test_the_same_spec_gives_the_same_bytes(made: Exported) -> None:
    assert made.model("again") == made.model("INT8")


def test_nothing_of_this_machine_is_in_the_file(made: Exported) -> None:
    content = made.model("INT8")

    assert str(TINY.parents[2]).encode() not in content
    assert b"site-packages" not in content
    assert b"stack_trace" not in content


def test_large_weights_lie_beside_the_graph(made: Exported) -> None:
    folder = made.artifact("beside")

    assert (folder / "model.onnx").stat().st_size < 400_000
    assert (folder / "model.onnx_data").stat().st_size > 4_000_000
    assert {"model.onnx", "model.onnx_data"} <= set(made.said["beside"]["files"])
    assert made.numbers["beside"]["divergence"] == made.numbers["INT8"]["divergence"]


def test_what_is_not_quantized_takes_no_more_than_in_the_checkpoint(made: Exported) -> None:
    everything, all_but_one = (
        made.said[case]["bytes"] for case in ("int8.ignore of nothing", "INT8")
    )

    # The head: 2048 rows of 256, in 16 bits against 8.
    assert all_but_one - everything == pytest.approx(2048 * 256, rel=0.05)


def test_tied_embeddings_are_stored_once(made: Exported) -> None:
    tied, apart = made.said["tied embeddings"], made.said["shards"]

    assert apart["bytes"] - tied["bytes"] == 2048 * 256 * 2
    assert tied["bytes"] < 0.8 * tied["original"]


def test_everybody_can_read_the_files_and_what_was_beside_the_weights_came_along(
    made: Exported,
) -> None:
    folder = made.artifact("INT8")

    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o644}
    for name in ("config.json", "generation_config.json", "tokenizer.json", "tokenizer.model"):
        assert (folder / name).read_bytes() == (TINY / name).read_bytes()
    assert not list(folder.glob("*.safetensors*"))


def test_progress_counts_modules_and_comes_to_its_end(made: Exported) -> None:
    said = made.said["INT8"]
    products = [line for line in said["messages"] if line.endswith("of 28)")]

    assert products[0] == "model.layers.0.self_attn.q_proj (1 of 28)"
    assert len(products) == 28
    assert said["progress"] == pytest.approx(1)
    assert "tracing model.layers.3.mlp.down_proj" in said["exporting"]
    assert any(line.startswith("writing ") for line in said["exporting"])
    assert 0.95 < said["exported"] <= 1


def test_verification_loaded_it_again(made: Exported) -> None:
    for case in SCHEMES:
        (said,) = [note for note in made.said[case]["notes"] if "loaded again and held" in note]
        assert "against the original" in said


@pytest.mark.parametrize("case", REFUSALS)
def test_what_the_engine_cannot_do_is_refused_with_a_sentence(made: Exported, case: str) -> None:
    _, _, sentence, advice = REFUSALS[case]

    assert sentence in made.said[case]["refused"]
    assert advice in made.said[case]["advice"]


@pytest.mark.parametrize("case", SHAPES)
def test_other_shapes_load_elsewhere_too(made: Exported, case: str) -> None:
    _, _, modules, most = SHAPES[case]

    assert f"{modules} linear modules are quantized" in made.said[case]["notes"]
    assert 0 < made.numbers[case]["divergence"] < most
    # A padded text and a token alone have other ranges, and so other levels; that is all.
    assert made.numbers[case]["stepwise"] < 2
    assert made.numbers[case]["padded"] < 2


def test_a_name_that_is_no_modules_is_told(made: Exported) -> None:
    notes = made.said["a name of nothing"]["notes"]

    assert "ignore: nothing is the name of no module" in notes


def test_a_model_larger_than_memory_is_refused_with_the_bytes_and_what_would_do() -> None:
    whole = asked(**spec())
    needs = ONNXRuntimeINT8.needs(whole, {"model.safetensors": 2**40})

    assert needs.memory_bytes > 2.4 * 2**40, "in float32, and something to work with"
    with pytest.raises(MemoryExhaustedError, match=r"needs at least 2\.4 TiB of memory") as refused:
        check_room(replace(needs, scratch_bytes=0), whole.memory, TINY, 2**33)
    assert "LLMCompressor with spec.memory.offload: Disk" in refused.value.advice


@pytest.mark.parametrize("trusted", [True, False])
def test_the_command_trusts_code_where_the_run_did(*, trusted: bool, tmp_path: Path) -> None:
    model = {"uri": "hf://example/model", "trustRemoteCode": trusted}
    work = Workspace(asked(model=model, **spec()), tmp_path, tmp_path, tmp_path, "tiny", threads=1)
    usage = ONNXRuntimeINT8(work).usage(ProducedVariant("INT8", (), 1))

    assert usage.runtime == "ONNX Runtime"
    assert ("trust_remote_code=True" in usage.command) is trusted
