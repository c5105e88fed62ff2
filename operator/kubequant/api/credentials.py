"""Which Secrets a spec names, by the role that each is for.

Operator and worker both ask here: the one to mount them, the other to say which is missing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kubequant.api.spec import QuantizationJobSpec

SECRET_FIELDS = {
    "model": "spec.model.secretRef",
    "student": "spec.distill.student.secretRef",
    "calibration": "spec.calibration.dataset.secretRef",
    "evaluation": "spec.evaluation.perplexity.dataset.secretRef",
    "tasks": "spec.evaluation.taskFiles.secretRef",
    "output": "spec.output.secretRef",
}
"""The field that names each role's Secret."""


def secret_names(spec: QuantizationJobSpec) -> dict[str, str]:
    """Return the Secret of each role that has one; the roles are the keys of `SECRET_FIELDS`."""
    calibration, evaluation = spec.calibration.dataset, spec.evaluation.perplexity.dataset
    tasks, student = spec.evaluation.task_files, spec.student_source()
    by_role = {
        "model": spec.model.secret_ref,
        "student": student.secret_ref if student else None,
        "calibration": calibration.secret_ref if calibration else None,
        "evaluation": evaluation.secret_ref if evaluation else None,
        "tasks": tasks.secret_ref if tasks else None,
        "output": spec.output.secret_ref,
    }
    return {role: secret.name for role, secret in by_role.items() if secret is not None}
