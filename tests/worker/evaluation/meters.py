"""A meter that remembers what it was told."""

from __future__ import annotations


class Recorder:
    def __init__(self) -> None:
        self.total = 0.0
        self.done = 0.0
        self.messages: list[str | None] = []

    def set_total(self, total: float) -> None:
        self.total = total

    def advance(self, amount: float, message: str | None = None) -> None:
        self.done += amount
        self.messages.append(message)
