"""transformers' logits for the check of a conversion: beside it or after it, always the same."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np
import pytest
from tests.worker.methods.conftest import TINY

from kubequant_worker.methods import gguf_reference
from kubequant_worker.methods.gguf_convert import Converter
from kubequant_worker.methods.gguf_file import read_header
from kubequant_worker.methods.gguf_reference import ReferenceLogits, conversion_bytes

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

GIB = 1 << 30


@pytest.fixture(name="free")
def free_memory(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Set how much memory is free."""

    def say(amount: int) -> None:
        monkeypatch.setattr(gguf_reference, "available_bytes", lambda: amount)

    return say


class Starts:
    """Starts converting children, and keeps them."""

    def __init__(self) -> None:
        self.children: list[Converter] = []

    def __call__(self) -> Converter:
        self.children.append(Converter(threads=2, trust_remote_code=False))
        return self.children[-1]


def test_beside_the_conversion_and_after_it_come_the_same_logits(
    tmp_path: Path, free: Callable[[int], None]
) -> None:
    found = {}
    for name, amount in (("beside", 16 * GIB), ("after", 3 * GIB)):
        free(amount)
        begun = Starts()
        reference = ReferenceLogits(tmp_path / f"{name}.npy", begun)
        with begun() as converter:
            reference.prepare()
            reference.begin(TINY)
            converter.convert(TINY, tmp_path / f"{name}.gguf", name="tiny", on_bytes=print)
            header = read_header(tmp_path / f"{name}.gguf")
            ids = reference.finish(TINY, converter, header)
        assert reference.warnings == ()
        found[name] = ids, reference.logits(), len(begun.children)

    beside, after = found["beside"], found["after"]
    assert (beside[2], after[2]) == (2, 1), "a child of its own only where memory is ample"
    assert beside[0] == after[0]
    assert beside[1].shape == (len(beside[0] or ()), 2048)
    np.testing.assert_array_equal(beside[1], after[1])


def test_what_memory_does_not_hold_beside_the_conversion_waits_for_its_end(
    tmp_path: Path, free: Callable[[int], None]
) -> None:
    size = (TINY / "model.safetensors").stat().st_size
    begun = Starts()
    reference = ReferenceLogits(tmp_path / "x.npy", begun)
    free(16 * GIB)
    reference.prepare()
    free(conversion_bytes(size) + GIB)

    reference.begin(TINY)

    with pytest.raises(ProcessLookupError):
        os.kill(begun.children[0].pid, 0)
    assert not (tmp_path / "x.npy").exists()


def test_with_too_little_memory_the_report_says_that_nothing_was_checked(
    tmp_path: Path, free: Callable[[int], None]
) -> None:
    free(GIB // 2)
    with Starts()() as converter:
        converter.convert(TINY, tmp_path / "x.gguf", name="tiny", on_bytes=print)
        reference = ReferenceLogits(tmp_path / "x.npy", Starts())
        ids = reference.finish(TINY, converter, read_header(tmp_path / "x.gguf"))

    assert ids is None
    (warning,) = reference.warnings
    assert warning.startswith("the conversion was not checked against transformers: that takes")
    assert warning.endswith("and 512 MiB are free")
