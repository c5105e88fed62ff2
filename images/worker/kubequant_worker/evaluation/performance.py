"""How fast a model is and how much memory it takes: what is asked of a runtime, and the numbers.

A runtime times itself in its own process (`methods/stopwatch.py`) and hands back `Samples`; here
they become medians, deviations and a speedup. Pure: nothing here reads a clock.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

# The standard error of a median over that of a mean, for many normally distributed samples: the
# square root of pi / 2.
_MEDIAN_FACTOR: Final = math.sqrt(math.pi / 2)


@dataclass(frozen=True, slots=True)
class Trial:
    """What a runtime is to time.

    `text` is repeated until it has `prompt_tokens` tokens; `new_tokens` more are generated after
    the first, whatever they are. `batch_sizes` are continued at once, one after another.
    """

    text: str
    prompt_tokens: int
    new_tokens: int
    repetitions: int
    batch_sizes: tuple[int, ...] = ()

    @property
    def steps(self) -> int:
        """How many times something is timed, the warm-up included: a meter's total."""
        return 1 + self.repetitions + len(self.batch_sizes)


@dataclass(frozen=True, slots=True)
class BatchSamples:
    """Seconds of each repetition in which `tokens` tokens of `size` texts in all were generated."""

    size: int
    tokens: int
    seconds: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Samples:
    """What a runtime timed, repetition by repetition, and what its process took.

    `first_token_seconds` begin at the prompt's text, `prompt_seconds` at its tokens, and
    `generation_seconds` at the first new token. `cpu_seconds` are the process's own over the
    `wall_seconds` of all repetitions. Memory is read before batches are timed.
    """

    prompt_tokens: int
    new_tokens: int
    first_token_seconds: tuple[float, ...]
    prompt_seconds: tuple[float, ...]
    generation_seconds: tuple[float, ...]
    batches: tuple[BatchSamples, ...]
    load_seconds: float
    cpu_seconds: float
    wall_seconds: float
    threads: int
    peak_resident_bytes: int
    library_bytes: int
    peak_gpu_bytes: int | None
    gpu: str
    process_id: int
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Timing:
    """The median of repetitions, and their standard deviation, None for a single one."""

    median: float
    deviation: float | None
    repetitions: int

    @property
    def relative_error(self) -> float | None:
        """The standard error of the median, over the median; None for a single repetition."""
        if self.deviation is None:
            return None
        return _MEDIAN_FACTOR * self.deviation / (math.sqrt(self.repetitions) * self.median)


@dataclass(frozen=True, slots=True)
class BatchPerformance:
    """Tokens per second of `size` texts together."""

    size: int
    tokens_per_second: Timing


@dataclass(frozen=True, slots=True)
class Performance:
    """The speed and memory of one model; `samples` is what it came from."""

    tokens_per_second: Timing
    prompt_tokens_per_second: Timing
    first_token_seconds: Timing
    batches: tuple[BatchPerformance, ...]
    samples: Samples
    runtime: str

    @property
    def peak_memory_bytes(self) -> int:
        """The most memory of where it computed: the GPU's, or else resident memory."""
        gpu = self.samples.peak_gpu_bytes
        return self.samples.peak_resident_bytes if gpu is None else gpu

    @property
    def cpu_percent(self) -> float:
        """The processor time that the process had, of what its threads could have had."""
        samples = self.samples
        return 100 * samples.cpu_seconds / (samples.wall_seconds * samples.threads)


def timing(values: Sequence[float]) -> Timing:
    """Return the median of at least one value and its standard deviation."""
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return Timing(statistics.median(values), deviation, len(values))


def rates(amount: int, seconds: Sequence[float]) -> Timing:
    """Return how many of `amount` came in a second, by the seconds that each repetition took."""
    return timing([amount / one for one in seconds])


def performance(samples: Samples, runtime: str) -> Performance:
    """Return what `samples` amount to."""
    return Performance(
        tokens_per_second=rates(samples.new_tokens, samples.generation_seconds),
        prompt_tokens_per_second=rates(samples.prompt_tokens, samples.prompt_seconds),
        first_token_seconds=timing(samples.first_token_seconds),
        batches=tuple(
            BatchPerformance(one.size, rates(one.tokens, one.seconds)) for one in samples.batches
        ),
        samples=samples,
        runtime=runtime,
    )


def speedup(original: Performance, variant: Performance) -> tuple[float, float | None]:
    """Return how many times faster the variant generates, and the standard error of that.

    The two errors are independent, each model having been timed in a process of its own, so their
    relative errors add as squares; None where one was timed a single time.
    """
    mine, theirs = variant.tokens_per_second, original.tokens_per_second
    ratio = mine.median / theirs.median
    errors = (mine.relative_error, theirs.relative_error)
    if errors[0] is None or errors[1] is None:
        return ratio, None
    return ratio, ratio * math.hypot(errors[0], errors[1])
