"""QuantizationJobs over the API server's own paths."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests.api.cases import SMALLEST, merged

if TYPE_CHECKING:
    from tests.testbed.api import Answer, Api

STRICT = {"fieldValidation": "Strict", "fieldManager": "tests"}
DRY_RUN = {**STRICT, "dryRun": "All"}


def path(namespace: str, name: str = "", subresource: str = "") -> str:
    """Return the path of a namespace's resources, of one, or of its subresource."""
    parts = ["/apis/kubequant.dev/v1alpha1/namespaces", namespace, "quantizationjobs"]
    return "/".join([*parts, *([name] if name else []), *([subresource] if subresource else [])])


def tried(api: Api, namespace: str, manifest: dict[str, Any]) -> Answer:
    """Return how the server answers to a manifest that it need not keep."""
    return api.request("POST", path(namespace), manifest, **DRY_RUN)


def created(
    api: Api, namespace: str, manifest: dict[str, Any] = SMALLEST, name: str = "tiny"
) -> dict[str, Any]:
    """Create a resource of that name and return it as the server keeps it."""
    body = merged(manifest, {"metadata": {"name": name}})
    return api.request("POST", path(namespace), body, **STRICT).object()
