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
from pathlib import Path

FOLDER = Path(__file__).parent / "tools"
# name -> the package that its module's `tool` line names.
PACKAGES = {
    "versitygw": "github.com/versity/versitygw/cmd/versitygw",
    "toxiproxy": "github.com/Shopify/toxiproxy/v2/cmd/server",
}


def cache_folder() -> Path:
    """Return the folder, outside the checkout, where long builds are kept."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("KUBEQUANT_CACHE") or Path(base) / "kubequant")


def tool(name: str) -> Path:
    """Return the program `name`, building it where the cache does not hold this version of it."""
    module = FOLDER / name
    parts = [(module / file).read_bytes() for file in ("go.mod", "go.sum")]
    key = hashlib.sha256(b"\0".join((PACKAGES[name].encode(), *parts))).hexdigest()[:12]
    program = cache_folder() / "tools" / f"{name}-{key}"
    if program.is_file():
        return program
    program.parent.mkdir(parents=True, exist_ok=True)
    # Two test runs may want the program at once: one builds, the other waits and finds it.
    with (program.parent / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not program.is_file():
            _build(name, module, program)
    return program


def _build(name: str, module: Path, program: Path) -> None:
    partial, log = program.with_suffix(".partial"), program.with_suffix(".log")
    _say(f"building {name} from its Go module, once (a minute or two; log: {log})")
    command = ["go", "build", "-trimpath", "-o", str(partial), PACKAGES[name]]
    environment = {**os.environ, "CGO_ENABLED": "0", "GOFLAGS": "-mod=readonly"}
    started = time.monotonic()
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=module, env=environment, stdout=output, stderr=output
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
