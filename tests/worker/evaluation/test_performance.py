"""Medians, deviations and a speedup, by numbers that can be checked by hand."""

from __future__ import annotations

import math
import statistics

import pytest

from kubequant_worker.evaluation.performance import (
    BatchSamples,
    Performance,
    Samples,
    Trial,
    performance,
    speedup,
)


def samples(
    *generation_seconds: float, resident: int = 100, gpu: int | None = None, threads: int = 2
) -> Samples:
    return Samples(
        prompt_tokens=512,
        new_tokens=128,
        first_token_seconds=tuple(0.5 + one for one in generation_seconds),
        prompt_seconds=tuple(0.25 * one for one in generation_seconds),
        generation_seconds=generation_seconds,
        batches=(BatchSamples(4, 128, (2.0, 1.0, 4.0)),),
        load_seconds=1.5,
        cpu_seconds=3.0,
        wall_seconds=2.0,
        threads=threads,
        peak_resident_bytes=resident,
        library_bytes=10,
        peak_gpu_bytes=gpu,
        gpu="",
        process_id=1,
    )


def timed(*generation_seconds: float) -> Performance:
    return performance(samples(*generation_seconds), "an engine")


def test_a_rate_is_the_median_of_the_repetitions_and_not_of_their_mean() -> None:
    measured = timed(1.0, 2.0, 16.0)

    assert measured.tokens_per_second.median == 64
    assert measured.prompt_tokens_per_second.median == 1024
    assert measured.first_token_seconds.median == 2.5
    assert measured.batches[0].tokens_per_second.median == 64


def test_the_spread_is_the_standard_deviation_of_the_rates() -> None:
    measured = timed(1.0, 2.0, 4.0)

    expected = statistics.stdev([128.0, 64.0, 32.0])
    assert measured.tokens_per_second.deviation == pytest.approx(expected)
    assert measured.tokens_per_second.repetitions == 3


def test_a_single_repetition_has_no_spread_and_its_speedup_no_error() -> None:
    measured = timed(2.0)

    assert measured.tokens_per_second.deviation is None
    assert speedup(measured, timed(1.0, 1.0)) == (2.0, None)


def test_a_speedup_divides_the_medians_and_its_errors_add_as_squares() -> None:
    original, variant = timed(2.0, 2.0, 4.0), timed(1.0, 1.0, 2.0)
    ratio, error = speedup(original, variant)

    # Both have the same relative spread: 32 / sqrt(3) of 64, times sqrt(pi / 2) for a median.
    one = math.sqrt(math.pi / 2) * (32 / math.sqrt(3)) / (math.sqrt(3) * 64)
    assert ratio == 2
    assert error == pytest.approx(2 * math.sqrt(2) * one)


def test_a_model_is_as_fast_as_itself() -> None:
    measured = timed(1.0, 2.0, 3.0)

    assert speedup(measured, measured)[0] == 1


def test_the_memory_that_counts_is_that_of_where_it_computed() -> None:
    on_cpu, on_gpu = samples(1.0), samples(1.0, gpu=7)

    assert performance(on_cpu, "").peak_memory_bytes == 100
    assert performance(on_gpu, "").peak_memory_bytes == 7


def test_processor_time_is_a_share_of_what_all_threads_could_have_had() -> None:
    assert timed(1.0).cpu_percent == 75


def test_a_trial_counts_its_warm_up_repetitions_and_batches() -> None:
    assert Trial("text", 8, 8, 3, (2, 4)).steps == 6
