"""Runs an image as a pod with restricted Pod Security would, by runc alone: no kubelet, no network.

The root file system is read-only, the user is nobody's, no capability is left, and what is written
goes to folders of the test's.
"""

from __future__ import annotations

import json
import subprocess
import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

USER = 65532
_NAMESPACES = ("pid", "ipc", "uts", "mount", "network")
_FLAGS = ["nosuid", "noexec", "nodev"]


@dataclass(frozen=True)
class Mount:
    """A folder or file of the test's, and whether the container may write to it."""

    path: Path
    writable: bool = False


@dataclass
class Container:
    """One container of an image: its root file system, its `config`, and what a pod adds."""

    root: Path
    image: Mapping[str, Any]
    bundle: Path
    environment: dict[str, str] = field(default_factory=dict)
    mounts: dict[str, Mount] = field(default_factory=dict)
    user: int = USER
    words: list[str] | None = None
    """What is run instead of the image's entry point."""
    name: str = field(default_factory=lambda: f"kubequant-{uuid.uuid4().hex[:12]}")

    def start(self) -> subprocess.Popen[str]:
        """Start it; its output is ours to read."""
        self.bundle.mkdir(parents=True, exist_ok=True)
        (self.bundle / "config.json").write_text(json.dumps(self._configuration()))
        command = [*self._runc(), "run", "--bundle", str(self.bundle), self.name]
        return subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace"
        )

    def run(self, seconds: float = 300) -> subprocess.CompletedProcess[str]:
        """Run it to its end and return how it ended and what it said."""
        process = self.start()
        try:
            out, err = process.communicate(timeout=seconds)
        finally:
            self.remove()
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def signal(self, name: str) -> None:
        """Send a signal to its first process, as a container runtime does to end a pod."""
        subprocess.run([*self._runc(), "kill", self.name, name], check=True)

    def remove(self) -> None:
        """End it and take away what the runtime keeps of it."""
        command = [*self._runc(), "delete", "--force", self.name]
        subprocess.run(command, check=True, capture_output=True)

    def _runc(self) -> list[str]:
        return ["runc", "--root", str(self.bundle / "runc")]

    def _configuration(self) -> dict[str, Any]:
        ours = [*self.image["Env"], *(f"{k}={v}" for k, v in self.environment.items())]
        mounts = [
            {"destination": "/proc", "type": "proc", "source": "proc", "options": _FLAGS},
            {
                "destination": "/dev",
                "type": "tmpfs",
                "source": "tmpfs",
                "options": ["nosuid", "mode=755", "size=65536k"],
            },
            {
                "destination": "/dev/shm",  # noqa: S108 -- the container's own
                "type": "tmpfs",
                "source": "shm",
                "options": [*_FLAGS, "mode=1777", "size=65536k"],
            },
        ]
        mounts += [
            {
                "destination": place,
                "type": "bind",
                "source": str(mount.path),
                "options": ["rbind", "rw" if mount.writable else "ro"],
            }
            for place, mount in self.mounts.items()
        ]
        return {
            "ociVersion": "1.0.2",
            "process": {
                "terminal": False,
                "user": {"uid": self.user, "gid": self.user},
                "args": self.words or self.image["Entrypoint"],
                "env": ours,
                "cwd": self.image.get("WorkingDir") or "/",
                "capabilities": {},
                "noNewPrivileges": True,
            },
            "root": {"path": str(self.root), "readonly": True},
            "mounts": mounts,
            "linux": {
                "namespaces": [{"type": kind} for kind in _NAMESPACES],
                "cgroupsPath": f"/{self.name}",
            },
        }
