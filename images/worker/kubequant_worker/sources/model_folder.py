"""Checks a model that lies in a folder, before any engine opens it.

First the small files (configuration, tokenizer, index), then every weight file's header. What an
architecture means is the engine's to know.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from kubequant.api.outcome import FailureReason
from kubequant_worker.errors import BadRequestError
from kubequant_worker.sources.safetensors_header import HeaderError, read_header
from kubequant_worker.sources.selection import is_safe_name, is_weights

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from kubequant.api.data import ModelSource
    from kubequant_worker.sources.source import RemoteFile

# One of these sets makes a tokenizer.
TOKENIZERS = (
    {"tokenizer.json"},
    {"tokenizer.model"},
    {"spiece.model"},
    {"sentencepiece.bpe.model"},
    {"vocab.json", "merges.txt"},
    {"vocab.txt"},
)
INDEX = "model.safetensors.index.json"
INDEXES = (INDEX, "pytorch_model.bin.index.json")


def check_small_files(
    folder: Path, files: Sequence[RemoteFile], model: ModelSource, field: str = "spec.model"
) -> None:
    """Check configuration and tokenizer; raises BadRequestError with the way out.

    `files` are all that the model has, `field` is what the sentence names.
    """
    names = {file.path for file in files}
    if not any(needed <= names for needed in TOKENIZERS) and not any(
        name.endswith(".tiktoken") for name in names
    ):
        raise BadRequestError(
            f"{field}.uri: {model.uri} has no tokenizer.",
            reason=FailureReason.UNSUPPORTED_MODEL,
            advice="Put tokenizer.json or tokenizer.model of the model beside its weights.",
        )
    for name in ("config.json", "tokenizer_config.json"):
        if name not in names:
            continue
        content = _read_json(folder / name, field)
        if "auto_map" in content and not model.trust_remote_code:
            raise BadRequestError(
                f"{field}.uri: {name} of {model.uri} asks to run Python code that comes with "
                "the model (auto_map).",
                reason=FailureReason.UNSAFE_MODEL,
                advice="Use a model of an architecture that transformers knows"
                + (
                    ", or set spec.model.trustRemoteCode: true if you trust whoever made it."
                    if field == "spec.model"
                    else "."
                ),
            )


def check_model(
    folder: Path, files: Sequence[RemoteFile], model: ModelSource, field: str = "spec.model"
) -> None:
    """Check sizes, index and weight headers; raises BadRequestError with the file and the fault."""
    for file in files:
        size = (folder / file.path).stat().st_size
        if size != file.size_bytes:
            raise BadRequestError(
                f"{field}.uri: {file.path} has {size} bytes, and its listing said "
                f"{file.size_bytes}.",
                reason=FailureReason.UNSAFE_MODEL,
                advice="Try again; if it stays so, the model is not what it says it is.",
            )
    weights = {file.path for file in files if is_weights(file.path)}
    tensors: dict[str, str] = {}
    for name in sorted(weights):
        if not name.endswith(".safetensors"):
            continue
        try:
            spans = read_header(folder / name)
        except HeaderError as error:
            raise BadRequestError(
                f"{field}.uri: {name} is no safetensors file to be opened: {error}.",
                reason=FailureReason.UNSAFE_MODEL,
                advice="Fetch or convert the model anew.",
            ) from error
        for span in spans:
            if span.name in tensors:
                raise BadRequestError(
                    f"{field}.uri: tensor {span.name!r} is in {tensors[span.name]} and in {name}.",
                    reason=FailureReason.UNSAFE_MODEL,
                    advice="Leave one set of weights in the folder.",
                )
            tensors[span.name] = name
    names = {file.path for file in files}
    for index in INDEXES:
        if index in names:
            _check_index(folder / index, weights, tensors, model, field)


def _check_index(
    index: Path, weights: set[str], tensors: dict[str, str], model: ModelSource, field: str
) -> None:
    """Check that the index names shards that are there, and for safetensors the tensors in them."""
    shard_of = _read_json(index, field).get("weight_map")
    if not isinstance(shard_of, dict) or not all(isinstance(v, str) for v in shard_of.values()):
        raise BadRequestError(
            f"{field}.uri: {index.name} has no weight_map.", reason=FailureReason.UNSAFE_MODEL
        )
    pickled = index.name.startswith("pytorch")
    if pickled and any(name.endswith(".safetensors") for name in weights):
        return
    for name in sorted(set(shard_of.values())):
        if not is_safe_name(name) or name not in weights:
            raise BadRequestError(
                f"{field}.uri: {index.name} names the shard {name!r}, and {model.uri} does "
                "not have it.",
                reason=FailureReason.UNSUPPORTED_MODEL,
                advice="Complete the folder, or remove the index if it belongs to other weights.",
            )
    for tensor, name in shard_of.items():
        if not pickled and tensors.get(tensor) != name:
            raise BadRequestError(
                f"{field}.uri: {index.name} says that tensor {tensor!r} is in {name}, "
                "and it is not.",
                reason=FailureReason.UNSAFE_MODEL,
            )


def _read_json(path: Path, field: str) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # also a number of thousands of digits
        raise BadRequestError(
            f"{field}.uri: {path.name} is not JSON.", reason=FailureReason.UNSUPPORTED_MODEL
        ) from error
    if not isinstance(content, dict):
        raise BadRequestError(
            f"{field}.uri: {path.name} is not a JSON object.",
            reason=FailureReason.UNSUPPORTED_MODEL,
        )
    return content


def architecture(model: Path) -> str:
    """Return the architecture that config.json names, "" where it names none.

    Raises:
        BadRequestError: config.json is missing or no JSON object.
    """
    names = model_config(model).get("architectures")
    return str(names[0]) if isinstance(names, list) and names else ""


def require_unquantized(model: Path, field: str = "spec.model") -> None:
    """Raise BadRequestError where config.json says that the weights are quantized already."""
    found = model_config(model).get("quantization_config")
    if found is not None:
        kind = found.get("quant_method", "some method") if isinstance(found, dict) else found
        raise BadRequestError(
            f"{field}: config.json says that the model is quantized already (by {kind}); "
            "a method starts from a 16- or 32-bit checkpoint",
            reason=FailureReason.UNSUPPORTED_MODEL,
            advice="name the model that it was made from",
        )


def model_config(model: Path) -> dict[str, Any]:
    """Return config.json, empty where it holds no object.

    Raises:
        BadRequestError: It is missing or no JSON.
    """
    if not (model / "config.json").is_file():
        raise BadRequestError(
            "spec.model: there is no config.json beside the weights",
            reason=FailureReason.UNSUPPORTED_MODEL,
            advice="publish the whole checkpoint as transformers writes it (save_pretrained)",
        )
    try:
        config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise BadRequestError(
            f"spec.model: config.json cannot be read: {error}",
            reason=FailureReason.UNSUPPORTED_MODEL,
        ) from None
    return config if isinstance(config, dict) else {}
