"""How the API server keeps a resource: what was valid stays valid, and spec and status apart."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from tests.api.cases import BAD, GOOD, SMALLEST, Good, merged, with_spec
from tests.cluster.resources import STRICT, created, path
from tests.testbed.api import APPLY, JSON, MERGE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.testbed.access import Access
    from tests.testbed.api import Api

pytestmark = pytest.mark.usefixtures("definition")
IN_CLUSTER = [case for case in GOOD if not case.local_only]


@pytest.fixture
def job(api: Api, shared_namespace: str) -> Iterator[dict[str, Any]]:
    """The smallest resource, as the server keeps it."""
    yield created(api, shared_namespace)
    api.request("DELETE", path(shared_namespace, "tiny"))


def as_applied(manifest: dict[str, Any], name: str) -> dict[str, Any]:
    return merged(manifest, {"metadata": {"name": name}})


@pytest.mark.parametrize("case", IN_CLUSTER, ids=lambda case: case.id)
def test_a_spec_that_was_valid_stays_valid_and_unchanged(
    api: Api, shared_namespace: str, case: Good
) -> None:
    name = f"kept-{IN_CLUSTER.index(case)}"
    kept = created(api, shared_namespace, case.manifest, name)
    place = path(shared_namespace, name)

    # The first update also stores the status, which until then the server fills in as it reads.
    first = api.request("PUT", place, kept, **STRICT).object()
    second = api.request("PUT", place, first, **STRICT).object()
    whole = {key: kept[key] for key in ("apiVersion", "kind", "spec")}
    applier = {**STRICT, "fieldManager": "applier"}
    applied = api.request("PATCH", place, as_applied(whole, name), APPLY, **applier).object()

    assert second["metadata"]["resourceVersion"] == first["metadata"]["resourceVersion"]
    assert applied["metadata"]["generation"] == 1
    assert applied["spec"] == kept["spec"]


def test_applying_a_file_twice_changes_nothing(
    control_plane: Access, shared_namespace: str
) -> None:
    text = json.dumps(as_applied(SMALLEST, "applied-twice"))
    words = ("apply", f"--namespace={shared_namespace}", "-f", "-")

    assert control_plane.kubectl(*words, input=text).stdout.split()[-1] == "created"
    assert control_plane.kubectl(*words, input=text).stdout.split()[-1] == "unchanged"


def test_a_changed_spec_is_a_new_generation(
    api: Api, shared_namespace: str, job: dict[str, Any]
) -> None:
    changed = api.request(
        "PATCH", path(shared_namespace, "tiny"), {"spec": {"suspend": True}}, MERGE, **STRICT
    ).object()

    assert job["metadata"]["generation"] == 1
    assert changed["metadata"]["generation"] == 2


def test_a_resource_that_nobody_saw_has_observed_generation_minus_one(
    job: dict[str, Any],
) -> None:
    assert job["status"] == {"observedGeneration": -1}


def test_whoever_creates_a_resource_cannot_write_its_status(
    api: Api, shared_namespace: str
) -> None:
    kept = created(
        api, shared_namespace, {**SMALLEST, "status": {"phase": "Succeeded"}}, "status-given"
    )

    assert kept["status"] == {"observedGeneration": -1}


def test_a_write_of_the_spec_leaves_the_status(
    api: Api, shared_namespace: str, job: dict[str, Any]
) -> None:
    change = {"spec": {"suspend": True}, "status": {"phase": "Succeeded"}}
    kept = api.request(
        "PUT", path(shared_namespace, "tiny"), merged(job, change), **STRICT
    ).object()

    assert kept["spec"]["suspend"] is True
    assert kept["status"] == job["status"]


def test_a_write_of_the_status_leaves_spec_and_generation(
    api: Api, shared_namespace: str, job: dict[str, Any]
) -> None:
    change = {"spec": {"suspend": True}, "status": {"phase": "Running", "observedGeneration": 1}}
    kept = api.request(
        "PUT", path(shared_namespace, "tiny", "status"), merged(job, change), **STRICT
    ).object()

    assert kept["status"] == {"phase": "Running", "observedGeneration": 1}
    assert kept["spec"] == job["spec"]
    assert kept["metadata"]["generation"] == 1


@pytest.mark.parametrize(
    ("status", "field"),
    [
        ({"phase": "Done"}, "status.phase"),
        ({"progress": {"percent": 101}}, "status.progress.percent"),
        ({"variants": [{"name": "A"}, {"name": "A"}]}, "status.variants[1]"),
        ({"conditions": [{"type": "Complete"}]}, "status.conditions[0]"),
    ],
    ids=["an unknown phase", "more than all", "a variant twice", "half a condition"],
)
def test_a_status_of_another_form_is_refused(
    api: Api, shared_namespace: str, job: dict[str, Any], status: dict[str, Any], field: str
) -> None:
    place = path(shared_namespace, "tiny", "status")
    answer = api.request("PUT", place, merged(job, {"status": status}), **STRICT)

    assert answer.status == 422
    assert field in answer.message


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (MERGE, {"spec": {"modle": {"uri": "hf://a/b"}}}),
        (JSON, None),
    ],
    ids=["by a patch", "by an update"],
)
def test_an_unknown_field_is_refused_by_its_name_on_every_write(
    api: Api, shared_namespace: str, job: dict[str, Any], kind: str, body: dict[str, Any] | None
) -> None:
    method = "PATCH" if body else "PUT"
    sent = body or merged(job, {"spec": {"modle": {"uri": "hf://a/b"}}})
    answer = api.request(method, path(shared_namespace, "tiny"), sent, kind, **STRICT)

    assert answer.status in {400, 422}
    assert 'unknown field "spec.modle"' in answer.message


def test_kubectl_refuses_an_unknown_field_by_default(
    control_plane: Access, shared_namespace: str
) -> None:
    text = json.dumps(with_spec({"modle": {"uri": "hf://a/b"}}))
    done = control_plane.kubectl(
        "apply", f"--namespace={shared_namespace}", "-f", "-", input=text, check=False
    )

    assert done.returncode
    assert 'unknown field "spec.modle"' in done.stderr


def test_a_dry_run_on_the_server_refuses_what_would_fail_and_keeps_nothing(
    control_plane: Access, shared_namespace: str
) -> None:
    case = next(case for case in BAD if case.id == "an output on the Hub")
    words = ("apply", "--dry-run=server", f"--namespace={shared_namespace}", "-f", "-")
    bad = control_plane.kubectl(*words, input=json.dumps(case.manifest), check=False)
    good = as_applied(SMALLEST, "tried-only")
    taken = control_plane.kubectl(*words, input=json.dumps(good))
    listed = control_plane.kubectl("get", "qj", f"--namespace={shared_namespace}", "-o=name").stdout

    assert bad.returncode
    assert case.sentence in bad.stderr
    assert "created (server dry run)" in taken.stdout
    assert "tried-only" not in listed
