"""Runs every local example on this machine's CPU, and writes the figures of docs/methods.md.

    python -m tests.bench.methods_table [EXAMPLE ...]

An example is run by `kubequant run` in the environment of its engine's image, as a user would; what
is measured is the same for all. The examples found are those of the engines in the registry, so a
new engine needs no word here. A manifest that was not run keeps the figures that were there.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml
from tests.bench.__main__ import machine
from tests.worker.environments import interpreter, variables

from kubequant.api.engines import engine_choice
from kubequant.api.enums import Device, Method
from kubequant.cli.manifests import find_jobs
from kubequant.controller.catalog import IMAGES, ImageKey

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
MEASURED = ROOT / "docs" / "methods-measured.json"
EVALUATION = {
    "perplexity": {"maxTokens": 16384, "contextLength": 512},
    "skip": ["Generations", "Performance"],
}
SECONDS = 1800


def engines() -> dict[str, tuple[Method, str]]:
    """Return (method, engine) of every example that runs on this machine's CPU, by file name."""
    found: dict[str, tuple[Method, str]] = {}
    for path in sorted(EXAMPLES.glob("*.yaml")):
        for found_job in find_jobs(path, local=True):
            job = found_job.job
            if job is None or not job.spec.model.uri.startswith("file://"):
                continue
            choice = engine_choice(job.spec)
            if choice is not None and job.spec.effective_device() is Device.CPU:
                found[path.name] = (job.spec.method, choice.name)
    return found


def run(name: str, image: ImageKey, folder: Path) -> dict[str, Any]:
    """Run an example, its output below `folder`, and return the report."""
    content = yaml.safe_load((EXAMPLES / name).read_text())
    content["spec"]["model"]["uri"] = (EXAMPLES / content["spec"]["model"]["uri"][7:]).as_uri()
    content["spec"]["output"]["uri"] = folder.as_uri()
    content["spec"]["evaluation"] = EVALUATION
    manifest = folder / name
    manifest.write_text(yaml.safe_dump(content))
    # llama.cpp's environment is the one that this program runs in.
    python = sys.executable if image is ImageKey.GGUF else interpreter(image.value)
    done = subprocess.run(
        [python, "-m", "kubequant.cli", "run", "--json", manifest],
        env=variables(),
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{name}: exit code {done.returncode}\n{done.stderr[-4000:]}")
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def figures(report: dict[str, Any], method: Method, engine: str) -> dict[str, Any]:
    """Return what the document shows of a report."""
    shown = (
        "name", "sizeBytes", "sizeReductionPercent", "perplexity", "perplexityIncreasePercent",
        "meanKLDivergence",
    )  # fmt: skip
    return {
        "method": method.value,
        "engine": engine,
        "device": report["resolved"]["device"],
        "by": report["resolved"]["engine"],
        "runtime": report["original"]["runtime"],
        "machine": re.sub(", Python .*", "", machine()),
        "date": str(dt.datetime.now(tz=dt.UTC).date()),
        "original": {key: report["original"][key] for key in ("sizeBytes", "perplexity")},
        "variants": [{key: one[key] for key in shown} for one in report["variants"]],
    }


def main() -> None:
    """Run the examples that were named (default: all) and write the figures."""
    known = engines()
    parser = argparse.ArgumentParser(description="Run the examples and write docs/methods.md.")
    parser.add_argument("names", nargs="*", metavar="EXAMPLE", help=f"of {', '.join(known)}")
    names = parser.parse_args().names or list(known)
    kept: dict[str, Any] = json.loads(MEASURED.read_text()) if MEASURED.exists() else {}
    for name in names:
        method, engine = known[name]
        print(f"methods_table: {name} ({method} by {engine})", file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory(prefix="kubequant-methods-") as folder:
            report = run(name, IMAGES[engine].key, Path(folder))
        kept[name] = figures(report, method, engine)
        kept = {key: kept[key] for key in sorted(kept) if key in known}
        MEASURED.write_text(json.dumps(kept, indent=1) + "\n")
    subprocess.run([sys.executable, ROOT / "docs" / "generate.py"], check=True)


if __name__ == "__main__":
    main()
