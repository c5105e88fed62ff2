"""Our numbers against code that is not ours, on the tiny model: within half a percent, often less.

Perplexity against the lm-evaluation-harness and against llama.cpp's own definition, divergence
against scipy; and what must hold of any measure: nothing is lost against oneself, and more noise in
the weights never measures better beyond its error.
"""

from __future__ import annotations

import math
import warnings
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import llama_cpp
import numpy as np
import pytest
from scipy.special import log_softmax, rel_entr
from tests.worker.evaluation.meters import Recorder
from tests.worker.methods.conftest import TINY, Made, make, workspace
from tests.worker.methods.models import noisy

from kubequant_worker.datasets import Role, bundled_text
from kubequant_worker.evaluation.perplexity import (
    Comparison,
    Original,
    Windows,
    measure_original,
    measure_variant,
    windows,
)
from kubequant_worker.methods.transformers_runtime import TransformersEngine, TransformersRuntime

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from kubequant_worker.evaluation.runtime import Runtime, TokenArray

LOADING = {"device": "cpu", "dtype": "float32"}
CONTEXT = 256
NOISE = (0.0, 0.02, 0.06, 0.2)


def text() -> str:
    return "\n\n".join(bundled_text(Role.MEASUREMENT).documents[:12])


def transformers_runtime(path: Path = TINY) -> TransformersRuntime:
    return TransformersRuntime(TransformersEngine(2), path, LOADING)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    """The tiny model for llama.cpp: as it is, and at four bits."""
    converted = make(workspace(tmp_path_factory.mktemp("made"), TINY, types=["Q4_K_M"]))
    yield converted
    converted.quantizer.close()


def test_perplexity_is_the_harness_own_on_the_same_text(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from lm_eval.api.instance import Instance  # noqa: PLC0415 - seconds
        from lm_eval.models.huggingface import HFLM  # noqa: PLC0415 - seconds

        # The harness opens a text with BOS as we do, but scores a second one where the tokenizer
        # adds it too.
        theirs = HFLM(
            pretrained=str(TINY), dtype="float32", device="cpu", batch_size=1, add_bos_token=False
        )
    with transformers_runtime() as runtime:
        ids = runtime.tokenize([text()])[0][:500]
        written = theirs.tok_decode(ids.tolist())
        assert theirs.tok_encode(written) == ids.tolist()
        cut = windows(ids, context_length=512, bos_token=runtime.bos_token, max_tokens=512)
        ours = measure_original(runtime, cut, keep=tmp_path / "kept", meter=Recorder()).perplexity
    request = Instance("loglikelihood_rolling", {}, (written,), 0, ("task", 0, 1))
    (likelihood,) = theirs.loglikelihood_rolling([request], disable_tqdm=True)
    words, bytes_ = len(written.split()), len(written.encode())

    assert ours.mean_loss * ours.tokens == pytest.approx(-likelihood, rel=1e-5)
    for count in (words, bytes_):  # word and byte perplexity
        assert math.exp(ours.mean_loss * ours.tokens / count) == pytest.approx(
            math.exp(-likelihood / count), rel=5e-3
        )


def chunks(ids: TokenArray, bos: int) -> list[TokenArray]:
    """Cut `ids` as llama-perplexity does: whole chunks, the first token of each read as BOS."""
    whole = ids[: len(ids) // CONTEXT * CONTEXT].reshape(-1, CONTEXT).copy()
    whole[:, 0] = bos
    return list(whole)


def loss(runtime: Runtime, pieces: list[TokenArray], length: int, keep: Path) -> tuple[float, int]:
    """Return the summed loss of the first `length` tokens of each chunk by our measuring."""
    cut = Windows(
        tuple(piece[: length - 1] for piece in pieces),
        tuple(piece[1:length] for piece in pieces),
        length,
        (length - 1) * len(pieces),
    )
    found = measure_original(runtime, cut, keep=keep, meter=Recorder()).perplexity
    return found.mean_loss * found.tokens, found.tokens


def test_perplexity_is_llama_cpps_own_on_the_second_halves(made: Made, tmp_path: Path) -> None:
    # tools/perplexity of llama.cpp scores the second half of each chunk, where context is long.
    half = CONTEXT // 2
    with made.quantizer.open_runtime(made.baseline, 0) as runtime:
        assert runtime.bos_token is not None
        ids = np.concatenate([[runtime.bos_token], runtime.tokenize([text()])[0]]).astype(np.int32)
        pieces = chunks(ids[: 6 * CONTEXT], runtime.bos_token)
        whole, tokens = loss(runtime, pieces, CONTEXT, tmp_path / "a")
        first, fewer = loss(runtime, pieces, half + 1, tmp_path / "b")
    ours = math.exp((whole - first) / (tokens - fewer))
    model = llama_cpp.Llama(
        model_path=str(made.baseline.path), n_ctx=CONTEXT, logits_all=True, verbose=False
    )
    losses = []
    for piece in pieces:
        model.reset()
        model.eval(piece.tolist())
        rows = log_softmax(np.array(model.scores[:CONTEXT], np.float64), axis=1)
        losses += [-rows[at, piece[at + 1]] for at in range(half, CONTEXT - 1)]
    model.close()

    assert len(losses) == tokens - fewer
    assert ours == pytest.approx(math.exp(np.mean(losses)), rel=5e-3)


def rows_of(runtime: Runtime, cut: Windows) -> np.ndarray[Any, Any]:
    return np.concatenate([piece.rows.copy() for piece in runtime.logits(cut.inputs)])


def test_divergence_and_agreement_are_scipys_on_the_dumped_logits(
    made: Made, tmp_path: Path
) -> None:
    with made.quantizer.open_runtime(made.baseline, 0) as runtime:
        ids = runtime.tokenize([text()])[0]
        cut = windows(ids, context_length=CONTEXT, bos_token=runtime.bos_token, max_tokens=1500)
        original = measure_original(runtime, cut, keep=tmp_path / "kept", meter=Recorder())
        before = log_softmax(rows_of(runtime, cut).astype(np.float64), axis=1)
    with made.quantizer.open_runtime(made.variants["Q4_K_M"], 0) as runtime:
        ours = measure_variant(runtime, cut, original, meter=Recorder())
        after = log_softmax(rows_of(runtime, cut).astype(np.float64), axis=1)
    divergences = rel_entr(np.exp(before), np.exp(after)).sum(axis=1)
    agreed = before.argmax(axis=1) == after.argmax(axis=1)
    # Six windows are few: sixteen blocks' own means spread as the mean's error says.
    errors = []
    for values in (divergences, agreed):
        groups = np.split(values, [step * len(values) // 16 for step in range(1, 16)])
        sums = [group.sum() - values.mean() * len(group) for group in groups]
        count = len(groups)
        errors.append(math.sqrt(count / (count - 1) * np.square(sums).sum()) / len(values))

    assert ours.compared_tokens == len(divergences) == 1500
    assert ours.mean_kl_divergence == pytest.approx(divergences.mean(), rel=5e-3)
    assert ours.median_kl_divergence == pytest.approx(np.median(divergences), rel=5e-3)
    assert ours.kl_percentile99 == pytest.approx(np.percentile(divergences, 99), rel=5e-3)
    assert ours.most_kl_divergence == pytest.approx(divergences.max(), rel=5e-3)
    assert ours.kl_standard_error == pytest.approx(errors[0], rel=5e-3)
    # Tokens that are equally likely may fall either way in half precision.
    assert ours.top_token_agreement_percent == pytest.approx(100 * agreed.mean(), abs=0.1)
    assert ours.agreement_standard_error == pytest.approx(100 * errors[1], rel=0.1)


@pytest.fixture(scope="module")
def by_noise(tmp_path_factory: pytest.TempPathFactory) -> list[Comparison]:
    """The tiny model with more and more noise in its weights, against itself."""
    folder = tmp_path_factory.mktemp("noise")
    cut: Windows | None = None
    original: Original | None = None
    found = []
    for level in NOISE:
        with transformers_runtime(noisy(TINY, folder / str(level), level)) as runtime:
            if cut is None or original is None:
                cut = windows(
                    runtime.tokenize([text()])[0],
                    context_length=CONTEXT,
                    bos_token=runtime.bos_token,
                    max_tokens=2500,
                )
                original = measure_original(runtime, cut, keep=folder / "kept", meter=Recorder())
            found.append(measure_variant(runtime, cut, original, meter=Recorder()))
    return found


def test_a_model_against_itself_has_lost_nothing_at_all(by_noise: list[Comparison]) -> None:
    same = by_noise[0]

    assert same.perplexity_increase_percent == 0
    assert same.perplexity_increase_standard_error == 0
    assert same.top_token_agreement_percent == 100
    assert same.agreement_standard_error == 0
    assert same.most_kl_divergence < 1e-5


def test_more_noise_never_measures_better_beyond_its_error(by_noise: list[Comparison]) -> None:
    for less, more in pairwise(by_noise):
        error = math.hypot(less.kl_standard_error, more.kl_standard_error)
        assert more.mean_kl_divergence > less.mean_kl_divergence - 2 * error
        error = math.hypot(
            less.perplexity_increase_standard_error, more.perplexity_increase_standard_error
        )
        assert more.perplexity_increase_percent > less.perplexity_increase_percent - 2 * error
        error = math.hypot(less.agreement_standard_error, more.agreement_standard_error)
        assert more.top_token_agreement_percent < less.top_token_agreement_percent + 2 * error
    worst = by_noise[-1]
    assert worst.perplexity_increase_percent > 5 * worst.perplexity_increase_standard_error > 0
