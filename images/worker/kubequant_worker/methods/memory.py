"""How much memory this process may still take.

The pod's limit, or the machine's, whichever is nearer.
"""

from __future__ import annotations

from pathlib import Path

CGROUP_ROOT = Path("/sys/fs/cgroup")
MEMINFO = Path("/proc/meminfo")


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None


def _reclaimable(stat: Path) -> int:
    """Return the page cache, in bytes, that the kernel can take back, by memory.stat."""
    try:
        pairs = dict(line.split() for line in stat.read_text(encoding="ascii").splitlines())
    except (OSError, ValueError):
        return 0
    return int(pairs.get("inactive_file", 0)) + int(pairs.get("active_file", 0))


def limit_bytes(root: Path = CGROUP_ROOT, meminfo: Path = MEMINFO) -> int:
    """Return the bytes that may be in use in all: the cgroup's limit, or the machine's memory."""
    limits = [_number(root / "memory.max"), _number(root / "memory" / "memory.limit_in_bytes")]
    lines = meminfo.read_text(encoding="ascii").splitlines()
    whole = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemTotal:")]
    return min([*(limit for limit in limits if limit is not None), *whole], default=0)


def available_bytes(root: Path = CGROUP_ROOT, meminfo: Path = MEMINFO) -> int:
    """Return the bytes that can still be taken, by the cgroup's limit (v2.

    Then v1) and /proc/meminfo.
    """
    free = []
    for folder, limit_name, used_name in (
        (root, "memory.max", "memory.current"),
        (root / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
    ):
        limit, used = _number(folder / limit_name), _number(folder / used_name)
        if limit is not None and used is not None:
            free.append(max(0, limit - used + _reclaimable(folder / "memory.stat")))
    lines = meminfo.read_text(encoding="ascii").splitlines()
    free += [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    return min(free) if free else 0
