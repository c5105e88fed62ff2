"""ModelOpt's unified checkpoints, read by the format's own rules: weights plain, inputs rounded.

For measuring where no runtime reads the format: transformers loads such a checkpoint without a
word and takes its numbers for weights. Only the files and config.json are read, and no code is
shared with what wrote them. torch is imported here, so only children import this module.

The rules (https://github.com/NVIDIA/Model-Optimizer, `modelopt/torch/export/quant_utils.py`):
beside `weight` stands `weight_scale`. FP8: E4M3 numbers, one scale. INT8: one scale per row. INT4:
two rows in a byte, the even one in its low half, one scale for each group of a row. `input_scale`
is what an input is rounded by, `pre_quant_scale` what each of its columns is multiplied by before.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import torch
from safetensors import safe_open

from kubequant.api.outcome import FailureReason
from kubequant_worker.errors import BadRequestError
from kubequant_worker.methods.plain_checkpoint import begin, write

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

_FP8: Final = "FP8"
_INT8: Final = "W8A8_SQ_PER_CHANNEL"
_INT4: Final = "W4A16_AWQ"
_PARTS: Final = ("weight_scale", "input_scale", "pre_quant_scale")
_E4M3: Final = torch.float8_e4m3fn
_LARGEST: Final = {_FP8: torch.finfo(_E4M3).max, _INT8: 127.0}
Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class Inputs:
    """What happens to a module's inputs: the scale of each column, then the rounding."""

    algorithm: str
    scale: torch.Tensor | None
    columns: torch.Tensor | None

    def rounded(self, values: torch.Tensor) -> torch.Tensor:
        """Return inputs as the quantized module sees them, in their own type."""
        exact = values.float()
        if self.columns is not None:
            exact = exact * self.columns.to(values.device)
        if self.scale is not None:
            scale, most = self.scale.to(values.device), _LARGEST[self.algorithm]
            exact = (exact / scale).clamp(-most, most)
            whole = exact.to(_E4M3).float() if self.algorithm == _FP8 else exact.round()
            exact = whole * scale
        return exact.to(values.dtype)


@dataclass(frozen=True, slots=True)
class Plain:
    """A checkpoint with plain weights, and what happens to the inputs of its modules by name."""

    folder: Path
    inputs: Mapping[str, Inputs]

    def attach(self, model: torch.nn.Module) -> None:
        """Let the modules of `model`, loaded from the folder, round their inputs."""
        for name, how in self.inputs.items():
            model.get_submodule(name).register_forward_pre_hook(_Rounding(how))


class _Rounding:
    def __init__(self, how: Inputs) -> None:
        self._how = how

    def __call__(self, _: torch.nn.Module, given: tuple[torch.Tensor, ...]) -> tuple[Any, ...]:
        first, *others = given
        return (self._how.rounded(first), *others)


def plain(source: Path, folder: Path, dtype: torch.dtype) -> Plain:
    """Return the checkpoint in `source` with its weights plain, in `dtype`.

    Where nothing is quantized that is `source` itself, else `folder`, which is made anew.

    Raises:
        BadRequestError: The files are not what config.json says.
    """
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    settings = config.pop("quantization_config", None)
    if settings is None:
        return Plain(source, {})
    algorithm = _algorithm(settings)
    begin(source, folder, config)
    where = {name: path for path in sorted(source.glob("*.safetensors")) for name in _names(path)}
    scale = ".weight_scale"
    modules = [name.removesuffix(scale) for name in where if name.endswith(scale)]
    if not modules:
        raise _unreadable("config.json says that modules are quantized, and no file has a scale")
    parts = {module: _parts(module, where) for module in modules}
    write(_tensors(where, parts, algorithm, dtype), folder)
    return Plain(folder, {name: found for name, found in _inputs(parts, algorithm) if found})


def _algorithm(settings: Mapping[str, Any]) -> str:
    found = str(settings.get("quant_algo", ""))
    if settings.get("quant_method") != "modelopt" or found not in {_FP8, _INT8, _INT4}:
        raise _unreadable(
            f"config.json: quant_method {settings.get('quant_method')} with quant_algo "
            f"{found or 'absent'} is no form that is read here"
        )
    return found


def weight(algorithm: str, stored: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Return a plain weight, shape (outputs, inputs), in float32.

    Raises:
        BadRequestError: Type or shape are not those of the format.
    """
    exact = scale.float()
    if algorithm == _FP8 and stored.dtype is _E4M3 and exact.numel() == 1:
        return stored.float() * exact
    if algorithm == _INT8 and stored.dtype is torch.int8 and exact.numel() == len(stored):
        return stored.float() * exact.reshape(-1, 1)
    if algorithm == _INT4 and stored.dtype is torch.uint8 and len(exact) == 2 * len(stored):
        low, high = stored & 0x0F, stored >> 4
        rows = torch.stack([low, high], 1).reshape(2 * len(stored), -1).to(torch.int16)
        signed = torch.where(rows > 7, rows - 16, rows).float()  # noqa: PLR2004 - a half byte's sign
        if signed.shape[1] % exact.shape[1] == 0:
            return signed * exact.repeat_interleave(signed.shape[1] // exact.shape[1], 1)
    raise _unreadable(
        f"a weight of {stored.dtype} {list(stored.shape)} with scales {list(scale.shape)} is not "
        f"how {algorithm} is stored"
    )


def _unreadable(what: str) -> BadRequestError:
    return BadRequestError(
        what,
        reason=FailureReason.VERIFICATION_FAILED,
        advice="report it with the model's architecture, and take another method meanwhile",
    )


def _names(path: Path) -> list[str]:
    with safe_open(path, framework="pt") as file:
        return list(file.keys())


def _tensor(path: Path, name: str) -> torch.Tensor:
    with safe_open(path, framework="pt") as file:
        found: torch.Tensor = file.get_tensor(name)
        return found


def _parts(module: str, where: Mapping[str, Path]) -> Tensors:
    """Return what stands beside a module's weight: small tensors all."""
    named = {part: f"{module}.{part}" for part in _PARTS}
    return {part: _tensor(where[name], name) for part, name in named.items() if name in where}


def _tensors(
    where: Mapping[str, Path], parts: Mapping[str, Tensors], algorithm: str, dtype: torch.dtype
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield all tensors of the plain checkpoint, one at a time in memory."""
    for name, path in where.items():
        module, _, part = name.rpartition(".")
        if part in _PARTS:
            continue
        tensor = _tensor(path, name)
        if part == "weight" and module in parts:
            tensor = weight(algorithm, tensor, parts[module]["weight_scale"])
        yield name, tensor.to(dtype) if tensor.is_floating_point() else tensor


def _inputs(parts: Mapping[str, Tensors], algorithm: str) -> Iterable[tuple[str, Inputs | None]]:
    for module, found in sorted(parts.items()):
        scale, columns = found.get("input_scale"), found.get("pre_quant_scale")
        some = scale is not None or columns is not None
        yield (
            module,
            (
                Inputs(
                    algorithm,
                    None if scale is None else scale.float(),
                    None if columns is None else columns.float(),
                )
                if some
                else None
            ),
        )
