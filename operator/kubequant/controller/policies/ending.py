"""A pod that is being deleted and not yet gone: who ends it, and what keeps it.

An evictor, a drain or a person deletes it, and its node has the grace period to end it. A node that
does not answer never says that it did: then the pod reads as running for ever, and no other follows
(`podReplacementPolicy: Failed`), since two could publish at once.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Final

from kubequant.controller.conditions import Standing, Verdict
from kubequant.controller.reasons import Reason

if TYPE_CHECKING:
    from datetime import datetime

    from kubequant.controller.case import Case
    from kubequant.controller.observe import PodView

_LATE: Final = timedelta(seconds=30)
"""After its time to end a kubelet takes this long to say so, or its clock is behind ours."""
ADVICE: Final = (
    "See whether the node works (kubectl get node, kubectl describe pod); where it is gone for "
    "good, delete it, or delete the pod with --force."
)


def disrupted(case: Case, pod: PodView) -> Verdict:
    """Return the verdict while a pod is being deleted."""
    follows = "Another follows when it is gone, which does not count against backoffLimit."
    way_out = f" {ADVICE}" if _is_late(case, pod) else ""
    words = f"{sentence(case, pod)} {follows}{way_out}"
    return Verdict(Standing.WORKING, Reason.DISRUPTED, words)


def sentence(case: Case, pod: PodView) -> str:
    """Return what becomes of a pod that is being deleted."""
    node = f" on node {pod.node}" if pod.node else ""
    why = f" ({pod.why})" if pod.why else ""
    if not _is_late(case, pod) or pod.gone_by is None:
        return f"The pod {pod.name}{node} is being deleted{why}."
    return (
        f"The pod {pod.name}{node} is being deleted{why} and was to be gone by "
        f"{pod.gone_by:%Y-%m-%dT%H:%M:%SZ}: its node does not answer, or a finalizer keeps the pod."
    )


def late_from(pod: PodView) -> datetime | None:
    """Return when a pod that is being deleted should long be gone; None of any other."""
    return pod.gone_by and pod.gone_by + _LATE


def _is_late(case: Case, pod: PodView) -> bool:
    late = late_from(pod)
    return late is not None and case.now >= late
