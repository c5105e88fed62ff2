"""A report fits into a termination message, whatever it holds, and what comes back is never
believed."""

from __future__ import annotations

import base64
import hashlib
import json
import tracemalloc
import zlib
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.api.cases import SMALLEST
from tests.api.reports import REPORT

from kubequant.api.contract import (
    LIMIT_BYTES,
    Failure,
    Generation,
    RunReport,
    TerminationMessageError,
    decode_termination,
    encode_termination,
    settings_of,
)
from kubequant.api.outcome import ExitCode, FailureReason, Outcome
from kubequant.api.resource import read_manifest

NUMBERS = st.none() | st.decimals(0, 9999, places=4).map(str)


def texts(longest: int) -> st.SearchStrategy[str]:
    return st.text(max_size=longest) | st.text('é€😀\x01\\"', min_size=longest, max_size=longest)


REPORTS = st.fixed_dictionaries(
    {
        "digest": st.just("0123abcd"),
        "outcome": st.sampled_from(Outcome),
        "exitCode": st.sampled_from(ExitCode),
        "failure": st.none()
        | st.fixed_dictionaries(
            {
                "reason": st.sampled_from(FailureReason),
                "message": texts(1024),
                "advice": texts(1024),
                "exitCode": st.none() | st.integers(0, 255),
                "reportUri": st.just("") | st.text("ab/é", min_size=2048, max_size=2048),
            }
        ),
        "escalation": st.lists(
            st.fixed_dictionaries(
                {
                    "variant": st.sampled_from(["Q4_K_M", "Q2_K", "INT8"]),
                    "inPlaceOf": st.just("Q2_K"),
                    "gatesPassed": st.booleans(),
                    "missed": texts(253),
                }
            ),
            max_size=12,
        ),
        "variants": st.lists(
            st.fixed_dictionaries(
                {
                    "name": st.sampled_from(["Q4_K_M", "Q2_K", "INT8"]),
                    "uri": st.just("") | st.text("ab/é", max_size=2048),
                    "perplexity": NUMBERS,
                    "sizeBytes": st.none() | st.integers(0, 2**62),
                    "notes": st.lists(texts(200), max_size=5),
                    "generations": st.lists(
                        st.fixed_dictionaries({"prompt": texts(100), "quantized": texts(2000)}),
                        max_size=2,
                    ),
                }
            ),
            max_size=16,
        ),
        "warnings": st.lists(texts(300), max_size=20),
        "recommendations": st.lists(texts(300), max_size=16),
    }
).map(RunReport.model_validate)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.data_too_large])
@given(REPORTS)
def test_every_report_fits_and_says_what_was_left_out(report: RunReport) -> None:
    message = encode_termination(report)
    decoded = decode_termination(message)

    assert len(message.encode()) <= LIMIT_BYTES
    assert (decoded.digest, decoded.outcome, decoded.exit_code) == (
        report.digest,
        report.outcome,
        report.exit_code,
    )
    if not decoded.omitted:
        assert decoded == report
    if report.failure is not None:
        assert decoded.failure is not None
        assert decoded.failure.reason is report.failure.reason


def test_a_short_report_is_plain_json() -> None:
    report = RunReport(digest="0" * 8, outcome=Outcome.PUBLISHED, exit_code=ExitCode.PUBLISHED)

    assert json.loads(encode_termination(report)) == {
        "digest": "00000000",
        "outcome": "Published",
        "exitCode": 0,
    }


def test_a_longer_report_is_packed_and_whole() -> None:
    message = encode_termination(REPORT)

    assert message.startswith("z:")
    assert decode_termination(message) == REPORT


def test_bytes_count_and_not_characters() -> None:
    failure = Failure(reason=FailureReason.INTERNAL_ERROR, message="😀" * 1000)
    report = RunReport(
        digest="0" * 8, outcome=Outcome.FAILED, exit_code=ExitCode.BUG, failure=failure
    )

    assert len(encode_termination(report).encode()) <= LIMIT_BYTES
    assert decode_termination(encode_termination(report)) == report


def test_texts_go_before_numbers() -> None:
    # Hexadecimal digits of hashes cannot be packed well.
    noise = "".join(hashlib.sha256(bytes([n])).hexdigest() for n in range(150))
    variant = REPORT.variants[0].model_copy(
        update={"generations": (Generation(prompt="p", quantized=noise),)}
    )
    report = REPORT.model_copy(update={"variants": (variant,)})

    decoded = decode_termination(encode_termination(report))

    assert decoded.omitted[0] == "variants.generations"
    assert decoded.variants[0].generations == ()
    assert decoded.variants[0].perplexity == variant.perplexity
    assert decoded.settings == report.settings


def test_fields_of_a_newer_worker_are_passed_over() -> None:
    value = {**REPORT.to_json(), "novelty": {"a": 1}, "settings": None}
    value["variants"][0]["novelty"] = 2

    assert decode_termination(packed(value)).variants == REPORT.variants


def packed(value: Any) -> str:
    return "z:" + base64.b85encode(zlib.compress(json.dumps(value).encode(), 9)).decode()


BOMB = zlib.compress(b" " * 3_000_000, 9)
WHOLE = encode_termination(REPORT)
assert WHOLE.startswith("z:")


@pytest.mark.parametrize(
    "message",
    [
        "",
        "Killed",
        "null",
        "[]",
        "{}",
        '{"digest": "00000000"}',
        '{"digest": "not hex!", "outcome": "Published", "exitCode": 0}',
        '{"digest": "00000000", "outcome": "Published", "exitCode": 7}',
        '{"digest": "00000000", "outcome": "Published", "exitCode": 0, "variants": 3}',
        '{"digest": "\\ud800", "outcome": "Published", "exitCode": 0}',
        '{"digest": "00000000", "outcome": "Published", "exitCode": 1e400}',
        "[" * 4000,
        "x" * 100_000,
        "é" * 3000,
        "\ud800",
        "z:",
        "z:\x00",
        "z:é",
        'z:not base85 ~~ "',
        "z:" + base64.b85encode(b"not zlib at all").decode(),
        "z:" + base64.b85encode(BOMB).decode(),
        WHOLE[:-40],
        WHOLE[:-5],
        WHOLE[: len(WHOLE) // 2],
        WHOLE + "00000",
    ],
    ids=[
        "nothing",
        "another program's words",
        "null",
        "a list",
        "an empty object",
        "half a report",
        "a digest of another form",
        "an exit code that is not ours",
        "a number for variants",
        "half a surrogate",
        "a number beyond all",
        "brackets without end",
        "far too long",
        "too long in bytes alone",
        "no text at all",
        "a mark alone",
        "a zero byte",
        "what base85 has no sign for",
        "what is not base85",
        "what is not zlib",
        "three megabytes of blanks",
        "cut near its end",
        "cut at its checksum",
        "cut in half",
        "something behind its end",
    ],
)
def test_what_is_no_report_gets_a_clean_error_in_little_memory(message: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(TerminationMessageError):
            decode_termination(message)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert peak < 2 * 2**20


@settings(max_examples=200, deadline=None)
@given(
    st.text(max_size=500)
    | st.binary(max_size=400).map(lambda b: "z:" + base64.b85encode(b).decode())
)
def test_no_message_makes_the_reader_fail_otherwise(message: str) -> None:
    with pytest.raises(TerminationMessageError):
        decode_termination(message)


def test_settings_hold_every_default_and_no_pod_and_no_secret() -> None:
    manifest = json.loads(json.dumps(SMALLEST))
    manifest["spec"] |= {
        "model": {"uri": "hf://a/b", "secretRef": {"name": "hidden-one"}},
        "output": {"uri": "s3://bucket/a", "secretRef": {"name": "hidden-two"}},
        "calibration": {"dataset": {"uri": "hf://a/c", "secretRef": {"name": "hidden-three"}}},
        "evaluation": {
            "perplexity": {"dataset": {"uri": "hf://a/d", "secretRef": {"name": "hidden-four"}}}
        },
        "pod": {"env": [{"name": "A", "value": "hidden-five"}]},
    }

    written = settings_of(read_manifest(manifest).spec).to_json()

    assert "hidden" not in json.dumps(written)
    assert written["gguf"]["types"] == ["Q5_K_M", "Q4_K_M"]
    assert written["device"] == "CPU"
