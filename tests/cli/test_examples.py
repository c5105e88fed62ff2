"""Every example is valid, and the README's manifest is too."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from kubequant.api.resource import QuantizationJob, read_manifest
from kubequant.cli.manifests import find_jobs

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("*.yaml"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_an_example_is_valid(path: Path) -> None:
    found = find_jobs(path, local=True)

    assert [job.errors for job in found] == [()]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_an_example_that_needs_no_local_files_is_valid_in_a_cluster(path: Path) -> None:
    uses_files = "uri: file://" in path.read_text()

    assert [bool(job.errors) for job in find_jobs(path, local=False)] == [uses_files]


def test_the_manifest_of_the_readme_is_valid() -> None:
    blocks = re.findall(r"```yaml\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)

    assert [type(read_manifest(yaml.safe_load(block))) for block in blocks] == [QuantizationJob]
