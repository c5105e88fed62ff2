"""What kubectl shows of a resource: explanations at every depth, columns, short names."""

from __future__ import annotations

import json
import re
import time
from typing import TYPE_CHECKING, Any

import pytest
from tests.api.reports import REPORT
from tests.cluster.resources import created, path
from tests.testbed.api import MERGE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.testbed.access import Access
    from tests.testbed.api import Api

pytestmark = pytest.mark.usefixtures("definition")


@pytest.fixture(scope="module")
def published(api: Api, control_plane: Access) -> dict[str, Any]:
    """The schema that the server publishes, which `kubectl explain` reads."""
    until = time.monotonic() + 30
    # The documents come a moment after the definition is Established.
    while control_plane.kubectl("explain", "qj", check=False).returncode:
        assert time.monotonic() < until
        time.sleep(0.2)
    document = api.request("GET", "/openapi/v3/apis/kubequant.dev/v1alpha1").object()
    schemas: dict[str, Any] = document["components"]["schemas"]
    return schemas["dev.kubequant.v1alpha1.QuantizationJob"]


@pytest.fixture(scope="module")
def finished(api: Api, shared_namespace: str) -> str:
    """A resource whose run published an artifact."""
    created(api, shared_namespace, name="finished")
    variants = [
        {
            "name": variant.name,
            "sizeReductionPercent": variant.size_reduction_percent,
            "perplexityIncreasePercent": variant.perplexity_increase_percent,
        }
        for variant in REPORT.variants
    ]
    ready = {
        "type": "Ready",
        "status": "True",
        "reason": "Published",
        "message": "The artifact is published.",
        "lastTransitionTime": "2026-01-02T03:04:05Z",
    }
    status = {
        "phase": "Succeeded",
        "conditions": [ready],
        "progress": {"stage": "Publishing", "percent": 100},
        "resolved": {"method": "GGUF", "engine": "llama.cpp"},
        "artifact": {"uri": "s3://models/llama/"},
        "variants": variants,
    }
    place = path(shared_namespace, "finished", "status")
    api.request("PATCH", place, {"status": status}, MERGE).object()
    return "finished"


def fields(node: dict[str, Any], place: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, kid in node.get("properties", {}).items():
        yield f"{place}.{name}", kid
        yield from fields(kid, f"{place}.{name}")
    if "items" in node:
        yield from fields(node["items"], place)


def described(published: dict[str, Any]) -> dict[str, str]:
    found = {}
    for top in ("spec", "status"):
        found |= {top: published["properties"][top].get("description", "")}
        for place, node in fields(published["properties"][top], top):
            found[place] = node.get("description", "")
    return found


def test_every_field_is_explained_at_every_depth(published: dict[str, Any]) -> None:
    texts = described(published)

    assert len(texts) > 200
    assert [place for place, text in texts.items() if not text.endswith(".")] == []


def test_explain_prints_the_whole_tree(control_plane: Access, published: dict[str, Any]) -> None:
    shown = control_plane.kubectl("explain", "quantizationjobs", "--recursive").stdout
    names = set(re.findall(r"^\s+(\w+)\t", shown, re.MULTILINE))

    assert {place.split(".")[-1] for place in described(published)} - names == set()


@pytest.mark.parametrize(
    "place",
    [
        "spec",
        "spec.method",
        "spec.gptq.dampingFraction",
        "spec.pod.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution",
        "status.variants.perplexityIncreasePercent",
    ],
)
def test_explain_prints_the_description_of_a_path(
    control_plane: Access, published: dict[str, Any], place: str
) -> None:
    shown = control_plane.kubectl("explain", f"qj.{place}").stdout

    assert " ".join(described(published)[place].split()) in " ".join(shown.split())


def test_columns_show_how_far_a_run_is_and_what_came_out(
    control_plane: Access, shared_namespace: str, finished: str
) -> None:
    header, row = table(control_plane, "get", "qj", finished, f"--namespace={shared_namespace}")

    ours = ["METHOD", "PHASE", "REASON", "STAGE", "PROGRESS", "SIZE REDUCTION", "PPL CHANGE"]
    assert header == ["NAME", *ours, "AGE"]
    expected = ["finished", "GGUF", "Succeeded", "Published", "Publishing", "100", "69.4", "2.2"]
    assert row[:-1] == expected


def test_wide_columns_add_model_engine_and_artifact(
    control_plane: Access, shared_namespace: str, finished: str
) -> None:
    words = ("get", "qj", finished, f"--namespace={shared_namespace}", "-o=wide")
    header, row = table(control_plane, *words)
    wide = dict(zip(header, row, strict=True))

    assert wide["MODEL"] == "hf://owner/name"
    assert wide["ENGINE"] == "llama.cpp"
    assert wide["ARTIFACT"] == "s3://models/llama/"


@pytest.mark.parametrize(
    "name", ["qj", "qjob", "quantizationjob", "quantizationjobs.kubequant.dev", "kubequant"]
)
def test_every_name_of_the_kind_finds_the_resource(
    control_plane: Access, shared_namespace: str, finished: str, name: str
) -> None:
    listed = control_plane.kubectl("get", name, f"--namespace={shared_namespace}", "-o=json").stdout
    names = [item["metadata"]["name"] for item in json.loads(listed)["items"]]

    assert finished in names


def table(control_plane: Access, *words: str) -> list[list[str]]:
    """Return what kubectl printed, cut where columns are at least two blanks apart."""
    lines = control_plane.kubectl(*words).stdout.splitlines()
    return [re.split(r"\s{2,}", line.strip()) for line in lines]
