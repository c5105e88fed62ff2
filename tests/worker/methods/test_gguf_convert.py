"""What the converter refuses, in sentences, and that it never runs a model's own code."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.worker.methods.conftest import TINY, Counter, workspace
from tests.worker.methods.models import TOKENIZER, changed_config, random_gpt2

from kubequant.api.outcome import FailureReason
from kubequant_worker.errors import BadRequestError
from kubequant_worker.methods.gguf import GGUFQuantizer
from kubequant_worker.methods.gguf_convert import Converter

if TYPE_CHECKING:
    from collections.abc import Iterator

EVIL = """
from pathlib import Path
Path({mark!r}).write_text("run")
from transformers import PreTrainedTokenizerFast, PretrainedConfig
class Tokenizer(PreTrainedTokenizerFast): pass
class Config(PretrainedConfig): model_type = "evil"
"""


def refusal(tmp_path: Path, model: Path) -> BadRequestError:
    with GGUFQuantizer(workspace(tmp_path / "run", model)) as quantizer:
        with pytest.raises(BadRequestError) as caught:
            quantizer.baseline(Counter())
        return caught.value


@pytest.fixture(scope="module")
def converter() -> Iterator[Converter]:
    with Converter(threads=2, trust_remote_code=False) as started:
        yield started


def converted(converter: Converter, model: Path, target: Path) -> None:
    converter.convert(model, target, name="tiny", on_bytes=lambda *_: None)


def test_an_unknown_architecture_is_named(tmp_path: Path, converter: Converter) -> None:
    model = changed_config(
        TINY, tmp_path / "model", architectures=["NovelForCausalLM"], model_type="novel"
    )
    with pytest.raises(BadRequestError, match="does not know the architecture Novel") as caught:
        converted(converter, model, tmp_path / "out.gguf")
    assert caught.value.reason is FailureReason.UNSUPPORTED_MODEL
    assert caught.value.advice


def test_an_unknown_byte_level_tokenizer_is_refused(tmp_path: Path, converter: Converter) -> None:
    with pytest.raises(BadRequestError, match="does not know this byte-level BPE tokenizer"):
        converted(converter, random_gpt2(tmp_path / "model"), tmp_path / "out.gguf")


def test_a_missing_tokenizer_is_refused_before_the_converter_starts(tmp_path: Path) -> None:
    model = changed_config(TINY, tmp_path / "model")
    for name in TOKENIZER:
        (model / name).unlink()
    error = refusal(tmp_path, model)
    assert "no tokenizer beside the weights" in error.message
    assert error.reason is FailureReason.UNSUPPORTED_MODEL


@pytest.mark.parametrize(
    ("content", "sentence"),
    [(None, "there is no config.json"), ("{", "config.json cannot be read")],
    ids=["no config.json", "a config.json that is no JSON"],
)
def test_a_checkpoint_without_a_config_is_refused(
    tmp_path: Path, content: str | None, sentence: str
) -> None:
    model = changed_config(TINY, tmp_path / "model")
    (model / "config.json").unlink()
    if content is not None:
        (model / "config.json").write_text(content)
    assert sentence in refusal(tmp_path, model).message


def with_remote_code(tmp_path: Path) -> tuple[Path, Path]:
    """Return a model that asks for a module of its own, and the mark which that leaves."""
    mark = tmp_path / "mark"
    model = changed_config(
        TINY,
        tmp_path / "model",
        auto_map={"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"},
        model_type="evil",
    )
    settings = json.loads((model / "tokenizer_config.json").read_text())
    settings |= {
        "tokenizer_class": "Tokenizer",
        "auto_map": {"AutoTokenizer": ["evil.Tokenizer", None]},
    }
    (model / "tokenizer_config.json").write_text(json.dumps(settings))
    # Without these the converter has to ask transformers for the tokenizer.
    (model / "tokenizer.model").unlink()
    (model / "evil.py").write_text(EVIL.format(mark=str(mark)))
    return model, mark


def test_code_that_comes_with_a_model_never_runs(tmp_path: Path, converter: Converter) -> None:
    model, mark = with_remote_code(tmp_path)
    with pytest.raises(BadRequestError, match=r"trustRemoteCode does not allow"):
        converted(converter, model, tmp_path / "out.gguf")
    assert not mark.exists()


def test_code_that_comes_with_a_model_runs_where_the_spec_trusts_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Proves that the test above could fail: the same model does run its code.
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    model, mark = with_remote_code(tmp_path)
    with Converter(threads=2, trust_remote_code=True) as trusting:
        converted(trusting, model, tmp_path / "out.gguf")
    assert mark.exists()


def test_a_full_disk_is_an_error_of_the_disk(converter: Converter) -> None:
    with pytest.raises(OSError, match="No space left") as caught:
        converted(converter, TINY, Path("/dev/full"))
    assert caught.value.errno == errno.ENOSPC


def test_progress_counts_the_bytes_of_the_file(tmp_path: Path, converter: Converter) -> None:
    seen: list[tuple[int, int]] = []
    target = tmp_path / "out.gguf"
    converter.convert(TINY, target, name="tiny", on_bytes=lambda *step: seen.append(step))
    totals = {total for _, total in seen}
    assert len(totals) == 1
    assert sum(written for written, _ in seen) == totals.pop()
    assert 0 < target.stat().st_size - sum(written for written, _ in seen) < 200_000
