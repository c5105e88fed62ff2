"""What is taken and what is refused, by the table of `cases`; and what no sentence may repeat."""

from __future__ import annotations

from typing import Any

import pytest
from tests.api.cases import BAD, GOOD, REMOVED, SMALLEST, Bad, Good, merged

from kubequant.api.enums import Device, Method
from kubequant.api.problems import InvalidInputError, Problem
from kubequant.api.resource import QuantizationJob, read_manifest
from kubequant.api.spec import MEMBERS, QuantizationJobSpec


def problems(manifest: object, *, local: bool = False) -> tuple[Problem, ...]:
    with pytest.raises(InvalidInputError) as caught:
        read_manifest(manifest, local=local)
    return caught.value.problems


def spec(change: dict[str, Any]) -> QuantizationJobSpec:
    return read_manifest(merged(SMALLEST, {"spec": change})).spec


@pytest.mark.parametrize("case", GOOD, ids=lambda case: case.id)
def test_a_good_manifest_is_taken(case: Good) -> None:
    job = read_manifest(case.manifest, local=case.local_only)

    assert job.metadata.name == "tiny"
    assert job.spec.method.value == case.manifest["spec"]["method"]


@pytest.mark.parametrize("case", [c for c in GOOD if c.local_only], ids=lambda case: case.id)
def test_what_only_this_machine_can_read_is_refused_in_a_cluster(case: Good) -> None:
    assert all("file://" in problem.message for problem in problems(case.manifest))


@pytest.mark.parametrize("case", BAD, ids=lambda case: case.id)
def test_a_bad_manifest_gets_one_sentence_with_path_and_way_out(case: Bad) -> None:
    (problem,) = problems(case.manifest)

    assert problem.path == case.path
    assert problem.message.startswith(case.sentence)


def test_every_problem_of_a_manifest_is_named_at_once() -> None:
    found = problems(
        merged(
            SMALLEST,
            {"spec": {"method": "GGFU", "output": REMOVED, "calibration": {"samples": 0}}},
        )
    )

    assert {problem.path for problem in found} == {
        "spec.method",
        "spec.output",
        "spec.calibration.samples",
    }


def test_several_rules_of_one_object_are_named_at_once() -> None:
    found = problems(merged(SMALLEST, {"spec": {"method": "GPTQ", "gguf": {}, "awq": {}}}))

    assert {problem.path for problem in found} == {"spec.gguf", "spec.awq"}


@pytest.mark.parametrize("body", [None, [], "text", 3, {}, {"kind": "QuantizationJob"}], ids=repr)
def test_what_is_no_manifest_at_all_gets_a_sentence_too(body: object) -> None:
    assert problems(body)


def test_another_kind_is_refused_by_its_name() -> None:
    found = problems(merged(SMALLEST, {"kind": "Job"}))

    assert [str(problem) for problem in found] == ['kind: must be QuantizationJob, not "Job"']


def test_a_manifest_full_of_mistakes_gets_no_more_than_fifty_sentences() -> None:
    assert len(problems({**SMALLEST, **{f"field{i}": 1 for i in range(500)}})) == 50


@pytest.mark.parametrize(
    "change",
    [
        {"pod": {"env": [{"name": "A", "value": 12345678}]}},
        {"pod": {"env": [{"name": "A", "value": ["12345678"]}]}},
        {"pod": {"annotations": {"a": 12345678}}},
        {"model": {"secretRef": {"name": "S-12345678"}}},
        {"model": {"secretRef": "12345678"}},
        {"model": {"token": "12345678"}},
        {"model": {"uri": "s3://key:12345678@bucket/x y"}},
        {"model": {"uri": "s3://bucket/x?signature=12345678"}},
        {"model": {"uri": "hf_12345678"}},
        {"output": {"s3": {"endpoint": "https://user:12345678@host"}}},
    ],
    ids=[
        "a variable's value that is a number",
        "a variable's value that is a list",
        "an annotation",
        "a token for a Secret's name",
        "a token for a reference",
        "a field for a token",
        "keys in an address",
        "a signed address",
        "a token for an address",
        "a password in an endpoint",
    ],
)
def test_a_sentence_never_repeats_what_could_be_a_secret(change: dict[str, Any]) -> None:
    found = problems(merged(SMALLEST, {"spec": change}))

    assert not any("12345678" in str(problem) for problem in found)


def test_a_long_value_is_cut_in_its_sentence() -> None:
    (problem,) = problems(merged(SMALLEST, {"spec": {"method": "x" * 10_000}}))

    assert len(problem.message) < 300


def test_what_an_api_server_sends_back_is_read_whole() -> None:
    body = merged(
        SMALLEST,
        {
            "metadata": {
                "uid": "0b1e6a43-4cf3-4ab4-8c1e-3c4dc0e9fd0f",
                "generation": 3,
                "resourceVersion": "17",
                "creationTimestamp": "2026-01-02T03:04:05Z",
                "managedFields": [{"manager": "kubectl"}],
                "labels": {"kueue.x-k8s.io/queue-name": "gpu"},
            },
            "status": {
                "observedGeneration": -1,
                "phase": "Running",
                "conditions": [
                    {
                        "type": "Complete",
                        "status": "False",
                        "reason": "Running",
                        "lastTransitionTime": "2026-01-02T03:04:06Z",
                    }
                ],
                "progress": {"stage": "Quantizing", "percent": 42, "etaSeconds": 310},
                "variants": [{"name": "Q4_K_M", "perplexityIncreasePercent": "-0.4"}],
            },
        },
    )

    job = read_manifest(body)

    assert job.metadata.labels == {"kueue.x-k8s.io/queue-name": "gpu"}
    assert job.status is not None
    assert job.status.to_json()["conditions"][0]["lastTransitionTime"] == "2026-01-02T03:04:06Z"


@pytest.mark.parametrize("case", [c for c in GOOD if not c.local_only], ids=lambda case: case.id)
def test_a_manifest_is_the_same_after_writing_and_reading(case: Good) -> None:
    job = read_manifest(case.manifest)

    assert read_manifest(job.to_json()) == job


@pytest.mark.parametrize("method", list(MEMBERS), ids=str)
def test_parameters_are_whole_for_a_method_without_its_member(method: Method) -> None:
    parameters = spec({"method": method.value}).parameters()

    assert type(parameters) is MEMBERS[method][1]


def test_parameters_of_bits_and_bytes_are_filled_in_by_bits_and_device() -> None:
    def written(member: dict[str, Any], **rest: str) -> dict[str, Any]:
        parameters = spec({"method": "BitsAndBytes", "bitsAndBytes": member, **rest}).parameters()
        return parameters.to_json()

    eight, four, on_cpu = written({}), written({"bits": 4}), written({"bits": 4}, device="CPU")

    assert eight == {"bits": 8, "threshold": "6.0", "ignore": ["lm_head"]}
    assert four["computeDType"] == "BFloat16"
    assert on_cpu["computeDType"] == "Float32"
    assert "threshold" not in four


def test_auto_has_no_parameters_until_it_is_resolved() -> None:
    auto = spec({"method": "Auto", "goal": {"hardware": "CPU", "priority": "Speed"}})

    with pytest.raises(ValueError, match="resolve"):
        auto.parameters()


@pytest.mark.parametrize(
    ("change", "device"),
    [
        ({"method": "GGUF"}, Device.CPU),
        ({"method": "GGUF", "device": "GPU"}, Device.GPU),
        ({"method": "GPTQ"}, Device.GPU),
        ({"method": "GPTQ", "device": "CPU"}, Device.CPU),
        ({"method": "INT8"}, Device.GPU),
        ({"method": "INT8", "int8": {"engine": "TorchAO"}}, Device.CPU),
        ({"method": "INT8", "int8": {"engine": "ONNXRuntime"}}, Device.CPU),
        ({"method": "INT4"}, Device.CPU),
        ({"method": "INT4", "int4": {"rounding": "Tuned"}}, Device.GPU),
        ({"method": "Auto", "goal": {"hardware": "GPU", "priority": "Speed"}}, Device.GPU),
        ({"method": "Auto", "goal": {"hardware": "AppleSilicon", "priority": "Speed"}}, Device.CPU),
    ],
    ids=str,
)
def test_the_device_is_as_written_or_what_the_method_needs(
    change: dict[str, Any], device: Device
) -> None:
    assert spec(change).effective_device() is device


def test_models_are_frozen() -> None:
    job = read_manifest(SMALLEST)

    with pytest.raises(ValueError, match="frozen"):
        job.spec.suspend = True  # type: ignore[misc]


def test_a_job_is_made_in_python_by_attribute_names() -> None:
    job = QuantizationJob.model_validate(SMALLEST)

    assert job.spec.calibration.sequence_length == 2048
