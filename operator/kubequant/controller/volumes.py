"""The volumes of a worker's pod: scratch, cache, claims and credentials, with where they appear.

Pure: part of what `manifest` composes. The places are the worker contract's (images/README.md).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from kubernetes.aio.client import (
    V1EmptyDirVolumeSource,
    V1EphemeralVolumeSource,
    V1KeyToPath,
    V1PersistentVolumeClaimSpec,
    V1PersistentVolumeClaimTemplate,
    V1PersistentVolumeClaimVolumeSource,
    V1SecretVolumeSource,
    V1Volume,
    V1VolumeMount,
    V1VolumeResourceRequirements,
)

from kubequant.api.credentials import secret_names
from kubequant.api.pod import CREDENTIAL_NAMES
from kubequant.controller import names

if TYPE_CHECKING:
    from kubequant.api.pod import Scratch
    from kubequant.api.spec import QuantizationJobSpec

SCRATCH: Final = "/scratch"
CACHE: Final = "/cache"
VOLUMES: Final = "/volumes"
CREDENTIALS: Final = "/var/run/kubequant/credentials"
_READABLE: Final = 0o444
"""The worker's user is not the files' owner, and on some clusters has no group in common either."""


def volumes_and_mounts(
    spec: QuantizationJobSpec,
) -> tuple[list[V1Volume], list[V1VolumeMount]]:
    """Return what the pod mounts for `spec`, and where."""
    volumes = [_scratch(spec.pod.scratch)]
    mounts = [V1VolumeMount(name="scratch", mount_path=SCRATCH)]
    cache = spec.pod.model_cache.claim_name if spec.pod.model_cache else None
    written = claims_written(spec)
    # One volume for each claim, however often it is mounted: the kubelet waits for ever for the
    # second volume of the same claim.
    for claim in sorted({*claims_read(spec), *written, *((cache,) if cache else ())}):
        read_only = claim not in written and claim != cache
        name = names.claim_volume(claim)
        volumes.append(
            V1Volume(
                name=name,
                persistent_volume_claim=V1PersistentVolumeClaimVolumeSource(
                    claim_name=claim, read_only=read_only or None
                ),
            )
        )
        if claim in written or claim in claims_read(spec):
            mounts.append(
                V1VolumeMount(
                    name=name,
                    mount_path=f"{VOLUMES}/{claim}",
                    read_only=None if claim in written else True,
                )
            )
        if claim == cache:
            mounts.append(V1VolumeMount(name=name, mount_path=CACHE))
    for role, secret in secret_names(spec).items():
        name = names.credentials_volume(role)
        volumes.append(_credentials(name, secret))
        mounts.append(V1VolumeMount(name=name, mount_path=f"{CREDENTIALS}/{role}", read_only=True))
    return volumes, mounts


def claims_read(spec: QuantizationJobSpec) -> set[str]:
    """Return the claims that models and texts are read from."""
    others = (
        spec.student_source(),
        spec.calibration.dataset,
        spec.evaluation.perplexity.dataset,
        spec.evaluation.task_files,
    )
    uris = [spec.model.uri, *(other.uri for other in others if other)]
    return {claim for uri in uris if (claim := _claim(uri))}


def claims_written(spec: QuantizationJobSpec) -> set[str]:
    """Return the claim that the artifact goes to, if it goes to one."""
    claim = _claim(spec.output.uri)
    return {claim} if claim else set()


def _claim(uri: str) -> str:
    return uri.removeprefix("pvc://").partition("/")[0] if uri.startswith("pvc://") else ""


def _scratch(scratch: Scratch | None) -> V1Volume:
    if scratch is None:
        return V1Volume(name="scratch", empty_dir=V1EmptyDirVolumeSource())
    claim = V1PersistentVolumeClaimSpec(
        access_modes=["ReadWriteOnce"],
        storage_class_name=scratch.storage_class_name or None,
        resources=V1VolumeResourceRequirements(requests={"storage": scratch.size}),
    )
    template = V1PersistentVolumeClaimTemplate(spec=claim)
    return V1Volume(
        name="scratch", ephemeral=V1EphemeralVolumeSource(volume_claim_template=template)
    )


def _credentials(name: str, secret: str) -> V1Volume:
    # Only the known keys, each where it is there: `optional` covers keys as well as the Secret.
    source = V1SecretVolumeSource(
        secret_name=secret,
        items=[V1KeyToPath(key=key, path=key) for key in CREDENTIAL_NAMES],
        optional=True,
        default_mode=_READABLE,
    )
    return V1Volume(name=name, secret=source)
