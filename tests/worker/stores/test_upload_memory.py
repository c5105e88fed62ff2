"""How much memory an upload adds, whatever the file's size."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from tests.testbed.processes import Toxiproxy
    from tests.testbed.storage import Bucket

UPLOAD = """
import json, sys, threading, time
from pathlib import Path
import psutil
from kubequant.api.data import OutputS3Options
from kubequant_worker.stores import Place, open_store

endpoint, bucket, credentials, *files = sys.argv[1:]
process, peak, done = psutil.Process(), [0], threading.Event()

def anonymous():
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024

def watch():
    while not done.wait(0.005):
        peak[0] = max(peak[0], anonymous())

store = open_store(
    Place(f"s3://{bucket}/memory", OutputS3Options(endpoint=endpoint), Path(credentials)),
    name="memory", digest="0123abcd",
)
store.probe()
before = anonymous()
threading.Thread(target=watch, daemon=True).start()
with store.claim() as publication:
    for file in files:
        publication.add(Path(file), Path(file).name)
    publication.uploaded()
done.set()
print(json.dumps(peak[0] - before))
"""


def test_uploads_add_a_bounded_amount_of_memory(
    bucket: Bucket, credentials: Path, toxiproxy: Toxiproxy, tmp_path: Path
) -> None:
    # Slower than the disk is read, per connection, so that whatever may pile up does.
    toxiproxy.add("bandwidth", rate=8_000)
    files = []
    for number in range(3):
        file = tmp_path / f"{number}.gguf"
        with file.open("wb") as sparse:
            sparse.truncate(64 * 1024 * 1024)
        files.append(str(file))
    arguments = [toxiproxy.endpoint, bucket.name, str(credentials / "output"), *files]
    run = subprocess.run(
        [sys.executable, "-c", UPLOAD, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    added = json.loads(run.stdout)
    # About 60 MiB on an idle machine and 98 on one that does much else; what piled up would be 192.
    assert added < 128 * 1024 * 1024, f"{added / 2**20:.0f} MiB"
