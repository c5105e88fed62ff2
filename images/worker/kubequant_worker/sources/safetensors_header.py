"""Reads the header of a safetensors file without trusting it.

The format: 8 bytes with the header's length (little-endian), the header as JSON, then the tensors'
bytes, without holes (https://huggingface.co/docs/safetensors/index#format). The library checks most
of this when it opens a file; here it is checked before any engine does, with a sentence for the
user, and without reading more than the header.
"""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

LENGTH_BYTES = 8
# The limit of the reference implementation.
LARGEST_HEADER_BYTES = 100_000_000
MOST_DIMENSIONS = 64
# Bits of one element; the last are packed types of less than a byte.
DTYPE_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "U16": 16, "I16": 16, "U32": 32, "I32": 32, "U64": 64, "I64": 64,
    "F16": 16, "BF16": 16, "F32": 32, "F64": 64, "C64": 64,
    "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "F6_E2M3": 6, "F6_E3M2": 6, "F4": 4,
}  # fmt: skip


class HeaderError(ValueError):
    """The header cannot be true; the message completes the sentence "<file>: ..."."""


@dataclass(frozen=True, slots=True)
class TensorSpan:
    """One tensor: its type, its shape, and where its bytes are after the header."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def tensor_offset(path: Path, span: TensorSpan) -> int:
    """Return where the bytes of a tensor of `read_header` begin in the file."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(LENGTH_BYTES))
    return LENGTH_BYTES + int(length) + span.begin


def read_header(path: Path) -> tuple[TensorSpan, ...]:
    """Return the tensors of a safetensors file in the order of their bytes; raises HeaderError."""
    text = _header(path)
    header, _ = _parse(text)
    return _spans(header, path.stat().st_size - LENGTH_BYTES - len(text))


def read_metadata(path: Path) -> dict[str, str]:
    """Return the texts that a safetensors file carries beside its tensors; raises HeaderError."""
    _, metadata = _parse(_header(path))
    return metadata


def _header(path: Path) -> bytes:
    """Return the header's text; raises HeaderError where its length cannot be true."""
    size = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(LENGTH_BYTES)
        if len(prefix) < LENGTH_BYTES:
            raise HeaderError(f"it has {size} bytes, too few for a safetensors file")
        (length,) = struct.unpack("<Q", prefix)
        if length > size - LENGTH_BYTES:
            raise HeaderError(
                f"its header claims {length} bytes, and the file has {size}; "
                "it was cut short or was never a safetensors file"
            )
        if length > LARGEST_HEADER_BYTES:
            raise HeaderError(f"its header claims {length} bytes, more than the format allows")
        return file.read(length)


def _parse(text: bytes) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the entries of the tensors, unchecked, and the metadata."""
    try:
        parsed = json.loads(text.decode("utf-8"), object_pairs_hook=_unique)
    except HeaderError:
        raise
    except UnicodeDecodeError as error:
        raise HeaderError("its header is not UTF-8") from error
    except (ValueError, RecursionError) as error:  # also a number of thousands of digits
        raise HeaderError("its header is not JSON") from error
    if not isinstance(parsed, dict):
        raise HeaderError("its header is not a JSON object")
    metadata = parsed.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise HeaderError("its __metadata__ is not a table of texts")
    return parsed, metadata


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise HeaderError("its header names a tensor twice")
    return table


def _spans(header: dict[str, Any], data_bytes: int) -> tuple[TensorSpan, ...]:
    """Check each tensor, and that together they cover the data from its first byte to its last."""
    spans = sorted(
        (_span(name, entry) for name, entry in header.items()),
        key=lambda span: (span.begin, span.end),
    )
    position = 0
    for span in spans:
        if span.end > data_bytes:
            raise HeaderError(
                f"tensor {span.name!r} ends at byte {span.end}, and there are {data_bytes}"
            )
        if span.begin < position:
            raise HeaderError(f"tensor {span.name!r} overlaps the one before it")
        if span.begin > position:
            raise HeaderError(f"there is a hole before tensor {span.name!r}")
        position = span.end
    if position != data_bytes:
        raise HeaderError(f"{data_bytes - position} bytes at its end belong to no tensor")
    return tuple(spans)


def _span(name: str, entry: Any) -> TensorSpan:
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise HeaderError(f"tensor {name!r} lacks dtype, shape or data_offsets, or has more")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        raise HeaderError(f"tensor {name!r} has the unknown type {str(dtype)[:40]!r}")
    if not _are_counts(shape) or len(shape) > MOST_DIMENSIONS:
        raise HeaderError(f"tensor {name!r} has a shape that is none")
    if not _are_counts(offsets) or len(offsets) != 2:  # noqa: PLR2004 - begin and end
        raise HeaderError(f"tensor {name!r} has data_offsets that are none")
    bits = math.prod(shape) * DTYPE_BITS[dtype]
    begin, end = offsets
    if bits % 8 or end - begin != bits // 8:
        raise HeaderError(
            f"tensor {name!r} of {dtype} {list(shape)} needs {bits // 8} bytes "
            f"and claims {end - begin}"
        )
    return TensorSpan(name, dtype, tuple(shape), begin, end)


def _are_counts(value: Any) -> bool:
    """Say whether a value is a list of whole numbers that a file can have (a bool is none)."""
    return isinstance(value, list) and all(type(n) is int and 0 <= n < 2**63 for n in value)
