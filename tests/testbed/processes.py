"""Processes of the test bed.

Started on free loopback ports, known by id, stopped in reverse order.
"""

from __future__ import annotations

import ctypes
import http.client
import json
import os
import signal
import socket
import subprocess
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tests.testbed.tools import tool

if TYPE_CHECKING:
    from pathlib import Path

READY_SECONDS = 20.0
# linux/prctl.h
PR_SET_PDEATHSIG = 1


def free_port() -> int:
    """Return a loopback port that was free a moment ago."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def _die_with_parent() -> None:
    """Ask the kernel to end this process with the test run, which may be killed itself."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


@dataclass
class Processes:
    """What one test session has started."""

    logs: Path
    _started: list[tuple[str, subprocess.Popen[bytes]]] = field(default_factory=list)

    def start(self, name: str, command: list[str], environment: dict[str, str], port: int) -> None:
        """Start a server and wait until it takes connections."""
        log = self.logs / f"{name}-{port}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                command,
                env={**os.environ, **environment},
                stdout=output,
                stderr=output,
                preexec_fn=_die_with_parent,  # noqa: PLW1509 - one system call, before any thread
            )
        self._started.append((name, process))
        deadline = time.monotonic() + READY_SECONDS
        while time.monotonic() < deadline and process.poll() is None:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
            except OSError:
                time.sleep(0.05)
            else:
                return
        raise RuntimeError(f"{name} did not start:\n{log.read_text(errors='replace')[-2000:]}")

    def stop(self) -> None:
        """Stop everything in reverse order."""
        while self._started:
            _, process = self._started.pop()
            if process.poll() is None:
                process.terminate()
                try:
                    process.wait(timeout=5)
                except subprocess.TimeoutExpired:
                    process.send_signal(signal.SIGKILL)
                    process.wait()


@dataclass(frozen=True)
class S3Server:
    """An S3 server with one account that may do everything."""

    port: int
    folder: Path
    access_key: str = "kubequant-root"
    secret_key: str = "kubequant-root-secret-0123456789"

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"


def start_s3(processes: Processes, folder: Path) -> S3Server:
    """Start versitygw over `folder`, with accounts of its own beside the root's."""
    (folder / "objects").mkdir(parents=True)
    (folder / "accounts").mkdir()
    server = S3Server(free_port(), folder / "objects")
    command = [
        str(tool("versitygw")),
        "--quiet",
        "--keep-alive",
        "--iam-dir",
        str(folder / "accounts"),
        "--iam-cache-disable",
        "--port",
        f"127.0.0.1:{server.port}",
        "posix",
        str(server.folder),
    ]
    environment = {"ROOT_ACCESS_KEY": server.access_key, "ROOT_SECRET_KEY": server.secret_key}
    processes.start("versitygw", command, environment, server.port)
    return server


def add_account(server: S3Server, access: str, secret: str) -> None:
    """Add an account that owns nothing, through versitygw's own tool."""
    command = [str(tool("versitygw")), "admin", "-a", server.access_key, "-s", server.secret_key]
    command += ["-er", server.endpoint, "create-user", "-a", access, "-s", secret, "-r", "user"]
    subprocess.run(command, check=True, capture_output=True, timeout=20)


class Toxiproxy:
    """A proxy before a server that can stall, reset and slow down.

    See its README for the toxics.
    """

    def __init__(self, processes: Processes, upstream_port: int) -> None:
        api, self.port = free_port(), free_port()
        command = [str(tool("toxiproxy")), "-host", "127.0.0.1", "-port", str(api)]
        processes.start("toxiproxy", command, {}, api)
        self._api = api
        proxy = {
            "name": "s3",
            "listen": f"127.0.0.1:{self.port}",
            "upstream": f"127.0.0.1:{upstream_port}",
        }
        self._call("POST", "/proxies", proxy)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def add(
        self, kind: str, *, stream: str = "upstream", toxicity: float = 1.0, **attributes: int
    ) -> None:
        """Add a toxic, named by its kind and direction."""
        toxic = {
            "name": f"{kind}-{stream}",
            "type": kind,
            "stream": stream,
            "toxicity": toxicity,
            "attributes": attributes,
        }
        self._call("POST", "/proxies/s3/toxics", toxic)

    def enable(self, *, enabled: bool) -> None:
        """Take connections, or refuse them and cut those that are open."""
        self._call("POST", "/proxies/s3", {"enabled": enabled})

    def reset(self) -> None:
        """Remove every toxic."""
        self._call("POST", "/reset", None)

    def _call(self, method: str, path: str, body: dict[str, Any] | None) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._api, timeout=10)
        content = json.dumps(body) if body is not None else None
        connection.request(method, path, content, {"User-Agent": "kubequant-tests"})
        answer = connection.getresponse()
        text = answer.read()
        connection.close()
        if answer.status >= 300:
            raise RuntimeError(f"toxiproxy answered {answer.status}: {text!r}")
