"""A digest is the same for the same work and another for other work."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.api.cases import GOOD, SMALLEST, Good, merged

if TYPE_CHECKING:
    import random

from kubequant.api.digest import run_digest
from kubequant.api.resource import read_manifest


def digest(spec: dict[str, Any], *, local: bool = True) -> str:
    return run_digest(read_manifest(merged(SMALLEST, {"spec": spec}), local=local).spec)


def shuffled(value: Any, rng: random.Random) -> Any:
    if isinstance(value, dict):
        items = list(value.items())
        rng.shuffle(items)
        return {key: shuffled(inner, rng) for key, inner in items}
    return [shuffled(inner, rng) for inner in value] if isinstance(value, list) else value


FULL: dict[str, Any] = {
    "model": {"uri": "s3://models/a", "s3": {"endpoint": "http://a:9000"}},
    "method": "GGUF",
    "gguf": {"types": ["Q8_0", "Q2_K"], "importanceMatrix": True, "outputTensorType": "Q8_0"},
    "calibration": {"dataset": {"uri": "hf://a/text"}, "samples": 64, "seed": 3},
    "evaluation": {
        "perplexity": {"dataset": {"uri": "hf://a/other"}, "maxTokens": 1024},
        "generations": {"prompts": ["one", "two"]},
        "benchmarks": [{"task": "hellaswag"}],
        "skip": ["Performance"],
    },
    "gates": [{"metric": "Perplexity", "max": "9.5"}, {"metric": "SizeBytes", "max": "9"}],
    "output": {"uri": "s3://out/a", "s3": {"serverSideEncryption": "aws:kms", "kmsKeyId": "k"}},
}

# Whoever changes one of these starts every job of every user again at the next upgrade.
KNOWN = {
    "the smallest manifest": "757f25ee",
    "method GPTQ with its member empty": "310fd2d7",
    "Auto with a goal": "d72c2b18",
}


@pytest.mark.parametrize("name", KNOWN)
def test_the_digest_of_an_old_spec_stays_what_it_was(name: str) -> None:
    (case,) = (case for case in GOOD if case.id == name)

    assert digest(case.change) == KNOWN[name]


@given(st.sampled_from(GOOD), st.randoms())
def test_the_order_of_keys_changes_nothing(case: Good, rng: random.Random) -> None:
    spec = case.change

    assert digest(shuffled(spec, rng)) == digest(spec)


@pytest.mark.parametrize("case", GOOD, ids=lambda case: case.id)
def test_writing_out_every_default_changes_nothing(case: Good) -> None:
    spec = read_manifest(case.manifest, local=True).spec

    assert digest(spec.to_json()) == run_digest(spec)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({}, {"gguf": {"types": ["Q5_K_M", "Q4_K_M"]}}),
        ({}, {"device": "CPU"}),
        ({}, {"model": {"revision": "main"}}),
        (
            {"calibration": {"dataset": {"uri": "hf://a/b"}}},
            {
                "calibration": {
                    "dataset": {"uri": "hf://a/b", "split": "train", "textField": "text"}
                }
            },
        ),
        (
            {"method": "BitsAndBytes"},
            {"method": "BitsAndBytes", "bitsAndBytes": {"threshold": "6"}},
        ),
        (
            {"method": "Distill", "distill": {"temperature": "2"}},
            {"method": "Distill", "distill": {"temperature": "2.000"}},
        ),
        (
            {"method": "Distill", "distill": {"student": {"uri": "hf://a/b"}}},
            {"method": "Distill", "distill": {"student": {"uri": "hf://a/b", "revision": "main"}}},
        ),
        (
            {"method": "Distill"},
            {"method": "Distill", "distill": {"checkpointSeconds": 10}},
        ),
        (
            {"gates": [{"metric": "Perplexity", "max": "0.10"}]},
            {"gates": [{"metric": "Perplexity", "max": "0.1"}]},
        ),
        ({"gguf": {"types": ["Q8_0", "Q2_K"]}}, {"gguf": {"types": ["Q2_K", "Q8_0"]}}),
        ({"output": {"uri": "s3://bucket/a"}}, {"output": {"uri": "s3://bucket/a/"}}),
        ({"model": {"uri": "s3://b-1/a", "s3": {}}}, {"model": {"uri": "s3://b-1/a"}}),
    ],
    ids=[
        "default types",
        "the default device",
        "the default revision",
        "a dataset's defaults",
        "a threshold in another spelling",
        "zeros behind a parameter",
        "a student's default revision",
        "how often checkpoints are left",
        "zeros behind a gate",
        "types in another order",
        "a slash behind the output",
        "empty S3 options",
    ],
)
def test_two_spellings_of_one_run_have_one_digest(
    one: dict[str, Any], other: dict[str, Any]
) -> None:
    assert digest(one) == digest(other)


@pytest.mark.parametrize(
    "change",
    [
        {"suspend": True},
        {"backoffLimit": 5},
        {"activeDeadlineSeconds": 100},
        {"pendingDeadlineSeconds": 100},
        {"ttlSecondsAfterFinished": 100},
        {"pod": {"env": [{"name": "A", "value": "b"}], "scratch": {"size": "1Gi"}}},
        {"memory": {"offload": "CPU", "lowMemory": True}},
        {"model": {"secretRef": {"name": "other"}}},
        {"output": {"secretRef": {"name": "other"}}},
        {"model": {"s3": {"region": "eu-1"}}},
    ],
    ids=str,
)
def test_what_changes_only_how_a_run_goes_keeps_the_digest(change: dict[str, Any]) -> None:
    assert digest(merged(FULL, change)) == digest(FULL)


CHANGES: tuple[dict[str, Any], ...] = (
    {"model": {"uri": "s3://models/b"}},
    {"model": {"s3": {"endpoint": "http://b:9000"}}},
    {"model": {"trustRemoteCode": True}},
    {"model": {"allowPickle": True}},
    {"gguf": {"types": ["Q8_0"]}},
    {"gguf": {"importanceMatrix": False}},
    {"gguf": {"outputTensorType": "F16"}},
    {"gguf": {"tokenEmbeddingType": "F16"}},
    {"device": "GPU"},
    {"calibration": {"dataset": {"uri": "hf://a/text2"}}},
    {"calibration": {"dataset": {"revision": "v2"}}},
    {"calibration": {"dataset": {"split": "validation"}}},
    {"calibration": {"dataset": {"textField": "body"}}},
    {"calibration": {"dataset": {"messagesField": "chat"}}},
    {"calibration": {"samples": 65}},
    {"calibration": {"sequenceLength": 1024}},
    {"calibration": {"seed": 4}},
    {"calibration": {"applyChatTemplate": True}},
    {"evaluation": {"perplexity": {"dataset": {"uri": "hf://a/text3"}}}},
    {"evaluation": {"perplexity": {"contextLength": 512}}},
    {"evaluation": {"perplexity": {"maxTokens": 2048}}},
    {"evaluation": {"generations": {"prompts": ["one"]}}},
    {"evaluation": {"generations": {"maxNewTokens": 7}}},
    {"evaluation": {"benchmarks": [{"task": "hellaswag", "limit": 10}]}},
    {"evaluation": {"performance": {"promptTokens": 10}}},
    {"evaluation": {"skip": []}},
    {"gates": [{"metric": "Perplexity", "max": "9.5"}]},
    {"gates": [{"metric": "Perplexity", "min": "9.5"}, {"metric": "SizeBytes", "max": "9"}]},
    {"gates": [{"metric": "BenchmarkScore", "min": "0.5", "task": "hellaswag"}]},
    {"onGateFailure": "Publish"},
    {"output": {"uri": "s3://out/b"}},
    {"output": {"s3": {"endpoint": "http://b"}}},
    {"output": {"s3": {"kmsKeyId": "k2"}}},
    {"output": {"s3": {"serverSideEncryption": "aws:kms:dsse"}}},
)


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_what_changes_the_result_changes_the_digest(change: dict[str, Any]) -> None:
    assert digest(merged(FULL, change)) != digest(FULL)


def test_no_two_changes_share_a_digest() -> None:
    assert len({digest(merged(FULL, change)) for change in CHANGES}) == len(CHANGES)


@given(
    st.lists(
        st.sampled_from([c for c in CHANGES if "messagesField" not in str(c)]),
        unique_by=id,
        max_size=4,
    ),
    st.randoms(),
)
def test_several_changes_have_one_digest_in_any_order_of_keys(
    changes: list[dict[str, Any]], rng: random.Random
) -> None:
    spec = FULL
    for change in changes:
        spec = merged(spec, change)

    assert digest(shuffled(spec, rng)) == digest(spec)
    assert len(digest(spec)) == 8
