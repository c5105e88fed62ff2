"""Which modules of a loaded model are pruned, and the sentences where they cannot be.

Imported by children only, since the model is torch's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kubequant.api.outcome import FailureReason
from kubequant_worker.errors import BadRequestError
from kubequant_worker.methods.ignored import (
    classes_of,
    linear_modules,
    unused,
    words_of_nothing,
)
from kubequant_worker.methods.sparsity import FOUR

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, slots=True)
class Chosen:
    """The names of the modules to prune, and notes on what stays as it is."""

    names: tuple[str, ...]
    notes: tuple[str, ...]


def choose(model: Any, ignore: Sequence[str], *, two_of_four: bool) -> Chosen:
    """Return the linear modules that `ignore` leaves.

    Raises:
        BadRequestError: None is left, or one cannot be pruned as asked.
    """
    linear, chosen = linear_modules(model), linear_modules(model, ignore)
    if not chosen:
        what = f"{len(linear)} linear modules, and all are ignored" if linear else "none"
        raise BadRequestError(
            f"in {type(model).__name__} there is nothing to prune: only linear modules are, and "
            f"it has {what}",
            reason=FailureReason.UNSUPPORTED_MODEL,
            advice="ignore fewer modules, or take another model",
        )
    head = model.get_output_embeddings()
    tied = getattr(model.config.get_text_config(), "tie_word_embeddings", False)
    for name, module in chosen.items():
        if tied and module is head:
            raise BadRequestError(
                f"spec.prune.ignore: {name} shares its weights with the token embeddings, which "
                "cannot lose any",
                reason=FailureReason.UNSUPPORTED_MODEL,
                advice=f"name {name} in ignore",
            )
        if two_of_four and module.in_features % FOUR:
            raise BadRequestError(
                f"spec.prune.pattern: TwoOfFour needs rows of whole fours, and those of {name} "
                f"have {module.in_features} weights",
                reason=FailureReason.UNSUPPORTED_MODEL,
                advice="name those modules in ignore, or set pattern: Unstructured",
            )
    notes = [f"{len(chosen)} of {len(linear)} linear modules are pruned"]
    classes = classes_of(model)
    notes += unused(words_of_nothing(classes, ignore, classes))
    return Chosen(tuple(chosen), tuple(notes))
