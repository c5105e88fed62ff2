"""Runs every benchmark, each in a process of its own, and writes docs/benchmarks.md.

    python -m tests.bench [NAME ...]

A benchmark is a module `bench_<name>.py` whose last line of standard output is a JSON object:
`name` (a sentence), `target` (what is asked), `figures` (what was measured, shown in its order) and
optionally `note`. A benchmark that was not run keeps the rows that the document had.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import platform
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
DOCUMENT = HERE.parents[1] / "docs" / "benchmarks.md"
HEAD = """# Benchmarks

Written by `make bench`. Every figure is a ratio against a peer measured in the same run on the same
machine, or a bound that does not depend on the machine. Quote the ratios, not the seconds.
"""


def machine() -> str:
    """Return the machine in words: processor, cores, memory, system."""
    model = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    cores = len(os.sched_getaffinity(0))
    name = model.group(1) if model else platform.machine()
    return f"{name}, {cores} cores, {memory:.0f} GiB, Python {platform.python_version()}"


def measure(name: str) -> dict[str, Any]:
    """Run one benchmark and return its JSON object."""
    command = [sys.executable, "-m", f"tests.bench.bench_{name}"]
    print(f"bench: {name}", file=sys.stderr, flush=True)
    run = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    result: dict[str, Any] = json.loads(run.stdout.strip().splitlines()[-1])
    return result


def section(name: str, result: dict[str, Any]) -> str:
    """Return a benchmark's part of the document."""
    rows = "\n".join(f"| {key} | {value} |" for key, value in result["figures"].items())
    note = f"\n{result['note']}\n" if result.get("note") else ""
    today = dt.datetime.now(tz=dt.UTC).date()
    return (
        f"## {name}\n\n{result['name']}. Asked: {result['target']}.\n\n"
        f"| figure | measured |\n| --- | --- |\n{rows}\n{note}\nMeasured {today} on {machine()}.\n"
    )


def main() -> None:
    """Run the benchmarks that were named (default: all) and write the document."""
    known = sorted(path.stem.removeprefix("bench_") for path in HERE.glob("bench_*.py"))
    parser = argparse.ArgumentParser(description="Run the benchmarks and write the document.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(known)}")
    names = parser.parse_args().names or known
    old = DOCUMENT.read_text() if DOCUMENT.exists() else ""
    sections = dict(re.findall(r"^(?=## (\S+)\n)(.*?)(?=^## |\Z)", old, re.MULTILINE | re.DOTALL))
    for name in names:
        sections[name] = section(name, measure(name))
        body = "\n".join(sections[key].strip() + "\n" for key in sorted(sections))
        DOCUMENT.write_text(f"{HEAD}\n{body}")


if __name__ == "__main__":
    main()
