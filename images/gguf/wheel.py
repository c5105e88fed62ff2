"""Build the one llama.cpp wheel that the GGUF image and a laptop install.

llama-cpp-python's sdist vendors llama.cpp with its converter (`convert_hf_to_gguf.py`,
`conversion/`, `gguf-py/`); the wheel built from it leaves the converter out. This script builds the
wheel and adds the converter of the same tree as `llama_cpp/converter/`, so that both halves are
always one version.

Usage: python images/gguf/wheel.py [--dest FOLDER]

The wheel is kept in FOLDER (default: the `wheels` folder of the kubequant cache, outside the
checkout) under a name keyed by everything that decides its bytes; a second call finds it there. The
last line printed is its path.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

VERSION = "0.3.36"
SDIST_SHA256 = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"
# GGML_NATIVE=OFF keeps the builder's own instructions out: the file must run on older nodes (AVX2).
CMAKE_ARGS = (
    "-DGGML_NATIVE=OFF",
    "-DLLAVA_BUILD=OFF",
    "-DLLAMA_OPENSSL=OFF",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF",
    "-DLLAMA_BUILD_TOOLS=OFF",
    "-DLLAMA_BUILD_SERVER=OFF",
)
CONVERTER = ("convert_hf_to_gguf.py", "conversion", "gguf-py/gguf", "LICENSE")
BUILD_TAG = "1kubequant"


def cache_folder() -> Path:
    """Return the folder, outside the checkout, where long builds are kept."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("KUBEQUANT_CACHE") or Path(base) / "kubequant")


def build_key() -> str:
    """Return eight hex digits of everything that decides what the wheel holds."""
    parts = (VERSION, SDIST_SHA256, *CMAKE_ARGS, *CONVERTER, BUILD_TAG)
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:8]


def say(text: str) -> None:
    """Print a line to standard error, so that standard output holds the path alone."""
    print(text, file=sys.stderr, flush=True)


def run_quietly(what: str, command: list[str], log: Path, environment: dict[str, str]) -> None:
    """Run `command` with its output in `log`, saying each 30 seconds that it still runs."""
    say(f"{what} (log: {log})")
    started = time.monotonic()
    with log.open("ab") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=environment)
        while True:
            try:
                code = process.wait(timeout=30)
                break
            except subprocess.TimeoutExpired:
                done, total = ninja_position(log)
                at = f", {done} of {total} files" if total else ""
                say(f"  {what}: {time.monotonic() - started:.0f} s{at}")
    if code != 0:
        tail = log.read_text(errors="replace").splitlines()[-25:]
        say("\n".join(tail))
        raise SystemExit(f"{what} failed with exit code {code}; the whole log is {log}")


def ninja_position(log: Path) -> tuple[int, int]:
    """Return (files done, files in all) from a ninja log's last `[done/total]`, or (0, 0)."""
    for line in reversed(log.read_text(errors="replace").splitlines()[-50:]):
        head = line.strip().partition("]")[0].lstrip("[")
        done, slash, total = head.partition("/")
        if slash and done.strip().isdigit() and total.strip().isdigit():
            return int(done), int(total)
    return 0, 0


def fetch_sdist(folder: Path, environment: dict[str, str]) -> Path:
    """Download the pinned sdist through pip, which refuses any file whose hash differs."""
    requirements = folder / "requirements.txt"
    requirements.write_text(f"llama-cpp-python=={VERSION} --hash=sha256:{SDIST_SHA256}\n")
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--no-binary",
        "llama-cpp-python",
    ]
    command += ["--require-hashes", "-r", str(requirements), "-d", str(folder)]
    run_quietly(
        "fetching the llama-cpp-python sdist", command, folder / "download.log", environment
    )
    return next(folder.glob("llama_cpp_python-*.tar.gz"))


def build(destination: Path, work: Path) -> Path:
    """Build the wheel in `work`, put it into `destination` whole, and return its path."""
    if not any(shutil.which(name) for name in ("c++", "g++", "clang++")):
        raise SystemExit("building llama.cpp needs a C++ compiler; on Debian: apt-get install g++")
    environment = {
        **os.environ,
        "CMAKE_ARGS": " ".join(CMAKE_ARGS),
        "CMAKE_BUILD_PARALLEL_LEVEL": str(len(os.sched_getaffinity(0))),
    }
    sdist = fetch_sdist(work, environment)
    with tarfile.open(sdist) as archive:
        # Debian 12's Python 3.11.2 has no filters yet; the archive's digest was checked either way.
        safely = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
        archive.extractall(work, **safely)  # noqa: S202 -- as said
    source = work / sdist.name.removesuffix(".tar.gz")
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-v",
        "--no-deps",
        "-w",
        str(work / "built"),
        str(source),
    ]
    run_quietly(
        "building llama.cpp (4 to 7 minutes on two cores)", command, work / "build.log", environment
    )
    wheel_tool = [sys.executable, "-m", "wheel"]
    built = next((work / "built").glob("*.whl"))
    log = work / "pack.log"
    run_quietly(
        "unpacking the wheel",
        [*wheel_tool, "unpack", "-d", str(work / "tree"), str(built)],
        log,
        environment,
    )
    tree = next((work / "tree").iterdir())
    for name in CONVERTER:
        origin, target = source / "vendor/llama.cpp" / name, tree / "llama_cpp/converter" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if origin.is_dir():
            shutil.copytree(origin, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(origin, target)
    packed = work / "packed"
    packed.mkdir()
    pack = [*wheel_tool, "pack", "-d", str(packed), "--build-number", BUILD_TAG, str(tree)]
    run_quietly("adding the converter", pack, log, environment)
    wheel = next(packed.glob("*.whl"))
    destination.mkdir(parents=True, exist_ok=True)
    partial = destination / f".{wheel.name}.{os.getpid()}"
    shutil.copy2(wheel, partial)
    return partial.rename(destination / wheel.name)


def main() -> None:
    """Build the wheel unless the cache holds it, and print its path."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--dest", type=Path, default=cache_folder() / "wheels", help="where wheels are kept"
    )
    arguments = parser.parse_args()
    destination = arguments.dest / f"llama.cpp-{build_key()}"
    wheel = next(iter(destination.glob("*.whl")), None)
    if wheel is None:
        with tempfile.TemporaryDirectory(prefix="kubequant-llama-") as work:
            wheel = build(destination, Path(work))
        say(f"built {wheel}")
    print(wheel)


if __name__ == "__main__":
    main()
