"""The commands of the programs that make a control plane, and when each is ready.

Values in, commands out; `cluster` starts them.
"""

from __future__ import annotations

import contextlib
import http.client
import ssl
from typing import TYPE_CHECKING

from tests.testbed.tools import tool

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.testbed.certificates import Authority, Certificate
    from tests.testbed.network import Network

# Everything that a certificate of the API server is asked for.
API_NAMES = (
    *("localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc"),
    "kubernetes.default.svc.cluster.local",
)


def etcd_command(folder: Path, client_port: int, peer_port: int) -> list[str]:
    """Return the command of an etcd that forgets what it holds with the machine's power."""
    client, peer = f"http://127.0.0.1:{client_port}", f"http://127.0.0.1:{peer_port}"
    return [
        str(tool("etcd")),
        f"--data-dir={folder}",
        "--name=test",
        f"--listen-client-urls={client}",
        f"--advertise-client-urls={client}",
        f"--listen-peer-urls={peer}",
        f"--initial-advertise-peer-urls={peer}",
        f"--initial-cluster=test={peer}",
        "--unsafe-no-fsync",
        "--log-level=warn",
    ]


def api_server_addresses(network: Network) -> list[str]:
    """Return the names and addresses that the API server's certificate holds."""
    addresses = ("127.0.0.1", network.host, network.first_service)
    return [f"DNS:{name}" for name in API_NAMES] + [f"IP:{address}" for address in addresses]


def api_server_command(
    authority: Authority,
    server: Certificate,
    kubelet_client: Certificate,
    network: Network,
    *,
    port: int,
    etcd_port: int,
) -> list[str]:
    """Return the command of an API server that the host's end of the link takes requests for."""
    return [
        str(tool("kube-apiserver")),
        f"--etcd-servers=http://127.0.0.1:{etcd_port}",
        f"--bind-address={network.host}",
        f"--advertise-address={network.host}",
        f"--secure-port={port}",
        "--endpoint-reconciler-type=lease",
        f"--service-cluster-ip-range={network.services}",
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction",
        "--allow-privileged",
        "--profiling=false",
        f"--client-ca-file={authority.root.certificate}",
        f"--tls-cert-file={server.certificate}",
        f"--tls-private-key-file={server.key}",
        f"--kubelet-client-certificate={kubelet_client.certificate}",
        f"--kubelet-client-key={kubelet_client.key}",
        f"--kubelet-certificate-authority={authority.root.certificate}",
        "--kubelet-preferred-address-types=InternalIP",
        "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
        f"--service-account-signing-key-file={authority.token_key}",
        f"--service-account-key-file={authority.token_public_key}",
    ]


def controller_manager_command(authority: Authority, kubeconfig: Path, port: int) -> list[str]:
    """Return the command of a controller manager whose controllers are ServiceAccounts."""
    return [
        str(tool("kube-controller-manager")),
        f"--kubeconfig={kubeconfig}",
        "--leader-elect=false",
        "--bind-address=127.0.0.1",
        f"--secure-port={port}",
        "--use-service-account-credentials",
        # How often nodes are looked at: a node that became ready takes pods only then.
        "--node-monitor-period=1s",
        # Its forty controllers start with questions, which the default paces out over seconds.
        "--kube-api-qps=500",
        "--kube-api-burst=1000",
        f"--service-account-private-key-file={authority.token_key}",
        f"--root-ca-file={authority.root.certificate}",
    ]


def scheduler_command(kubeconfig: Path, port: int) -> list[str]:
    """Return the command of a scheduler."""
    return [
        str(tool("kube-scheduler")),
        f"--kubeconfig={kubeconfig}",
        "--leader-elect=false",
        "--bind-address=127.0.0.1",
        f"--secure-port={port}",
    ]


def answers_ok(
    host: str, port: int, path: str, *, authority: Path | None = None, tls: bool = True
) -> Callable[[], bool]:
    """Return a question that is true once the server answers `path` with 200."""
    context = None
    if tls:
        context = ssl.create_default_context(cafile=authority)
        if authority is None:
            # Controller manager and scheduler sign their own certificates.
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE

    def is_ready() -> bool:
        connection = (
            http.client.HTTPSConnection(host, port, timeout=2, context=context)
            if tls
            else http.client.HTTPConnection(host, port, timeout=2)
        )
        with (
            contextlib.suppress(OSError, http.client.HTTPException),
            contextlib.closing(connection),
        ):
            connection.request("GET", path)
            return connection.getresponse().status == http.client.OK
        return False

    return is_ready
