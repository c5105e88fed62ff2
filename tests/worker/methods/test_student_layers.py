"""A student is made of its teacher's layers, byte for byte."""

from __future__ import annotations

import json
import shutil
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from tests.api.cases import SMALLEST
from tests.worker.methods.conftest import TINY
from tests.worker.methods.models import (
    changed_config,
    random_gpt2,
    random_llama,
    random_mixtral,
    random_qwen2,
)

from kubequant.api.resource import read_manifest
from kubequant_worker.errors import BadRequestError
from kubequant_worker.layout import Layout
from kubequant_worker.methods.student_layers import (
    Cut,
    cut_of,
    make_student,
    shortened,
    student_bytes,
)
from kubequant_worker.sources import inspect_model
from kubequant_worker.student import Student

if TYPE_CHECKING:
    from pathlib import Path

    import torch


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file  # noqa: PLC0415 - imports torch

    return {k: v for path in folder.glob("*.safetensors") for k, v in load_file(path).items()}


@pytest.mark.parametrize(
    ("layers", "keep", "kept"),
    [
        pytest.param(4, None, (0, 3), id="by default half, the first and the last among them"),
        pytest.param(5, None, (0, 2, 4), id="half of an odd number is the larger half"),
        pytest.param(12, 6, (0, 2, 4, 7, 9, 11), id="spread evenly"),
        pytest.param(12, 1, (0,), id="one alone is the first"),
        pytest.param(4, 3, (0, 2, 3), id="all but one"),
    ],
)
def test_layers_are_spread_evenly(layers: int, keep: int | None, kept: tuple[int, ...]) -> None:
    assert cut_of({"num_hidden_layers": layers}, keep) == Cut(kept, layers)


@pytest.mark.parametrize(
    ("config", "keep", "sentence"),
    [
        ({"num_hidden_layers": 4}, 4, "keepLayers: 4 of 4 layers are no smaller model"),
        ({"num_hidden_layers": 4}, 9, "keepLayers: 9 of 4 layers are no smaller model"),
        ({"num_hidden_layers": 1}, None, "the teacher has one layer"),
        ({}, None, "does not say how many layers it has"),
        ({"n_layer": "two"}, 1, "does not say how many layers it has"),
    ],
    ids=["as many", "more", "one", "none named", "no number"],
)
def test_what_is_no_smaller_model_is_refused(
    config: dict[str, Any], keep: int | None, sentence: str
) -> None:
    with pytest.raises(BadRequestError) as caught:
        cut_of(config, keep)

    assert sentence in caught.value.message
    assert caught.value.advice


def test_a_student_s_tensors_are_its_teacher_s(tmp_path: Path) -> None:
    make_student(TINY, tmp_path, cut_of({"num_hidden_layers": 4}, 2))
    teacher, student = tensors(TINY), tensors(tmp_path)
    expected = {
        name.replace("layers.3.", "layers.1."): tensor
        for name, tensor in teacher.items()
        if "layers.1." not in name and "layers.2." not in name
    }

    assert student.keys() == expected.keys()
    assert all(student[name].equal(tensor) for name, tensor in expected.items())
    assert json.loads((tmp_path / "config.json").read_text())["num_hidden_layers"] == 2


@pytest.mark.parametrize(
    ("make", "changes"),
    [
        (random_llama, {"num_hidden_layers": 4, "shard": "600KB"}),
        (random_llama, {"num_hidden_layers": 3, "tie_word_embeddings": True}),
        (random_qwen2, {}),
        (random_mixtral, {}),
    ],
    ids=["shards", "tied embeddings", "Qwen2", "experts"],
)
def test_a_student_of_another_shape_loads_whole(make: Any, changes: Any, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM  # noqa: PLC0415 - seconds

    teacher = make(tmp_path / "teacher", **changes)
    config = json.loads((teacher / "config.json").read_text())
    cut = cut_of(config, None)
    make_student(teacher, tmp_path / "student", cut)

    model, info = AutoModelForCausalLM.from_pretrained(
        tmp_path / "student", output_loading_info=True
    )

    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert model.config.num_hidden_layers == len(cut.kept)


def test_lists_of_one_entry_a_layer_are_cut_too() -> None:
    config = {
        "num_hidden_layers": 4,
        "layer_types": ["full", "sliding", "full", "sliding"],
        "architectures": ["a", "b", "c", "d"],
    }

    assert shortened(config, Cut((0, 3), 4)) == {
        "num_hidden_layers": 2,
        "layer_types": ["full", "sliding"],
        "architectures": ["a", "b", "c", "d"],
    }


def test_the_bytes_of_a_student_are_known_before_it_is_made(tmp_path: Path) -> None:
    config = json.loads((TINY / "config.json").read_text())
    cut = cut_of(config, 2)
    make_student(TINY, tmp_path, cut)
    size = (TINY / "model.safetensors").stat().st_size

    told = student_bytes(size, config, cut)

    assert told == pytest.approx((tmp_path / "model.safetensors").stat().st_size, rel=0.01)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda folder: changed_config(TINY, folder, num_hidden_layers=3), "cannot be told"),
        (random_gpt2, "the teacher has one layer"),
    ],
    ids=["a config that tells another number", "one layer by GPT-2's name"],
)
def test_a_teacher_whose_layers_cannot_be_told_is_refused(
    make: Any, sentence: str, tmp_path: Path
) -> None:
    teacher = make(tmp_path / "teacher")
    config = json.loads((teacher / "config.json").read_text())
    with pytest.raises(BadRequestError, match=sentence):
        make_student(teacher, tmp_path / "student", cut_of(config, None))


@pytest.mark.parametrize(
    ("named", "pickled", "sentence"),
    [
        ("model.layers.", False, ""),
        ("blocks_of_layers_", False, "layers cannot be told by the names of its tensors"),
        ("model.layers.", True, "layers can be left out of safetensors only"),
    ],
    ids=["as most are", "names without numbers", "pickled weights"],
)
def test_what_a_teachers_small_files_tell_is_refused_before_its_weights_are_there(
    named: str,
    pickled: bool,  # noqa: FBT001 - a parameter of the table
    sentence: str,
    tmp_path: Path,
) -> None:
    suffix = "bin" if pickled else "safetensors"
    shards = [f"model-{number}.{suffix}" for number in range(4)]
    tensors = {f"{named}{number}.norm.weight": shards[number] for number in range(4)}
    config = {"num_hidden_layers": 4, "model_type": "llama"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "tokenizer.json").write_text("{}")
    if not pickled:
        index = json.dumps({"weight_map": tensors})
        (tmp_path / "model.safetensors.index.json").write_text(index)
    for name in shards:
        (tmp_path / name).write_bytes(b"0" * 1000)
    spec = read_manifest(
        {
            **SMALLEST,
            "spec": {
                **SMALLEST["spec"],
                "method": "Distill",
                "model": {"uri": f"file://{tmp_path}", "allowPickle": pickled},
            },
        },
        local=True,
    ).spec
    work = tmp_path / "work"
    layout = Layout(work, None, work / "credentials", work / "volumes", work / "log")
    teacher = inspect_model(spec.model, credentials=layout.credentials)
    inspected = partial(Student(spec, layout).inspect, teacher)

    if not sentence:
        assert 1000 < sum(inspected().values()) < 4000
        return
    with pytest.raises(BadRequestError, match=sentence):
        inspected()


def test_a_teacher_without_safetensors_is_refused(tmp_path: Path) -> None:
    shutil.copyfile(TINY / "config.json", tmp_path / "config.json")
    with pytest.raises(BadRequestError, match="layers can be left out of safetensors only"):
        make_student(tmp_path, tmp_path / "student", Cut((0,), 2))
