"""Our half of the lm-evaluation-harness: its child, and the model that answers it.

The harness is not imported here (`harness_child` is its child). One child serves a whole run: the
names are looked up before anything is fetched, the questions loaded once, and then asked of the
original and of every variant.
"""

from __future__ import annotations

import shutil
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final

from kubequant_worker.benchmarks.answers import Answers
from kubequant_worker.benchmarks.score import Question, Speaker
from kubequant_worker.benchmarks.task_files import TaskFiles
from kubequant_worker.errors import BadRequestError, UnavailableError
from kubequant_worker.evaluation.meter import Portion
from kubequant_worker.methods.child import Child
from kubequant_worker.sources import fetch_task_files

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from kubequant.api.spec import QuantizationJobSpec
    from kubequant_worker.benchmarks.score import Score
    from kubequant_worker.evaluation.meter import Meter
    from kubequant_worker.evaluation.runtime import Runtime
    from kubequant_worker.layout import Layout

NAME: Final = "lm-evaluation-harness"
# What the child holds: the harness, its index of tasks, and the questions of some.
MEMORY_BYTES: Final = 1 << 29
_MODULE = "kubequant_worker.benchmarks.harness_child"


def own_tasks(spec: QuantizationJobSpec, layout: Layout) -> dict[str, dict[str, Any]]:
    """Fetch the folder of task files, where the spec names one, and return its tasks by name.

    Raises:
        BadRequestError: A file asks for more than data.
        AccessError: The folder is not there, or not for these credentials.
    """
    if spec.evaluation.task_files is None:
        return {}
    folder = layout.scratch / "benchmarks" / "tasks"
    shutil.rmtree(folder, ignore_errors=True)
    fetched = fetch_task_files(
        spec.evaluation.task_files,
        into=folder,
        credentials=layout.credentials,
        volumes=layout.volumes,
    )
    return TaskFiles(folder, [file.path for file in fetched.digests]).configs


class Harness:
    """The benchmarks of one run. Starts nothing before `look_up`; ended by `close`."""

    def __init__(self, spec: QuantizationJobSpec, scratch: Path, threads: int) -> None:
        """Prepare to ask what `spec` names, with the questions' own cache in `scratch`."""
        gates: dict[str, str] = {}
        for index, gate in enumerate(spec.gates):
            if gate.task is not None:
                gates.setdefault(gate.task, f"spec.gates[{index}].task")
        self._questions = tuple(
            Question(
                field=f"spec.evaluation.benchmarks[{index}].task",
                task=one.task,
                few_shot=one.few_shot,
                limit=one.limit,
                gate=gates.get(one.task, ""),
            )
            for index, one in enumerate(spec.evaluation.benchmarks)
        )
        self._scratch = scratch / "benchmarks"
        self._threads = threads
        self._child: Child | None = None

    @property
    def is_asked(self) -> bool:
        """Return whether the spec names any benchmark."""
        return bool(self._questions)

    def look_up(self, own: dict[str, dict[str, Any]]) -> None:
        """Start the harness and find every task by its name; `own` are those of the task files.

        Raises:
            BadRequestError: A name is unknown, an own task names what the harness does not have, a
                gate names several tasks that have no number in common, or this image has no
                harness.
        """
        if find_spec("lm_eval") is None:
            raise BadRequestError(
                "spec.evaluation.benchmarks: this worker holds no lm-evaluation-harness; remove "
                "them",
                advice="install the extra benchmarks with the constraints in images/",
            )
        self._scratch.mkdir(parents=True, exist_ok=True)
        self._child = Child(
            _MODULE,
            engine=NAME,
            threads=self._threads,
            arguments=(str(self._scratch),),
            online=True,
        )
        self._child.call("look_up", self._questions, own)

    def load(self, on_task: Callable[[str], None]) -> None:
        """Load the questions of every task: from the folder of task files, or from the Hub.

        `on_task` hears of each task whose questions are there.

        Raises:
            BadRequestError: A task's data are not there, or do not fit it.
            UnavailableError: The Hub does not answer.
        """
        trouble = self._running().call("load", on_event=on_task)
        if trouble:
            raise UnavailableError(
                trouble,
                advice="try again, or put the task and its data into spec.evaluation.taskFiles",
            )

    def ask(self, runtime: Runtime, meter: Meter) -> list[Score]:
        """Ask the model in `runtime` everything and return its scores."""
        child = self._running()
        speaker = Speaker(runtime.bos_token, runtime.prefix_token, runtime.trained_length)
        answers = Answers(runtime, speaker)
        scores: list[Score] = []
        share = 1 / len(self._questions)
        for number, question in enumerate(self._questions):
            portion = Portion(meter, share)

            def answer(
                kind: str, *values: Any, shown: Portion = portion, task: str = question.task
            ) -> None:
                match kind:
                    case "total":
                        shown.set_total(values[0])
                    case "tokens":
                        child.send(answers.tokens(*values))
                    case "likelihoods":
                        child.send(answers.log_likelihoods(*values))
                        shown.advance(len(values[0]), f"benchmark {task}")
                    case "texts":
                        child.send(answers.texts(*values))
                        shown.advance(len(values[0]), f"benchmark {task}")

            scores += child.call("ask", number, speaker, on_event=answer)
            portion.finish()
        return scores

    def _running(self) -> Child:
        if self._child is None:
            raise RuntimeError("look_up() comes first")
        return self._child

    def close(self) -> None:
        """End the child; a second call does nothing."""
        if self._child is not None:
            self._child.close()
            self._child = None
