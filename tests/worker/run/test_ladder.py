"""The ladders, as a table: what follows each setting, and what stands in which slot when."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.api.cases import SMALLEST

from kubequant.api.contract import GateResult
from kubequant.api.engines import ENGINES
from kubequant.api.params import GGUFType
from kubequant.api.resource import read_manifest
from kubequant.api.spec import MEMBERS, QuantizationJobSpec
from kubequant_worker import ladder
from kubequant_worker.escalation import Escalation, may_help
from kubequant_worker.methods.gguf_types import FULL_PRECISION, LEVELS

if TYPE_CHECKING:
    from kubequant.api.enums import Method

EVERYTHING = frozenset({"LlamaCpp", *(engine for engine, _, _ in ladder.LADDERS)})


def spec(**fields: Any) -> QuantizationJobSpec:
    return read_manifest({**SMALLEST, "spec": {**SMALLEST["spec"], **fields}}).spec


def climb(engine: str, **fields: Any) -> list[str]:
    """Return the settings above what the fields ask for."""
    asked = spec(onGateFailure="Escalate", **fields)
    (start,) = ladder.standing(asked, engine)
    return [
        f"{rung.variant}: {ladder.setting(asked, rung)}" if not rung.types else rung.variant
        for rung in ladder.rungs(asked, start, EVERYTHING)
    ]


@pytest.mark.parametrize(
    ("kind", "follow"),
    [
        ("Q2_K", ["Q3_K_M", "Q4_K_M", "Q5_K_M", "Q6_K", "Q8_0"]),
        ("Q3_K_S", ["Q3_K_M", "Q4_K_M", "Q5_K_M", "Q6_K", "Q8_0"]),
        ("Q3_K_M", ["Q4_K_M", "Q5_K_M", "Q6_K", "Q8_0"]),
        ("Q3_K_L", ["Q4_K_M", "Q5_K_M", "Q6_K", "Q8_0"]),
        ("Q4_0", ["Q5_0", "Q8_0"]),
        ("Q4_1", ["Q5_1", "Q8_0"]),
        ("Q4_K_S", ["Q5_K_S", "Q6_K", "Q8_0"]),
        ("Q4_K_M", ["Q5_K_M", "Q6_K", "Q8_0"]),
        ("Q5_0", ["Q8_0"]),
        ("Q5_1", ["Q8_0"]),
        ("Q5_K_S", ["Q6_K", "Q8_0"]),
        ("Q5_K_M", ["Q6_K", "Q8_0"]),
        ("Q6_K", ["Q8_0"]),
        ("Q8_0", []),
        ("F16", []),
        ("BF16", []),
    ],
)
def test_each_gguf_type_is_followed_by_more_careful_ones(kind: str, follow: list[str]) -> None:
    assert climb("LlamaCpp", method="GGUF", gguf={"types": [kind]}) == follow
    bits = [LEVELS[GGUFType(one)].bits_per_weight for one in (kind, *follow)]
    assert bits == sorted(bits)


def test_every_gguf_type_has_its_place() -> None:
    assert set(ladder.NEXT_TYPE) == set(GGUFType)
    assert {kind for kind, follows in ladder.NEXT_TYPE.items() if follows is None} == {
        GGUFType.Q8_0,
        *FULL_PRECISION,
    }


GPTQ_4, AWQ_4 = "GPTQ: 4 bits, groups of 128", "AWQ: 4 bits, groups of 128"
LESS_50, LESS_40, LESS_30, LESS_20 = (
    f"Prune: {percent} % zeros, SparseGPT" for percent in (50, 40, 30, 20)
)
INT8, GPTQ_8 = "INT8: 8 bits, WeightAndActivation", "GPTQ: 8 bits, groups of 128"


@pytest.mark.parametrize(
    ("engine", "fields", "follow"),
    [
        pytest.param(
            "LLMCompressor", {"method": "INT4"}, [GPTQ_4, AWQ_4, INT8, GPTQ_8], id="rounding"
        ),
        pytest.param(
            "LLMCompressor", {"method": "GPTQ"}, [AWQ_4, INT8, GPTQ_8], id="GPTQ, not again itself"
        ),
        pytest.param(
            "LLMCompressor",
            {"method": "GPTQ", "gptq": {"bits": 3}},
            [GPTQ_4, AWQ_4, INT8, GPTQ_8],
            id="three bits",
        ),
        pytest.param(
            "LLMCompressor",
            {"method": "GPTQ", "gptq": {"groupSize": -1}},
            [GPTQ_4, AWQ_4, INT8, GPTQ_8],
            id="whole rows, then groups",
        ),
        pytest.param(
            "LLMCompressor",
            {"method": "INT4", "int4": {"groupSize": 32}},
            ["GPTQ: 4 bits, groups of 32", "AWQ: 4 bits, groups of 32", INT8,
             "GPTQ: 8 bits, groups of 32"],
            id="groups never get coarser",
        ),
        pytest.param("LLMCompressor", {"method": "AWQ"}, [INT8, GPTQ_8], id="AWQ"),
        pytest.param("LLMCompressor", {"method": "INT8"}, [GPTQ_8], id="INT8"),
        pytest.param("LLMCompressor", {"method": "FP8"}, [GPTQ_8], id="FP8"),
        pytest.param(
            "LLMCompressor", {"method": "GPTQ", "gptq": {"bits": 8}}, [], id="GPTQ in 8 bits"
        ),
        pytest.param(
            "GPTQModel",
            {"method": "GPTQ"},
            ["GPTQ: 4 bits, groups of 32", GPTQ_8],
            id="gptqmodel's GPTQ",
        ),
        pytest.param(
            "GPTQModel",
            {"method": "GPTQ", "gptq": {"groupSize": 32}},
            ["GPTQ: 8 bits, groups of 32"],
            id="gptqmodel's GPTQ in small groups",
        ),
        pytest.param(
            "GPTQModel",
            {"method": "AWQ"},
            ["AWQ: 4 bits, groups of 32", GPTQ_8],
            id="gptqmodel's AWQ",
        ),
        pytest.param(
            "BitsAndBytes",
            {"method": "BitsAndBytes", "bitsAndBytes": {"bits": 4, "quantType": "FP4"}},
            ["BitsAndBytes: 4 bits, NF4", "BitsAndBytes: 8 bits"],
            id="fp4",
        ),
        pytest.param(
            "BitsAndBytes",
            {"method": "BitsAndBytes", "bitsAndBytes": {"bits": 4}},
            ["BitsAndBytes: 8 bits"],
            id="nf4",
        ),
        pytest.param("BitsAndBytes", {"method": "BitsAndBytes"}, [], id="8 bits by bitsandbytes"),
        pytest.param(
            "AutoAWQ", {"method": "AWQ"}, ["AWQ: 4 bits, groups of 32"], id="AutoAWQ's finer groups"
        ),
        pytest.param(
            "AutoRound",
            {"method": "INT4", "int4": {"rounding": "Tuned"}},
            ["INT4: 4 bits, groups of 32, Tuned"],
            id="tuned rounding",
        ),
        pytest.param(
            "TorchAO", {"method": "INT8"}, ["INT8: 8 bits, WeightOnly"], id="torchao's INT8"
        ),
        pytest.param(
            "ONNXRuntime", {"method": "INT8"}, ["INT8: 8 bits, WeightOnly"], id="onnxruntime's INT8"
        ),
        pytest.param(
            "LLMCompressor", {"method": "Prune"}, [LESS_40, LESS_30, LESS_20], id="less and less"
        ),
        pytest.param(
            "LLMCompressor",
            {"method": "Prune", "prune": {"pattern": "TwoOfFour"}},
            [LESS_50, LESS_40, LESS_30, LESS_20],
            id="two of four, then any",
        ),
        pytest.param(
            "Torch",
            {"method": "Prune", "prune": {"algorithm": "Magnitude", "sparsity": "0.3"}},
            [LESS_30, LESS_20],
            id="by size, then by what goes through",
        ),
        pytest.param(
            "LLMCompressor",
            {"method": "Prune", "prune": {"sparsity": "0.1"}},
            [],
            id="less than any rung",
        ),
        pytest.param("SomeEngine", {"method": "GPTQ"}, [], id="an engine without a ladder"),
    ],
)  # fmt: skip
def test_what_follows_a_setting(engine: str, fields: dict[str, Any], follow: list[str]) -> None:
    assert climb(engine, **fields) == follow


def test_an_engine_that_the_image_does_not_hold_is_passed_over() -> None:
    asked = spec(method="INT4", onGateFailure="Escalate")
    (start,) = ladder.standing(asked, "LLMCompressor")

    assert ladder.rungs(asked, start, {"LlamaCpp"}) == ()


@pytest.mark.parametrize("key", ladder.LADDERS, ids=str)
def test_each_rung_is_a_spec_that_a_user_could_have_written(key: tuple[str, Method, int]) -> None:
    engine, method, bits = key
    member, kind = MEMBERS[method]
    tuned = {"rounding": "Tuned"} if engine == "AutoRound" else {}
    known = {"engine": engine, "bits": bits, **tuned}
    named = {name: value for name, value in known.items() if name in kind.model_fields}
    parameters = {**named, "ignore": ["lm_head", "re:.*down_proj"]}
    asked = spec(method=method.value, **{_alias(member): parameters})
    for rung in ladder.LADDERS[key]:
        made = ladder.spec_of(asked, [rung])
        again = read_manifest({**SMALLEST, "spec": made.to_json()}).spec
        assert again.parameters() == made.parameters()
        assert made.effective_device() is asked.effective_device()
        # What the user kept out stays out.
        assert getattr(made.parameters(), "ignore", ()) == ("lm_head", "re:.*down_proj")
        doing = [one.name for one in ENGINES.get(rung.method, ())]
        assert rung.engine in doing or rung.engine not in {
            one.name for engines in ENGINES.values() for one in engines
        }


def _alias(member: str) -> str:
    return "bitsAndBytes" if member == "bits_and_bytes" else member


def test_a_gguf_rung_keeps_the_matrix_and_the_types_of_single_tensors() -> None:
    asked = spec(
        method="GGUF",
        gguf={"types": ["Q2_K"], "importanceMatrix": True, "outputTensorType": "Q8_0"},
    )
    start = ladder.standing(asked, "LlamaCpp")[0]
    rungs = ladder.rungs(asked, start, EVERYTHING)[:2]

    made = ladder.spec_of(asked, rungs).gguf

    assert made is not None
    assert made.types == (GGUFType.Q3_K_M, GGUFType.Q4_K_M)
    assert made.importance_matrix
    assert made.output_tensor_type == "Q8_0"
    assert ladder.setting(asked, rungs[0]) == "Q3_K_M with an importance matrix"


def escalation(**fields: Any) -> Escalation:
    asked = spec(method="GGUF", onGateFailure="Escalate", **fields)
    return Escalation(asked, "LlamaCpp", EVERYTHING)


def test_a_rung_stands_for_every_slot_that_it_took() -> None:
    climbing = escalation(gguf={"types": ["Q4_K_M", "Q5_K_M"]})
    four, five = climbing.slots

    four.advance()
    assert [rung.variant for rung in climbing.standing] == ["Q5_K_M"]
    assert climbing.stands_for("Q5_K_M") == {"Q4_K_M", "Q5_K_M"}
    assert climbing.in_place_of("Q5_K_M") == ("Q4_K_M",)

    five.advance()
    assert [rung.variant for rung in climbing.standing] == ["Q5_K_M", "Q6_K"]
    assert climbing.stands_for("Q5_K_M") == {"Q4_K_M"}
    assert climbing.may_stand(five.standing.key)
    assert not climbing.may_stand(four.tried[0].key)


def test_a_gate_of_a_type_is_held_by_what_takes_its_place_and_by_nobody_else() -> None:
    gates = [
        {"metric": "MeanKLDivergence", "max": "0.001", "variant": "Q4_K_M"},
        {"metric": "SizeBytes", "max": "9"},
    ]
    climbing = escalation(gguf={"types": ["Q4_K_M", "Q5_K_M"]}, gates=gates)
    four, five = climbing.slots
    four.advance()
    failed = GateResult(gate=0, variant="Q5_K_M", metric="MeanKLDivergence", passed=False)

    assert climbing.missed(four, [failed]) == (failed,)
    assert climbing.missed(five, [failed]) == ()
    every = failed.model_copy(update={"gate": 1})
    assert climbing.missed(five, [every]) == climbing.missed(four, [every]) == (every,)


@pytest.mark.parametrize("choice", ["Fail", "Publish"])
def test_nothing_is_tried_unless_the_manifest_says_so(choice: str) -> None:
    asked = spec(method="GGUF", onGateFailure=choice)
    assert Escalation(asked, "LlamaCpp", EVERYTHING).possible == ()


def test_the_ladders_in_the_document_are_those_of_the_table() -> None:
    document = Path(__file__).parents[3] / "docs" / "gates.md"

    assert document.read_text().endswith(f"\n\n{ladder.as_table()}\n")


@pytest.mark.parametrize(
    ("metric", "bounds", "value", "helps"),
    [
        pytest.param("PerplexityIncreasePercent", {"max": "2"}, "3", True, id="quality"),
        pytest.param("BenchmarkScore", {"min": "0.5"}, "0.4", True, id="a score"),
        pytest.param("Speedup", {"min": "1.5"}, "1.2", True, id="speed, which a kernel decides"),
        pytest.param("SizeReductionPercent", {"min": "70"}, "60", False, id="too little saved"),
        pytest.param("SizeReductionPercent", {"max": "70"}, "80", True, id="too much saved"),
        pytest.param("SizeBytes", {"max": "10"}, "11", False, id="too large"),
        pytest.param("SizeBytes", {"min": "5", "max": "10"}, "4", True, id="too small"),
        pytest.param("SizeBytes", {"min": "5", "max": "10"}, "11", False, id="above both bounds"),
        pytest.param("PeakMemoryBytes", {"max": "10"}, "11", False, id="too much memory"),
        pytest.param("MeanKLDivergence", {"max": "1"}, None, False, id="not measured"),
        pytest.param("BenchmarkScore", {"min": "0.5"}, None, True, id="a score that is no number"),
    ],
)
def test_a_more_careful_setting_is_tried_where_it_may_help(
    metric: str, bounds: dict[str, str], value: str | None, *, helps: bool
) -> None:
    missed = GateResult.model_validate(
        {"variant": "Q4_0", "metric": metric, "passed": False, "value": value, **bounds}
    )

    assert may_help(missed) is helps
