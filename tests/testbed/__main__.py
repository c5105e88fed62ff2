"""`python -m tests.testbed up|down`: a cluster for people, as the tests have it.

`up` returns to the shell with everything running; `down` ends it by what `up` wrote down.
"""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

from tests.testbed.cluster import Cluster, clusters, remove
from tests.testbed.processes import S3Server, start_s3
from tests.testbed.tools import tool

if TYPE_CHECKING:
    from pathlib import Path

    from tests.testbed.cluster import Belongings

S3_NAMESPACE, S3_PORT = "storage", 9000


def up() -> int:
    """Start a cluster and an S3 server, unless they run, and say how they are reached."""
    for folder in running():
        said = folder / "up.txt"
        if not said.exists():
            raise SystemExit("another start has not finished, or failed: make cluster-down ends it")
        print(said.read_text(), end="")
        return 0
    started = time.monotonic()

    def say(text: str) -> None:
        print(f"{time.monotonic() - started:5.1f} s  {text}", file=sys.stderr, flush=True)

    say("programs: built where the cache has none of them (once, ten minutes on two cores)")
    Cluster.build()
    tool("versitygw")
    cluster = Cluster(detached=True)
    try:
        say("control plane: etcd, kube-apiserver, kube-controller-manager, kube-scheduler")
        cluster.start_control_plane()
        say("node: containerd, kubelet, kube-proxy, CoreDNS, an image registry")
        cluster.start_node()
        say("S3 server: versitygw")
        s3 = start_s3(cluster.processes, cluster.folder / "s3", cluster.host_address)
        cluster.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": S3_NAMESPACE}})
        address = cluster.expose(S3_NAMESPACE, "s3", S3_PORT, s3.port)
        text = summary(cluster, s3, address)
        (cluster.folder / "up.txt").write_text(text)
    except BaseException:
        say("that failed; removing what was started")
        cluster.close()
        raise
    say("ready")
    print(text, end="")
    return 0


def summary(cluster: Cluster, s3: S3Server, address: str) -> str:
    """Return what a person needs to know of the cluster, each line for a shell."""
    return f"""export KUBECONFIG={cluster.kubeconfig}
# S3 from this machine, and from pods at {address}:
export AWS_ENDPOINT_URL={s3.endpoint} AWS_REGION=us-east-1
export AWS_ACCESS_KEY_ID={s3.access_key} AWS_SECRET_ACCESS_KEY={s3.secret_key}
# images: push (plain HTTP) and pull by the name {cluster.registry}/...
# logs: {cluster.logs}; the end of it all: make cluster-down
"""


def down() -> int:
    """Stop and remove every cluster that `up` started."""
    for folder, owned in running().items():
        print(f"stopped {', '.join(remove(folder, owned))}", file=sys.stderr)
    return 0


def running() -> dict[Path, Belongings]:
    """Return the clusters that `up` started."""
    return {folder: owned for folder, owned in clusters().items() if owned.detached}


if __name__ == "__main__":
    commands = {"up": up, "down": down}
    if sys.argv[1:] not in [[name] for name in commands]:
        raise SystemExit("usage: python -m tests.testbed up|down")
    raise SystemExit(commands[sys.argv[1]]())
