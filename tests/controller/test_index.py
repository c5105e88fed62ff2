"""What the watches told, and what an answer of the server's put there before them."""

from __future__ import annotations

from typing import Any

import pytest
from tests.controller.builders import resource_body

from kubequant.controller.handlers import Watches
from kubequant.controller.index import Index, Key, owner_key, version_of
from kubequant.controller.workqueue import WorkQueue

KEY: Key = ("team", "tiny")


def body(version: int, *, uid: str = "u-1", **metadata: Any) -> dict[str, Any]:
    made = resource_body("", name="tiny")
    made["metadata"] |= {"resourceVersion": str(version), "uid": uid, "namespace": "team"}
    made["metadata"] |= metadata
    return made


def test_an_older_version_does_not_replace_a_newer_one() -> None:
    index = Index()
    assert index.resources.put(KEY, body(7, labels={"age": "new"}))
    assert not index.resources.put(KEY, body(6, labels={"age": "old"}))
    assert not index.resources.put(KEY, body(7, labels={"age": "same"}))
    known = index.resource(KEY)
    assert known is not None
    assert known.version == 7
    assert known.resource.labels == {"age": "new"}


def test_of_two_resources_of_one_name_the_newer_counts() -> None:
    # A resource that was deleted and made again, before the watch told of the deletion.
    index = Index()
    index.resources.put(KEY, body(5, uid="old"))
    index.resources.put(KEY, body(9, uid="new"))
    known = index.resource(KEY)
    assert known is not None
    assert known.resource.uid == "new"
    assert index.resources.discard(KEY, "old")
    assert index.resource(KEY) is not None
    assert index.resources.discard(KEY, "new")
    assert index.resource(KEY) is None
    assert not index.resources.discard(KEY, "new")


def test_what_the_index_keeps_of_a_resource_is_what_a_pass_reads() -> None:
    index = Index()
    index.resources.put(KEY, body(5, managedFields=[{"manager": "kubectl"}] * 50))
    known = index.resource(KEY)
    assert known is not None
    assert known.resource.spec is not None
    (kept,) = index.resources.values(KEY)
    assert b"managedFields" not in kept


@pytest.mark.parametrize(
    ("labels", "key"),
    [
        pytest.param({"kubequant.dev/name": "tiny"}, ("team", "tiny"), id="labelled"),
        pytest.param(None, ("team", ""), id="without labels"),
    ],
)
def test_a_job_is_found_under_the_name_of_its_resource(labels: Any, key: Key) -> None:
    assert owner_key({"metadata": {"namespace": "team", "labels": labels}}) == key


def test_a_version_that_is_no_number_is_always_replaced_by_one_that_is() -> None:
    assert version_of({"metadata": {"resourceVersion": "opaque"}}) == 0


def seen(watches: Watches, kind: str, object_: dict[str, Any]) -> int:
    watches.saw(watches.index.resources, KEY, {"type": kind, "object": object_})
    return len(watches.queue)


def test_only_news_wakes_a_resource() -> None:
    watches = Watches(Index(), WorkQueue())
    watches.index.resources.put(KEY, body(5))
    assert seen(watches, "MODIFIED", body(5)) == 0, "the answer to our own write came before"
    assert seen(watches, "DELETED", body(6, uid="another")) == 0
    assert seen(watches, "MODIFIED", body(6)) == 1


def test_a_deleted_object_is_forgotten_and_wakes_its_resource() -> None:
    watches = Watches(Index(), WorkQueue())
    watches.index.resources.put(KEY, body(5))
    assert seen(watches, "DELETED", body(6)) == 1
    assert watches.index.resource(KEY) is None


def test_an_object_that_names_no_resource_is_passed_over() -> None:
    watches = Watches(Index(), WorkQueue())
    watches.saw(watches.index.jobs, ("team", ""), {"type": "ADDED", "object": {}})
    assert len(watches.queue) == 0
    assert not list(watches.index.jobs.objects())
