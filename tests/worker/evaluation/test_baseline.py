"""The original's losses taken from an earlier run: the same numbers, for less work."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from tests.api.reports import REPORT
from tests.worker.evaluation.meters import Recorder
from tests.worker.evaluation.runtimes import Table

from kubequant_worker.evaluation.baseline import (
    MOST_WINDOWS,
    Earlier,
    baseline_digest,
    earlier_losses,
    reported_losses,
    taken_original,
)
from kubequant_worker.evaluation.perplexity import (
    KEPT_TOKENS,
    Original,
    Perplexity,
    Windows,
    measure_original,
    measure_variant,
    windows,
)
from kubequant_worker.file_digest import FileDigest

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from kubequant_worker.evaluation.runtime import FloatRows, LogitRows, TokenArray

DRAW = np.random.default_rng(7)
VOCABULARY = 40
TABLE = DRAW.normal(0, 4, (VOCABULARY, VOCABULARY)).astype(np.float32)
OTHER = (TABLE + DRAW.normal(0, 1, TABLE.shape)).astype(np.float32)
STREAM = DRAW.integers(1, VOCABULARY, 3 * KEPT_TOKENS).astype(np.int32)
FILES = [FileDigest("model.safetensors", 10, "a" * 64), FileDigest("config.json", 2, "b" * 64)]


class Counting(Table):
    """Counts the tokens that it computes."""

    def __init__(self, table: FloatRows) -> None:
        super().__init__(table, batch=256)
        self.computed = 0

    def logits(self, windows: Sequence[TokenArray]) -> Iterator[LogitRows]:
        self.computed += sum(len(one) for one in windows)
        return super().logits(windows)


def cut(tokens: int = len(STREAM)) -> Windows:
    return windows(STREAM, context_length=256, bos_token=0, max_tokens=tokens)


def whole(folder: Path, pieces: Windows) -> Original:
    return measure_original(Counting(TABLE), pieces, keep=folder / "whole.f16", meter=Recorder())


def taken(folder: Path, table: FloatRows, earlier: Earlier) -> tuple[Counting, Original | None]:
    runtime, meter = Counting(table), Recorder()
    found = taken_original(runtime, cut(), earlier, keep=folder / "taken.f16", meter=meter)
    assert meter.done == meter.total
    return runtime, found


def report(**original: object) -> bytes:
    body = REPORT.model_dump(mode="json", by_alias=True, exclude_none=True)
    body["original"] |= original
    return (
        type(REPORT)
        .model_validate_json(type(REPORT).model_validate(body).model_dump_json(by_alias=True))
        .model_dump_json(by_alias=True)
        .encode()
    )


def test_what_is_taken_is_what_measuring_gives_at_a_third_of_the_work(tmp_path: Path) -> None:
    measured = whole(tmp_path, cut())
    losses = np.array([float(text) for text in reported_losses(measured.perplexity)])
    runtime, found = taken(tmp_path, TABLE, Earlier("s3://b/report.json", losses))

    assert found is not None
    assert runtime.computed < 0.4 * len(STREAM)
    assert found.perplexity.value == pytest.approx(measured.perplexity.value, rel=1e-9)
    assert found.perplexity.standard_error == pytest.approx(
        measured.perplexity.standard_error, rel=1e-6
    )
    of_taken, of_measured = (
        measure_variant(Counting(OTHER), cut(), original, meter=Recorder())
        for original in (found, measured)
    )
    assert of_taken.mean_kl_divergence == of_measured.mean_kl_divergence
    assert of_taken.perplexity_increase_standard_error == pytest.approx(
        of_measured.perplexity_increase_standard_error, rel=1e-5
    )


def test_losses_that_do_not_come_out_again_are_not_taken(tmp_path: Path) -> None:
    losses = whole(tmp_path, cut()).perplexity.window_losses
    _, found = taken(tmp_path, OTHER, Earlier("s3://b/report.json", losses))

    assert found is None


def test_where_all_windows_are_needed_there_is_nothing_to_spare(tmp_path: Path) -> None:
    pieces = cut(tokens=2000)
    losses = whole(tmp_path, pieces).perplexity.window_losses
    runtime = Counting(TABLE)
    keep = tmp_path / "taken.f16"

    found = taken_original(runtime, pieces, Earlier("", losses), keep=keep, meter=Recorder())

    assert found is None
    assert runtime.computed == 0


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(baseline_digest(FILES[:1], cut(), "t 1 in float32"), id="other files"),
        pytest.param(baseline_digest(FILES, cut(9000), "t 1 in float32"), id="fewer tokens"),
        pytest.param(baseline_digest(FILES, cut(), "t 2 in float32"), id="another version"),
        pytest.param(
            baseline_digest(
                FILES, windows(STREAM, context_length=128, bos_token=0, max_tokens=99999), "t 1"
            ),
            id="other windows",
        ),
    ],
)
def test_the_digest_knows_what_decides_the_losses(other: str) -> None:
    assert other != baseline_digest(FILES, cut(), "t 1 in float32")


def test_the_digest_does_not_depend_on_the_order_of_files() -> None:
    assert baseline_digest(FILES[::-1], cut(), "t") == baseline_digest(FILES, cut(), "t")


def test_only_a_report_with_the_same_digest_and_all_windows_counts() -> None:
    detail = {"windowLosses": ["10.5", "11.25"], "windows": 2}
    good = report(baselineSha256="c" * 64, perplexityDetail=detail)
    reports = [
        ("none", b"no JSON"),
        ("other", report(baselineSha256="d" * 64, perplexityDetail=detail)),
        ("short", report(baselineSha256="c" * 64, perplexityDetail={"windowLosses": ["1"]})),
        ("good", good),
        ("late", good),
    ]
    found = earlier_losses(reports, "c" * 64, 2)

    assert found is not None
    assert found.uri == "good"
    assert found.window_losses.tolist() == [10.5, 11.25]
    assert earlier_losses(reports, "e" * 64, 2) is None


def test_a_report_keeps_the_losses_of_a_bounded_number_of_windows() -> None:
    losses = np.ones(MOST_WINDOWS + 1)

    assert reported_losses(Perplexity(1.0, 0.0, 0.0, 1, losses, losses, losses)) == ()
