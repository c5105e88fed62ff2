"""Reading a document, and a sentence with the field's path for each thing wrong with it.

No sentence repeats what could be a secret: values of environment variables, of unknown fields, of
references to Secrets, and what an address carries before its '@' or after its '?'.
"""

from __future__ import annotations

import json
import re
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from enum import Enum
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    Final,
    Literal,
    TypeVar,
    Union,
    get_args,
    get_origin,
)

from pydantic import BaseModel, ValidationError

from kubequant.api.base import LOCAL

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

ModelT = TypeVar("ModelT", bound=BaseModel)
_Loc = tuple[int | str, ...]

_LONGEST_ECHO: Final = 80
_SECRET_PARTS: Final = frozenset({"env", "secretRef", "annotations"})
_TOKEN: Final = re.compile(r"\b(hf_|ghp_|sk-|AKIA|ASIA)[-_A-Za-z0-9]{8,}")
_MOST_PROBLEMS: Final = 50


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong: the field's path ("spec.gguf.types[1]") and a sentence about it."""

    path: str
    message: str

    def __str__(self) -> str:
        """Return path and sentence on one line."""
        return f"{self.path}: {self.message}" if self.path else self.message


class InvalidInputError(ValueError):
    """A document is not what the API describes; `problems` says in how many ways."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        """Keep the problems; the text has one per line."""
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


def parse(model: type[ModelT], data: object, *, local: bool = False, at: str = "") -> ModelT:
    """Read a JSON value (dicts and lists) as `model`, by JSON names only.

    `local` permits what only a run on this machine can reach; `at` is the path of `data` in its
    document.

    Raises:
        InvalidInputError: with a sentence for each problem.
    """
    context = dict(LOCAL) if local else None
    try:
        return model.model_validate(data, context=context, by_alias=True, by_name=False)
    except ValidationError as error:
        raise InvalidInputError(problems_of(error, model, at=at)) from None


def parse_json(
    model: type[ModelT], text: str | bytes, *, local: bool = False, tolerant: bool = False
) -> ModelT:
    """As `parse`, from JSON text; `tolerant` passes over fields that a newer version may write.

    Raises:
        InvalidInputError: with a sentence for each problem.
    """
    context = dict(LOCAL) if local else None
    try:
        return model.model_validate_json(
            text,
            context=context,
            by_alias=True,
            by_name=False,
            extra="ignore" if tolerant else None,
        )
    except ValidationError as error:
        raise InvalidInputError(problems_of(error, model)) from None


def problems_of(
    error: ValidationError, model: type[BaseModel], *, at: str = ""
) -> tuple[Problem, ...]:
    """Translate pydantic's errors, which speak of types, into sentences, which speak of fields."""
    found: list[Problem] = []
    everything = error.errors(include_url=False)
    for details in everything[:_MOST_PROBLEMS]:
        loc: _Loc = details["loc"]
        if details["type"] == "too_short" and _has_inner(everything, loc):
            # pydantic counts only the items that are right; what is wrong with the others is said.
            continue
        context: Mapping[str, Any] = details.get("ctx", {})
        path = path_of(loc, at=at)
        if details["type"] == "rules":
            found += [
                Problem(f"{path}.{field}" if field and path else field or path, message)
                for field, message in context["broken"]
            ]
            continue
        trouble = _Trouble(context, details.get("input"), model, loc)
        sentence = _SENTENCES.get(details["type"], lambda _, own=details["msg"]: own)
        found.append(Problem(path, sentence(trouble)))
    return tuple(found)


def _has_inner(everything: Sequence[ErrorDetails], loc: _Loc) -> bool:
    return any(len(e["loc"]) > len(loc) and e["loc"][: len(loc)] == loc for e in everything)


def path_of(loc: Sequence[int | str], *, at: str = "") -> str:
    """Return a location as a path: ("gguf", "types", 1) at "spec" is "spec.gguf.types[1]"."""
    path = at
    for part in loc:
        if isinstance(part, int):
            path += f"[{part}]"
        elif part != "[key]":
            plain = part.replace("_", "").isalnum()
            step = part if plain else f"[{json.dumps(part[:_LONGEST_ECHO], ensure_ascii=False)}]"
            path += f".{step}" if path and plain else step
    return path


@dataclass(frozen=True, slots=True)
class _Trouble:
    """One of pydantic's errors, with what a sentence about it needs."""

    context: Mapping[str, Any]
    value: object
    model: type[BaseModel]
    loc: _Loc

    @property
    def got(self) -> str:
        return echo(self.value, self.loc)


def _too_short(trouble: _Trouble) -> str:
    least = trouble.context["min_length"]
    return "must not be empty" if least == 1 else f"must be at least {least} characters long"


def _items(count: int) -> str:
    return f"{count} item" if count == 1 else f"{count} items"


def echo(value: object, loc: Sequence[int | str]) -> str:
    """Return ", not <value>" for a value that may be shown, else nothing.

    Only scalars are shown, cut to a line's length, and nothing that could be a secret.
    """
    if _may_be_secret(loc):
        return ""
    if isinstance(value, str):
        shown = _TOKEN.sub(r"\1…", value)
        if "://" in shown:
            scheme, _, rest = shown.partition("://")
            rest = rest.partition("?")[0]
            shown = f"{scheme}://{'…@' if '@' in rest else ''}{rest.rpartition('@')[2]}"
        if len(shown) > _LONGEST_ECHO:
            shown = shown[:_LONGEST_ECHO] + "…"
        return f", not {json.dumps(shown, ensure_ascii=False)}"
    if value is None or isinstance(value, bool | int | float):
        return f", not {json.dumps(value)}"[:_LONGEST_ECHO]
    if isinstance(value, Sequence):
        return ", not a list"
    if isinstance(value, Mapping):
        return ", not an object"
    return ""


def _may_be_secret(loc: Sequence[int | str]) -> bool:
    return any(part in _SECRET_PARTS for part in loc)


def _quote_hint(value: object, loc: _Loc) -> str:
    if isinstance(value, int | float) and not _may_be_secret(loc):
        text = json.dumps(value)
        return f'; write it in quotes: "{text}"'
    return echo(value, loc)


def _missing(model: type[BaseModel], loc: _Loc) -> str:
    parent = _model_at(model, loc[:-1])
    if parent is not None:
        for field in parent.model_fields.values():
            if loc[-1] == field.alias and field.description:
                return f"is required: {_first_words(field.description)}"
    return "is required"


def _first_words(description: str) -> str:
    line = " ".join(description.split())
    return line[0].lower() + line[1:].rstrip(".") if line[1:2].islower() else line.rstrip(".")


def _unknown_field(model: type[BaseModel], loc: _Loc) -> str:
    parent = _model_at(model, loc[:-1])
    names = [] if parent is None else [f.alias or name for name, f in parent.model_fields.items()]
    return f"is not a field{_did_you_mean(str(loc[-1]), names)} (allowed: {', '.join(names)})"


def _not_one_of(trouble: _Trouble) -> str:
    choices = _choices(trouble.model, trouble.loc)
    listed = ", ".join(json.dumps(choice) if choice == "" else str(choice) for choice in choices)
    hint = _did_you_mean(
        trouble.value, [str(choice) for choice in choices if isinstance(choice, str)]
    )
    wanted = "must be one of " if len(choices) > 1 else "must be "
    return f"{wanted}{listed}{trouble.got}{hint}"


def _did_you_mean(value: object, names: Sequence[str]) -> str:
    if not isinstance(value, str):
        return ""
    lowered = {name.lower().replace("_", ""): name for name in names}
    near = get_close_matches(value.lower().replace("_", "")[:64], lowered, n=1, cutoff=0.6)
    return f"; did you mean {lowered[near[0]]}?" if near else ""


def _choices(model: type[BaseModel], loc: _Loc) -> list[Any]:
    kind = _type_at(model, loc)
    if isinstance(kind, type) and issubclass(kind, Enum):
        return [member.value for member in kind]
    return list(get_args(kind)) if get_origin(kind) is Literal else []


def _model_at(model: type[BaseModel], loc: _Loc) -> type[BaseModel] | None:
    kind = _type_at(model, loc)
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def _type_at(model: type[BaseModel], loc: _Loc) -> Any:
    """Return the type at a location, without Annotated and None; None where there is none."""
    kind: Any = model
    for part in loc:
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            fields = kind.model_fields
            kind = next((f.annotation for n, f in fields.items() if part in (f.alias, n)), None)
        elif get_origin(kind) is tuple:
            kind = get_args(kind)[0]
        elif get_origin(kind) is dict:
            kind = get_args(kind)[0 if loc[-1] == "[key]" else 1]
        kind = _bare(kind)
    return kind


def _bare(kind: Any) -> Any:
    while True:
        if get_origin(kind) is Annotated:
            kind = get_args(kind)[0]
        elif get_origin(kind) in {Union, types.UnionType}:
            kind = next(arg for arg in get_args(kind) if arg is not type(None))
        else:
            return kind


# Every type of error that our models can raise; a test walks all cases, so that none is left to
# pydantic's own words.
_SENTENCES: Final[dict[str, Callable[[_Trouble], str]]] = {
    "missing": lambda t: _missing(t.model, t.loc),
    "extra_forbidden": lambda t: _unknown_field(t.model, t.loc),
    "invalid_key": lambda t: _unknown_field(t.model, t.loc),
    "enum": _not_one_of,
    "literal_error": _not_one_of,
    "rule": lambda t: f"{t.context['sentence']}{t.got}",
    "int_type": lambda t: f"must be a whole number{t.got}",
    "int_from_float": lambda t: f"must be a whole number{t.got}",
    "bool_type": lambda t: f"must be true or false{t.got}",
    "string_type": lambda t: f"must be a string{_quote_hint(t.value, t.loc)}",
    "string_unicode": lambda _: "must be valid Unicode",
    "tuple_type": lambda t: f"must be a list{t.got}",
    "dict_type": lambda t: f"must be an object{t.got}",
    "model_type": lambda t: f"must be an object{t.got}",
    "model_attributes_type": lambda t: f"must be an object{t.got}",
    "greater_than_equal": lambda t: f"must be at least {t.context['ge']}{t.got}",
    "less_than_equal": lambda t: f"must be at most {t.context['le']}{t.got}",
    "string_too_short": _too_short,
    "string_too_long": lambda t: f"must be at most {t.context['max_length']} characters long",
    "too_short": lambda t: f"must have at least {_items(t.context['min_length'])}",
    "too_long": lambda t: f"must have at most {_items(t.context['max_length'])}",
    "json_invalid": lambda t: f"is not JSON: {t.context['error']}",
}
