"""How many threads this process may really use: the pod's CPU limit, not the node's cores.

With more threads than the limit allows, the kernel stops all of them for part of every period, and
an engine whose threads wait for each other gets slower than with one.
"""

from __future__ import annotations

import math
import os
from pathlib import Path

CGROUP_ROOT = Path("/sys/fs/cgroup")


def limit_from_cpu_max(text: str) -> float | None:
    """Return the CPUs that a cgroup v2 `cpu.max` ("quota period") grants.

    None for "max" or nonsense.
    """
    quota, _, period = text.strip().partition(" ")
    return _ratio(quota, period or "100000")


def limit_from_cfs(quota: str, period: str) -> float | None:
    """Return the CPUs that cgroup v1's quota and period grant.

    None where the quota is -1 (no limit).
    """
    return _ratio(quota, period)


def _ratio(quota: str, period: str) -> float | None:
    try:
        microseconds, each = int(quota), int(period)
    except ValueError:
        return None
    return microseconds / each if microseconds > 0 and each > 0 else None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return ""


def cpu_limit(root: Path = CGROUP_ROOT) -> float | None:
    """Return the CPU limit of the cgroup mounted at `root` (v2, then v1).

    Or None where there is none.
    """
    limit = limit_from_cpu_max(_read(root / "cpu.max"))
    if limit is not None:
        return limit
    for folder in (root / "cpu", root / "cpu,cpuacct"):
        limit = limit_from_cfs(
            _read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us")
        )
        if limit is not None:
            return limit
    return None


def thread_count(root: Path = CGROUP_ROOT) -> int:
    """Return the threads to start.

    The CPUs of the affinity mask, no more than the limit rounded down.
    """
    allowed = len(os.sched_getaffinity(0))
    limit = cpu_limit(root)
    return allowed if limit is None else max(1, min(allowed, math.floor(limit)))
