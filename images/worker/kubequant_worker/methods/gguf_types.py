"""The GGUF levels as llama.cpp knows them, and what a level did to a file's tensors.

Pure: values in, values out.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kubequant.api.outcome import FailureReason
from kubequant.api.params import GGUFType
from kubequant_worker.errors import BadRequestError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from kubequant.api.params import GGUFParameters
    from kubequant_worker.methods.gguf_file import Tensor


@dataclass(frozen=True, slots=True)
class Level:
    """One level.

    Llama.cpp's `llama_ftype`, its main tensor type, and bits per weight as measured on Llama 7B.

    The bits (tools/quantize/README.md of llama.cpp) serve to estimate sizes before anything is
    fetched.
    """

    file_type: int
    tensor_type: str
    bits_per_weight: float


LEVELS: dict[GGUFType, Level] = {
    GGUFType.F16: Level(1, "F16", 16.0),
    GGUFType.BF16: Level(32, "BF16", 16.0),
    GGUFType.Q4_0: Level(2, "Q4_0", 4.55),
    GGUFType.Q4_1: Level(3, "Q4_1", 5.1),
    GGUFType.Q8_0: Level(7, "Q8_0", 8.5),
    GGUFType.Q5_0: Level(8, "Q5_0", 5.54),
    GGUFType.Q5_1: Level(9, "Q5_1", 6.0),
    GGUFType.Q2_K: Level(10, "Q2_K", 3.35),
    GGUFType.Q3_K_S: Level(11, "Q3_K", 3.5),
    GGUFType.Q3_K_M: Level(12, "Q3_K", 3.91),
    GGUFType.Q3_K_L: Level(13, "Q3_K", 4.27),
    GGUFType.Q4_K_S: Level(14, "Q4_K", 4.58),
    GGUFType.Q4_K_M: Level(15, "Q4_K", 4.85),
    GGUFType.Q5_K_S: Level(16, "Q5_K", 5.54),
    GGUFType.Q5_K_M: Level(17, "Q5_K", 5.69),
    GGUFType.Q6_K: Level(18, "Q6_K", 6.59),
}
FULL_PRECISION = frozenset({GGUFType.F16, GGUFType.BF16})


def block_values(tensor_type: str) -> int:
    """Return how many values one block of a ggml tensor type holds.

    256 for k-quants, 32 for the older ones.
    """
    if tensor_type.endswith("_K"):
        return 256
    return 1 if tensor_type in {"F32", "F16", "BF16"} else 32


def type_counts(tensors: Iterable[Tensor]) -> str:
    """Return which tensor types a file holds and how often, like "17 Q4_K, 9 F32, 3 Q6_K"."""
    counts = Counter(tensor.type.name for tensor in tensors)
    return ", ".join(f"{count} {name}" for name, count in counts.most_common())


def fallback_notes(level: Level, tensors: Iterable[Tensor]) -> tuple[str, ...]:
    """Return a sentence for each type that tensors fell back to.

    Where a block does not divide a tensor's rows, llama.cpp chooses the nearest type whose block
    does (llama-quant.cpp, `tensor_type_fallback`), so the file is larger and more exact than the
    level says.
    """
    block = block_values(level.tensor_type)
    matrices = [tensor for tensor in tensors if len(tensor.shape) > 1 and tensor.type.name != "F32"]
    fallen = Counter(
        (tensor.type.name, tensor.row_width) for tensor in matrices if tensor.row_width % block
    )
    return tuple(
        f"{count} of {len(matrices)} tensors fell back to {name} because their rows are {width} "
        "wide, "
        f"which blocks of {block} do not divide"
        for (name, width), count in sorted(fallen.items())
    )


def require_fitting_types(parameters: GGUFParameters, tensors: Iterable[Tensor]) -> None:
    """Refuse an output or embedding type whose blocks do not divide that tensor's rows."""
    widths = {tensor.name: tensor.row_width for tensor in tensors}
    for field, asked, name in (
        ("outputTensorType", parameters.output_tensor_type, "output.weight"),
        ("tokenEmbeddingType", parameters.token_embedding_type, "token_embd.weight"),
    ):
        block = block_values(asked.value) if asked else 1
        if width := widths.get(name, 0) % block:
            raise BadRequestError(
                f"spec.gguf.{field}: {asked} holds values in blocks of {block}, which do not "
                f"divide the {widths[name]} values of a row of {name} ({width} are left over); "
                f"take {'Q8_0 or F16' if widths[name] % 32 == 0 else 'F16'}",
                reason=FailureReason.UNSUPPORTED_MODEL,
            )
