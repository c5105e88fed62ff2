"""What is generated is committed, and is what would be generated now."""

from __future__ import annotations

from pathlib import Path

import pytest

from kubequant.api.crd import generated_files

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", generated_files())
def test_a_generated_file_is_what_the_models_say(name: str) -> None:
    committed = (ROOT / name).read_text(encoding="utf-8")

    assert committed == generated_files()[name], "run `python -m kubequant.api.crd` and commit"
