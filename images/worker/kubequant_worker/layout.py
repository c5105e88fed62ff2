"""Where a run finds its folders, in a pod and on a laptop.

| variable | default | what |
| --- | --- | --- |
| KUBEQUANT_RUN | | the RunRequest as JSON |
| KUBEQUANT_SCRATCH | /scratch | working space; as large as the model needs |
| KUBEQUANT_CACHE_DIR | /cache where it exists | kept between runs |
| KUBEQUANT_CREDENTIALS | /var/run/kubequant/credentials | model/, calibration/, … |
| KUBEQUANT_VOLUMES | /volumes | `pvc://claim/path` is VOLUMES/claim/path |
| KUBEQUANT_TERMINATION_LOG | /dev/termination-log | where the short report goes |
"""

from __future__ import annotations

import fcntl
import os
import shutil
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

REQUEST_VARIABLE = "KUBEQUANT_RUN"
# Set by a supervisor whose own standard output is to hold nothing but the report.
QUIET_VARIABLE = "KUBEQUANT_QUIET"


@dataclass(frozen=True, slots=True)
class Layout:
    """The folders of one run."""

    scratch: Path
    cache: Path | None
    credentials: Path
    volumes: Path
    termination_log: Path

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Layout:
        """Read the variables of the table above, with a pod's defaults; all are made absolute."""

        def folder(name: str, default: str) -> Path:
            return Path(environment.get(f"KUBEQUANT_{name}") or default).absolute()

        cache = folder("CACHE_DIR", "/cache")
        return cls(
            scratch=folder("SCRATCH", "/scratch"),
            cache=cache if cache.is_dir() else None,
            credentials=folder("CREDENTIALS", "/var/run/kubequant/credentials"),
            volumes=folder("VOLUMES", "/volumes"),
            termination_log=folder("TERMINATION_LOG", "/dev/termination-log"),
        )

    def environment(self) -> dict[str, str]:
        """Return the variables that make `from_environment` give this layout again."""
        return {
            "KUBEQUANT_SCRATCH": str(self.scratch),
            "KUBEQUANT_CACHE_DIR": str(self.cache) if self.cache else "",
            "KUBEQUANT_CREDENTIALS": str(self.credentials),
            "KUBEQUANT_VOLUMES": str(self.volumes),
            "KUBEQUANT_TERMINATION_LOG": str(self.termination_log),
        }

    @property
    def report(self) -> Path:
        """The whole report of this run, written by the run and read by its supervisor."""
        return self.scratch / "report.json"

    @contextmanager
    def alone(self) -> Iterator[tuple[int, ...]]:
        """Keep every other run out of the scratch folder in the block.

        Gives the descriptor that does so; a process that inherits it and outlives us does so
        further. The kernel lets go of it with the last one, so that a killed run is in nobody's
        way. Where the file system takes no file or no lock, there is no descriptor.

        Raises:
            BlockingIOError: Another run works there.
        """
        try:
            lock = os.open(self.scratch / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError:
            yield ()
            return
        try:
            yield (lock,) if _locked(lock) else ()
        finally:
            os.close(lock)

    def clear(self) -> None:
        """Remove what a run made: large, and of no use to anybody once it has ended."""
        for name in ("method", "artifact"):
            shutil.rmtree(self.scratch / name, ignore_errors=True)
        (self.scratch / "logits.f16").unlink(missing_ok=True)


def _locked(descriptor: int) -> bool:
    """Lock a file against other processes, and say whether its file system knows locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:
        return False
    return True
