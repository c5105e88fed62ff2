"""Threads and memory by what a cgroup's files say."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from kubequant_worker.methods.cpu import (
    cpu_limit,
    limit_from_cfs,
    limit_from_cpu_max,
    thread_count,
)
from kubequant_worker.methods.memory import available_bytes

if TYPE_CHECKING:
    from pathlib import Path

GIB = 1 << 30


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        pytest.param("150000 100000\n", 1.5, id="one and a half CPUs"),
        pytest.param("max 100000\n", None, id="no limit"),
        pytest.param("200000", 2.0, id="a quota without its period has the default one"),
        pytest.param("", None, id="an empty file"),
        pytest.param("-1 0", None, id="nonsense"),
    ],
)
def test_cpu_max_is_quota_over_period(text: str, limit: float | None) -> None:
    assert limit_from_cpu_max(text) == limit


def test_a_quota_of_minus_one_is_no_limit() -> None:
    assert limit_from_cfs("-1", "100000") is None
    assert limit_from_cfs("400000", "100000") == 4


def test_threads_are_the_limit_rounded_down_and_never_none(tmp_path: Path) -> None:
    allowed = len(os.sched_getaffinity(0))
    assert thread_count(tmp_path) == allowed
    (tmp_path / "cpu.max").write_text("50000 100000\n")
    assert thread_count(tmp_path) == 1
    (tmp_path / "cpu.max").write_text("150000 100000\n")
    assert thread_count(tmp_path) == 1
    (tmp_path / "cpu.max").write_text("99900000 100000\n")
    assert thread_count(tmp_path) == allowed


def test_version_one_of_cgroups_is_read_where_version_two_is_not(tmp_path: Path) -> None:
    folder = tmp_path / "cpu"
    folder.mkdir()
    (folder / "cpu.cfs_quota_us").write_text("100000\n")
    (folder / "cpu.cfs_period_us").write_text("50000\n")
    assert cpu_limit(tmp_path) == 2


def test_free_memory_is_the_nearer_of_limit_and_machine(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text(f"MemTotal: 1 kB\nMemAvailable: {8 * GIB // 1024} kB\n")
    assert available_bytes(tmp_path, meminfo) == 8 * GIB
    (tmp_path / "memory.max").write_text(f"{4 * GIB}\n")
    (tmp_path / "memory.current").write_text(f"{3 * GIB}\n")
    (tmp_path / "memory.stat").write_text(f"inactive_file {GIB}\nactive_file 0\n")
    assert available_bytes(tmp_path, meminfo) == 2 * GIB, "page cache can be taken back"
    (tmp_path / "memory.max").write_text("max\n")
    assert available_bytes(tmp_path, meminfo) == 8 * GIB
