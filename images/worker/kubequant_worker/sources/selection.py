"""Which of the files that an address lists are taken, and which are refused by name alone.

Nothing is opened here; only names and sizes are known.
"""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from kubequant.api.outcome import FailureReason
from kubequant_worker.errors import AccessError, BadRequestError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from kubequant.api.data import ModelSource
    from kubequant_worker.sources.source import Listing, Origin, RemoteFile

PICKLES = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib"}
CONFIGURATION = {".json", ".txt", ".model", ".jinja", ".tiktoken"}
DATASET_FORMS = {".txt", ".md", ".jsonl", ".json", ".csv", ".tsv", ".parquet", ".gz", ".zst"}
# What the lm-evaluation-harness loads: tasks as YAML, and data.
TASK_FORMS = DATASET_FORMS - {".md"} | {".yaml", ".yml"}
MOST_TASK_BYTES = 8 * 1024 * 1024 * 1024
# Above this a configuration or tokenizer file is fetched with the weights, not before them.
SMALL_BYTES = 64 * 1024 * 1024
LARGEST_CONFIGURATION_BYTES = 512 * 1024 * 1024
MOST_FILES = 10_000


def is_weights(path: str) -> bool:
    """Say whether a file holds weights."""
    return PurePosixPath(path).suffix == ".safetensors" or _is_pickle(path)


def is_small(path: str) -> bool:
    """Say whether a file is one of those that are fetched and checked before the weights."""
    return not is_weights(path)


def model_files(
    listed: Iterable[RemoteFile], model: ModelSource, field: str = "spec.model"
) -> tuple[RemoteFile, ...]:
    """Return the files of a model to take; `field` is what an error's sentence names.

    Safetensors, tokenizer and configuration, at the top level.

    Pickled weights are taken only with allowPickle and where there are no safetensors, Python files
    only with trustRemoteCode. Raises BadRequestError where a name leads out of the folder, where
    there are no weights that may be opened, or where config.json is missing.
    """
    files = sorted(_inside(listed), key=lambda file: file.path)
    top = [file for file in files if "/" not in file.path and not file.path.startswith(".")]
    weights = _weights([file for file in top if is_weights(file.path)], model, field)
    taken = [file for file in top if PurePosixPath(file.path).suffix in CONFIGURATION]
    if model.trust_remote_code:
        taken += [file for file in files if file.path.endswith(".py")]
    if not any(file.path == "config.json" for file in taken):
        raise BadRequestError(
            f"{field}.uri: {model.uri} has no config.json, so nobody can tell its architecture.",
            reason=FailureReason.UNSUPPORTED_MODEL,
            advice="Name the folder that holds config.json beside the weights.",
        )
    for file in taken:
        if file.size_bytes > LARGEST_CONFIGURATION_BYTES:
            raise BadRequestError(
                f"{field}.uri: {file.path} has {file.size_bytes} bytes, "
                "more than any tokenizer or configuration has.",
                reason=FailureReason.UNSAFE_MODEL,
            )
    return tuple(sorted((*taken, *weights), key=lambda file: file.path))


def _weights(weights: list[RemoteFile], model: ModelSource, field: str) -> list[RemoteFile]:
    safe = [file for file in weights if not _is_pickle(file.path)]
    # Some repositories hold the same weights twice, once under the name of another program.
    usual = [file for file in safe if not file.path.startswith("consolidated")]
    if safe:
        return usual or safe
    pickled = [file for file in weights if not _is_training_state(file.path)]
    if not pickled:
        raise BadRequestError(
            f"{field}.uri: {model.uri} holds no weights (*.safetensors).",
            reason=FailureReason.UNSUPPORTED_MODEL,
            advice="Name the folder that holds the weights; folders below it are not searched.",
        )
    if not model.allow_pickle:
        raise BadRequestError(
            f"{field}.uri: {model.uri} holds its weights only as pickle ({pickled[0].path}), "
            "and opening a pickle can run any code.",
            reason=FailureReason.UNSAFE_MODEL,
            advice="Convert it to safetensors, or set spec.model.allowPickle: true "
            "if you trust whoever made it."
            if field == "spec.model"
            else "Convert it to safetensors.",
        )
    return pickled


def dataset_files(
    listing: Listing, *, split: str, explicit: bool, origin: Origin
) -> tuple[RemoteFile, ...]:
    """Return the files of a dataset: those of a known form, and of those the split's.

    File names tell splits apart where they name any ("train-00000-of-00002.parquet", "test.jsonl").
    Where none names the asked one, all are taken unless the split was asked for by the user.
    """
    known = [file for file in _inside(listing.files) if _dataset_form(file.path)]
    if not known:
        raise AccessError(
            f"{origin.field}.uri: {origin.uri} holds no text files.",
            reason=FailureReason.DATASET_NOT_FOUND,
            advice=f"Files end in one of {', '.join(sorted(DATASET_FORMS - {'.gz', '.zst'}))}.",
        )
    named = [file for file in known if split in re.split(r"[^A-Za-z0-9]+", file.path)]
    if named:
        return tuple(named)
    if explicit and len(known) > 1:
        names = ", ".join(file.path for file in known[:5])
        raise AccessError(
            f"{origin.field}.split: no file of {origin.uri} names the split {split!r} ({names}).",
            reason=FailureReason.DATASET_NOT_FOUND,
            advice="Name the file itself in the address, or another split.",
        )
    return tuple(known)


def task_files(listing: Listing, origin: Origin) -> tuple[RemoteFile, ...]:
    """Return the files of a folder of tasks; those of other forms, like code, stay where they are.

    Raises AccessError where there is no YAML file, BadRequestError where it is far too much.
    """
    known = [
        file for file in _inside(listing.files) if PurePosixPath(file.path).suffix in TASK_FORMS
    ]
    if not any(file.path.endswith((".yaml", ".yml")) for file in known):
        raise AccessError(
            f"{origin.field}.uri: {origin.uri} holds no task, which is a YAML file.",
            reason=FailureReason.DATASET_NOT_FOUND,
            advice="Name the folder that holds the tasks' YAML files, with their data below it.",
        )
    if sum(file.size_bytes for file in known) > MOST_TASK_BYTES:
        raise BadRequestError(
            f"{origin.field}.uri: {origin.uri} holds more than {MOST_TASK_BYTES >> 30} GiB; name a "
            "folder with the tasks and their data alone.",
            reason=FailureReason.UNUSABLE_DATASET,
        )
    return tuple(known)


def _dataset_form(path: str) -> bool:
    name = PurePosixPath(path).name
    hidden = any(part.startswith(".") for part in PurePosixPath(path).parts)
    about = name.lower() in {"readme.md", "license.txt", "dataset_infos.json", "license.md"}
    return not hidden and not about and PurePosixPath(path).suffix in DATASET_FORMS


def _inside(listed: Iterable[RemoteFile]) -> list[RemoteFile]:
    """Refuse a listing with a name that would be written outside of the folder."""
    files = list(listed)
    if len(files) > MOST_FILES:
        raise BadRequestError(f"The address lists {len(files)} files; name a folder with fewer.")
    for file in files:
        if not _is_utf8(file.path):
            raise BadRequestError(
                f"The file name {file.path!r} is no UTF-8, so no report or manifest can hold it.",
                reason=FailureReason.UNSUPPORTED_MODEL,
                advice="Rename the file, or name a folder without it.",
            )
        if not is_safe_name(file.path):
            raise BadRequestError(
                f"The file name {file.path!r} leads out of its folder.",
                reason=FailureReason.UNSAFE_MODEL,
                advice="Do not use this model unless you know how it came to be.",
            )
    return files


def _is_utf8(path: str) -> bool:
    """Say whether a name is text; what is not comes from a mount, as lone surrogates."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


def is_safe_name(path: str) -> bool:
    """Say whether a listed name stays below the folder that it is written to, on any system."""
    parts = path.split("/")
    printable = all(character >= " " and character != "\x7f" for character in path)
    return (
        bool(path)
        and printable
        and _is_utf8(path)
        and "\\" not in path
        and not re.match(r"[A-Za-z]:", path)
        and not any(part in {"", ".", ".."} for part in parts)
    )


def _is_pickle(path: str) -> bool:
    return PurePosixPath(path).suffix in PICKLES


def _is_training_state(path: str) -> bool:
    """Say whether a pickle is what trainers leave beside the weights."""
    return path.startswith(("optimizer", "scheduler", "training_args", "rng_state", "scaler"))
