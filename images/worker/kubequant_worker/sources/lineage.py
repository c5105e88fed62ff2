"""How a source was made itself, where kubequant made it: read from the provenance.json beside it.

The file is whoever's who wrote the source, so it is read as data, within bounds, and believed as
little as a model card: what it says is passed on as the source's own words, and one that is broken
says nothing.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from pydantic import ValidationError

from kubequant.api.base import LOCAL
from kubequant.api.contract import EarlierStep
from kubequant_worker.provenance import BUILD_TYPE

if TYPE_CHECKING:
    from pathlib import Path

PROVENANCE: Final = "provenance.json"
LARGEST_BYTES: Final = 16 << 20
_MOST_STEPS: Final = 16
_LONGEST: Final = 253


def earlier_steps(folder: Path) -> tuple[EarlierStep, ...]:
    """Return the steps that made the model in `folder`, the first one first."""
    path = folder / PROVENANCE
    if not path.is_file() or path.stat().st_size > LARGEST_BYTES:
        return ()
    try:
        definition = json.loads(path.read_bytes())["predicate"]["buildDefinition"]
        if definition["buildType"] != BUILD_TYPE:
            return ()
        told = definition["internalParameters"]
        found = [*told.get("before", ()), *_steps(definition, told)]
        return tuple(EarlierStep.model_validate(one, context=LOCAL) for one in found[-_MOST_STEPS:])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, ValidationError):
        return ()


def _steps(definition: dict[str, Any], told: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the step of the document itself; one that made several variants is one step."""
    made = told["made"]
    if not made:
        return []
    settings = ", ".join(dict.fromkeys(one["setting"] for one in made if one["setting"]))
    words = {"method": made[0]["method"], "setting": settings[:_LONGEST], "run": told["digest"]}
    return [{**words, "uri": definition["externalParameters"]["model"]["uri"]}]
