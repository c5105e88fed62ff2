"""The child's half of engines that quantize each weight while transformers loads it.

An engine's own module (`bits_and_bytes_child` is one) says which modules it knows, how transformers
is told to use it, and which operations of transformers do the work: those are counted, so progress
is of weights that were quantized. torch and transformers are imported here, so only children import
this module. The parent's half is `quantized_load`.
"""

from __future__ import annotations

from abc import abstractmethod
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final
from unittest.mock import patch

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from kubequant.api.outcome import FailureReason
from kubequant_worker.errors import BadRequestError
from kubequant_worker.methods import remote_code
from kubequant_worker.methods.engine_child import (
    Work,
    save_pretrained,
    sentence,
    write_logits,
)
from kubequant_worker.methods.ignored import classes_of, ignored, unused, words_of_nothing
from kubequant_worker.methods.transformers_model import Loading, load_model

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from kubequant_worker.methods.child import Operation, Parent

_HALF: Final = 0.5


@dataclass(frozen=True, slots=True)
class _Skeleton:
    """What a model consists of, known before any weight is read.

    `classes` are those of every module, by its name. `linear` are the modules that the engine
    knows, by name, with the numbers that each holds; of them, `tied` share theirs with other
    modules. `numbers` counts all of the model's.
    """

    kind: str
    classes: Mapping[str, Collection[str]]
    linear: Mapping[str, int]
    tied: frozenset[str]
    numbers: int


class QuantizedLoadWork(Work):
    """Quantizes by loading."""

    NAME: ClassVar[str]
    """The engine's name for people."""
    OPERATIONS: ClassVar[tuple[type[Any], ...]]
    """transformers' operations whose `convert` quantizes one module's weight."""

    def __init__(self, parent: Parent) -> None:
        """Answer to `parent`."""
        super().__init__(parent)
        self._made: Any = None
        self._job: Mapping[str, Any] = {}

    def operations(self) -> Mapping[str, Operation]:
        """Return what the parent may ask for."""
        return {**super().operations(), "expect": self.expect}

    @abstractmethod
    def quantizes(self, module: torch.nn.Module) -> bool:
        """Say whether the engine knows modules of this kind."""

    @abstractmethod
    def configuration(self, settings: Mapping[str, Any], kept: Sequence[str]) -> Any:
        """Return what transformers is told; the modules `kept` stay as they are."""

    def label(self, metadata: Mapping[str, str], stored: str) -> dict[str, str]:
        """Return a shard's metadata as it is to be written; `stored` is the checkpoint's type."""
        del stored
        return dict(metadata)

    def quantize(self, job: Mapping[str, Any]) -> list[str]:
        """Make the checkpoint that `job` describes; return notes.

        `settings` and `ignore` in it are those of `quantized_load.QuantizedLoad`.
        """
        loading = Loading(**job["loading"])
        remote_code.decide(trusted=loading.trust_remote_code)
        torch.manual_seed(job["seed"])
        source, target = Path(job["model"]), Path(job["target"])
        skeleton = self._skeleton(source, loading)
        kept = ignored(skeleton.linear, job["ignore"], skeleton.classes) | skeleton.tied
        if not skeleton.linear.keys() - kept:
            raise self._nothing_to_do(skeleton)
        how = self.configuration(job["settings"], sorted(kept))
        with self._counting(
            {name: skeleton.linear[name] for name in skeleton.linear}, kept
        ) as seen:
            model = self._loaded(source, loading, how)
        self._parent.event(0, 0, "saving")
        # Before it computes (`expect`): an engine may pack weights anew when it first does.
        save_pretrained(model, target, source, partial(self.label, stored=job["stored"]))
        self._made, self._job = model, job
        return _notes(skeleton, seen, kept, job["ignore"])

    def expect(self) -> None:
        """Write what the model made by `quantize` computes, over the ids that its job named."""
        probe, target = Path(self._job["probe"]), Path(self._job["expected"])
        write_logits(self._made, self._made.device, probe, target)

    def _skeleton(self, source: Path, loading: Loading) -> _Skeleton:
        """Return what the model consists of, by its config alone."""
        trusted = {"trust_remote_code": loading.trust_remote_code}
        config = AutoConfig.from_pretrained(source, local_files_only=True, **trusted)
        factory: Any = AutoModelForCausalLM
        with torch.device("meta"):
            model = factory.from_config(config, **trusted)
        shared = {name for pair in model.all_tied_weights_keys.items() for name in pair}
        linear = {
            name: int(module.weight.numel())
            for name, module in model.named_modules()
            if self.quantizes(module)
        }
        tied = frozenset(name for name in linear if f"{name}.weight" in shared)
        numbers = sum(parameter.numel() for parameter in model.parameters())
        return _Skeleton(type(model).__name__, classes_of(model), linear, tied, numbers)

    def _nothing_to_do(self, skeleton: _Skeleton) -> BadRequestError:
        return BadRequestError(
            f"spec.method: in {skeleton.kind} there is nothing for {self.NAME} to quantize: it has "
            f"{len(skeleton.linear)} modules of the kind that {self.NAME} knows, and all are "
            "ignored or share their weights with the embeddings",
            reason=FailureReason.UNSUPPORTED_MODEL,
            advice="ignore fewer, or, for a model whose layers are not torch.nn.Linear (GPT-2 is "
            "one), take another method, such as GGUF or BitsAndBytes",
        )

    def _loaded(self, source: Path, loading: Loading, how: Any) -> Any:
        """Return the model, quantized; what cannot be done becomes a sentence."""
        try:
            return load_model(source, loading, quantization_config=how)
        except torch.OutOfMemoryError as error:
            raise MemoryError(str(error).splitlines()[0]) from error
        except (NotImplementedError, AssertionError) as error:
            raise BadRequestError(
                f"spec.method: {self.NAME} cannot do this with the model: {sentence(error)}",
                reason=FailureReason.UNSUPPORTED_MODEL,
                advice="ignore the modules that it names (ignore: in the method's parameters), or "
                "take another method",
            ) from error

    @contextmanager
    def _counting(self, linear: Mapping[str, int], kept: frozenset[str]) -> Iterator[list[str]]:
        """Tell the parent of every weight that is quantized; gives the list of their modules."""
        total = sum(numbers for name, numbers in linear.items() if name not in kept)
        modules = len(linear) - len(kept)
        seen: list[str] = []

        def counted(convert: Any) -> Any:
            def converted(*arguments: Any, **named: Any) -> Any:
                result = convert(*arguments, **named)
                module = named["full_layer_name"].rpartition(".")[0]
                seen.append(module)
                message = f"module {len(seen)} of {modules}: {module}"
                self._parent.event(linear.get(module, 0), total, message)
                return result

            return converted

        with ExitStack() as stack:
            for operation in self.OPERATIONS:
                stack.enter_context(patch.object(operation, "convert", counted(operation.convert)))
            yield seen


def _notes(
    skeleton: _Skeleton, seen: Sequence[str], kept: frozenset[str], words: Sequence[str]
) -> list[str]:
    """Return what a reader of the report should know."""
    done = sum(skeleton.linear[name] for name in seen) / skeleton.numbers
    told = (
        f"{len(seen)} of {len(skeleton.linear)} linear modules are quantized, which hold "
        f"{100 * done:.0f} % of the model's numbers"
    )
    if done < _HALF:
        told += "; the rest is in layers of another kind (embeddings, merged experts)"
    notes = [told]
    shared = skeleton.tied - ignored(skeleton.tied, words, skeleton.classes)
    if shared:
        notes.append(f"{', '.join(sorted(shared))} stays as it is: it shares its weights")
    left = skeleton.linear.keys() - kept - set(seen)
    if left:
        notes.append(f"transformers keeps {', '.join(sorted(left))} as stored, for this model")
    return [*notes, *unused(words_of_nothing(skeleton.classes, words, skeleton.classes))]
