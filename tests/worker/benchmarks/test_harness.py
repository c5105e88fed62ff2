"""Our adapter gives the numbers of the harness itself, whatever engine holds the model."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
import pytest
from tests.worker.evaluation.meters import Recorder
from tests.worker.methods.conftest import TINY, Made, make, workspace
from tests.worker.methods.models import random_llama

from kubequant.api.spec import QuantizationJobSpec
from kubequant_worker.benchmarks.answers import Answers
from kubequant_worker.benchmarks.harness import Harness
from kubequant_worker.benchmarks.score import Score, Speaker
from kubequant_worker.benchmarks.task_files import TaskFiles
from kubequant_worker.errors import BadRequestError
from kubequant_worker.methods.transformers_runtime import TransformersEngine, TransformersRuntime

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kubequant_worker.evaluation.runtime import Runtime

TASKS = Path(__file__).parent / "tasks"
ASKED = (
    {"task": "python_words", "fewShot": 2},
    {"task": "python_prose"},
    {"task": "python_lines", "limit": 5},
)
LOADING = {"device": "cpu", "dtype": "float32"}


def own_files(folder: Path = TASKS) -> TaskFiles:
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    return TaskFiles(folder, names)


def spec(
    *benchmarks: dict[str, Any], gates: tuple[dict[str, Any], ...] = ()
) -> QuantizationJobSpec:
    return QuantizationJobSpec.model_validate(
        {
            "model": {"uri": "hf://example/model"},
            "method": "GGUF",
            "evaluation": {"benchmarks": benchmarks},
            "gates": gates,
            "output": {"uri": "s3://bucket/prefix"},
        }
    )


@pytest.fixture(scope="module")
def harness(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Harness]:
    made = Harness(spec(*ASKED), tmp_path_factory.mktemp("harness"), threads=1)
    made.look_up(own_files().configs)
    made.load(lambda _: None)
    yield made
    made.close()


@pytest.fixture(scope="module")
def by_transformers(harness: Harness) -> dict[tuple[str, str], Score]:
    with TransformersRuntime(TransformersEngine(2), TINY, LOADING) as runtime:
        return by_name(harness.ask(runtime, Recorder()))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    """The tiny model as F16 for llama.cpp."""
    converted = make(workspace(tmp_path_factory.mktemp("f16"), TINY, types=["F16"]))
    yield converted
    converted.quantizer.close()


def by_name(scores: list[Score]) -> dict[tuple[str, str], Score]:
    return {(score.task, score.metric): score for score in scores}


@pytest.fixture(scope="module")
def by_the_harness_itself(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The same tasks, by the harness's own classes and nothing of ours."""
    import logging  # noqa: PLC0415 - only to quieten the harness
    import warnings  # noqa: PLC0415 - as above

    folder = tmp_path_factory.mktemp("plain")
    for path in TASKS.glob("*.yaml"):
        text = path.read_text().replace("data/", f"{TASKS}/data/")
        (folder / path.name).write_text(text)
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from lm_eval import simple_evaluate  # noqa: PLC0415 - seconds
        from lm_eval.models.huggingface import HFLM  # noqa: PLC0415 - seconds
        from lm_eval.tasks import TaskManager  # noqa: PLC0415 - seconds

        manager = TaskManager(include_path=str(folder), include_defaults=False)
        model = HFLM(pretrained=str(TINY), dtype="float32", device="cpu", batch_size=1)
        found: dict[str, Any] = {}
        for one in ASKED:
            results = simple_evaluate(
                model=model,
                tasks=[one["task"]],
                num_fewshot=one.get("fewShot", 0),
                limit=one.get("limit"),
                task_manager=manager,
                bootstrap_iters=1000,
            )
            found |= results["results"]
    return found


EXPECTED = [
    ("python_words", "acc", "acc,none"),
    ("python_words", "acc_norm", "acc_norm,none"),
    ("python_prose", "word_perplexity", "word_perplexity,none"),
    ("python_prose", "byte_perplexity", "byte_perplexity,none"),
    ("python_prose", "bits_per_byte", "bits_per_byte,none"),
    ("python_lines", "exact_match,first-word", "exact_match,first-word"),
]


def test_our_adapter_gives_the_numbers_of_the_harness_itself(
    by_transformers: dict[tuple[str, str], Score], by_the_harness_itself: dict[str, Any]
) -> None:
    assert [(task, metric) for task, metric, _ in EXPECTED] == list(by_transformers)
    for task, metric, key in EXPECTED:
        ours, theirs = by_transformers[task, metric], by_the_harness_itself[task]
        assert ours.value == pytest.approx(theirs[key], rel=1e-5), (task, metric)
        name, _, kind = key.partition(",")
        error = theirs[f"{name}_stderr,{kind}"]
        if error == "N/A":
            assert ours.standard_error is None
        else:
            assert ours.standard_error == pytest.approx(error)


def test_a_score_says_how_many_questions_it_is_of_and_which_way_is_better(
    by_transformers: dict[tuple[str, str], Score],
) -> None:
    words, lines = by_transformers["python_words", "acc"], by_transformers[EXPECTED[-1][:2]]
    prose = by_transformers["python_prose", "word_perplexity"]

    assert (words.samples, words.few_shot, words.higher_is_better) == (16, 2, True)
    assert (prose.samples, prose.few_shot, prose.higher_is_better) == (5, 0, False)
    assert lines.samples == 5, "the limit holds"
    assert words.version == "1.0"
    assert 0.25 < words.value <= 1, "the tiny model knows some Python"


def test_llama_cpp_answers_as_transformers_does(
    harness: Harness, by_transformers: dict[tuple[str, str], Score], made: Made
) -> None:
    with made.quantizer.open_runtime(made.variants["F16"], 0) as runtime:
        by_llama = by_name(harness.ask(runtime, Recorder()))

    assert list(by_llama) == list(by_transformers)
    for name, score in by_llama.items():
        assert score.value == pytest.approx(by_transformers[name].value, rel=5e-3, abs=1e-9), name


def test_progress_reaches_the_whole_and_no_further(harness: Harness) -> None:
    meter = Recorder()
    with TransformersRuntime(TransformersEngine(2), TINY, LOADING) as runtime:
        harness.ask(runtime, meter)

    assert meter.done == pytest.approx(1)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        pytest.param("hellaswga", "did you mean hellaswag", id="the harness's own"),
        pytest.param("python_word", "did you mean python_words", id="the user's own"),
        pytest.param("q" * 60, "has no task 'qqq", id="nothing like it"),
    ],
)
def test_an_unknown_task_is_refused_with_the_nearest_names(
    tmp_path: Path, asked: str, said: str
) -> None:
    harness = Harness(spec({"task": "python_words"}, {"task": asked}), tmp_path, threads=1)
    with pytest.raises(BadRequestError, match=said) as refusal:
        harness.look_up(own_files().configs)
    harness.close()

    assert refusal.value.message.startswith("spec.evaluation.benchmarks[1].task: ")


@pytest.mark.parametrize(
    ("task", "said"),
    [
        pytest.param("python_tests", "a tag, .* have: python_prose, python_words", id="a tag"),
        pytest.param("python_pair", "a group .* have: python_words, python_prose", id="a group"),
    ],
)
def test_a_gate_on_what_has_no_number_is_refused_before_anything_is_fetched(
    tmp_path: Path, task: str, said: str
) -> None:
    asked = ({"task": "python_words"}, {"task": task})
    gates = (
        {"metric": "SizeBytes", "max": "1"},
        {"metric": "BenchmarkScore", "task": task, "min": "0"},
    )
    own = own_files().configs
    own["python_pair"] = {"group": "python_pair", "task": ["python_words", "python_prose"]}
    harness = Harness(spec(*asked, gates=gates), tmp_path, threads=1)
    with pytest.raises(BadRequestError, match=said) as refusal:
        harness.look_up(own)
    harness.close()

    assert refusal.value.message.startswith(f"spec.gates[1].task: {task} is ")


def test_a_gate_on_a_group_with_an_aggregate_is_taken(tmp_path: Path) -> None:
    gate = {"metric": "BenchmarkScore", "task": "python_group", "min": "0"}
    harness = Harness(spec({"task": "python_group"}, gates=(gate,)), tmp_path, threads=1)
    harness.look_up(own_files().configs)
    harness.close()


def test_a_group_and_a_tag_are_asked_by_their_members(tmp_path: Path) -> None:
    harness = Harness(
        spec({"task": "python_group"}, {"task": "python_tests", "limit": 2}), tmp_path, threads=1
    )
    harness.look_up(own_files().configs)
    harness.load(lambda _: None)
    with TransformersRuntime(TransformersEngine(2), TINY, LOADING) as runtime:
        scores = harness.ask(runtime, Recorder())
    harness.close()

    assert (scores[0].task, scores[0].metric, scores[0].samples) == ("python_group", "acc", 16)
    assert {score.task for score in scores[1:]} == {"python_words", "python_prose"}
    assert all(score.samples == 2 for score in scores[1:])


def test_the_harness_is_ended_with_its_run(tmp_path: Path) -> None:
    before = {child.pid for child in psutil.Process(os.getpid()).children()}
    harness = Harness(spec({"task": "python_words"}), tmp_path, threads=1)
    harness.look_up(own_files().configs)
    started = {child.pid for child in psutil.Process(os.getpid()).children()} - before
    harness.close()
    harness.close()

    assert len(started) == 1
    assert not any(psutil.pid_exists(pid) for pid in started)


@pytest.fixture(scope="module")
def long_texts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runtime]:
    """A random model with a short context."""
    model = random_llama(tmp_path_factory.mktemp("model") / "m", max_position_embeddings=64)
    with TransformersRuntime(TransformersEngine(1), model, LOADING) as runtime:
        yield runtime


def test_a_request_longer_than_the_context_loses_its_beginning(long_texts: Runtime) -> None:
    answers = Answers(long_texts, Speaker(None, 1, 64))
    context, continuation = list(range(3, 203)), [5, 6, 7]
    cut, whole = answers.log_likelihoods([(context[-62:], continuation), (context, continuation)])

    assert whole == pytest.approx(cut)


def test_likelihoods_are_those_of_every_token_by_itself(long_texts: Runtime) -> None:
    answers = Answers(long_texts, Speaker(None, 1, 64))
    ids = [9, 8, 7, 6, 5]
    together = answers.log_likelihoods([(ids[:2], ids[2:])])[0][0]
    alone = [answers.log_likelihoods([(ids[:end], [ids[end]])])[0][0] for end in (2, 3, 4)]
    window = np.array(ids[:-1], np.int32)
    rows = np.concatenate([piece.rows.copy() for piece in long_texts.logits([window])])
    rows = rows.astype(np.float64)
    by_hand = rows - np.log(np.exp(rows).sum(axis=1, keepdims=True))

    assert together == pytest.approx(sum(alone), rel=1e-5)
    assert together == pytest.approx(sum(by_hand[at, ids[at + 1]] for at in (1, 2, 3)), rel=1e-5)
    assert math.isfinite(together)


def test_a_text_that_leaves_no_room_is_refused(long_texts: Runtime) -> None:
    with pytest.raises(BadRequestError, match="texts of 64 tokens"):
        Answers(long_texts, Speaker(None, 1, 64)).texts([[1, 2]], 64, [])


@pytest.mark.parametrize("kind", ["llama.cpp", "transformers"])
def test_a_stop_ends_a_text_and_is_told_from_running_out(kind: str, made: Made) -> None:
    runtime: Runtime = (
        made.quantizer.open_runtime(made.baseline, 0)
        if kind == "llama.cpp"
        else TransformersRuntime(TransformersEngine(2), TINY, LOADING)
    )
    with runtime:
        prompt = "def read_lines(path):\n    "
        start = np.array([runtime.bos_token, *runtime.tokenize([prompt])[0]], np.int32)
        (free,) = runtime.complete([start], 24)
        stop = free.text[4:7]
        (stopped,) = runtime.complete([start], 24, [stop])

    assert len(free.tokens) == 24
    assert not free.stopped
    assert stopped.stopped
    assert stop in stopped.text
    assert free.text.startswith(stopped.text)
    assert len(stopped.tokens) < len(free.tokens)
