"""The Go programs of the test bed, each built once from its own module into a cache.

Only building lives here; `processes` starts them.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parent / "tools"
KUBERNETES = "v1.37.2"
_VERSION = "k8s.io/component-base/version"
_KUBERNETES_FLAGS = (
    f"-X {_VERSION}.gitVersion={KUBERNETES} -X {_VERSION}.gitMajor=1 -X {_VERSION}.gitMinor=37"
)
# What a folder that envtest's setup fills holds.
KUBEBUILDER_PROGRAMS = ("etcd", "kube-apiserver", "kubectl")


@dataclass(frozen=True)
class Program:
    """A package that the `tool` line of a module under `tools/` names, or `.`: our own there."""

    module: str
    package: str
    linker_flags: str = ""


def _kubernetes(name: str) -> Program:
    return Program("kubernetes", f"k8s.io/kubernetes/cmd/{name}", _KUBERNETES_FLAGS)


# name -> where it is built from. A new program needs a row here and a module that names it.
PROGRAMS = {
    "coredns": Program("coredns", "github.com/coredns/coredns"),
    "etcd": Program("etcd", "go.etcd.io/etcd/server/v3"),
    "gitops": Program("gitops", "."),
    "helm": Program("helm", "helm.sh/helm/v4/cmd/helm"),
    "kube-apiserver": _kubernetes("kube-apiserver"),
    "kube-controller-manager": _kubernetes("kube-controller-manager"),
    "kube-proxy": _kubernetes("kube-proxy"),
    "kube-scheduler": _kubernetes("kube-scheduler"),
    "kubectl": _kubernetes("kubectl"),
    "kubelet": _kubernetes("kubelet"),
    "kwok": Program("kwok", "sigs.k8s.io/kwok/cmd/kwok"),
    "registry": Program("registry", "github.com/distribution/distribution/v3/cmd/registry"),
    "toxiproxy": Program("toxiproxy", "github.com/Shopify/toxiproxy/v2/cmd/server"),
    "versitygw": Program("versitygw", "github.com/versity/versitygw/cmd/versitygw"),
}


def cache_folder() -> Path:
    """Return the folder, outside the checkout, where long builds are kept."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("KUBEQUANT_CACHE") or Path(base) / "kubequant")


def tool(name: str) -> Path:
    """Return the program `name`, building it where the cache does not hold this version of it.

    Where KUBEBUILDER_ASSETS names a folder, the control plane's programs are taken from it.
    """
    if assets := os.environ.get("KUBEBUILDER_ASSETS"):
        given = Path(assets) / name
        if name in KUBEBUILDER_PROGRAMS and given.is_file():
            return given
    recipe = PROGRAMS[name]
    module = FOLDER / recipe.module
    files = [module / "go.mod", module / "go.sum", *sorted(module.glob("*.go"))]
    parts = [file.read_bytes() for file in files]
    words = f"{recipe.package} {recipe.linker_flags}".strip()
    key = hashlib.sha256(b"\0".join((words.encode(), *parts))).hexdigest()[:12]
    program = cache_folder() / "tools" / f"{name}-{key}"
    if program.is_file():
        return program
    program.parent.mkdir(parents=True, exist_ok=True)
    # Two test runs may want the program at once: one builds, the other waits and finds it.
    with (program.parent / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not program.is_file():
            _build(name, recipe, program)
    return program


def _build(name: str, recipe: Program, program: Path) -> None:
    partial, log = program.with_suffix(".partial"), program.with_suffix(".log")
    _say(f"building {name} from its Go module, once (seconds to five minutes; log: {log})")
    command = ["go", "build", "-trimpath", "-ldflags", f"-s -w {recipe.linker_flags}".strip()]
    command += ["-o", str(partial), recipe.package]
    environment = {**os.environ, "CGO_ENABLED": "0", "GOFLAGS": "-mod=readonly"}
    started = time.monotonic()
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=FOLDER / recipe.module, env=environment, stdout=output, stderr=output
        )
        while True:
            try:
                code = process.wait(timeout=20)
                break
            except subprocess.TimeoutExpired:
                _say(f"  still building {name}: {time.monotonic() - started:.0f} s")
    if code != 0:
        raise RuntimeError(f"building {name} failed:\n{log.read_text(errors='replace')[-4000:]}")
    partial.rename(program)
    _say(f"  built {name} in {time.monotonic() - started:.0f} s")


def _say(text: str) -> None:
    """Write past pytest's capture, so that a long build is seen while it runs."""
    print(text, file=sys.__stderr__, flush=True)
