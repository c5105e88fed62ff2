"""A cluster of the test bed's own goes without a trace, also where its node has run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest
from tests.testbed import node
from tests.testbed.cluster import Cluster

if TYPE_CHECKING:
    from tests.testbed.access import Access


pytestmark = pytest.mark.own_cluster


def traces(cluster: Cluster) -> list[str]:
    """Return what this machine shows of a cluster: processes, its link, cgroups, mounts, files."""
    folder = str(cluster.folder)
    found = [
        f"process {process.info['cmdline']}"
        for process in psutil.process_iter(["cmdline"])
        if any(folder in word for word in process.info["cmdline"] or ())
    ]
    link = Path("/sys/class/net") / cluster.network.link
    cgroups = Path("/sys/fs/cgroup").glob(f"**/{node.cgroup(cluster.folder)}")
    found += [str(place) for place in (link, cluster.folder, *cgroups) if place.exists()]
    mounts = Path("/proc/self/mounts").read_text().splitlines()
    return found + [line for line in mounts if folder in line]


def test_a_second_cluster_runs_beside_the_first_and_leaves_nothing_behind(
    control_plane: Access, tmp_path: Path
) -> None:
    second = Cluster(logs=tmp_path)
    try:
        second.start_control_plane()
        second.start_node()
        while_it_runs = traces(second)
        assert second.kubectl("get", "nodes", "-o=name").stdout.split() == ["node/node-1"]
        assert second.server != control_plane.server
    finally:
        second.close()

    assert len(while_it_runs) > 10
    assert traces(second) == []


def test_a_start_that_fails_says_why_and_leaves_nothing_behind(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    command = node.kubelet_command
    monkeypatch.setattr(node, "kubelet_command", lambda *words: [*command(*words), "--not-there"])
    cluster = Cluster(logs=tmp_path)
    try:
        cluster.start_control_plane()
        with pytest.raises(RuntimeError, match="unknown flag: --not-there"):
            cluster.start_node()
    finally:
        cluster.close()

    assert traces(cluster) == []
