"""Conversion of a checkpoint to GGUF by llama.cpp's own converter, in a child process.

The converter is Python and comes with the pinned llama-cpp-python (`llama_cpp/converter`). Both
halves live here: `Converter` for the parent, and the child that runs it (`python -m
kubequant_worker.methods.gguf_convert`). torch and transformers are imported in the child only.
While it is there, the child also computes the logits that the conversion is checked against
(`gguf_check` judges them).
"""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from kubequant.api.outcome import FailureReason
from kubequant_worker.closing import Closing
from kubequant_worker.errors import BadRequestError
from kubequant_worker.methods import remote_code
from kubequant_worker.methods.child import Child, ChildFailedError, Parent, serve

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import ModuleType

    from kubequant_worker.methods.child import Operation

_MODULE = "kubequant_worker.methods.gguf_convert"
_TOKENIZER_FILES = (
    "tokenizer.model", "tokenizer.json", "vocab.json", "vocab.txt", "tekken.json", "tiktoken.model",
    "qwen.tiktoken", "spiece.model", "sentencepiece.bpe.model", "ice_text.model",
    "rwkv_vocab_v20230424.txt",
)  # fmt: skip


class Converter(Closing):
    """The child that converts; a context manager that ends it."""

    def __init__(
        self,
        *,
        threads: int,
        trust_remote_code: bool,
        first: Literal["convert", "reference"] = "convert",
    ) -> None:
        """Start the child, which begins to import what it will be asked for first."""
        self._child = Child(
            _MODULE,
            engine="the GGUF converter",
            threads=threads,
            arguments=(str(int(trust_remote_code)), first),
        )

    @property
    def pid(self) -> int:
        """Return the child's process id."""
        return self._child.pid

    def convert(
        self, model: Path, target: Path, *, name: str, on_bytes: Callable[[int, int], None]
    ) -> None:
        """Convert the checkpoint in `model` to the file `target`, 16 bits wide.

        `on_bytes` gets (bytes written just now, bytes in all).

        Raises:
            BadRequestError: The converter does not know the architecture or the tokenizer, the
                tokenizer is missing, or the model asks to run its own code.
            ChildFailedError: Anything else, with the converter's last lines.
            OSError: The disk is full.
        """
        self._child.call("convert", str(model), str(target), name, on_event=on_bytes)

    def begin_reference(self, model: Path, text: str, target: Path) -> Callable[[], list[int]]:
        """Begin to write transformers' float32 logits over `text` to `target` (.npy).

        What is returned waits for the end, and returns the text's ids; it raises ChildFailedError
        where transformers does not load the model.
        """
        return self._child.begin("reference", str(model), text, str(target))

    def close(self) -> None:
        """End the child; a second call does nothing."""
        self._child.close()


def require_tokenizer(model: Path) -> None:
    """Raise BadRequestError where no tokenizer lies beside the weights."""
    if not any((model / name).is_file() for name in _TOKENIZER_FILES):
        raise BadRequestError(
            "spec.model: there is no tokenizer beside the weights (tokenizer.json, tokenizer.model "
            "or vocab.json with merges.txt)",
            reason=FailureReason.UNSUPPORTED_MODEL,
            advice="a GGUF file holds the tokenizer too: put its files into the model's folder",
        )


# What follows runs in the child.


class _Refusals:
    """Turns what the converter raises into sentences for the user."""

    def __init__(self, model: Path) -> None:
        self._model = model

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: object
    ) -> None:
        if error is None or isinstance(error, BadRequestError):
            return
        text = str(error)
        if "trust_remote_code" in text:
            raise BadRequestError(
                "spec.model: the model asks to run Python code that comes with it (auto_map), "
                "which spec.model.trustRemoteCode does not allow",
                reason=FailureReason.UNSUPPORTED_MODEL,
                advice="read that code, then set spec.model.trustRemoteCode: true; or take a model "
                "that needs none",
            ) from error
        if isinstance(error, NotImplementedError) and "pre-tokenizer" in text:
            raise BadRequestError(
                "spec.model: llama.cpp does not know this byte-level BPE tokenizer (it recognizes "
                "them by a hash, and this one's is not among them)",
                reason=FailureReason.UNSUPPORTED_MODEL,
                advice="use a base model's own tokenizer unchanged, a SentencePiece "
                "tokenizer.model, or another method",
            ) from error
        if isinstance(error, KeyError):
            raise BadRequestError(
                f"spec.model: the converter looks for {error} in the checkpoint's config or "
                "tensors, and it is not there",
                reason=FailureReason.UNSUPPORTED_MODEL,
                advice="the model may be of a newer or older kind than this llama.cpp knows",
            ) from error
        if isinstance(error, FileNotFoundError):
            missing = Path(error.filename or text.rpartition(": ")[2]).name
            raise BadRequestError(
                f"spec.model: the converter looks for {missing}, which is not there",
                reason=FailureReason.UNSUPPORTED_MODEL,
                advice="put all files of the checkpoint and its tokenizer into the model's folder",
            ) from error


class _Bar:
    """Stands in for the converter's tqdm bar and hands on the bytes that it counts."""

    parent: Parent

    def __init__(self, *, total: float | None = None, **_: object) -> None:
        self._total = int(total or 0)

    def update(self, amount: float) -> None:
        self.parent.event(int(amount), self._total)

    def reset(self, total: float | None = None) -> None:
        self._total = int(total or 0)

    def set_description(self, *_: object) -> None:
        """Say nothing: the stage says where it is."""


class _Work:
    """The child's operations."""

    def __init__(self, parent: Parent, *, trust_remote_code: bool, first: str) -> None:
        self._trust = trust_remote_code
        _Bar.parent = parent
        remote_code.decide(trusted=trust_remote_code)
        (_import_converter if first == "convert" else _import_transformers)()

    def operations(self) -> Mapping[str, Operation]:
        return {"convert": self.convert, "reference": self.reference}

    def convert(self, model_path: str, target: str, name: str) -> None:
        """Convert as the converter's own `main` does, without its command line."""
        import torch  # noqa: PLC0415 - heavy, and only this child needs it
        import tqdm  # type: ignore[import-untyped] # noqa: PLC0415 - as torch

        model, library = Path(model_path), _import_converter()
        tqdm.tqdm = _Bar
        with torch.inference_mode(), _Refusals(model):
            parameters = library.ModelBase.load_hparams(model, False)  # noqa: FBT003 - theirs
            kind = library.get_model_architecture(parameters, library.ModelType.TEXT)
            if kind not in library.TEXT_MODEL_MAP:
                raise BadRequestError(
                    f"spec.model: llama.cpp's converter does not know the architecture {kind}",
                    reason=FailureReason.UNSUPPORTED_MODEL,
                    advice="use another method, or a model whose architecture llama.cpp supports",
                )
            guessed = library.gguf.LlamaFileType.GUESSED
            converted = library.get_model_class(kind)(model, guessed, Path(target), model_name=name)
            converted.write()

    def reference(self, model_path: str, text: str, target: str) -> list[int]:
        """Compute transformers' logits in float32."""
        import numpy as np  # noqa: PLC0415 - only this child computes with it here
        import torch  # noqa: PLC0415 - as above
        from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: PLC0415 - as above

        tokenizer = AutoTokenizer.from_pretrained(model_path, trust_remote_code=self._trust)
        ids: list[int] = tokenizer(text)["input_ids"]
        model = AutoModelForCausalLM.from_pretrained(
            model_path, dtype=torch.float32, trust_remote_code=self._trust, low_cpu_mem_usage=True
        )
        with torch.inference_mode():
            model.eval()  # type: ignore[no-untyped-call]
            logits = model(input_ids=torch.tensor([ids])).logits[0]
        np.save(target, logits.float().numpy())
        return ids


def _import_transformers() -> None:
    """Import what loads and runs a model, which the library's own front puts off."""
    from transformers import (  # noqa: PLC0415 - heavy, and only this child needs it
        AutoModelForCausalLM,  # noqa: F401 - found imported when it is used
        AutoTokenizer,  # noqa: F401 - as above
        modeling_utils,  # noqa: F401 - as above
    )


@cache
def _import_converter() -> ModuleType:
    """Import the vendored converter's package `conversion`, and its `gguf` with it."""
    import llama_cpp._ctypes_extensions as beside  # noqa: PLC0415 - only to find the folder

    folder = Path(beside.__file__).parent / "converter"
    if not folder.is_dir():
        raise ChildFailedError(
            f"{folder} is missing: llama-cpp-python must be the wheel of images/gguf"
        )
    sys.path[1:1] = [str(folder), str(folder / "gguf-py")]
    import conversion  # noqa: PLC0415 - known only from here on
    import gguf  # noqa: PLC0415 - as above

    conversion.gguf = gguf
    return conversion  # type: ignore[no-any-return]


def main() -> None:
    """Serve until the parent is gone.

    Arguments: socket, parent's pid, 1 where remote code is trusted, the first operation.
    """
    trusted, first = sys.argv[3] == "1", sys.argv[4]

    def operations(parent: Parent) -> Mapping[str, Operation]:
        return _Work(parent, trust_remote_code=trusted, first=first).operations()

    serve(sys.argv[1:], operations)


if __name__ == "__main__":
    main()
