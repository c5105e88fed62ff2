"""The images of the test bed: built by images/build.py with buildah, kept in the cache, pushed.

There is no registry to take a base from, so what the Dockerfiles start from is made of Debian's own
packages and filed under the name they give. How images are run stands elsewhere.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any

import urllib3
from tests.testbed.tools import cache_folder

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
SUITE = "bookworm"
PACKAGES = ("ca-certificates", "python3", "python3-venv")
# Words for buildah: packages come from the network that this machine has, images from none.
BUILD_OPTIONS = ("--network=host", "--pull-never", "--force-rm")
# What the user chose for `make images` decides nothing here.
CHOICES = (
    "KUBEQUANT_IMAGE_TOOL", "KUBEQUANT_REGISTRY", "PYTHON_IMAGE", "TENSORRT_LLM_IMAGE",
    "TORCH_INDEX_URL",
)  # fmt: skip
MANIFESTS = (
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)
LONG_SECONDS = 1800
KEPT = 2
LEAST_FREE_BYTES = 20 * 2**30
# A program in a container may open as many files and processes as the machine lets its parent.
CONTAINERS_CONF = """\
[containers]
default_ulimits = ["nofile=20000:20000", "nproc=32768:32768"]
[engine]
cgroup_manager = "cgroupfs"
runtime = "runc"
"""


def folder() -> Path:
    """Return where images and their layers are kept, outside the checkout."""
    # Two caches that share it by a link must say the same to buildah, which one of them may run.
    return (cache_folder() / "images").resolve()


def environment() -> dict[str, str]:
    """Return the environment in which buildah uses our settings and storage, and nobody else's."""
    place = folder()
    place.mkdir(parents=True, exist_ok=True)
    mark = hashlib.sha256(str(place).encode()).hexdigest()[:8]
    storage = (
        f'[storage]\ndriver = "overlay"\ngraphroot = "{place / "storage"}"\n'
        f'runroot = "/run/kubequant-images-{mark}"\n'
    )
    for name, text in (("containers.conf", CONTAINERS_CONF), ("storage.conf", storage)):
        path = place / name
        if not path.is_file() or path.read_text() != text:
            path.write_text(text)
    return {
        **{name: value for name, value in os.environ.items() if name not in CHOICES},
        "CONTAINERS_CONF": str(place / "containers.conf"),
        "CONTAINERS_STORAGE_CONF": str(place / "storage.conf"),
        "TMPDIR": str(place),
    }


def buildah(*words: str | Path) -> str:
    """Run buildah with these words on our storage and return what it printed."""
    done = subprocess.run(
        ["buildah", *map(str, words)],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=LONG_SECONDS,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(f"buildah {shlex.join(map(str, words))} failed:\n{done.stderr[-4000:]}")
    return done.stdout.strip()


def build_image(name: str) -> str:
    """Return the reference of our image `name`, built where the cache has no such content."""
    reference = f"localhost/kubequant/{name}:{content_key(name)}"
    if _is_there(reference):
        return reference
    with prepared():
        if not _is_there(reference):
            _build(name)
            buildah("tag", f"localhost/kubequant/{name}:{_version()}", reference)
            _forget_old(name, keep=reference)
    return reference


@contextlib.contextmanager
def prepared() -> Iterator[None]:
    """Hold what builds start from ready; two test runs that want the same image make it once."""
    folder().mkdir(parents=True, exist_ok=True)
    with (folder() / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        _make_python_image()
        yield


def push_image(reference: str, registry: str) -> str:
    """Push an image to `registry`, HOST:PORT over plain HTTP, and return what it is called there.

    Nothing is compressed: over loopback that costs more than it saves. What the registry has by
    this name is not sent again: buildah would read and hash gigabytes to find that out.
    """
    path = reference.removeprefix("localhost/")
    there = f"{registry}/{path}"
    if _configuration_in(registry, *path.rsplit(":", 1)) != _configuration_of(reference):
        flags = ("--tls-verify=false", "--disable-compression", "--quiet")
        buildah("push", *flags, reference, f"docker://{there}")
    return there


def configuration(reference: str) -> dict[str, Any]:
    """Return the `config` of an image as the OCI's image specification has it."""
    found: dict[str, Any] = _inspected(reference)["OCIv1"]["config"]
    return found


def layer_sizes_bytes(reference: str) -> list[int]:
    """Return the sizes of an image's uncompressed layers, the lowest first."""
    return [layer["size"] for layer in json.loads(_inspected(reference)["Manifest"])["layers"]]


@contextlib.contextmanager
def mounted(reference: str) -> Iterator[Path]:
    """Give the root file system of an image, and take it away again."""
    container = buildah("from", "--pull-never", reference)
    try:
        yield Path(buildah("mount", container))
    finally:
        buildah("umount", container)
        buildah("rm", container)


def content_key(name: str) -> str:
    """Return twelve digits of everything that decides what the image `name` holds."""
    seen = ["LICENSE", "README.md", "pyproject.toml", ".dockerignore", "images", "operator"]
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *seen]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    digest = hashlib.sha256(f"{name}\0{_python_key()}\0".encode())
    for line in sorted(set(listed.split("\0"))):
        path = ROOT / line
        # Documents decide nothing, but for the one that our own package's metadata holds.
        if path.is_file() and (path.suffix != ".md" or line == "README.md"):
            digest.update(f"{line}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\0".encode())
    return digest.hexdigest()[:12]


def _configuration_of(reference: str) -> str:
    """Return the digest of an image's configuration, which names its layers by their digests."""
    return f"sha256:{_inspected(reference)['FromImageID']}"


def _inspected(reference: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(buildah("inspect", "--type", "image", reference))
    return found


def _configuration_in(registry: str, repository: str, tag: str) -> str:
    """Return the digest of the configuration of a registry's image, "" where it has none."""
    address = f"http://{registry}/v2/{repository}/manifests/{tag}"
    answer = urllib3.request("GET", address, headers={"Accept": ", ".join(MANIFESTS)}, timeout=60)
    if answer.status == HTTPStatus.NOT_FOUND:
        return ""
    if answer.status != HTTPStatus.OK:
        raise RuntimeError(f"{address} answered {answer.status}: {answer.data[:400]!r}")
    found: str = answer.json()["config"]["digest"]
    return found


def _build(name: str) -> None:
    log = folder() / f"build-{name}.log"
    command = [sys.executable, str(ROOT / "images" / "build.py"), name, "--tool", "buildah"]
    command += [f"--option={word}" for word in BUILD_OPTIONS]
    command += ["--tensorrt-llm-image", "base"]  # NVIDIA's comes from a registry
    _say(f"building the image {name} (the first time some minutes; log: {log})")
    started = time.monotonic()
    with log.open("wb") as output:
        process = subprocess.Popen(command, env=environment(), stdout=output, stderr=output)
        while True:
            try:
                code = process.wait(timeout=30)
                break
            except subprocess.TimeoutExpired:
                _say(f"  still building {name}: {time.monotonic() - started:.0f} s")
    if code != 0:
        text = log.read_text(errors="replace")
        raise RuntimeError(f"building the image {name} failed:\n{text[-4000:]}")
    _say(f"  built the image {name} in {time.monotonic() - started:.0f} s")


def _python_image() -> str:
    text = (ROOT / "operator" / "Dockerfile").read_text()
    found = re.search(r"^ARG PYTHON_IMAGE=(\S+)$", text, re.MULTILINE)
    assert found is not None
    return found[1]


def _certificates() -> Path:
    return Path(os.environ.get("SSL_CERT_FILE") or "/etc/ssl/certs/ca-certificates.crt")


def _pip_configuration() -> str:
    """Return how this machine's pip reaches packages, as a pip.conf for inside an image."""
    command = [sys.executable, "-m", "pip", "config", "list"]
    listed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    wanted = "index-url|extra-index-url|trusted-host|proxy|timeout|retries|default-timeout"
    lines = [
        f"{match[1]} = {match[2]}"
        for match in re.finditer(rf"^[^=]*?\.({wanted})='(.*)'$", listed, re.MULTILINE)
    ]
    certificates = "cert = /etc/ssl/certs/ca-certificates.crt"
    return "\n".join(["[global]", certificates, *sorted(set(lines))]) + "\n"


def _python_key() -> str:
    digest = hashlib.sha256(" ".join((SUITE, *PACKAGES, _pip_configuration())).encode())
    digest.update(_certificates().read_bytes())
    return digest.hexdigest()[:12]


def _make_python_image() -> None:
    """File a Debian with Python under the name that the Dockerfiles start from."""
    keyed = f"localhost/kubequant-testbed/python:{_python_key()}"
    if not _is_there(keyed):
        archive, settings = folder() / f"{SUITE}.tar", folder() / "pip.conf"
        _say(f"making a Debian {SUITE} with Python (about a minute)")
        words = ["--variant=minbase", "--quiet", f"--include={','.join(PACKAGES)}"]
        subprocess.run(["mmdebstrap", *words, SUITE, str(archive)], check=True)
        settings.write_text(_pip_configuration())
        container = buildah("from", "scratch")
        try:
            buildah("add", "--quiet", container, archive, "/")
            target = "/etc/ssl/certs/ca-certificates.crt"
            buildah("copy", "--quiet", "--chmod", "0644", container, _certificates(), target)
            buildah("copy", "--quiet", "--chmod", "0644", container, settings, "/etc/pip.conf")
            buildah("config", "--cmd", "python3", container)
            buildah("commit", "--quiet", container, keyed)
        finally:
            buildah("rm", container)
            archive.unlink(missing_ok=True)
    buildah("tag", keyed, _python_image())


def _is_there(reference: str) -> bool:
    found = subprocess.run(
        ["buildah", "inspect", "--type", "image", reference],
        env=environment(),
        capture_output=True,
        check=False,
    )
    return found.returncode == 0


def _version() -> str:
    text = (ROOT / "operator" / "kubequant" / "__init__.py").read_text()
    return text.rpartition("__version__ = ")[2].split('"')[1]


def _forget_old(name: str, *, keep: str) -> None:
    """Remove the images of `name` that other contents made, but for the newest few."""
    listed = json.loads(buildah("images", "--json") or "[]")
    mine = f"localhost/kubequant/{name}:"
    dated = sorted(
        (one["createdatraw"], known)
        for one in listed
        for known in one["names"] or ()
        if known.startswith(mine) and known != keep and not known.endswith(f":{_version()}")
    )
    for _, known in dated[: -(KEPT - 1)]:
        # Another run may stand on it; then it goes another time.
        with contextlib.suppress(RuntimeError):
            buildah("rmi", known)
    if shutil.disk_usage(folder()).free < LEAST_FREE_BYTES:
        buildah("rmi", "--prune")


def _say(text: str) -> None:
    """Write past pytest's capture, so that a long build is seen while it runs."""
    print(text, file=sys.__stderr__, flush=True)
