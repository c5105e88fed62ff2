"""Text to calibrate with and to measure on: the user's files, or text that comes with kubequant.

What lives here turns files into documents (strings). Where files come from is `sources`' affair,
and what tokens they become the engine's. Every file is untrusted: a broken or hostile one ends in a
sentence, never in code.
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import json
import sys
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kubequant.api.outcome import FailureReason
from kubequant_worker.errors import BadRequestError
from kubequant_worker.overlap import row_mark, sentence_marks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    import numpy.typing as npt

    from kubequant.api.spec import Dataset
    from kubequant_worker.chat import ChatTemplate

PASSAGES = Path(__file__).parent / "passages"
BUNDLED_NAME = "text bundled with kubequant"
# More than this is no calibration set but a mistake; a compressed file can claim any size.
MOST_CHARACTERS = 1 << 30
PIECE_CHARACTERS = 4000
# Python 3.11.7's: pydoc's topics, and docstrings of a few modules that are prose. A copy, since
# other releases say some of it in other words, and numbers taken on other text do not compare.
_DOCUMENTATION = PASSAGES / "python" / "documentation.txt"
_END_OF_DOCUMENT = "\f\n"


class Role(StrEnum):
    """What a text is for."""

    CALIBRATION = "Calibration"
    MEASUREMENT = "Measurement"


@dataclass(frozen=True, slots=True)
class TextSet:
    """Documents and what they are.

    `sha256` is of all documents, in order, each closed by a zero byte.

    `templated` says that the documents were written by a chat template, so that special tokens in
    them are meant as such. `marks` tell whether another text is the same (see `overlap`).
    `files` of a user's are read, the first of them: reading stops where there is enough.
    """

    name: str
    documents: tuple[str, ...]
    sha256: str
    bundled: bool
    templated: bool = False
    marks: bytes = b""
    files: int = 0

    @property
    def characters(self) -> int:
        """Return the length of all documents."""
        return sum(len(text) for text in self.documents)


def text_set(
    name: str,
    documents: Iterable[str],
    *,
    bundled: bool,
    templated: bool = False,
    marks: bytes | None = None,
) -> TextSet:
    """Return the set of `documents`, with its digest; without `marks` those of its documents."""
    kept = tuple(documents)
    digest = hashlib.sha256()
    for text in kept:
        digest.update(text.encode("utf-8", errors="replace") + b"\0")
    if marks is None:
        marks = b"".join(map(sentence_marks, kept))
    return TextSet(name, kept, digest.hexdigest(), bundled, templated, marks)


def bundled_text(role: Role) -> TextSet:
    """Return the bundled text for `role`, cut into pieces of which each serves one role only.

    A piece's own digest decides its role. English comes first: documentation of Python and this
    project's passages, in the order of the digests, so that any beginning is a mixture; then the
    passages in other languages. All of it is about as long as the default `maxTokens`.
    """
    english = [*_documentation_pieces(), *_passages("*-en.txt")]
    others = [text for text in _passages("*.txt") if text not in english]
    ordered = [*sorted(english, key=_piece_digest), *others]
    return text_set(BUNDLED_NAME, [text for text in ordered if role_of(text) is role], bundled=True)


def _passages(pattern: str) -> list[str]:
    return [path.read_text(encoding="utf-8") for path in sorted(PASSAGES.glob(pattern))]


def role_of(piece: str) -> Role:
    """Return the one role that a bundled piece may have."""
    return Role.CALIBRATION if _piece_digest(piece)[0] % 2 else Role.MEASUREMENT


def _piece_digest(piece: str) -> bytes:
    return hashlib.sha256(piece.encode()).digest()


@cache
def _documentation_pieces() -> tuple[str, ...]:
    """Return the documentation of Python, cut into pieces."""
    documents = _DOCUMENTATION.read_text(encoding="utf-8").split(_END_OF_DOCUMENT)
    return tuple(piece for text in documents for piece in pieces(text))


def pieces(text: str, size: int = PIECE_CHARACTERS) -> Iterator[str]:
    """Yield `text` in pieces of about `size` characters that end with a paragraph.

    Line or word; nothing is lost.
    """
    start = 0
    while start < len(text):
        end = start + size
        if end < len(text):
            for mark in ("\n\n", "\n", " "):
                found = text.rfind(mark, start + size // 2, end)
                if found > 0:
                    end = found + len(mark)
                    break
        yield text[start:end]
        start = end


def read_dataset(
    files: Sequence[Path],
    dataset: Dataset,
    *,
    field: str,
    template: ChatTemplate | None = None,
    most_characters: int | None = None,
) -> TextSet:
    """Return the documents of a user's dataset.

    `field` is the dataset's path in the spec, for messages. With `template` every row is written as
    a chat. Reading stops after `most_characters`; without it the whole set is read.

    Raises:
        BadRequestError: A file cannot be read as what its name says, a row lacks the column, or
            there is no text in it.
    """
    reader = _Reader(dataset, field, template)
    documents: list[str] = []
    characters = 0
    for number, path in enumerate(files, 1):
        for text in reader.documents(path):
            documents.append(text)
            characters += len(text)
            if characters > MOST_CHARACTERS:
                raise reader.refusal(
                    f"holds more than {MOST_CHARACTERS} characters; take a part of it"
                )
            if most_characters is not None and characters >= most_characters:
                return reader.text_set(documents, files=number)
    if not documents:
        names = ", ".join(path.name for path in files[:5]) or "no file"
        raise reader.refusal(f"holds no text (read: {names})")
    return reader.text_set(documents, files=len(files))


def calibration_samples(
    stream: npt.NDArray[np.int32], *, samples: int, length: int, seed: int, bundled: bool
) -> npt.NDArray[np.int32]:
    """Return `samples` sequences of `length` tokens, shape (samples, length).

    Drawn without overlap by `seed`.

    From bundled text there may be fewer; a user's text that is too short is refused.

    Raises:
        BadRequestError: The text has too few tokens.
    """
    whole = len(stream) // length
    if whole < (1 if bundled else samples):
        raise BadRequestError(
            f"spec.calibration: {samples} samples of {length} tokens need {samples * length} "
            "tokens; the text "
            f"gives {len(stream)}",
            reason=FailureReason.UNUSABLE_DATASET,
            advice="give more text, or ask for fewer or shorter samples",
        )
    cut = stream[: whole * length].reshape(whole, length)
    order = np.random.default_rng(seed).permutation(whole)[:samples]
    return cut[np.sort(order)]


class _Reader:
    """Reads the files of one dataset."""

    def __init__(self, dataset: Dataset, field: str, template: ChatTemplate | None) -> None:
        self._field = field
        self._uri = dataset.uri
        self._column = dataset.messages_field or dataset.effective_text_field or "text"
        self._messages = dataset.messages_field is not None
        self._template = template
        self._marks = bytearray()
        self._formats: dict[str, Callable[[Path], Iterator[str]]] = {
            ".txt": self._plain, ".text": self._plain, ".md": self._plain, "": self._plain,
            ".jsonl": self._json_lines, ".ndjson": self._json_lines, ".json": self._json,
            ".csv": self._table, ".tsv": self._table, ".parquet": self._parquet,
        }  # fmt: skip

    def refusal(self, what: str) -> BadRequestError:
        """Return the error that says what is wrong with the dataset."""
        return BadRequestError(
            f"{self._field}: {self._uri} {what}", reason=FailureReason.UNUSABLE_DATASET
        )

    def text_set(self, documents: Iterable[str], *, files: int) -> TextSet:
        """Return the set of what was read, from so many files."""
        templated = self._template is not None
        marks = bytes(self._marks)
        read = text_set(self._uri, documents, bundled=False, templated=templated, marks=marks)
        return dataclasses.replace(read, files=files)

    def documents(self, path: Path) -> Iterator[str]:
        """Yield the texts of one file, empty ones left out."""
        read = self._formats.get(path.suffix.lower())
        if read is None:
            known = ", ".join(sorted(name for name in self._formats if name))
            raise self.refusal(f"holds {path.name}, which is none of {known}")
        try:
            yield from (text for text in read(path) if text.strip())
        except UnicodeDecodeError as error:
            raise self.refusal(
                f"holds {path.name}, which is no UTF-8 text (byte {error.start})"
            ) from None
        except RecursionError:
            raise self.refusal(f"holds {path.name}, which is nested too deeply") from None

    def _plain(self, path: Path) -> Iterator[str]:
        if self._messages:
            raise self.refusal(f"holds {path.name}, plain text that has no messagesField")
        for piece in pieces(path.read_text(encoding="utf-8-sig"), 4 * PIECE_CHARACTERS):
            self._marks += sentence_marks(piece)
            yield self._written(piece, path.name)

    def _json_lines(self, path: Path) -> Iterator[str]:
        with path.open(encoding="utf-8-sig") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield self._row(self._parsed(line, path, f"line {number}"), path, number)

    def _json(self, path: Path) -> Iterator[str]:
        text = path.read_text(encoding="utf-8-sig")
        try:
            value = json.loads(text)
        except ValueError:
            # Many a file named .json holds one object per line.
            yield from self._json_lines(path)
            return
        rows: Any = value
        if isinstance(value, dict) and self._column not in value:
            rows = next((part for part in value.values() if isinstance(part, list)), value)
        for number, row in enumerate(rows if isinstance(rows, list) else [rows], 1):
            yield self._row(row, path, number)

    def _table(self, path: Path) -> Iterator[str]:
        csv.field_size_limit(sys.maxsize)
        delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
        with path.open(encoding="utf-8-sig", newline="") as lines:
            try:
                for number, row in enumerate(csv.DictReader(lines, delimiter=delimiter), 1):
                    yield self._row(row, path, number)
            except csv.Error as error:
                raise self.refusal(f"holds {path.name}, which is no table: {error}") from None

    def _parquet(self, path: Path) -> Iterator[str]:
        import pyarrow as pa  # noqa: PLC0415 - heavy, and only this format needs it
        from pyarrow import parquet  # noqa: PLC0415 - as above

        try:
            file = parquet.ParquetFile(path)
            if self._column not in file.schema_arrow.names:
                raise self._no_column(path, 1, file.schema_arrow.names)
            number = 0
            for batch in file.iter_batches(batch_size=256, columns=[self._column]):
                for row in batch.to_pylist():
                    number += 1
                    yield self._row(row, path, number)
        except (pa.ArrowException, OSError) as error:
            raise self.refusal(f"holds {path.name}, which is no Parquet file: {error}") from None

    def _parsed(self, text: str, path: Path, where: str) -> Any:
        try:
            return json.loads(text)
        except ValueError as error:
            raise self.refusal(f"holds {path.name}, whose {where} is no JSON: {error}") from None

    def _row(self, row: object, path: Path, number: int) -> str:
        """Return one row's text, "" where the column is null."""
        if isinstance(row, str) and not self._messages:
            self._marks += row_mark(row)
            return self._written(row, path.name)
        if not isinstance(row, dict):
            raise self.refusal(f"holds {path.name}, whose row {number} is no object")
        if self._column not in row:
            raise self._no_column(path, number, [str(name) for name in row])
        value = row[self._column]
        if value is None:
            return ""
        if not isinstance(value, list if self._messages else str):
            wanted = "a list of messages" if self._messages else "text"
            raise self.refusal(
                f"holds {path.name}, whose row {number} has a {self._column} that is not {wanted}"
            )
        self._marks += row_mark(value)
        return self._written(value, f"{path.name}, row {number}")

    def _no_column(self, path: Path, number: int, columns: Sequence[str]) -> BadRequestError:
        there = ", ".join(columns[:12]) or "none"
        return self.refusal(
            f"holds {path.name}, whose row {number} has no column {self._column} (there are: "
            f"{there}); "
            "set textField or messagesField"
        )

    def _written(self, value: str | list[Any], where: str) -> str:
        """Return a text or messages as one document.

        Through the chat template where one is applied.
        """
        if self._template is not None:
            messages = value if isinstance(value, list) else [{"role": "user", "content": value}]
            return self._template.render(messages, where=f"{self._field}: {self._uri}: {where}")
        if isinstance(value, str):
            return value
        parts = [part.get("content") for part in value if isinstance(part, dict)]
        return "\n\n".join(part for part in parts if isinstance(part, str))
