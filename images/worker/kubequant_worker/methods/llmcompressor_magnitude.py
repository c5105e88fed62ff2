"""Pruning by magnitude as a modifier of llmcompressor: in each matrix the smallest weights go.

llmcompressor's own prunes while a model trains. Imported by llmcompressor's child only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from compressed_tensors.offload import align_module_device, update_offload_parameter
from compressed_tensors.utils import match_named_modules
from llmcompressor.modifiers.modifier import Modifier

if TYPE_CHECKING:
    from llmcompressor.core import Event, State


class MagnitudeModifier(Modifier):  # type: ignore[misc] # untyped, like all of llmcompressor
    """Sets a share of each target's weights to zero, or so many of so many ("2:4")."""

    targets: list[str]
    sparsity: float
    mask_structure: str

    def on_initialize(self, state: State, **kwargs: Any) -> bool:
        """Accept any model: targets were chosen before."""
        del state, kwargs
        return True

    def on_sequential_epoch_end(self, state: State, event: Event, **kwargs: Any) -> None:
        """Prune every target; without data there is but one epoch."""
        del event, kwargs
        for _, module in match_named_modules(state.model, self.targets):
            with torch.no_grad(), align_module_device(module):
                left = without_smallest(module.weight, self.sparsity, self.mask_structure)
            update_offload_parameter(module, "weight", left)

    def on_finalize(self, state: State, **kwargs: Any) -> bool:
        """Leave nothing behind."""
        del state, kwargs
        return True


def without_smallest(weight: torch.Tensor, sparsity: float, structure: str) -> torch.Tensor:
    """Return a matrix without its smallest weights: as many as asked, also where some are equal."""
    dropped, of = (int(part) for part in structure.split(":"))
    rows = weight.reshape(-1, of) if of else weight.reshape(1, -1)
    count = dropped or round(sparsity * rows.shape[1])
    smallest = rows.abs().topk(count, dim=1, largest=False, sorted=False).indices
    return rows.scatter(1, smallest, 0).reshape(weight.shape)
