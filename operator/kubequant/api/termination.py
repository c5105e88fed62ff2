"""A RunReport in the 4,096 bytes that the kubelet keeps of a termination message.

Plain JSON where it fits; else "z:" and base85 of zlib; else the same with fields left out, in the
order of `_CUTS`, until it fits. What was left out is named in `omitted`. Reading bounds its memory
before it believes a byte: the message comes from a pod.
"""

from __future__ import annotations

import base64
import json
import zlib
from typing import TYPE_CHECKING, Any, Final

from kubequant.api.problems import InvalidInputError, Problem, parse_json
from kubequant.api.report import RunReport

if TYPE_CHECKING:
    from collections.abc import Callable

LIMIT_BYTES: Final = 4096
MARK: Final = "z:"
_LARGEST_JSON_BYTES: Final = 256 * 1024
_SHORT: Final = 300
"""Two texts of so many characters fit beside what is never cut, at six bytes a character."""

_Json = dict[str, Any]


def _without(*fields: str) -> Callable[[_Json], None]:
    def cut(report: _Json) -> None:
        for field in fields:
            report.pop(field, None)

    return cut


def _variants_without(*fields: str) -> Callable[[_Json], None]:
    def cut(report: _Json) -> None:
        for variant in report.get("variants", ()):
            for field in fields:
                variant.pop(field, None)

    return cut


def _original_without(*fields: str) -> Callable[[_Json], None]:
    def cut(report: _Json) -> None:
        for field in fields:
            report.get("original", {}).pop(field, None)

    return cut


def _steps_without(*fields: str) -> Callable[[_Json], None]:
    def cut(report: _Json) -> None:
        for step in report.get("escalation", ()):
            for field in fields:
                step.pop(field, None)

    return cut


def _short_failure(report: _Json) -> None:
    failure = report.get("failure", {})
    # The operator knows the address: it follows from the spec.
    failure.pop("reportUri", None)
    for field in ("message", "advice"):
        if len(failure.get(field, "")) > _SHORT:
            failure[field] = failure[field][: _SHORT - 1] + "…"


# The first thing to go stands first: what only report.json needs, then what status can do without,
# and at last the numbers. Digest, outcome, exit code and the reason of a failure always fit.
_CUTS: Final[tuple[tuple[str, Callable[[_Json], None]], ...]] = (
    ("variants.generations", _variants_without("generations")),
    ("files", _without("files")),
    ("source", _without("source", "student")),
    ("variants.files", _variants_without("files")),
    ("settings", _without("settings")),
    ("environment", _without("environment")),
    ("stages", _without("stages")),
    ("datasets", _without("datasets")),
    ("gates", _without("gates")),
    (
        "variants.details",
        _variants_without(
            *("perplexityDetail", "divergenceDetail", "performanceDetail", "benchmarkDetails"),
            *("expected", "embeddingBytes", "sparsityDetail", "distillationDetail", "engineDetail"),
        ),
    ),
    (
        "original.details",
        _original_without("perplexityDetail", "performanceDetail", "runtime", "baselineSha256"),
    ),
    ("variants.notes", _variants_without("notes")),
    ("warnings", _without("warnings")),
    ("variants.benchmarks", _variants_without("benchmarks")),
    ("recommendations", _without("recommendations")),
    ("usage", _without("usage")),
    ("escalation.missed", _steps_without("missed")),
    ("escalation", _without("escalation")),
    ("failure.message", _short_failure),
    ("variants.uri", _variants_without("uri")),
    ("variants", _without("variants")),
    ("original", _without("original")),
    ("resolved", _without("resolved", "startedAt", "finishedAt", "namespace", "name")),
    ("artifact", _without("artifact")),
)


class TerminationMessageError(ValueError):
    """A termination message is not a report of ours: cut, damaged, hostile, or another's."""


def encode_termination(report: RunReport) -> str:
    """Return `report` as at most 4,096 bytes of UTF-8; `decode_termination` reads it back.

    What had to be left out is named in the decoded report's `omitted`.
    """
    value: _Json = report.model_dump(mode="json", exclude_none=True, exclude_defaults=True)
    message = _message(value)
    omitted: list[str] = []
    for name, cut in _CUTS:
        if message is not None:
            return message
        cut(value)
        omitted.append(name)
        value["omitted"] = omitted
        message = _message(value)
    if message is not None:
        return message
    raise AssertionError("a report of bounded strings fits when all else is left out")


def decode_termination(message: str) -> RunReport:
    """Return the report in a termination message; fields of a newer version are passed over.

    Raises:
        TerminationMessageError: the message is longer than 4,096 bytes, damaged, or no report.
    """
    if len(message) > LIMIT_BYTES or len(message.encode("utf-8", "replace")) > LIMIT_BYTES:
        raise TerminationMessageError(f"the message is longer than {LIMIT_BYTES} bytes")
    text: str | bytes = message
    if message.startswith(MARK):
        text = _inflated(message.removeprefix(MARK))
    try:
        return parse_json(RunReport, text, local=True, tolerant=True)
    except InvalidInputError as error:
        raise TerminationMessageError(
            f"the message is no report: {_first(error.problems)}"
        ) from None


def _first(problems: tuple[Problem, ...]) -> str:
    return str(problems[0])[:_SHORT] if problems else "unreadable"


def _message(value: _Json) -> str | None:
    # Straight from the dictionary: what was cut may leave a report that says less than its model
    # would allow.
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    data = text.encode()
    if len(data) <= LIMIT_BYTES:
        return text
    if len(data) > _LARGEST_JSON_BYTES:
        return None
    packed = MARK + base64.b85encode(zlib.compress(data, 9)).decode("ascii")
    return packed if len(packed) <= LIMIT_BYTES else None


def _inflated(packed: str) -> bytes:
    try:
        compressed = base64.b85decode(packed)
        inflater = zlib.decompressobj()
        data = inflater.decompress(compressed, _LARGEST_JSON_BYTES)
    except (ValueError, zlib.error):
        raise TerminationMessageError("the message is damaged: it does not unpack") from None
    if not inflater.eof or inflater.unused_data:
        raise TerminationMessageError("the message is cut, damaged or unpacks to too much")
    return data
