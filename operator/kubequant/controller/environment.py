"""Reads the administrator's settings from KUBEQUANT_OPERATOR_* and says in sentences what is wrong.

Part of the shell: pure code never imports this module.
"""

from __future__ import annotations

import os
import re
from difflib import get_close_matches
from typing import Annotated, Any, Final

from pydantic import BeforeValidator, ValidationError
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict, SettingsError

from kubequant.api.problems import Problem, problems_of
from kubequant.controller.settings import (
    DEFAULT_ANNOTATIONS,
    DEFAULT_LABELS,
    AnnotationKey,
    LabelKey,
    Namespace,
    Settings,
    VariableName,
)

PREFIX: Final = "KUBEQUANT_OPERATOR_"
_NESTED: Final = "__"
_UNDECODED: Final = re.compile('field "([a-z_]+)"')
_PLAIN: Final = {
    "Input should be a valid boolean": "must be true or false",
    "Input should be a valid integer": "must be a whole number",
}
"""Errors of text that is read as something else, which documents in JSON never have."""


class InvalidSettingsError(ValueError):
    """The environment does not make settings; the text has one sentence per line."""


def _split(value: Any) -> Any:
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    return value


_CommaSeparated = BeforeValidator(_split)


class _Environment(Settings, BaseSettings):
    """The settings as variables: lists with commas, objects as JSON or by `__`.

    A variable that is set and empty counts as unset, as templates of manifests leave many; but a
    list that is set and empty is an empty list: see `_empty_lists`.
    """

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_nested_delimiter=_NESTED, env_ignore_empty=True
    )

    namespaces: Annotated[tuple[Namespace, ...], NoDecode, _CommaSeparated] = ()
    allowed_service_accounts: Annotated[tuple[str, ...], NoDecode, _CommaSeparated] = ()
    allowed_env: Annotated[tuple[VariableName, ...], NoDecode, _CommaSeparated] = ()
    allowed_annotations: Annotated[tuple[AnnotationKey, ...], NoDecode, _CommaSeparated] = (
        DEFAULT_ANNOTATIONS
    )
    allowed_labels: Annotated[tuple[LabelKey, ...], NoDecode, _CommaSeparated] = DEFAULT_LABELS


def read_settings() -> Settings:
    """Return the settings that the process's environment describes.

    Raises:
        InvalidSettingsError: with a sentence for each variable that is wrong or unknown.
    """
    unknown = [_unknown(name) for name in sorted(os.environ) if _is_unknown(name)]
    if unknown:
        raise InvalidSettingsError("\n".join(unknown))
    try:
        read = _Environment(**_empty_lists())
        return Settings.model_validate(read.model_dump())
    except ValidationError as error:
        problems = problems_of(error, Settings)
        raise InvalidSettingsError("\n".join(_sentence(problem) for problem in problems)) from None
    except SettingsError as error:
        # pydantic-settings names the field that it could not decode only in its own words.
        found = _UNDECODED.search(str(error))
        name = variable(found[1]) if found else f"{PREFIX}..."
        raise InvalidSettingsError(f"{name} is not JSON: {error.__cause__}") from None


def _empty_lists() -> dict[str, Any]:
    """Return the lists whose variables are set and empty: who allows nothing means nothing."""
    fields = _Environment.model_fields.items()
    lists = [name for name, field in fields if _CommaSeparated in field.metadata]
    return {name: () for name in lists if os.environ.get(variable(name)) == ""}


def variable(field: str) -> str:
    """Return the variable that sets a field."""
    return PREFIX + field.upper()


def _is_unknown(name: str) -> bool:
    return name.startswith(PREFIX) and _field(name) not in Settings.model_fields


def _field(name: str) -> str:
    return name.removeprefix(PREFIX).lower().partition(_NESTED)[0]


def _unknown(name: str) -> str:
    near = get_close_matches(_field(name), Settings.model_fields, n=1)
    hint = f"; did you mean {variable(near[0])}?" if near else ""
    return f"{name} is not a setting{hint}"


def _sentence(problem: Problem) -> str:
    field, dot, rest = problem.path.partition(".")
    field, bracket, index = field.partition("[")
    plain = (words for start, words in _PLAIN.items() if problem.message.startswith(start))
    message = next(plain, problem.message)
    return f"{variable(field)}{bracket}{index}{dot}{rest} {message}"
