"""What each method usually gives: a literal table to hold measured numbers against. Pure.

Sizes are those against a 16-bit original, embeddings and output matrix included; a small model's
embeddings make its own figures smaller.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from kubequant.api.contract import Expectation
from kubequant.api.enums import Method
from kubequant.api.params import GGUFType

if TYPE_CHECKING:
    from kubequant.api.contract import VariantReport

# A size that falls short by fewer points than this is as expected: models differ.
_SIZE_POINTS: Final = 5
_SURE_ERRORS: Final = 2


@dataclass(frozen=True, slots=True)
class Usual:
    """Percent of size saved, the quality in words, and the rise of perplexity that they bear."""

    size_reduction_percent: float
    quality: str = ""
    most_increase_percent: float | None = None


INT8: Final = Usual(50, "under 1 % worse", 1)

# The bounds of the GGUF levels are about twice what llama.cpp's own help tells of a 7B model. Those
# of GPTQ below 4 bits are wide: at 3, papers tell of 10 to 20 % for models of that size (AWQ, arXiv
# 2306.00978); at 2, of several times the perplexity, and what has doubled is of no use.
# BitsAndBytes rounds to nearest as INT4 does, and its FP4 loses more than its NF4.
EXPECTATIONS: Final[dict[tuple[Method, str], Usual]] = {
    (Method.INT8, "8"): INT8,
    (Method.FP8, "8"): INT8,
    (Method.INT4, "4"): Usual(75, "2-3 % worse", 3),
    (Method.GPTQ, "4"): Usual(75, "under 2 % worse", 2),
    (Method.GPTQ, "8"): INT8,
    (Method.GPTQ, "3"): Usual(80, "10-20 % worse", 20),
    (Method.GPTQ, "2"): Usual(86, "poor", 100),
    (Method.AWQ, "4"): Usual(70, "better than GPTQ, which is under 2 % worse", 2),
    (Method.TENSOR_RT, "8"): INT8,
    (Method.TENSOR_RT, "4"): Usual(75, "under 2 % worse", 2),
    (Method.BITS_AND_BYTES, "8"): Usual(50),
    (Method.BITS_AND_BYTES, "4"): Usual(75, "up to 5 % worse", 5),
    (Method.GGUF, GGUFType.Q2_K): Usual(87.5, "poor", 23),
    (Method.GGUF, GGUFType.Q3_K_S): Usual(83, "poor", 19),
    (Method.GGUF, GGUFType.Q3_K_M): Usual(83, "fair", 8),
    (Method.GGUF, GGUFType.Q3_K_L): Usual(78, "fair", 6),
    (Method.GGUF, GGUFType.Q4_0): Usual(75, "good", 6),
    (Method.GGUF, GGUFType.Q4_K_M): Usual(75, "very good", 2),
    (Method.GGUF, GGUFType.Q5_K_M): Usual(70, "excellent", 1),
    (Method.GGUF, GGUFType.Q6_K): Usual(62.5, "near original", 0.5),
    (Method.GGUF, GGUFType.Q8_0): Usual(50, "almost original", 0.25),
}
"""By method and bits, for GGUF by type. What is not here has no expectation."""


def usual(variant: VariantReport) -> Usual | None:
    """Return what the setting of a variant usually gives, where that is known."""
    if variant.method is None:
        return None
    key = variant.name if variant.method is Method.GGUF else variant.bits_per_weight or ""
    return EXPECTATIONS.get((variant.method, key))


def is_surely_worse(variant: VariantReport) -> bool:
    """Say whether perplexity rose beyond what is usual, and beyond two standard errors of that."""
    bound = usual(variant)
    rise = variant.perplexity_increase_percent
    if bound is None or bound.most_increase_percent is None or rise is None:
        return False
    error = float(variant.perplexity_increase_standard_error or 0)
    return float(rise) - _SURE_ERRORS * error > bound.most_increase_percent


def expectation(variant: VariantReport) -> Expectation | None:
    """Return what the report shows beside a variant's numbers, None where nothing is expected."""
    found = usual(variant)
    if found is None:
        return None
    most = found.most_increase_percent
    shortfalls = []
    saved = variant.size_reduction_percent
    if saved is not None and float(saved) < found.size_reduction_percent - _SIZE_POINTS:
        shortfalls.append(
            f"{float(saved):.3g} % smaller, where about {found.size_reduction_percent:g} % is usual"
        )
    if is_surely_worse(variant):
        shortfalls.append(f"perplexity {rise_text(variant)}, where at most +{most:g} % is usual")
    return Expectation(
        size_reduction_percent=f"{found.size_reduction_percent:g}",
        most_perplexity_increase_percent=None if most is None else f"{most:g}",
        quality=found.quality,
        shortfalls=tuple(shortfalls),
    )


def rise_text(variant: VariantReport) -> str:
    """Return the rise of perplexity with its error, like "+1.9 % ± 0.3"."""
    error = variant.perplexity_increase_standard_error
    rise = float(variant.perplexity_increase_percent or 0)
    return f"{rise:+.3g} %" + (f" ± {float(error):.2g}" if error is not None else "")
