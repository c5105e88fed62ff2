"""What a variant is said to be loaded by is what the table of engines names, and documented."""

from __future__ import annotations

import shlex
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.worker.methods.conftest import gguf_spec

from kubequant.api.engines import ENGINES
from kubequant.api.spec import MEMBERS
from kubequant_worker.methods import METHODS, ProducedVariant, Workspace

if TYPE_CHECKING:
    from kubequant.api.enums import Method
    from kubequant.api.status import Usage


def usage(method: Method, engine: str, folder: Path) -> Usage:
    """Return how what an engine makes is used, asked of the class that makes it."""
    module, _, attribute = METHODS[method, engine].partition(":")
    member, kind = MEMBERS[method]
    spec = gguf_spec().model_copy(update={"method": method, "gguf": None, member: kind()})
    work = Workspace(spec, folder, folder, folder, "tiny", threads=1)
    made = ProducedVariant(method.value, (Path("tiny-Q8_0.gguf"),), 1)
    found: Usage = getattr(import_module(module), attribute)(work).usage(made)
    return found


@pytest.mark.parametrize(("method", "engine"), METHODS)
def test_the_command_is_for_a_runtime_that_loads_it(
    tmp_path: Path, method: Method, engine: str
) -> None:
    (row,) = (one for one in ENGINES[method] if one.name == engine)
    found = usage(method, engine, tmp_path)
    words = shlex.split(found.command.splitlines()[0])

    assert found.runtime in row.served_by.split(", ")
    assert words[0] in {"vllm", "llama-server", "python", "trtllm-serve"}
    # vLLM finds the format in config.json: https://docs.vllm.ai/en/latest/features/quantization.
    assert words[0] != "vllm" or words == ["vllm", "serve", "."]
