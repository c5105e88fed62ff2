"""Method Prune: weights set to zero, any of them or two of every four.

SparseGPT and Wanda are llmcompressor's, Magnitude is torch's own; all three run in the child that
holds llmcompressor, which loads, spills and saves for them. What came out is counted in the files.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from kubequant.api.params import PruneParameters
from kubequant_worker.methods.llmcompressor import LLMCompressorQuantizer, Modifier, Recipe
from kubequant_worker.methods.sparsity import Sparsity, require_sparsity, saved_matrices

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kubequant.api.spec import QuantizationJobSpec
    from kubequant_worker.datasets import TextSet
    from kubequant_worker.evaluation.meter import Meter
    from kubequant_worker.methods import ProducedVariant, Workspace
    from kubequant_worker.methods.child import Child

# What is left keeps the type that it had.
BITS: Final = 16
_MODIFIERS: Final = {
    "SparseGPT": "SparseGPTModifier",
    "Wanda": "WandaPruningModifier",
    "Magnitude": "MagnitudeModifier",
}
# llmcompressor's words; "0:0" is any weight.
_STRUCTURES: Final = {"Unstructured": "0:0", "TwoOfFour": "2:4"}
DENSE: Final = (
    "the files are no smaller: zeros are stored like other weights, since compressed-tensors has "
    "no format left for them that could be read again (its sparse ones ended with version 0.14); "
    "quantize the pruned model, or serve two of four by a runtime that skips zeros"
)


class Pruner(LLMCompressorQuantizer):
    """What the algorithms share."""

    def __init__(self, workspace: Workspace) -> None:
        """Prepare to work in `workspace`; starts nothing."""
        super().__init__(workspace)
        self._sparsity: Sparsity | None = None

    @classmethod
    def calibrates(cls, spec: QuantizationJobSpec) -> bool:
        """Return whether weights are chosen by what goes through them."""
        return asked_of(spec).algorithm != "Magnitude"

    @classmethod
    def bits(cls, spec: QuantizationJobSpec) -> int:
        """Return how many bits a weight has: as many as before."""
        del spec
        return BITS

    @classmethod
    def recipe(cls, spec: QuantizationJobSpec) -> Recipe:
        """Return the recipe; the child finds the modules that `ignore` leaves."""
        asked = asked_of(spec)
        arguments = {
            "sparsity": float(asked.sparsity),
            "mask_structure": _STRUCTURES[asked.pattern],
            "ignore": list(asked.ignore),
        }
        return Recipe([Modifier(_MODIFIERS[asked.algorithm], arguments)])

    def produce_with(
        self, child: Child, calibration: TextSet | None, meter: Meter
    ) -> tuple[str, ...]:
        """Write the pruned checkpoint, count its zeros, and return notes."""
        answer, calibrated = self.carried_out("prune", child, calibration, meter)
        asked = asked_of(self._spec)
        matrices = saved_matrices(self._work.artifact, answer["modules"])
        self._sparsity = Sparsity(float(asked.sparsity), matrices)
        told = require_sparsity(self._sparsity, two_of_four=asked.pattern == "TwoOfFour")
        return (*answer["notes"], *told, DENSE, *calibrated)

    def variants(self, calibration: TextSet | None, meter: Meter) -> Iterator[ProducedVariant]:
        """Produce the one variant, with the zeros that its files hold."""
        for one in super().variants(calibration, meter):
            yield replace(one, sparsity=self._sparsity)


class LLMCompressorPrune(Pruner):
    """SparseGPT and Wanda by llmcompressor."""


class TorchPrune(Pruner):
    """Magnitude by torch."""

    LIBRARY = "torch"


def asked_of(spec: QuantizationJobSpec) -> PruneParameters:
    """Return the parameters of a spec."""
    return spec.prune or PruneParameters()
