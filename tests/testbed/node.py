"""The files and commands of a node: containerd, kubelet, kube-proxy and CoreDNS in namespaces of
their own.

A small process holds a mount, a network and a process namespace, and every program of the node
runs in them: what they mount, which chains they add to iptables, which pods they start is seen
nowhere else, and ends with the holder. What a namespace does not hold, cgroups, has a folder of
its own that `remove_cgroups` removes.
"""

from __future__ import annotations

import contextlib
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
from tests.testbed.packages import plugin_folder, program
from tests.testbed.tools import cache_folder, tool

if TYPE_CHECKING:
    from tests.testbed.certificates import Authority, Certificate
    from tests.testbed.network import Network

NAME = "node-1"
PAUSE_IMAGE = "kubequant.test/pause:1"
CONTAINERD_SOCKET = "/run/containerd/containerd.sock"

# Settings of the whole machine that kubelet wants to change. It finds them changed, in files that
# only it sees, so the machine keeps its own.
_KERNEL_SETTINGS = {
    "vm/overcommit_memory": 1,
    "vm/panic_on_oom": 0,
    "kernel/panic": 10,
    "kernel/panic_on_oops": 1,
    "kernel/keys/root_maxkeys": 1_000_000,
    "kernel/keys/root_maxbytes": 25_000_000,
}


def holder_command(folder: Path, ready: Path, pause: Path) -> list[str]:
    """Return the command that makes the namespaces, says so by `ready` and then only holds them."""
    # The places that programs have built in are in memory: /run and /var/log empty, /var/lib as it
    # is with what is written over it. The cluster's own folder stays where it was.
    script = [
        "set -e",
        "mount --make-rshared /",
        "mount -t tmpfs -o mode=755 node /run",
        f"mkdir -p /run/kernel /run/lock /run/netns /run/state /run/var /run/work && cd '{folder}'",
        "mount --rbind . /run/state",
        "mount -t tmpfs -o mode=755 node /var/log",
        "mount -t overlay -o lowerdir=/var/lib,upperdir=/run/var,workdir=/run/work node /var/lib",
        f"mkdir -p '{folder}' && mount --rbind /run/state '{folder}'",
    ]
    for name, value in _KERNEL_SETTINGS.items():
        file = f"/run/kernel/{name.replace('/', '-')}"
        covers = f"echo {value} >{file} && mount --bind {file} /proc/sys/{name}"
        script += [f"[ ! -e /proc/sys/{name} ] || {{ {covers}; }}"]
    script += ["echo 1 >/proc/sys/net/ipv4/ip_forward", f"touch '{ready}'"]
    # Process 1 inherits what loses its parent, so it is a program that reaps.
    script += [f"exec '{pause}'"]
    namespaces = ["--mount", "--net", "--pid", "--fork", "--kill-child=KILL", "--mount-proc"]
    return ["unshare", *namespaces, "--propagation", "slave", "sh", "-c", "\n".join(script)]


def inner_process(holder: int) -> int:
    """Return the process that is number 1 inside, as this machine numbers it."""
    return int(psutil.Process(holder).children()[0].pid)


def inside(process: int, command: list[str]) -> list[str]:
    """Return the command that runs `command` inside the namespaces."""
    entered = ["--target", str(process), "--mount", "--net", "--pid"]
    return [program("nsenter") or "nsenter", *entered, "--", *command]


def containerd_command(folder: Path, network: Network, registry: str) -> list[str]:
    """Write containerd's files and return its command."""
    hosts = folder / "hosts" / registry
    hosts.mkdir(parents=True)
    address = f"http://{registry}"
    (hosts / "hosts.toml").write_text(
        f'server = "{address}"\n[host."{address}"]\n  capabilities = ["pull", "resolve"]\n'
    )
    plugins = folder / "cni"
    plugins.mkdir()
    bridge = {
        "type": "bridge",
        "bridge": "pods",
        "isGateway": True,
        "hairpinMode": True,
        # Servers outside see a pod by its own address: this machine has a route back.
        "ipMasq": False,
        "ipam": {
            "type": "host-local",
            "dataDir": "/run/cni",
            "ranges": [[{"subnet": network.pods, "gateway": network.first_pod}]],
            "routes": [{"dst": "0.0.0.0/0"}],
        },
    }
    ports = {"type": "portmap", "capabilities": {"portMappings": True}}
    chain = {"cniVersion": "0.4.0", "name": "pods", "plugins": [bridge, ports]}
    (plugins / "pods.conflist").write_text(json.dumps(chain, indent=2))
    (folder / "containerd.toml").write_text(
        f"""version = 2
root = "{folder}/containerd"
state = "/run/containerd"
disabled_plugins = [
  "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs",
]
[grpc]
  address = "{CONTAINERD_SOCKET}"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE_IMAGE}"
  restrict_oom_score_adj = true
  disable_apparmor = true
  stream_server_address = "127.0.0.1"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{plugin_folder()}"
    conf_dir = "{plugins}"
  [plugins."io.containerd.grpc.v1.cri".registry]
    config_path = "{folder}/hosts"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
      SystemdCgroup = false
"""
    )
    return [program("containerd") or "containerd", "--config", str(folder / "containerd.toml")]


def kubelet_command(
    folder: Path, network: Network, authority: Authority, serving: Certificate, kubeconfig: Path
) -> list[str]:
    """Write kubelet's configuration and return its command."""
    (folder / "resolv.conf").write_text("")
    configuration: dict[str, Any] = {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": network.node,
        "authentication": {"x509": {"clientCAFile": str(authority.root.certificate)}},
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": str(serving.certificate),
        "tlsPrivateKeyFile": str(serving.key),
        "containerRuntimeEndpoint": f"unix://{CONTAINERD_SOCKET}",
        "clusterDNS": [network.node],
        "clusterDomain": "cluster.local",
        "resolvConf": str(folder / "resolv.conf"),
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": f"/{cgroup(folder)}",
        "failCgroupV1": False,
        "enforceNodeAllocatable": [],
        "oomScoreAdj": 0,
        "maxOpenFiles": 20_000,
        "makeIPTablesUtilChains": False,
        "failSwapOn": False,
        "localStorageCapacityIsolation": False,
        "podLogsDir": "/var/log/pods",
        "volumePluginDir": str(folder / "volume-plugins"),
        "serializeImagePulls": False,
        # Images are the session's: nothing is collected, and a full disk is not ours to judge.
        "imageGCHighThresholdPercent": 100,
        "evictionHard": {
            "memory.available": "50Mi",
            "nodefs.available": "1%",
            "nodefs.inodesFree": "1%",
            "imagefs.available": "1%",
            "imagefs.inodesFree": "1%",
        },
        # A stopped node must not hold a test up.
        "shutdownGracePeriod": "0s",
    }
    (folder / "kubelet.json").write_text(json.dumps(configuration, indent=2))
    return [
        str(tool("kubelet")),
        f"--config={folder / 'kubelet.json'}",
        f"--kubeconfig={kubeconfig}",
        f"--root-dir={folder / 'kubelet'}",
        f"--cert-dir={folder / 'kubelet-certificates'}",
        f"--hostname-override={NAME}",
        f"--node-ip={network.node}",
    ]


def proxy_command(folder: Path, network: Network, kubeconfig: Path) -> list[str]:
    """Write kube-proxy's configuration and return its command."""
    nothing = {
        "maxPerCore": 0,
        "min": 0,
        "tcpEstablishedTimeout": "0s",
        "tcpCloseWaitTimeout": "0s",
    }
    configuration = {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "iptables",
        "bindAddress": network.node,
        "healthzBindAddress": f"{network.node}:10256",
        "metricsBindAddress": "127.0.0.1:10249",
        "hostnameOverride": NAME,
        "clusterCIDR": network.pods,
        "clientConnection": {"kubeconfig": str(kubeconfig)},
        "conntrack": {**nothing, "udpTimeout": "0s", "udpStreamTimeout": "0s"},
        # A new Service is there at once: tests wait for it.
        "iptables": {"minSyncPeriod": "100ms", "syncPeriod": "30s"},
    }
    file = folder / "kube-proxy.json"
    file.write_text(json.dumps(configuration, indent=2))
    return [str(tool("kube-proxy")), f"--config={file}"]


def dns_command(folder: Path, network: Network, kubeconfig: Path) -> list[str]:
    """Write CoreDNS's configuration and return its command. Outside names do not exist."""
    file = folder / "Corefile"
    file.write_text(
        f"""cluster.local:53 in-addr.arpa:53 {{
    bind {network.node}
    errors
    ready {network.node}:8181
    kubernetes cluster.local in-addr.arpa {{
        kubeconfig {kubeconfig}
        ttl 1
    }}
}}
.:53 {{
    bind {network.node}
    errors
    template ANY ANY {{
        rcode NXDOMAIN
    }}
}}
"""
    )
    return [str(tool("coredns")), "-conf", str(file)]


def registry_command(folder: Path, address: str) -> list[str]:
    """Write the image registry's configuration and return its command."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "registry.json"
    # Layers of gigabytes are pushed once: blobs are named by their digests, so that clusters share.
    storage = {"filesystem": {"rootdirectory": str(cache_folder() / "registry")}}
    content = {"version": "0.1", "storage": storage, "http": {"addr": address}}
    file.write_text(json.dumps({**content, "log": {"level": "warn"}}))
    return [str(tool("registry")), "serve", str(file)]


def cgroup(folder: Path) -> str:
    """Return the name of the cgroup that holds every pod of the cluster in `folder`."""
    return f"kubequant-{folder.name}"


def make_cgroups(name: str) -> None:
    """Make the cgroup in every hierarchy: kubelet asks for it to be there."""
    for root in _hierarchies():
        (root / name).mkdir(exist_ok=True)


def remove_cgroups(name: str) -> None:
    """Remove the cgroup and all below it, innermost first, once their processes have ended."""
    for root in _hierarchies():
        deadline = time.monotonic() + 5
        while (root / name).exists() and time.monotonic() < deadline:
            below = [folder for folder in (root / name).rglob("*") if folder.is_dir()]
            for folder in (*sorted(below, reverse=True), root / name):
                with contextlib.suppress(OSError):
                    folder.rmdir()


def _hierarchies() -> list[Path]:
    """Return where the kernel shows cgroups: one folder in version 2, one a controller in 1."""
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    found = [Path(place) for _, place, kind, *_ in mounts if kind in {"cgroup", "cgroup2"}]
    # Version 2 beside version 1 has no controllers, but programs may stand in it all the same.
    return list(dict.fromkeys(found))
