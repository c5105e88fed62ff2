"""The child that holds the lm-evaluation-harness.

`python -m kubequant_worker.benchmarks.harness_child`: the only module that imports `lm_eval`. It
holds no model: `Asked` is the harness's `LM`, and asks the parent (`harness`) for token ids,
log-likelihoods and texts. Numbers are those of the harness's own `HFLM` for the same model, whose
ways with BOS, windows and stop texts are followed here.
"""

from __future__ import annotations

import difflib
import logging
import os
import sys
from copy import deepcopy
from typing import TYPE_CHECKING, Any, Final

import lm_eval.utils
from datasets.exceptions import DatasetsError
from jinja2 import StrictUndefined, TemplateError
from jinja2.sandbox import SandboxedEnvironment
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import AGGREGATION_REGISTRY, FILTER_REGISTRY, METRIC_REGISTRY
from lm_eval.evaluator import evaluate
from lm_eval.models.utils import normalize_gen_kwargs, postprocess_generated_text
from lm_eval.tasks import TaskManager
from lm_eval.tasks._index import Entry, Kind
from lm_eval.tasks._yaml_loader import load_yaml
from requests import RequestException

from kubequant.api.outcome import FailureReason
from kubequant_worker.benchmarks.score import scores
from kubequant_worker.errors import BadRequestError
from kubequant_worker.methods.child import Parent, serve

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from kubequant_worker.benchmarks.score import Question, Score, Speaker
    from kubequant_worker.methods.child import Operation

# Requests in one message to the parent.
_REQUESTS_AT_ONCE: Final = 256
_TEXTS_AT_ONCE: Final = 16
# What `HFLM` generates where a task does not say.
_DEFAULT_NEW_TOKENS: Final = 256
# The harness's own seed for drawing solved examples.
_FEW_SHOT_SEED: Final = 1234
# Enough for the errors of metrics that have no formula; the harness's default takes minutes.
_BOOTSTRAPS: Final = 1000
# A tag may stand for hundreds of tasks.
_MEMBERS_NAMED: Final = 8
_OWN_FIELD: Final = "spec.evaluation.taskFiles"
# What loading a task's data may raise for reasons that are not ours.
_UNREADABLE: Final = (
    AssertionError, AttributeError, DatasetsError, ImportError, LookupError, OSError, RuntimeError,
    TemplateError, TypeError, ValueError,
)  # fmt: skip


class Asked(TemplateLM):  # type: ignore[misc] # the harness has no types
    """A model somewhere else: every answer comes from the parent."""

    def __init__(self, parent: Parent, speaker: Speaker) -> None:
        """Ask `parent`, whose model is as `speaker` says."""
        super().__init__()
        self._parent = parent
        self._speaker = speaker
        self._ids: dict[str, list[int]] = {}

    @property
    def eot_token_id(self) -> int:
        """Return the id that a text without a context is predicted from."""
        return self._speaker.prefix

    def _answer(self, *question: object) -> Any:
        self._parent.event(*question)
        return self._parent.receive()[0]

    def _learn(self, texts: Sequence[str]) -> None:
        """Ask for the ids of many texts at once; one by one they would take a message each."""
        new = [text for text in dict.fromkeys(texts) if text not in self._ids]
        for group in _groups(new, _REQUESTS_AT_ONCE):
            self._ids.update(zip(group, self._answer("tokens", group), strict=True))

    def tok_encode(
        self,
        string: str,
        add_special_tokens: bool | None = None,  # noqa: FBT001 - the harness's
        **_: object,
    ) -> list[int]:
        """Return a text's ids, opened as the tokenizer opens texts unless that is there already."""
        self._learn([string])
        ids, opening = self._ids[string], self._speaker.opening
        if add_special_tokens is False or opening is None or ids[:1] == [opening]:
            return ids
        return [opening, *ids]

    def loglikelihood(
        self,
        requests: Sequence[Any],
        disable_tqdm: bool = True,  # noqa: FBT001, FBT002 - the harness's
    ) -> list[tuple[float, bool]]:
        """Return the log-likelihood of each continuation, and whether it is the greedy one."""
        del disable_tqdm
        self._ids.clear()
        texts = []
        for context, continuation in (request.args for request in requests):
            texts += [context + continuation, context.rstrip()]
        self._learn(texts)
        found: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=True)
        return found

    def _loglikelihood_tokens(
        self, requests: Sequence[Any], **_: object
    ) -> list[tuple[float, bool]]:
        pairs = [(context, continuation) for _, context, continuation in requests]
        # The longest first: what runs out of memory does so at once. Neighbours read the same.
        order = sorted(range(len(pairs)), key=lambda at: (-sum(map(len, pairs[at])), pairs[at]))
        found: dict[int, tuple[float, bool]] = {}
        for group in _groups(order, _REQUESTS_AT_ONCE):
            answers = self._answer("likelihoods", [pairs[at] for at in group])
            found.update(zip(group, answers, strict=True))
        return [found[at] for at in range(len(pairs))]

    def loglikelihood_rolling(
        self,
        requests: Sequence[Any],
        disable_tqdm: bool = True,  # noqa: FBT001, FBT002 - the harness's
    ) -> list[float]:
        """Return the log-likelihood of each whole text, in windows that lose no token."""
        del disable_tqdm
        texts = [request.args[0] for request in requests]
        self._learn(texts)
        windows, owners = [], []
        for number, text in enumerate(texts):
            rolling = lm_eval.utils.get_rolling_token_windows(
                token_list=self.tok_encode(text),
                prefix_token=self.prefix_token_id,
                max_seq_len=self._speaker.length,
                context_len=1,
            )
            for context, continuation in map(lm_eval.utils.make_disjoint_window, rolling):
                windows.append((None, context, continuation))
                owners.append(number)
        totals = [0.0] * len(texts)
        for owner, (value, _) in zip(owners, self._loglikelihood_tokens(windows), strict=True):
            totals[owner] += value
        return totals

    def generate_until(
        self,
        requests: Sequence[Any],
        disable_tqdm: bool = True,  # noqa: FBT001, FBT002 - the harness's
    ) -> list[str]:
        """Return each prompt's greedy continuation up to its stop texts, sampling left aside."""
        del disable_tqdm
        self._learn([request.args[0] for request in requests])
        written: list[str] = [""] * len(requests)
        for (most, stops), numbers in _by_settings(requests).items():
            for group in _groups(numbers, _TEXTS_AT_ONCE):
                starts = [self.tok_encode(requests[at].args[0]) for at in group]
                texts = self._answer("texts", starts, most, list(stops))
                for at, text in zip(group, texts, strict=True):
                    written[at] = postprocess_generated_text(text, list(stops), None)
        return written


def _by_settings(requests: Sequence[Any]) -> dict[tuple[int, tuple[str, ...]], list[int]]:
    """Return the requests' numbers by how many tokens they want and what ends them."""
    found: dict[tuple[int, tuple[str, ...]], list[int]] = {}
    for number, request in enumerate(requests):
        settings = normalize_gen_kwargs(request.args[1], _DEFAULT_NEW_TOKENS)
        until = settings.get("until") or []
        stops = (until,) if isinstance(until, str) else tuple(until)
        found.setdefault((int(settings["max_gen_toks"]), stops), []).append(number)
    return found


def _groups(values: Sequence[Any], size: int) -> Iterator[list[Any]]:
    for start in range(0, len(values), size):
        yield list(values[start : start + size])


class Work:
    """The operations of the child."""

    def __init__(self, parent: Parent, scratch: str) -> None:
        """Answer to `parent`; the data of own tasks are cached in `scratch`."""
        self._parent = parent
        self._scratch = scratch
        self._questions: Sequence[Question] = ()
        self._manager: Any = None
        self._loaded: list[Any] = []
        _confine_templates()

    def operations(self) -> Mapping[str, Operation]:
        """Return what the parent may ask for."""
        return {"look_up": self.look_up, "load": self.load, "ask": self.ask}

    def look_up(self, questions: Sequence[Question], own: Mapping[str, dict[str, Any]]) -> None:
        """Find the tasks by name.

        Raises:
            BadRequestError: There is no such name, or a gate holds one that has no number.
        """
        self._questions = questions
        # The harness's own index is made of 14,000 files, which takes ten seconds.
        whole = all("output_type" in own.get(question.task, ()) for question in questions)
        self._manager = TaskManager(include_defaults=not whole)
        index = self._manager.task_index
        for name, config in own.items():
            _add(index, name, config, self._scratch)
        for question in questions:
            if question.task not in index:
                near = difflib.get_close_matches(question.task, index, n=3, cutoff=0.6)
                hint = f"; did you mean {' or '.join(near)}?" if near else ""
                raise BadRequestError(
                    f"{question.field}: the lm-evaluation-harness has no task "
                    f"{question.task!r}{hint}",
                    advice="a task of your own belongs into spec.evaluation.taskFiles",
                )
            if question.gate:
                _require_number(question, index[question.task])

    def load(self) -> str:
        """Load the tasks with their data; return why the Hub did not answer, "" where all is well.

        Raises:
            BadRequestError: A task's data are not there, or do not fit it.
        """
        for question in self._questions:
            try:
                loaded = self._manager.load([question.task])
            except (ConnectionError, TimeoutError, RequestException) as error:
                return f"{question.field}: the data of {question.task}: {_sentence(error)}"
            except _UNREADABLE as error:
                raise BadRequestError(
                    f"{question.field}: {question.task} cannot be loaded: {_sentence(error)}",
                    reason=FailureReason.UNUSABLE_DATASET,
                    advice="its data come from the Hub unless spec.evaluation.taskFiles has them",
                ) from error
            for task in loaded["tasks"].values():
                if getattr(task, "UNSAFE_CODE", False):
                    raise BadRequestError(
                        f"{question.field}: {question.task} executes what the model writes; such "
                        "tasks are not run",
                        reason=FailureReason.UNUSABLE_DATASET,
                    )
                task.set_config(key="num_fewshot", value=question.few_shot)
                task.set_fewshot_seed(seed=_FEW_SHOT_SEED)
            self._loaded.append(loaded)
            self._parent.event(question.task)
        return ""

    def ask(self, number: int, speaker: Speaker) -> list[Score]:
        """Ask the parent's model the questions of one benchmark and return its scores."""
        question, loaded = self._questions[number], self._loaded[number]
        asked = Counting(self._parent, speaker, _requests(loaded, question.limit))
        try:
            results = evaluate(
                asked,
                loaded,
                limit=question.limit,
                bootstrap_iters=_BOOTSTRAPS,
                log_samples=False,
            )
        except _UNREADABLE as error:
            raise BadRequestError(
                f"{question.field}: {question.task} cannot be asked: {_sentence(error)}",
                reason=FailureReason.UNUSABLE_DATASET,
            ) from error
        return list(scores(question, list(loaded["tasks"]), results))


class Counting(Asked):
    """Tells the parent first how many requests there will be, as far as that is known."""

    def __init__(self, parent: Parent, speaker: Speaker, total: int) -> None:
        """Ask `parent`, about `total` times."""
        super().__init__(parent, speaker)
        parent.event("total", total)


def _requests(loaded: Mapping[str, Any], limit: int | None) -> int:
    """Return about how many requests a benchmark makes: its questions, by the choices of each."""
    total = 0
    for task in loaded["tasks"].values():
        count = len(task.eval_docs)
        count = count if limit is None else min(limit, count)
        choices = 1
        if task.OUTPUT_TYPE == "multiple_choice" and count:
            choices = len(task.doc_to_choice(task.eval_docs[0]))
        total += count * choices
    return total


def _add(index: dict[str, Entry], name: str, config: dict[str, Any], scratch: str) -> None:
    """Put an own task or group into the harness's index.

    One that the harness knows, without an output_type, only replaces what it says: where its data
    are, for a network that does not reach the Hub.
    """
    _require_known(name, config)
    if isinstance(config.get("dataset_kwargs"), dict):
        config = {**config, "dataset_kwargs": {**config["dataset_kwargs"], "cache_dir": scratch}}
    known = index.get(name)
    if "output_type" not in config and known is not None and known.yaml_path is not None:
        config = {**load_yaml(known.yaml_path, resolve_func=True), **config}
    kind = Kind.GROUP if "group" in config else Kind.TASK
    tags = config.get("tag") or []
    index[name] = Entry(name=name, kind=kind, yaml_path=None, cfg=deepcopy(config))
    for tag in [tags] if isinstance(tags, str) else tags:
        entry = index.setdefault(tag, Entry(name=tag, kind=Kind.TAG, yaml_path=None))
        entry.tags.add(name)


def _require_number(question: Question, entry: Entry) -> None:
    """Refuse a gate on what stands for several tasks and has no number of its own."""
    config = entry.cfg or {}
    match entry.kind:
        case Kind.TAG:
            kind, members = "a tag", sorted(entry.tags)
        case Kind.GROUP if not config.get("aggregate_metric_list"):
            listed = config.get("task") or ()
            kind = "a group without an aggregate"
            members = [str(one.get("task")) if isinstance(one, dict) else one for one in listed]
        case _:
            return
    more = len(members) - _MEMBERS_NAMED
    named = ", ".join(members[:_MEMBERS_NAMED]) + (f" and {more} more" if more > 0 else "")
    raise BadRequestError(
        f"{question.gate}: {question.task} is {kind}, which has no number that a gate could hold, "
        f"only its tasks have: {named}",
        advice="name tasks by themselves in spec.evaluation.benchmarks, each in a gate of its own",
    )


def _require_known(name: str, config: Mapping[str, Any]) -> None:
    """Refuse a metric or filter that is not the harness's own: it would be downloaded as code."""
    for kind, value, known in (*_named_metrics(name, config), *_named_filters(config)):
        if not isinstance(value, str) or value not in known:
            raise _refusal(
                name, f"names the {kind} {value!r}; the harness has {', '.join(sorted(known))}"
            )
    for member in config["task"] if isinstance(config.get("task"), list) else ():
        if isinstance(member, dict):
            _require_known(name, member)


def _named_metrics(
    name: str, config: Mapping[str, Any]
) -> Iterator[tuple[str, object, Iterable[str]]]:
    for word in ("metric_list", "aggregate_metric_list"):
        for one in config.get(word) or ():
            if not isinstance(one, dict) or "hf_evaluate" in one:
                raise _refusal(name, f"{word} must list metrics, without hf_evaluate")
            yield "metric", one.get("metric"), METRIC_REGISTRY
            if "aggregation" in one:
                yield "aggregation", one["aggregation"], AGGREGATION_REGISTRY


def _named_filters(config: Mapping[str, Any]) -> Iterator[tuple[str, object, Iterable[str]]]:
    known = set(FILTER_REGISTRY) - {"custom"}
    for one in config.get("filter_list") or ():
        for step in (one.get("filter") if isinstance(one, dict) else None) or ():
            yield "filter", step.get("function") if isinstance(step, dict) else None, known


def _refusal(name: str, what: str) -> BadRequestError:
    return BadRequestError(f"{_OWN_FIELD}: {name} {what}", reason=FailureReason.UNUSABLE_DATASET)


def _confine_templates() -> None:
    """Let templates reach nothing but their values: the harness would render them as they come."""
    before = lm_eval.utils.env
    confined = SandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True)
    confined.filters.update(before.filters)
    lm_eval.utils.env = confined


def _sentence(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else f"{text[:300]}..."  # noqa: PLR2004 - a long sentence


def main() -> None:
    """Serve until the parent is gone. Arguments: socket, parent's pid, scratch."""
    scratch = sys.argv[3]
    # A task whose data set is named like a folder of the working directory would read that.
    os.chdir(scratch)
    logging.basicConfig(level=logging.ERROR)
    serve(sys.argv[1:], lambda parent: Work(parent, scratch).operations())


if __name__ == "__main__":
    main()
