"""Carries out one job in another Python: foreign_program.py PIPE PARENT-PID JOB OPERATIONS.

It stands alone: that Python holds none of kubequant's packages. OPERATIONS is a file that stands
alone too, whose `OPERATIONS` are functions by name. JOB is a file of JSON; the answer are lines of
JSON (kind, value) into PIPE: "step" while it works, then "result" or "refused". The parent's half
is `foreign`.
"""

from __future__ import annotations

import ctypes
import json
import os
import runpy
import signal
import sys
from pathlib import Path

_PR_SET_PDEATHSIG = 1
# What a library raises where it does not know a model or has no kernel for it.
_FORESEEABLE = (
    ArithmeticError, AssertionError, AttributeError, LookupError, NotImplementedError,
    RuntimeError, TypeError, ValueError,
)  # fmt: skip
_LONGEST = 400


class Pipe:
    """Where answers go."""

    def __init__(self, descriptor: int) -> None:
        """Write to `descriptor`, which nothing that is started inherits."""
        os.set_inheritable(descriptor, False)  # noqa: FBT003 - the function's only form
        self._descriptor = descriptor

    def say(self, kind: str, value: object) -> None:
        """Write one line."""
        left = (json.dumps({"kind": kind, "value": value}) + "\n").encode()
        while left:  # a pipe takes a part of what is long
            left = left[os.write(self._descriptor, left) :]


def first_line(error: BaseException) -> str:
    """Return an error's own words on one line."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text[:_LONGEST]


def main() -> int:
    """Carry out one job; the exit code says whether there is an answer."""
    descriptor, parent, job_path, path = int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:5]
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before we asked to die with it
        return 1
    pipe = Pipe(descriptor)
    job = json.loads(Path(job_path).read_text(encoding="utf-8"))
    operation = runpy.run_path(path)["OPERATIONS"][job["operation"]]
    try:
        pipe.say("result", operation(job, pipe))
    except _FORESEEABLE as error:
        import traceback  # noqa: PLC0415 - only here

        traceback.print_exc()
        pipe.say("refused", first_line(error))
    return 0


if __name__ == "__main__":
    sys.exit(main())
