"""What calibrates never measures, whatever two texts are called and however they are written."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest
from tests.worker.methods.models import TINY

from kubequant.api.base import LOCAL
from kubequant.api.contract import RunRequest
from kubequant.api.outcome import FailureReason
from kubequant_worker.errors import BadRequestError
from kubequant_worker.layout import Layout
from kubequant_worker.texts import Texts

if TYPE_CHECKING:
    from pathlib import Path

SENTENCES = [f"This is sentence number {n} of a text that somebody wrote." for n in range(400)]
OTHERS = [f"Another author wrote sentence {n}, which is nowhere else." for n in range(400)]
JAPANESE = [f"これは誰かが書いた文章の{n}番目の文です。" for n in range(400)]
PREAMBLE = "Below is an instruction that describes a task. Write a response that completes it."


def rows(texts: list[str], **more: Any) -> str:
    return "".join(json.dumps({"text": text, **more}) + "\n" for text in texts)


def texts(folder: Path, calibration: dict[str, Any], measured: dict[str, Any]) -> Texts:
    """Return the texts of a run; a dataset's address is below `folder`."""
    model = folder / "model"
    shutil.copytree(TINY, model)
    config = json.loads((model / "tokenizer_config.json").read_text())
    config["chat_template"] = (
        "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}"
    )
    (model / "tokenizer_config.json").write_text(json.dumps(config))
    learned = {**calibration, "dataset": {"uri": f"file://{folder / calibration['dataset']}"}}
    other = {"uri": f"file://{folder / measured['dataset']}"}
    request = RunRequest.model_validate(
        {
            "name": "tiny",
            "digest": "0123abcd",
            "spec": {
                "model": {"uri": "hf://owner/name"},
                "method": "INT8",
                "calibration": learned,
                "evaluation": {"perplexity": {"dataset": other}},
                "output": {"uri": "s3://bucket/out"},
            },
        },
        context=LOCAL,
    )
    layout = Layout(folder / "scratch", None, folder / "none", folder, folder / "log")
    return Texts(request, layout, model)


# id -> (files of the calibration, what else it says, files of the measurement)
SAME: dict[str, tuple[dict[str, str], dict[str, Any], dict[str, str]]] = {
    "rows, of which one side is written as chats": (
        {"a/text.jsonl": rows(SENTENCES)},
        {"applyChatTemplate": True},
        {"b/text.jsonl": rows(SENTENCES, id=1)},
    ),
    "plain text with a line more at its head": (
        {"a/text.txt": "\n".join(SENTENCES)},
        {},
        {"b/text.txt": "\n".join(["A line more.", *SENTENCES])},
    ),
    "plain text in one long line with a sentence more at its head": (
        {"a/text.txt": " ".join(SENTENCES)},
        {},
        {"b/text.txt": " ".join(["A sentence more.", *SENTENCES])},
    ),
    "Japanese text, which has no spaces, with a sentence more at its head": (
        {"a/text.txt": "".join(JAPANESE)},
        {},
        {"b/text.txt": "".join(["もう一つの文。", *JAPANESE])},
    ),
    "plain text with a line more, of which one side is written as chats": (
        {"a/text.txt": "\n".join(SENTENCES)},
        {"applyChatTemplate": True},
        {"b/text.txt": "\n".join(["A line more.", *SENTENCES])},
    ),
    "the same bytes under another name": (
        {"a/text.txt": "\n".join(SENTENCES)},
        {},
        {"b/other.txt": "\n".join(SENTENCES)},
    ),
    "the same bytes, read once as rows and once as text": (
        {"a/text.jsonl": rows(SENTENCES)},
        {},
        {"b/text.txt": rows(SENTENCES)},
    ),
    "a fifth of the rows": (
        {"a/text.jsonl": rows(SENTENCES)},
        {},
        {"b/text.jsonl": rows([*SENTENCES[:80], *OTHERS[:320]])},
    ),
}
DIFFERENT: dict[str, tuple[dict[str, str], dict[str, Any], dict[str, str]]] = {
    "rows that begin with the same words": (
        {"a/text.jsonl": rows([f"{PREAMBLE}\n{text}" for text in SENTENCES])},
        {},
        {"b/text.jsonl": rows([f"{PREAMBLE}\n{text}" for text in OTHERS])},
    ),
    "plain text that repeats one line": (
        {"a/text.txt": f"\n{PREAMBLE}\n".join(SENTENCES)},
        {},
        {"b/text.txt": f"\n{PREAMBLE}\n".join(OTHERS)},
    ),
    "rows of which one in twenty is in both": (
        {"a/text.jsonl": rows(SENTENCES)},
        {},
        {"b/text.jsonl": rows([*SENTENCES[:20], *OTHERS[:380]])},
    ),
}


def written(folder: Path, case: tuple[dict[str, str], dict[str, Any], dict[str, str]]) -> Texts:
    learned, more, measured = case
    for name, content in {**learned, **measured}.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(content)
    return texts(folder, {"dataset": "a", **more}, {"dataset": "b"})


@pytest.mark.parametrize("case", SAME)
def test_the_same_text_is_refused_however_it_is_given(tmp_path: Path, case: str) -> None:
    one = written(tmp_path, SAME[case])
    one.calibration()

    with pytest.raises(BadRequestError, match=r"are in spec\.calibration\.dataset too") as error:
        one.evaluation()

    assert error.value.reason is FailureReason.UNUSABLE_DATASET
    assert error.value.message.startswith("spec.evaluation.perplexity.dataset: ")


@pytest.mark.parametrize("case", DIFFERENT)
def test_another_text_is_taken(tmp_path: Path, case: str) -> None:
    one = written(tmp_path, DIFFERENT[case])

    assert one.calibration().documents
    assert one.evaluation().documents


def test_a_file_and_the_folder_that_holds_it_are_the_same_text(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "text.jsonl").write_text(rows(SENTENCES))
    one = texts(tmp_path, {"dataset": "a"}, {"dataset": "a/text.jsonl"})
    one.calibration()

    with pytest.raises(BadRequestError, match=r"its files, or the same bytes \(text\.jsonl\)"):
        one.evaluation()


def test_a_file_that_is_not_read_for_it_is_enough_read_already_measures_nothing(
    tmp_path: Path,
) -> None:
    enough = [f"{text} {n}" for n in range(50) for text in OTHERS]  # for maxTokens
    files = {"a/shared.jsonl": rows(SENTENCES * 10), "b/first.jsonl": rows(enough)}
    one = written(tmp_path, (files, {}, {"b/shared.jsonl": files["a/shared.jsonl"]}))
    one.calibration()

    assert one.evaluation().files == 1
