"""Makers of models, good and hostile. No binary file is committed."""

from __future__ import annotations

import json
import struct
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path


def safetensors(header: dict[str, Any] | bytes, data: bytes, *, length: int | None = None) -> bytes:
    """Return a safetensors file with any header, true or not.

    `length` is what its first bytes claim.
    """
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def tensor(
    begin: int, end: int, shape: list[Any] | None = None, dtype: str = "F32"
) -> dict[str, Any]:
    """Return one entry of a header.

    The shape is one row of F32 that fills the span where it is not given.
    """
    return {
        "dtype": dtype,
        "shape": [(end - begin) // 4] if shape is None else shape,
        "data_offsets": [begin, end],
    }


def good_weights(name: str = "w") -> bytes:
    """Return a whole file with one tensor of 16 bytes."""
    return safetensors({name: tensor(0, 16)}, bytes(range(16)))


def good_model() -> dict[str, bytes]:
    """Return the files of a model that nobody can object to (and no engine can run)."""
    return {
        "config.json": b'{"architectures": ["LlamaForCausalLM"], "model_type": "llama"}',
        "tokenizer.json": b'{"version": "1.0"}',
        "tokenizer_config.json": b"{}",
        "model.safetensors": good_weights(),
    }


def sharded_model() -> dict[str, bytes]:
    """Return a model in two shards with their index."""
    index = {
        "weight_map": {
            "a": "model-00001-of-00002.safetensors",
            "b": "model-00002-of-00002.safetensors",
        }
    }
    return {
        **{k: v for k, v in good_model().items() if k != "model.safetensors"},
        "model.safetensors.index.json": json.dumps(index).encode(),
        "model-00001-of-00002.safetensors": good_weights("a"),
        "model-00002-of-00002.safetensors": good_weights("b"),
    }


def write(folder: Path, files: dict[str, bytes]) -> Path:
    """Write files into a folder and return it."""
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


# id -> (bytes, words of the sentence)
SAFETENSORS: dict[str, tuple[bytes, str]] = {
    "an empty file": (b"", "too few"),
    "a header longer than the file": (safetensors({}, b"", length=5000), "claims 5000 bytes"),
    "a header that claims 2^63 bytes": (
        safetensors({}, b"", length=2**63),
        "claims 9223372036854775808",
    ),
    "a tensor that claims 2^63 bytes": (
        safetensors({"w": tensor(0, 2**63, [2**61])}, b""),
        "that are none",
    ),
    "a shape whose product is beyond 64 bits": (
        safetensors({"w": tensor(0, 16, [2**40, 2**40])}, bytes(16)),
        "and claims 16",
    ),
    "tensors that overlap": (
        safetensors({"a": tensor(0, 16), "b": tensor(8, 24)}, bytes(24)),
        "overlaps",
    ),
    "a hole between tensors": (
        safetensors({"a": tensor(0, 8), "b": tensor(16, 24)}, bytes(24)),
        "hole",
    ),
    "bytes after the last tensor": (
        safetensors({"a": tensor(0, 8)}, bytes(24)),
        "belong to no tensor",
    ),
    "a tensor that ends after the file": (
        safetensors({"a": tensor(0, 32)}, bytes(16)),
        "ends at byte 32",
    ),
    "offsets the wrong way round": (
        safetensors({"a": tensor(16, 0, [4])}, bytes(16)),
        "claims -16",
    ),
    "a negative offset": (safetensors({"a": tensor(-8, 8, [4])}, bytes(8)), "that are none"),
    "a shape that does not fill its bytes": (
        safetensors({"a": tensor(0, 16, [5])}, bytes(16)),
        "needs 20",
    ),
    "a shape of booleans": (
        safetensors({"a": tensor(0, 4, [True])}, bytes(4)),
        "shape that is none",
    ),
    "a type that nobody knows": (
        safetensors({"a": tensor(0, 16, dtype="F99")}, bytes(16)),
        "unknown type",
    ),
    "a tensor named twice": (
        safetensors(
            b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},'
            b'"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}',
            bytes(8),
        ),
        "twice",
    ),
    "a header that is not UTF-8": (safetensors(b'{"\xff": 1}', b""), "not UTF-8"),
    "a header that is not JSON": (safetensors(b"{not json", b""), "not JSON"),
    "a header nested beyond reason": (safetensors(b"[" * 200_000, b""), "not JSON"),
    "a header with a number of 5,000 digits": (
        safetensors(b'{"a": ' + b"9" * 5000 + b"}", b""),
        "not JSON",
    ),
    "a header that is a list": (safetensors(b"[]", b""), "not a JSON object"),
    "metadata that is no table": (safetensors({"__metadata__": [1]}, b""), "__metadata__"),
    "an entry without a shape": (safetensors({"a": {"dtype": "F32"}}, b""), "lacks"),
}

NAMES = {
    "a parent folder": "../config.json",
    "a parent folder inside": "a/../../evil.safetensors",
    "an absolute name": "/etc/evil.safetensors",
    "a Windows drive": "C:evil.safetensors",
    "a backslash": "..\\evil.safetensors",
    "a line break": "evil\n.safetensors",
    "an empty part": "a//evil.safetensors",
}
