"""Which engine does a method: a literal table, and what `engine: Auto` becomes.

Operator and worker both ask here, the one to choose an image and the other to choose a module, so
that they cannot differ. Only engines that this version holds are in the table; the words are those
of the `engine` fields in `params`, and for methods without such a field the engine's own name.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from kubequant.api.enums import Device, Method

if TYPE_CHECKING:
    from collections.abc import Container

    from kubequant.api.spec import QuantizationJobSpec

AUTO: Final = "Auto"
LLAMA_CPP: Final = "LlamaCpp"
LLM_COMPRESSOR: Final = "LLMCompressor"
GPTQ_MODEL: Final = "GPTQModel"
TORCH_AO: Final = "TorchAO"
ONNX_RUNTIME: Final = "ONNXRuntime"
BITS_AND_BYTES: Final = "BitsAndBytes"
AUTO_ROUND: Final = "AutoRound"
TORCH: Final = "Torch"
AUTO_GPTQ: Final = "AutoGPTQ"
AUTO_AWQ: Final = "AutoAWQ"
ACCELERATE: Final = "Accelerate"
MODEL_OPT: Final = "ModelOpt"


@dataclass(frozen=True, slots=True)
class Engine:
    """One engine of a method.

    `devices` are those that it quantizes on, `auto_on` those where Auto prefers it. `because` ends
    the sentence "LLMCompressor does INT8 on a GPU: ...". `writes` names the format, `served_by`
    what loads it. One that is `by_name_only` Auto never takes, though nothing else be there. `when`
    names a parameter and those of its values that are this engine's work alone.
    """

    name: str
    devices: frozenset[Device]
    because: str
    writes: str
    served_by: str
    auto_on: frozenset[Device] = frozenset(Device)
    by_name_only: bool = False
    when: tuple[str, tuple[str, ...]] | None = None


@dataclass(frozen=True, slots=True)
class EngineChoice:
    """The engine that does a spec, and in a sentence why it is this one."""

    name: str
    reason: str


_EVERYWHERE: Final = frozenset(Device)
_CPU: Final = frozenset({Device.CPU})
_GPU: Final = frozenset({Device.GPU})
_COMPRESSED: Final = ("compressed-tensors", "vLLM, transformers")
_DENSE: Final = ("safetensors", "vLLM, transformers")
_LEGACY: Final = "it reproduces what older pipelines made"

ENGINES: Final[dict[Method, tuple[Engine, ...]]] = {
    # Its image holds llama.cpp for CPUs, which needs no more to quantize.
    Method.GGUF: (
        Engine(LLAMA_CPP, _CPU, "llama.cpp made the format", "GGUF", "llama.cpp, Ollama"),
    ),
    Method.INT8: (
        Engine(
            LLM_COMPRESSOR,
            _EVERYWHERE,
            "it smooths and calibrates, and vLLM serves what it writes",
            *_COMPRESSED,
            auto_on=_GPU,
        ),
        Engine(
            TORCH_AO,
            _EVERYWHERE,
            "it needs no data, and transformers computes in 8 bits with what it writes",
            "torchao",
            "transformers",
            auto_on=_CPU,
        ),
        Engine(
            ONNX_RUNTIME,
            _CPU,
            "it needs no data, and ONNX Runtime runs what it writes",
            "ONNX",
            "ONNX Runtime",
            auto_on=frozenset(),
        ),
    ),
    Method.INT4: (
        Engine(
            LLM_COMPRESSOR,
            _EVERYWHERE,
            "rounding to nearest needs no data and no GPU",
            *_COMPRESSED,
            when=("rounding", ("Nearest",)),
        ),
        Engine(
            AUTO_ROUND,
            _EVERYWHERE,
            "it learns the rounding from the calibration text",
            *_COMPRESSED,
            when=("rounding", ("Tuned",)),
        ),
    ),
    Method.FP8: (Engine(LLM_COMPRESSOR, _EVERYWHERE, "vLLM serves what it writes", *_COMPRESSED),),
    Method.GPTQ: (
        Engine(
            LLM_COMPRESSOR,
            _EVERYWHERE,
            "it is kept up, and vLLM serves what it writes",
            *_COMPRESSED,
        ),
        Engine(
            GPTQ_MODEL,
            _EVERYWHERE,
            "it writes the gptq format, which most servers load",
            "gptq",
            "vLLM, SGLang, transformers",
        ),
        Engine(
            AUTO_GPTQ,
            _GPU,
            _LEGACY,
            "gptq",
            "vLLM, transformers",
            auto_on=frozenset(),
            by_name_only=True,
        ),
    ),
    Method.AWQ: (
        Engine(
            GPTQ_MODEL,
            _EVERYWHERE,
            "it writes the awq format, which most servers load",
            "awq",
            "vLLM, SGLang, transformers",
        ),
        Engine(
            LLM_COMPRESSOR, _EVERYWHERE, "vLLM and transformers load what it writes", *_COMPRESSED
        ),
        Engine(
            AUTO_AWQ,
            _EVERYWHERE,
            _LEGACY,
            "awq",
            "vLLM, transformers",
            auto_on=frozenset(),
            by_name_only=True,
        ),
    ),
    Method.BITS_AND_BYTES: (
        Engine(
            BITS_AND_BYTES,
            _EVERYWHERE,
            "it made the format",
            "bitsandbytes",
            "vLLM, transformers",
        ),
    ),
    Method.PRUNE: (
        Engine(
            LLM_COMPRESSOR,
            _EVERYWHERE,
            "it does SparseGPT and Wanda",
            *_DENSE,
            when=("algorithm", ("SparseGPT", "Wanda")),
        ),
        Engine(
            TORCH,
            _EVERYWHERE,
            "magnitude needs no more",
            *_DENSE,
            when=("algorithm", ("Magnitude",)),
        ),
    ),
    Method.DISTILL: (
        Engine(ACCELERATE, _EVERYWHERE, "it trains by torch on whatever is there", *_DENSE),
    ),
    # A CPU is enough for the checkpoint; the API refuses it for an engine.
    Method.TENSOR_RT: (
        Engine(
            MODEL_OPT,
            _EVERYWHERE,
            "TensorRT-LLM reads what it writes",
            "ModelOpt",
            "TensorRT-LLM, vLLM",
        ),
    ),
}
"""The engines of each method, in the order in which Auto prefers them."""


def candidates(spec: QuantizationJobSpec) -> tuple[Engine, ...]:
    """Return the engines that can do `spec` on its device, the preferred one first.

    An engine that the spec names is the only one; method Auto has none.
    """
    device = spec.effective_device()
    engines = [
        engine
        for engine in ENGINES.get(spec.method, ())
        if device in engine.devices and _takes(engine, spec)
    ]
    engines.sort(key=lambda engine: device not in engine.auto_on)
    asked = _asked(spec)
    return tuple(
        engine
        for engine in engines
        if asked == engine.name or (asked in {None, AUTO} and not engine.by_name_only)
    )


def engine_choice(
    spec: QuantizationJobSpec, there: Container[str] | None = None
) -> EngineChoice | None:
    """Return the engine for `spec`, or None where no engine of this version can do it.

    `there` are the engines that the worker's environment holds, where only those count. A method
    that leaves nothing to choose has no reason.
    """
    fitting = candidates(spec)
    chosen = next((one for one in fitting if there is None or one.name in there), None)
    if chosen is None:
        return None
    asked, device = _asked(spec), spec.effective_device()
    if asked is None:
        return EngineChoice(chosen.name, "")
    if asked != AUTO:
        return EngineChoice(chosen.name, f"The spec names engine {chosen.name}.")
    because = chosen.because
    if chosen is not fitting[0]:
        because = f"{fitting[0].name}, which Auto prefers, is not installed here"
    return EngineChoice(chosen.name, f"{chosen.name} does {spec.method} on a {device}: {because}.")


def _asked(spec: QuantizationJobSpec) -> str | None:
    """Return the word of the field `engine`, None where the method has no such field."""
    if spec.method is Method.AUTO:
        return None
    asked: str | None = getattr(spec.parameters(), "engine", None)
    return asked


def _takes(engine: Engine, spec: QuantizationJobSpec) -> bool:
    """Say whether an engine can do what the parameters ask for."""
    if engine.when is not None:
        parameter, values = engine.when
        return getattr(spec.parameters(), parameter) in values
    if spec.method is Method.INT8 and spec.int8 is not None:
        return engine.name == LLM_COMPRESSOR or not spec.int8.smooths_as_asked()
    return True
