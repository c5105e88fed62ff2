"""What a test does with a cluster, whoever runs it: kubectl, kubeconfigs, namespaces."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import secrets
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.testbed.kubeconfig import write_kubeconfig
from tests.testbed.tools import tool

if TYPE_CHECKING:
    from collections.abc import Iterator

KUBECTL_SECONDS = 120
RESTRICTED = {"pod-security.kubernetes.io/enforce": "restricted"}


class Access:
    """A cluster as its administrator sees it.

    `host_address` is an address of this machine that pods reach, `registry` an image registry that
    this machine pushes to and the nodes pull from.
    """

    host_address: str
    registry: str

    def __init__(self, kubeconfig: Path, kubectl: Path, folder: Path) -> None:
        self.kubeconfig = kubeconfig
        self._kubectl = kubectl
        self._folder = folder

    @property
    def server(self) -> str:
        """The API server's address."""
        return str(self._cluster()["server"])

    def kubectl(
        self,
        *words: str,
        input: str | None = None,  # noqa: A002 - as subprocess.run names it
        kubeconfig: Path | None = None,
        check: bool = True,
    ) -> subprocess.CompletedProcess[str]:
        """Run kubectl; where it must not fail and does, say what it wrote."""
        done = subprocess.run(
            [str(self._kubectl), f"--kubeconfig={kubeconfig or self.kubeconfig}", *words],
            input=input,
            # Without an input kubectl must not read the terminal of who runs the tests.
            stdin=subprocess.DEVNULL if input is None else None,
            capture_output=True,
            text=True,
            timeout=KUBECTL_SECONDS,
            check=False,
        )
        if check and done.returncode:
            raise RuntimeError(f"kubectl {' '.join(words)}: {done.stderr or done.stdout}")
        return done

    def apply(self, *objects: dict[str, Any]) -> None:
        """Apply objects as the administrator."""
        body = json.dumps({"apiVersion": "v1", "kind": "List", "items": objects})
        # By the server, which alone knows what a controller makes at the same moment.
        self.kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", input=body)

    @contextlib.contextmanager
    def namespace(self) -> Iterator[str]:
        """Make a namespace that enforces Pod Security "restricted"; delete it without waiting."""
        name = f"test-{secrets.token_hex(4)}"
        metadata = {"name": name, "labels": RESTRICTED}
        # A controller makes the account a little later, and without it no pod is taken.
        account = {"name": "default", "namespace": name}
        self.apply(
            {"apiVersion": "v1", "kind": "Namespace", "metadata": metadata},
            {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": account},
        )
        try:
            yield name
        finally:
            self.kubectl("delete", "namespace", name, "--wait=false")

    def kubeconfig_for_service_account(self, namespace: str, name: str) -> Path:
        """Return a kubeconfig with a token of an existing ServiceAccount."""
        token = self.kubectl("create", "token", name, f"--namespace={namespace}", "--duration=24h")
        return self._write(f"{namespace}-{name}", {"token": token.stdout.strip()}, namespace)

    def kubeconfig_for_user(self, user: str, groups: tuple[str, ...] = ()) -> Path:
        """Return a kubeconfig of a user of that name; it works for kubectl and client-go only.

        A foreign cluster's authority signs nothing for us, so the administrator impersonates.
        """
        content = json.loads(self.kubectl("config", "view", "--raw", "--minify", "-o=json").stdout)
        as_user = {"as": user, "as-groups": list(groups)}
        return self._write(f"user-{user}", {**content["users"][0]["user"], **as_user})

    def expose(self, namespace: str, name: str, port: int, our_port: int | None = None) -> str:
        """Make a Service by which pods reach `our_port` of this machine; return its address."""
        metadata = {"name": name, "namespace": namespace}
        main = {"name": "main", "protocol": "TCP"}
        service = {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": metadata,
            "spec": {"ports": [{**main, "port": port, "targetPort": our_port or port}]},
        }
        endpoints = {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {**metadata, "labels": {"kubernetes.io/service-name": name}},
            "addressType": "IPv4",
            "ports": [{**main, "port": our_port or port}],
            "endpoints": [{"addresses": [self.host_address], "conditions": {"ready": True}}],
        }
        self.apply(service, endpoints)
        return f"http://{name}.{namespace}.svc:{port}"

    def start_node(self) -> None:
        """Do nothing: a cluster that someone else runs has its nodes."""

    def _write(self, name: str, user: dict[str, Any], namespace: str = "default") -> Path:
        self._folder.mkdir(parents=True, exist_ok=True)
        cluster = self._cluster()
        authority = self._folder / "authority.crt"
        authority.write_bytes(base64.b64decode(cluster["certificate-authority-data"]))
        file = self._folder / f"{name.replace(':', '-')}-{secrets.token_hex(3)}.kubeconfig"
        return write_kubeconfig(file, cluster["server"], authority, user, namespace)

    def _cluster(self) -> dict[str, Any]:
        words = ("config", "view", "--raw", "--minify", "--flatten", "-o=json")
        cluster: dict[str, Any] = json.loads(self.kubectl(*words).stdout)["clusters"][0]["cluster"]
        return cluster


def foreign_cluster(folder: Path) -> Access:
    """Return the cluster that the user names by environment variables."""
    cluster = Access(
        Path(os.environ["KUBEQUANT_TEST_KUBECONFIG"]),
        Path(shutil.which("kubectl") or tool("kubectl")),
        folder,
    )
    cluster.host_address = os.environ.get("KUBEQUANT_TEST_HOST_ADDRESS", "")
    cluster.registry = os.environ.get("KUBEQUANT_TEST_REGISTRY", "")
    return cluster


def kubequant_in_use(cluster: Access) -> str:
    """Return a sentence where these tests would damage a kubequant of the cluster's, or nothing."""
    found = []
    every = ("get", "--all-namespaces", "--no-headers", "--ignore-not-found")
    columns = "-o=custom-columns=NAMESPACE:.metadata.namespace,NAME:.metadata.name"
    deployments = ("deployments", "--selector=app.kubernetes.io/name=kubequant")
    for kind, words in (("Deployment", deployments), ("QuantizationJob", ("quantizationjobs",))):
        # A server that knows no QuantizationJob has none.
        listed = cluster.kubectl(*every, *words, columns, check=False).stdout.splitlines()
        names = [line.split() for line in listed]
        # What a killed run of these tests left in a namespace of its own is nobody's.
        found += [f"{kind} {at}/{name}" for at, name in names if not at.startswith("test-")]
    role = ("get", "clusterrole", "kubequant-install", "-o=name", "--ignore-not-found")
    found += cluster.kubectl(*role).stdout.split()
    if not found:
        return ""
    return (
        f"KUBEQUANT_TEST_KUBECONFIG: kubequant is in use in that cluster ({', '.join(found)}): "
        "these tests would overwrite and delete it. Take another, or remove kubequant from it."
    )
