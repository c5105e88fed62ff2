"""The entry point of every method image: one RunRequest in, one exit code out."""

from __future__ import annotations

import os
import sys

from kubequant.api.contract import RunRequest
from kubequant.api.outcome import ExitCode
from kubequant.api.problems import InvalidInputError
from kubequant_worker.layout import REQUEST_VARIABLE, Layout
from kubequant_worker.supervisor import supervise, write_termination


def main() -> int:
    """Read the request from the environment, run it, and return the exit code."""
    layout = Layout.from_environment(os.environ)
    text = os.environ.get(REQUEST_VARIABLE, "")
    try:
        request = RunRequest.from_json(text)
    except InvalidInputError as error:
        sentence = f"{REQUEST_VARIABLE} is no RunRequest: {error}"
        print(sentence, file=sys.stderr)  # noqa: T201 -- the log of a container
        write_termination(layout.termination_log, sentence)
        return ExitCode.BAD_REQUEST
    code, _ = supervise(request, layout, forward=lambda line: print(line, file=sys.stderr))  # noqa: T201
    return code


if __name__ == "__main__":
    sys.exit(main())
