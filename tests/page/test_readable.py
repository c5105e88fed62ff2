"""How numbers are written."""

from __future__ import annotations

import pytest

from kubequant_worker import readable


@pytest.mark.parametrize(
    ("written", "text"),
    [
        pytest.param(readable.size(8_397_400), "8.0 MiB", id="mebibytes"),
        pytest.param(readable.size(4_920_739_232), "4.58 GiB", id="gibibytes"),
        pytest.param(readable.size(1024), "1,024 bytes", id="bytes with thousands"),
        pytest.param(readable.size(None), "", id="no size"),
        pytest.param(readable.decimal("-0.001"), "0.00", id="no minus before zero"),
        pytest.param(readable.decimal("22.545"), "22.54", id="a half to even"),
        pytest.param(readable.signed("0.51"), "+0.51", id="a plus"),
        pytest.param(readable.signed("-0.51"), "-0.51", id="a minus"),
        pytest.param(readable.signed("-0.001"), "0.00", id="no sign before zero"),
        pytest.param(readable.percent("0.507", 2, sign=True), "+0.51 %", id="percent with a sign"),
        pytest.param(readable.percent(None), "", id="no percent"),
        pytest.param(
            readable.with_error("+0.51 %", "0.061"), "+0.51 ± 0.06 %", id="an error before the unit"
        ),
        pytest.param(
            readable.with_error("0.0002", "0.00002"), "0.0002 ± 0.00002", id="a tiny error"
        ),
        pytest.param(readable.with_error("1.0", "0"), "1.0 ± 0.0", id="an error of nothing"),
        pytest.param(readable.seconds("0.000"), "0 s", id="no time"),
        pytest.param(readable.with_error("", "0.061"), "", id="no error of nothing"),
        pytest.param(readable.with_error("22.55", None), "22.55", id="no error"),
        pytest.param(
            readable.with_error("12,417", "1512.1"),
            "12,417 ± 1,512",
            id="as many places as the number",
        ),
        pytest.param(readable.divergence("0.000212"), "0.00021", id="a small divergence"),
        pytest.param(readable.divergence("0"), "0.0000", id="no divergence"),
        pytest.param(readable.divergence("3.4567"), "3.46", id="a large divergence"),
        pytest.param(readable.rate("812.4"), "812", id="a high rate"),
        pytest.param(readable.rate("71.04"), "71.0", id="a low rate"),
        pytest.param(readable.seconds("0.0042"), "4.2 ms", id="a few milliseconds"),
        pytest.param(readable.seconds("0.62"), "620 ms", id="milliseconds"),
        pytest.param(readable.seconds("12.54"), "12.5 s", id="seconds"),
        pytest.param(readable.seconds("612.5"), "10.2 min", id="minutes"),
        pytest.param(readable.times("1.86"), "1.86\N{MULTIPLICATION SIGN}", id="a factor"),
    ],
)
def test_a_number_is_short_and_keeps_what_matters(written: str, text: str) -> None:
    assert written == text
