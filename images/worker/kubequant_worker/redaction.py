"""Keeps secrets out of everything a run says: its log, its report, its traceback.

A secret is what the credentials folders hold and what the usual variables of the environment hold.
Everything that leaves the run passes a `Redactor`, so that no library's message has to be trusted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

REPLACEMENT = "[redacted]"
# The access key id is a name, not a secret, and helps to find which account was refused.
SECRET_VARIABLES = (
    "HF_TOKEN",
    "HUGGING_FACE_HUB_TOKEN",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
)
# A shorter value would tear harmless words apart, and no service issues one.
SHORTEST_SECRET = 8


class Redactor:
    """Replaces known secret values in text."""

    def __init__(self, values: Iterable[str]) -> None:
        """Know `values`, the longest first, so that no part of a longer one is left."""
        known = {value.strip() for value in values}
        self._values = sorted(
            (v for v in known if len(v) >= SHORTEST_SECRET), key=len, reverse=True
        )

    @classmethod
    def of_run(cls, credentials: Path, environment: Mapping[str, str]) -> Redactor:
        """Know every file under `credentials` that holds a secret, and the variables' values."""
        values = [environment[name] for name in SECRET_VARIABLES if environment.get(name)]
        for name in SECRET_VARIABLES:
            values += [path.read_text(errors="replace") for path in credentials.glob(f"*/{name}")]
        return cls(values)

    def clean(self, text: str) -> str:
        """Return `text` with every known secret replaced."""
        for value in self._values:
            text = text.replace(value, REPLACEMENT)
        return text
