"""What a user may reach through us, held against what the administrator allowed.

Whoever may create a QuantizationJob makes the operator create a pod with Secrets of the namespace
in it. It must not hand out more than the user has, so what runs in that pod is ours alone: no code
of a model's, no service account that is not listed, no variable by which a program loads other code
or sends a credential elsewhere.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from kubequant.controller.reasons import Reason, Refusal

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kubequant.api.spec import Pod, QuantizationJobSpec
    from kubequant.controller.settings import Settings

LOADS_CODE: Final = re.compile(
    r"LD_.*|PYTHON.*|PATH|BASH_ENV|ENV|GCONV_PATH|OPENSSL_.*|GGML_BACKEND_.*|CUDA_INJECTION.*"
    r"|NVIDIA_.*"
    r"|HOME|TMPDIR|TMP|TEMP|HF_HOME|XDG_.*"
    r"|AWS_CONFIG_FILE|AWS_SHARED_CREDENTIALS_FILE|AWS_DATA_PATH|AWS_PROFILE|BOTO_CONFIG"
)
"""Variables by which a program loads other code or settings, or, for NVIDIA's container runtime,
gets GPUs that it did not ask for; and the folders that we set ourselves. AWS's settings files can
name a program to run."""

LEADS_ELSEWHERE: Final = re.compile(
    r"HF_(HUB_|INFERENCE_)?ENDPOINT|AWS_ENDPOINT_URL.*|AWS_(CONTAINER|EC2|WEB_IDENTITY|ROLE)_.*"
    r"|.*_CA_BUNDLE|SSL_CERT_(FILE|DIR)|SSLKEYLOGFILE"
)
"""Variables by which a credential could be sent to, or read by, a server of the user's choice."""

# The Job controller writes these labels, and its selector counts on them.
_JOB_CONTROLLERS_LABELS: Final = frozenset({"job-name", "controller-uid"})


def refusal(spec: QuantizationJobSpec, settings: Settings) -> Refusal | None:
    """Return one refusal that names everything that is not permitted, or None."""
    found = list(_refusals(spec, settings))
    if not found:
        return None
    return Refusal(
        Reason.NOT_PERMITTED,
        "; ".join(found),
        "Remove it from the manifest, or ask the operator's administrator to allow it.",
    )


def _refusals(spec: QuantizationJobSpec, settings: Settings) -> Iterator[str]:
    if spec.model.trust_remote_code and not settings.allow_remote_code:
        yield "spec.model.trustRemoteCode: the administrator does not allow code of models to run"
    if spec.model.allow_pickle and not settings.allow_pickle:
        yield (
            "spec.model.allowPickle: the administrator does not allow pickled weights, which can "
            "run code"
        )
    yield from _of_the_pod(spec.pod, settings)
    has_credentials = bool(secret_names(spec)) or bool(spec.pod.service_account_name)
    for variable in spec.pod.env:
        if variable.name in settings.allowed_env:
            continue
        if LOADS_CODE.fullmatch(variable.name):
            yield (
                f"spec.pod.env: {variable.name} decides which code the worker runs or which device "
                "it sees, and is kubequant's to set"
            )
        elif has_credentials and LEADS_ELSEWHERE.fullmatch(variable.name):
            yield (
                f"spec.pod.env: {variable.name} could send the run's credentials to another "
                "server, and the administrator does not list it"
            )


def _of_the_pod(pod: Pod, settings: Settings) -> Iterator[str]:
    account = pod.service_account_name
    if account not in {"", "default", *settings.allowed_service_accounts}:
        yield (
            f"spec.pod.serviceAccountName: {account} is not among the service accounts that the "
            "administrator lists"
        )
    if pod.priority_class_name.startswith("system-"):
        yield (
            f"spec.pod.priorityClassName: {pod.priority_class_name} is for the cluster's own pods"
        )
    for label in sorted(_JOB_CONTROLLERS_LABELS & set(pod.labels)):
        yield f"spec.pod.labels: {label} is the Job controller's"


def secret_names(spec: QuantizationJobSpec) -> dict[str, str]:
    """Return the Secret of each role that has one; the roles are the keys of `by_role`."""
    calibration, evaluation = spec.calibration.dataset, spec.evaluation.perplexity.dataset
    tasks = spec.evaluation.task_files
    by_role = {
        "model": spec.model.secret_ref,
        "calibration": calibration.secret_ref if calibration else None,
        "evaluation": evaluation.secret_ref if evaluation else None,
        "tasks": tasks.secret_ref if tasks else None,
        "output": spec.output.secret_ref,
    }
    return {role: secret.name for role, secret in by_role.items() if secret is not None}
