"""Timing a model: what is counted and what is not, in a process of its own. No figure is asserted.

How fast a machine is a test cannot know; how often, of what and where it was timed, it can.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np
import pytest
from tests.worker.methods.conftest import TINY, Made

from kubequant_worker.evaluation.performance import Samples, Trial
from kubequant_worker.methods.checkpoint_files import weight_bytes
from kubequant_worker.methods.stopwatch import Loaded, measure
from kubequant_worker.methods.transformers_runtime import TransformersEngine, TransformersRuntime

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kubequant_worker.evaluation.runtime import TokenArray

TRIAL = Trial("Some words that are read again and again. ", 48, 8, 2, (2, 3))
STEPS = [
    "warm-up", "repetition 1 of 2", "repetition 2 of 2", "2 texts at once", "3 texts at once",
]  # fmt: skip


@pytest.fixture(scope="module")
def by_llama(every_type: Made) -> dict[str, tuple[Samples, list[str]]]:
    """The original and a level, each timed alone."""
    found = {}
    for model in (every_type.baseline, every_type.variants["Q4_K_M"]):
        steps: list[str] = []
        with every_type.quantizer.open_alone(model) as runtime:
            found[model.name] = (runtime.perform(TRIAL, steps.append), steps)
    return found


@pytest.fixture(scope="module")
def by_transformers() -> dict[str, tuple[Samples, list[str]]]:
    """The original, timed alone, twice."""
    loading = {"device": "cpu", "dtype": "float32"}
    found = {}
    for name in ("first", "second"):
        steps: list[str] = []
        with TransformersRuntime(TransformersEngine(2), TINY, loading) as runtime:
            found[name] = (runtime.perform(TRIAL, steps.append), steps)
    return found


@pytest.mark.parametrize("engine", ["by_llama", "by_transformers"])
def test_every_repetition_is_there_and_took_time(
    engine: str, request: pytest.FixtureRequest
) -> None:
    for samples, steps in request.getfixturevalue(engine).values():
        assert steps == STEPS
        assert (samples.prompt_tokens, samples.new_tokens, samples.threads) == (48, 8, 2)
        for seconds in (samples.prompt_seconds, samples.generation_seconds):
            assert len(seconds) == 2
            assert min(seconds) > 0
        assert all(
            first > prompt
            for first, prompt in zip(
                samples.first_token_seconds, samples.prompt_seconds, strict=True
            )
        )
        assert samples.load_seconds > 0
        assert samples.wall_seconds >= sum(samples.first_token_seconds)
        assert samples.notes == ()
        assert [(one.size, one.tokens, len(one.seconds)) for one in samples.batches] == [
            (2, 16, 2),
            (3, 24, 2),
        ]


@pytest.mark.parametrize("engine", ["by_llama", "by_transformers"])
def test_every_model_has_a_process_of_its_own(engine: str, request: pytest.FixtureRequest) -> None:
    ids = [samples.process_id for samples, _ in request.getfixturevalue(engine).values()]

    assert len({*ids, os.getpid()}) == 3


def test_a_model_takes_the_memory_of_its_weights_at_least(
    every_type: Made,
    by_llama: dict[str, tuple[Samples, list[str]]],
    by_transformers: dict[str, tuple[Samples, list[str]]],
) -> None:
    sizes = {
        every_type.baseline.name: every_type.baseline.size_bytes,
        "Q4_K_M": every_type.variants["Q4_K_M"].size_bytes,
    }
    for name, size in sizes.items():
        samples, _ = by_llama[name]
        assert samples.peak_resident_bytes - samples.library_bytes >= size
    samples, _ = by_transformers["first"]
    assert samples.peak_resident_bytes - samples.library_bytes >= weight_bytes(TINY)
    assert samples.peak_gpu_bytes is None


def test_a_context_too_short_is_filled_and_the_rest_left_out(every_type: Made) -> None:
    asked = Trial("words ", 1000, 600, 1)
    with every_type.quantizer.open_alone(every_type.variants["Q4_K_M"]) as runtime:
        samples = runtime.perform(asked, lambda _: None)

    assert (samples.prompt_tokens, samples.new_tokens) == (256, 256)
    (note,) = samples.notes
    assert note == (
        "the model's context of 512 tokens is shorter than the 1600 that promptTokens and "
        "newTokens ask for: 256 and 256 were taken"
    )


class Noted:
    """A subject that computes nothing, and remembers what it was asked."""

    context_length = 64
    opening = (1,)
    gpu = ""

    def __init__(self) -> None:
        self.prompts: list[list[int]] = []
        self.steps = 0
        self.batches: list[int] = []

    def tokenize(self, text: str) -> TokenArray:
        return np.arange(2, 2 + len(text.split()), dtype=np.int32)

    def read(self, prompt: TokenArray) -> int:
        self.prompts.append(prompt.tolist())
        return 0

    def step(self, token: int) -> int:
        self.steps += 1
        return token

    def spread(self, prompt: TokenArray, size: int, steps: int) -> list[int] | str:
        del prompt, steps
        return [0] * size if size < 8 else "the texts would not fit"

    def step_all(self, tokens: Sequence[int]) -> list[int]:
        self.batches.append(len(tokens))
        return list(tokens)

    def peak_gpu_bytes(self) -> int | None:
        return None


def test_the_warm_up_is_done_and_not_counted() -> None:
    subject = Noted()
    trial = Trial("one two three", 8, 4, 2, (2,))
    samples = measure(subject, trial, loaded=Loaded(), threads=1, on_step=lambda _: None)

    assert subject.prompts == 3 * [[1, 2, 3, 4, 2, 3, 4, 2]]
    assert subject.steps == 3 * 4
    assert subject.batches == 3 * 4 * [2]
    assert len(samples.generation_seconds) == len(samples.batches[0].seconds) == 2


def test_a_batch_that_does_not_fit_is_left_out_with_a_sentence() -> None:
    trial = Trial("one two three", 8, 4, 1, (2, 8))
    samples = measure(Noted(), trial, loaded=Loaded(), threads=1, on_step=lambda _: None)

    assert [batch.size for batch in samples.batches] == [2]
    assert samples.notes == ("8 texts at once were not measured: the texts would not fit",)
