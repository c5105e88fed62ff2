"""Upload of one large file by our store against `aws s3 cp` of the same file, in the same run.

Usage: python -m tests.bench.bench_upload [--gigabytes 2] [--rounds 3]

Both are processes of their own that start, upload to the same S3 server on loopback and end; they
take turns, so that what else the machine does falls on both. Ours also computes the file's SHA-256,
has the server verify each part and writes a manifest. The last line printed is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.bench.awscli import AWSCLI, aws_program
from tests.testbed.processes import Processes, S3Server, start_s3
from tests.testbed.storage import client_for

BUCKET = "bench"
PIECE_BYTES = 16 * 2**20

OURS = """
import json, sys, threading
from pathlib import Path
from kubequant.api.data import OutputS3Options
from kubequant_worker.manifest import Manifest
from kubequant_worker.stores import Place, open_store

file, endpoint, digest = Path(sys.argv[1]), sys.argv[2], sys.argv[3]

def anonymous():
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024

peak, done = [0], threading.Event()

def watch():
    while not done.wait(0.01):
        peak[0] = max(peak[0], anonymous())

place = Place("s3://bench/ours", OutputS3Options(endpoint=endpoint))
store = open_store(place, name="bench", digest=digest)
store.probe()
before = anonymous()
threading.Thread(target=watch, daemon=True).start()
with store.claim() as publication:
    publication.add(file, file.name)
    publication.commit(Manifest.of("bench", digest, publication.uploaded()).to_bytes())
done.set()
print(json.dumps({"added": peak[0] - before, "before": before}))
"""


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def make_file(path: Path, size_bytes: int) -> None:
    """Write random bytes, so that nothing on the way can shorten them."""
    say(f"making {size_bytes / 1e9:.1f} GB of random bytes")
    with path.open("wb") as file:
        left = size_bytes
        while left:
            left -= file.write(os.urandom(min(PIECE_BYTES, left)))


def timed(command: list[str], environment: dict[str, str]) -> tuple[float, str]:
    """Return a command's wall time in seconds and its output."""
    started = time.monotonic()
    run = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return time.monotonic() - started, run.stdout


def measure(file: Path, server: S3Server, rounds: int) -> dict[str, object]:
    """Upload `file` in turns and return the figures."""
    environment = {
        **os.environ,
        "AWS_ACCESS_KEY_ID": server.access_key,
        "AWS_SECRET_ACCESS_KEY": server.secret_key,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_CONFIG_FILE": os.devnull,
    }
    aws = [str(aws_program()), "--endpoint-url", server.endpoint, "s3", "cp", "--no-progress"]
    client = client_for(server.endpoint, server.access_key, server.secret_key)
    client.create_bucket(Bucket=BUCKET)
    ours: list[float] = []
    theirs: list[float] = []
    added: list[int] = []
    for number in range(rounds + 1):
        digest = f"{number:08x}"
        took, output = timed(
            [sys.executable, "-c", OURS, str(file), server.endpoint, digest], environment
        )
        peer, _ = timed([*aws, str(file), f"s3://{BUCKET}/theirs/{digest}"], environment)
        figures = json.loads(output)
        say(f"round {number}: ours {took:.2f} s, aws {peer:.2f} s, added {figures['added']} bytes")
        # The first round warms the page cache and is not counted.
        if number:
            ours.append(took)
            theirs.append(peer)
            added.append(figures["added"])
        for key in (f"ours/bench/{digest}/{file.name}", f"theirs/{digest}"):
            client.delete_object(Bucket=BUCKET, Key=key)
    client.close()
    ratio = statistics.median(one / other for one, other in zip(ours, theirs, strict=True))
    size = file.stat().st_size
    return {
        "name": f"Upload of one file of {size / 1e9:.0f} GB against `aws s3 cp` ({AWSCLI}) of the "
        "same file; ours also takes its SHA-256, has each part checked and writes a manifest",
        "target": "at most 1.0, and at most 256 MB of memory added",
        "figures": {
            "wall time, over aws s3 cp (median of pairs)": f"{ratio:.2f}",
            "ours, seconds": f"{statistics.median(ours):.1f}",
            "aws s3 cp, seconds": f"{statistics.median(theirs):.1f}",
            "anonymous memory added by the upload, MB": f"{max(added) / 1e6:.0f}",
        },
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--gigabytes", type=float, default=2.0)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="kubequant-bench-"))
    processes = Processes(folder)
    try:
        file = folder / "model.gguf"
        make_file(file, int(arguments.gigabytes * 1e9))
        figures = measure(file, start_s3(processes, folder / "s3"), arguments.rounds)
    finally:
        processes.stop()
        shutil.rmtree(folder)
    print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    main()
