"""Text from users' files, good and hostile, and the text that comes with kubequant."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from kubequant.api.outcome import FailureReason
from kubequant.api.spec import Dataset
from kubequant_worker.chat import ChatTemplate, chat_template
from kubequant_worker.datasets import (
    Role,
    TextSet,
    bundled_text,
    calibration_samples,
    pieces,
    read_dataset,
    text_set,
)
from kubequant_worker.errors import BadRequestError
from kubequant_worker.overlap import require_different

if TYPE_CHECKING:
    from pathlib import Path

FIELD = "spec.calibration.dataset"
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
)


def dataset(**changes: str) -> Dataset:
    return Dataset.model_validate({"uri": "s3://bucket/text", **changes})


def read(path: Path, template: ChatTemplate | None = None, **changes: str) -> TextSet:
    return read_dataset([path], dataset(**changes), field=FIELD, template=template)


def written(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", '{"text": "one"}\n\n{"text": "two", "x": 1}\n{"text": null}\n'),
        ("a.json", '[{"text": "one"}, {"text": "two"}]'),
        ("a.json", '{"version": 1, "data": [{"text": "one"}, {"text": "two"}]}'),
        ("a.json", '{"text": "one"}\n{"text": "two"}\n'),
        ("a.json", '["one", "two"]'),
        ("a.csv", 'id,text\n1,one\n2,"two"\n3,\n'),
        ("a.tsv", "text\tid\none\t1\ntwo\t2\n"),
    ],
    ids=["JSON lines", "a list", "a list within", "lines in .json", "strings", "CSV", "TSV"],
)
def test_every_format_gives_its_documents(tmp_path: Path, name: str, content: str) -> None:
    assert read(written(tmp_path, name, content)).documents == ("one", "two")


def test_parquet_gives_its_column(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    parquet.write_table(pa.table({"body": ["one", None, "two"], "n": [1, 2, 3]}), path)
    assert read(path, textField="body").documents == ("one", "two")
    with pytest.raises(BadRequestError, match=r"no column text \(there are: body, n\)"):
        read(path)


def test_plain_text_is_cut_without_losing_a_character(tmp_path: Path) -> None:
    text = "A line of text.\n" * 5000 + "x" * 30_000
    found = read(written(tmp_path, "a.txt", "\ufeff" + text)).documents
    assert len(found) > 3
    assert "".join(found) == text


HOSTILE = [
    pytest.param("a.txt", b"\xff\xfe\x00ok", "no UTF-8 text", id="bytes that are no UTF-8"),
    pytest.param("a.jsonl", "{oops", "line 1 is no JSON", id="a broken line"),
    pytest.param("a.jsonl", '["a", "b"]', "row 1 is no object", id="a row that is a list"),
    pytest.param(
        "a.jsonl", '{"body": "x"}', "no column text (there are: body)", id="no such column"
    ),
    pytest.param("a.jsonl", '{"text": 5}', "that is not text", id="a number for text"),
    pytest.param("a.jsonl", "[" * 100_000, "nested too deeply", id="nested without end"),
    pytest.param("a.json", "[" * 100_000, "nested too deeply", id="a list nested without end"),
    pytest.param("a.json", "7", "row 1 is no object", id="a number"),
    pytest.param("a.csv", "text\n" + '"a\x00' + "b", "", id="a zero byte in a table"),
    pytest.param(
        "a.parquet", b"PAR1" + b"\x00" * 40, "no Parquet file", id="a broken Parquet file"
    ),
    pytest.param("a.exe", b"MZ", "which is none of .csv", id="a program"),
    pytest.param("a.jsonl", '{"text": "  "}', "holds no text", id="white space only"),
    pytest.param("a.txt", "", "holds no text", id="an empty file"),
]


@pytest.mark.parametrize(("name", "content", "says"), HOSTILE)
def test_a_hostile_file_ends_in_a_sentence(
    tmp_path: Path, name: str, content: str | bytes, says: str
) -> None:
    path = written(tmp_path, name, content)
    if not says:  # read as text, which is harmless
        assert read(path).documents
        return
    with pytest.raises(BadRequestError) as caught:
        read(path)
    assert says in caught.value.message
    assert caught.value.message.startswith(f"{FIELD}: s3://bucket/text ")
    assert caught.value.reason is FailureReason.UNUSABLE_DATASET


def test_a_measured_text_is_read_only_as_far_as_needed(tmp_path: Path) -> None:
    lines = "".join(json.dumps({"text": f"document {n}"}) + "\n" for n in range(1000))
    path = written(tmp_path, "a.jsonl", lines + "{broken")
    found = read_dataset([path], dataset(), field=FIELD, most_characters=100)
    assert 100 <= found.characters < 120


MESSAGES = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]


def test_messages_go_through_the_models_template(tmp_path: Path) -> None:
    path = written(tmp_path, "a.jsonl", json.dumps({"chat": MESSAGES}))
    found = read(path, ChatTemplate(CHATML), messagesField="chat")
    assert found.documents == (
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello<|im_end|>\n",
    )
    assert found.templated
    assert read(path, messagesField="chat").documents == ("Hi\n\nHello",)


@pytest.mark.parametrize(
    "source",
    [
        pytest.param("{{ raise_exception('roles must alternate') }}", id="it refuses"),
        pytest.param("{{ ''.__class__.__mro__[1].__subclasses__() }}", id="it reaches for Python"),
        pytest.param("{% for m in messages %}", id="it is broken"),
        pytest.param("{{ messages[5]['content'] ~ nothing.at.all }}", id="it asks for what is not"),
        pytest.param("{{ 'x' * 2000000 }}", id="it writes without end"),
        pytest.param("{% include '/etc/passwd' %}", id="it includes a file"),
    ],
)
def test_a_hostile_template_ends_in_a_sentence(source: str) -> None:
    with pytest.raises(BadRequestError, match="chat template does not take"):
        ChatTemplate(source).render(MESSAGES, where="row 1")


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"tokenizer_config.json": {"chat_template": "A"}}, "A"),
        ({"tokenizer_config.json": {"chat_template": [{"name": "default", "template": "B"}]}}, "B"),
        ({"tokenizer_config.json": {}, "chat_template.json": {"chat_template": "C"}}, "C"),
        ({"chat_template.jinja": "D", "tokenizer_config.json": {"chat_template": "A"}}, "D"),
        ({"tokenizer_config.json": {"eos_token": "</s>"}}, None),
        ({}, None),
    ],
    ids=["in the config", "several", "a file of JSON", "a file of its own", "none", "no files"],
)
def test_the_template_is_found_where_transformers_puts_it(
    tmp_path: Path, files: dict[str, object], expected: str | None
) -> None:
    for name, content in files.items():
        written(tmp_path, name, content if isinstance(content, str) else json.dumps(content))
    found = chat_template(tmp_path)
    assert (found.source if found else None) == expected


def test_bundled_text_serves_each_role_with_pieces_of_its_own() -> None:
    calibration, measured = bundled_text(Role.CALIBRATION), bundled_text(Role.MEASUREMENT)
    assert not set(calibration.documents) & set(measured.documents)
    for one in (calibration, measured):
        assert one.bundled
        assert one.characters > 150_000
    everything = "".join((*calibration.documents, *measured.documents))
    for piece in ("外婆的院子里", "駅前の時計屋", "Библиотекарша", "Sehr geehrte", "pearl barley"):
        assert piece in everything


def test_bundled_text_is_the_same_everywhere() -> None:
    """Reports of runs on other machines and of other versions are compared by these digests."""
    assert {role: bundled_text(role).sha256 for role in Role} == {
        Role.CALIBRATION: "e4a70d0e51b15ffcc769128d38018a054438686dec8a6d33e1df0b0b22d4e13f",
        Role.MEASUREMENT: "b48b74578e7a2d407d9f8b322d6fc381801e1643b50c331ea649dc069205e3a8",
    }


def test_pieces_lose_nothing_and_end_with_words() -> None:
    text = "some words " * 2000
    found = list(pieces(text, 300))
    assert "".join(found) == text
    assert all(piece.endswith(" ") for piece in found)


def test_measuring_on_what_calibrated_is_refused() -> None:
    one = text_set("a", [f"text {n}" for n in range(10)], bundled=False)
    other = text_set("b", ["text 1", "text 2", *(f"new {n}" for n in range(8))], bundled=False)
    with pytest.raises(BadRequestError, match="2 of its 10 rows or sentences"):
        require_different(one.marks, other.marks)
    require_different(one.marks, text_set("c", ["new"], bundled=False).marks)


def test_samples_are_drawn_by_the_seed_without_overlap() -> None:
    stream = np.arange(1000, dtype=np.int32)
    drawn = calibration_samples(stream, samples=5, length=100, seed=3, bundled=False)
    assert drawn.shape == (5, 100)
    assert len(np.unique(drawn)) == 500
    again = calibration_samples(stream, samples=5, length=100, seed=3, bundled=False)
    np.testing.assert_array_equal(drawn, again)
    other = calibration_samples(stream, samples=5, length=100, seed=4, bundled=False)
    assert not np.array_equal(drawn, other)


def test_too_little_text_for_the_samples_is_refused_unless_it_is_bundled() -> None:
    stream = np.arange(1000, dtype=np.int32)
    with pytest.raises(BadRequestError, match=r"need 2000 tokens; the text gives 1000"):
        calibration_samples(stream, samples=20, length=100, seed=0, bundled=False)
    fewer = calibration_samples(stream, samples=20, length=100, seed=0, bundled=True)
    assert fewer.shape == (10, 100)
