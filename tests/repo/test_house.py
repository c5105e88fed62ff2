"""The house's rules that no linter knows."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LONGEST_MODULE = 400


def tracked(*patterns: str) -> list[Path]:
    """Return the files of the checkout that match, those not yet added included."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *patterns]
    output = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return [path for line in output.splitlines() if (path := ROOT / line).is_file()]


@pytest.mark.parametrize("shelf", ["operator", "images"])
def test_a_shelf_is_never_a_package(shelf: str) -> None:
    assert not (ROOT / shelf / "__init__.py").exists()


def test_modules_stay_under_four_hundred_lines() -> None:
    modules = tracked("operator/**.py", "images/**.py")
    assert modules
    long = {
        str(path.relative_to(ROOT)): lines
        for path in modules
        if (lines := len(path.read_text().splitlines())) > LONGEST_MODULE
    }
    assert long == {}


def test_every_module_says_what_it_is_for() -> None:
    silent = [
        str(path.relative_to(ROOT))
        for path in tracked("operator/**.py", "images/**.py", "tests/**.py")
        if path.read_text().strip() and not path.read_text().lstrip().startswith(('"""', 'r"""'))
    ]
    assert silent == []


def test_links_in_the_documents_lead_somewhere() -> None:
    broken = []
    for document in tracked("*.md"):
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", document.read_text()):
            if not target.startswith(("http://", "https://", "mailto:")):
                path = (document.parent / target).resolve()
                if not path.exists():
                    broken.append(f"{document.relative_to(ROOT)}: {target}")
    assert broken == []


def test_make_targets_named_in_the_documents_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {
        (document.name, target)
        for document in tracked("*.md")
        for target in re.findall(r"`make ([a-z-]+)`", document.read_text())
    }
    assert {(document, target) for document, target in named if target not in targets} == set()


def test_no_file_records_where_packages_were_downloaded_from() -> None:
    assert tracked("*uv.lock", "*poetry.lock", "*Pipfile.lock") == []
