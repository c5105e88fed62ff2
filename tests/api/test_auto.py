"""Method Auto becomes what the reference says for each goal."""

from __future__ import annotations

import pytest
from tests.api.cases import SMALLEST, with_spec

from kubequant.api.auto import resolve
from kubequant.api.resource import read_manifest


@pytest.mark.parametrize(
    ("hardware", "priority", "method", "parameters"),
    [
        ("GPU", "Quality", "AWQ", {"bits": 4}),
        ("GPU", "Speed", "GPTQ", {"bits": 4}),
        ("GPU", "Balanced", "INT8", {}),
        ("CPU", "Quality", "GGUF", {"types": ["Q6_K", "Q8_0"]}),
        ("CPU", "Speed", "GGUF", {"types": ["Q4_0"]}),
        ("CPU", "Balanced", "GGUF", {"types": ["Q4_K_M", "Q5_K_M"]}),
        ("AppleSilicon", "Quality", "GGUF", {"types": ["Q4_K_M", "Q5_K_M"]}),
        ("AppleSilicon", "Speed", "GGUF", {"types": ["Q4_K_M", "Q5_K_M"]}),
        ("AppleSilicon", "Balanced", "GGUF", {"types": ["Q4_K_M", "Q5_K_M"]}),
    ],
)
def test_auto_becomes_the_method_for_its_goal(
    hardware: str, priority: str, method: str, parameters: dict[str, object]
) -> None:
    goal = {"hardware": hardware, "priority": priority}
    auto = read_manifest(with_spec({"method": "Auto", "goal": goal})).spec

    resolution = resolve(auto)

    assert resolution.spec.method.value == method
    assert resolution.spec.parameters().to_json().items() >= parameters.items()
    assert {hardware, priority, method} <= set(resolution.reason.replace(":", "").split())
    # What was chosen is a spec that a user could have written.
    read_manifest({**SMALLEST, "spec": resolution.spec.to_json()})


def test_a_method_that_is_named_stays() -> None:
    spec = read_manifest(SMALLEST).spec

    assert resolve(spec).spec is spec
