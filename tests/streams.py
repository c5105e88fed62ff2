"""Runs every test in two streams side by side: `python -m tests.streams` (`make test`).

Images and clusters mostly wait for builds, pods and timers; the rest mostly computes, and is done
last. Each line says whose it is, and the exit code is that of the first stream that failed.
"""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

HERE = Path(__file__).parent
WAITING = ("images", "cluster")


def streams() -> dict[str, list[str]]:
    """Return the folders of each stream: whatever is not said to wait computes."""
    folders = sorted({path.relative_to(HERE).parts[0] for path in HERE.glob("*/**/test_*.py")})
    computing = [f"tests/{name}" for name in folders if name not in WAITING]
    return {"pods": [f"tests/{name}" for name in WAITING], "rest": computing}


def follow(name: str, process: subprocess.Popen[str], sums: dict[str, str]) -> None:
    """Print what a stream says, line by line, and keep its last line, which sums it up."""
    for line in process.stdout or ():
        print(f"{name} | {line}", end="", flush=True)
        sums[name] = line


def main() -> int:
    """Run both streams and return an exit code."""
    running = {
        name: subprocess.Popen(
            [sys.executable, "-m", "pytest", *folders, *sys.argv[1:]],
            cwd=HERE.parent,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for name, folders in streams().items()
    }
    sums: dict[str, str] = {}
    printing = [threading.Thread(target=follow, args=(*one, sums)) for one in running.items()]
    for thread in printing:
        thread.start()
    try:
        codes = [process.wait() for process in running.values()]
    except KeyboardInterrupt:
        for process in running.values():
            process.terminate()
        raise
    finally:
        for thread in printing:
            thread.join()
    print(*sums.values(), sep="", end="", flush=True)
    return next((code for code in codes if code), 0)


if __name__ == "__main__":
    sys.exit(main())
