"""One model per method: what `spec.gguf`, `spec.gptq` and the others hold.

Every field has a default, so that a manifest that names only its method is whole. A default that
depends on another field is None here and filled in by `effective`.
"""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Annotated, ClassVar, Final, Literal, Self

from pydantic import Field, StrictBool, StrictInt, StrictStr

from kubequant.api.base import Model, Pattern, Rule
from kubequant.api.fields import DECIMAL, DecimalText, Fraction, OpenFraction, between
from kubequant.api.student import Student

EXPRESSION: Final = "re:"
"""What a word for modules begins with where the rest is a regular expression."""


def _compiles(word: str) -> bool:
    """Say whether what is to be a regular expression is one, by Python's own reading."""
    try:
        re.compile(word.removeprefix(EXPRESSION) if word.startswith(EXPRESSION) else "")
    except re.error:
        return False
    return True


ModulePattern = Annotated[
    StrictStr,
    Field(min_length=1, max_length=128),
    Pattern(
        r"(re:)?[-A-Za-z0-9_.*+?^$|()\[\]\\]+",
        'a module name like "lm_head", or a regular expression like "re:.*down_proj"',
    ),
    Rule(
        message="must be a regular expression that Python compiles where it begins with re:; "
        "close what it opens, and write a backslash before a character that stands for itself",
        holds=_compiles,
        cel=None,
    ),
]
IgnoredModules = Annotated[tuple[ModulePattern, ...], Field(max_length=32)]
GroupSize = Literal[-1, 32, 64, 128]


# What `INT8Parameters.smooths_as_asked` denies, in CEL; the form is another rule's.
_NOT_SMOOTHED: Final = (
    "!has(self.smoothingStrength) "
    f"|| !self.smoothingStrength.matches(r'^{DECIMAL}$') "
    "|| double(self.smoothingStrength) in [0.0, 0.5]"
)

TUNING_ITERATIONS: Final = 200
"""AutoRound's own default."""


class GGUFType(StrEnum):
    """The levels of GGUF files, by llama.cpp's names."""

    Q2_K = "Q2_K"
    Q3_K_S = "Q3_K_S"
    Q3_K_M = "Q3_K_M"
    Q3_K_L = "Q3_K_L"
    Q4_0 = "Q4_0"
    Q4_1 = "Q4_1"
    Q4_K_S = "Q4_K_S"
    Q4_K_M = "Q4_K_M"
    Q5_0 = "Q5_0"
    Q5_1 = "Q5_1"
    Q5_K_S = "Q5_K_S"
    Q5_K_M = "Q5_K_M"
    Q6_K = "Q6_K"
    Q8_0 = "Q8_0"
    F16 = "F16"
    BF16 = "BF16"


class GGUFTensorType(StrEnum):
    """The types of single tensors in a GGUF file, by llama.cpp's names."""

    Q2_K = "Q2_K"
    Q3_K = "Q3_K"
    Q4_0 = "Q4_0"
    Q4_1 = "Q4_1"
    Q4_K = "Q4_K"
    Q5_0 = "Q5_0"
    Q5_1 = "Q5_1"
    Q5_K = "Q5_K"
    Q6_K = "Q6_K"
    Q8_0 = "Q8_0"
    F16 = "F16"
    BF16 = "BF16"
    F32 = "F32"


DEFAULT_GGUF_TYPES = (GGUFType.Q5_K_M, GGUFType.Q4_K_M)


class MethodParameters(Model):
    """What every method's member has in common."""

    def effective(self, *, on_cpu: bool) -> Self:  # noqa: ARG002 - the base has nothing to fill in
        """Return the parameters with every default filled in that depends on others."""
        return self


class INT8Parameters(MethodParameters):
    """Parameters of method INT8."""

    scheme: Literal["WeightAndActivation", "WeightOnly"] = "WeightAndActivation"
    """What is stored and computed in 8 bits: weights and activations, or weights alone."""
    smoothing_strength: Fraction = "0.5"
    """How much of the activations' range SmoothQuant moves into the weights, from "0" to "1"."""
    engine: Literal["Auto", "LLMCompressor", "TorchAO", "ONNXRuntime"] = "Auto"
    """The library that quantizes. Auto takes LLMCompressor on a GPU and TorchAO on a CPU."""
    ignore: IgnoredModules = ("lm_head",)
    """Modules that stay as they are, by name or by pattern."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            message="TorchAO smooths nothing; remove it or set engine: LLMCompressor",
            holds=lambda p: p.engine != "TorchAO" or not p.smooths_as_asked(),
            cel=f"self.engine != 'TorchAO' || {_NOT_SMOOTHED}",
            field="smoothingStrength",
        ),
        Rule(
            message="ONNXRuntime smooths nothing; remove it or set engine: LLMCompressor",
            holds=lambda p: p.engine != "ONNXRuntime" or not p.smooths_as_asked(),
            cel=f"self.engine != 'ONNXRuntime' || {_NOT_SMOOTHED}",
            field="smoothingStrength",
        ),
        Rule(
            message="is only for scheme WeightAndActivation, since it is activations that are "
            "smoothed; remove it or set scheme: WeightAndActivation",
            holds=lambda p: p.scheme != "WeightOnly" or not p.smooths_as_asked(),
            cel=f"self.scheme != 'WeightOnly' || {_NOT_SMOOTHED}",
            field="smoothingStrength",
        ),
    )

    def smooths_as_asked(self) -> bool:
        """Say whether a strength of smoothing was asked for: neither the default nor none.

        The API server writes the default out, so that it asks for nothing.
        """
        return float(self.smoothing_strength) not in {0.0, 0.5}


class INT4Parameters(MethodParameters):
    """Parameters of method INT4."""

    group_size: GroupSize = 128
    """How many weights share one scale; -1 is one scale per row."""
    symmetric: StrictBool = True
    """Whether the levels lie evenly around zero."""
    rounding: Literal["Nearest", "Tuned"] = "Nearest"
    """Nearest needs no data; Tuned learns the rounding from the calibration text and takes
    longer."""
    iterations: Annotated[StrictInt, Field(ge=1, le=10_000)] | None = None
    """Tuned only: how many steps the rounding of each block is learned for. Default 200."""
    engine: Literal["Auto", "LLMCompressor", "AutoRound"] = "Auto"
    """The library that quantizes. Auto takes LLMCompressor for Nearest and AutoRound for Tuned."""
    ignore: IgnoredModules = ("lm_head",)
    """Modules that stay as they are, by name or by pattern."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            message="LLMCompressor rounds to nearest; set rounding: Nearest or engine: AutoRound",
            holds=lambda p: p.engine != "LLMCompressor" or p.rounding == "Nearest",
            cel="self.engine != 'LLMCompressor' || self.rounding == 'Nearest'",
            field="engine",
        ),
        Rule(
            message="AutoRound tunes the rounding; set rounding: Tuned or engine: LLMCompressor",
            holds=lambda p: p.engine != "AutoRound" or p.rounding == "Tuned",
            cel="self.engine != 'AutoRound' || self.rounding == 'Tuned'",
            field="engine",
        ),
        Rule(
            message="is only for rounding Tuned; remove it or set rounding: Tuned",
            holds=lambda p: p.iterations is None or p.rounding == "Tuned",
            cel="!has(self.iterations) || self.rounding == 'Tuned'",
            field="iterations",
        ),
    )

    def effective(self, *, on_cpu: bool) -> Self:  # noqa: ARG002 - the same on every device
        """Return the parameters with the default of the rounding that is tuned."""
        if self.rounding == "Nearest":
            return self
        return self.model_copy(update={"iterations": self.iterations or TUNING_ITERATIONS})


class FP8Parameters(MethodParameters):
    """Parameters of method FP8."""

    scheme: Literal["Dynamic", "Static", "Block"] = "Dynamic"
    """How scales are found: at run time, from the calibration text, or per block of weights."""
    ignore: IgnoredModules = ("lm_head",)
    """Modules that stay as they are, by name or by pattern."""


class GPTQParameters(MethodParameters):
    """Parameters of method GPTQ."""

    bits: Literal[2, 3, 4, 8] = 4
    """Bits per weight."""
    group_size: GroupSize = 128
    """How many weights share one scale; -1 is one scale per row."""
    damping_fraction: OpenFraction = "0.01"
    """What is added to the Hessian's diagonal, as a fraction of its mean, to keep it invertible."""
    activation_order: StrictBool = False
    """Quantize the columns with the largest activations first: better at few bits, slower to
    serve."""
    symmetric: StrictBool = True
    """Whether the levels lie evenly around zero."""
    true_sequential: StrictBool = True
    """Quantize the parts of a layer one after another, each seeing the error of those before it."""
    engine: Literal["Auto", "LLMCompressor", "GPTQModel", "AutoGPTQ"] = "Auto"
    """The library that quantizes. Auto takes LLMCompressor; AutoGPTQ is a legacy and needs a
    GPU."""
    ignore: IgnoredModules = ("lm_head",)
    """Modules that stay as they are, by name or by pattern."""


class AWQParameters(MethodParameters):
    """Parameters of method AWQ."""

    bits: Literal[4] = 4
    """Bits per weight."""
    group_size: GroupSize = 128
    """How many weights share one scale; -1 is one scale per row."""
    zero_point: StrictBool = True
    """Whether each group has a zero point of its own (asymmetric levels)."""
    version: Literal["GEMM", "GEMV"] = "GEMM"
    """The layout of the packed weights: GEMM for batches, GEMV for one request at a time, which
    only AutoAWQ writes."""
    engine: Literal["Auto", "GPTQModel", "LLMCompressor", "AutoAWQ"] = "Auto"
    """The library that quantizes. Auto takes GPTQModel; AutoAWQ is a legacy."""
    ignore: IgnoredModules = ("lm_head",)
    """Modules that stay as they are, by name or by pattern."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            message="GEMV is written by AutoAWQ alone; set version: GEMM or engine: AutoAWQ",
            holds=lambda p: p.version == "GEMM" or p.engine == "AutoAWQ",
            cel="self.version == 'GEMM' || self.engine == 'AutoAWQ'",
            field="version",
        ),
    )


class BitsAndBytesParameters(MethodParameters):
    """Parameters of method BitsAndBytes."""

    bits: Literal[8, 4] = 8
    """Bits per weight."""
    threshold: Annotated[DecimalText, between("0", "1000")] | None = None
    """8 bits only: activations above this are computed in 16 bits. Default "6.0"."""
    quant_type: Literal["NF4", "FP4"] | None = None
    """4 bits only: the set of levels. Default NF4."""
    double_quantization: StrictBool | None = None
    """4 bits only: quantize the scales too. Default true."""
    compute_dtype: Literal["BFloat16", "Float16", "Float32"] | None = None
    """4 bits only: the type in which products are computed. Default BFloat16, on a CPU Float32."""
    ignore: IgnoredModules = ("lm_head",)
    """Modules that stay as they are, by name or by pattern."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            message="is only for 8 bits; remove it or set bits: 8",
            holds=lambda p: p.threshold is None or p.bits == 8,  # noqa: PLR2004 - eight bits
            cel="!has(self.threshold) || self.bits == 8",
            field="threshold",
        ),
        Rule(
            message="is only for 4 bits; remove it or set bits: 4",
            holds=lambda p: p.quant_type is None or p.bits == 4,  # noqa: PLR2004 - four bits
            cel="!has(self.quantType) || self.bits == 4",
            field="quantType",
        ),
        Rule(
            message="is only for 4 bits; remove it or set bits: 4",
            holds=lambda p: p.double_quantization is None or p.bits == 4,  # noqa: PLR2004 - four bits
            cel="!has(self.doubleQuantization) || self.bits == 4",
            field="doubleQuantization",
        ),
        Rule(
            message="is only for 4 bits; remove it or set bits: 4",
            holds=lambda p: p.compute_dtype is None or p.bits == 4,  # noqa: PLR2004 - four bits
            cel="!has(self.computeDType) || self.bits == 4",
            field="computeDType",
        ),
    )

    def effective(self, *, on_cpu: bool) -> Self:
        """Return the parameters with the defaults of their number of bits."""
        if self.bits == 8:  # noqa: PLR2004 - eight bits
            return self.model_copy(update={"threshold": self.threshold or "6.0"})
        doubled = True if self.double_quantization is None else self.double_quantization
        return self.model_copy(
            update={
                "quant_type": self.quant_type or "NF4",
                "double_quantization": doubled,
                "compute_dtype": self.compute_dtype or ("Float32" if on_cpu else "BFloat16"),
            }
        )


class GGUFParameters(MethodParameters):
    """Parameters of method GGUF."""

    types: Annotated[tuple[GGUFType, ...], Field(min_length=1, max_length=16)] = DEFAULT_GGUF_TYPES
    """The levels to make, each a file of its own; the model is converted once for all of them."""
    importance_matrix: StrictBool = False
    """Weigh each column by its activations over the calibration text: better at few bits,
    slower."""
    output_tensor_type: GGUFTensorType | None = None
    """The type of the output tensor; where absent, llama.cpp's choice for the level."""
    token_embedding_type: GGUFTensorType | None = None
    """The type of the token embeddings; where absent, llama.cpp's choice for the level."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            message="must name each type once",
            holds=lambda p: len(set(p.types)) == len(p.types),
            cel="self.types.all(one, self.types.exists_one(other, other == one))",
            field="types",
        ),
    )


class PruneParameters(MethodParameters):
    """Parameters of method Prune."""

    algorithm: Literal["SparseGPT", "Wanda", "Magnitude"] = "SparseGPT"
    """How the weights to drop are chosen; Magnitude needs no data."""
    sparsity: OpenFraction = "0.5"
    """The fraction of weights to drop."""
    pattern: Literal["Unstructured", "TwoOfFour"] = "Unstructured"
    """Which weights may go: any, or two of every four, which GPUs can skip."""
    ignore: IgnoredModules = ("lm_head",)
    """Modules that stay as they are, by name or by pattern."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            message='must be "0.5" with pattern TwoOfFour, which drops two weights of four',
            holds=lambda p: p.pattern != "TwoOfFour" or float(p.sparsity) == 0.5,  # noqa: PLR2004 - a half
            cel="self.pattern != 'TwoOfFour' || double(self.sparsity) == 0.5",
            field="sparsity",
        ),
    )


class DistillParameters(MethodParameters):
    """Parameters of method Distill."""

    student: Student | None = None
    """The model that learns; where absent, the teacher with half of its layers."""
    temperature: Annotated[DecimalText, between("0.1", "100")] = "2.0"
    """By how much both models' logits are divided before they are compared."""
    hard_label_weight: Fraction = "0.1"
    """The share of the loss that comes from the text itself instead of the teacher."""
    steps: Annotated[StrictInt, Field(ge=1, le=10_000_000)] = 1000
    """How many optimizer steps to train."""
    learning_rate: OpenFraction = "0.0001"
    """The highest learning rate: it rises to it, then falls along a cosine to a tenth."""
    batch_size: Annotated[StrictInt, Field(ge=1, le=4096)] = 8
    """How many sequences one step sees; what does not fit at once is accumulated."""
    checkpoint_seconds: Annotated[StrictInt, Field(ge=1, le=86_400)] = 300
    """How often a checkpoint is left beside the output, from which a killed pod's successor goes
    on. It changes nothing of what comes out."""
