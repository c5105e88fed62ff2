"""The digest that names a run: the same for the same work, however the manifest spells it.

In: the model (address, revision, endpoint, what code it may run), the method with its effective
parameters, the goal of Auto, the device, calibration, evaluation, gates, onGateFailure and output.
Defaults are written out, decimals have their shortest form, and lists whose order means nothing
(types, ignore, skip, gates) are sorted.

Out: pod, memory, suspend, backoffLimit, deadlines, TTL and how often checkpoints are left, which
change how a run goes and not what comes out; and secretRefs and regions, since a rotated or renamed
Secret opens the same bytes.

What is hashed is part of the API: another text for an old spec renames its artifact and starts
every job again when an operator is upgraded. A field that is new, and at its default, must
therefore be left out; a test holds old digests.
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import TYPE_CHECKING, Any, Final

from kubequant.api.enums import Method
from kubequant.api.evaluation import Performance
from kubequant.api.fields import DECIMAL, plain_decimal

if TYPE_CHECKING:
    from kubequant.api.data import Dataset, ModelSource, Output, TaskFiles
    from kubequant.api.evaluation import Evaluation, Gate
    from kubequant.api.spec import QuantizationJobSpec
    from kubequant.api.student import Student

_DECIMAL: Final = re.compile(DECIMAL)


def run_digest(spec: QuantizationJobSpec) -> str:
    """Return eight hexadecimal digits that name what `spec` asks for.

    They begin the SHA-256 of the canonical JSON of `identity`.
    """
    text = json.dumps(identity(spec), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("ascii")).hexdigest()[:8]


def identity(spec: QuantizationJobSpec) -> dict[str, Any]:
    """Return the JSON value that is hashed: all that decides what comes out, and nothing else."""
    evaluation = spec.evaluation
    return {
        "model": _model(spec.model),
        "method": spec.method.value,
        "parameters": None if spec.method is Method.AUTO else _parameters(spec),
        "goal": None if spec.goal is None else spec.goal.to_json(),
        "device": spec.effective_device().value,
        "calibration": {
            **spec.calibration.model_dump(mode="json"),
            "dataset": _dataset(spec.calibration.dataset),
        },
        "evaluation": _evaluation(evaluation),
        "gates": sorted((_gate(gate) for gate in spec.gates), key=json.dumps),
        "onGateFailure": spec.on_gate_failure.value,
        "output": _output(spec.output),
    }


def _model(model: ModelSource) -> dict[str, Any]:
    return {
        "uri": model.uri.rstrip("/"),
        "revision": model.effective_revision,
        "endpoint": model.s3.endpoint if model.s3 else "",
        "trustRemoteCode": model.trust_remote_code,
        "allowPickle": model.allow_pickle,
    }


def _evaluation(evaluation: Evaluation) -> dict[str, Any]:
    written = {
        **evaluation.model_dump(mode="json", exclude={"task_files"}),
        "perplexity": {
            **evaluation.perplexity.model_dump(mode="json"),
            "dataset": _dataset(evaluation.perplexity.dataset),
        },
        "skip": sorted(evaluation.skip),
    }
    sizes = evaluation.performance.batch_sizes
    written["performance"].pop("batchSizes")
    if sizes != Performance().batch_sizes:
        written["performance"]["batchSizes"] = sorted(sizes)
    if evaluation.task_files is not None:
        written["taskFiles"] = _task_files(evaluation.task_files)
    return written


def _task_files(files: TaskFiles) -> dict[str, Any]:
    return {
        "uri": files.uri.rstrip("/"),
        "revision": files.effective_revision,
        "endpoint": files.s3.endpoint if files.s3 else "",
    }


def _dataset(dataset: Dataset | None) -> dict[str, Any] | None:
    if dataset is None:
        return None
    return {
        "uri": dataset.uri.rstrip("/"),
        "revision": dataset.effective_revision,
        "split": dataset.effective_split,
        "textField": dataset.effective_text_field,
        "messagesField": dataset.messages_field,
        "endpoint": dataset.s3.endpoint if dataset.s3 else "",
    }


def _parameters(spec: QuantizationJobSpec) -> dict[str, Any]:
    written = spec.parameters().to_json()
    # How often a checkpoint is left changes how a run goes, as deadlines do.
    written.pop("checkpointSeconds", None)
    student = spec.distill.student if spec.distill else None
    if student is not None:
        written["student"] = _student(student)
    if written.get("build") == "Engine":
        del written["build"]
    for name, value in written.items():
        if isinstance(value, str) and _DECIMAL.fullmatch(value):
            written[name] = plain_decimal(value)
        elif name in {"types", "ignore"}:
            written[name] = sorted(value)
    return written


def _student(student: Student) -> dict[str, Any]:
    source = student.source()
    if source is None:
        return {"keepLayers": student.keep_layers}
    written = {"uri": source.uri.rstrip("/")}
    # The first form of this member had an address alone.
    if source.effective_revision not in {None, "main"}:
        written["revision"] = str(source.effective_revision)
    if source.s3 is not None and source.s3.endpoint:
        written["endpoint"] = source.s3.endpoint
    return written


def _gate(gate: Gate) -> list[str | None]:
    limits = [None if limit is None else plain_decimal(limit) for limit in (gate.max, gate.min)]
    task = [] if gate.task is None else [gate.task]
    return [gate.metric.value, *limits, gate.variant.value if gate.variant else None, *task]


def _output(output: Output) -> dict[str, str]:
    return {
        "uri": output.uri.rstrip("/"),
        "endpoint": output.s3.endpoint if output.s3 else "",
        "serverSideEncryption": output.s3.server_side_encryption if output.s3 else "",
        "kmsKeyId": output.s3.kms_key_id if output.s3 else "",
    }
