"""Measuring with transformers: numbers as by hand, bounded pieces, a process of its own."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
import pytest
from tests.worker.evaluation.meters import Recorder
from tests.worker.methods.conftest import TINY
from tests.worker.methods.models import changed_config, random_llama

from kubequant_worker.datasets import Role, bundled_text
from kubequant_worker.errors import BadRequestError
from kubequant_worker.evaluation.perplexity import measure_original, measure_variant, windows
from kubequant_worker.methods.precision import has_bfloat16, stored_dtype, working_dtype
from kubequant_worker.methods.transformers_runtime import TransformersEngine, TransformersRuntime

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LOADING = {"device": "cpu", "dtype": "float32"}
TEXT = 'def read_lines(path):\n    """Return the lines of a file."""\n    with open(path) as file:'


@pytest.fixture(scope="module")
def runtime() -> Iterator[TransformersRuntime]:
    with TransformersRuntime(TransformersEngine(2), TINY, LOADING) as opened:
        yield opened


@pytest.fixture(scope="module")
def by_hand() -> tuple[Any, Any]:
    """The model and its tokenizer, loaded as its documentation says."""
    from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: PLC0415 - seconds

    model = AutoModelForCausalLM.from_pretrained(TINY, dtype="float32")
    return model.eval(), AutoTokenizer.from_pretrained(TINY)


def test_logits_are_those_of_the_model(runtime: TransformersRuntime, by_hand: Any) -> None:
    import torch  # noqa: PLC0415 - seconds

    model, tokenizer = by_hand
    ids = runtime.tokenize([TEXT])[0]
    window = np.concatenate([[runtime.bos_token], ids]).astype(np.int32)
    rows = np.concatenate([piece.rows.copy() for piece in runtime.logits([window])])
    with torch.inference_mode():
        expected = model(**tokenizer(TEXT, return_tensors="pt")).logits[0].numpy()

    assert tokenizer(TEXT)["input_ids"] == window.tolist()
    np.testing.assert_allclose(rows, expected, atol=1e-4)


def test_perplexity_is_what_the_models_own_loss_says(
    runtime: TransformersRuntime, by_hand: Any, tmp_path: Path
) -> None:
    import torch  # noqa: PLC0415 - seconds

    model, _ = by_hand
    stream = np.concatenate(runtime.tokenize(bundled_text(Role.MEASUREMENT).documents[:8]))
    cut = windows(stream, context_length=256, bos_token=runtime.bos_token, max_tokens=1500)
    measured = measure_original(runtime, cut, keep=tmp_path / "kept", meter=Recorder())
    losses = []
    with torch.inference_mode():
        for inputs, targets in zip(cut.inputs, cut.targets, strict=True):
            logits = model(torch.tensor(inputs[None].astype(np.int64))).logits[0]
            wanted = torch.tensor(targets.astype(np.int64))
            losses.append(torch.nn.functional.cross_entropy(logits, wanted, reduction="sum"))
    expected = float(torch.stack(losses).sum()) / cut.scored_tokens
    again = measure_variant(runtime, cut, measured, meter=Recorder())

    assert measured.perplexity.mean_loss == pytest.approx(expected, rel=1e-5)
    assert again.mean_kl_divergence < 1e-5
    assert again.top_token_agreement_percent == 100


def test_generation_is_greedy(runtime: TransformersRuntime, by_hand: Any) -> None:
    model, tokenizer = by_hand
    prompt = tokenizer("def read_lines(path):", return_tensors="pt")
    expected = model.generate(**prompt, do_sample=False, max_new_tokens=12)[0]
    (written,) = runtime.generate(["def read_lines(path):"], 12)

    assert list(written.tokens) == expected[prompt["input_ids"].shape[1] :].tolist()
    assert tokenizer.decode(expected, skip_special_tokens=True).endswith(written.text)


def test_special_tokens_in_a_text_are_text_unless_asked_for(runtime: TransformersRuntime) -> None:
    plain, meant = (runtime.tokenize(["<s> x"], special=special)[0] for special in (False, True))

    assert plain[0] != runtime.bos_token
    assert meant[0] == runtime.bos_token


def test_a_long_window_in_pieces_is_the_window_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    from kubequant_worker.methods import transformers_model  # noqa: PLC0415 - imports torch

    model = transformers_model.CheckpointModel(TINY, transformers_model.Loading("cpu", "float32"))
    window = np.arange(3, 200, dtype=np.int32)
    ((_, whole),) = model.rows(window)
    monkeypatch.setattr(transformers_model, "PIECE_BYTES", 4 * model.vocabulary_size * 64)
    pieces = list(model.rows(window))

    assert [first for first, _ in pieces] == [0, 64, 128, 192]
    np.testing.assert_allclose(np.concatenate([rows for _, rows in pieces]), whole, atol=1e-4)


def test_a_closed_runtime_leaves_no_process(tmp_path: Path) -> None:
    opened = TransformersRuntime(TransformersEngine(1), random_llama(tmp_path / "m"), LOADING)
    pid = opened.engine.child.pid
    assert pid != os.getpid()
    opened.close()

    assert not psutil.pid_exists(pid)


def test_an_architecture_that_nobody_knows_is_refused(tmp_path: Path) -> None:
    unknown = changed_config(TINY, tmp_path / "m", model_type="nobodys", architectures=["Nobody"])
    engine = TransformersEngine(1)
    with pytest.raises(BadRequestError, match=r"spec\.model: transformers does not load the model"):
        TransformersRuntime(engine, unknown, LOADING)
    engine.close()


def without(source: Path, folder: Path, left_out: str) -> Path:
    """Copy a model of one weight file without the tensors whose name holds `left_out`."""
    from safetensors.torch import load_file, save_file  # noqa: PLC0415 - imports torch

    shutil.copytree(source, folder)
    path = folder / "model.safetensors"
    kept = {name: tensor for name, tensor in load_file(path).items() if left_out not in name}
    save_file(kept, path, metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (
            lambda folder: without(TINY, folder, "1.mlp.up_proj"),
            "the files lack 1 of the weights of LlamaForCausalLM (model.layers.1.mlp.up_proj.",
        ),
        (
            lambda folder: changed_config(TINY, folder, num_hidden_layers=5),
            "the files lack 9 of the weights of LlamaForCausalLM (model.layers.4.",
        ),
        (
            lambda folder: changed_config(TINY, folder, hidden_size="wide"),
            "transformers cannot read config.json: Validation error for field 'hidden_size'",
        ),
    ],
    ids=["a tensor that is in no file", "more layers than there are", "a value of another type"],
)
def test_a_model_whose_files_do_not_fit_its_config_is_refused(
    tmp_path: Path, made: Any, said: str
) -> None:
    engine = TransformersEngine(1)
    with pytest.raises(BadRequestError) as caught:
        TransformersRuntime(engine, made(tmp_path / "m"), LOADING)
    engine.close()

    assert caught.value.message.startswith(f"spec.model: {said}")


def test_a_head_that_shares_the_embeddings_lacks_nothing(tmp_path: Path) -> None:
    from kubequant_worker.methods import transformers_model  # noqa: PLC0415 - imports torch

    tied = random_llama(tmp_path / "m", tie_word_embeddings=True)
    model = transformers_model.load_model(tied, transformers_model.Loading("cpu", "float32"))

    assert model.lm_head.weight is model.model.embed_tokens.weight


@pytest.mark.parametrize(
    ("device", "low_memory", "bfloat16", "stored", "expected"),
    [
        pytest.param("CPU", False, False, "bfloat16", "float32", id="a CPU computes in float32"),
        pytest.param("CPU", True, False, "bfloat16", "float32", id="never without instructions"),
        pytest.param("CPU", True, True, "bfloat16", "bfloat16", id="to save memory, with them"),
        pytest.param("CPU", True, True, "float16", "float32", id="those are for bfloat16 only"),
        pytest.param("GPU", False, False, "float16", "float16", id="a GPU keeps what is stored"),
        pytest.param("GPU", False, False, "float64", "float32", id="but nothing wider than 32"),
    ],
)
def test_the_type_of_numbers_is_chosen_by_the_device(
    device: str,
    low_memory: bool,  # noqa: FBT001 - a parameter of the table
    bfloat16: bool,  # noqa: FBT001 - as above
    stored: str,
    expected: str,
) -> None:
    from tests.worker.run.test_preflight import spec  # noqa: PLC0415 - a maker

    asked = spec(method="GPTQ", device=device, memory={"lowMemory": low_memory})
    assert working_dtype(asked, stored, bfloat16=bfloat16) == expected


def test_the_stored_type_is_read_from_the_headers() -> None:
    assert stored_dtype(TINY) == "bfloat16"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("processor: 0\nflags\t\t: fpu avx2 avx512_bf16\n", True),
        ("Features\t: fp asimd bf16\n", True),
        ("flags\t\t: fpu avx2 avx512f\nmodel name: bf16\n", False),
    ],
    ids=["AVX-512", "Arm", "neither"],
)
def test_bfloat16_is_known_by_the_processors_flags(
    tmp_path: Path,
    text: str,
    expected: bool,  # noqa: FBT001 - a parameter of the table
) -> None:
    (tmp_path / "cpuinfo").write_text(text)
    assert has_bfloat16(tmp_path / "cpuinfo") is expected
