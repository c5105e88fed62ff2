"""What a user may reach through us, held against what the administrator allowed.

Whoever may create a QuantizationJob makes the operator create a pod with Secrets of the namespace
in it. It must not hand out more than the user has, so what runs in that pod is ours alone: no code
of a model's, no service account that is not listed, no label or annotation by which another
controller would put more into it or let it in elsewhere, and of variables only those by which no
program loads other code or sends a credential elsewhere: which others do, no list could hold.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from kubequant.controller.reasons import Reason, Refusal

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from kubequant.api.spec import Pod, QuantizationJobSpec
    from kubequant.controller.settings import Settings

HARMLESS: Final = re.compile(
    r"TZ|LANG|LANGUAGE|LC_[A-Z]+|NO_COLOR|NO_PROXY|no_proxy"
    # How much is logged; where to would be a path.
    r"|[A-Z_]+_(VERBOSITY|LOG_LEVEL)|NCCL_DEBUG|RUST_LOG|RUST_BACKTRACE"
    # How much is computed, moved or kept at once.
    r"|[A-Z]+_NUM_THREADS|NUMEXPR_MAX_THREADS|TOKENIZERS_PARALLELISM"
    r"|OMP_(DYNAMIC|PLACES|PROC_BIND|SCHEDULE|WAIT_POLICY)|GOMP_(CPU_AFFINITY|SPINCOUNT)"
    r"|KMP_(AFFINITY|BLOCKTIME)|MKL_DYNAMIC"
    r"|MALLOC_(ARENA_MAX|MMAP_THRESHOLD_|TRIM_THRESHOLD_)"
    r"|PYTORCH_((CUDA|HIP)_)?ALLOC_CONF|CUDA_(DEVICE_ORDER|LAUNCH_BLOCKING|MODULE_LOADING)"
    r"|NCCL_(IB|P2P|SHM)_DISABLE"
    # How the Hub and S3 are asked, not where.
    r"|HF_HUB_(DOWNLOAD_TIMEOUT|ETAG_TIMEOUT|ENABLE_HF_TRANSFER|OFFLINE)"
    r"|HF_HUB_DISABLE_(EXPERIMENTAL_WARNING|PROGRESS_BARS|SYMLINKS(_WARNING)?|TELEMETRY|XET)"
    r"|HF_XET_(HIGH_PERFORMANCE|NUM_[A-Z_]+)|DO_NOT_TRACK"
    r"|AWS_(DEFAULT_)?REGION|AWS_(MAX_ATTEMPTS|RETRY_MODE|STS_REGIONAL_ENDPOINTS)"
    r"|AWS_USE_(DUALSTACK|FIPS)_ENDPOINT"
    r"|AWS_METADATA_SERVICE_(NUM_ATTEMPTS|TIMEOUT)"
    r"|AWS_(REQUEST_CHECKSUM_CALCULATION|RESPONSE_CHECKSUM_VALIDATION)"
)
"""Variables that every spec may set: no value of theirs makes a program load other code or
settings, reach another server, write elsewhere or get a device that it did not ask for. What is not
named here may do so in some library (a compiler, a plugin, a cache of compiled code)."""

LEADS_ELSEWHERE: Final = re.compile(
    r"HF_(HUB_|INFERENCE_)?ENDPOINT|AWS_ENDPOINT_URL.*|AWS_(CONTAINER|EC2|WEB_IDENTITY|ROLE)_.*"
    r"|.*_CA_BUNDLE|SSL_CERT_(FILE|DIR)|SSLKEYLOGFILE|(?i:(ALL|FTP|HTTPS?)_PROXY)"
)
"""Variables by which a credential could be sent to, or read by, a server of the user's choice. A
spec that names no Secret has some all the same where the cluster gives the pod a cloud identity by
its namespace's default service account."""

_ALLOWED_ENV: Final = "KUBEQUANT_OPERATOR_ALLOWED_ENV"
_ALLOWED_ANNOTATIONS: Final = "KUBEQUANT_OPERATOR_ALLOWED_ANNOTATIONS"
_ALLOWED_LABELS: Final = "KUBEQUANT_OPERATOR_ALLOWED_LABELS"
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
    # Injectors take a container's image from some annotations, and cloud agents a role; labels give
    # an identity or a sidecar too, or let a Service or a network policy select the pod.
    labels = spec.pod.labels.keys() - _JOB_CONTROLLERS_LABELS
    yield from _unlisted("labels", labels, settings.allowed_labels, _ALLOWED_LABELS)
    annotations = spec.pod.annotations.keys()
    yield from _unlisted(
        "annotations", annotations, settings.allowed_annotations, _ALLOWED_ANNOTATIONS
    )
    yield from _of_the_environment(spec.pod, settings)


def _of_the_environment(pod: Pod, settings: Settings) -> Iterator[str]:
    names = [one.name for one in pod.env if not _is_listed(one.name, settings.allowed_env)]
    elsewhere = [name for name in names if LEADS_ELSEWHERE.fullmatch(name)]
    unknown = [name for name in names if name not in elsewhere and not HARMLESS.fullmatch(name)]
    if elsewhere:
        yield (
            f"spec.pod.env: {', '.join(elsewhere)} could send credentials of the run, or "
            "of the namespace's service account, to another server, and the administrator does "
            f"not list {_them(elsewhere)} in {_ALLOWED_ENV}"
        )
    if unknown:
        yield (
            f"spec.pod.env: {', '.join(unknown)} {_are(unknown)} not among "
            f"the variables that a run may set, and the administrator does not list "
            f"{_them(unknown)} in {_ALLOWED_ENV}"
        )


def _unlisted(
    what: str, keys: Iterable[str], listed: tuple[str, ...], variable: str
) -> Iterator[str]:
    unlisted = sorted(key for key in keys if not _is_listed(key, listed))
    if unlisted:
        yield (
            f"spec.pod.{what}: {', '.join(unlisted)} {_are(unlisted)} not among the {what} that "
            f"the administrator lists in {variable}"
        )


def _is_listed(name: str, patterns: tuple[str, ...]) -> bool:
    return any(
        name.startswith(one.removesuffix("*")) if one.endswith("*") else name == one
        for one in patterns
    )


def _are(names: list[str]) -> str:
    return "is" if len(names) == 1 else "are"


def _them(names: list[str]) -> str:
    return "it" if len(names) == 1 else "them"


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
