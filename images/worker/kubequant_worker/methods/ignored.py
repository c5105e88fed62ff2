"""Which modules a spec's `ignore` names, which are left to quantize, and why those cannot be.

The same words mean the same for every engine. A word is a module's whole name, the name of a class
that it is of, or "re:" and a regular expression that its name begins with, as compressed-tensors
matches them. No engine and no torch is imported here: models are asked for their modules' names,
classes and widths alone.
"""

from __future__ import annotations

import re
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from kubequant.api.outcome import FailureReason
from kubequant.api.params import EXPRESSION
from kubequant_worker.errors import BadRequestError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

_NO_CLASSES: Final[Mapping[str, Collection[str]]] = MappingProxyType({})
_LINEAR: Final = "Linear"
GROUP_SIZES: Final = (128, 64, 32, -1)
"""The widths of groups that a spec may ask for; -1 is a whole row."""


def matches(name: str, word: str, classes: Collection[str] = ()) -> bool:
    """Say whether the module `name`, which is of `classes`, is meant by a word of `ignore`.

    The API lets no word pass that should be a regular expression and is none.
    """
    if not word.startswith(EXPRESSION):
        return name == word or word in classes
    return re.match(word.removeprefix(EXPRESSION), name) is not None


def ignored(
    names: Iterable[str],
    words: Sequence[str],
    classes: Mapping[str, Collection[str]] = _NO_CLASSES,
) -> frozenset[str]:
    """Return those of `names` that `words` mean; `classes` are those of modules, by their names."""
    return frozenset(
        name for name in names if any(matches(name, word, classes.get(name, ())) for word in words)
    )


def words_of_nothing(
    names: Collection[str],
    words: Iterable[str],
    classes: Mapping[str, Collection[str]] = _NO_CLASSES,
) -> list[str]:
    """Return those of `words` that mean none of `names`, sorted."""
    return sorted({word for word in words if not ignored(names, [word], classes)})


def unused(words: Sequence[str]) -> list[str]:
    """Return a note on `words` that mean nothing, where there are any."""
    return [f"ignore: {', '.join(words)} is the name of no module"] if words else []


def classes_of(model: Any) -> dict[str, frozenset[str]]:
    """Return the names of the classes that each module of a torch model is of, by its name."""
    return {
        name: frozenset(kind.__name__ for kind in type(module).__mro__)
        for name, module in model.named_modules()
    }


def linear_modules(model: Any, words: Sequence[str] = ()) -> dict[str, Any]:
    """Return the linear modules of a torch model by name, but for those that `words` mean."""
    classes = classes_of(model)
    left = [name for name, kinds in classes.items() if _LINEAR in kinds]
    out = ignored(left, words, classes)
    modules = dict(model.named_modules())
    return {name: modules[name] for name in left if name not in out}


def require_targets(model: Any, targets: Collection[str], engine: str) -> None:
    """Raise BadRequestError where nothing is left to quantize; engines pass over it in silence."""
    if targets:
        return
    raise BadRequestError(
        f"spec.method: in {type(model).__name__} there is nothing for {engine} to "
        f"quantize: it has {len(linear_modules(model))} linear modules, and all are ignored",
        reason=FailureReason.UNSUPPORTED_MODEL,
        advice="ignore fewer, or, for a model whose layers are not torch.nn.Linear (GPT-2 is "
        "one), take another method, such as GGUF or BitsAndBytes",
    )


def widths_of(modules: Mapping[str, Any]) -> dict[str, int]:
    """Return the columns of each module's weight."""
    return {name: int(module.weight.shape[-1]) for name, module in modules.items()}


def require_whole_groups(
    widths: Mapping[str, int],
    size: int | None,
    what: str = "groupSize:",
    instead: str = "",
    sizes: Sequence[int] = GROUP_SIZES,
) -> None:
    """Raise BadRequestError where a row of a module's weight is not a whole number of groups.

    A `size` that is absent or negative is one group per row. `sizes` are those that the engine
    knows, which the advice chooses from where it is not `instead`.
    """
    if size is None or size < 0:
        return
    uneven = [name for name, width in widths.items() if width % size]
    if uneven:
        fitting = [one for one in sizes if one < 0 or not any(w % one for w in widths.values())]
        groups = f"groupSize to {', '.join(map(str, fitting))}" if fitting else ""
        other = instead or groups
        raise BadRequestError(
            f"{what} {size} does not divide the {widths[uneven[0]]} columns of {uneven[0]} "
            f"({len(uneven)} of {len(widths)} modules are so)",
            reason=FailureReason.UNSUPPORTED_MODEL,
            advice=(f"set {other}, or " if other else "") + "ignore those modules",
        )
