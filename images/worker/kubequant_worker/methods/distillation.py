"""What a distillation was, as the report tells it. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kubequant_worker.methods.distill_schedule import Point
    from kubequant_worker.methods.student_layers import Cut


@dataclass(frozen=True, slots=True)
class Distillation:
    """How a student learned; `cut` is None where it is a model of its own."""

    cut: Cut | None
    steps: int
    sequences: int
    sequence_length: int
    tokens: int
    sequences_at_once: int
    precision: str
    resumed_at: tuple[int, ...]
    points: tuple[Point, ...]
