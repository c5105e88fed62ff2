"""Each engine of the table has all that belongs to it, and the documents tell of it."""

from __future__ import annotations

import importlib.util
import json
import sys
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.bench.methods_table import MEASURED, engines

from kubequant.api.auto import resolve
from kubequant.api.engines import ENGINES, engine_choice
from kubequant.api.enums import Device, Method
from kubequant.api.summaries import SUMMARIES
from kubequant.cli.manifests import find_jobs
from kubequant.controller.catalog import IMAGES
from kubequant_worker.methods import METHODS

if TYPE_CHECKING:
    from types import ModuleType

    from kubequant.api.engines import Engine

ROOT = Path(__file__).parents[2]
ROWS = [(method, engine) for method, engines in ENGINES.items() for engine in engines]
NAMED = pytest.mark.parametrize(
    ("method", "engine"), ROWS, ids=[f"{method} by {engine.name}" for method, engine in ROWS]
)


def generator() -> ModuleType:
    """Return docs/generate.py, which is a script and no module of a package."""
    place = ROOT / "docs" / "generate.py"
    specification = importlib.util.spec_from_file_location("docs_generate", place)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules[specification.name] = module
    specification.loader.exec_module(module)
    return module


def examples() -> set[tuple[Method, str]]:
    """Return (method, engine) of every example."""
    found = set()
    for path in (ROOT / "examples").glob("*.yaml"):
        for one in find_jobs(path, local=True):
            assert one.job is not None
            spec = resolve(one.job.spec).spec
            choice = engine_choice(spec)
            assert choice is not None, path.name
            found.add((spec.method, choice.name))
    return found


@NAMED
def test_an_engine_has_an_image_an_extra_and_a_module(method: Method, engine: Engine) -> None:
    name = engine.name
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    module = METHODS[method, name].partition(":")[0].rpartition(".")[2]

    assert IMAGES[name].key in extras["optional-dependencies"]
    assert (ROOT / "images" / IMAGES[name].key / "Dockerfile").is_file()
    assert (ROOT / "images/worker/kubequant_worker/methods" / f"{module}.py").is_file()


@NAMED
def test_an_engine_has_an_example(method: Method, engine: Engine) -> None:
    name = engine.name

    assert (method, name) in examples()


@NAMED
def test_an_engine_that_runs_on_a_cpu_has_its_figures(method: Method, engine: Engine) -> None:
    name, devices = engine.name, engine.devices
    kept = json.loads(MEASURED.read_text())
    measured = {(run["method"], run["engine"]) for run in kept.values()}

    assert Device.CPU not in devices or (method.value, name) in measured, (
        "run `python -m tests.bench.methods_table` and commit"
    )


def test_the_figures_are_of_examples_that_are_there() -> None:
    kept = json.loads(MEASURED.read_text())
    expected = {name: (method.value, engine) for name, (method, engine) in engines().items()}

    assert {name: (run["method"], run["engine"]) for name, run in kept.items()} == expected


@pytest.mark.parametrize("document", generator().DOCUMENTS)
def test_a_generated_part_of_a_document_is_what_the_tables_say(document: str) -> None:
    committed = (ROOT / document).read_text(encoding="utf-8")

    assert committed == generator().generated(document), "run `make generate` and commit"


@pytest.mark.parametrize("method", ENGINES)
def test_a_method_has_a_section_with_its_parameters(method: Method) -> None:
    text = (ROOT / "docs/methods.md").read_text()

    assert f"\n## {method}\n" in text
    assert f"<!-- begin parameters {method} -->" in text


def test_every_method_has_a_sentence_and_a_row_in_the_readme() -> None:
    text = (ROOT / "README.md").read_text()

    assert set(SUMMARIES) == set(Method)
    assert [method for method in Method if SUMMARIES[method] not in text] == []
