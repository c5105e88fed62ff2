"""Contexts at work side by side give what one context gives, in the windows' order."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from kubequant_worker.methods.gguf_runtime import LlamaEngine, LlamaRuntime

if TYPE_CHECKING:
    from pathlib import Path

    from tests.worker.methods.conftest import Made

    from kubequant_worker.evaluation.runtime import TokenArray


def rows_of(path: Path, windows: list[TokenArray], threads: int) -> list[tuple[int, np.ndarray]]:
    """Return (window, all its rows of logits) in the order in which they came."""
    engine = LlamaEngine(threads)
    try:
        with LlamaRuntime(engine, path) as runtime:
            pieces = [(piece.window, piece.rows.copy()) for piece in runtime.logits(windows)]
    finally:
        engine.close()
    return pieces


@pytest.mark.parametrize("threads", [2, 8])
def test_lanes_give_the_rows_of_one_context_in_order(every_type: Made, threads: int) -> None:
    path = every_type.baseline.path
    draw = np.random.default_rng(0)
    lengths = [512, 300, 17, 512, 1, 400, 512, 511, 33, 512, 90]
    windows = [draw.integers(3, 2048, length).astype(np.int32) for length in lengths]

    alone, together = rows_of(path, windows, 1), rows_of(path, windows, threads)

    assert [window for window, _ in together] == list(range(len(windows)))
    for (window, expected), (_, rows) in zip(alone, together, strict=True):
        assert rows.shape == expected.shape == (lengths[window], 2048)
        np.testing.assert_allclose(rows, expected, atol=1e-3)
