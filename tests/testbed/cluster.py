"""A Kubernetes cluster on this machine: a control plane, and a node when one is asked for.

Everything a cluster has is in one folder or in the `Belongings` written there, so that
`remove` leaves nothing behind, whoever calls it: the fixture that started the cluster,
`make cluster-down`, or the next start after a run that was killed.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import shutil
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.testbed import controlplane, network, node, packages
from tests.testbed.access import Access
from tests.testbed.certificates import Authority
from tests.testbed.kubeconfig import certificate_user, write_kubeconfig
from tests.testbed.processes import Processes, free_port, start_ticks, stop_recorded
from tests.testbed.scratch import PAUSE, compiled_c, scratch_image
from tests.testbed.tools import cache_folder, tool

if TYPE_CHECKING:
    from collections.abc import Callable

NODE_SECONDS = 90.0
# All of a cluster is thrown away: nobody waits for its programs to finish what they do.
STOP_SECONDS = 1.0
CONTROL_PLANE = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler")
NODE = ("kubelet", "kube-proxy", "coredns", "registry")


def clusters_folder() -> Path:
    """Return the folder of all clusters of this user."""
    return cache_folder() / "clusters"


@dataclass
class Belongings:
    """What a cluster has outside its folder, and whose it is."""

    owner: int
    owner_started: int
    detached: bool
    network: int

    def write(self, folder: Path) -> None:
        """Write it down at once or not at all: another program may read it at any moment."""
        partial = folder / "belongings.partial"
        partial.write_text(json.dumps(asdict(self)))
        partial.rename(folder / "belongings.json")

    def is_wanted(self) -> bool:
        """Whether the program that started the cluster runs, or said that it outlives it."""
        return self.detached or start_ticks(self.owner) == self.owner_started


@dataclass(frozen=True)
class _Component:
    command: list[str]
    is_ready: Callable[[], bool]


def clusters() -> dict[Path, Belongings]:
    """Return the folder and the belongings of every cluster of this user."""
    found = {}
    for file in clusters_folder().glob("*/belongings.json"):
        # Another run may remove its cluster meanwhile.
        with contextlib.suppress(FileNotFoundError):
            found[file.parent] = Belongings(**json.loads(file.read_text()))
    return found


def remove(folder: Path, owned: Belongings) -> list[str]:
    """Stop and remove all that the cluster in `folder` has; return what still ran."""
    record = folder / "processes.json"
    stopped = stop_recorded(record, STOP_SECONDS) if record.exists() else []
    network.Network(owned.network).remove()
    node.remove_cgroups(node.cgroup(folder))
    shutil.rmtree(folder)
    return stopped


def remove_abandoned() -> None:
    """Remove what runs left that were killed before they could."""
    clusters_folder().mkdir(parents=True, exist_ok=True)
    # Of two runs that start at once, one removes and the other finds it done.
    with (clusters_folder() / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for folder, owned in clusters().items():
            if not owned.is_wanted():
                remove(folder, owned)


class Cluster(Access):
    """A cluster of its own addresses, ports, folder and namespaces.

    `close` it also where a start fails. What is `detached` runs on when this program ends.
    """

    def __init__(self, *, logs: Path | None = None, detached: bool = False) -> None:
        packages.install()
        remove_abandoned()
        self.folder = clusters_folder() / secrets.token_hex(3)
        self.folder.mkdir(mode=0o700)
        self.network = network.reserve()
        me = os.getpid()
        self._belongings = Belongings(me, start_ticks(me), detached, self.network.number)
        self._belongings.write(self.folder)
        self.logs = logs or self.folder / "logs"
        self.logs.mkdir(exist_ok=True)
        record = self.folder / "processes.json"
        self.processes = Processes(
            self.logs, record=record, detached=detached, stop_seconds=STOP_SECONDS
        )
        self._components: dict[str, _Component] = {}
        try:
            self._authority = Authority(self.folder / "certificates")
            self._api_port = free_port(self.host_address)
            self.registry = f"{self.host_address}:{free_port(self.host_address)}"
            super().__init__(
                self._kubeconfig("admin", "admin", "system:masters"),
                tool("kubectl"),
                self.folder / "kubeconfigs",
            )
        except BaseException:
            self.close()
            raise

    @property
    def host_address(self) -> str:
        """This machine's address towards pods; servers of ours outside the cluster listen there."""
        return self.network.host

    @property
    def server(self) -> str:
        return f"https://{self.host_address}:{self._api_port}"

    @staticmethod
    def build() -> None:
        """Build every program that the cache has none of yet; it says which, and how far it is."""
        for name in (*CONTROL_PLANE, "kubectl", *NODE):
            tool(name)

    def start_control_plane(self, *, controllers: bool = True) -> None:
        """Start etcd, the API server and, unless told not to, controller manager and scheduler."""
        names = CONTROL_PLANE if controllers else CONTROL_PLANE[:2]
        self._components |= self._control_plane()
        for name in names:
            self._launch(name)
        for name in names:
            self._wait(name)

    def start_node(self) -> None:
        """Start the node, unless it runs, and wait until pods can be scheduled to it."""
        if self.processes.runs("kubelet"):
            return
        pause = compiled_c(self.folder, "pause", PAUSE)
        self._start_containerd(pause)
        self._components |= self._node()
        for name in NODE:
            self._launch(name)
        self._import_pause(pause)
        for name in NODE:
            self._wait(name)
        self.processes.wait("kubelet", self._node_takes_pods, NODE_SECONDS)

    def start(self, name: str) -> None:
        """Start one component again that was stopped, and wait until it is ready."""
        self._launch(name)
        self._wait(name)

    def stop(self, name: str) -> None:
        """Stop one component by the name of its program."""
        self.processes.stop(name)

    def close(self) -> None:
        """Stop everything in reverse order and leave nothing behind."""
        self.processes.stop()
        remove(self.folder, self._belongings)

    def kubeconfig_for_user(self, user: str, groups: tuple[str, ...] = ()) -> Path:
        """Return a kubeconfig of a user of that name, known by a client certificate."""
        return self._kubeconfig(
            f"user-{user.replace(':', '-')}-{secrets.token_hex(3)}", user, *groups
        )

    def ctr(self, *words: str) -> str:
        """Run containerd's own client in the namespace that kubelet uses."""
        command = ["ctr", f"--address={node.CONTAINERD_SOCKET}", "--namespace=k8s.io", *words]
        done = subprocess.run(self._inside(command), capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"ctr {' '.join(words)}: {done.stderr}")
        return done.stdout

    def _control_plane(self) -> dict[str, _Component]:
        etcd, peer, manager, scheduler = (free_port() for _ in range(4))
        authority, host = self._authority, self.host_address
        server = authority.server("kube-apiserver", controlplane.api_server_addresses(self.network))
        kubelet_client = authority.client("kube-apiserver", ["system:masters"])
        root = authority.root.certificate
        answers = controlplane.answers_ok
        return {
            "etcd": _Component(
                controlplane.etcd_command(self.folder / "etcd", etcd, peer),
                answers("127.0.0.1", etcd, "/health", tls=False),
            ),
            "kube-apiserver": _Component(
                controlplane.api_server_command(
                    authority,
                    server,
                    kubelet_client,
                    self.network,
                    port=self._api_port,
                    etcd_port=etcd,
                ),
                answers(host, self._api_port, "/readyz", authority=root),
            ),
            "kube-controller-manager": _Component(
                controlplane.controller_manager_command(
                    authority,
                    self._kubeconfig("controller-manager", "system:kube-controller-manager"),
                    manager,
                ),
                answers("127.0.0.1", manager, "/healthz"),
            ),
            "kube-scheduler": _Component(
                controlplane.scheduler_command(
                    self._kubeconfig("scheduler", "system:kube-scheduler"), scheduler
                ),
                answers("127.0.0.1", scheduler, "/healthz"),
            ),
        }

    def _node(self) -> dict[str, _Component]:
        folder, net = self.folder, self.network
        serving = self._authority.server(node.NAME, [f"DNS:{node.NAME}", f"IP:{net.node}"])
        kubelet = self._kubeconfig("kubelet", f"system:node:{node.NAME}", "system:nodes")
        proxy = self._kubeconfig("kube-proxy", "system:kube-proxy")
        # CoreDNS only reads, but no role that every cluster has names all it reads.
        dns = self._kubeconfig("coredns", "coredns", "system:masters")
        address, port = self.registry.split(":")
        answers = controlplane.answers_ok
        return {
            "kubelet": _Component(
                self._inside(node.kubelet_command(folder, net, self._authority, serving, kubelet)),
                lambda: True,
            ),
            "kube-proxy": _Component(
                self._inside(node.proxy_command(folder, net, proxy)),
                answers(net.node, 10256, "/livez", tls=False),
            ),
            "coredns": _Component(
                self._inside(node.dns_command(folder, net, dns)),
                answers(net.node, 8181, "/ready", tls=False),
            ),
            "registry": _Component(
                node.registry_command(folder / "registry", self.registry),
                answers(address, int(port), "/v2/", tls=False),
            ),
        }

    def _start_containerd(self, pause: Path) -> None:
        node.make_cgroups(node.cgroup(self.folder))
        ready = self.folder / "node.ready"
        self._components["node"] = _Component(
            node.holder_command(self.folder, ready, pause), ready.exists
        )
        self.start("node")
        self.network.join_node(self._inner())
        command = node.containerd_command(self.folder, self.network, self.registry)
        socket = Path(f"/proc/{self._inner()}/root{node.CONTAINERD_SOCKET}")
        self._components["containerd"] = _Component(self._inside(command), socket.exists)
        self.start("containerd")

    def _node_takes_pods(self) -> bool:
        """Whether the node is ready and the controllers have taken its taints away."""
        shown = self.kubectl("get", "node", node.NAME, "-o=json", check=False).stdout
        if not shown:
            return False
        body = json.loads(shown)
        conditions = {each["type"]: each["status"] for each in body["status"]["conditions"]}
        return conditions.get("Ready") == "True" and not body["spec"].get("taints")

    def _import_pause(self, pause: Path) -> None:
        archive = self.folder / "pause.tar"
        scratch_image(pause).write_archive(archive, node.PAUSE_IMAGE)
        self.ctr("images", "import", str(archive))

    def _inner(self) -> int:
        return node.inner_process(self.processes.pid("node"))

    def _inside(self, command: list[str]) -> list[str]:
        return node.inside(self._inner(), command)

    def _launch(self, name: str) -> None:
        self.processes.launch(name, self._components[name].command, {})

    def _wait(self, name: str) -> None:
        self.processes.wait(name, self._components[name].is_ready, NODE_SECONDS)

    def _kubeconfig(self, name: str, user: str, *groups: str) -> Path:
        shown: dict[str, Any] = certificate_user(self._authority.client(user, groups))
        file = self.folder / f"{name}.kubeconfig"
        return write_kubeconfig(file, self.server, self._authority.root.certificate, shown)
