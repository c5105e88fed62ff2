"""What every tier shares: which machine can hold which tier, and the one place where a tier may be
left out.

A machine that cannot hold a tier skips it whole and says so in the last line of the run; where `CI`
is set, that is a failure. No test skips by itself but what is marked `gpu`.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest
from hypothesis import settings
from tests.testbed import packages

TESTS = Path(__file__).parent

# How long an example takes is the machine's affair: no test fails for speed.
settings.register_profile("kubequant", deadline=None)
settings.load_profile("kubequant")


def _needs_go() -> str:
    return "" if shutil.which("go") else "Go is not installed (servers are built with it)"


def _needs_linux() -> str:
    return "" if sys.platform == "linux" else "it reads /proc and needs Linux"


def _needs_root() -> str:
    if os.environ.get("KUBEQUANT_TEST_KUBECONFIG") or os.geteuid() == 0:
        return ""
    return "a cluster's node needs root (or a cluster in KUBEQUANT_TEST_KUBECONFIG)"


def _needs_to_be_root() -> str:
    return "" if os.geteuid() == 0 else "images are built and run as root"


def _needs_packages() -> str:
    if packages.can_install():
        return ""
    names = " ".join(packages.missing())
    return names and f"these Debian packages are missing and apt-get cannot install them: {names}"


def _needs_programs() -> str:
    return "" if os.environ.get("KUBEQUANT_TEST_KUBECONFIG") else _needs_packages()


def _needs_browser() -> str:
    if packages.program("chromium") or packages.can_install():
        return ""
    return "Chromium is not installed and apt-get cannot install it"


# folder -> what it needs; each need answers with "" or with what is missing.
TIERS = {
    "browser": (_needs_linux, _needs_browser),
    "cluster": (_needs_linux, _needs_go, _needs_root, _needs_programs),
    "images": (_needs_linux, _needs_to_be_root, _needs_packages),
    "worker": (_needs_linux, _needs_go),
}
_missing: dict[str, str] = {}


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Leave out the folder of a tier that this machine cannot hold."""
    name = collection_path.name
    if collection_path.parent != TESTS or name not in TIERS:
        return None
    reasons = [reason for need in TIERS[name] if (reason := need())]
    if not reasons:
        return None
    _missing[name] = "; ".join(reasons)
    return True


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what is marked `gpu` unless `make gpu-check` asked for it."""
    if os.environ.get("KUBEQUANT_GPU") == "1":
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a GPU: make gpu-check"))


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail the run where CI is set and a tier was left out."""
    if _missing and os.environ.get("CI"):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_unconfigure() -> None:
    """Say in the last line which tier did not run, and why."""
    for name, reason in _missing.items():
        print(f"tier tests/{name} was left out: {reason}", file=sys.stderr)
