"""Print what pyproject.toml asks for, so that each image's list is written in one place only.

Usage: python requirements.py PYPROJECT [EXTRA ...] [--without NAME]

It needs nothing but Python, since it runs in an image that holds nothing else yet.
"""

from __future__ import annotations

import argparse
import re
import tomllib
from pathlib import Path


def requirements(pyproject: Path, extras: list[str], without: str | None) -> list[str]:
    """Return the project's dependencies and those of `extras`, but for the package `without`."""
    project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
    more = (line for extra in extras for line in project["optional-dependencies"][extra])
    asked = [*project["dependencies"], *more]
    return [line for line in asked if re.split(r"[^A-Za-z0-9_.-]", line)[0] != without]


def main() -> None:
    """Print one requirement a line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pyproject", type=Path)
    parser.add_argument("extras", nargs="*")
    parser.add_argument("--without", help="a package that comes from elsewhere")
    words = parser.parse_args()
    print("\n".join(requirements(words.pyproject, words.extras, words.without)))


if __name__ == "__main__":
    main()
