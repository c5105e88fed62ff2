"""Where a model or a text comes from: one module per kind of address, one literal table.

A module of the table has `open_source(origin: Origin) -> Source`. What may be taken and what makes
a model safe to open is decided in `selection`, `safetensors_header` and `model_folder`, the same
for every kind of address.

An engine's child comes by here for `model_folder`. So what brings every model of the API with it
(`lineage`, `model_card`) is imported where it is used.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING

from kubequant_worker.errors import BadRequestError
from kubequant_worker.file_digest import FileDigest
from kubequant_worker.sources.leftovers import remove_others
from kubequant_worker.sources.model_folder import check_model, check_small_files
from kubequant_worker.sources.selection import (
    dataset_files,
    is_small,
    is_weights,
    model_files,
    task_files,
)
from kubequant_worker.sources.source import (
    FetchedDataset,
    FetchedModel,
    Listing,
    ModelListing,
    Origin,
    RemoteFile,
    Source,
)

if TYPE_CHECKING:
    from kubequant.api.contract import SourceCard
    from kubequant.api.data import Dataset, ModelSource, TaskFiles
    from kubequant_worker.progress import StageProgress

__all__ = [
    "FetchedDataset",
    "FetchedModel",
    "FileDigest",
    "ModelListing",
    "RemoteFile",
    "fetch_dataset",
    "fetch_model",
    "fetch_small_files",
    "fetch_task_files",
    "inspect_model",
]

SOURCES = {
    "hf": "kubequant_worker.sources.hf",
    "s3": "kubequant_worker.sources.s3",
    "pvc": "kubequant_worker.sources.pvc",
    "file": "kubequant_worker.sources.file",
}
# role of the credentials -> where the spec names its dataset
DATASET_FIELDS = {
    "calibration": "spec.calibration.dataset",
    "evaluation": "spec.evaluation.perplexity.dataset",
}
# role of the credentials -> where the spec names its model
MODEL_FIELDS = {"model": "spec.model", "student": "spec.distill.student"}
DEFAULT_VOLUMES = Path("/volumes")


def inspect_model(
    model: ModelSource,
    *,
    credentials: Path,
    volumes: Path = DEFAULT_VOLUMES,
    role: str = "model",
) -> ModelListing:
    """Look at a model before any gigabyte moves.

    Its commit, and the files that `fetch_model` will take.

    `credentials` is the folder with one folder per role, of which that of `role` is read (one of
    `MODEL_FIELDS`). Raises AccessError where the model is not there or not for these credentials,
    BadRequestError where its files are not to be opened, UnavailableError for the world's trouble.
    """
    source, whole = _listed(model, credentials, volumes, role)
    listing = Listing(whole.revision, model_files(whole.files, model, MODEL_FIELDS[role]))
    return ModelListing(
        uri=model.uri,
        revision=listing.revision,
        files=listing.files,
        size_bytes=sum(file.size_bytes for file in listing.files),
        weight_bytes=sum(file.size_bytes for file in listing.files if is_weights(file.path)),
        is_linked=not source.copies,
    )


def fetch_small_files(
    model: ModelSource,
    *,
    into: Path,
    credentials: Path,
    volumes: Path = DEFAULT_VOLUMES,
    role: str = "model",
    revision: str | None = None,
) -> None:
    """Bring configuration and tokenizer alone into the folder `into`, and check them.

    What `fetch_model` does first, by the same words; for a look before the weights move.
    """
    source, whole = _listed(model, credentials, volumes, role, revision)
    listing = Listing(whole.revision, model_files(whole.files, model, MODEL_FIELDS[role]))
    into.mkdir(parents=True, exist_ok=True)
    remove_others(into, listing.files)
    small = [file for file in listing.files if is_small(file.path)]
    list(source.fetch(small, listing, into, _ignore))
    check_small_files(into, listing.files, model, MODEL_FIELDS[role])


def fetch_model(
    model: ModelSource,
    *,
    into: Path,
    credentials: Path,
    volumes: Path = DEFAULT_VOLUMES,
    progress: StageProgress | None = None,
    role: str = "model",
    revision: str | None = None,
) -> FetchedModel:
    """Bring a model into the folder `into`, check that it is safe to open, and digest every file.

    `revision` is the commit that `inspect_model` found, for a branch may have moved since.

    What lies on a mount or a local path is not copied: `into` then holds links to the files that
    were chosen. A download that was interrupted goes on where it stopped when `into` is the same;
    what else is in there is removed. The small files come first and are checked before the weights
    move. Progress counts bytes of all files. Raises as `inspect_model` does, and UnavailableError
    (DiskFull) where `into` is too small.
    """
    from kubequant_worker.sources.lineage import earlier_steps  # noqa: PLC0415 - see the top

    field = MODEL_FIELDS[role]
    source, whole = _listed(model, credentials, volumes, role, revision)
    listing = Listing(whole.revision, model_files(whole.files, model, field))
    if progress is not None:
        progress.set_total(sum(file.size_bytes for file in listing.files))
    into.mkdir(parents=True, exist_ok=True)
    remove_others(into, listing.files)
    small = [file for file in listing.files if is_small(file.path)]
    large = [file for file in listing.files if not is_small(file.path)]
    on_bytes = progress.advance if progress is not None else _ignore
    digests = list(source.fetch(small, listing, into, on_bytes))
    check_small_files(into, listing.files, model, field)
    card = _fetch_card(source, whole, into)
    digests += source.fetch(large, listing, into, on_bytes)
    check_model(into, listing.files, model, field)
    return FetchedModel(
        folder=into,
        uri=model.uri,
        revision=listing.revision,
        files=tuple(sorted(digests)),
        size_bytes=sum(file.size_bytes for file in digests if is_weights(file.path)),
        card=card,
        steps=earlier_steps(into),
    )


def _fetch_card(source: Source, listing: Listing, into: Path) -> SourceCard | None:
    """Read the model's card in a folder of its own: an engine must not take it for its input."""
    from kubequant_worker.sources.model_card import card_file, read_card  # noqa: PLC0415 - as above

    card = card_file(listing.files)
    if card is None:
        return None
    folder = into.with_name(f"{into.name}-card")
    folder.mkdir(parents=True, exist_ok=True)
    list(source.fetch([card], listing, folder, _ignore))
    return read_card(folder / card.path)


def fetch_dataset(
    dataset: Dataset,
    *,
    into: Path,
    credentials: Path,
    role: str,
    volumes: Path = DEFAULT_VOLUMES,
) -> FetchedDataset:
    """Bring a dataset's files into the folder `into` and digest them.

    Reading them is `evaluation`'s.

    `role` is calibration or evaluation: whose credentials serve. Where an address names a folder,
    its files of the known forms are taken, and of those the ones that the split names, where file
    names tell splits apart.
    """
    origin = Origin(
        uri=dataset.uri,
        revision=dataset.effective_revision,
        s3=dataset.s3,
        credentials=credentials / role,
        volumes=volumes,
        field=DATASET_FIELDS[role],
        kind="dataset",
    )
    source = _open(origin)
    listing = source.listing()
    files = dataset_files(
        listing, split=dataset.effective_split, explicit=dataset.split is not None, origin=origin
    )
    into.mkdir(parents=True, exist_ok=True)
    digests = tuple(sorted(source.fetch(list(files), listing, into, _ignore)))
    return FetchedDataset(
        uri=dataset.uri,
        revision=listing.revision,
        files=tuple(into / file.path for file in digests),
        digests=digests,
    )


def fetch_task_files(
    files: TaskFiles, *, into: Path, credentials: Path, volumes: Path = DEFAULT_VOLUMES
) -> FetchedDataset:
    """Bring a folder of tasks, YAML and data, into the folder `into`; errors as `fetch_dataset`."""
    origin = Origin(
        uri=files.uri,
        revision=files.effective_revision,
        s3=files.s3,
        credentials=credentials / "tasks",
        volumes=volumes,
        field="spec.evaluation.taskFiles",
        kind="dataset",
    )
    source = _open(origin)
    listing = source.listing()
    chosen = task_files(listing, origin)
    into.mkdir(parents=True, exist_ok=True)
    digests = tuple(sorted(source.fetch(list(chosen), listing, into, _ignore)))
    return FetchedDataset(
        uri=files.uri,
        revision=listing.revision,
        files=tuple(into / file.path for file in digests),
        digests=digests,
    )


def _listed(
    model: ModelSource, credentials: Path, volumes: Path, role: str, revision: str | None = None
) -> tuple[Source, Listing]:
    asked = revision or model.revision or "main"
    origin = Origin(
        uri=model.uri,
        revision=asked if model.uri.startswith("hf://") else None,
        s3=model.s3,
        credentials=credentials / role,
        volumes=volumes,
        field=MODEL_FIELDS[role],
        kind="model",
    )
    source = _open(origin)
    return source, source.listing()


def _open(origin: Origin) -> Source:
    scheme = origin.uri.partition("://")[0]
    if scheme not in SOURCES:
        raise BadRequestError(
            f"{origin.field}.uri: nothing can be read from {origin.uri!r}; "
            f"an address starts with {', '.join(f'{known}://' for known in SOURCES)}."
        )
    source: Source = importlib.import_module(SOURCES[scheme]).open_source(origin)
    return source


def _ignore(_amount: float) -> None:
    return None
