"""Images of one static program on `scratch`: an archive for containerd, or a push to a registry.

Enough for pods that need nothing but a program; images of ours are built elsewhere.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import io
import json
import os
import platform
import subprocess
import tarfile
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

ARCHITECTURE = {"x86_64": "amd64", "aarch64": "arm64"}[platform.machine()]
# What holds a pod's namespaces: it does nothing and takes over what loses its parent.
PAUSE = r"""
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

static void end(int number) { (void)number; _exit(0); }
static void reap(int number) { (void)number; while (waitpid(-1, 0, WNOHANG) > 0) {} }

int main(void) {
    struct sigaction ending = {.sa_handler = end};
    struct sigaction reaping = {.sa_handler = reap, .sa_flags = SA_NOCLDSTOP};
    sigaction(SIGINT, &ending, 0);
    sigaction(SIGTERM, &ending, 0);
    sigaction(SIGCHLD, &reaping, 0);
    for (;;) pause();
}
"""


@dataclass(frozen=True)
class ScratchImage:
    """An image whose only file is /program."""

    layer: bytes
    config: bytes

    @property
    def manifest(self) -> bytes:
        return _json(
            {
                "schemaVersion": 2,
                "mediaType": "application/vnd.oci.image.manifest.v1+json",
                "config": _descriptor("application/vnd.oci.image.config.v1+json", self.config),
                "layers": [_descriptor("application/vnd.oci.image.layer.v1.tar", self.layer)],
            }
        )

    def write_archive(self, file: Path, name: str) -> None:
        """Write an OCI archive, which `ctr images import` reads."""
        manifest = self.manifest
        named = {"org.opencontainers.image.ref.name": name, "io.containerd.image.name": name}
        entry = _descriptor("application/vnd.oci.image.manifest.v1+json", manifest)
        index = _json({"schemaVersion": 2, "manifests": [{**entry, "annotations": named}]})
        with tarfile.open(file, "w") as archive:
            _add(archive, "oci-layout", _json({"imageLayoutVersion": "1.0.0"}))
            _add(archive, "index.json", index)
            for blob in (manifest, self.config, self.layer):
                _add(archive, f"blobs/sha256/{hashlib.sha256(blob).hexdigest()}", blob)

    def push(self, registry: str, repository: str, tag: str = "latest") -> str:
        """Push to a registry that speaks plain HTTP; return the image's name."""
        connection = http.client.HTTPConnection(registry, timeout=30)
        with contextlib.closing(connection):
            for blob in (self.config, self.layer):
                place = _call(connection, "POST", f"/v2/{repository}/blobs/uploads/").split("/", 3)[
                    3
                ]
                digest = f"sha256:{hashlib.sha256(blob).hexdigest()}"
                _call(
                    connection, "PUT", f"/{place}&digest={digest}", blob, "application/octet-stream"
                )
            kind = "application/vnd.oci.image.manifest.v1+json"
            _call(connection, "PUT", f"/v2/{repository}/manifests/{tag}", self.manifest, kind)
        return f"{registry}/{repository}:{tag}"


def compiled_c(folder: Path, name: str, source: str) -> Path:
    """Return a static program of C, compiled in `folder`."""
    code, binary = folder / f"{name}.c", folder / name
    code.write_text(source)
    return _compiled(["cc", "-static", "-Os", "-s", "-Wall", "-Werror"], code, binary)


def compiled_go(folder: Path, name: str, source: str) -> Path:
    """Return a static program of Go and its standard library, compiled in `folder`."""
    code, binary = folder / f"{name}.go", folder / name
    code.write_text(source)
    return _compiled(["go", "build", "-trimpath", "-ldflags", "-s -w"], code, binary)


def _compiled(compiler: list[str], code: Path, binary: Path) -> Path:
    command = [*compiler, "-o", str(binary), str(code)]
    environment = {**os.environ, "CGO_ENABLED": "0"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}:\n{done.stderr}")
    return binary


def scratch_image(binary: Path) -> ScratchImage:
    """Return the image that runs a static program and holds nothing else."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as layer:
        _add(layer, "program", binary.read_bytes(), mode=0o755)
    config = {
        "architecture": ARCHITECTURE,
        "os": "linux",
        "config": {"Entrypoint": ["/program"], "User": "65532:65532"},
        "rootfs": {
            "type": "layers",
            "diff_ids": [f"sha256:{hashlib.sha256(content.getvalue()).hexdigest()}"],
        },
    }
    return ScratchImage(content.getvalue(), _json(config))


def _descriptor(kind: str, blob: bytes) -> dict[str, Any]:
    digest = f"sha256:{hashlib.sha256(blob).hexdigest()}"
    return {"mediaType": kind, "digest": digest, "size": len(blob)}


def _json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _add(archive: tarfile.TarFile, name: str, content: bytes, mode: int = 0o644) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(content), mode
    archive.addfile(entry, io.BytesIO(content))


def _call(
    connection: http.client.HTTPConnection,
    method: str,
    path: str,
    body: bytes = b"",
    kind: str = "",
) -> str:
    connection.request(method, path, body, {"Content-Type": kind} if kind else {})
    answer = connection.getresponse()
    text = answer.read()
    if answer.status >= http.client.BAD_REQUEST:
        raise RuntimeError(f"the registry answered {answer.status} to {path}: {text!r}")
    return answer.headers.get("Location", "")
