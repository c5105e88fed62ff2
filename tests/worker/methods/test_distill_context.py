"""How long the texts of a teacher and a student are whose contexts differ."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from tests.api.cases import SMALLEST

from kubequant.api.resource import read_manifest
from kubequant_worker.errors import BadRequestError
from kubequant_worker.methods.distill_context import ENDLESS, common_context, context_note

if TYPE_CHECKING:
    from kubequant.api.spec import QuantizationJobSpec


def asked(**fields: Any) -> QuantizationJobSpec:
    spec = {**SMALLEST["spec"], "method": "Distill", **fields}
    return read_manifest({**SMALLEST, "spec": spec}).spec


def measured(length: int, **more: Any) -> dict[str, Any]:
    return {"evaluation": {"perplexity": {"contextLength": length}, **more}}


@pytest.mark.parametrize(
    ("fields", "teacher", "student", "context"),
    [
        pytest.param({}, 4096, 4096, 4096, id="both have the same"),
        pytest.param({}, 2048, 1024, 1024, id="a student that knows fewer positions"),
        pytest.param({}, 1024, 2048, 1024, id="a teacher that knows fewer"),
        pytest.param(
            {"calibration": {"sequenceLength": 2048}, **measured(2048)},
            2048,
            1024,
            1024,
            id="defaults that the API server wrote out",
        ),
        pytest.param(
            {"calibration": {"sequenceLength": 512}, **measured(1024)},
            2048,
            1024,
            1024,
            id="what both can give",
        ),
        pytest.param(
            {"calibration": {"sequenceLength": 4000}},
            1024,
            1024,
            1024,
            id="more than either has, as with every method",
        ),
        pytest.param(
            measured(1500, skip=["Perplexity"]),
            2048,
            1024,
            1024,
            id="a window that nothing is measured with",
        ),
    ],
)
def test_the_context_is_what_both_models_have(
    fields: dict[str, Any], teacher: int, student: int, context: int
) -> None:
    assert common_context(asked(**fields), teacher=teacher, student=student) == context


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"calibration": {"sequenceLength": 1500}}, "spec.calibration.sequenceLength"),
        (measured(1500), "spec.evaluation.perplexity.contextLength"),
    ],
)
def test_what_one_of_them_cannot_give_is_refused(fields: dict[str, Any], field: str) -> None:
    with pytest.raises(BadRequestError) as refusal:
        common_context(asked(**fields), teacher=2048, student=1024)

    assert refusal.value.message == (
        f"{field}: 1500 tokens are more than both models take: the teacher's context has 2048 "
        "tokens, and the student's has 1024 tokens"
    )
    assert refusal.value.advice.startswith(f"set {field} to 1024 or less")


def test_that_one_is_shorter_is_told() -> None:
    assert context_note(teacher=512, student=512) == ""
    assert context_note(teacher=2048, student=1024) == (
        "The teacher's context has 2048 tokens and the student's has 1024 tokens: texts of at most "
        "1024 are trained on and measured."
    )


def test_a_context_that_no_config_states_has_no_number() -> None:
    assert context_note(teacher=ENDLESS, student=1024) == (
        "The teacher's context has no stated end and the student's has 1024 tokens: texts of at "
        "most 1024 are trained on and measured."
    )
    with pytest.raises(BadRequestError, match="the teacher's context has no stated end, and"):
        common_context(asked(**measured(1500)), teacher=ENDLESS, student=1024)
