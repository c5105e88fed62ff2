"""In which type of numbers a model is held, by the device that computes and by the checkpoint.

Half precision on a CPU without instructions for it is many times slower than float32, so nothing
here ever says "auto". Pure but for the processor's own list of what it can.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Final

from kubequant.api.enums import Device
from kubequant.api.outcome import FailureReason
from kubequant_worker.errors import BadRequestError
from kubequant_worker.sources.safetensors_header import read_header

if TYPE_CHECKING:
    from kubequant.api.spec import QuantizationJobSpec

CPUINFO: Final = Path("/proc/cpuinfo")
# x86 with AVX-512 or AMX, and Arm, by the words of /proc/cpuinfo.
_BFLOAT16_FLAGS: Final = frozenset({"avx512_bf16", "amx_bf16", "bf16"})
FULL: Final = "float32"
_BFLOAT16: Final = "bfloat16"
# safetensors' words for the types of unquantized weights, as torch calls them.
_FLOATS: Final = {"F64": "float64", "F32": FULL, "F16": "float16", "BF16": _BFLOAT16}
BYTES_OF: Final = {"float64": 8, FULL: 4, "float16": 2, _BFLOAT16: 2}


def has_bfloat16(cpuinfo: Path = CPUINFO) -> bool:
    """Say whether this processor computes with bfloat16."""
    try:
        text = cpuinfo.read_text(encoding="ascii", errors="replace")
    except OSError:
        return False
    return any(
        _BFLOAT16_FLAGS & set(line.partition(":")[2].split())
        for line in text.splitlines()
        if line.startswith(("flags", "Features"))
    )


def working_dtype(spec: QuantizationJobSpec, stored: str, *, bfloat16: bool) -> str:
    """Return the type to load a checkpoint of type `stored` in, by torch's name.

    A GPU computes in what the checkpoint stores, at most 32 bits wide. A CPU computes in float32;
    with lowMemory, and where it has `bfloat16` instructions, a bfloat16 checkpoint stays as it is.
    """
    if spec.effective_device() is Device.GPU:
        return FULL if BYTES_OF[stored] > BYTES_OF[FULL] else stored
    kept = spec.memory.low_memory and bfloat16 and stored == _BFLOAT16
    return _BFLOAT16 if kept else FULL


def stored_dtype(model: Path) -> str:
    """Return the type that most bytes of a checkpoint are stored in, by torch's name.

    Raises:
        BadRequestError: The weights are quantized already. (Headers were checked when the model was
            fetched.)
    """
    sizes: Counter[str] = Counter()
    for path in sorted(model.glob("*.safetensors")):
        for span in read_header(path):
            sizes[span.dtype] += span.end - span.begin
    if not sizes:  # pickled weights, which allowPickle let in
        return FULL
    name = sizes.most_common(1)[0][0]
    if name not in _FLOATS:
        raise BadRequestError(
            f"spec.model: most of the weights are stored as {name}, so they are quantized already; "
            "a method starts from a 16- or 32-bit checkpoint",
            reason=FailureReason.UNSUPPORTED_MODEL,
        )
    return _FLOATS[name]
