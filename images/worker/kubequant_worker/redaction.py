"""Keeps secrets out of everything a run says: its log, its report, its traceback.

A secret is what the credentials folders, the usual variables of the environment, AWS's profiles and
the Hub's token file hold. Everything that leaves the run passes a `Redactor`, so that no library's
message has to be trusted. Where the libraries look for their files is said here again, since to
import them takes longer than many a command.
"""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

REPLACEMENT = "[redacted]"
# The access key id is a name, not a secret, and helps to find which account was refused.
SECRET_VARIABLES = (
    "HF_TOKEN",
    "HUGGING_FACE_HUB_TOKEN",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
)
# As INI files of AWS and of the Hub have them, and JSON files of AWS's caches.
SECRET_SETTING = re.compile(
    r"^\s*(?:aws_secret_access_key|aws_session_token|hf_token)\s*=\s*(\S+)"
    r'|"(?:accessToken|refreshToken|clientSecret|SecretAccessKey|SessionToken)":\s*"([^"]+)"',
    re.MULTILINE,
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
        """Know every file under `credentials` that holds a secret, and what the libraries find.

        That is in the variables of `environment` and in the files that these name, or else in the
        usual ones.
        """
        values = [environment[name] for name in SECRET_VARIABLES if environment.get(name)]
        for name in SECRET_VARIABLES:
            values += [path.read_text(errors="replace") for path in credentials.glob(f"*/{name}")]
        return cls([*values, *_of_profiles(environment), *_of_hub(environment)])

    def clean(self, text: str) -> str:
        """Return `text` with every known secret replaced."""
        for value in self._values:
            text = text.replace(value, REPLACEMENT)
        return text

    def clean_bytes(self, content: bytes) -> bytes:
        """Return a document in UTF-8 with every known secret replaced."""
        return self.clean(content.decode()).encode()


def _of_profiles(environment: Mapping[str, str]) -> Iterator[str]:
    """Yield the secrets of every AWS profile, and of the sessions that were opened for them."""
    folder = _home(environment) / ".aws"
    for variable, name in (
        ("AWS_SHARED_CREDENTIALS_FILE", "credentials"),
        ("AWS_CONFIG_FILE", "config"),
    ):
        yield from _settings(Path(environment.get(variable) or folder / name))
    for cache in sorted(folder.glob("*/cache/*.json")):
        yield from _settings(cache)
    if token := environment.get("AWS_WEB_IDENTITY_TOKEN_FILE"):
        yield _content(Path(token))


def _of_hub(environment: Mapping[str, str]) -> Iterator[str]:
    """Yield the tokens that `hf auth login` has left."""
    cache = Path(environment.get("XDG_CACHE_HOME") or _home(environment) / ".cache")
    home = Path(environment.get("HF_HOME") or cache / "huggingface")
    token = Path(environment.get("HF_TOKEN_PATH") or home / "token")
    yield _content(token)
    yield from _settings(token.with_name("stored_tokens"))


def _home(environment: Mapping[str, str]) -> Path:
    return Path(environment.get("HOME") or "/")


def _settings(path: Path) -> Iterator[str]:
    for one, other in SECRET_SETTING.findall(_content(path)):
        yield one or other


def _content(path: Path) -> str:
    """Return a file's text, "" where there is none that we may read."""
    with suppress(OSError, RuntimeError):  # "~somebody" may be nobody
        return path.expanduser().read_text(encoding="utf-8", errors="replace")
    return ""
