"""The parent's half of ONNX Runtime: export once, quantize, and measure both with one runtime.

The export is the child's of `onnx_export_child`, quantizing that of `onnx_quantize_child`; neither
engine is imported here. What is asked of them for a method's parameters is the method's to say.
"""

from __future__ import annotations

import shutil
from abc import abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, Final, Self

import numpy as np

from kubequant.api.enums import Offload
from kubequant.api.status import Usage
from kubequant_worker.errors import BadRequestError
from kubequant_worker.evaluation.meter import Portion
from kubequant_worker.methods import Baseline, Needs
from kubequant_worker.methods.bounds import LIBRARIES_BYTES, kept_logits_bytes
from kubequant_worker.methods.checkpoint import CheckpointQuantizer
from kubequant_worker.methods.checkpoint_files import is_passenger, weight_bytes
from kubequant_worker.methods.child import Child
from kubequant_worker.methods.gguf_check import compare, judge
from kubequant_worker.methods.onnx_runtime import OnnxEngine, OnnxRuntime
from kubequant_worker.methods.precision import stored_dtype
from kubequant_worker.sources.model_folder import require_unquantized
from kubequant_worker.sources.selection import is_weights

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from kubequant.api.spec import QuantizationJobSpec
    from kubequant_worker.datasets import TextSet
    from kubequant_worker.evaluation.meter import Meter
    from kubequant_worker.methods import ProducedVariant, Quantizer, Workspace
    from kubequant_worker.methods.transformers_runtime import TransformersRuntime

_EXPORT_MODULE = "kubequant_worker.methods.onnx_export_child"
_QUANTIZE_MODULE = "kubequant_worker.methods.onnx_quantize_child"
# Protobuf reads no file above 2 GiB; far below it, weights are better off in a file that is mapped.
LARGEST_FILE_BYTES = 1 << 30
# The most that a run held, over the weights in float32. Random Llamas of 94, 156 and 185 million
# parameters took 0.6 GiB for libraries (anonymous memory of all its processes, while exporting) and
# 1.15 times their weights; measuring the original took 1.0 times, quantizing less than 1.2.
_MEMORY_FACTOR = 1.2
_TRACING_SHARE, _WRITING_SHARE = 3, 1


class ONNXRuntimeQuantizer(CheckpointQuantizer):
    """Implements `methods.Quantizer` for a folder with a `model.onnx`; `scheme` is a method's."""

    LIBRARY: ClassVar[str] = "onnxruntime"
    RUNTIME: ClassVar[type[TransformersRuntime]] = OnnxRuntime

    def __init__(self, workspace: Workspace) -> None:
        """Prepare to work in `workspace`; starts nothing."""
        super().__init__(workspace)
        self._exporter: Child | None = None
        self._made_bytes = (0, 0)
        self.largest_file_bytes = LARGEST_FILE_BYTES

    @classmethod
    @abstractmethod
    def scheme(cls, spec: QuantizationJobSpec) -> str:
        """Return what is quantized: WeightAndActivation, or WeightOnly."""

    @classmethod
    @abstractmethod
    def ignore(cls, spec: QuantizationJobSpec) -> Sequence[str]:
        """Return the words of the modules that stay as they are."""

    @classmethod
    def calibrates(cls, spec: QuantizationJobSpec) -> bool:
        """Return False: activations are quantized by what they are when they are computed."""
        del spec
        return False

    @classmethod
    def needs(cls, spec: QuantizationJobSpec, files: Mapping[str, int]) -> Needs:
        """Return what the run will take, taking the weights for 16 bits wide.

        torch holds them in float32 while the export is made, and ONNX Runtime while the original is
        measured; on the disk the export is twice the checkpoint.
        """
        for field, asked in (
            (f"offload: {spec.memory.offload.value}", spec.memory.offload is not Offload.NONE),
            ("lowMemory: true", spec.memory.low_memory),
        ):
            if asked:
                raise BadRequestError(
                    f"spec.memory.{field} is nothing that engine ONNXRuntime does: the model is "
                    "exported whole, in float32; remove it, or set engine: LLMCompressor"
                )
        weights = sum(size for name, size in files.items() if is_weights(name))
        kept_logits = kept_logits_bytes(weights)
        float32 = 2 * weights
        # Quantized matrices lie one by one on the disk before they are put together.
        quantized = 2 * weights * cls.bits(spec) / 16 * 1.25
        memory_bytes = int(LIBRARIES_BYTES + _MEMORY_FACTOR * float32)
        return Needs(
            scratch_bytes=int(sum(files.values()) + float32 * 1.1 + quantized + kept_logits),
            memory_bytes=memory_bytes,
            comfortable_memory_bytes=memory_bytes,
            memory_advice="engine LLMCompressor with spec.memory.offload: Disk needs less.",
        )

    def follow(self, earlier: Quantizer) -> None:
        """Take over the export, which lies where both work, and what it computes."""
        if not isinstance(earlier, ONNXRuntimeQuantizer):
            raise TypeError("only what ONNX Runtime loads can follow what it measured")
        super().follow(earlier)

    def baseline(self, meter: Meter) -> Baseline:
        """Export the checkpoint to ONNX, in float32: what is measured, and quantized."""
        require_unquantized(self._work.model)
        self._stored = stored_dtype(self._work.model)
        self._dtype = "float32"
        self._float.mkdir(parents=True, exist_ok=True)
        meter.set_total(_TRACING_SHARE + _WRITING_SHARE)
        portions = {
            "trace": Portion(meter, _TRACING_SHARE),
            "write": Portion(meter, _WRITING_SHARE),
        }

        def count(part: str, amount: float, total: float, message: str) -> None:
            if part == "write":
                portions["trace"].finish()
            portions[part].set_total(total)
            portions[part].advance(amount, message)

        job = {
            "model": str(self._work.model),
            "target": str(self._float),
            "loading": self.loading(),
            "ids": str(self._exported_ids),
            "reference": str(self._exported_logits),
        }
        try:
            self._started_exporter().call("export", job, on_event=count)
        finally:
            self._end_exporter()
        for path in sorted(self._work.model.iterdir()):  # what the runtime reads beside the model
            if path.is_file() and is_passenger(path.name):
                shutil.copyfile(path, self._float / path.name)
        size = weight_bytes(self._work.model)
        notes = (f"stored in {self._stored}, measured as ONNX in float32",)
        return Baseline(self._dtype, self._float, size, notes)

    @property
    def _float(self) -> Path:
        """Return the folder of the export."""
        return self._work.scratch / "float32"

    @property
    def _exported_ids(self) -> Path:
        return self._work.scratch / "exported-ids.npy"

    @property
    def _exported_logits(self) -> Path:
        """Return transformers' logits over the ids, float32, of before the export."""
        return self._work.scratch / "exported-logits.npy"

    def check_baseline(self, meter: Meter) -> tuple[str, ...]:
        """Hold the export's logits of a short text against transformers', and keep them.

        Raises:
            BadRequestError: The export computes something else.
        """
        warnings = super().check_baseline(meter)
        if self._reference is None:
            raise RuntimeError("nothing was computed to compare with")
        if not np.array_equal(self._reference.ids, np.load(self._exported_ids)):
            raise RuntimeError("the export was computed over other tokens than the model")
        judge(
            compare(np.load(self._exported_logits), self._reference.rows),
            target="ONNX",
            advice="transformers does not export this architecture as it computes it; set engine: "
            "LLMCompressor, or take another method",
        )
        return warnings

    def _measured_original(self) -> Path:
        return self._float

    def _produce(self, calibration: TextSet | None, meter: Meter) -> tuple[str, ...]:
        """Quantize the export, product by product, in a child of its own."""
        del calibration
        meter.advance(0, "reading the export")

        def count(amount: float, total: float, message: str) -> None:
            meter.set_total(total)
            meter.advance(amount, message)

        job = {
            "source": str(self._float),
            "target": str(self._work.artifact),
            "work": str(self._work.scratch / "products"),
            "scheme": self.scheme(self._spec),
            "ignore": list(self.ignore(self._spec)),
            "stored": self._stored,
            "largest_file_bytes": self.largest_file_bytes,
        }
        child = Child(_QUANTIZE_MODULE, engine="ONNX Runtime", threads=self._work.threads)
        try:
            made = child.call("quantize", job, on_event=count)
        finally:
            child.close()
        self._made_bytes = made["bytes"], made["embedding_bytes"]
        notes: list[str] = made["notes"]
        return tuple(notes)

    def _produced_bytes(self) -> int:
        return self._made_bytes[0]

    def _embedding_bytes(self) -> int:
        return self._made_bytes[1]

    def _travels(self, name: str) -> bool:
        """Say yes to config.json too: what loads ONNX reads the original's."""
        return is_passenger(name)

    def _engine_started(self) -> OnnxEngine:
        return OnnxEngine(self._work.threads)

    def loading(self) -> dict[str, Any]:
        """Return how to load the model: the fields of `transformers_model.Loading`."""
        return {**super().loading(), "device": "cpu", "dtype": "float32", "most_bytes": None}

    def usage(self, produced: ProducedVariant) -> Usage:
        """Return a command that loads the model and lets it go on with a text."""
        del produced
        trust = ", trust_remote_code=True" if self._spec.model.trust_remote_code else ""
        return Usage(runtime="ONNX Runtime", command=_USE.format(trust=trust))

    def _started_exporter(self) -> Child:
        if self._exporter is None:
            threads = self._work.threads
            self._exporter = Child(
                _EXPORT_MODULE,
                engine="the ONNX exporter",
                threads=threads,
                arguments=(str(threads),),
            )
        return self._exporter

    def _end_exporter(self) -> None:
        if self._exporter is not None:
            self._exporter.close()
            self._exporter = None

    def __enter__(self) -> Self:
        """Return itself; the exporter's imports take seconds, and begin while others fetch."""
        if self._reference is None:  # what follows another finds the export there
            self._started_exporter()
        return self

    def close(self) -> None:
        """End the children; a second call does nothing."""
        self._end_exporter()
        super().close()


# Needs onnxruntime, numpy and the tokenizer; the cache of keys and values begins empty.
_USE: Final = """\
python - <<'END'
import numpy as np
from onnxruntime import InferenceSession
from transformers import AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("."{trust})
session = InferenceSession("model.onnx")
inputs = session.get_inputs()
past = [i for i in inputs if i.name.startswith("past_key_values.")]
cache = [np.zeros((1, i.shape[1], 0, i.shape[3]), np.float32) for i in past]
new = ids = tokenizer("Once upon a time", return_tensors="np").input_ids
for _ in range(64):
    given = {{i.name: kept for i, kept in zip(past, cache)}}
    given["input_ids"] = new
    given["attention_mask"] = np.ones_like(ids)
    given["position_ids"] = np.arange(ids.size)[None, -new.size :]
    logits, *cache = session.run(None, {{i.name: given[i.name] for i in inputs}})
    new = logits[:, -1:].argmax(-1)
    if new.item() == tokenizer.eos_token_id:
        break
    ids = np.concatenate([ids, new], 1)
print(tokenizer.decode(ids[0], skip_special_tokens=True))
END"""
