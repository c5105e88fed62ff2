"""An artifact on a PersistentVolumeClaim, which the pod has mounted at `<volumes>/<claim>`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kubequant.api.outcome import FailureReason
from kubequant_worker.errors import AccessError, BadRequestError
from kubequant_worker.stores.folder import FolderBackend

if TYPE_CHECKING:
    from kubequant_worker.stores import Place


def open_backend(place: Place) -> FolderBackend:
    """Return the backend for a pvc:// address.

    The claim must be mounted and the path stay in it.
    """
    claim, _, path = place.uri.removeprefix("pvc://").partition("/")
    mount = place.volumes / claim
    if not mount.is_dir():
        raise AccessError(
            f"{place.field}: the claim {claim!r} is not mounted at {mount}.",
            reason=FailureReason.BUCKET_NOT_FOUND,
            advice="Correct the address; or create the PersistentVolumeClaim in the job's "
            f"namespace (in a cluster), or name its folder (here): --volume {claim}=FOLDER.",
        )
    root = mount / path
    if not root.resolve().is_relative_to(mount.resolve()):
        raise BadRequestError(f"{place.field}: {place.uri} leads out of the claim {claim!r}.")
    return FolderBackend(place.uri, root, place.field)
