"""The CRD holds what Kubernetes asks of structural schemas, and generating refuses what it would
not."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any

import pytest
from pydantic import Field, StrictBool, StrictInt, StrictStr

from kubequant.api.base import Model
from kubequant.api.crd import custom_resource_definition
from kubequant.api.enums import Measurement, Metric
from kubequant.api.evaluation import BENCHMARKED, MEASURED_BY
from kubequant.api.schema import NotStructuralError, structural_schema
from kubequant.api.status import Variant

if TYPE_CHECKING:
    from collections.abc import Iterator

CRD = custom_resource_definition()
VERSION = CRD["spec"]["versions"][0]
ROOT = VERSION["schema"]["openAPIV3Schema"]

# The keywords that apiextensions.k8s.io/v1 knows and that we use; anything else is a typing error.
KEYWORDS = {
    *("type", "format", "description", "default", "enum", "pattern", "minLength", "maxLength"),
    *("minimum", "maximum", "items", "minItems", "maxItems", "properties", "required"),
    *("additionalProperties", "maxProperties"),
    *("x-kubernetes-validations", "x-kubernetes-list-type", "x-kubernetes-list-map-keys"),
}


def nodes(node: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    yield path or ".", node
    for name, kid in node.get("properties", {}).items():
        yield from nodes(kid, f"{path}.{name}")
    for key in ("items", "additionalProperties"):
        if key in node:
            yield from nodes(node[key], f"{path}[]")


NODES = list(nodes(ROOT))
OURS = [(path, node) for path, node in NODES if path.startswith((".spec", ".status"))]


def at(path: str) -> dict[str, Any]:
    return dict(NODES)[path]


def test_every_node_has_one_type_and_known_keywords() -> None:
    for path, node in NODES:
        assert node["type"] in {"object", "array", "string", "integer", "boolean"}, path
        assert node.keys() <= KEYWORDS, path


def test_every_list_string_and_map_is_bounded() -> None:
    for path, node in OURS:
        match node["type"]:
            case "array":
                assert node["maxItems"] > 0, path
                assert "items" in node, path
            case "string":
                assert {"maxLength", "enum"} & node.keys() or node["format"] == "date-time", path
            case "object":
                assert "properties" in node or node["maxProperties"] > 0, path
                assert not ("properties" in node and "additionalProperties" in node), path


def test_every_field_is_described_in_sentences() -> None:
    for path, node in OURS:
        if not path.endswith("[]"):
            assert node["description"].endswith("."), path
            assert node["description"][0].isupper() or node["description"][0].isdigit(), path
            assert "\n" not in node["description"], path


def test_every_default_is_a_value_of_its_field() -> None:
    kinds = {"object": dict, "array": list, "string": str, "integer": int, "boolean": bool}
    for path, node in NODES:
        if "default" in node:
            assert type(node["default"]) is kinds[node["type"]], path
            assert node["default"] in node.get("enum", [node["default"]]), path
            if node["type"] == "object":
                assert not set(node.get("required", ())) - node["default"].keys(), path


def test_required_fields_are_there_and_have_no_default() -> None:
    for path, node in NODES:
        for name in node.get("required", ()):
            assert "default" not in node["properties"][name], f"{path}.{name}"


def test_every_rule_has_a_message_on_one_line_and_a_field_that_exists() -> None:
    for path, node in NODES:
        for rule in node.get("x-kubernetes-validations", ()):
            assert rule["message"].strip(), path
            assert "\n" not in rule["message"], path
            field = node
            for name in rule.get("fieldPath", "").split(".")[1:]:
                field = field["properties"][name]


def test_map_lists_name_required_keys() -> None:
    for path, node in OURS:
        if node.get("x-kubernetes-list-type") == "map":
            for key in node["x-kubernetes-list-map-keys"]:
                assert key in node["items"]["required"], path


def test_members_of_methods_have_no_default_since_only_one_may_be_there() -> None:
    for member in ("int8", "gptq", "gguf", "tensorRT", "goal", "device"):
        assert "default" not in at(f".spec.{member}")


@pytest.mark.parametrize(
    ("path", "default"),
    [
        (".spec.calibration", {}),
        (".spec.calibration.samples", 128),
        (".spec.evaluation.perplexity", {}),
        (".spec.gguf.types", ["Q5_K_M", "Q4_K_M"]),
        (".spec.gptq.dampingFraction", "0.01"),
        (".spec.gptq.symmetric", True),
        (".spec.suspend", False),
        (".status", {"observedGeneration": -1}),
    ],
)
def test_defaults_of_the_models_are_the_servers_too(path: str, default: object) -> None:
    assert at(path)["default"] == default


def test_names_and_columns_are_those_of_the_reference() -> None:
    names = CRD["spec"]["names"]
    columns = {column["name"].upper(): column for column in VERSION["additionalPrinterColumns"]}

    assert CRD["metadata"]["name"] == "quantizationjobs.kubequant.dev"
    assert names["shortNames"] == ["qj", "qjob"]
    assert names["categories"] == ["kubequant"]
    assert VERSION["subresources"] == {"status": {}}
    assert [name for name, column in columns.items() if not column.get("priority")] == [
        *("METHOD", "PHASE", "REASON", "STAGE", "PROGRESS", "SIZE REDUCTION", "PPL CHANGE", "AGE")
    ]
    assert {name for name, column in columns.items() if column.get("priority")} == {
        *("MODEL", "ENGINE", "ARTIFACT")
    }


def test_every_column_shows_a_field_that_exists() -> None:
    for column in VERSION["additionalPrinterColumns"]:
        path = re.sub(r"\[[^]]*\]", "[]", column["jsonPath"])
        if path != ".metadata.creationTimestamp":
            assert at(path)["type"] in {"string", "integer"}, path


def test_every_metric_of_a_gate_is_a_number_of_a_variant() -> None:
    numbers = {
        field.alias
        for name, field in Variant.model_fields.items()
        if name.endswith(("_percent", "_bytes", "_second", "_divergence"))
        or name in {"perplexity", "speedup"}
    }

    assert {metric[0].lower() + metric[1:] for metric in Metric if metric not in BENCHMARKED} == (
        numbers
    )
    assert "benchmarks" in Variant.model_fields
    assert set(MEASURED_BY.values()) == {Measurement.PERPLEXITY, Measurement.PERFORMANCE}


def test_a_status_with_everything_full_fits_into_etcd() -> None:
    def largest(node: dict[str, Any]) -> int:
        match node["type"]:
            case "object" if "properties" in node:
                kids = node["properties"].items()
                return 2 + sum(len(name) + 4 + largest(kid) for name, kid in kids)
            case "object":
                return int(node["maxProperties"]) * (320 + largest(node["additionalProperties"]))
            case "array":
                return 2 + int(node["maxItems"]) * (1 + largest(node["items"]))
            case "string":
                longest = max((len(choice) for choice in node.get("enum", [""])), default=0)
                # Four bytes for a character beyond the first plane.
                return 2 + 4 * int(node.get("maxLength", longest or 40))
        return 20

    assert largest(at(".status")) < 1_000_000


class Plain(Model):
    """A model."""

    name: Annotated[StrictStr, Field(max_length=5)]
    """A name."""


class Union(Model):
    """A model."""

    field: Annotated[StrictStr, Field(max_length=5)] | StrictInt
    """A field."""


class Set(Model):
    """A model."""

    field: Annotated[set[StrictInt], Field(max_length=5)]
    """A field."""


class Float(Model):
    """A model."""

    field: float
    """A field."""


class Unbounded(Model):
    """A model."""

    field: StrictStr
    """A field."""


class LongList(Model):
    """A model."""

    field: tuple[StrictInt, ...]
    """A field."""


class OpenBound(Model):
    """A model."""

    field: Annotated[StrictInt, Field(gt=0)]
    """A field."""


class BareMap(Model):
    """A model."""

    field: dict[StrictStr, Annotated[StrictStr, Field(max_length=5)]]
    """A field."""


class AnyMap(Model):
    """A model."""

    field: Annotated[dict[StrictStr, Any], Field(max_length=3)]
    """A field."""


class Undescribed(Model):
    """A model."""

    field: StrictBool


class LaxInteger(Model):
    """A model."""

    field: int
    """A field."""


class Recursive(Model):
    """A model."""

    field: Recursive | None = None
    """A field."""


class Pair(Model):
    """A model."""

    field: tuple[StrictInt, StrictBool]
    """A field."""


@pytest.mark.parametrize(
    "model",
    [
        Union,
        Set,
        Float,
        Unbounded,
        LongList,
        OpenBound,
        BareMap,
        AnyMap,
        Undescribed,
        LaxInteger,
        Recursive,
        Pair,
    ],
    ids=lambda model: model.__name__,
)
def test_generating_refuses_what_an_api_server_would(model: type[Model]) -> None:
    with pytest.raises(NotStructuralError, match=model.__name__):
        structural_schema(model)


def test_generating_takes_a_plain_model() -> None:
    assert structural_schema(Plain)["properties"]["name"] == {
        "description": "A name.",
        "type": "string",
        "maxLength": 5,
    }
