"""Which modules gptqmodel quantizes of those that a spec asks for, and the sentences where not.

gptqmodel knows the decoder's layers of each architecture, and in them the modules that it
quantizes. A spec says which modules stay as they are, by the words of compressed-tensors, so that
`ignore` means the same to every engine.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from kubequant.api.outcome import FailureReason
from kubequant_worker.errors import BadRequestError
from kubequant_worker.methods.ignored import (
    ignored,
    require_whole_groups,
    unused,
    words_of_nothing,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

_SHOWN: Final = 4


@dataclass(frozen=True, slots=True)
class Choice:
    """The modules of a model by name: what is quantized, and what of the layers stays as it is.

    `unreached` are those that nobody ignored and gptqmodel leaves as they are.
    """

    quantized: tuple[str, ...]
    ignored: tuple[str, ...]
    unreached: tuple[str, ...]
    unused: tuple[str, ...]

    def notes(self) -> list[str]:
        """Return sentences on what is quantized and what is not."""
        stay = len(self.ignored) + len(self.unreached)
        count = len(self.quantized)
        notes = [f"{count} of {count + stay} linear modules are quantized"]
        if self.unreached:
            notes.append(
                f"gptqmodel leaves as they are: {shown(self.unreached)}, which are no part of what "
                "it quantizes of this architecture"
            )
        return [*notes, *unused(self.unused)]


def choose(
    kinds: Mapping[str, Collection[str]], reached: Collection[str], ignore: Sequence[str]
) -> Choice:
    """Return the choice among a model's linear modules.

    `kinds` holds each module's name and the names of its classes; `reached` are those that
    gptqmodel can quantize.
    """
    left = ignored(kinds, ignore, kinds)
    return Choice(
        quantized=tuple(name for name in kinds if name in reached and name not in left),
        ignored=tuple(name for name in kinds if name in left),
        unreached=tuple(name for name in kinds if name not in reached and name not in left),
        unused=tuple(words_of_nothing(kinds, ignore, kinds)),
    )


def require_possible(
    choice: Choice, *, head: str, widths: Mapping[str, int], group_size: int, architecture: str
) -> None:
    """Raise BadRequestError where gptqmodel cannot do what is asked for with this model.

    `head` is the name of the output head; `widths` are the columns of each module's weight.
    """
    if head in choice.unreached:
        raise BadRequestError(
            f"ignore: engine GPTQModel does not quantize the output head, {head}, which servers "
            "could not load; add it to ignore",
            reason=FailureReason.UNSUPPORTED_MODEL,
        )
    if not choice.quantized:
        raise BadRequestError(
            f"spec.method: in {architecture} there is nothing for gptqmodel to quantize: of its "
            f"{len(choice.ignored) + len(choice.unreached)} linear modules all are ignored",
            reason=FailureReason.UNSUPPORTED_MODEL,
            advice="ignore fewer, or, for a model whose layers are not torch.nn.Linear (GPT-2 is "
            "one), take another method, such as GGUF or BitsAndBytes",
        )
    require_whole_groups({name: widths[name] for name in choice.quantized}, group_size)


def without(choice: Choice, reached: Collection[str]) -> dict[str, dict[str, Any]] | None:
    """Return gptqmodel's `dynamic` that leaves out what is ignored: exact names, none by chance."""
    names = [name for name in choice.ignored if name in reached]
    return {f"-:^{re.escape(name)}$": {} for name in names} or None


def shown(names: Sequence[str]) -> str:
    """Return some names and how many there are besides."""
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
