"""What all methods share whose result is a folder that transformers loads.

Original and variant are measured by transformers, each in a process of its own; calibration text
becomes token ids here; what is published is completed and made readable here. How an engine
quantizes is its own module's (`llmcompressor`), and which parameters it gets the method's.
"""

from __future__ import annotations

import shutil
from abc import abstractmethod
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from kubequant.api.enums import Device
from kubequant.api.status import Usage
from kubequant_worker.closing import Closing
from kubequant_worker.datasets import calibration_samples
from kubequant_worker.methods import Baseline, Needs, ProducedVariant
from kubequant_worker.methods.bounds import checkpoint_needs, most_bytes
from kubequant_worker.methods.checkpoint_check import (
    WRITTEN,
    Reference,
    computed_by,
    judge,
    judge_saved,
    reference_of,
)
from kubequant_worker.methods.checkpoint_files import (
    embedding_bytes,
    is_passenger,
    require_sound,
    weight_bytes,
)
from kubequant_worker.methods.gpu import gpus
from kubequant_worker.methods.memory import available_bytes
from kubequant_worker.methods.precision import (
    has_bfloat16,
    stored_dtype,
    working_dtype,
)
from kubequant_worker.methods.published_config import publish_config
from kubequant_worker.methods.transformers_runtime import TransformersEngine, TransformersRuntime
from kubequant_worker.methods.vllm_check import Answer, ask, judge_served
from kubequant_worker.sources.model_folder import require_unquantized
from kubequant_worker.sources.selection import is_weights

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    import numpy.typing as npt

    from kubequant.api.spec import QuantizationJobSpec
    from kubequant_worker.datasets import TextSet
    from kubequant_worker.evaluation.meter import Meter
    from kubequant_worker.evaluation.runtime import FloatRows
    from kubequant_worker.methods import Quantizer, Workspace

# What is left to activations and single layers where weights are spilled to disk.
_SPILLED_SHARE = 0.25
_READABLE = 0o644
_VLLM = Usage(runtime="vLLM", command="vllm serve .")


class CheckpointQuantizer(Closing):
    """Implements `methods.Quantizer` but for `_produce`; see there for what each part promises."""

    LIBRARY: ClassVar[str]
    """The engine's distribution, whose version is reported."""
    RUNTIME: ClassVar[type[TransformersRuntime]] = TransformersRuntime
    """What measures the original and the variant."""

    def __init__(self, workspace: Workspace) -> None:
        """Prepare to work in `workspace`; starts nothing."""
        self._work = workspace
        self._spec = workspace.spec
        self._dtype = ""
        self._stored = ""
        self._next: TransformersEngine | None = None
        self._runtime: TransformersRuntime | None = None
        self._reference: Reference | None = None
        self._calibration_tokens = 0
        self._unserved = False

    @classmethod
    def engine(cls) -> str:
        """Return the engine and its version."""
        return f"{cls.LIBRARY} {version(cls.LIBRARY)}"

    @classmethod
    @abstractmethod
    def calibrates(cls, spec: QuantizationJobSpec) -> bool:
        """Return whether this spec's parameters make the method read calibration text."""

    @classmethod
    @abstractmethod
    def bits(cls, spec: QuantizationJobSpec) -> int:
        """Return how many bits a quantized weight has."""

    @classmethod
    def needs(cls, spec: QuantizationJobSpec, files: Mapping[str, int]) -> Needs:
        """Return what the run will take, taking the weights for 16 bits wide."""
        weights = sum(size for name, size in files.items() if is_weights(name))
        on_gpu = spec.effective_device() is Device.GPU
        keeps = on_gpu or (spec.memory.low_memory and has_bfloat16())
        loaded = weights if keeps else 2 * weights
        return checkpoint_needs(
            spec.memory,
            on_gpu=on_gpu,
            files=sum(files.values()),
            weights=weights,
            loaded=loaded,
            spilled=cls.spilled_bytes(spec, loaded),
            made=int(weights * cls.bits(spec) / 16),
        )

    @classmethod
    def spilled_bytes(cls, spec: QuantizationJobSpec, loaded: int) -> int:
        """Return what is in memory while the weights, `loaded` bytes of them, are on the disk."""
        del spec
        return int(_SPILLED_SHARE * loaded)

    def follow(self, earlier: Quantizer) -> None:
        """Take over how the original is loaded, and what it computes over the probe."""
        if not isinstance(earlier, CheckpointQuantizer):
            raise TypeError("only what transformers loads can follow what it measured")
        self._dtype, self._stored, self._reference = earlier.known
        # What another engine left here was made by another setting.
        self.expected_logits.unlink(missing_ok=True)

    @property
    def known(self) -> tuple[str, str, Reference | None]:
        """What was found out of the original: the types it is loaded and stored in, its logits."""
        return self._dtype, self._stored, self._reference

    def baseline(self, meter: Meter) -> Baseline:
        """Look at the checkpoint, which is measured as it is."""
        require_unquantized(self._work.model)
        self._stored = stored_dtype(self._work.model)
        self._dtype = working_dtype(self._spec, self._stored, bfloat16=has_bfloat16())
        size = weight_bytes(self._work.model)
        meter.set_total(1)
        meter.advance(1, f"stored in {self._stored}, loaded in {self._dtype}")
        return Baseline(self._dtype, self._work.model, size)

    def check_baseline(self, meter: Meter) -> tuple[str, ...]:
        """Keep the original's logits of a short text, which `verify` holds the variant against."""
        baseline = Baseline(self._dtype, self._measured_original(), 0)
        runtime = self.open_runtime(baseline, 0)
        self._reference = reference_of(runtime)
        meter.set_total(1)
        meter.advance(1, "the original loads")
        return ()

    def _measured_original(self) -> Path:
        """Return the folder that the original is measured from."""
        return self._work.model

    def variants(self, calibration: TextSet | None, meter: Meter) -> Iterator[ProducedVariant]:
        """Produce the one variant: a folder of safetensors."""
        if self._runtime is not None:  # the original's memory is the engine's now
            self._runtime.close()
            self._runtime = None
        notes = self._produce(calibration, meter)
        files = self._complete_folder()
        self._next = self._next or self._engine_started()
        yield ProducedVariant(
            name=self._spec.method.value,
            files=files,
            size_bytes=self._produced_bytes(),
            notes=notes,
            embedding_bytes=self._embedding_bytes(),
        )

    def _produced_bytes(self) -> int:
        """Return the bytes of the weights in the artifact folder."""
        return weight_bytes(self._work.artifact)

    def _embedding_bytes(self) -> int | None:
        """Return those of them that are token embeddings or the output matrix."""
        return embedding_bytes(self._work.artifact)

    @abstractmethod
    def _produce(self, calibration: TextSet | None, meter: Meter) -> tuple[str, ...]:
        """Write the quantized checkpoint into the artifact folder and return notes."""

    def _samples(
        self, texts: TextSet, tokens: npt.NDArray[np.int32], *, context_length: int, bos: int | None
    ) -> npt.NDArray[np.int32]:
        """Return the sequences to calibrate with, shape (samples, length), each opened by BOS.

        `tokens` are those of all documents in their order.

        Raises:
            BadRequestError: There are too few tokens.
        """
        asked = self._spec.calibration
        length = min(asked.sequence_length, self._longest(context_length))
        opening = 0 if bos is None else 1
        drawn = calibration_samples(
            tokens,
            samples=self._wanted_samples(len(tokens) // (length - opening)),
            length=length - opening,
            seed=asked.seed,
            bundled=texts.bundled,
        )
        if bos is not None:
            drawn = np.concatenate([np.full((len(drawn), 1), bos, np.int32), drawn], axis=1)
        self._calibration_tokens = drawn.size
        return drawn

    def _longest(self, context_length: int) -> int:
        """Return how long a sequence may be, where the model's context has so many tokens."""
        return context_length

    def _wanted_samples(self, whole: int) -> int:
        """Return how many sequences to take, of the `whole` ones that the text has."""
        del whole
        return self._spec.calibration.samples

    @property
    def expected_logits(self) -> Path:
        """Return where an engine may leave what its quantized model computes over the probe.

        Shape (tokens, vocabulary), float32, before the model was saved.
        """
        return self._work.scratch / "expected.npy"

    def _expect(self) -> None:
        """Leave the expected logits where `_produce` did not, and give the engine's memory back."""

    def _probe(self) -> Path:
        """Write the ids that the variant will be verified on, and return the file."""
        if self._reference is None:
            raise RuntimeError("check_baseline() comes first")
        target = self._work.scratch / "probe.npy"
        np.save(target, self._reference.ids)
        return target

    def calibration_tokens(self) -> int:
        """Return how many tokens calibrated, 0 before `variants` or without calibration."""
        return self._calibration_tokens

    def shared_files(self) -> tuple[Path, ...]:
        """Return nothing: all files are the variant's."""
        return ()

    def _complete_folder(self) -> tuple[Path, ...]:
        """Bring the tokenizer's files, byte for byte, and let everyone read everything.

        An engine's own copy of a tokenizer or a config may be one that older libraries cannot read,
        and safetensors writes files that only their owner reads.
        """
        folder, source = self._work.artifact, self._made_of()
        for path in sorted(source.iterdir()):
            if path.is_file() and self._travels(path.name):
                shutil.copyfile(path, folder / path.name)
        if not self._travels("config.json"):
            publish_config(folder, source, self._published_type())
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        for path in files:
            path.chmod(_READABLE)
            if path.suffix == ".safetensors":
                require_sound(path)
        return tuple(path.relative_to(folder) for path in files)

    def _made_of(self) -> Path:
        """Return the folder that the files beside the weights come from."""
        return self._work.model

    def _published_type(self) -> str:
        """Return the type that the weights made are stored in, by torch's name."""
        return self._stored

    def _travels(self, name: str) -> bool:
        """Say whether a file of the original goes into the artifact as it is.

        How to generate is among it: an engine's copy may lack what it does not know.
        """
        return is_passenger(name) and name != "config.json"

    def verify(self, produced: ProducedVariant, meter: Meter) -> tuple[str, ...]:
        """Load the variant in a new process, generate, and hold its logits against the original's.

        Where vLLM is in the image, it does the same with what it serves.

        Raises:
            BadRequestError: It does not load, or computes something else than the original.
        """
        if self._reference is None:
            raise RuntimeError("check_baseline() comes first")
        meter.set_total(1)
        self._expect()
        ids, vllm = self._reference.ids, Answer()
        if self.usage(produced).runtime == _VLLM.runtime:  # before transformers takes the memory
            meter.advance(0, "asking vLLM")
            trusted = self._spec.model.trust_remote_code
            folder, scratch = self._work.artifact, self._work.scratch
            vllm = ask(folder, ids, scratch, gpu=self.on_gpu, trusted=trusted)
            self._unserved = vllm.refused
        runtime = self.open_runtime(produced, 0)
        computed = computed_by(runtime, ids)
        notes = [*self._judged(self._reference, computed), vllm.note]
        if vllm.served is not None:
            notes.append(judge_served(self._reference.rows, computed, vllm.served))
        runtime.generate(["The"], WRITTEN)
        meter.advance(1, f"{produced.name} loads, generates, and computes what was made")
        return tuple(note for note in notes if note)

    def _judged(self, reference: Reference, computed: FloatRows) -> list[str]:
        """Return notes on the variant's logits; raises BadRequestError where they are wrong."""
        notes = [judge(reference, computed, bits=self.bits(self._spec))]
        if self.expected_logits.is_file():
            notes.append(judge_saved(reference, np.load(self.expected_logits), computed))
        return notes

    def open_runtime(
        self, of: Baseline | ProducedVariant, context_length: int
    ) -> TransformersRuntime:
        """Load the original or the variant in a process of its own.

        What was opened last is taken again where it is the same: checking and measuring share it.
        """
        path, loading = self._work.artifact, self.variant_loading()
        if isinstance(of, Baseline):
            path, loading = of.path, self.loading()
        if self._runtime is not None:
            if self._runtime.is_of(path):
                return self._runtime.with_context(context_length)
            self._runtime.close()
        started = self._next or self._engine_started()
        self._next = None
        self._runtime = self.RUNTIME(started, path, loading, context_length)
        return self._runtime

    def open_alone(self, of: Baseline | ProducedVariant) -> TransformersRuntime:
        """Load the original or the variant in a new process that ends with it."""
        if self._runtime is not None:
            self._runtime.close()
            self._runtime = None
        return self.open_runtime(of, 0)

    def _engine_started(self) -> TransformersEngine:
        return TransformersEngine(self._work.threads, gpus=self.on_gpu)

    @property
    def on_gpu(self) -> bool:
        """Return whether the run computes on a GPU."""
        return self._spec.effective_device() is Device.GPU

    def loading(self) -> dict[str, Any]:
        """Return how to load a checkpoint here: the fields of `transformers_model.Loading`."""
        memory, device = self._spec.memory, self._spec.effective_device()
        # The GPU that "cuda" means is the first that the driver shows.
        gpu_bytes = gpus()[0].memory_bytes if self.on_gpu and gpus() else 0
        return {
            "device": "cuda" if device is Device.GPU else "cpu",
            "dtype": self._dtype,
            "trust_remote_code": self._spec.model.trust_remote_code,
            "allow_pickle": self._spec.model.allow_pickle,
            "most_bytes": most_bytes(
                memory, device, free_bytes=available_bytes(), gpu_bytes=gpu_bytes
            ),
            "spill": str(self._work.scratch / "spill"),
        }

    def variant_loading(self) -> dict[str, Any]:
        """Return how to load what was made: as the original, unless its format cannot be so."""
        return self.loading()

    def usage(self, produced: ProducedVariant) -> Usage:
        """Return the command that serves the variant."""
        del produced
        return Usage(runtime="transformers") if self._unserved else _VLLM

    def close(self) -> None:
        """End the children; a second call does nothing."""
        for held in (self._next, self._runtime):
            if held is not None:
                held.close()
        self._next = self._runtime = None

    def __enter__(self) -> Self:
        """Return itself; importing torch takes seconds, so it begins while others fetch."""
        self._next = self._engine_started()
        return self
