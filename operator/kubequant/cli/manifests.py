"""Reads QuantizationJobs out of YAML files and folders that may hold anything else too.

Nothing here prints or runs; what is wrong with a file comes back as sentences.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import yaml

from kubequant.api.problems import InvalidInputError, parse
from kubequant.api.resource import API_GROUP, KIND, QuantizationJob

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SUFFIXES = (".yaml", ".yml", ".json")


@dataclass(frozen=True, slots=True)
class Found:
    """One document of ours: its name and what it holds, or what is wrong with it and where."""

    name: str
    job: QuantizationJob | None
    errors: tuple[str, ...] = ()


def manifest_files(paths: list[Path]) -> list[Path]:
    """Return the files named by `paths`, folders searched whole, in a fixed order."""
    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            files += sorted(p for p in path.rglob("*") if p.suffix in SUFFIXES and p.is_file())
        else:
            files.append(path)
    return files


def find_jobs(path: Path, *, local: bool) -> list[Found]:
    """Return every QuantizationJob in `path`; documents of other kinds are passed over.

    `local` allows what only a local run can use, like `file://`. A file that is not YAML is an
    error only if it names our API group: chart templates are not YAML and none of our business.
    """
    text = path.read_text(encoding="utf-8", errors="replace")
    if path.suffix == ".json":
        text = _without_tabs(text)
    try:
        documents = [_Document(content, node) for content, node in _documents(text)]
    except (yaml.YAMLError, ValueError) as error:  # ValueError: 2026-02-30 is read as a date
        if API_GROUP not in text:
            return []
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 1 if mark else 1
        problem = getattr(error, "problem", None) or str(error) or "it cannot be parsed"
        return [Found("", None, (f"{path}:{line}: not valid YAML: {problem}",))]
    return [_found(path, document, local=local) for document in documents if document.is_ours]


def _without_tabs(text: str) -> str:
    """Return JSON with blanks for its tabs: JSON may be indented by them, YAML may not.

    Valid JSON has none inside its strings, and each stays where it was.
    """
    return text.replace("\t", " ")


def _documents(text: str) -> Iterator[tuple[Any, yaml.Node]]:
    """Yield each document with its node, which knows lines; those inside a List kind too."""
    loader = yaml.SafeLoader(text)
    try:
        while loader.check_node():
            node = loader.get_node()
            if node is None:
                continue
            content = loader.construct_document(node)
            if isinstance(content, dict) and content.get("kind") == "List":
                items = content.get("items")
                yield from (
                    (item, _child(node, "items", index) or node)
                    for index, item in enumerate(items if isinstance(items, list) else [])
                )
            else:
                yield content, node
    finally:
        loader.dispose()


@dataclass(frozen=True, slots=True)
class _Document:
    content: Any
    node: yaml.Node

    @property
    def is_ours(self) -> bool:
        if not isinstance(self.content, dict):
            return False
        group = str(self.content.get("apiVersion", "")).partition("/")[0]
        return group == API_GROUP and self.content.get("kind") == KIND

    def line_of(self, path: str) -> int:
        """Return the line of the field at `path` ("spec.gguf.types[1]"), or of what is nearest."""
        node = self.node
        for key, index in re.findall(r"([A-Za-z_]\w*)|\[(\d+)\]", path):
            below = _child(node, key or int(index))
            if below is None:
                break
            node = below
        return int(node.start_mark.line) + 1


def _child(node: yaml.Node, *steps: str | int) -> yaml.Node | None:
    """Return the node below `node` by keys and indices, or None where there is none."""
    for step in steps:
        found: yaml.Node | None = None
        if isinstance(node, yaml.MappingNode):
            found = next((value for key, value in node.value if key.value == step), None)
        elif isinstance(node, yaml.SequenceNode) and isinstance(step, int):
            found = node.value[step] if step < len(node.value) else None
        if found is None:
            return None
        node = found
    return node


def _found(path: Path, document: _Document, *, local: bool) -> Found:
    metadata = document.content.get("metadata")
    name = str(metadata.get("name", "")) if isinstance(metadata, dict) else ""
    try:
        job = parse(QuantizationJob, document.content, local=local)
    except InvalidInputError as error:
        lines = ((document.line_of(problem.path), problem) for problem in error.problems)
        return Found(name, None, tuple(f"{path}:{line}: {problem}" for line, problem in lines))
    return Found(name, job)
