"""A folder of tasks is data: what would run code or read elsewhere is refused with a sentence."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.worker.benchmarks.test_harness import LOADING, TASKS, own_files, spec
from tests.worker.evaluation.meters import Recorder
from tests.worker.methods.conftest import TINY

from kubequant_worker.benchmarks.harness import Harness
from kubequant_worker.errors import BadRequestError
from kubequant_worker.methods.transformers_runtime import TransformersEngine, TransformersRuntime

if TYPE_CHECKING:
    from pathlib import Path

PLAIN = """
task: mine
dataset_path: json
dataset_kwargs: {data_files: {test: data.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{text}}"
doc_to_choice: ["yes", "no"]
doc_to_target: 0
metric_list: [{metric: acc}]
"""


def folder(root: Path, text: str, **files: str) -> Path:
    (root / "mine.yaml").write_text(text)
    (root / "data.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n')
    for name, content in files.items():
        (root / name.replace("__", ".")).write_text(content)
    return root


HOSTILE = [
    pytest.param(
        PLAIN + "process_docs: !function utils.steal\n",
        "mine.yaml uses !function; nothing from a task's file is executed",
        id="a function",
    ),
    pytest.param(
        PLAIN + "metadata: !!python/object/apply:os.system ['true']\n",
        "nothing from a task's file is executed",
        id="an object of Python",
    ),
    pytest.param(PLAIN + "class: posixpath.join\n", "says class, which is code", id="a class"),
    pytest.param(
        PLAIN + "custom_dataset: x\n", "says custom_dataset, which is code", id="a loader"
    ),
    pytest.param(
        PLAIN + "unsafe_code: true\n", "says unsafe_code, which is code", id="code that is run"
    ),
    pytest.param(
        PLAIN + "use_prompt: /etc/x.yaml:one\n", "says use_prompt", id="a prompt from elsewhere"
    ),
    pytest.param(
        PLAIN.replace("data.jsonl", "/etc/passwd"), "'/etc/passwd', which is not in", id="a file"
    ),
    pytest.param(
        PLAIN.replace("data.jsonl", "../../secret"), "which is not in the folder", id="a way out"
    ),
    pytest.param(
        PLAIN.replace("data.jsonl", "'https://example.com/x'"), "not in the folder", id="a server"
    ),
    pytest.param(
        PLAIN.replace("{data_files: {test: data.jsonl}}", "{data_dir: /etc}"),
        "may say in dataset_kwargs only",
        id="a folder of the machine",
    ),
    *(
        pytest.param(
            f"task: mine\ndataset_path: {path}\n{words}\n",
            "names the dataset_path",
            id=f"{what} {said} dataset_kwargs",
        )
        for path, what in (
            ("/etc", "a folder of the machine as dataset_path"),
            ("../../model", "a folder above as dataset_path"),
            ("./model", "a folder beside it as dataset_path"),
            ("~/data", "a home folder as dataset_path"),
            ("a/b/c", "a folder below as dataset_path"),
            ("'https://example.com/x'", "an address as dataset_path"),
            ('"owner/name\\n"', "a line more as dataset_path"),
            ("[/etc]", "a list as dataset_path"),
        )
        for words, said in (("", "without"), ("dataset_kwargs: {}", "with empty"))
    ),
    pytest.param(
        "group: ours\ntask:\n- {task: one, dataset_path: owner/name}\n"
        "- {task: two, dataset_path: /etc}\n",
        "names the dataset_path '/etc'",
        id="a folder of the machine in a group's member",
    ),
    pytest.param(
        "task: copa\ndataset_path: /etc\n",
        "names the dataset_path '/etc'",
        id="a folder of the machine for a task of the harness",
    ),
    pytest.param(
        "task: mine\ndataset_path: text\ndataset_kwargs: {}\n",
        "names no dataset_kwargs.data_files",
        id="a loader without files",
    ),
    pytest.param("include: /etc/hosts\n" + PLAIN, "includes '/etc/hosts'", id="an include"),
    pytest.param("include: mine.yaml\n" + PLAIN, "includes 'mine.yaml'", id="an endless include"),
    pytest.param("- a list\n", "must be a mapping", id="a list"),
    pytest.param("task: [\n", "is no YAML", id="no YAML"),
    pytest.param("x: 1\n", "holds no task", id="no task"),
]


@pytest.mark.parametrize(("text", "said"), HOSTILE)
def test_what_is_not_plain_data_is_refused(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(BadRequestError) as refusal:
        own_files(folder(tmp_path, text))

    assert refusal.value.message.startswith("spec.evaluation.taskFiles")
    assert said in refusal.value.message


@pytest.mark.parametrize("path", ["owner/name", "a_name", "Owner-2/na.me_v1"])
def test_a_data_set_of_the_hub_is_named_by_its_name(tmp_path: Path, path: str) -> None:
    configs = own_files(folder(tmp_path, f"task: mine\ndataset_path: {path}\n")).configs

    assert configs["mine"]["dataset_path"] == path


@pytest.mark.parametrize(
    ("line", "said"),
    [
        pytest.param(
            "metric_list: [{metric: evil/metric}]", "names the metric 'evil/metric'", id="a metric"
        ),
        pytest.param(
            "metric_list: [{metric: acc, hf_evaluate: true}]", "without hf_evaluate", id="evaluate"
        ),
        pytest.param(
            "metric_list: [{metric: acc, aggregation: nothing}]", "the aggregation", id="a mean"
        ),
        pytest.param(
            "filter_list: [{name: f, filter: [{function: custom}]}]", "the filter", id="a filter"
        ),
    ],
)
def test_what_the_harness_would_download_as_code_is_refused(
    tmp_path: Path, line: str, said: str
) -> None:
    text = PLAIN.replace("metric_list: [{metric: acc}]", line)
    configs = own_files(folder(tmp_path, text)).configs
    harness = Harness(spec({"task": "mine"}), tmp_path / "scratch", threads=1)
    with pytest.raises(BadRequestError) as refusal:
        harness.look_up(configs)
    harness.close()

    assert said in refusal.value.message


def test_a_template_reaches_nothing_but_its_values(tmp_path: Path) -> None:
    escape = "{{ ''.__class__.__mro__[1].__subclasses__() }}"
    configs = own_files(folder(tmp_path, PLAIN.replace("{{text}}", escape))).configs
    harness = Harness(spec({"task": "mine"}), tmp_path / "scratch", threads=1)
    harness.look_up(configs)
    with pytest.raises(BadRequestError, match=r"mine cannot be loaded: .*unsafe"):
        harness.load(lambda _: None)
    harness.close()


def test_data_that_do_not_fit_are_told_with_the_field(tmp_path: Path) -> None:
    configs = own_files(folder(tmp_path, PLAIN.replace("{{text}}", "{{other}}"))).configs
    harness = Harness(spec({"task": "mine"}), tmp_path / "scratch", threads=1)
    harness.look_up(configs)
    with pytest.raises(BadRequestError) as refusal:
        harness.load(lambda _: None)
    harness.close()

    assert refusal.value.message.startswith(
        "spec.evaluation.benchmarks[0].task: mine cannot be loaded: 'other' is undefined"
    )


def test_a_file_may_give_a_task_of_the_harness_its_data(tmp_path: Path) -> None:
    (tmp_path / "copa.yaml").write_text(
        "task: copa\ndataset_path: json\ndataset_name: null\ntraining_split: null\n"
        "dataset_kwargs: {data_files: {validation: copa.jsonl}}\n"
    )
    (tmp_path / "copa.jsonl").write_text(
        '{"premise": "It rained.", "choice1": "The street got wet.", '
        '"choice2": "The street burned.", "question": "effect", "label": 0}\n' * 3
    )
    harness = Harness(spec({"task": "copa"}), tmp_path / "scratch", threads=1)
    harness.look_up(own_files(tmp_path).configs)
    harness.load(lambda _: None)
    with TransformersRuntime(TransformersEngine(2), TINY, LOADING) as runtime:
        (score,) = harness.ask(runtime, Recorder())
    harness.close()

    assert (score.task, score.metric, score.samples) == ("copa", "acc", 3)
    assert score.value in {0.0, 1.0}


def test_the_shipped_tasks_are_found_by_name() -> None:
    configs = own_files().configs

    assert set(configs) == {"python_words", "python_prose", "python_lines", "python_group"}
    data = configs["python_words"]["dataset_kwargs"]["data_files"]["test"]
    assert data == str(TASKS / "data" / "words.jsonl")
