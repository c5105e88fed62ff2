"""A loaded model's answers to the harness: token ids, log-likelihoods, greedy texts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from kubequant.api.outcome import FailureReason
from kubequant_worker.errors import BadRequestError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from kubequant_worker.benchmarks.score import Speaker
    from kubequant_worker.evaluation.runtime import FloatRows, Runtime, TokenArray

# Texts that are continued side by side hold keys and values of so many tokens together.
_TOKENS_AT_ONCE = 4096


class Answers:
    """Answers out of one runtime."""

    def __init__(self, runtime: Runtime, speaker: Speaker) -> None:
        """Ask `runtime`."""
        self._runtime = runtime
        self._speaker = speaker

    def tokens(self, texts: Sequence[str]) -> list[list[int]]:
        """Return each text's ids, nothing added; special tokens in it count as such."""
        return [ids.tolist() for ids in self._runtime.tokenize(texts, special=True)]

    def log_likelihoods(
        self, requests: Sequence[tuple[Sequence[int], Sequence[int]]]
    ) -> list[tuple[float, bool]]:
        """Return the log-likelihood of each continuation after its context, in nats.

        And whether every token of it is the most likely one there. A request that is too long loses
        the beginning of its context. Requests that read the same tokens are computed once.
        """
        windows: dict[tuple[int, ...], list[int]] = {}
        for number, (context, continuation) in enumerate(requests):
            read = (*context, *continuation)[-(self._speaker.length + 1) :][:-1]
            windows.setdefault(read, []).append(number)
        found: list[tuple[float, bool]] = [(0.0, True)] * len(requests)
        ordered = sorted(windows, key=len, reverse=True)
        arrays = [np.array(window, np.int32) for window in ordered]
        for piece in self._runtime.logits(arrays):
            read = ordered[piece.window]
            for number in windows[read]:
                asked = np.array(requests[number][1][-len(read) :], np.int32)
                # The row after a token says what follows it: the continuation's come last.
                start = len(read) - len(asked) - piece.first_position
                here = slice(max(0, start), len(piece.rows))
                wanted = asked[here.start - start : len(piece.rows) - start]
                if len(wanted):
                    likelihood, greedy = _scored(piece.rows[here], wanted)
                    before, all_greedy = found[number]
                    found[number] = (before + likelihood, all_greedy and greedy)
        return found

    def texts(self, starts: Sequence[Sequence[int]], most: int, stops: Sequence[str]) -> list[str]:
        """Return the greedy continuation of each start, which ends at one of `stops` at the latest.

        A start that leaves no room for `most` tokens loses its beginning.

        Raises:
            BadRequestError: The task asks for a longer text than the model can hold.
        """
        room = self._speaker.length - most
        if room < 1:
            raise BadRequestError(
                f"a task wants texts of {most} tokens, and the model's context is "
                f"{self._speaker.length}; leave it out, or set max_gen_toks in a task of your own",
                reason=FailureReason.UNSUPPORTED_MODEL,
            )
        cut = [np.array(start[-room:], np.int32) for start in starts]
        written: list[str] = []
        for group in _groups(cut, most):
            written += [one.text for one in self._runtime.complete(group, most, stops)]
        return written


def _groups(starts: Sequence[TokenArray], most: int) -> Iterator[list[TokenArray]]:
    group: list[TokenArray] = []
    longest = 0
    for start in starts:
        longest = max(longest, len(start))
        if group and (len(group) + 1) * (longest + most) > _TOKENS_AT_ONCE:
            yield group
            group, longest = [], len(start)
        group.append(start)
    if group:
        yield group


def _scored(rows: FloatRows, wanted: TokenArray) -> tuple[float, bool]:
    """Return the log-likelihood of `wanted` by `rows`, and whether each was the most likely."""
    index = np.arange(len(rows))
    highest = rows.max(axis=1)
    if not np.isfinite(highest).all():
        raise BadRequestError(
            "the model computes logits that are not finite numbers; it cannot be measured",
            reason=FailureReason.VERIFICATION_FAILED,
        )
    chosen = (rows[index, wanted] - highest).astype(np.float64)
    totals = np.exp(rows - highest[:, None]).sum(axis=1, dtype=np.float64)
    likelihood = float((chosen - np.log(totals)).sum())
    return likelihood, bool((rows.argmax(axis=1) == wanted).all())
