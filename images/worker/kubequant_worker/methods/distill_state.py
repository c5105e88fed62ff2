"""A training's state as one safetensors file: weights, optimizer, random numbers and the curve.

Nothing is pickled: what is no tensor is JSON in the file's metadata. torch is imported here, so
only children import this module.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from kubequant_worker.methods.distill_identity import IDENTITY
from kubequant_worker.methods.distill_schedule import Curve

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_STATE: Final = "state"
# AdamW's two means of each parameter, by its own names.
_MOMENTS: Final = ("exp_avg", "exp_avg_sq")


@dataclass(slots=True)
class Progress:
    """How far a training is: steps done, where earlier attempts were gone on from, the curve."""

    step: int
    curve: Curve
    resumed_at: list[int] = field(default_factory=list)


def random_state(device: torch.device) -> dict[str, torch.Tensor]:
    """Return the state of torch's random numbers, of the CPU and of the device."""
    found = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        found["cuda"] = torch.cuda.get_rng_state(device)
    return found


def save_state(
    path: Path,
    *,
    identity: str,
    progress: Progress,
    model: Any,
    optimizer: torch.optim.Optimizer,
    random: Mapping[str, torch.Tensor],
    scaler: Mapping[str, Any] | None,
) -> None:
    """Write the state to `path` in one step: a file of that name is whole."""
    tensors = {f"random/{name}": state.cpu() for name, state in random.items()}
    updates = 0.0
    for name, parameter in model.named_parameters():
        tensors[f"weight/{name}"] = _plain(parameter)
        state = optimizer.state.get(parameter)
        if state:
            updates = float(state["step"])
            tensors |= {f"{moment}/{name}": _plain(state[moment]) for moment in _MOMENTS}
    told = {
        "step": progress.step,
        "updates": updates,
        "resumedAt": progress.resumed_at,
        "curve": progress.curve.to_json(),
        "scaler": dict(scaler) if scaler else None,
    }
    part = path.with_suffix(".part")
    save_file(tensors, part, metadata={IDENTITY: identity, _STATE: json.dumps(told)})
    part.rename(path)


def load_state(
    path: Path, *, model: Any, optimizer: torch.optim.Optimizer, device: torch.device, steps: int
) -> tuple[Progress, Mapping[str, Any] | None]:
    """Put a state back where it was; return the progress and the scaler's state.

    Raises:
        ValueError: The file is not of this model.
    """
    with safe_open(path, framework="pt") as file:
        told = json.loads(file.metadata()[_STATE])
        there = set(file.keys())
        for name, parameter in model.named_parameters():
            if f"weight/{name}" not in there:
                raise ValueError(f"the checkpoint lacks {name}")
            with torch.no_grad():
                parameter.copy_(_shaped(file, f"weight/{name}", parameter))
            if f"{_MOMENTS[0]}/{name}" in there:
                optimizer.state[parameter] = {
                    "step": torch.tensor(told["updates"], dtype=torch.float32),
                    **{
                        moment: _shaped(file, f"{moment}/{name}", parameter).to(parameter.device)
                        for moment in _MOMENTS
                    },
                }
        torch.set_rng_state(file.get_tensor("random/cpu"))
        if device.type == "cuda" and "random/cuda" in there:
            torch.cuda.set_rng_state(file.get_tensor("random/cuda"), device)
    step = int(told["step"])
    resumed = [*(int(one) for one in told["resumedAt"]), step]
    return Progress(step, Curve.from_json(steps, told["curve"]), resumed), told["scaler"]


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().cpu().contiguous()


def _shaped(file: Any, name: str, parameter: torch.Tensor) -> torch.Tensor:
    tensor: torch.Tensor = file.get_tensor(name)
    if tensor.shape != parameter.shape:
        raise ValueError(f"the checkpoint's {name} has the shape {list(tensor.shape)}")
    return tensor
