"""The operator itself, as a program of its own with the rights of `deploy/` and no others."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import yaml
from tests.testbed.processes import _die_with_parent, free_port
from tests.worker.environments import interpreter

if TYPE_CHECKING:
    from tests.testbed.access import Access

DEPLOY = Path(__file__).parents[2] / "deploy"
OPERATOR = Path(__file__).parents[2] / "operator"
NO_RIGHTS = ("CustomResourceDefinition", "Deployment")
ACCOUNT = ("kubequant-system", "kubequant-operator")
READY_SECONDS = 120.0
SMALL = {
    "requests": {"cpu": "10m", "memory": "16Mi"},
    "limits": {"memory": "64Mi"},
}
"""What a pod of the tests gets where its spec does not say: the node has two cores."""


def grant_rights(cluster: Access) -> Path:
    """Apply the rights of the cluster-wide variant; return a kubeconfig of the account."""
    parts = yaml.safe_load_all((DEPLOY / "install.yaml").read_text())
    rights = [part for part in parts if part["kind"] not in NO_RIGHTS]
    cluster.kubectl("apply", "-f", "-", input=yaml.safe_dump_all(rights))
    return cluster.kubeconfig_for_service_account(*ACCOUNT)


@dataclass
class OperatorProgram:
    """Started and stopped by tests; its settings may differ from start to start."""

    kubeconfig: Path
    log: Path
    settings: dict[str, str] = field(default_factory=dict)
    port: int = field(default_factory=free_port)
    _process: subprocess.Popen[bytes] | None = None

    def launch(self, **settings: str) -> None:
        """Start the program; `settings` by their variable's name after the prefix."""
        chosen = {**self.settings, **settings, "PROBE_PORT": str(self.port)}
        variables = {f"KUBEQUANT_OPERATOR_{name}": value for name, value in chosen.items()}
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
        inherited |= {"PYTHONPATH": str(OPERATOR), "KUBECONFIG": str(self.kubeconfig)}
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(
                # With the packages of its image and no others.
                [interpreter("operator"), "-m", "kubequant.controller"],
                env={**inherited, **variables},
                stdout=output,
                stderr=output,
                preexec_fn=_die_with_parent,  # noqa: PLW1509 - one system call, before any thread
            )

    def start(self, **settings: str) -> None:
        """Start the program and wait until it is ready."""
        self.launch(**settings)
        until = time.monotonic() + READY_SECONDS
        while self.probe("/readyz") != 200:
            if time.monotonic() > until or self.process.poll() is not None:
                raise RuntimeError(f"the operator did not get ready:\n{self.text()[-3000:]}")
            time.sleep(0.05)

    @property
    def process(self) -> subprocess.Popen[bytes]:
        assert self._process is not None
        return self._process

    def probe(self, path: str) -> int:
        """Return the status of a probe, 0 where nothing answers."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=2)
        try:
            connection.request("GET", path)
            return connection.getresponse().status
        except OSError:
            return 0
        finally:
            connection.close()

    def stop(self) -> int:
        """Ask it to stop, as a kubelet does; return its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=15)

    def kill(self) -> None:
        """End it without a word."""
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        """End it in whatever state it is."""
        if self._process is not None and self._process.poll() is None:
            self.kill()

    def text(self) -> str:
        """Return what it logged so far."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""


def images(image: str) -> dict[str, str]:
    """Return the settings that run every method by one image and let a spec tell it what to do."""
    return {"IMAGES": json.dumps({"gguf": image}), "ALLOWED_ENV": "ACT_*"}
