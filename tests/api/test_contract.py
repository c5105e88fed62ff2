"""What operator and worker tell each other: models and JSON schemas say the same."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest
from tests.api.cases import GOOD, SMALLEST, Good, merged
from tests.api.reports import REPORT

from kubequant.api.contract import ProgressMessage, RunReport, RunRequest
from kubequant.api.digest import run_digest
from kubequant.api.problems import InvalidInputError, parse, parse_json
from kubequant.api.resource import read_manifest
from kubequant.api.schema import contract_schema

REQUEST_SCHEMA = contract_schema(RunRequest)
REPORT_SCHEMA = contract_schema(RunReport)


def request(spec: dict[str, Any]) -> RunRequest:
    read = read_manifest(merged(SMALLEST, {"spec": spec}), local=True).spec
    return RunRequest(
        namespace="models", name="tiny", digest=run_digest(read), spec=read, image="worker:1"
    )


@pytest.mark.parametrize("schema", [REQUEST_SCHEMA, REPORT_SCHEMA], ids=["request", "report"])
def test_the_schemas_are_json_schemas(schema: dict[str, Any]) -> None:
    jsonschema.Draft202012Validator.check_schema(schema)


@pytest.mark.parametrize("case", GOOD, ids=lambda case: case.id)
def test_a_request_is_read_as_it_was_written_and_fits_its_schema(case: Good) -> None:
    written = request(case.change)

    jsonschema.validate(written.to_json(), REQUEST_SCHEMA)
    assert RunRequest.from_json(json.dumps(written.to_json())) == written


def test_a_report_is_read_as_it_was_written_and_fits_its_schema() -> None:
    jsonschema.validate(REPORT.to_json(), REPORT_SCHEMA)

    assert parse_json(RunReport, json.dumps(REPORT.to_json()), local=True) == REPORT


@pytest.mark.parametrize(
    "change",
    [
        {"novelty": 1},
        {"digest": "xyz"},
        {"spec": {"novelty": 1}},
        {"spec": {"method": "GGFU"}},
        {"spec": {"gguf": {"types": ["Q4"]}}},
        {"name": 3},
    ],
    ids=str,
)
def test_what_the_schema_refuses_the_model_refuses(change: dict[str, Any]) -> None:
    value = merged(request({}).to_json(), change)

    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(value, REQUEST_SCHEMA)
    with pytest.raises(InvalidInputError):
        RunRequest.from_json(json.dumps(value))


def test_the_artifacts_address_names_job_and_digest() -> None:
    written = request({"output": {"uri": "s3://bucket/models/"}})

    assert written.artifact_uri == f"s3://bucket/models/tiny/{written.digest}/"


def test_a_name_that_would_leave_the_output_is_refused() -> None:
    value = merged(request({}).to_json(), {"name": "../other"})

    with pytest.raises(InvalidInputError, match="name"):
        RunRequest.from_json(json.dumps(value))


def test_a_variant_of_a_report_is_cut_for_status() -> None:
    cut = REPORT.variants[0].for_status().to_json()

    assert cut["perplexity"] == "6.38"
    assert not {"generations", "files", "notes", "perplexityDetail"} & cut.keys()


@pytest.mark.parametrize(
    ("change", "path"),
    [
        ({"percent": 101}, "percent"),
        ({"stage": "Sleeping"}, "stage"),
        ({"token": "secret"}, "token"),
        ({"message": "x" * 257}, "message"),
    ],
    ids=str,
)
def test_progress_beyond_its_bounds_is_refused(change: dict[str, Any], path: str) -> None:
    message = {"digest": "0123abcd", "stage": "Quantizing", "percent": 42, "etaSeconds": 3}
    parse(ProgressMessage, message)

    with pytest.raises(InvalidInputError) as caught:
        parse(ProgressMessage, {**message, **change})

    assert [problem.path for problem in caught.value.problems] == [path]
    assert "secret" not in str(caught.value)
