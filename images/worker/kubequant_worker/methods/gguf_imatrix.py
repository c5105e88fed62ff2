"""The importance matrix.

How strongly each input column of each weight is used over the calibration text.

For every matrix multiplication with a weight of a block, the sum over all tokens of the squared
input, column by column, and the number of tokens; for experts, both per expert. That is what
tools/imatrix/imatrix.cpp of llama.cpp stores, except that small batches count here too, and that
sums are kept in double precision.

The collector runs in the engine's child process; reading and writing the file works anywhere.
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt

from kubequant_worker.methods.gguf_file import read_float_tensors, write_float_tensors

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

_SUMS, _COUNTS = ".in_sum2", ".counts"
_DIMENSIONS = 4
_OBJECT_BYTES = 32  # sizeof(struct ggml_object), which ggml_tensor_overhead() adds to a tensor's
_TYPE_F32, _TYPE_I32 = 0, 26
FloatArray = npt.NDArray[np.float64]


class GgmlTensor(ctypes.Structure):
    """`struct ggml_tensor` of ggml/include/ggml.h, as the pinned llama.cpp has it.

    `check_layout` proves it.
    """


GgmlTensor._fields_ = [  # how ctypes declares pointers to itself
    ("type", ctypes.c_int),
    ("buffer", ctypes.c_void_p),
    ("ne", ctypes.c_int64 * _DIMENSIONS),
    ("nb", ctypes.c_size_t * _DIMENSIONS),
    ("op", ctypes.c_int),
    ("op_params", ctypes.c_int32 * 16),
    ("flags", ctypes.c_int32),
    ("src", ctypes.POINTER(GgmlTensor) * 10),
    ("view_src", ctypes.POINTER(GgmlTensor)),
    ("view_offs", ctypes.c_size_t),
    ("data", ctypes.c_void_p),
    ("name", ctypes.c_char * 64),
    ("extra", ctypes.c_void_p),
    ("padding", ctypes.c_char * 8),
]


class _Ggml:
    """The few functions of libggml-base that the binding does not declare."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self.overhead = library.ggml_tensor_overhead
        self.overhead.restype = ctypes.c_size_t
        self.op_name = library.ggml_op_name
        self.op_name.argtypes, self.op_name.restype = [ctypes.c_int], ctypes.c_char_p
        self.nbytes = library.ggml_nbytes
        self.nbytes.argtypes, self.nbytes.restype = [ctypes.c_void_p], ctypes.c_size_t
        self.get_name = library.ggml_get_name
        self.get_name.argtypes, self.get_name.restype = [ctypes.c_void_p], ctypes.c_void_p
        self.get = library.ggml_backend_tensor_get
        self.get.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t]
        self.get.restype = None

    def check_layout(self) -> None:
        """Prove that `GgmlTensor` has the library's size.

        Raises:
            RuntimeError: The library's structure has another size.
        """
        expected = self.overhead() - _OBJECT_BYTES
        if ctypes.sizeof(GgmlTensor) != expected:
            raise RuntimeError(
                f"struct ggml_tensor has {expected} bytes in this llama.cpp, "
                f"{ctypes.sizeof(GgmlTensor)} in ours"
            )

    def read(self, address: int, tensor: GgmlTensor) -> npt.NDArray[Any]:
        """Return a tensor's values, wherever the backend holds them.

        The axes come in reverse, as numpy's.
        """
        size = self.nbytes(address)
        raw = np.empty(size, np.uint8)
        self.get(address, raw.ctypes.data, 0, size)
        kind = np.float32 if tensor.type == _TYPE_F32 else np.int32
        return np.ndarray(tuple(tensor.ne)[::-1], kind, raw.data, 0, tuple(tensor.nb)[::-1])


class Collector:
    """Sums what it sees through `cb_eval` of a context.

    `sums` and `counts` are keyed by the weight's name.

    A weight's sums have the shape (experts, columns) and its counts (experts,), experts being 1 for
    a dense one.
    """

    _operations: ClassVar[tuple[str, ...]] = ("MUL_MAT", "MUL_MAT_ID")

    def __init__(self, library: ctypes.CDLL) -> None:
        """Use the functions of `library`, libggml-base.

        Raises:
            RuntimeError: The library's tensors have another layout than ours.
        """
        self._ggml = _Ggml(library)
        self._ggml.check_layout()
        names = [self._ggml.op_name(number).decode() for number in range(64)]
        self._dense, self._experts = (names.index(name) for name in self._operations)
        self.sums: dict[str, FloatArray] = {}
        self.counts: dict[str, FloatArray] = {}
        self.error: Exception | None = None

    def __call__(self, address: int, ask: bool, _data: object) -> bool:  # noqa: FBT001 - C decides
        """Be the callback: say whether a node is wanted, then take it.

        False stops the computation.
        """
        tensor = ctypes.cast(address, ctypes.POINTER(GgmlTensor)).contents
        if tensor.op not in {self._dense, self._experts}:
            return not ask
        name = tensor.src[0].contents.name.decode()
        # A backend may copy a weight under a name like CUDA0#blk.0.attn_k.weight#0.
        name = name.split("#")[1] if "#" in name else name
        if not name.startswith("blk.") or tensor.src[1].contents.type != _TYPE_F32:
            return not ask
        if ask:
            return True
        try:
            self._take(tensor, name)
        except (RuntimeError, ValueError) as error:
            # An exception cannot pass through C: it is kept for the caller, who raises it.
            self.error = error
            return False
        return True

    def _take(self, tensor: GgmlTensor, name: str) -> None:
        weight, inputs = tensor.src[0].contents, tensor.src[1].contents
        values = self._ggml.read(ctypes.addressof(inputs), inputs)
        columns = values.shape[-1]
        if tensor.op == self._experts:
            ids_tensor = tensor.src[2].contents
            ids = self._ggml.read(ctypes.addressof(ids_tensor), ids_tensor)[0, 0]
            self._add_experts(name, int(weight.ne[2]), columns, values[0], ids)
            return
        matrices = int(weight.ne[2])
        sums = self.sums.setdefault(name, np.zeros((matrices, columns)))
        counts = self.counts.setdefault(name, np.zeros(1))
        for outer in values:
            for index, rows in enumerate(outer):
                sums[index % matrices] += _column_energy(rows)
        counts += values.size // columns // matrices
        _require_finite(name, sums)

    def _add_experts(
        self,
        name: str,
        experts: int,
        columns: int,
        values: npt.NDArray[np.float32],
        ids: npt.NDArray[np.int32],
    ) -> None:
        """Add the inputs, shape (tokens, 1 or used, columns), to the experts in `ids`.

        Shape (tokens, used).
        """
        sums = self.sums.setdefault(name, np.zeros((experts, columns)))
        counts = self.counts.setdefault(name, np.zeros(experts))
        for place in range(ids.shape[1]):
            rows = values[:, place % values.shape[1]]
            for expert in np.unique(ids[:, place]):
                chosen = rows[ids[:, place] == expert]
                sums[expert] += _column_energy(chosen)
                counts[expert] += len(chosen)
        _require_finite(name, sums)


def _column_energy(rows: npt.NDArray[np.float32]) -> FloatArray:
    """Return the sum of squares of each column; `rows` has the shape (tokens, columns)."""
    energy: FloatArray = np.einsum("ij,ij->j", rows, rows).astype(np.float64)
    return energy


def _require_finite(name: str, sums: FloatArray) -> None:
    if not np.isfinite(sums).all():
        raise ValueError(f"the inputs of {name} are not finite numbers")


def write_matrix(
    path: Path,
    sums: Mapping[str, FloatArray],
    counts: Mapping[str, FloatArray],
    *,
    datasets: Sequence[str],
    chunks: int,
    chunk_tokens: int,
) -> None:
    """Write the matrix as llama.cpp's own GGUF imatrix (imatrix.cpp, `save_imatrix`).

    Tensors sorted by name.
    """
    tensors: dict[str, npt.NDArray[np.float32]] = {}
    for name in sorted(sums):
        tensors[name + _SUMS] = sums[name].astype(np.float32)
        tensors[name + _COUNTS] = counts[name].astype(np.float32)[:, None]
    metadata: dict[str, str | int | Sequence[str]] = {
        "general.type": "imatrix",
        "imatrix.datasets": list(datasets),
        "imatrix.chunk_count": chunks,
        "imatrix.chunk_size": chunk_tokens,
    }
    write_float_tensors(path, metadata, tensors)


def column_weights(path: Path) -> dict[str, npt.NDArray[np.float32]]:
    """Return what the quantizer takes, by weight.

    Mean squared input per column, experts one after another.

    An expert that no token reached weighs every column the same, as tools/quantize does.
    """
    tensors = read_float_tensors(path)
    weights: dict[str, npt.NDArray[np.float32]] = {}
    for name, sums in tensors.items():
        if name.endswith(_SUMS):
            weight = name.removesuffix(_SUMS)
            counts = tensors[weight + _COUNTS]
            mean = np.where(counts > 0, sums / np.maximum(counts, 1), 1.0)
            weights[weight] = np.ascontiguousarray(mean, np.float32).ravel()
    return weights
