"""Whether two tokenizers give the same tokens the same numbers, read from their files."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest
from tests.worker.methods.conftest import TINY

from kubequant_worker.errors import BadRequestError
from kubequant_worker.methods.vocabulary import require_same, require_same_files, tokens_of

if TYPE_CHECKING:
    from pathlib import Path

TOKENS = {"a": 0, "b": 1, "c": 2}


def write(folder: Path, content: Any) -> Path:
    folder.mkdir()
    text = content if isinstance(content, str) else json.dumps(content)
    (folder / "tokenizer.json").write_text(text)
    return folder


def test_the_tokens_of_a_real_tokenizer_are_those_that_it_uses() -> None:
    from transformers import AutoTokenizer  # noqa: PLC0415 - seconds

    assert tokens_of(TINY) == AutoTokenizer.from_pretrained(TINY).get_vocab()


@pytest.mark.parametrize(
    ("model", "added"),
    [
        pytest.param({"vocab": TOKENS}, [], id="a table"),
        pytest.param({"vocab": [["a", -1.0], ["b", -2.0], ["c", -3.0]]}, [], id="Unigram's list"),
        pytest.param({"vocab": {"a": 0, "b": 1}}, [{"id": 2, "content": "c"}], id="an added token"),
    ],
)
def test_every_form_of_tokenizer_json_is_read(model: Any, added: Any, tmp_path: Path) -> None:
    folder = write(tmp_path / "one", {"model": model, "added_tokens": added})

    assert tokens_of(folder) == TOKENS


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", '{"model": {"vocab": 7}}', '{"model": {"vocab": {"a": "x"}}}', "[" * 9000],
    ids=["empty", "a list", "nothing", "a number", "no number", "deep"],
)
def test_a_broken_file_tells_nothing(content: str, tmp_path: Path) -> None:
    assert tokens_of(write(tmp_path / "one", content)) is None


@pytest.mark.parametrize(
    "student",
    [
        pytest.param(TOKENS, id="the same"),
        pytest.param({**TOKENS, "<extra>": 3}, id="more behind the last"),
        pytest.param({"a": 0, "b": 1}, id="fewer at the end"),
    ],
)
def test_what_contradicts_nothing_fits(student: dict[str, int]) -> None:
    require_same(TOKENS, student)


@pytest.mark.parametrize(
    "student",
    [
        pytest.param({"a": 0, "c": 1, "b": 2}, id="two have changed places"),
        pytest.param({"a": 0, "b": 1, "d": 2}, id="one is another"),
        pytest.param({"a": 0, "b": 1, "d": 2, "c": 3}, id="one came between"),
    ],
)
def test_another_vocabulary_is_refused_with_the_way_out(student: dict[str, int]) -> None:
    with pytest.raises(BadRequestError) as caught:
        require_same(TOKENS, student)

    assert caught.value.message.startswith("spec.distill.student: the student's vocabulary is not")
    assert "keepLayers" in caught.value.advice


def test_where_there_is_only_a_sentencepiece_model_its_bytes_are_compared(tmp_path: Path) -> None:
    for name in ("teacher", "student", "other"):
        (tmp_path / name).mkdir()
        shutil.copyfile(TINY / "tokenizer.model", tmp_path / name / "tokenizer.model")
    (tmp_path / "other" / "tokenizer.model").write_bytes(b"another")

    require_same_files(tmp_path / "teacher", tmp_path / "student")
    with pytest.raises(BadRequestError, match="two files"):
        require_same_files(tmp_path / "teacher", tmp_path / "other")
