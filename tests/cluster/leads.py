"""Who administers one namespace and nothing else of a cluster."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.testbed.access import Access


def lead_of(cluster: Access, namespace: str) -> str:
    """Return the name of a user who administers the namespace, and nothing else."""
    name = f"lead-of-{namespace}"
    words = ("--clusterrole=admin", f"--user={name}", f"--namespace={namespace}")
    cluster.kubectl("create", "rolebinding", name, *words)
    return name


def until_allowed(cluster: Access, *words: str) -> None:
    """Wait until the controller manager has aggregated new rights into the old roles."""
    deadline = time.monotonic() + 60
    while cluster.kubectl("auth", "can-i", *words, check=False).returncode:
        assert time.monotonic() < deadline, words
        time.sleep(0.3)
