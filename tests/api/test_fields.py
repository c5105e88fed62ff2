"""Numbers as text: what they mean, and how a measured number is written."""

from __future__ import annotations

import math
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from kubequant.api.base import camel
from kubequant.api.fields import MeasuredDecimal, decimal_text, plain_decimal, quantity_bytes


@pytest.mark.parametrize(
    ("quantity", "size"),
    [
        ("0", 0),
        ("500", 500),
        ("1k", 1000),
        ("1.5Ki", 1536),
        ("20Gi", 20 * 2**30),
        ("0.1G", 100_000_000),
        ("3E", 3 * 10**18),
        ("1.0001Ki", 1024),
    ],
)
def test_a_quantity_is_bytes_rounded_down(quantity: str, size: int) -> None:
    assert quantity_bytes(quantity) == size


@pytest.mark.parametrize(
    ("written", "plain"),
    [
        ("0.10", "0.1"),
        ("100", "100"),
        ("1000000", "1000000"),
        ("-0.0", "0"),
        ("007.50", "7.5"),
        ("0.000000001", "0.000000001"),
    ],
)
def test_equal_decimals_have_one_plain_form(written: str, plain: str) -> None:
    assert plain_decimal(written) == plain


@given(st.floats(allow_nan=True, allow_infinity=True), st.integers(0, 12))
def test_a_measured_number_is_written_so_that_the_api_takes_it(number: float, places: int) -> None:
    text = decimal_text(number, places)

    if text is None:
        assert not math.isfinite(number) or abs(number) >= 1e15
    else:
        TypeAdapter(MeasuredDecimal).validate_python(text)
        assert abs(Decimal(text) - Decimal(number)) <= Decimal(10) ** -min(places, 9)


@pytest.mark.parametrize(
    ("name", "json_name"),
    [
        ("uri", "uri"),
        ("max_gpu_memory", "maxGPUMemory"),
        ("mean_kl_divergence", "meanKLDivergence"),
        ("compute_dtype", "computeDType"),
        ("tensor_rt", "tensorRT"),
        ("eta_seconds", "etaSeconds"),
        ("manifest_sha256", "manifestSha256"),
        ("kms_key_id", "kmsKeyId"),
    ],
)
def test_json_names_keep_acronyms(name: str, json_name: str) -> None:
    assert camel(name) == json_name
