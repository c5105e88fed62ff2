"""The importance matrix against a sum made by hand, and its file against gguf-py."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from tests.worker.methods.conftest import TINY, Made

from kubequant_worker.methods.gguf_file import (
    read_float_tensors,
    read_header,
    write_float_tensors,
)
from kubequant_worker.methods.gguf_imatrix import column_weights, write_matrix

if TYPE_CHECKING:
    from collections.abc import Callable

NAMES = {
    "blk.{}.attn_q.weight": "self_attn.q_proj",
    "blk.{}.attn_output.weight": "self_attn.o_proj",
    "blk.{}.ffn_up.weight": "mlp.up_proj",
    "blk.{}.ffn_down.weight": "mlp.down_proj",
}


def test_sums_equal_those_of_forward_hooks(tmp_path: Path, every_type: Made) -> None:
    import torch  # noqa: PLC0415 - seconds, and only this test needs it
    from transformers import AutoModelForCausalLM  # noqa: PLC0415 - as above

    draw = np.random.default_rng(0)
    # The last window is shorter than what llama.cpp's own tool ignores.
    windows = [draw.integers(3, 2048, size).astype(np.int32) for size in (200, 200, 7)]
    counted: list[int] = []
    with every_type.quantizer.open_runtime(every_type.variants["F16"], 200) as runtime:
        entries = runtime.collect(
            windows, tmp_path / "m.gguf", datasets=["drawn"], on_tokens=counted.append
        )
    assert entries == 4 * 7
    assert sum(counted) == 407

    model = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32).eval()
    sums: dict[str, torch.Tensor] = {}

    def hook(name: str) -> Callable[..., None]:
        def add(_module: object, inputs: tuple[torch.Tensor, ...], _output: object) -> None:
            energy = inputs[0].double().square().sum(dim=(0, 1))
            sums[name] = sums.get(name, torch.zeros_like(energy)) + energy

        return add

    for layer in range(4):
        for name, path in NAMES.items():
            module = model.get_submodule(f"model.layers.{layer}.{path}")
            module.register_forward_hook(hook(name.format(layer)))
    with torch.inference_mode():
        for window in windows:
            model(input_ids=torch.tensor(window[None].astype(np.int64)))
    matrix = read_float_tensors(tmp_path / "m.gguf")
    for name, energy in sums.items():
        ours = matrix[f"{name}.in_sum2"][0]
        np.testing.assert_allclose(ours, energy.numpy(), rtol=0.02, err_msg=name)
        assert np.abs(ours / energy.numpy() - 1).mean() < 0.003
        assert matrix[f"{name}.counts"].tolist() == [[407.0]]


def test_the_file_is_what_llama_cpp_writes(weighed: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    import llama_cpp._ctypes_extensions as beside  # noqa: PLC0415 - only to find the folder

    monkeypatch.syspath_prepend(str(Path(beside.__file__).parent / "converter" / "gguf-py"))
    from gguf import GGUFReader  # noqa: PLC0415 - found from here on

    reader = GGUFReader(weighed.work.artifact / "imatrix.gguf")
    assert reader.fields["general.type"].contents() == "imatrix"
    assert reader.fields["imatrix.chunk_size"].contents() == 256
    assert reader.fields["imatrix.datasets"].contents() == ["short"]
    names = [tensor.name for tensor in reader.tensors]
    assert names == sorted(names, key=lambda name: name.rpartition(".")[0])
    by_name = {tensor.name: tensor for tensor in reader.tensors}
    chunks = reader.fields["imatrix.chunk_count"].contents()
    tokens = float(by_name["blk.0.attn_q.weight.counts"].data.item())
    assert 255 * (chunks - 1) < tokens <= 256 * chunks
    assert by_name["blk.0.attn_q.weight.in_sum2"].data.shape == (1, 256)


def test_weights_are_means_and_an_unseen_expert_weighs_all_the_same(tmp_path: Path) -> None:
    sums = {"blk.0.x.weight": np.array([[8.0, 4.0], [0.0, 0.0]])}
    counts = {"blk.0.x.weight": np.array([4.0, 0.0])}
    path = tmp_path / "m.gguf"
    write_matrix(path, sums, counts, datasets=[], chunks=1, chunk_tokens=4)
    assert column_weights(path)["blk.0.x.weight"].tolist() == [2.0, 1.0, 1.0, 1.0]


def test_a_written_file_reads_back(tmp_path: Path) -> None:
    path = tmp_path / "small.gguf"
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    write_float_tensors(
        path, {"a": "text", "b": 7, "c": ["x", "ü"]}, {"one": values, "two": values}
    )
    header = read_header(path)
    assert header.metadata == {"a": "text", "b": 7, "c": ["x", "ü"]}
    assert [tensor.shape for tensor in header.tensors] == [(3, 2), (3, 2)]
    np.testing.assert_array_equal(read_float_tensors(path)["two"], values)


def test_what_is_no_gguf_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(b"GGML" + bytes(60))
    with pytest.raises(ValueError, match="no GGUF file"):
        read_header(path)
