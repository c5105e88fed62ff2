"""The committed CRD on a real API server: what is taken, what is refused and in which words.

The table of `tests/api/cases` drives the server as it drives the models; how the taken are kept,
shown and explained stands in `test_crd_kept` and `test_crd_shown`.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest
from tests.api.cases import BAD, GOOD, SMALLEST, Bad, Good, Server, merged
from tests.cluster.resources import tried

from kubequant.api.resource import read_manifest

if TYPE_CHECKING:
    from tests.testbed.access import Access
    from tests.testbed.api import Api

pytestmark = pytest.mark.usefixtures("definition")
IN_CLUSTER = [case for case in GOOD if not case.local_only]
LOCAL = [case for case in GOOD if case.local_only]


def answered(verdict: Server) -> list[Bad]:
    return [case for case in BAD if case.server is verdict]


def server_path(path: str) -> str:
    """Return our path as a rule's refusal writes it: a map's key is not a field."""
    return re.sub(r"\b(labels)\.(\w+)$", r"\1[\2]", path)


def without_empty(value: Any) -> Any:
    """Return `value` without what is empty, which says no more than an absent field."""
    if isinstance(value, dict):
        kids = {name: without_empty(kid) for name, kid in value.items()}
        return {name: kid for name, kid in kids.items() if kid not in ("", [], {})}
    if isinstance(value, list):
        return [without_empty(item) for item in value]
    return value


def test_the_committed_definition_is_structural_and_established(
    control_plane: Access, definition: str
) -> None:
    template = "{range .status.conditions[*]}{.type}={.status} {end}"
    shown = control_plane.kubectl("get", definition, f"-o=jsonpath={template}").stdout.split()

    assert sorted(shown) == ["Established=True", "NamesAccepted=True"]


@pytest.mark.parametrize("case", IN_CLUSTER, ids=lambda case: case.id)
def test_a_good_manifest_is_taken_with_the_models_defaults(
    api: Api, shared_namespace: str, case: Good
) -> None:
    kept, read = tried(api, shared_namespace, case.manifest).object(), read_manifest(case.manifest)

    assert without_empty(kept["spec"]) == without_empty(read.spec.to_json())
    assert read_manifest(kept).spec == read.spec


@pytest.mark.parametrize("case", LOCAL, ids=lambda case: case.id)
def test_what_only_a_laptop_can_read_is_refused_in_our_words(
    api: Api, shared_namespace: str, case: Good
) -> None:
    answer = tried(api, shared_namespace, case.manifest)

    assert answer.status == 422
    assert all("must not be a file:// address" in message for _, message in answer.causes)


@pytest.mark.parametrize("case", answered(Server.SAYS_IT), ids=lambda case: case.id)
def test_a_bad_manifest_gets_our_sentence_at_our_path(
    api: Api, shared_namespace: str, case: Bad
) -> None:
    answer = tried(api, shared_namespace, case.manifest)

    assert answer.status == 422
    assert [field for field, message in answer.causes if case.sentence in message] == [
        server_path(case.path)
    ], answer.message


@pytest.mark.parametrize("case", answered(Server.REFUSES), ids=lambda case: case.id)
def test_a_manifest_of_the_wrong_shape_is_refused_at_our_path(
    api: Api, shared_namespace: str, case: Bad
) -> None:
    answer = tried(api, shared_namespace, case.manifest)

    assert answer.status in {400, 422}
    assert case.path in answer.message


@pytest.mark.parametrize("case", answered(Server.LETS_PASS), ids=lambda case: case.id)
def test_what_no_schema_can_say_passes_the_server(
    api: Api, shared_namespace: str, case: Bad
) -> None:
    assert tried(api, shared_namespace, case.manifest).status == 201


def test_several_mistakes_are_named_at_once(api: Api, shared_namespace: str) -> None:
    answer = tried(api, shared_namespace, merged(SMALLEST, {"spec": {"gptq": {}, "awq": {}}}))

    assert {field for field, _ in answer.causes} == {"spec.gptq", "spec.awq"}
