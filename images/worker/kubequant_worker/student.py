"""The student of method Distill as a run finds it: looked at before anything large moves, fetched.

Whether it fits its teacher is told from small files. How it learns is `methods.distill`'s.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kubequant.api.enums import Method
from kubequant_worker.methods import STUDENT
from kubequant_worker.methods.student_layers import FIELD, cut_of, require_layers, student_bytes
from kubequant_worker.methods.vocabulary import require_same_files
from kubequant_worker.sources import fetch_model, fetch_small_files, inspect_model
from kubequant_worker.sources.leftovers import bytes_there
from kubequant_worker.sources.model_folder import model_config, require_unquantized

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any

    from kubequant.api.spec import QuantizationJobSpec
    from kubequant_worker.layout import Layout
    from kubequant_worker.progress import StageProgress
    from kubequant_worker.sources import FetchedModel, ModelListing


class Student:
    """The student that a spec asks for, with its files in a folder of its own."""

    def __init__(self, spec: QuantizationJobSpec, layout: Layout) -> None:
        """Look for the student of `spec`, where it has one; touches nothing yet."""
        self._spec = spec
        self._source = spec.student_source()
        self._teacher = layout.scratch / "model"
        self.folder: Path = layout.scratch / "student"
        self._revision: str | None = None
        self.bytes_there = 0
        """What of a student of its own takes no more room, once `inspect` has looked."""
        self._where: dict[str, Any] = {
            "credentials": layout.credentials,
            "volumes": layout.volumes,
        }

    def inspect(self, teacher: ModelListing) -> dict[str, int]:
        """Return the student's files, name to bytes, as `methods.Quantizer.needs` counts them.

        Empty where the spec asks for no student. One that is to be made of its teacher's layers has
        the bytes that it will have, about.

        Raises:
            WorkerError: The student is not there, is not to be opened, or does not fit its teacher.
        """
        if self._spec.method is not Method.DISTILL:
            return {}
        fetch_small_files(
            self._spec.model, into=self._teacher, revision=teacher.revision, **self._where
        )
        if self._source is not None:
            return self._inspect_own()
        student = self._spec.distill.student if self._spec.distill else None
        config = model_config(self._teacher)
        cut = cut_of(config, student.keep_layers if student else None)
        require_layers(self._teacher, [file.path for file in teacher.files], cut)
        size = student_bytes(teacher.weight_bytes, config, cut)
        return {f"{STUDENT}model.safetensors": size}

    def fetch(self, progress: StageProgress) -> FetchedModel | None:
        """Bring a student of its own into its folder; None where there is none."""
        if self._source is None:
            return None
        return fetch_model(
            self._source,
            into=self.folder,
            role="student",
            progress=progress,
            revision=self._revision,
            **self._where,
        )

    def _inspect_own(self) -> dict[str, int]:
        if self._source is None:
            return {}
        listing = inspect_model(self._source, role="student", **self._where)
        self._revision = listing.revision
        fetch_small_files(
            self._source,
            into=self.folder,
            role="student",
            revision=self._revision,
            **self._where,
        )
        require_unquantized(self.folder, FIELD)
        require_same_files(self._teacher, self.folder)
        self.bytes_there = bytes_there(listing, self.folder)
        return {f"{STUDENT}{file.path}": file.size_bytes for file in listing.files}
