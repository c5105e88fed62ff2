"""A model or text on a PersistentVolumeClaim, which the pod has mounted at `<volumes>/<claim>`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kubequant_worker.errors import AccessError
from kubequant_worker.sources.mounted import NOT_FOUND, MountedSource

if TYPE_CHECKING:
    from kubequant_worker.sources.source import Origin


def open_source(origin: Origin) -> MountedSource:
    """Return the source for a pvc:// address; the claim must be mounted and the path stay in it."""
    claim, _, path = origin.uri.removeprefix("pvc://").partition("/")
    mount = origin.volumes / claim
    if not mount.is_dir():
        raise AccessError(
            f"{origin.field}.uri: the claim {claim!r} is not mounted at {mount}.",
            reason=NOT_FOUND[origin.kind],
            advice="Correct the address; or create the PersistentVolumeClaim in the job's "
            f"namespace (in a cluster), or name its folder (here): --volume {claim}=FOLDER.",
        )
    return MountedSource(mount / path, origin, stay_in=mount)
