"""The images that the operator may ask for are images that this repository builds."""

from __future__ import annotations

import importlib.util
import re
import sys
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from kubequant.controller.catalog import ImageKey
from kubequant.controller.settings import DEFAULT_IMAGES

if TYPE_CHECKING:
    from types import ModuleType

ROOT = Path(__file__).parents[2]


def build_script() -> ModuleType:
    specification = importlib.util.spec_from_file_location("build", ROOT / "images" / "build.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    # A dataclass asks for the module that it was made in.
    sys.modules[specification.name] = module
    specification.loader.exec_module(module)
    return module


@pytest.mark.parametrize("key", ImageKey)
def test_every_image_of_the_catalog_is_built_from_pins_of_its_own(key: ImageKey) -> None:
    recipe = build_script().IMAGES[key.value].recipe
    assert recipe == f"images/{key}/Dockerfile"
    assert (ROOT / recipe).is_file()
    assert (ROOT / "images" / key / "constraints.txt").is_file()
    assert f"!images/{key}\n" in (ROOT / ".dockerignore").read_text()
    assert f"| `kubequant/{key}` |" in (ROOT / "images" / "README.md").read_text()


@pytest.mark.parametrize("key", [*ImageKey, "base"])
def test_the_pins_of_an_image_hold_all_that_the_worker_itself_needs(key: str) -> None:
    # An environment is made of the pins alone, and a page of every run is drawn in it.
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = {re.split("[^A-Za-z0-9_.-]", line)[0] for line in project["dependencies"]}
    lines = (ROOT / "images" / key / "constraints.txt").read_text().splitlines()
    pinned = {line.partition("==")[0] for line in lines if not line.startswith("#")}
    needs_of_matplotlib = {"contourpy", "cycler", "fonttools", "kiwisolver", "pillow", "pyparsing"}

    assert {canonical(name) for name in asked | needs_of_matplotlib} <= set(map(canonical, pinned))


def canonical(name: str) -> str:
    return re.sub("[-_.]+", "-", name).lower()


def test_every_image_of_the_catalog_has_a_name_by_default() -> None:
    assert set(DEFAULT_IMAGES) == set(ImageKey)
