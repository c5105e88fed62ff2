"""Build the one llama.cpp wheel that the GGUF image and a laptop install.

llama-cpp-python's sdist vendors llama.cpp with its converter (`convert_hf_to_gguf.py`,
`conversion/`, `gguf-py/`); the wheel built from it leaves the converter out. This script builds the
wheel and adds the converter of the same tree as `llama_cpp/converter/`, so that both halves are
always one version. It also adds the CPU kernels again for newer processors, and what chooses among
them when the package is imported (`wheel_cpu.py`).

Usage: python images/gguf/wheel.py [--dest FOLDER]

The wheel is kept in FOLDER (default: the `wheels` folder of the kubequant cache, outside the
checkout) under a name keyed by everything that decides its bytes; a second call finds it there. The
last line printed is its path.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import platform
import runpy
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
# Newer ones get kernels of their own from the variants.
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
CPU = Path(__file__).with_name("wheel_cpu.py")
BUILD_TOOLS = ("cmake==4.4.4", "ninja==1.13.2")


def cache_folder() -> Path:
    """Return the folder, outside the checkout, where long builds are kept."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("KUBEQUANT_CACHE") or Path(base) / "kubequant")


def build_key() -> str:
    """Return eight hex digits of everything that decides what the wheel holds."""
    decided = (*BUILD_TOOLS, CPU.read_text(encoding="utf-8"))
    parts = (VERSION, SDIST_SHA256, *CMAKE_ARGS, *CONVERTER, BUILD_TAG, *decided)
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


def add_kernels(source: Path, package: Path, work: Path, environment: dict[str, str]) -> None:
    """Build the CPU kernels once more for each variant, and let `package` choose among them."""
    choice = runpy.run_path(str(CPU))
    tools, log = work / "tools", work / "kernels.log"
    install = [sys.executable, "-m", "pip", "install", "-q", "--target", str(tools), *BUILD_TOOLS]
    run_quietly("fetching cmake and ninja", install, log, environment)
    with_tools = {
        **environment,
        "PATH": f"{tools / 'bin'}{os.pathsep}{environment['PATH']}",
        "PYTHONPATH": str(tools),
    }
    for name, _, words in choice["VARIANTS"]:
        folder = work / "kernels" / name
        options = [*CMAKE_ARGS, "-DCMAKE_BUILD_TYPE=Release", "-DBUILD_SHARED_LIBS=ON"]
        # Where the library lies in the end is where it looks for the one that all variants share.
        options += ["-DCMAKE_BUILD_WITH_INSTALL_RPATH=ON", "-DCMAKE_INSTALL_RPATH=$ORIGIN/../.."]
        options += [f"-DGGML_{word}=ON" for word in words]
        configure = ["cmake", "-G", "Ninja", "-S", str(source), "-B", str(folder), *options]
        run_quietly(f"configuring the kernels for {name}", configure, log, with_tools)
        make = ["cmake", "--build", str(folder), "--target", "ggml-cpu"]
        run_quietly(f"building the kernels for {name} (about a minute)", make, log, with_tools)
        target = package / "lib" / choice["FOLDER"] / name / choice["LIBRARY"]
        target.parent.mkdir(parents=True)
        shutil.copy2((folder / "bin" / choice["LIBRARY"]).resolve(), target)
    shutil.copy2(CPU, package / "_cpu.py")
    start = package / "__init__.py"
    chosen = "from pathlib import Path as _Path\n\nfrom ._cpu import load as _load\n\n"
    chosen += '_load(_Path(__file__).parent / "lib")\n\n'
    start.write_text(chosen + start.read_text(encoding="utf-8"), encoding="utf-8")


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
    if platform.machine() == "x86_64":
        add_kernels(source / "vendor" / "llama.cpp", tree / "llama_cpp", work, environment)
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
