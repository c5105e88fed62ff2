"""The tiny model, converted and quantized once for all tests of this folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from kubequant.api.params import GGUFType
from kubequant.api.spec import QuantizationJobSpec
from kubequant_worker.datasets import Role, TextSet, bundled_text, text_set
from kubequant_worker.methods import Baseline, ProducedVariant, Workspace
from kubequant_worker.methods.gguf import GGUFQuantizer

if TYPE_CHECKING:
    from collections.abc import Iterator

TINY = Path(__file__).parents[3] / "examples" / "models" / "tiny-llama"


class Counter:
    """A meter that remembers what it was told."""

    def __init__(self) -> None:
        self.total = 0.0
        self.done = 0.0
        self.messages: list[str] = []

    def set_total(self, total: float) -> None:
        self.total = total

    def advance(self, amount: float, message: str | None = None) -> None:
        self.done += amount
        if message:
            self.messages.append(message)


def gguf_spec(*, trust_remote_code: bool = False, **gguf: Any) -> QuantizationJobSpec:
    """Return a spec of method GGUF with these parameters."""
    return QuantizationJobSpec.model_validate(
        {
            "model": {"uri": "hf://example/model", "trustRemoteCode": trust_remote_code},
            "method": "GGUF",
            "gguf": gguf or {"types": ["Q8_0"]},
            "calibration": {"sequenceLength": 256},
            "output": {"uri": "s3://bucket/prefix"},
        }
    )


def workspace(root: Path, model: Path, **gguf: Any) -> Workspace:
    """Return a workspace in `root` for the model in the folder `model`."""
    scratch, artifact = root / "scratch", root / "artifact"
    scratch.mkdir(parents=True)
    artifact.mkdir()
    return Workspace(gguf_spec(**gguf), model, scratch, artifact, "tiny", threads=2)


def short_calibration() -> TextSet:
    """Return some of the bundled calibration text, so that tests stay short."""
    return text_set("short", bundled_text(Role.CALIBRATION).documents[:12], bundled=True)


@dataclass
class Made:
    """A quantizer that has produced everything that its spec names."""

    quantizer: GGUFQuantizer
    work: Workspace
    baseline: Baseline
    variants: dict[str, ProducedVariant]
    meter: Counter
    warnings: tuple[str, ...]
    """What the check of the conversion warned of."""


def make(work: Workspace, calibration: TextSet | None = None) -> Made:
    """Convert and quantize."""
    quantizer, meter = GGUFQuantizer(work), Counter()
    try:
        baseline = quantizer.baseline(Counter())
        warnings = quantizer.check_baseline(Counter())
        variants = {made.name: made for made in quantizer.variants(calibration, meter)}
    except BaseException:
        quantizer.close()
        raise
    return Made(quantizer, work, baseline, variants, meter, warnings)


@pytest.fixture(scope="session")
def every_type(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    """The tiny model at all sixteen levels."""
    types = [kind.value for kind in GGUFType]
    made = make(workspace(tmp_path_factory.mktemp("every-type"), TINY, types=types))
    yield made
    made.quantizer.close()


@pytest.fixture(scope="session")
def weighed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    """The tiny model at Q2_K with an importance matrix."""
    work = workspace(
        tmp_path_factory.mktemp("weighed"), TINY, types=["Q2_K"], importanceMatrix=True
    )
    made = make(work, short_calibration())
    yield made
    made.quantizer.close()
