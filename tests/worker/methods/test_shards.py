"""What an engine saved in the type that it computed in gets the original's types back."""

from __future__ import annotations

import json
import os
import tracemalloc
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tests.worker.methods.conftest import TINY
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from kubequant_worker.methods import tensor_copy
from kubequant_worker.methods.shards import original_types, restore_types
from kubequant_worker.sources.safetensors_header import DTYPE_BITS, read_header

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Return a folder for what an engine saved, and one for its original."""
    target, source = tmp_path / "made", tmp_path / "original"
    target.mkdir()
    source.mkdir()
    return target, source


def random(*shape: int, dtype: Any = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape))).to(dtype)


def bytes_of(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.reshape(-1).view(torch.uint8)


def saved(folder: Path, tensors: dict[str, torch.Tensor], name: str = "model") -> Path:
    path = folder / f"{name}.safetensors"
    save_file(tensors, path, metadata={"format": "pt"})
    return path


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16])
def test_what_was_not_quantized_is_in_the_original_type_again(
    folders: tuple[Path, Path], stored: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensor_copy, "PIECE_BYTES", 64)  # so that a tensor takes several pieces
    target, source = folders
    made = {
        "embed.weight": random(3, 11),  # its bytes are no multiple of four once they are halved
        "norm.weight": random(7),
        "empty": random(0, 4),
        "one": random(1)[0],
        "q.weight_packed": torch.arange(9, dtype=torch.int32),
        "q.weight": random(5).to(torch.float8_e4m3fn),
        "q.scale": random(5),
    }
    path = saved(target, made)
    kept = {"embed.weight", "norm.weight", "empty", "one", "q.weight"}
    saved(source, {name: torch.zeros_like(made[name], dtype=stored) for name in kept})
    restore_types(target, source)
    found = load_file(path)
    assert found.keys() == made.keys()
    for name, tensor in made.items():
        restored = name in kept and tensor.dtype == torch.float32
        expected = tensor.to(stored) if restored else tensor
        assert found[name].dtype == expected.dtype
        assert found[name].shape == expected.shape
        assert torch.equal(bytes_of(found[name]), bytes_of(expected)), name
    for span in read_header(path):
        assert span.begin * 8 % DTYPE_BITS[span.dtype] == 0
    assert not list(target.glob("*.again"))


def test_a_wider_type_comes_back_too(folders: tuple[Path, Path]) -> None:
    target, source = folders
    made = {"a": random(5, dtype=torch.bfloat16), "b": random(3, dtype=torch.bfloat16)}
    path = saved(target, made)
    saved(source, {"a": random(5)})
    restore_types(target, source)
    assert torch.equal(load_file(path)["a"], made["a"].float())
    assert torch.equal(load_file(path)["b"], made["b"])


def test_nothing_is_written_where_nothing_changes(folders: tuple[Path, Path]) -> None:
    target, source = folders
    path = saved(target, {"a": random(5)})
    saved(source, {"a": random(5)})
    before = path.stat()
    restore_types(target, source)
    assert path.stat().st_ino == before.st_ino


def test_metadata_is_labelled_in_order_and_the_index_made_true(folders: tuple[Path, Path]) -> None:
    target, source = folders
    names = ["model-00001-of-00002", "model-00002-of-00002"]
    for number, name in enumerate(names):
        saved(target, {f"w{number}": random(8)}, name)
    saved(source, {"w0": random(8, dtype=torch.float16)})
    index = target / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 64}, "weight_map": {}}))
    restore_types(target, source, lambda metadata: {"z": "1", **metadata, "a": "2"})
    for name in names:
        with safe_open(target / f"{name}.safetensors", "pt") as shard:  # type: ignore[no-untyped-call]
            assert shard.metadata() == {"a": "2", "format": "pt", "z": "1"}
        text = (target / f"{name}.safetensors").read_bytes()
        assert text.index(b'"a"') < text.index(b'"format"') < text.index(b'"z"')
    assert json.loads(index.read_text())["metadata"]["total_size"] == 8 * 2 + 8 * 4


def test_a_shard_is_never_held_whole(folders: tuple[Path, Path]) -> None:
    target, source = folders
    path = saved(target, {"embed": random(24 << 20), "head": random(8)})  # 96 MiB
    saved(source, {"head": random(8, dtype=torch.bfloat16)})
    tracemalloc.start()
    try:
        restore_types(target, source)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 48 << 20
    assert load_file(path)["head"].dtype == torch.bfloat16


def test_a_full_disk_leaves_the_shard_as_it_was(folders: tuple[Path, Path]) -> None:
    target, source = folders
    path = saved(target, {"a": random(5)})
    saved(source, {"a": random(5, dtype=torch.float16)})
    before = path.read_bytes()
    (target / "model.again").symlink_to("/dev/full")
    with pytest.raises(OSError, match=os.strerror(28)):
        restore_types(target, source)
    assert path.read_bytes() == before
    assert not (target / "model.again").is_symlink()


def tiny(folder: Path) -> LlamaForCausalLM:
    """Return a model loaded in float32 of which only the last norm is stored so."""
    model: Any = AutoModelForCausalLM
    found = model.from_pretrained(TINY, dtype=torch.float32)
    tensors = {name: one.detach().bfloat16() for name, one in found.state_dict().items()}
    saved(folder, {**tensors, "model.norm.weight": tensors["model.norm.weight"].float()})
    return found


def label(metadata: Mapping[str, str]) -> dict[str, str]:
    return {"z": "1", **metadata, "a": "2"}


@pytest.mark.parametrize("most", [50_000_000, 2_000_000])
def test_transformers_writes_at_once_what_would_be_mended(
    folders: tuple[Path, Path], tmp_path: Path, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensor_copy, "PIECE_BYTES", 1 << 12)
    target, source = folders
    model = tiny(source)
    mended = tmp_path / "mended"
    model.save_pretrained(mended, max_shard_size=most)
    restore_types(mended, source, label)
    with original_types(source, label):
        model.save_pretrained(target, max_shard_size=most)
    written = {path.name: path.stat().st_ino for path in target.glob("*.safetensors")}
    restore_types(target, source, label)
    assert {path.name: path.stat().st_ino for path in target.glob("*.safetensors")} == written
    assert len(written) == 1 if most > 10_000_000 else len(written) > 1
    for path in mended.iterdir():
        assert (target / path.name).read_bytes() == path.read_bytes(), path.name


def test_a_shard_with_a_type_that_is_not_known_is_mended(folders: tuple[Path, Path]) -> None:
    target, source = folders
    model = tiny(source)
    model.register_buffer("phase", torch.zeros(3, dtype=torch.complex64))
    with original_types(source, label):
        model.save_pretrained(target)
    restore_types(target, source, label)
    found = load_file(target / "model.safetensors")
    assert found["phase"].dtype == torch.complex64
    assert found["model.embed_tokens.weight"].dtype == torch.bfloat16


def test_a_full_disk_is_said_while_transformers_saves(folders: tuple[Path, Path]) -> None:
    target, source = folders
    model = tiny(source)
    (target / "model.safetensors").symlink_to("/dev/full")
    with original_types(source), pytest.raises(OSError, match=os.strerror(28)):
        model.save_pretrained(target)
