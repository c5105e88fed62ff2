"""How long a text teacher and student both take: what they train on and are measured by. Pure.

A student may know fewer positions than its teacher, and cannot be asked for those beyond. What a
spec asks for at its default it has from the API server, which writes defaults out: that asks for
nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from kubequant.api.enums import Measurement
from kubequant_worker.errors import BadRequestError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kubequant.api.base import Model
    from kubequant.api.spec import QuantizationJobSpec

# What a model takes whose config states no length, since its positions need no table.
ENDLESS: Final = 1 << 20


def common_context(spec: QuantizationJobSpec, *, teacher: int, student: int) -> int:
    """Return the context, in tokens, that both models have; `teacher` and `student` are their own.

    Raises:
        BadRequestError: The spec asks for more, and only one of them could give it.
    """
    least = min(teacher, student)
    if teacher == student:
        return least
    for field, asked in _asked(spec):
        if asked > least:
            raise BadRequestError(
                f"{field}: {asked} tokens are more than both models take: the teacher's context "
                f"{_told(teacher)}, and the student's {_told(student)}",
                advice=f"set {field} to {least} or less, or remove it, which takes that much",
            )
    return least


def _asked(spec: QuantizationJobSpec) -> Iterator[tuple[str, int]]:
    """Yield the fields that ask for a length by themselves, and which."""
    texts, measured = spec.calibration, spec.evaluation.perplexity
    if texts.sequence_length != _default(texts, "sequence_length"):
        yield "spec.calibration.sequenceLength", texts.sequence_length
    skipped = Measurement.PERPLEXITY in spec.evaluation.skip
    if not skipped and measured.context_length != _default(measured, "context_length"):
        yield "spec.evaluation.perplexity.contextLength", measured.context_length


def _default(model: Model, name: str) -> object:
    return type(model).model_fields[name].default


def context_note(*, teacher: int, student: int) -> str:
    """Return a sentence on the context that both models have, "" where each has it itself."""
    if teacher == student:
        return ""
    return (
        f"The teacher's context {_told(teacher)} and the student's {_told(student)}: texts of at "
        f"most {min(teacher, student)} are trained on and measured."
    )


def _told(context: int) -> str:
    return "has no stated end" if context == ENDLESS else f"has {context} tokens"
