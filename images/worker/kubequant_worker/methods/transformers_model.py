"""One checkpoint loaded by transformers: its tokenizer, its logits in bounded pieces, greedy text.

torch and transformers are imported here, so only children import this module.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
import transformers
from transformers import AutoModelForCausalLM

from kubequant.api.outcome import FailureReason
from kubequant_worker.chat import chat_template
from kubequant_worker.errors import BadRequestError
from kubequant_worker.evaluation.runtime import FloatRows, Generation, Stops, TokenArray
from kubequant_worker.methods import older_transformers
from kubequant_worker.methods.distill_context import ENDLESS
from kubequant_worker.methods.gptqmodel_kernels import loading_arguments
from kubequant_worker.methods.stopwatch import Loaded

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
    from pathlib import Path

# The logits of one forward pass, in float32; a longer window goes through in pieces, the keys and
# values of those before it kept.
PIECE_BYTES = 128 << 20
# The formats whose modules compute on a CPU as its instructions have it, and the module that makes
# them compute in the type that they are loaded in.
_ON_CPU: Final = {"bitsandbytes": "kubequant_worker.methods.bits_and_bytes_cpu"}
_SHOWN: Final = 3
# transformers' words where a quantized module would have to be spilled.
_SPILLED: Final = "dispatched on the CPU or the disk"


@dataclass(frozen=True, slots=True)
class Loading:
    """How to load a checkpoint.

    `device` is torch's name; `most_bytes` bounds what each device may hold, where the rest is to be
    spilled ("cpu", "disk" into `spill`). `vocabulary_size` cuts rows of logits to so many numbers.
    """

    device: str
    dtype: str
    trust_remote_code: bool = False
    allow_pickle: bool = False
    most_bytes: Mapping[str | int, int] | None = None
    spill: str = ""
    vocabulary_size: int | None = None

    def arguments(self) -> dict[str, Any]:
        """Return the arguments of `from_pretrained`."""
        given: dict[str, Any] = {
            older_transformers.DTYPE: getattr(torch, self.dtype),
            "trust_remote_code": self.trust_remote_code,
            "use_safetensors": None if self.allow_pickle else True,
            "local_files_only": True,
        }
        if self.most_bytes is not None:
            folder = {"offload_folder": self.spill, "offload_buffers": True}
            return {**given, "device_map": "auto", "max_memory": dict(self.most_bytes), **folder}
        if self.device == "cpu":  # any other place needs accelerate, which not every image holds
            return given
        return {**given, "device_map": self.device}


def load_tokenizer(path: Path, *, trust_remote_code: bool) -> Any:
    """Return a checkpoint's tokenizer.

    Raises:
        BadRequestError: transformers cannot read it.
    """
    try:
        return older_transformers.tokenizer(
            path, trust_remote_code=trust_remote_code, local_files_only=True
        )
    except older_transformers.UNFIT as error:  # it reads the config too
        raise BadRequestError(
            f"spec.model: transformers cannot read config.json: {_first_line(error)}",
            reason=FailureReason.UNSUPPORTED_MODEL,
            advice="correct config.json, or take the model as its maker publishes it",
        ) from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError) as error:
        raise BadRequestError(
            f"spec.model: transformers cannot read the tokenizer: {_first_line(error)}",
            reason=FailureReason.UNSUPPORTED_MODEL,
            advice="put the tokenizer's files as transformers writes them beside the weights",
        ) from error


def tokenize(tokenizer: Any, text: str, *, special: bool) -> TokenArray:
    """Return a text's ids, without BOS or EOS; special tokens in it count only if `special`."""
    ids = tokenizer(
        text, add_special_tokens=False, split_special_tokens=not special, verbose=False
    )["input_ids"]
    return np.array(ids, np.int32)


def bos_token(tokenizer: Any) -> int | None:
    """Return the id that this tokenizer opens every text with, None where it does not."""
    bos = tokenizer.bos_token_id
    opened = tokenizer("a")["input_ids"]
    return int(bos) if bos is not None and opened and opened[0] == bos else None


def context_length(path: Path, *, trust_remote_code: bool) -> int:
    """Return the longest text, in tokens, that a checkpoint was made for."""
    config = older_transformers.config(
        path, trust_remote_code=trust_remote_code, local_files_only=True
    )
    return _context_length(config)


def _context_length(config: Any) -> int:
    found = getattr(config.get_text_config(), "max_position_embeddings", None)
    return int(found or ENDLESS)


def _import_architecture(path: Path, *, trust_remote_code: bool) -> None:
    """Import what computes a checkpoint's architecture, as far as transformers itself has it.

    It comes when it is first asked for, takes seconds, and is no part of loading a model.
    """
    try:
        config = older_transformers.config(
            path, trust_remote_code=trust_remote_code, local_files_only=True
        )
    except (BadRequestError, KeyError, ValueError, ImportError):
        return  # `load_model` says what is the matter
    for name in getattr(config, "architectures", None) or ():
        getattr(transformers, name, None)


def load_model(path: Path, loading: Loading, **more: Any) -> Any:
    """Return a checkpoint's model, ready to compute; `more` goes to `from_pretrained` as it is.

    Raises:
        BadRequestError: transformers does not know the architecture, or needs the model's own code,
            or what is quantized does not fit where it may be, or the files lack weights.
    """
    try:
        config = older_transformers.config(
            path, trust_remote_code=loading.trust_remote_code, local_files_only=True
        )

        def load() -> Any:
            given = {**loading.arguments(), **loading_arguments(path), "output_loading_info": True}
            given |= {**more, **older_transformers.model_arguments(config)}
            found: Any = AutoModelForCausalLM.from_pretrained(path, **given)
            if not given["output_loading_info"]:
                return found
            model, told = found
            if not _quantization(config, {}):  # whose modules have other tensors than its files
                _require_whole(model, told["missing_keys"])
            return model

        model = _loaded(load, loading, _quantization(config, more))
    except (KeyError, ValueError, ImportError) as error:
        if loading.most_bytes is not None and _SPILLED in str(error):
            raise BadRequestError(
                "spec.memory.maxGPUMemory: the quantized model does not fit, and modules of its "
                "format cannot be spilled",
                reason=FailureReason.UNSUPPORTED_MODEL,
                advice="allow more memory, or take fewer bits or another method",
            ) from error
        raise BadRequestError(
            f"spec.model: transformers does not load the model: {_first_line(error)}",
            reason=FailureReason.UNSUPPORTED_MODEL,
            advice="take a causal language model of an architecture that this version of "
            "transformers knows",
        ) from error
    return model.eval()


def _require_whole(model: Any, missing: Collection[str]) -> None:
    """Raise BadRequestError where weights are in no file: transformers makes them up at random.

    Buffers are left out, which a model computes itself, and what shares its weight with another is
    not among `missing`.
    """
    lacking = [name for name, _ in model.named_parameters() if name in missing]
    if lacking:
        names = ", ".join(lacking[:_SHOWN]) + (", ..." if len(lacking) > _SHOWN else "")
        raise BadRequestError(
            f"spec.model: the files lack {len(lacking)} of the weights of "
            f"{type(model).__name__} ({names}), which transformers would fill with random numbers",
            reason=FailureReason.UNSUPPORTED_MODEL,
            advice="name a whole checkpoint, and one of a causal language model; where the model "
            "is whole, its config.json does not fit its weights",
        )


def _quantization(config: Any, more: Mapping[str, Any]) -> str:
    """Return the name of the format that is read or made, "" where it is none."""
    found = more.get("quantization_config") or getattr(config, "quantization_config", None) or {}
    described: Mapping[str, Any] = found if isinstance(found, dict) else found.to_dict()
    return str(getattr(described.get("quant_method"), "value", described.get("quant_method", "")))


def _loaded(load: Callable[[], Any], loading: Loading, quantization: str) -> Any:
    """Return what `load` gives; on a CPU some formats need a word on how they compute there."""
    if loading.device != "cpu" or quantization not in _ON_CPU:
        return load()
    computing = import_module(_ON_CPU[quantization])
    return computing.loaded(load, getattr(torch, loading.dtype))


class CheckpointModel:
    """A loaded checkpoint that answers what a runtime is asked."""

    def __init__(self, path: Path, loading: Loading) -> None:
        """Load the checkpoint in the folder `path`; raises BadRequestError."""
        self.tokenizer = load_tokenizer(path, trust_remote_code=loading.trust_remote_code)
        self._prepare(path, loading)
        self.loaded = Loaded()
        self.model = self._load(path, loading)
        self.loaded.finish()
        config = self.model.config.get_text_config()
        width = int(config.vocab_size)
        self.vocabulary_size = min(width, loading.vocabulary_size or width)
        self.context_length = _context_length(self.model.config)
        self.bos_token = bos_token(self.tokenizer)
        opening = (self.tokenizer.bos_token_id, self.tokenizer.eos_token_id, 0)
        self.prefix_token = int(next(token for token in opening if token is not None))
        template = chat_template(path)
        self.chat_template = template.source if template else None
        self.device = self._input_device(loading)

    def _prepare(self, path: Path, loading: Loading) -> None:
        """Do what is no part of loading a model."""
        _import_architecture(path, trust_remote_code=loading.trust_remote_code)

    def _load(self, path: Path, loading: Loading) -> Any:
        """Return what is called as a transformers model is."""
        return load_model(path, loading)

    def _input_device(self, loading: Loading) -> torch.device:
        device: torch.device = self.model.get_input_embeddings().weight.device
        # Where the weights are spilled, accelerate moves inputs to where they are needed.
        return torch.device(loading.device) if device.type == "meta" else device

    @property
    def piece_rows(self) -> int:
        """Return how many rows of logits one forward pass gives at most."""
        return max(16, PIECE_BYTES // (4 * self.vocabulary_size))

    def tokenize(self, text: str, *, special: bool) -> TokenArray:
        """Return a text's ids; see `tokenize`."""
        return tokenize(self.tokenizer, text, special=special)

    def rows(self, window: TokenArray) -> Iterator[tuple[int, FloatRows]]:
        """Yield (position of the first row, rows of logits) of one window, in bounded pieces."""
        ids = torch.as_tensor(window.astype(np.int64), device=self.device)[None]
        whole = len(window) <= self.piece_rows
        cache = None
        for first in range(0, len(window), self.piece_rows):
            piece = ids[:, first : first + self.piece_rows]
            with torch.inference_mode():
                output = self.model(input_ids=piece, past_key_values=cache, use_cache=not whole)
            cache = getattr(output, "past_key_values", None)
            if not whole and cache is None:
                raise BadRequestError(
                    f"spec.evaluation.perplexity.contextLength: {len(window)} tokens are too many "
                    "at once for this model, which keeps nothing between pieces; set at most "
                    f"{self.piece_rows}",
                    reason=FailureReason.UNSUPPORTED_MODEL,
                )
            yield first, output.logits[0].float().cpu().numpy()

    def generate(self, prompts: Sequence[str], most: int) -> list[Generation]:
        """Return the greedy continuation of each prompt."""
        return [self._continue(prompt, most) for prompt in prompts]

    def complete(
        self, starts: Sequence[TokenArray], most: int, stops: Sequence[str]
    ) -> list[Generation]:
        """Continue token ids instead of texts; see `Runtime.complete`."""
        ends = Stops(stops, self.tokenizer.decode)
        found = [self._new_tokens(start.tolist(), most, ends) for start in starts]
        return [
            Generation(tuple(new), self.tokenizer.decode(new, skip_special_tokens=True), stopped)
            for new, stopped in found
        ]

    def _continue(self, prompt: str, most: int) -> Generation:
        opening = [] if self.bos_token is None else [self.bos_token]
        start = [*opening, *self.tokenize(prompt, special=False).tolist()] or [0]
        room = min(most, self.context_length - 1)
        start = start[-(self.context_length - room) :]
        new, stopped = self._new_tokens(start, room, Stops((), self.tokenizer.decode))
        text = self.tokenizer.decode([*start, *new], skip_special_tokens=True)
        before = self.tokenizer.decode(start, skip_special_tokens=True)
        return Generation(tuple(new), text.removeprefix(before), stopped)

    def _new_tokens(self, start: list[int], most: int, ends: Stops) -> tuple[list[int], bool]:
        """Return up to `most` greedy tokens after `start`, and whether something ended them."""
        ids = torch.tensor([start], device=self.device)
        new: list[int] = []
        cache, stopped = None, False
        with torch.inference_mode():
            while len(new) < most and not stopped:
                output = self.model(input_ids=ids, past_key_values=cache, use_cache=True)
                token = int(output.logits[0, -1].argmax())
                if token in self._stop_tokens:
                    stopped = True
                    break
                new.append(token)
                stopped = ends.reached(new)
                cache = getattr(output, "past_key_values", None)
                # Without a cache the whole text is read again.
                step = [[token]] if cache is not None else [[*start, *new]]
                ids = torch.tensor(step, device=self.device)
        return new, stopped

    @property
    def _stop_tokens(self) -> frozenset[int]:
        found = getattr(self.model.generation_config, "eos_token_id", None)
        found = found if found is not None else self.tokenizer.eos_token_id
        if found is None:
            return frozenset()
        return frozenset(found if isinstance(found, list) else [found])


def _first_line(error: BaseException) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
