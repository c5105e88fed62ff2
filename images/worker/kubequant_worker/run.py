"""One run: the stages in their order. What each stage does lives in its own module.

Nothing here knows signals, exit codes or how progress is shown; that is `runner`'s and `sinks`'.
"""

from __future__ import annotations

import logging
import os
import time
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from kubequant.api.contract import Artifact, Failure, RunReport, StageTiming
from kubequant.api.enums import Measurement
from kubequant.api.fields import decimal_text
from kubequant.api.outcome import ExitCode, FailureReason, Outcome, Stage
from kubequant.api.problems import parse_json
from kubequant_worker.attempts import Attempts, largest_needs, possible_courses
from kubequant_worker.benchmarks.harness import MEMORY_BYTES as HARNESS_BYTES
from kubequant_worker.benchmarks.harness import Harness, own_tasks
from kubequant_worker.card import model_card
from kubequant_worker.errors import WorkerError
from kubequant_worker.escalation import Escalation
from kubequant_worker.evaluation.meter import Portion
from kubequant_worker.examination import Examination
from kubequant_worker.manifest import Manifest
from kubequant_worker.methods import CHECKPOINTED, Workspace, installed_engines, quantizer
from kubequant_worker.methods.cpu import thread_count
from kubequant_worker.methods.memory import available_bytes
from kubequant_worker.page import PAGE_NAME, report_page
from kubequant_worker.preflight import check_room, refuse_what_is_missing, require_secrets
from kubequant_worker.provenance import statement
from kubequant_worker.record import Record, failure_of, now
from kubequant_worker.redaction import Redactor
from kubequant_worker.sources import fetch_model, inspect_model
from kubequant_worker.sources.leftovers import bytes_there
from kubequant_worker.sources.model_folder import architecture
from kubequant_worker.stores import (
    AlreadyPublishedError,
    Place,
    open_checkpoints,
    open_failed,
    open_shelf,
    open_store,
)
from kubequant_worker.student import Student
from kubequant_worker.texts import Texts
from kubequant_worker.uploaded import UploadedBytes

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from kubequant.api.contract import RunRequest
    from kubequant_worker.attempts import Course
    from kubequant_worker.layout import Layout
    from kubequant_worker.methods import Quantizer
    from kubequant_worker.progress import Progress, StageProgress
    from kubequant_worker.stores import Publication, Published, Store


_log = logging.getLogger(__name__)
# Failures whose numbers are worth reading.
_REPORTED = frozenset({FailureReason.GATE_FAILED, FailureReason.VERIFICATION_FAILED})


@dataclass(frozen=True, slots=True)
class _Chosen:
    """The engine at work, what ends it, and all that the run may come to do."""

    engine: Quantizer
    engines: ExitStack
    escalation: Escalation
    courses: tuple[Course, ...]

    @property
    def calibrates(self) -> bool:
        """Whether a text may be learned from."""
        return any(method.calibrates(spec) for method, spec in self.courses)


class Run:
    """One run from Preflight to Reporting. `record` holds what is known at any moment."""

    def __init__(self, request: RunRequest, layout: Layout, progress: Progress) -> None:
        """Prepare to run `request`; touches nothing yet."""
        self.record = Record(request)
        self._request = request
        self._spec = request.spec
        self._layout = layout
        self._progress = progress
        self._redactor = Redactor.of_run(layout.credentials, os.environ)
        self._uploaded = UploadedBytes()
        self._student = Student(request.spec, layout)
        output = request.spec.output
        self._place = Place(output.uri, output.s3, layout.credentials / "output", layout.volumes)
        self._checkpoints = open_checkpoints(self._place, name=request.name, digest=request.digest)
        self._work = Workspace(
            spec=request.spec,
            model=layout.scratch / "model",
            scratch=layout.scratch / "method",
            artifact=layout.scratch / "artifact",
            name=request.name,
            threads=thread_count(),
            student=self._student.folder,
            fetched=self.record.fetched,
            checkpoints=self._checkpoints,
        )
        self._harness = Harness(self._spec, layout.scratch, self._work.threads)

    def execute(self) -> RunReport:
        """Run all stages and return the report of a published artifact.

        Raises:
            WorkerError: The run cannot be finished; `record` has what it found out until then.
        """
        try:
            with ExitStack() as opened:
                return self._execute(opened)
        except AlreadyPublishedError as found:
            return self._already_published(found)
        finally:
            self._harness.close()
            self._checkpoints.close()

    def _execute(self, opened: ExitStack) -> RunReport:
        self._layout.clear()
        with self._stage(Stage.PREFLIGHT) as progress:
            free_bytes = available_bytes()
            chosen = self._choose(opened)
            store = opened.enter_context(closing(self._store()))
            self._preflight(store, chosen.courses, free_bytes, progress)
        shelf = opened.enter_context(closing(open_shelf(self._place)))
        with store.claim(
            on_bytes=self._uploaded.count, on_wait=lambda text: progress.advance(0, text)
        ) as publication:
            try:
                return self._produce(chosen, publication, shelf.reports(self._request.name))
            except WorkerError as error:
                # While the claim is held, so that no other run of this digest writes there.
                self._leave_report(error)
                raise

    def _choose(self, opened: ExitStack) -> _Chosen:
        """Choose an engine and start it.

        What it imports takes seconds, which pass while stores are asked and files fetched.
        """
        require_secrets(self._spec, self._layout.credentials)
        refuse_what_is_missing(self._spec)
        method, choice = quantizer(self._spec)
        self.record.engine_reason = choice.reason
        escalation = Escalation(self._spec, choice.name, installed_engines())
        courses = tuple(possible_courses(self._spec, escalation))
        engines = opened.enter_context(ExitStack())
        return _Chosen(engines.enter_context(method(self._work)), engines, escalation, courses)

    def _store(self) -> Store:
        return open_store(self._place, name=self._request.name, digest=self._request.digest)

    def _preflight(
        self, store: Store, courses: Sequence[Course], free_bytes: int, progress: StageProgress
    ) -> None:
        """Refuse what cannot end well, before any gigabyte moves."""
        progress.set_total(3)
        progress.advance(1, f"asking {store.uri}")
        store.require_unpublished()
        self.record.warnings += store.probe().notes
        progress.advance(1, f"asking {self._spec.model.uri}")
        listing = inspect_model(
            self._spec.model, credentials=self._layout.credentials, volumes=self._layout.volumes
        )
        self.record.revision = listing.revision or ""
        self.record.engine = courses[0][0].engine()
        self.record.threads = self._work.threads
        files = {file.path: file.size_bytes for file in listing.files}
        files |= self._student.inspect(listing)
        needs = largest_needs(courses, files)
        there = bytes_there(listing, self._work.model) + self._student.bytes_there
        needs = replace(needs, scratch_bytes=needs.scratch_bytes - there)
        if self._harness.is_asked:
            progress.advance(0, "looking up benchmarks")
            self._harness.look_up(own_tasks(self._spec, self._layout))
            needs = needs.with_memory(HARNESS_BYTES)
        scratch = self._layout.scratch
        self.record.warnings += check_room(needs, self._spec.memory, scratch, free_bytes)
        progress.advance(1, "space, memory and credentials are there")

    def _produce(
        self, chosen: _Chosen, publication: Publication, earlier: Iterable[tuple[str, bytes]]
    ) -> RunReport:
        """Make, measure and publish the artifact. `earlier` are other runs' reports."""
        for folder in (self._work.scratch, self._work.artifact):
            folder.mkdir(parents=True, exist_ok=True)
        texts = Texts(self._request, self._layout, self._work.model)
        examination = Examination(
            self._spec, self.record, texts, self._harness, self._layout.scratch, earlier=earlier
        )
        # What may yet be replaced by another setting is not uploaded before the gates hold.
        climbs = bool(chosen.escalation.possible)
        attempts = Attempts(
            self._work,
            chosen.escalation,
            self.record,
            texts,
            examination,
            stage=self._stage,
            on_timed=lambda engine: None if climbs else self._upload(engine, publication),
        )
        with chosen.engines as engines:
            self._fetch(examination, texts, calibrates=chosen.calibrates)
            self._measure(chosen.engine, examination)
            engine = attempts.carry_out(chosen.engine, engines)
            if climbs:
                self._upload(engine, publication)
        self._publish(publication)
        return self._finish(publication)

    def _fetch(self, examination: Examination, texts: Texts, *, calibrates: bool) -> None:
        with self._stage(Stage.FETCHING) as progress:
            self.record.source = fetch_model(
                self._spec.model,
                into=self._work.model,
                credentials=self._layout.credentials,
                volumes=self._layout.volumes,
                progress=progress,
                revision=self.record.revision or None,
            )
            self.record.fetched["model"] = self.record.source
            if (student := self._student.fetch(progress)) is not None:
                self.record.fetched["student"] = student
            self.record.architecture = architecture(self._work.model)
            if calibrates:
                texts.calibration()
            if examination.measures(Measurement.PERPLEXITY):
                texts.evaluation()
            if self._harness.is_asked:
                self._harness.load(lambda task: progress.advance(0, f"questions of {task}"))

    def _measure(self, engine: Quantizer, examination: Examination) -> None:
        """Make the original measurable, check that this lost nothing, and measure it."""
        with self._stage(Stage.MEASURING, 3) as progress:
            convert, check, measure = (Portion(progress, 1) for _ in range(3))
            baseline = engine.baseline(convert)
            convert.finish()
            self.record.warnings += engine.check_baseline(check)
            check.finish()
            examination.original(engine, baseline, measure)
            measure.finish()

    def _upload(self, engine: Quantizer, publication: Publication) -> None:
        """Start to upload every file; nothing of it is visible before the manifest is committed."""
        names = [path for variant in self.record.variants for path in variant.produced.files]
        for path in (*names, *engine.shared_files()):
            publication.add(self._work.artifact / path, path.as_posix())

    def _publish(self, publication: Publication) -> None:
        total = sum(
            path.stat().st_size for path in self._work.artifact.rglob("*") if path.is_file()
        )
        with (
            self._stage(Stage.PUBLISHING) as progress,
            self._uploaded.shown_in(progress, total),
        ):
            self.record.files = publication.uploaded()

    def _finish(self, publication: Publication) -> RunReport:
        """Write the documents, publish them, and the manifest last."""
        artifact = Artifact(uri=publication.uri, report_uri=f"{publication.uri}report.json")
        with self._stage(Stage.REPORTING):
            report = self._published_report(artifact)
            documents = {
                "report.json": report_json(report),
                PAGE_NAME: report_page(report),
                "README.md": model_card(report),
                "provenance.json": statement(report),
            }
            for name, content in documents.items():
                publication.add_bytes(self._redactor.clean_bytes(content), name)
            engine = next((one.engine_detail for one in report.variants), None)
            files = publication.uploaded()
            manifest = Manifest.of(self._request.name, self._request.digest, files, engine=engine)
            published = publication.commit(manifest.to_bytes())
            self._clear_checkpoints()
        return self._final_report(artifact, published)

    def _clear_checkpoints(self) -> None:
        """Remove what nobody will go on from any more."""
        left = self._checkpoints.clear() if self._spec.method in CHECKPOINTED else ""
        if left:
            self.record.warnings.append(
                f"Checkpoints of this run stay at {left}, which these credentials may not delete; "
                "nothing needs them any more."
            )

    def _leave_report(self, error: WorkerError) -> None:
        """Publish the report of a run whose variants were measured and not found good enough.

        Beside the artifact's prefix, which stays one that does not exist.
        """
        if error.reason not in _REPORTED:
            return
        store = open_failed(self._place, name=self._request.name, digest=self._request.digest)
        self.record.left_at = f"{store.uri}report.json"
        code = error.exit_code
        report = self.failed(code, failure_of(code, error.reason, error.message, error.advice))
        try:
            documents = {"report.json": report_json(report), PAGE_NAME: report_page(report)}
            store.leave({n: self._redactor.clean_bytes(c) for n, c in documents.items()})
        except WorkerError as trouble:
            _log.warning("the report could not be left at %s: %s", store.uri, trouble)
            self.record.left_at = ""
        finally:
            store.close()

    def _final_report(self, artifact: Artifact, published: Published) -> RunReport:
        if published.strays:
            self.record.warnings.append(
                f"Below {published.uri} there is what the manifest does not name: "
                f"{', '.join(published.strays[:5])}."
            )
        return self._published_report(
            artifact.model_copy(update={"manifest_sha256": published.manifest_sha256})
        )

    def _published_report(self, artifact: Artifact) -> RunReport:
        return self.record.report(
            outcome=Outcome.PUBLISHED, exit_code=ExitCode.PUBLISHED, artifact=artifact
        )

    def _already_published(self, found: AlreadyPublishedError) -> RunReport:
        """Return the report of the run that published, marked as such."""
        # It may have been killed just before it tidied up.
        self._clear_checkpoints()
        artifact = Artifact(
            uri=found.uri,
            manifest_sha256=found.manifest_sha256,
            report_uri=f"{found.uri}report.json",
        )
        with closing(self._store()) as store:
            content = store.read("report.json")
        if content is None:
            return self.record.report(
                outcome=Outcome.ALREADY_PUBLISHED, exit_code=ExitCode.PUBLISHED, artifact=artifact
            )
        earlier = parse_json(RunReport, content, local=True, tolerant=True)
        return earlier.model_copy(
            update={"outcome": Outcome.ALREADY_PUBLISHED, "artifact": artifact}
        )

    @contextmanager
    def _stage(self, stage: Stage, total: float = 0) -> Iterator[StageProgress]:
        """Open a stage, and note how long it took."""
        started_at, started = now(), time.monotonic()
        try:
            with self._progress.stage(stage, total) as progress:
                yield progress
        finally:
            seconds = decimal_text(time.monotonic() - started, 3) or "0"
            timing = StageTiming(stage=stage, started_at=started_at, seconds=seconds)
            self.record.stages.append(timing)

    def failed(self, code: ExitCode, failure: Failure) -> RunReport:
        """Return the report of a run that ended here, with everything it had found out."""
        return self.record.report(outcome=Outcome.FAILED, exit_code=code, failure=failure)


def report_json(report: RunReport) -> bytes:
    """Return a report as it is published: indented JSON, one line at the end."""
    text = report.model_dump_json(by_alias=True, exclude_none=True, indent=2)
    return text.encode() + b"\n"
