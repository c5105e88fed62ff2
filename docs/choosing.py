"""Draws docs/choosing.svg, the picture in docs/guide.md, from the table of method Auto.

    python docs/choosing.py            (or: make generate)

The picture brings its own background and colours for light and dark, since a page that shows it
decides neither.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Final

from jinja2 import Environment

from kubequant.api.auto import CHOICES
from kubequant.api.params import AWQParameters, GGUFParameters, GPTQParameters

TARGET: Final = "docs/choosing.svg"
HARDWARE: Final = {
    "GPU": ("GPU", "vLLM, transformers"),
    "CPU": ("CPU", "llama.cpp, Ollama"),
    "AppleSilicon": ("Apple silicon", "llama.cpp, Ollama"),
}
_ROW: Final = 46
_GAP: Final = 22
_TOP: Final = 64

TEMPLATE: Final = """\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 760 {{ height }}" width="760" \
height="{{ height }}" role="img" aria-labelledby="title desc">
<title id="title">Which method fits: first the hardware, then the priority, then verify</title>
<desc id="desc">{{ told }}</desc>
<style>
  .back { fill: #ffffff; } .box { fill: #f6f8fa; stroke: #d5dbe1; }
  .made { fill: #e8f1fb; stroke: #0a5cab; } .line { fill: none; stroke: #8a94a0; }
  text { font: 15px system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; fill: #1b1f24; }
  .small { font-size: 12.5px; fill: #57606a; } .strong { font-weight: 600; }
  @media (prefers-color-scheme: dark) {
    .back { fill: #0f1318; } .box { fill: #171c23; stroke: #2d353f; }
    .made { fill: #12263a; stroke: #6db3f8; } .line { stroke: #7d8895; }
    text { fill: #e4e9ef; } .small { fill: #9da7b3; }
  }
</style>
<rect class="back" width="760" height="{{ height }}" rx="8"/>
<text class="small" x="24" y="36">1. What will serve it?</text>
<text class="small" x="262" y="36">2. What matters most?</text>
<text class="small" x="480" y="36">3. Make it, then verify what it lost</text>
{% for group in groups %}
<rect class="box" x="24" y="{{ group.y - 24 }}" width="170" height="48" rx="6"/>
<text class="strong" x="40" y="{{ group.y - 3 }}">{{ group.name }}</text>
<text class="small" x="40" y="{{ group.y + 15 }}">{{ group.served }}</text>
{% for leaf in group.leaves %}
<path class="line" d="M194 {{ group.y }} C 228 {{ group.y }}, 228 {{ leaf.y }}, 262 {{ leaf.y }}"/>
<rect class="box" x="262" y="{{ leaf.y - 16 }}" width="150" height="32" rx="6"/>
<text x="278" y="{{ leaf.y + 5 }}">{{ leaf.priority }}</text>
<path class="line" d="M412 {{ leaf.y }} H 480"/>
<rect class="made" x="480" y="{{ leaf.y - 16 }}" width="256" height="32" rx="6"/>
<text x="496" y="{{ leaf.y + 5 }}">{{ leaf.made }}</text>
{% endfor %}
{% endfor %}
</svg>
"""


@dataclass(frozen=True)
class Leaf:
    """A priority and what is made for it, at a height of the picture."""

    priority: str
    made: str
    y: int


@dataclass(frozen=True)
class Group:
    """One kind of hardware with its leaves."""

    name: str
    served: str
    leaves: tuple[Leaf, ...]

    @property
    def y(self) -> int:
        """The height of its middle."""
        return (self.leaves[0].y + self.leaves[-1].y) // 2


def made(hardware: str, priority: str) -> str:
    """Return in a few words what method Auto makes for a goal."""
    choice = CHOICES[hardware, priority]
    if isinstance(choice.parameters, GGUFParameters):
        return f"{choice.method} {', '.join(choice.parameters.types)}"
    if isinstance(choice.parameters, AWQParameters | GPTQParameters):
        return f"{choice.method}, {choice.parameters.bits} bits"
    return choice.method.value


def groups() -> tuple[Group, ...]:
    """Return the tree; priorities with the same answer share a leaf."""
    found = []
    y = _TOP + 12
    for hardware, goals in groupby(CHOICES, key=lambda goal: goal[0]):
        by_answer: dict[str, list[str]] = {}
        for _, priority in goals:
            by_answer.setdefault(made(hardware, priority), []).append(priority)
        leaves = []
        for answer, priorities in by_answer.items():
            leaves.append(Leaf("any" if len(priorities) > 2 else ", ".join(priorities), answer, y))
            y += _ROW
        y += _GAP
        found.append(Group(*HARDWARE[hardware], tuple(leaves)))
    return tuple(found)


def picture() -> str:
    """Return the SVG."""
    tree = groups()
    told = " ".join(
        f"{group.name}: {'; '.join(f'{leaf.priority}: {leaf.made}' for leaf in group.leaves)}."
        for group in tree
    )
    environment = Environment(autoescape=True, trim_blocks=True, keep_trailing_newline=True)
    height = tree[-1].leaves[-1].y + 40
    return environment.from_string(TEMPLATE).render(groups=tree, told=told, height=height)


def main(root: Path) -> None:
    """Write the picture below `root`."""
    (root / TARGET).write_text(picture(), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path.cwd())
