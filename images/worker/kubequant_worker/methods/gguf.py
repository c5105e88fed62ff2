"""Method GGUF: one conversion, then every level that the manifest names, by llama.cpp.

What happens in which order is decided here. The conversion (`gguf_convert`), the engine
(`gguf_runtime`), its levels (`gguf_types`) and the check of the conversion (`gguf_check`) stand
beside; nothing heavy is imported.
"""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, Literal, Self

import numpy as np

from kubequant.api.outcome import FailureReason
from kubequant.api.params import GGUFParameters, GGUFType
from kubequant.api.status import Usage
from kubequant_worker.closing import Closing
from kubequant_worker.errors import BadRequestError
from kubequant_worker.evaluation.meter import Portion
from kubequant_worker.methods import Baseline, Needs, ProducedVariant
from kubequant_worker.methods.bounds import kept_logits_bytes
from kubequant_worker.methods.checkpoint_check import Reference
from kubequant_worker.methods.checkpoint_check import judge as judge_variant
from kubequant_worker.methods.gguf_check import CHECK_TEXT, compare, judge, tokenization_warning
from kubequant_worker.methods.gguf_convert import Converter, require_tokenizer
from kubequant_worker.methods.gguf_file import TYPE_NUMBERS, GGUFHeader, link_or_copy, read_header
from kubequant_worker.methods.gguf_reference import ReferenceLogits, conversion_bytes
from kubequant_worker.methods.gguf_runtime import LlamaEngine, LlamaRuntime, engine_name
from kubequant_worker.methods.gguf_types import (
    FULL_PRECISION,
    LEVELS,
    fallback_notes,
    require_fitting_types,
    type_counts,
)
from kubequant_worker.sources.model_folder import architecture
from kubequant_worker.sources.selection import is_weights

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from kubequant.api.spec import QuantizationJobSpec
    from kubequant_worker.datasets import TextSet
    from kubequant_worker.evaluation.meter import Meter
    from kubequant_worker.evaluation.runtime import TokenArray
    from kubequant_worker.methods import Quantizer, Workspace

MATRIX_FILE = "imatrix.gguf"
# Fewer tokens than this say nothing about how strongly columns are used.
LEAST_CALIBRATION_TOKENS = 512
_EMBEDDINGS = frozenset({"token_embd.weight", "output.weight"})
# How much of the stage the importance matrix is, against one for each level.
_MATRIX_SHARE = 3


class GGUFQuantizer(Closing):
    """Implements `methods.Quantizer`; see there for what each method promises."""

    def __init__(self, workspace: Workspace) -> None:
        """Prepare to work in `workspace`; starts nothing."""
        self._work = workspace
        self._parameters = workspace.spec.gguf or GGUFParameters()
        self._engine = LlamaEngine(workspace.threads)
        self._converter: Converter | None = None
        self._baseline: Baseline | None = None
        self._reference_ids: list[int] | None = None
        self._reference: Reference | None = None
        self._logits = ReferenceLogits(
            workspace.scratch / "reference.npy", lambda: self._new_converter("reference")
        )
        self._shared: tuple[Path, ...] = ()
        self._calibration_tokens = 0

    @classmethod
    def engine(cls) -> str:
        """Return the engine and its version."""
        return engine_name()

    @classmethod
    def calibrates(cls, spec: QuantizationJobSpec) -> bool:
        """Return whether an importance matrix is asked for."""
        return spec.gguf is not None and spec.gguf.importance_matrix

    @classmethod
    def needs(cls, spec: QuantizationJobSpec, files: Mapping[str, int]) -> Needs:
        """Return what the run will take, taking the weights for 16 bits wide."""
        sizes = [size for name, size in files.items() if is_weights(name)]
        weights = sum(sizes)
        types = (spec.gguf or GGUFParameters()).types
        # Embeddings and output stay wider than the level says, which shows in small models.
        made = sum(min(1.0, LEVELS[kind].bits_per_weight * 1.25 / 16) for kind in types)
        kept = kept_logits_bytes(weights)
        largest = max(sizes, default=0)
        return Needs(
            scratch_bytes=int(sum(files.values()) + weights * (1 + made) + kept),
            memory_bytes=conversion_bytes(largest),
            comfortable_memory_bytes=conversion_bytes(weights),
        )

    def follow(self, earlier: Quantizer) -> None:
        """Take over the engine, the converted file and the importance matrix."""
        if not isinstance(earlier, GGUFQuantizer):
            raise TypeError("levels are made from a converted file, which only GGUF has")
        self._baseline, self._reference, self._shared, self._calibration_tokens = earlier.known
        self._engine = earlier.hand_engine_over()

    @property
    def known(self) -> tuple[Baseline | None, Reference | None, tuple[Path, ...], int]:
        """The converted file, its logits, what all variants share, and the tokens behind that."""
        return self._baseline, self._reference, self._shared, self._calibration_tokens

    def hand_engine_over(self) -> LlamaEngine:
        """Return the engine at work, which `close` then does not end."""
        engine, self._engine = self._engine, LlamaEngine(self._work.threads)
        return engine

    def baseline(self, meter: Meter) -> Baseline:
        """Convert the checkpoint to one GGUF file, BF16 where it is bfloat16, else F16."""
        kind = architecture(self._work.model)
        require_tokenizer(self._work.model)
        target = self._work.scratch / "baseline.gguf"

        def count(written: int, total: int) -> None:
            meter.set_total(total)
            meter.advance(written, f"converting {kind}")

        with self._started_converter() as converter, closing(self._logits) as logits:
            logits.begin(self._work.model)
            converter.convert(self._work.model, target, name=self._work.name, on_bytes=count)
            header = read_header(target)
            self._engine.start()  # its imports pass while transformers computes
            self._reference_ids = logits.finish(self._work.model, converter, header)
        require_fitting_types(self._parameters, header.tensors)
        name = _full_precision(header)
        notes = (f"converted as {name.value}: {type_counts(header.tensors)}",)
        self._baseline = Baseline(name.value, target, header.weight_bytes, notes)
        return self._baseline

    def _started_converter(self) -> Converter:
        if self._converter is None:
            self._converter = self._new_converter("convert")
        return self._converter

    def _new_converter(self, first: Literal["convert", "reference"]) -> Converter:
        trusted = self._work.spec.model.trust_remote_code
        return Converter(threads=self._work.threads, trust_remote_code=trusted, first=first)

    def check_baseline(self, meter: Meter) -> tuple[str, ...]:
        """Hold the converted model's logits against transformers', computed by `baseline`.

        They are kept for `verify`.
        """
        with self.open_runtime(self._made_baseline(), 0) as runtime:
            opening = [] if runtime.bos_token is None else [runtime.bos_token]
            cut = opening + runtime.tokenize([CHECK_TEXT])[0].tolist()
            ids = np.array(self._reference_ids or cut, np.int32)[: runtime.context_length]
            rows = np.concatenate([piece.rows.copy() for piece in runtime.logits([ids])])
        self._reference = Reference(ids, rows)
        meter.set_total(len(ids))
        warnings = self._logits.warnings
        if self._reference_ids is not None:
            judge(compare(self._logits.logits(), rows))
            if warning := tokenization_warning(self._reference_ids, cut):
                warnings += (warning,)
        meter.advance(len(ids), "conversion checked")
        return warnings

    def _made_baseline(self) -> Baseline:
        if self._baseline is None:
            raise RuntimeError("baseline() comes first")
        return self._baseline

    def variants(self, calibration: TextSet | None, meter: Meter) -> Iterator[ProducedVariant]:
        """Produce the types in the manifest's order, all from the one converted file."""
        types = self._parameters.types
        matrix = None
        meter.set_total(len(types) + (_MATRIX_SHARE if calibration is not None else 0))
        if calibration is not None:
            portion = Portion(meter, _MATRIX_SHARE)
            matrix = self._importance_matrix(calibration, portion)
            portion.finish()
        for kind in types:
            portion = Portion(meter, 1)
            produced = self._produce(kind, matrix, portion)
            portion.finish()
            yield produced

    def calibration_tokens(self) -> int:
        """Return how many tokens the importance matrix was computed over, 0 without one."""
        return self._calibration_tokens

    def shared_files(self) -> tuple[Path, ...]:
        """Return the importance matrix, where one was made."""
        return self._shared

    def _importance_matrix(self, texts: TextSet, meter: Meter) -> Path:
        """Compute the importance matrix over all of `texts`, once, and return its file."""
        asked = self._work.spec.calibration
        target = self._work.artifact / MATRIX_FILE
        if self._shared:
            return target
        with self.open_runtime(self._made_baseline(), asked.sequence_length) as runtime:
            stream = np.concatenate(
                [
                    *runtime.tokenize(texts.documents, special=texts.templated),
                    np.empty(0, np.int32),
                ]
            )
            if len(stream) < LEAST_CALIBRATION_TOKENS:
                raise BadRequestError(
                    f"spec.calibration: the text gives {len(stream)} tokens; an importance matrix "
                    "needs "
                    f"at least {LEAST_CALIBRATION_TOKENS}",
                    reason=FailureReason.UNUSABLE_DATASET,
                    advice="give more text, tens of thousands of tokens of the kind the model will "
                    "meet",
                )
            self._calibration_tokens = len(stream)
            windows = _calibration_windows(stream, runtime.context_length, runtime.bos_token)
            total = sum(len(window) for window in windows)
            meter.set_total(total)

            def count(tokens: int) -> None:
                meter.advance(tokens, f"importance matrix over {total} tokens")

            runtime.collect(windows, target, datasets=[texts.name], on_tokens=count)
        self._shared = (target.relative_to(self._work.artifact),)
        return target

    def _produce(self, kind: GGUFType, matrix: Path | None, meter: Meter) -> ProducedVariant:
        """Write one level into the artifact folder."""
        level, baseline = LEVELS[kind], self._made_baseline()
        target = self._work.artifact / f"{self._work.name}-{kind.value}.gguf"
        settings = {"type": kind.value}
        if kind.value == baseline.name:
            link_or_copy(baseline.path, target)
        else:
            self._quantize(kind, target, matrix, meter)
            if kind not in FULL_PRECISION:
                settings |= self._level_settings(matrix)
        header = read_header(target)
        if header.metadata.get("general.file_type") != level.file_type:
            raise BadRequestError(
                f"{target.name}: llama.cpp wrote file type "
                f"{header.metadata.get('general.file_type')}, "
                f"not {level.file_type} ({kind.value})",
                reason=FailureReason.VERIFICATION_FAILED,
            )
        notes = (
            f"tensor types: {type_counts(header.tensors)}",
            *fallback_notes(level, header.tensors),
        )
        return ProducedVariant(
            name=kind.value,
            files=(target.relative_to(self._work.artifact),),
            size_bytes=header.weight_bytes,
            notes=notes,
            settings=settings,
            embedding_bytes=sum(t.size_bytes for t in header.tensors if t.name in _EMBEDDINGS),
        )

    def _quantize(self, kind: GGUFType, target: Path, matrix: Path | None, meter: Meter) -> None:
        baseline = self._made_baseline()
        sizes = {tensor.name: tensor.size_bytes for tensor in read_header(baseline.path).tensors}
        meter.set_total(baseline.size_bytes)
        begun = 0

        def count(number: int, of: int, name: str) -> None:
            nonlocal begun
            done, begun = begun, sizes.get(name, 0)
            meter.advance(done, f"{kind.value}: tensor {number} of {of}")

        output, embedding = (
            TYPE_NUMBERS[asked.value] if asked and kind not in FULL_PRECISION else None
            for asked in (
                self._parameters.output_tensor_type,
                self._parameters.token_embedding_type,
            )
        )
        self._engine.quantize(
            baseline.path,
            target,
            file_type=LEVELS[kind].file_type,
            output_type=output,
            embedding_type=embedding,
            matrix=matrix,
            low_memory=self._work.spec.memory.low_memory,
            on_tensor=count,
        )

    def _level_settings(self, matrix: Path | None) -> dict[str, str]:
        settings = {"importanceMatrix": "true" if matrix else "false"}
        if asked := self._parameters.output_tensor_type:
            settings["outputTensorType"] = asked.value
        if asked := self._parameters.token_embedding_type:
            settings["tokenEmbeddingType"] = asked.value
        return settings

    def verify(self, produced: ProducedVariant, meter: Meter) -> tuple[str, ...]:
        """Load the file in llama.cpp again, hold its logits against the original's, generate.

        Raises:
            BadRequestError: It computes no numbers, or something else than the original.
        """
        if self._reference is None:
            raise RuntimeError("check_baseline() comes first")
        with self.open_runtime(produced, 0) as runtime:
            rows = [piece.rows.copy() for piece in runtime.logits([self._reference.ids])]
            level = LEVELS[GGUFType(produced.name)]
            note = judge_variant(self._reference, np.concatenate(rows), bits=level.bits_per_weight)
            runtime.generate(["The"], 8)
        meter.advance(1, f"{produced.name} loads, generates, and is the original's likeness")
        return (note,)

    def open_runtime(self, of: Baseline | ProducedVariant, context_length: int) -> LlamaRuntime:
        """Load the original or a variant in the engine's child; the one loaded before is freed."""
        path = of.path if isinstance(of, Baseline) else self._work.artifact / of.files[0]
        return LlamaRuntime(self._engine, path, context_length)

    def open_alone(self, of: Baseline | ProducedVariant) -> LlamaRuntime:
        """Load the original or a variant in a new process that ends with it."""
        self._engine.close()
        path = of.path if isinstance(of, Baseline) else self._work.artifact / of.files[0]
        return LlamaRuntime(LlamaEngine(self._work.threads), path, alone=True)

    def usage(self, produced: ProducedVariant) -> Usage:
        """Return the command that serves the variant by llama.cpp's own server."""
        return Usage(runtime="llama.cpp", command=f"llama-server -m {produced.files[0].name}")

    def close(self) -> None:
        """End the children; a second call does nothing."""
        if self._converter is not None:
            self._converter.close()
        self._logits.close()
        self._engine.close()

    def __enter__(self) -> Self:
        """Return itself; the converter's imports take seconds, so they begin while others fetch."""
        if self._baseline is None:
            self._started_converter()
            self._logits.prepare()
        return self


def _full_precision(header: GGUFHeader) -> GGUFType:
    """Return the level of a converted file by what it says of itself."""
    number = header.metadata.get("general.file_type")
    for kind in sorted(FULL_PRECISION):
        if LEVELS[kind].file_type == number:
            return kind
    raise BadRequestError(
        f"spec.model: the checkpoint converts to file type {number}, which is quantized already; "
        "GGUF levels are made from a 16- or 32-bit checkpoint",
        reason=FailureReason.UNSUPPORTED_MODEL,
    )


def _calibration_windows(
    stream: TokenArray, context_length: int, bos_token: int | None
) -> list[TokenArray]:
    """Cut all of `stream` into windows, each opened by BOS where the tokenizer uses one."""
    opening = np.array([] if bos_token is None else [bos_token], np.int32)
    stride = context_length - len(opening)
    return [
        np.concatenate([opening, stream[start : start + stride]])
        for start in range(0, len(stream), stride)
    ]
