"""The commands that a page tells people to copy, and what happens when they do."""

from __future__ import annotations

import html
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


def commands_of(page: str) -> dict[str, str]:
    """Return the commands of report.html by the runtime that they are for."""
    shown = r'<div class="command">\n<h3>(.*?)</h3>\n<pre><code>(.*?)</code></pre>'
    found = re.findall(shown, page, re.DOTALL)
    return {html.unescape(runtime): html.unescape(command) for runtime, command in found}


def typed(
    command: str,
    folder: Path,
    *,
    interpreter: Path = Path(sys.executable),
    variables: Mapping[str, str] | None = None,
) -> str:
    """Type a command in a folder, with an interpreter as `python`, and return what it prints."""
    path = f"{interpreter.parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=folder,
        env={**(variables or os.environ), "PATH": path, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout
