"""A safetensors header is read with suspicion: whatever is wrong with it ends in a sentence."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.worker.hostile import SAFETENSORS, good_weights, safetensors, tensor

from kubequant_worker.sources.safetensors_header import (
    LARGEST_HEADER_BYTES,
    HeaderError,
    read_header,
)

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("case", SAFETENSORS)
def test_a_header_that_cannot_be_true_is_refused(tmp_path: Path, case: str) -> None:
    content, words = SAFETENSORS[case]
    (tmp_path / "w.safetensors").write_bytes(content)
    with pytest.raises(HeaderError, match=words):
        read_header(tmp_path / "w.safetensors")


def test_a_header_above_the_format_s_limit_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    with path.open("wb") as file:
        file.write((LARGEST_HEADER_BYTES + 1).to_bytes(8, "little"))
        file.truncate(LARGEST_HEADER_BYTES + 100)
    with pytest.raises(HeaderError, match="more than the format allows"):
        read_header(path)


def test_a_true_header_gives_the_tensors_in_the_order_of_their_bytes(tmp_path: Path) -> None:
    header = {
        "__metadata__": {"format": "pt"},
        "second": tensor(16, 24, [2, 2], "BF16"),
        "first": tensor(0, 16),
        "empty": tensor(24, 24, [0, 7]),
        "scalar": tensor(24, 25, [], "U8"),
    }
    (tmp_path / "w.safetensors").write_bytes(safetensors(header, bytes(25)))
    spans = read_header(tmp_path / "w.safetensors")
    assert [span.name for span in spans] == ["first", "second", "empty", "scalar"]
    assert spans[1].shape == (2, 2)


def test_what_the_reference_library_writes_is_read(tmp_path: Path) -> None:
    import numpy as np  # noqa: PLC0415 - only here
    from safetensors.numpy import save_file  # noqa: PLC0415 - only here

    save_file({"a": np.ones((3, 5), np.float16), "b": np.zeros(7)}, tmp_path / "w.safetensors")
    assert {
        (span.name, span.dtype, span.shape) for span in read_header(tmp_path / "w.safetensors")
    } == {
        ("a", "F16", (3, 5)),
        ("b", "F64", (7,)),
    }


def test_the_good_maker_is_good(tmp_path: Path) -> None:
    (tmp_path / "w.safetensors").write_bytes(good_weights())
    assert len(read_header(tmp_path / "w.safetensors")) == 1
