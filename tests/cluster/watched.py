"""One namespace as a test sees it: apply a manifest, wait for what becomes of it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tests.api.table import flow, merged, with_spec
from tests.cluster.resources import STRICT, path
from tests.testbed.api import MERGE

from kubequant.api.digest import run_digest
from kubequant.api.resource import read_manifest

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.testbed.api import Api

Body = dict[str, Any]
PATIENCE_SECONDS = 60.0


@dataclass(frozen=True)
class Namespace:
    """A namespace, reached as its administrator."""

    api: Api
    name: str

    def apply(self, spec: str = "", name: str = "tiny", *, labels: Body | None = None) -> Body:
        """Create the smallest resource with `spec` (YAML, without its braces) laid over."""
        body = manifest(spec, name)
        body["metadata"] |= {"labels": labels or {}}
        return self.api.request("POST", path(self.name), body, **STRICT).object()

    def change(self, spec: str, name: str = "tiny") -> Body:
        """Lay `spec` over that of a resource that is there."""
        where = path(self.name, name)
        return self.api.request("PATCH", where, {"spec": flow(spec)}, MERGE, **STRICT).object()

    def delete(self, name: str = "tiny") -> None:
        self.api.request("DELETE", path(self.name, name)).object()

    def resource(self, name: str = "tiny") -> Body:
        return self.api.request("GET", path(self.name, name)).object()

    def is_there(self, name: str = "tiny") -> bool:
        return self.api.request("GET", path(self.name, name)).status == 200

    def status(self, name: str = "tiny") -> Body:
        status: Body = self.resource(name).get("status", {})
        return status

    def jobs(self) -> list[Body]:
        return self._listed(f"/apis/batch/v1/namespaces/{self.name}/jobs")

    def pods(self) -> list[Body]:
        return self._listed(f"/api/v1/namespaces/{self.name}/pods")

    def events(self, reason: str) -> list[Body]:
        """Return the operator's events of a reason."""
        found = self._listed(f"/apis/events.k8s.io/v1/namespaces/{self.name}/events")
        ours = [one for one in found if one["reportingController"] == "kubequant.dev/operator"]
        return [event for event in ours if event["reason"] == reason]

    def job(self) -> Body:
        """Return the only Job, waiting for it."""
        (job,) = self.wait(self.jobs, lambda jobs: len(jobs) == 1)
        return job

    def delete_pod(self, name: str) -> None:
        where = f"/api/v1/namespaces/{self.name}/pods/{name}"
        self.api.request("DELETE", where).object()

    def delete_job(self, name: str) -> None:
        where = f"/apis/batch/v1/namespaces/{self.name}/jobs/{name}"
        self.api.request("DELETE", where, {"propagationPolicy": "Background"}).object()

    def reaches(self, *reasons: str, name: str = "tiny", seconds: float = PATIENCE_SECONDS) -> Body:
        """Wait until the status of this generation gives one of `reasons`; return it."""

        def found(resource: Body) -> bool:
            status = resource.get("status", {})
            is_current = status.get("observedGeneration") == resource["metadata"]["generation"]
            return is_current and reason_of(status) in reasons

        resource = self.wait(lambda: self.resource(name), found, seconds=seconds)
        return dict(resource["status"])

    def wait(
        self, look: Callable[[], Any], is_there: Callable[[Any], bool], *, seconds: float = 30.0
    ) -> Any:
        """Look until what is seen is what is wanted; fail with the last that was seen."""
        until = time.monotonic() + seconds
        while not is_there(seen := look()):
            assert time.monotonic() < until, f"not within {seconds} seconds; the last seen: {seen}"
            time.sleep(0.1)
        return seen

    def _listed(self, where: str) -> list[Body]:
        items: list[Body] = self.api.request("GET", where).object()["items"]
        return items


def manifest(spec: str = "", name: str = "tiny") -> Body:
    """Return the smallest manifest with `spec` laid over."""
    return dict(merged(with_spec(flow(spec)), {"metadata": {"name": name}}))


def digest_of(spec: str = "") -> str:
    """Return the digest of the run of such a manifest."""
    return run_digest(read_manifest(manifest(spec)).spec)


def reason_of(status: Body) -> str:
    """Return the reason that the Ready condition gives, which every status has."""
    found = (one["reason"] for one in status.get("conditions", ()) if one["type"] == "Ready")
    return next(found, "")


def condition(status: Body, kind: str) -> Body:
    """Return a condition; empty where there is none."""
    return next((one for one in status.get("conditions", ()) if one["type"] == kind), {})


def acts(**variables: str) -> str:
    """Return the part of a spec that tells the stand-in worker what to do."""
    listed = ", ".join(
        f"{{name: ACT_{name.upper()}, value: {quoted(value)}}}" for name, value in variables.items()
    )
    return f"pod: {{env: [{listed}]}}"


def quoted(text: str) -> str:
    """Return YAML's single quotes around a text."""
    return "'" + text.replace("'", "''") + "'"
