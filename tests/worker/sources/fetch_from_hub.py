"""Fetches a model from the hub that HF_ENDPOINT names, and prints what came of it as JSON.

Run by an image's interpreter, whose hub client may be older than ours: `fetch_from_hub.py URI
FOLDER`. Prints {files, revision, bytes} or {refused}.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from kubequant.api.data import ModelSource
from kubequant_worker.errors import WorkerError
from kubequant_worker.sources import fetch_model


class Bytes:
    """A meter that remembers how much it was told."""

    def __init__(self) -> None:
        self.done = 0.0

    def set_total(self, total: float) -> None:
        del total

    def advance(self, amount: float, message: str | None = None) -> None:
        del message
        self.done += amount


def main() -> None:
    uri, folder = sys.argv[1], Path(sys.argv[2])
    meter: Any = Bytes()
    try:
        fetched = fetch_model(ModelSource(uri=uri), into=folder, credentials=folder, progress=meter)
    except WorkerError as error:
        print(json.dumps({"refused": error.message, "kind": type(error).__name__}))
        return
    files = {file.path: file.sha256 for file in fetched.files}
    print(json.dumps({"files": files, "revision": fetched.revision, "bytes": meter.done}))


if __name__ == "__main__":
    main()
