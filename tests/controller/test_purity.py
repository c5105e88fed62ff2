"""What import-linter cannot tell of pure modules: no await, no clock, only Kubernetes' models."""

from __future__ import annotations

import ast
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CONTROLLER = ROOT / "operator" / "kubequant" / "controller"


def pure_modules() -> list[Path]:
    """Return the files of the modules that the layers' contract calls pure."""
    tables = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    contract = next(one for one in tables["contracts"] if "are pure" in one["name"])
    found = []
    for module in contract["source_modules"]:
        path = CONTROLLER.joinpath(*module.split(".")[2:])
        found += sorted(path.glob("*.py")) if path.is_dir() else [path.with_suffix(".py")]
    return found


@pytest.mark.parametrize("path", pure_modules(), ids=lambda path: path.stem)
def test_a_pure_module_awaits_nothing_and_asks_no_clock(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        assert not isinstance(node, ast.AsyncFunctionDef | ast.Await | ast.Global), node.lineno
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            is_clock = node.value.id in {"datetime", "date", "dt"}
            assert not (is_clock and node.attr in {"now", "utcnow", "today"}), node.lineno
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in {"open", "print", "input"}, node.lineno


@pytest.mark.parametrize("path", pure_modules(), ids=lambda path: path.stem)
def test_a_pure_module_takes_only_models_from_kubernetes(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            assert not any(alias.name.startswith("kubernetes") for alias in node.names)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("kubernetes"):
            assert node.module == "kubernetes.aio.client"
            assert all(alias.name.startswith("V1") for alias in node.names), node.lineno


def test_every_module_is_pure_or_part_of_the_shell() -> None:
    shell = {"__init__", "__main__", "environment", "cluster", "workqueue", "reconcile", "handlers"}
    shell |= {"index", "audit", "probes"}
    pure = {path.stem for path in pure_modules()}
    assert {path.stem for path in CONTROLLER.rglob("*.py")} <= pure | shell
