"""Method TensorRT: a checkpoint by NVIDIA ModelOpt, and of it an engine by TensorRT-LLM.

The checkpoint is made on a CPU or a GPU, and measured with its weights made plain by our own
reader, since transformers does not read it. An engine is built, and asked, by the TensorRT-LLM of
the image (`tensorrt_llm`) on the GPU that will serve it. Neither library is imported here.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Final

import numpy as np

from kubequant.api.enums import Offload
from kubequant.api.outcome import FailureReason
from kubequant.api.status import Usage
from kubequant.api.tensorrt import TensorRTParameters
from kubequant_worker.errors import BadRequestError
from kubequant_worker.evaluation.meter import Portion
from kubequant_worker.methods.checkpoint_check import computed_by, judge
from kubequant_worker.methods.checkpoint_files import weight_bytes
from kubequant_worker.methods.child import ChildFailedError
from kubequant_worker.methods.engine import EngineQuantizer, calibration_note
from kubequant_worker.methods.tensorrt_engine import judge_answers, require_gpu_for
from kubequant_worker.methods.tensorrt_llm import TensorRTLLM, require_tensorrt_llm
from kubequant_worker.methods.transformers_runtime import TransformersEngine, TransformersRuntime
from kubequant_worker.sources.selection import is_weights

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from kubequant.api.contract import EngineDetail
    from kubequant.api.spec import QuantizationJobSpec
    from kubequant_worker.datasets import TextSet
    from kubequant_worker.evaluation.meter import Meter
    from kubequant_worker.methods import Needs, ProducedVariant, Workspace
    from kubequant_worker.methods.child import Child

_RUNTIME_MODULE: Final = "kubequant_worker.methods.modelopt_runtime_child"
_WITHOUT_GPU: Final = (
    "spec.tensorRT.build: Checkpoint (precision FP8 or INT4AWQ) with spec.device: CPU needs no GPU."
)
ENGINE_FOLDER: Final = "engine"
# Shares of the stage, against one for calibration.
_SAVING_SHARE: Final = 0.2
_BUILDING_SHARE: Final = 1.0
MEASURED: Final = (
    "measured by transformers over weights that our own reader made plain, its inputs rounded by "
    "the checkpoint's scales: no runtime here computes with the stored numbers themselves"
)

NOT_TIMED: Final = (
    "speed and memory were not measured: here they would be those of plain weights in "
    "transformers, and not TensorRT-LLM's (trtllm-bench measures those)"
)


class ModelOptTensorRT(EngineQuantizer):
    """Calibrates by ModelOpt; builds by TensorRT-LLM where an engine is asked for."""

    LIBRARY: ClassVar[str] = "nvidia-modelopt"
    CHILD_MODULE: ClassVar[str] = "kubequant_worker.methods.modelopt_child"

    def __init__(self, workspace: Workspace) -> None:
        """Prepare to work in `workspace`; starts nothing."""
        super().__init__(workspace)
        self._asked = asked_of(workspace.spec)
        self._engine: EngineDetail | None = None

    @classmethod
    def calibrates(cls, spec: QuantizationJobSpec) -> bool:
        """Return whether activations are looked at: 16 bits need no scales."""
        return asked_of(spec).precision != "FP16"

    @classmethod
    def bits(cls, spec: QuantizationJobSpec) -> int:
        """Return how many bits a quantized weight has."""
        return asked_of(spec).bits

    @classmethod
    def needs(cls, spec: QuantizationJobSpec, files: Mapping[str, int]) -> Needs:
        """Return what the run will take; refuses what cannot be done here.

        Weights made plain lie on the disk while they are measured. For an engine, the same
        weights lie there once more in TensorRT-LLM's own order, and the engine itself.
        """
        asked = asked_of(spec)
        if spec.memory.offload is not Offload.NONE:
            raise BadRequestError(
                f"spec.memory.offload: {spec.memory.offload} is nothing that ModelOpt saves a "
                "checkpoint from here; remove it, or take method FP8 by llmcompressor"
            )
        if asked.builds_engine:
            require_gpu_for(asked)
            require_tensorrt_llm()
        found = super().needs(spec, files)
        weights = sum(size for name, size in files.items() if is_weights(name))
        engines = 2 * weights if asked.builds_engine else 0
        return replace(
            found,
            scratch_bytes=found.scratch_bytes + 2 * weights + engines,
            memory_advice="",
            gpu_memory_advice=_WITHOUT_GPU if found.gpu_memory_bytes else "",
        )

    def produce_with(
        self, child: Child, calibration: TextSet | None, meter: Meter
    ) -> tuple[str, ...]:
        """Write the checkpoint by ModelOpt in `child`, build the engine of it, and return notes."""
        builds = self._asked.builds_engine
        meter.set_total(1 + _SAVING_SHARE + (_BUILDING_SHARE if builds else 0))
        meter.advance(0, "reading calibration text" if calibration else "loading the model")
        samples = self._calibration_file(child, calibration) if calibration else None
        calibrating, saving = Portion(meter, 1), Portion(meter, _SAVING_SHARE)
        shown = 0

        def count(part: str, done: int, of: int, message: str) -> None:
            nonlocal shown
            if part == "calibrate":
                calibrating.set_total(of)
                calibrating.advance(done - shown, message)
                shown = done
            else:
                calibrating.finish()
                saving.advance(0, message)

        parallel = self._asked.tensor_parallel or 1
        where = {"checkpoint": str(self._ranks), "tensor_parallel": parallel}
        job = {
            **self.job(samples),
            "precision": self._asked.precision,
            "ignore": list(self._asked.ignore),
            "engine": where if builds else None,
        }
        notes: list[str] = child.call("quantize", job, on_event=count)
        saving.finish()
        if samples is not None:
            notes += [calibration_note(samples), MEASURED]
        notes.append(NOT_TIMED)
        if builds:
            self._end_child()  # it holds the model, on the GPU that is to build
            notes += self._build(Portion(meter, _BUILDING_SHARE))
        return tuple(notes)

    @property
    def _ranks(self) -> Path:
        """Return the folder of the checkpoint in TensorRT-LLM's own form."""
        return self._work.scratch / "ranks"

    def _build(self, meter: Meter) -> tuple[str, ...]:
        """Build the engine of what lies in `_ranks`, and return notes."""
        with TensorRTLLM(self._work.scratch) as library:
            self._engine = library.build(
                self._asked, self._ranks, self._work.artifact / ENGINE_FOLDER, meter
            )
        shutil.rmtree(self._ranks)
        built = self._engine
        told = (
            f"the engine was built on {built.gpu} (compute capability {built.compute_capability}) "
            f"by TensorRT-LLM {built.tensorrt_llm} and serves only there, by that version"
        )
        return (told,)

    def variants(self, calibration: TextSet | None, meter: Meter) -> Iterator[ProducedVariant]:
        """Produce the one variant, with what its engine was built for."""
        for one in super().variants(calibration, meter):
            yield replace(one, engine=self._engine, timed=False)

    def _published_type(self) -> str:
        return "float16" if self._asked.precision == "FP16" else super()._published_type()

    def _produced_bytes(self) -> int:
        """Return the bytes of the checkpoint's weights: an engine holds the same once more."""
        return weight_bytes(self._work.artifact)

    def _engine_started(self) -> TransformersEngine:
        return TransformersEngine(self._work.threads, gpus=self.on_gpu, module=_RUNTIME_MODULE)

    def verify(self, produced: ProducedVariant, meter: Meter) -> tuple[str, ...]:
        """Hold the checkpoint, and the engine where there is one, against the original.

        Raises:
            BadRequestError: Either computes something else.
        """
        meter.set_total(2)
        notes = []
        # Each in a process of its own, one after another; the last stays for what is measured.
        if self._asked.precision != "FP16":
            notes.append(self._as_transformers_reads_it())
        if self._engine is not None:
            notes.append(self._verify_engine())
        meter.advance(1, "asked what else would load it")
        return (*super().verify(produced, Portion(meter, 1)), *notes)

    def _as_transformers_reads_it(self) -> str:
        """Return what becomes of whoever loads the checkpoint with transformers."""
        if self._reference is None:
            raise RuntimeError("check_baseline() comes first")
        started = TransformersEngine(self._work.threads, gpus=self.on_gpu)
        try:
            runtime = TransformersRuntime(started, self._work.artifact, self.loading())
            computed = computed_by(runtime, self._reference.ids)
            judge(self._reference, computed, bits=self.bits(self._spec))
        except BadRequestError as error:
            if error.reason is not FailureReason.VERIFICATION_FAILED:
                return f"transformers does not load the checkpoint: {error.message}"
            return f"never load the checkpoint with transformers, {NONSENSE}: {error.message}"
        except ChildFailedError:
            return "transformers does not compute with the checkpoint"
        finally:
            started.close()
        return "transformers computes the same with the checkpoint"

    def _verify_engine(self) -> str:
        """Hold the tokens that the engine finds likeliest against those of the checkpoint."""
        if self._reference is None:
            raise RuntimeError("check_baseline() comes first")
        with TensorRTLLM(self._work.scratch) as library:
            answers = library.answers(self._work.artifact / ENGINE_FOLDER, self._reference.ids)
        return judge_answers(np.load(self.expected_logits), answers)

    def usage(self, produced: ProducedVariant) -> Usage:
        """Return the command that serves the engine, or the checkpoint where there is none."""
        if produced.engine is None:
            return Usage(runtime="TensorRT-LLM", command="trtllm-serve .")
        return Usage(
            runtime=f"TensorRT-LLM {produced.engine.tensorrt_llm}",
            command=f"trtllm-serve {ENGINE_FOLDER} --backend tensorrt --tokenizer .",
        )

    def _engine_loading(self) -> dict[str, Any]:
        """Return how ModelOpt loads the model: as it is measured."""
        return self.loading()


NONSENSE: Final = "which takes its stored numbers for weights without a word"


def asked_of(spec: QuantizationJobSpec) -> TensorRTParameters:
    """Return the parameters of a spec, with every default."""
    return (spec.tensor_rt or TensorRTParameters()).effective(on_cpu=False)
