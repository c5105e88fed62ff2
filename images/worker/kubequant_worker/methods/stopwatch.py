"""Times a loaded model in the process that holds it: the same way for every engine.

An engine's child gives a `Subject`, which reads a prompt and makes one step after another; what is
timed, what is thrown away as warm-up and when memory is read stands here. The samples become
numbers in `evaluation.performance`.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from kubequant_worker.evaluation.performance import BatchSamples, Samples

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from kubequant_worker.evaluation.performance import Trial
    from kubequant_worker.evaluation.runtime import TokenArray

_STATUS = Path("/proc/self/status")
# Generated in the warm-up, and in each repetition of a batch: enough to be past the first steps.
_WARM_UP_TOKENS = 16
_BATCH_TOKENS = 32


class Subject(Protocol):
    """One loaded model. Whatever it returns has been computed: nothing is left in a queue."""

    @property
    def context_length(self) -> int:
        """Return how many tokens the model was trained to see."""

    @property
    def opening(self) -> Sequence[int]:
        """Return the ids that open every text."""

    def tokenize(self, text: str) -> TokenArray:
        """Return the ids of `text`."""

    def read(self, prompt: TokenArray) -> int:
        """Forget everything, read `prompt`, and return the token most likely to follow."""

    def step(self, token: int) -> int:
        """Read one more token and return the one most likely to follow."""

    def spread(self, prompt: TokenArray, size: int, steps: int) -> list[int] | str:
        """Read `prompt` as `size` texts that are then continued at once, `steps` tokens each.

        Return the token that follows each, or a sentence that says why that cannot be.
        """

    def step_all(self, tokens: Sequence[int]) -> list[int]:
        """Read one more token of each text and return those most likely to follow."""

    def peak_gpu_bytes(self) -> int | None:
        """Return the most GPU memory that was reserved so far, None on a CPU."""

    @property
    def gpu(self) -> str:
        """Return the name of the GPU that computes, empty on a CPU."""


def peak_resident_bytes() -> int:
    """Return the most memory that this process has had resident so far.

    By its own address space (VmHWM): getrusage would count what the parent held when it forked.
    """
    lines = _STATUS.read_text(encoding="ascii", errors="replace").splitlines()
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), 0)


class Loaded:
    """What loading a model took, noted by the child that loads it."""

    def __init__(self) -> None:
        """Start the clock; nothing of the model is loaded yet."""
        self.library_bytes = peak_resident_bytes()
        self._started = time.perf_counter()
        self.seconds = 0.0

    def finish(self) -> None:
        """Stop the clock."""
        self.seconds = time.perf_counter() - self._started


def measure(
    subject: Subject,
    trial: Trial,
    *,
    loaded: Loaded,
    threads: int,
    on_step: Callable[[str], None],
) -> Samples:
    """Time `subject` as `trial` asks; `on_step` hears of each of its `steps` when it is done."""
    prompt_tokens, new_tokens, notes = _fitting(trial, subject.context_length)
    text, prompt = _prompt(subject, trial.text, prompt_tokens)
    _repetition(subject, text, prompt, min(new_tokens, _WARM_UP_TOKENS))
    on_step("warm-up")
    wall, cpu = time.perf_counter(), time.process_time()
    times = []
    for number in range(1, trial.repetitions + 1):
        times.append(_repetition(subject, text, prompt, new_tokens))
        on_step(f"repetition {number} of {trial.repetitions}")
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    resident, gpu = peak_resident_bytes(), subject.peak_gpu_bytes()
    batches = []
    for size in trial.batch_sizes:
        batch = _batch(subject, prompt, size, min(new_tokens, _BATCH_TOKENS), trial.repetitions)
        if isinstance(batch, str):
            notes.append(f"{size} texts at once were not measured: {batch}")
        else:
            batches.append(batch)
        on_step(f"{size} texts at once")
    return Samples(
        prompt_tokens=len(prompt),
        new_tokens=new_tokens,
        first_token_seconds=tuple(one[0] for one in times),
        prompt_seconds=tuple(one[1] for one in times),
        generation_seconds=tuple(one[2] for one in times),
        batches=tuple(batches),
        load_seconds=loaded.seconds,
        cpu_seconds=cpu,
        wall_seconds=wall,
        threads=threads,
        peak_resident_bytes=resident,
        library_bytes=loaded.library_bytes,
        peak_gpu_bytes=gpu,
        gpu=subject.gpu,
        process_id=os.getpid(),
        notes=tuple(notes),
    )


def _fitting(trial: Trial, context_length: int) -> tuple[int, int, list[str]]:
    """Return prompt and new tokens as far as the context reaches, and what was cut."""
    asked = trial.prompt_tokens + trial.new_tokens
    if asked <= context_length:
        return trial.prompt_tokens, trial.new_tokens, []
    new_tokens = min(trial.new_tokens, context_length // 2)
    prompt_tokens = min(trial.prompt_tokens, context_length - new_tokens)
    note = (
        f"the model's context of {context_length} tokens is shorter than the {asked} that "
        f"promptTokens and newTokens ask for: {prompt_tokens} and {new_tokens} were taken"
    )
    return prompt_tokens, new_tokens, [note]


def _prompt(subject: Subject, text: str, count: int) -> tuple[str, TokenArray]:
    """Return a text of about `count` tokens, and exactly that many of its tokens."""
    opening = np.array(subject.opening[:count], np.int32)
    ids = subject.tokenize(text)
    wanted = count - len(opening)
    repeats = -(-wanted // len(ids)) if len(ids) else 1
    written = (text * repeats)[: len(text) * wanted // max(1, len(ids))]
    return written, np.concatenate([opening, np.resize(ids, wanted)]).astype(np.int32)


def _repetition(
    subject: Subject, text: str, prompt: TokenArray, new_tokens: int
) -> tuple[float, float, float]:
    """Return the seconds to the first token, those of the prompt in it, and those of the rest."""
    began = time.perf_counter()
    subject.tokenize(text)
    tokenized = time.perf_counter()
    token = subject.read(prompt)
    first = time.perf_counter()
    for _ in range(new_tokens):
        token = subject.step(token)
    return first - began, first - tokenized, time.perf_counter() - first


def _batch(
    subject: Subject, prompt: TokenArray, size: int, steps: int, repetitions: int
) -> BatchSamples | str:
    seconds = []
    for _ in range(repetitions + 1):
        tokens = subject.spread(prompt, size, steps)
        if isinstance(tokens, str):
            return tokens
        began = time.perf_counter()
        for _ in range(steps):
            tokens = subject.step_all(tokens)
        seconds.append(time.perf_counter() - began)
    return BatchSamples(size, size * steps, tuple(seconds[1:]))
