"""Field types that several models share: numbers as text, quantities, names, URIs.

Decimal numbers are strings in JSON and in Python, since the API has no floats; what a string means
as a number is said here once. No model lives here.
"""

from __future__ import annotations

import math
from decimal import Decimal
from typing import Annotated, Final

from pydantic import Field, StrictInt, StrictStr

from kubequant.api.base import Pattern, Rule

DECIMAL: Final = r"-?[0-9]{1,15}([.][0-9]{1,9})?"
_LARGEST_MEASURED: Final = 1e15


def between(low: str, high: str, *, ends: bool = True) -> Rule:
    """Return the rule that a decimal lies from `low` to `high`, with or without the ends."""
    lowest, highest = Decimal(low), Decimal(high)
    sign = "<=" if ends else "<"
    message = (
        f"must be a decimal number from {low} to {high}, in quotes"
        if ends
        else f"must be a decimal number above {low} and below {high}, in quotes"
    )

    def holds(text: str) -> bool:
        number = Decimal(text)
        return lowest <= number <= highest if ends else lowest < number < highest

    # `double()` of anything else than a number is an error of the rule, not an answer; the pattern
    # refuses that.
    return Rule(
        message=message,
        holds=holds,
        cel=f"!self.matches(r'^{DECIMAL}$') || "
        f"(double('{low}') {sign} double(self) && double(self) {sign} double('{high}'))",
    )


DecimalText = Annotated[
    StrictStr,
    Field(min_length=1, max_length=26),
    Pattern(DECIMAL, 'a decimal number in quotes, like "2.5"'),
]
"""A decimal number as text: at most 15 digits before the point and 9 after."""

MeasuredDecimal = Annotated[
    StrictStr,
    Field(min_length=1, max_length=26),
    Pattern(DECIMAL, "a decimal number as text", explained=False),
]
"""As `DecimalText`, for what a worker measured (see `decimal_text`)."""

Fraction = Annotated[DecimalText, between("0", "1")]
OpenFraction = Annotated[DecimalText, between("0", "1", ends=False)]

_SCALE: Final = {
    "": 1,
    "k": 10**3,
    "M": 10**6,
    "G": 10**9,
    "T": 10**12,
    "P": 10**15,
    "E": 10**18,
    "Ki": 2**10,
    "Mi": 2**20,
    "Gi": 2**30,
    "Ti": 2**40,
    "Pi": 2**50,
    "Ei": 2**60,
}

Quantity = Annotated[
    StrictStr,
    Field(min_length=1, max_length=24),
    Pattern(
        r"[0-9]{1,12}([.][0-9]{1,6})?(m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei)?",
        'a Kubernetes quantity in quotes, like "4", "500m" or "20Gi"',
    ),
]
ByteQuantity = Annotated[
    StrictStr,
    Field(min_length=1, max_length=24),
    Pattern(
        r"[0-9]{1,12}([.][0-9]{1,6})?(k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei)?",
        'an amount of bytes as a Kubernetes quantity, like "500M" or "20Gi"',
    ),
]

_LABEL: Final = "[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?"
_SUBDOMAIN: Final = "[a-z0-9]([-a-z0-9]*[a-z0-9])?([.][a-z0-9]([-a-z0-9]*[a-z0-9])?)*"
_NAME_ALLOWED: Final = (
    "a Kubernetes object's name: lower case letters, digits, '-' and '.', "
    "a letter or digit at both ends"
)

ObjectName = Annotated[
    StrictStr, Field(min_length=1, max_length=253), Pattern(_SUBDOMAIN, _NAME_ALLOWED)
]
OptionalObjectName = Annotated[
    StrictStr, Field(max_length=253), Pattern(f"({_SUBDOMAIN})?", _NAME_ALLOWED)
]
"""As `ObjectName`; the empty string means that none is named."""

QUALIFIED: Final = "([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"
_QUALIFIED_ALLOWED: Final = "a Kubernetes key, like example.com/name"
QualifiedName = Annotated[
    StrictStr,
    Field(min_length=1, max_length=317),
    Pattern(QUALIFIED, _QUALIFIED_ALLOWED),
]
_LABEL_VALUE: Final = "([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?"
_LABEL_VALUE_ALLOWED: Final = (
    "a Kubernetes label value: at most 63 letters, digits, '-', '_' and '.'"
)
LabelValue = Annotated[StrictStr, Field(max_length=63), Pattern(_LABEL_VALUE, _LABEL_VALUE_ALLOWED)]
# Affinity holds lists in lists in lists of names: written as CEL for each of them, patterns would
# use up the server's cost budget, which counts every list as full.
TermValue = Annotated[
    StrictStr, Field(max_length=63), Pattern(_LABEL_VALUE, _LABEL_VALUE_ALLOWED, explained=False)
]
TermKey = Annotated[
    StrictStr,
    Field(min_length=1, max_length=317),
    Pattern(QUALIFIED, _QUALIFIED_ALLOWED, explained=False),
]
TermNamespace = Annotated[
    StrictStr,
    Field(min_length=1, max_length=63),
    Pattern(_LABEL, "a namespace's name", explained=False),
]

_HUB_NAME: Final = "[A-Za-z0-9][-A-Za-z0-9_.]*"
_HUB_MODEL: Final = f"hf://{_HUB_NAME}(/{_HUB_NAME})?"
# A dataset may name a folder or file inside the repository, since many repositories hold several
# texts.
_HUB_DATASET: Final = f"hf://{_HUB_NAME}(/[-A-Za-z0-9_.]+)*"
# A blank or a sign that URIs give a meaning (? # %) would make two readings of one name possible.
_KEY: Final = "[-A-Za-z0-9_.~!*()+=@,:/]*"
_S3: Final = f"s3://[a-z0-9][-a-z0-9.]{{1,61}}[a-z0-9](/{_KEY})?"
_PVC: Final = f"pvc://{_LABEL}([.]{_LABEL})*(/{_KEY})?"
_FILE: Final = r"file://[^\x00-\x1f\x7f]+"
_URI = Annotated[StrictStr, Field(min_length=1, max_length=1024)]


def _stays_inside(uri: str) -> bool:
    return uri.startswith("file://") or not any(part == ".." for part in uri.split("/"))


_inside = Rule(
    message="must not contain '..' as a part of its path",
    holds=_stays_inside,
    cel="self.startsWith('file://') || !self.matches('(^|/)[.][.](/|$)')",
)

ModelURI = Annotated[
    _URI,
    Pattern(
        f"{_HUB_MODEL}|{_S3}|{_PVC}|{_FILE}",
        "a model's address: hf://owner/name, s3://bucket/prefix, pvc://claim/path "
        "or, for a local run, file://path",
    ),
    _inside,
]
DatasetURI = Annotated[
    _URI,
    Pattern(
        f"{_HUB_DATASET}|{_S3}|{_PVC}|{_FILE}",
        "a dataset's address: hf://owner/name, s3://bucket/key, pvc://claim/path "
        "or, for a local run, file://path",
    ),
    _inside,
]
OutputURI = Annotated[
    _URI,
    Pattern(
        f"{_S3}|{_PVC}|{_FILE}",
        "a place to publish to: s3://bucket/prefix, pvc://claim/path "
        "or, for a local run, file://path",
    ),
    _inside,
]
AnyURI = Annotated[StrictStr, Field(max_length=2048)]
"""An address that a worker reports; its form was checked when it was asked for."""

HTTPEndpoint = Annotated[
    StrictStr,
    Field(max_length=512),
    Pattern(
        r"(https?://([-A-Za-z0-9.]+|\[[0-9A-Fa-f:]+\])(:[0-9]{1,5})?(/[-A-Za-z0-9_.~/]*)?)?",
        "an address like https://s3.example.com:9000, without user name, password or query",
    ),
]
"""An HTTP address; the empty string means the provider's default."""

DIGEST_REGEX: Final = "[0-9a-f]{8}"
RunDigest = Annotated[
    StrictStr,
    Field(min_length=8, max_length=8),
    Pattern(DIGEST_REGEX, "eight hexadecimal digits", explained=False),
]
SHA256 = Annotated[
    StrictStr,
    Field(min_length=64, max_length=64),
    Pattern("[0-9a-f]{64}", "64 hexadecimal digits", explained=False),
]

ByteCount = Annotated[StrictInt, Field(ge=0, le=2**62)]
ShortText = Annotated[StrictStr, Field(max_length=253)]
"""A name or word for people: an engine, a device, a node."""
Sentence = Annotated[StrictStr, Field(max_length=1024)]
"""A sentence or two for people."""


def quantity_bytes(quantity: str) -> int:
    """Return the bytes that a `ByteQuantity` means, rounded down: "1.5Ki" is 1536."""
    number = quantity.rstrip("kKMGTPEi")
    return int(Decimal(number) * _SCALE[quantity[len(number) :]])


def plain_decimal(text: str) -> str:
    """Return a decimal in its shortest form, so that equal numbers are equal texts.

    "0.10" becomes "0.1".
    """
    number = Decimal(text)
    return f"{number.normalize():f}" if number else "0"


def decimal_text(number: float | None, places: int = 4) -> str | None:
    """Return a measured number as the API writes it, or None where there is no finite one.

    Trailing zeros are dropped. Infinite, undefined and absurd values (1e15 and more) are None: a
    caller says in a warning that the measurement failed.
    """
    if number is None or not math.isfinite(number) or abs(number) >= _LARGEST_MEASURED:
        return None
    return plain_decimal(f"{number:.{min(places, 9)}f}")
