"""Debian packages that a node needs: which programs are missing, and how they get here.

Nothing is installed but where the test bed runs as root on a Debian and a program is missing.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

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


def plugin_folder() -> Path | None:
    """Return the folder of the container network plugins."""
    return next((folder for folder in PLUGIN_FOLDERS if (folder / "bridge").is_file()), None)


def program(name: str) -> str | None:
    """Return the path of a program, which may be one for administrators."""
    if name == "bridge plugin":
        return str(folder / "bridge") if (folder := plugin_folder()) else None
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:{_ADMIN_PATH}")


def missing() -> list[str]:
    """Return the packages whose program is not on this machine."""
    return [package for name, package in PACKAGES.items() if program(name) is None]


def can_install() -> bool:
    """Whether this user may install packages here and knows how."""
    return os.geteuid() == 0 and shutil.which("apt-get") is not None


def install() -> None:
    """Install what is missing, and say so."""
    packages = missing()
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
