"""How vLLM's program is run and its answer judged, with packages that take vLLM's place."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from tests.worker.methods.conftest import TINY, Counter
from tests.worker.methods.stand_ins import python_with

from kubequant.api.spec import QuantizationJobSpec
from kubequant_worker.errors import BadRequestError
from kubequant_worker.methods import Workspace, checkpoint, vllm_check
from kubequant_worker.methods.checkpoint import CheckpointQuantizer
from kubequant_worker.methods.gguf_check import compare
from kubequant_worker.methods.vllm_check import Served, ask, divergence, interpreter, judge_served

if TYPE_CHECKING:
    from pathlib import Path

VOCABULARY, POSITIONS = 300, 12
IDS = np.arange(POSITIONS, dtype=np.int32)


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a Python with packages that take the place of a vLLM for GPUs, as far as we call it.

    They load nothing and know no GPU: each token is followed by the one that its number names.
    """
    texts = {
        "torch.py": """
            class cuda:
                is_available = staticmethod(lambda: True)
                mem_get_info = staticmethod(lambda: (20, 100))
        """,
        "vllm-0.99.0.dist-info/METADATA": """\
            Metadata-Version: 2.1
            Name: vllm
            Version: 0.99.0
        """,
        "vllm-0.99.0.dist-info/top_level.txt": "vllm",
        "vllm/__init__.py": """
            import os, time
            __version__ = "0.99.0"
            class SamplingParams:
                def __init__(self, **words):
                    self.told, self.most = words["prompt_logprobs"], words["max_tokens"]
            class _Logprob:
                def __init__(self, value): self.logprob = value
            class LLM:
                def __init__(self, model, gpu_memory_utilization, trust_remote_code, **words):
                    assert gpu_memory_utilization == 0.95 * 20 / 100, gpu_memory_utilization
                    assert os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"
                    assert "AWS_SECRET_ACCESS_KEY" not in os.environ
                    if model.endswith("unknown"): raise ValueError("no class of that name")
                    if model.endswith("abort"): os.abort()
                    if model.endswith("killed"): os.kill(os.getpid(), 9)
                    if model.endswith("hangs"): time.sleep(600)
                def generate(self, asked, params, use_tqdm):
                    (one,) = asked
                    ids = one["prompt_token_ids"]
                    found = type("Found", (), {})()
                    likely = {token: _Logprob(-1.0 - token) for token in range(params.told)}
                    found.prompt_logprobs = [None] + [
                        {299: _Logprob(-9.0), **likely} if n == 1 else likely
                        for n in range(1, len(ids))
                    ]
                    found.outputs = [type("Out", (), {"token_ids": [1] * params.most})()]
                    return [found]
        """,
    }
    return python_with(tmp_path_factory.mktemp("stand-in"), texts)


@pytest.fixture
def vllm(stand_in: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv(vllm_check.PYTHON, str(stand_in))
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "made up")
    return str(stand_in)


def asked(tmp_path: Path, model: str = "model", *, gpu: bool = True) -> vllm_check.Answer:
    (tmp_path / model).mkdir(exist_ok=True)
    return ask(tmp_path / model, IDS, tmp_path, gpu=gpu, trusted=False)


def test_it_is_asked_with_the_memory_that_is_free_and_answers_each_position(
    vllm: str, tmp_path: Path
) -> None:
    assert interpreter(gpu=True) == vllm
    answer = asked(tmp_path)

    assert answer.served is not None
    assert answer.served.version == "0.99.0"
    assert answer.served.tokens.shape == answer.served.logprobs.shape
    assert answer.served.tokens.shape == (POSITIONS - 1, vllm_check.LIKELIEST)
    assert answer.served.tokens[0, 0] == 299  # the text's own, which is not among the likeliest
    assert (answer.note, answer.refused) == ("", False)


@pytest.mark.usefixtures("vllm")
def test_one_for_gpus_is_none_for_a_cpu(tmp_path: Path) -> None:
    assert interpreter(gpu=False) == ""
    assert asked(tmp_path, gpu=False) == vllm_check.Answer()


@pytest.mark.parametrize("python", ["", "/nowhere/python", "/usr/bin/python3"])
def test_without_vllm_a_report_from_a_gpu_says_so(
    tmp_path: Path, python: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(vllm_check.PYTHON, python)

    assert "vLLM is not in this worker" in asked(tmp_path).note
    assert asked(tmp_path, gpu=False) == vllm_check.Answer()


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("unknown", "vLLM does not load what is published: no class of that name"),
        ("abort", "not known: vLLM ended by SIGABRT"),
        ("killed", "not known: vLLM was killed by the kernel"),
        ("hangs", "not known: vLLM did not answer within 2 seconds"),
    ],
)
@pytest.mark.usefixtures("vllm")
def test_what_goes_wrong_with_vllm_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str, said: str
) -> None:
    monkeypatch.setattr(vllm_check, "_SECONDS", 2.0)
    answer = asked(tmp_path, model)

    assert said in answer.note
    assert answer.refused is (model == "unknown")
    assert answer.served is None


@pytest.mark.usefixtures("vllm")
def test_it_is_not_asked_where_memory_is_short(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vllm_check, "available_bytes", lambda: 3 << 30)
    assert ask(TINY, IDS, tmp_path, gpu=True, trusted=False).note == (
        "vLLM was not asked to load what is published: it takes about 4.0 GiB of memory, and 3.0 "
        "GiB are free"
    )
    monkeypatch.setattr(vllm_check, "available_bytes", lambda: 5 << 30)
    assert ask(TINY, IDS, tmp_path, gpu=True, trusted=False).served is not None


def rows(seed: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).normal(0, 3, (POSITIONS, VOCABULARY)).astype(np.float32)


def told(logits: np.ndarray[Any, Any], count: int) -> Served:
    """Return what a library that computes these logits would tell of its likeliest tokens."""
    every = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    tokens = np.argsort(-every, axis=1)[:-1, :count]
    return Served("0.99.0", tokens.astype(np.int32), np.take_along_axis(every[:-1], tokens, 1))


@pytest.mark.parametrize("count", [1, 16, VOCABULARY])
def test_the_divergence_is_at_most_the_whole_one_and_all_of_it_where_all_is_told(
    count: int,
) -> None:
    ours, theirs = rows(1), rows(2)
    whole = compare(ours[:-1], theirs[:-1]).mean_kl_divergence
    found = divergence(ours, told(theirs, count))

    assert 0 < found <= whole * (1 + 1e-5)
    assert (found == pytest.approx(whole, rel=1e-4)) is (count == VOCABULARY)
    assert divergence(theirs, told(theirs, count)) == pytest.approx(0, abs=1e-6)


def test_coarse_quantizing_allows_as_much_as_it_changed_and_fine_does_not() -> None:
    original, computed = rows(1), rows(1) + 0.7 * rows(2)
    changed = compare(original, computed).mean_kl_divergence
    served = told(original, 16)  # as far from what transformers computed as the original is

    assert changed > vllm_check.MOST_DIFFERENCE
    assert "generates" in judge_served(original, computed, told(computed, 16))
    with pytest.raises(BadRequestError, match=r"at most 0\.100 may come from"):
        judge_served(computed, computed, served)
    with pytest.raises(BadRequestError, match=r"vLLM 0\.99\.0 loads the quantized model"):
        judge_served(computed, computed, told(np.full_like(original, np.nan), 16))


class Copied(CheckpointQuantizer):
    """The least of a method: what it publishes is the original."""

    LIBRARY = "torch"

    @classmethod
    def calibrates(cls, spec: QuantizationJobSpec) -> bool:
        del spec
        return False

    @classmethod
    def bits(cls, spec: QuantizationJobSpec) -> int:
        del spec
        return 16

    def _produce(self, calibration: object, meter: object) -> tuple[str, ...]:
        del calibration, meter
        shutil.copytree(self._work.model, self._work.artifact, dirs_exist_ok=True)
        return ()


@pytest.mark.parametrize("refused", [False, True])
def test_a_checkpoint_that_vllm_does_not_load_is_served_by_transformers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, refused: bool
) -> None:
    answer = vllm_check.Answer(note="in vLLM's words", refused=refused)
    monkeypatch.setattr(checkpoint, "ask", lambda *_, **__: answer)
    spec = QuantizationJobSpec.model_validate(
        {
            "model": {"uri": "hf://example/model"},
            "method": "FP8",
            "output": {"uri": "s3://bucket/prefix"},
            "device": "CPU",
        }
    )
    scratch, artifact = tmp_path / "scratch", tmp_path / "artifact"
    scratch.mkdir()
    artifact.mkdir()
    with Copied(Workspace(spec, TINY, scratch, artifact, "tiny", threads=2)) as engine:
        engine.baseline(Counter())
        engine.check_baseline(Counter())
        (produced,) = engine.variants(None, Counter())
        assert engine.usage(produced).runtime == "vLLM"
        notes = engine.verify(produced, Counter())
        assert engine.usage(produced).runtime == ("transformers" if refused else "vLLM")
    assert "in vLLM's words" in notes
