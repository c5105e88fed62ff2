"""How measured numbers are written for people: in the card, on the page and on a terminal.

A number that was not measured is the empty string; what stands there instead is the reader's.
"""

from __future__ import annotations

from decimal import ROUND_HALF_EVEN, Decimal
from typing import Final

MIB: Final = 2**20
GIB: Final = 2**30
_SMALL: Final = 0.01
_TINY: Final = 0.001


def size(size_bytes: int | None) -> str:
    """Return bytes in the unit that keeps them short: "8.0 MiB", "4.58 GiB"."""
    if size_bytes is None:
        return ""
    if size_bytes >= GIB:
        return f"{size_bytes / GIB:.{1 if size_bytes >= 10 * GIB else 2}f} GiB"
    if size_bytes >= MIB / 10:
        return f"{size_bytes / MIB:.1f} MiB"
    return f"{size_bytes:,} bytes"


def decimal(value: str | None, places: int = 2) -> str:
    """Return a measured decimal with so many places, "" where there is none, never "-0.00"."""
    if value is None:
        return ""
    rounded = Decimal(value).quantize(Decimal(1).scaleb(-places), ROUND_HALF_EVEN)
    return f"{abs(rounded) if rounded == 0 else rounded:f}"


def signed(value: str | None, places: int = 2) -> str:
    """Return a decimal with its sign, and zero without one."""
    text = decimal(value, places)
    return text if not text or text.startswith("-") or Decimal(text) == 0 else f"+{text}"


def percent(value: str | None, places: int = 1, *, sign: bool = False) -> str:
    """Return a decimal with the sign for percent behind it."""
    text = signed(value, places) if sign else decimal(value, places)
    return f"{text} %" if text else ""


def with_error(text: str, error: str | None) -> str:
    """Return a number with its standard error in as many places: "22.55 ± 0.87"."""
    if not text or error is None:
        return text
    number, blank, unit = text.partition(" ")
    return f"{number} ± {_error(error, len(number.partition('.')[2]))}{blank}{unit}"


def _error(error: str, places: int) -> str:
    """Return an error with so many places, or with its first digit where that would be zero."""
    text = decimal(error, places)
    if Decimal(text) or not Decimal(error):
        return f"{Decimal(text):,f}"
    return f"{Decimal(f'{float(error):.1g}'):f}"


def divergence(value: str | None) -> str:
    """Return a divergence in nats, with places enough for small ones."""
    if value is None:
        return ""
    if 0 < float(value) < _TINY:
        return f"{Decimal(f'{float(value):.2g}'):f}"
    return decimal(value, 4 if float(value) < 1 else 2)


def rate(value: str | None) -> str:
    """Return tokens per second with three digits or so."""
    if value is None:
        return ""
    return f"{float(value):,.0f}" if float(value) >= 100 else decimal(value, 1)  # noqa: PLR2004 - three digits


def seconds(value: str | None) -> str:
    """Return a time in the unit that keeps it short."""
    if value is None:
        return ""
    number = float(value)
    if number == 0:
        return "0 s"
    if number < 1:
        return f"{number * 1000:.{1 if number < _SMALL else 0}f} ms"
    if number < 120:  # noqa: PLR2004 - two minutes
        return f"{number:.1f} s"
    return f"{number / 60:.1f} min"


def times(value: str | None) -> str:
    """Return a factor with the sign for times behind it."""
    text = decimal(value, 2)
    return f"{text}\N{MULTIPLICATION SIGN}" if text else ""
