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
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        return [Found("", None, (f"{path}: cannot be read: {error.strerror}",))]
    if path.suffix == ".json":
        text = _without_tabs(text)
    try:
        documents = [_Document(content, node) for content, node in _documents(text)]
        return [_found(path, document, local=local) for document in documents if document.is_ours]
    except RecursionError:
        line, problem = 1, "it is nested too deeply"
    except (yaml.YAMLError, ValueError) as error:  # ValueError: 2026-02-30 is read as a date
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 1 if mark else 1
        problem = getattr(error, "problem", None) or str(error) or "it cannot be parsed"
    if API_GROUP not in text:
        return []
    return [Found("", None, (f"{path}:{line}: not valid YAML: {problem}",))]


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
    if twice := tuple(_given_twice(document.node)):
        return Found(name, None, tuple(f"{path}:{sentence}" for sentence in twice))
    try:
        job = parse(QuantizationJob, document.content, local=local)
    except InvalidInputError as error:
        lines = ((document.line_of(problem.path), problem) for problem in error.problems)
        return Found(name, None, tuple(f"{path}:{line}: {problem}" for line, problem in lines))
    return Found(name, job)


def _given_twice(node: yaml.Node) -> Iterator[str]:
    """Return "line: sentence" for each key that its mapping holds twice; YAML keeps the last."""
    seen: set[int] = set()  # an alias stands for its node, however often it is written

    def look(node: yaml.Node, at: str) -> Iterator[str]:
        if id(node) in seen or isinstance(node, yaml.ScalarNode):
            return
        seen.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            for index, item in enumerate(node.value):
                yield from look(item, f"{at}[{index}]")
            return
        lines: dict[str, int] = {}
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode):
                path, line = f"{at}.{key.value}" if at else key.value, key.start_mark.line + 1
                if key.value in lines:
                    yield f"{line}: {path}: is given twice, first in line {lines[key.value]}"
                lines.setdefault(key.value, line)
                yield from look(value, path)

    return look(node, "")
