"""Where an artifact goes: one module per kind of place, one literal table.

A module of the table has `open_backend(place: Place) -> Backend`. How several publishers keep out
of each other's way is written once, in `claim` and `publication`, above the small operations of
`backend`.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from kubequant.api.contract import artifact_uri, checkpoints_uri, failed_uri
from kubequant_worker.errors import BadRequestError
from kubequant_worker.stores.backend import Backend, Probe
from kubequant_worker.stores.checkpoints import Checkpoints
from kubequant_worker.stores.claim import Timing
from kubequant_worker.stores.publication import AlreadyPublishedError, Publication, Published
from kubequant_worker.stores.shelf import Shelf
from kubequant_worker.stores.store import Store

if TYPE_CHECKING:
    from kubequant.api.data import OutputS3Options

__all__ = [
    "AlreadyPublishedError",
    "Checkpoints",
    "Place",
    "Probe",
    "Publication",
    "Published",
    "Shelf",
    "Store",
    "Timing",
    "open_artifact",
    "open_checkpoints",
    "open_failed",
    "open_shelf",
    "open_store",
]

STORES = {
    "s3": "kubequant_worker.stores.s3",
    "pvc": "kubequant_worker.stores.pvc",
    "file": "kubequant_worker.stores.file",
}
DEFAULT_VOLUMES = Path("/volumes")


@dataclass(frozen=True, slots=True)
class Place:
    """An address to publish to or read from, with what opens it.

    `credentials` is the role's folder of credential files (which may be absent: then the usual
    chain serves); `volumes` is the folder that holds the mounted claims; `field` is what an error's
    sentence names.
    """

    uri: str
    s3: OutputS3Options | None = None
    credentials: Path | None = None
    volumes: Path = DEFAULT_VOLUMES
    field: str = "spec.output.uri"


def open_store(place: Place, *, name: str, digest: str, timing: Timing | None = None) -> Store:
    """Return the store of one run's artifact, `<place.uri>/<name>/<digest>/`.

    Touches nothing yet.
    """
    return open_artifact(
        replace(place, uri=artifact_uri(place.uri, name, digest).rstrip("/")), timing=timing
    )


def open_failed(place: Place, *, name: str, digest: str) -> Store:
    """Return the store for what a run leaves that published nothing: its report.

    It stands beside the artifact, so that the artifact's prefix stays one that does not exist.
    """
    return open_artifact(replace(place, uri=failed_uri(place.uri, name, digest).rstrip("/")))


def open_checkpoints(place: Place, *, name: str, digest: str) -> Checkpoints:
    """Return what a run may go on from, beside its artifact's place; touches nothing yet."""
    beside = replace(place, uri=checkpoints_uri(place.uri, name, digest).rstrip("/"))
    return Checkpoints(lambda: _backend(beside))


def open_artifact(place: Place, *, timing: Timing | None = None) -> Store:
    """Return the store whose prefix is `place.uri` itself, as `kubequant report` reads it."""
    return Store(_backend(place), timing)


def open_shelf(place: Place) -> Shelf:
    """Return all artifacts below `place.uri`, an output's address."""
    return Shelf(_backend(place))


def _backend(place: Place) -> Backend:
    scheme = place.uri.partition("://")[0]
    if scheme not in STORES:
        raise BadRequestError(
            f"{place.field}: {place.uri!r} is no place for artifacts; "
            f"an address starts with {', '.join(f'{known}://' for known in STORES)}."
        )
    backend: Backend = importlib.import_module(STORES[scheme]).open_backend(place)
    return backend
