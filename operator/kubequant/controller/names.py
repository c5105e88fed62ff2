"""Names, labels and annotations: all of them functions of the resource, none of them chosen twice.

Two passes, or two operators, that want the same object therefore name it alike.
"""

from __future__ import annotations

import hashlib
from typing import Final

CONTAINER: Final = "worker"

MANAGED_BY_LABEL: Final = "app.kubernetes.io/managed-by"
MANAGER: Final = "kubequant"
SELECTOR: Final = f"{MANAGED_BY_LABEL}={MANAGER}"
"""What the operator watches of Jobs and Pods."""

NAME_LABEL: Final = "kubequant.dev/name"
DIGEST_LABEL: Final = "kubequant.dev/digest"
METHOD_LABEL: Final = "kubequant.dev/method"

TEMPLATE_ANNOTATION: Final = "kubequant.dev/template-digest"
"""What the Job was made from: the live Job is not compared, since queues write to it."""
GENERATION_ANNOTATION: Final = "kubequant.dev/generation"
"""The resource's generation when the Job was made."""
MEMORY_ANNOTATION: Final = "kubequant.dev/memory-raised"
"""Says "true" on the Job that follows one that ran out of memory."""
HANDED_ON_ANNOTATION: Final = "kubequant.dev/handed-on"
"""The labels that the Job got of its resource: webhooks may add more of them to the Job itself."""

QUEUE_NAME_LABEL: Final = "kueue.x-k8s.io/queue-name"
HANDED_ON: Final = (
    QUEUE_NAME_LABEL,
    "kueue.x-k8s.io/priority-class",
    "kueue.x-k8s.io/max-exec-time-seconds",
)
"""Labels of the resource that its Job gets too."""


def job_name(name: str, digest: str) -> str:
    """Return the name of the Job of a run: at most 63 characters for a name of at most 54."""
    return f"{name}-{digest}"


def run_labels(name: str, digest: str, method: str) -> dict[str, str]:
    """Return the labels of a run's Job and pods."""
    return {
        "app.kubernetes.io/name": "kubequant-worker",
        MANAGED_BY_LABEL: MANAGER,
        NAME_LABEL: name,
        DIGEST_LABEL: digest,
        METHOD_LABEL: method,
    }


def handed_on(labels: dict[str, str]) -> dict[str, str]:
    """Return those of a resource's labels that its Job gets too."""
    return {name: labels[name] for name in HANDED_ON if name in labels}


def labels_text(labels: dict[str, str]) -> str:
    """Return labels as one line, as a selector has them."""
    return ",".join(f"{name}={value}" for name, value in sorted(labels.items()))


def claim_volume(claim: str) -> str:
    """Return the volume's name for a claim, whose own name may be too long or hold dots."""
    return f"claim-{hashlib.sha256(claim.encode()).hexdigest()[:10]}"


def credentials_volume(role: str) -> str:
    """Return the volume's name for the credentials of a role: model, calibration, ..."""
    return f"credentials-{role}"
