"""Brings the texts of a run: what calibrates and what measures, fetched and read, or bundled.

Reading files is `datasets`' affair and fetching them `sources`'; here is decided which are meant.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from kubequant.api.contract import DatasetReport
from kubequant.api.outcome import FailureReason
from kubequant_worker.advice import DATASET_FIELDS
from kubequant_worker.chat import chat_template
from kubequant_worker.datasets import Role, bundled_text, read_dataset
from kubequant_worker.errors import BadRequestError
from kubequant_worker.overlap import require_different, require_other_files
from kubequant_worker.sources import fetch_dataset

if TYPE_CHECKING:
    from pathlib import Path

    from kubequant.api.contract import RunRequest
    from kubequant.api.spec import Dataset
    from kubequant_worker.chat import ChatTemplate
    from kubequant_worker.datasets import TextSet
    from kubequant_worker.file_digest import FileDigest
    from kubequant_worker.layout import Layout

# No language packs more text into a token than this; reading stops once maxTokens are sure.
CHARACTERS_PER_TOKEN = 16


REPORTED: dict[Role, Literal["calibration", "evaluation"]] = {
    Role.CALIBRATION: "calibration",
    Role.MEASUREMENT: "evaluation",
}


class Texts:
    """The texts of one run, by role; each is read once, when it is first asked for."""

    def __init__(self, request: RunRequest, layout: Layout, model: Path) -> None:
        """Read for `request`; `model` is the fetched model, whose chat template may be needed."""
        self._spec = request.spec
        self._layout = layout
        self._model = model
        self._read: dict[Role, TextSet] = {}
        self._revisions: dict[Role, str] = {}
        self._files: dict[Role, tuple[FileDigest, ...]] = {}

    def calibration(self) -> TextSet:
        """Return the whole text that calibrates."""
        asked = self._spec.calibration
        return self._text(
            Role.CALIBRATION, asked.dataset, templated=asked.apply_chat_template, most=None
        )

    def evaluation(self) -> TextSet:
        """Return the text that is measured on, as far as its maxTokens reach."""
        asked = self._spec.evaluation.perplexity
        most = asked.max_tokens * CHARACTERS_PER_TOKEN
        text = self._text(Role.MEASUREMENT, asked.dataset, templated=False, most=most)
        if Role.CALIBRATION in self._read and not text.bundled:
            learned = self._read[Role.CALIBRATION]
            require_other_files(
                self._files.get(Role.CALIBRATION, ()), self._files[Role.MEASUREMENT][: text.files]
            )
            require_different(learned.marks, text.marks)
        return text

    def reported(self, role: Role, *, tokens: int) -> DatasetReport:
        """Return what the report says of a text that was read."""
        text = self._read[role]
        return DatasetReport(
            role=REPORTED[role],
            bundled=text.bundled,
            uri="" if text.bundled else text.name,
            revision=self._revisions.get(role, ""),
            sha256=text.sha256,
            samples=len(text.documents),
            tokens=tokens,
        )

    def _text(
        self, role: Role, dataset: Dataset | None, *, templated: bool, most: int | None
    ) -> TextSet:
        if role not in self._read:
            self._read[role] = (
                bundled_text(role)
                if dataset is None
                else self._own_text(role, dataset, templated=templated, most=most)
            )
        return self._read[role]

    def _own_text(
        self, role: Role, dataset: Dataset, *, templated: bool, most: int | None
    ) -> TextSet:
        name = REPORTED[role]
        field = DATASET_FIELDS[name]
        fetched = fetch_dataset(
            dataset,
            into=self._layout.scratch / "datasets" / name,
            credentials=self._layout.credentials,
            role=name,
            volumes=self._layout.volumes,
        )
        self._revisions[role] = fetched.revision or ""
        self._files[role] = fetched.digests
        return read_dataset(
            fetched.files,
            dataset,
            field=field,
            template=self._template(dataset, field, templated=templated),
            most_characters=most,
        )

    def _template(self, dataset: Dataset, field: str, *, templated: bool) -> ChatTemplate | None:
        if not templated and dataset.messages_field is None:
            return None
        template = chat_template(self._model)
        if template is None:
            raise BadRequestError(
                f"{field}: its rows are to be written as chats, but the model's tokenizer has no "
                "chat template; name a text column with textField and leave applyChatTemplate out",
                reason=FailureReason.UNUSABLE_DATASET,
            )
        return template
