"""What must hold of the page and the card of any artifact, whatever made it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import yaml
from huggingface_hub import ModelCard
from tests.page.documents import Document

if TYPE_CHECKING:
    from pathlib import Path

PARTS = ["Summary", "Quality", "Performance", "Files", "Usage", "Next steps", "How it was made"]
# Numbers that were computed of nothing, and values that were written as Python has them.
NO_NUMBERS = re.compile(r"\b(?:nan|inf|None|True|False)\b")


def assert_documents_are_sound(artifact: Path) -> None:
    """Hold report.html and README.md of an artifact's folder against what readers need."""
    page = Document((artifact / "report.html").read_text())
    assert page.faults == []
    assert [re.split(r" [A-Z0-9]+_", text)[0] for text in page.text("h2")] == PARTS
    links = [one["href"] for one in page.all("a") if not one["href"].startswith("#")]
    listed = {path.relative_to(artifact).as_posix() for path in artifact.rglob("*")}
    assert {link.removeprefix("./") for link in links} == listed - {"report.html"}
    words = " ".join((*page.text("table"), *page.text("dl"), *page.text("text")))
    assert NO_NUMBERS.findall(words) == []

    content = (artifact / "README.md").read_text()
    card = ModelCard(content)
    assert card.data.to_dict() == yaml.safe_load(content.split("---\n")[1])
    assert card.data.eval_results, "what was measured is what the Hub shows"
    assert NO_NUMBERS.findall("\n".join(re.findall(r"^\|.*", content, re.MULTILINE))) == []
    commands = re.findall(r"<pre><code>", (artifact / "report.html").read_text())
    assert content.count("\nWith ") == len(commands) > 0
