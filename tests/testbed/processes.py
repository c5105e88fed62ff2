"""Processes of the test bed.

Started on free loopback ports, known by id, stopped in reverse order.
"""

from __future__ import annotations

import contextlib
import ctypes
import http.client
import json
import os
import signal
import socket
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.testbed.tools import tool

if TYPE_CHECKING:
    from collections.abc import Callable

READY_SECONDS = 20.0
STOP_SECONDS = 5.0
# linux/prctl.h
PR_SET_PDEATHSIG = 1


def free_port(host: str = "127.0.0.1") -> int:
    """Return a port of `host`, an address of this machine, that was free a moment ago."""
    with socket.socket() as listener:
        listener.bind((host, 0))
        port: int = listener.getsockname()[1]
        return port


def _die_with_parent() -> None:
    """Ask the kernel to end this process with the test run, which may be killed itself."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def stop_process_group(leader: int, seconds: float = STOP_SECONDS) -> None:
    """End a process and what it started, at first politely."""
    for signal_number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(leader, signal_number)
        deadline = time.monotonic() + seconds
        while _group_runs(leader):
            if time.monotonic() > deadline:
                break
            time.sleep(0.01)
        else:
            return


def start_ticks(process: int) -> int:
    """Return when a process started, in ticks since the machine did; 0 where there is none.

    Counted by the kernel, unlike a time of day, which two programs may read a second apart.
    """
    try:
        stat = Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return 0
    return int(stat.rpartition(")")[2].split()[19])


def _group_runs(leader: int) -> bool:
    """Whether a process of the group still runs; one that only waits to be reaped does not."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, group = stat.read_text().rpartition(")")[2].split()[:3]
            if int(group) == leader and state not in "XZ":
                return True
    return False


@dataclass
class Processes:
    """What one test session, or one `up`, has started.

    `record` names a file that lists what runs, for a later program that stops it. What is
    `detached` outlives this program; everything else ends with it, however it ends.
    """

    logs: Path
    record: Path | None = None
    detached: bool = False
    stop_seconds: float = STOP_SECONDS
    _started: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def launch(self, name: str, command: list[str], environment: dict[str, str]) -> None:
        """Start a program without waiting for anything; `name` is how it is stopped.

        Call it from the main thread: the kernel ends a child with the thread that started it.
        """
        if name in self._started:
            raise RuntimeError(f"{name} was started already")
        with self.log(name).open("ab") as output:
            self._started[name] = subprocess.Popen(
                command,
                env={**os.environ, **environment},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                # A group of its own: it is stopped with its children, and only by us.
                start_new_session=True,
                preexec_fn=None if self.detached else _die_with_parent,  # noqa: PLW1509 - one call
            )
        self._write_record()

    def start(
        self,
        name: str,
        command: list[str],
        environment: dict[str, str],
        port: int,
        host: str = "127.0.0.1",
    ) -> None:
        """Start a server and wait until it takes connections."""
        name = f"{name}-{port}"
        self.launch(name, command, environment)

        def takes_connections() -> bool:
            with contextlib.suppress(OSError):
                socket.create_connection((host, port), timeout=1).close()
                return True
            return False

        self.wait(name, takes_connections)

    def wait(self, name: str, is_ready: Callable[[], bool], seconds: float = READY_SECONDS) -> None:
        """Wait until `is_ready`; where the process ends or the time does, show the log's end."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and self.runs(name):
            if is_ready():
                return
            time.sleep(0.05)
        end = self.log(name).read_text(errors="replace")[-4000:]
        raise RuntimeError(f"{name} did not start:\n{end}")

    def runs(self, name: str) -> bool:
        """Whether it was started and neither stopped nor ended by itself."""
        return name in self._started and self._started[name].poll() is None

    def pid(self, name: str) -> int:
        """Return the process's id."""
        return self._started[name].pid

    def log(self, name: str) -> Path:
        """Return the file that holds what the process wrote."""
        return self.logs / f"{name}.log"

    def stop(self, name: str | None = None) -> None:
        """Stop one process by its name, or everything in reverse order."""
        for each in [name] if name else reversed(list(self._started)):
            process = self._started.pop(each)
            stop_process_group(process.pid, self.stop_seconds)
            process.wait()
            self._write_record()

    def _write_record(self) -> None:
        if self.record:
            running = [
                {"name": name, "pid": process.pid, "started": start_ticks(process.pid)}
                for name, process in self._started.items()
            ]
            self.record.write_text(json.dumps(running, indent=2) + "\n")


def stop_recorded(record: Path, stop_seconds: float = STOP_SECONDS) -> list[str]:
    """Stop what another program recorded, in reverse order; return the names of what still ran."""
    stopped = []
    for entry in reversed(json.loads(record.read_text())):
        # A process id alone may be someone else's by now.
        if entry["started"] and start_ticks(entry["pid"]) == entry["started"]:
            stop_process_group(entry["pid"], stop_seconds)
            stopped.append(entry["name"])
    return stopped


@dataclass(frozen=True)
class S3Server:
    """An S3 server with one account that may do everything."""

    port: int
    folder: Path
    host: str = "127.0.0.1"
    access_key: str = "kubequant-root"
    secret_key: str = "kubequant-root-secret-0123456789"

    @property
    def endpoint(self) -> str:
        return f"http://{self.host}:{self.port}"


def start_s3(processes: Processes, folder: Path, host: str = "127.0.0.1") -> S3Server:
    """Start versitygw over `folder`, with accounts of its own beside the root's."""
    (folder / "objects").mkdir(parents=True)
    (folder / "accounts").mkdir()
    server = S3Server(free_port(host), folder / "objects", host)
    command = [
        str(tool("versitygw")),
        "--quiet",
        "--keep-alive",
        "--iam-dir",
        str(folder / "accounts"),
        "--iam-cache-disable",
        "--port",
        f"{host}:{server.port}",
        "posix",
        str(server.folder),
    ]
    environment = {"ROOT_ACCESS_KEY": server.access_key, "ROOT_SECRET_KEY": server.secret_key}
    processes.start("versitygw", command, environment, server.port, host)
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
