"""Debian packages that a node or a browser needs: what is missing, and how it gets here.

Nothing is installed but where the test bed runs as root on a Debian and a program is missing.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.testbed.tools import cache_folder

# Where Debian's package and where Kubernetes' own archives put the network plugins.
PLUGIN_FOLDERS = (Path("/usr/lib/cni"), Path("/opt/cni/bin"))
_ADMIN_PATH = "/usr/sbin:/sbin"

# program -> the Debian package that has it.
PACKAGES = {
    "bridge plugin": "containernetworking-plugins",
    "buildah": "buildah",
    "conntrack": "conntrack",
    "containerd": "containerd",
    "ip": "iproute2",
    "iptables": "iptables",
    "mmdebstrap": "mmdebstrap",
    "nsenter": "util-linux",
    "openssl": "openssl",
    "runc": "runc",
    "socat": "socat",
}
# A browser is no part of a node: only the tests of pages ask for it.
BROWSER = {"chromium": "chromium"}


def plugin_folder() -> Path | None:
    """Return the folder of the container network plugins."""
    return next((folder for folder in PLUGIN_FOLDERS if (folder / "bridge").is_file()), None)


def program(name: str) -> str | None:
    """Return the path of a program, which may be one for administrators."""
    if name == "bridge plugin":
        return str(folder / "bridge") if (folder := plugin_folder()) else None
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:{_ADMIN_PATH}")


def missing(*names: str) -> list[str]:
    """Return the packages whose program is not on this machine; a node's, where none is named."""
    wanted = names or tuple(PACKAGES)
    known = {**PACKAGES, **BROWSER}
    return [known[name] for name in wanted if program(name) is None]


def can_install() -> bool:
    """Whether this user may install packages here and knows how."""
    return os.geteuid() == 0 and shutil.which("apt-get") is not None


def install(*names: str) -> None:
    """Install what is missing of the programs named, or of a node's, and say so."""
    if not missing(*names):
        return
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    # Tests in another process may be installing: apt waits for dpkg's lock, but not for its own.
    with (folder / "packages.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        _install(missing(*names))


def _install(packages: list[str]) -> None:
    if not packages:
        return
    if not can_install():
        raise RuntimeError(f"install these first: {' '.join(packages)}")
    print(f"installing Debian packages: {' '.join(packages)}", file=sys.__stderr__, flush=True)
    _apt("update")
    _apt("install", "--yes", "--no-install-recommends", *packages)


def _apt(*words: str) -> None:
    done = subprocess.run(
        ["apt-get", "-qq", "-o", "DPkg::Lock::Timeout=300", *words],
        env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(
            f"apt-get {' '.join(words)} failed:\n{(done.stdout + done.stderr)[-4000:]}"
        )
