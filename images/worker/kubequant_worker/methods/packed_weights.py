"""Checkpoints in the gptq and the awq format, unpacked to plain weights by the formats' own rules.

For an image whose libraries write these formats and cannot compute with them: their kernels are for
GPUs, and for a torch of years ago. It reads what any reader would, the files and config.json, and
shares no code with what wrote them. torch is imported here, so only children import this module.

gptq (https://github.com/AutoGPTQ/AutoGPTQ, `qlinear_cuda`): the integers of a column are one stream
of bits, 32 of them in as many words as they have bits; zero points are stored less one. awq GEMM
(https://github.com/casper-hansen/AutoAWQ, `gemm`, `gemv`): eight integers of a row in a word, their
order changed; GEMV: in their own order, by rows of outputs, what belongs to groups padded.
"""

from __future__ import annotations

import json
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Final

import torch
from safetensors import safe_open

from kubequant.api.outcome import FailureReason
from kubequant_worker.errors import BadRequestError
from kubequant_worker.methods.plain_checkpoint import begin, write

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

_WORD: Final = 32
# Where the integer of each column of eight stands in its word.
_GEMM_ORDER: Final = (0, 4, 1, 5, 2, 6, 3, 7)
_GEMV_ORDER: Final = (0, 1, 2, 3, 4, 5, 6, 7)
_PARTS: Final = ("qweight", "qzeros", "scales", "g_idx")
Tensors = dict[str, torch.Tensor]


def unpacked(source: Path, folder: Path) -> Path:
    """Return a folder with the checkpoint in `source`, its weights plain.

    That is `source` where nothing is packed, else `folder`, which is made anew.

    Raises:
        BadRequestError: The files are not what config.json says.
    """
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    settings = config.pop("quantization_config", None)
    if settings is None:
        return source
    plain = _plain_weights(settings)
    begin(source, folder, config)
    with ExitStack() as stack:
        files = [
            stack.enter_context(safe_open(path, framework="pt"))
            for path in sorted(source.glob("*.safetensors"))
        ]
        where = {name: file for file in files for name in file.keys()}  # noqa: SIM118 - no mapping
        _require_what_config_says(settings, where)
        write(_tensors(where, plain), folder)
    return folder


def _plain_weights(settings: Mapping[str, Any]) -> Callable[[Tensors], torch.Tensor]:
    """Return what makes a weight, shape (outputs, inputs), of its packed parts."""
    method, bits, size = settings["quant_method"], settings["bits"], settings["group_size"]
    if method == "gptq":
        return lambda parts: gptq_weight(parts, bits)
    if method == "awq" and settings["version"] == "gemv":
        return lambda parts: gemv_weight(parts, size)
    if method == "awq":
        return gemm_weight
    raise BadRequestError(
        f"config.json: quant_method is {method}, and only gptq and awq are unpacked here",
        reason=FailureReason.VERIFICATION_FAILED,
    )


def gptq_weight(parts: Tensors, bits: int) -> torch.Tensor:
    """Return the weight of gptq's parts, shape (outputs, inputs), in the type of its scales."""
    integers = _stream(parts["qweight"], bits)
    zeros = _stream(parts["qzeros"].t().contiguous(), bits).t() + 1
    group = parts["g_idx"].long()
    plain = parts["scales"].float()[group] * (integers - zeros[group])
    return plain.t().contiguous().to(parts["scales"].dtype)


def gemm_weight(parts: Tensors) -> torch.Tensor:
    """Return the weight of awq's GEMM layout; see `gptq_weight`."""
    integers = _words(parts["qweight"], _GEMM_ORDER)
    zeros, scales = _words(parts["qzeros"], _GEMM_ORDER), parts["scales"].float()
    size = len(integers) // len(scales)
    grouped = integers.reshape(len(scales), size, -1)
    plain = (grouped - zeros[:, None]) * scales[:, None]
    return plain.reshape(integers.shape).t().contiguous().to(parts["scales"].dtype)


def gemv_weight(parts: Tensors, size: int) -> torch.Tensor:
    """Return the weight of awq's GEMV layout, with groups of `size`; see `gptq_weight`."""
    integers = _words(parts["qweight"], _GEMV_ORDER)
    groups = integers.shape[1] // size
    zeros = _words(parts["qzeros"], _GEMV_ORDER)[:, :groups]
    scales = parts["scales"].float()[:, :groups]
    grouped = integers.reshape(len(integers), groups, size)
    plain = (grouped - zeros[..., None]) * scales[..., None]
    return plain.reshape(integers.shape).contiguous().to(parts["scales"].dtype)


def _stream(words: torch.Tensor, bits: int) -> torch.Tensor:
    """Return the integers of each column's stream of bits: 32 rows of every `bits` rows of words.

    A shift to the right brings in the sign, which the mask takes away again.
    """
    grouped = words.reshape(-1, bits, words.shape[1])
    found = []
    for number in range(_WORD):
        word, offset = divmod(bits * number, _WORD)
        integer = grouped[:, word] >> offset
        if offset + bits > _WORD:
            low = integer & ((1 << (_WORD - offset)) - 1)
            integer = low | (grouped[:, word + 1] << (_WORD - offset))
        found.append(integer & ((1 << bits) - 1))
    return torch.stack(found, 1).reshape(-1, words.shape[1])


def _words(words: torch.Tensor, order: tuple[int, ...]) -> torch.Tensor:
    """Return the eight integers of each word, side by side."""
    nibbles = torch.stack([(words >> (4 * place)) & 15 for place in order], -1)
    return nibbles.reshape(len(words), -1)


def _require_what_config_says(settings: Mapping[str, Any], names: Mapping[str, Any]) -> None:
    """Raise where a reader would look for a packed weight and find a plain one, or the reverse."""
    packed = {name.removesuffix(".qweight") for name in names if name.endswith(".qweight")}
    kinds = {_kind(name) for name in packed}
    plain = {name.removesuffix(".weight") for name in names if name.endswith(".weight")}
    left = settings.get("modules_to_not_convert") or ()
    wrong = [name for name in packed if any(word in name for word in left)]
    wrong += [
        name for name in plain if _kind(name) in kinds and not any(word in name for word in left)
    ]
    if not packed or wrong:
        which = f"{min(wrong)} and its files differ about that" if wrong else "nothing is"
        raise BadRequestError(
            f"config.json says which modules are packed: {which}",
            reason=FailureReason.VERIFICATION_FAILED,
        )


def _kind(module: str) -> str:
    """Return what a module is called in its layer: "mlp.up_proj" of "layers.3.mlp.up_proj"."""
    parts = module.split(".")
    numbers = [place for place, part in enumerate(parts) if part.isdigit()]
    return ".".join(parts[numbers[0] + 1 :]) if numbers else module


def _tensors(
    where: Mapping[str, Any], plain: Callable[[Tensors], torch.Tensor]
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield all tensors of the plain checkpoint, one module's parts in memory at a time."""
    for name, file in where.items():
        module, _, part = name.rpartition(".")
        if part == "qweight":
            names = {part: f"{module}.{part}" for part in _PARTS}
            parts = {
                part: where[full].get_tensor(full) for part, full in names.items() if full in where
            }
            yield f"{module}.weight", plain(parts)
        elif part not in _PARTS:
            yield name, file.get_tensor(name)
