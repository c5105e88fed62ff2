"""Reads a folder of tasks that the user brought: YAML files and the data that they name.

A task of the harness may name Python functions, metrics that are downloaded as code, and any file
of the machine. Whoever writes a manifest must not get code run or files read by that, so a file
here is plain data of a known form, its data lie in the folder, and all else is refused with a
sentence. Its templates are rendered in a sandbox (`harness_child`). The harness is not imported.
"""

from __future__ import annotations

import posixpath
import re
from typing import TYPE_CHECKING, Any, Final, NoReturn

import yaml

from kubequant.api.outcome import FailureReason
from kubequant_worker.errors import BadRequestError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

FIELD: Final = "spec.evaluation.taskFiles"
LARGEST_YAML_BYTES: Final = 1 << 20
_YAML: Final = (".yaml", ".yml")
_MOST_INCLUDES: Final = 16
# What a task may say, of the harness's TaskConfig and GroupConfig: all that is data.
_WORDS: Final = frozenset({
    "task", "task_alias", "tag", "group", "group_alias", "aggregate_metric_list", "dataset_path",
    "dataset_name", "dataset_kwargs", "training_split", "validation_split", "test_split",
    "fewshot_split", "doc_to_text", "doc_to_target", "doc_to_choice", "description",
    "target_delimiter", "fewshot_delimiter", "fewshot_config", "num_fewshot", "metric_list",
    "output_type", "generation_kwargs", "repeats", "filter_list", "gen_prefix", "metadata",
})  # fmt: skip
_FEW_SHOT_WORDS: Final = frozenset({
    "sampler", "split", "samples", "fewshot_indices", "doc_to_text", "doc_to_target",
    "doc_to_choice", "gen_prefix", "fewshot_delimiter", "target_delimiter",
})  # fmt: skip
_LOADERS: Final = frozenset({"json", "csv", "parquet", "text"})
# A data set of the Hub, by its name. A path of any form would be read from this machine.
_HUB_NAME: Final = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?", re.ASCII)
_LOADER_WORDS: Final = frozenset({"data_files", "field", "delimiter", "sep", "names", "sample_by"})


class TaskFiles:
    """The tasks and groups of one folder, by name."""

    def __init__(self, folder: Path, files: Sequence[str]) -> None:
        """Read the YAML files of `files`, which are relative to `folder`.

        Raises:
            BadRequestError: A file is none, or asks for more than data.
        """
        self._folder = folder
        self._files = frozenset(files)
        self.configs: dict[str, dict[str, Any]] = {}
        for name in sorted(files):
            if name.endswith(_YAML):
                self._take(name)
        if not self.configs:
            self._refuse("", "holds no task: a YAML file with task or group")

    def _take(self, name: str) -> None:
        config = self._with_includes(name, 0)
        known = config.get("task") if isinstance(config.get("task"), str) else config.get("group")
        if known is None:
            return  # what others include
        if not isinstance(known, str) or not known:
            self._refuse(name, "must name its task or group with a word")
        if known in self.configs:
            self._refuse(name, f"names {known!r}, which another file of the folder does too")
        self.configs[known] = self._checked(name, config)

    def _with_includes(self, name: str, depth: int) -> dict[str, Any]:
        config = self._parsed(name)
        included = config.pop("include", [])
        merged: dict[str, Any] = {}
        for other in included if isinstance(included, list) else [included]:
            path = self._inside(name, other)
            if path is None or not path.endswith(_YAML) or depth >= _MOST_INCLUDES:
                self._refuse(name, f"includes {other!r}, which is no YAML file of the folder")
            merged |= self._with_includes(path, depth + 1)
        return merged | config

    def _parsed(self, name: str) -> dict[str, Any]:
        path = self._folder / name
        if path.stat().st_size > LARGEST_YAML_BYTES:
            self._refuse(name, f"has more than {LARGEST_YAML_BYTES} bytes")
        text = path.read_bytes()
        try:
            for token in yaml.scan(text, Loader=yaml.SafeLoader):
                if isinstance(token, yaml.TagToken):
                    self._refuse_tag(name, "".join(filter(None, token.value)))
            config = yaml.safe_load(text)
        except (yaml.YAMLError, UnicodeDecodeError, ValueError, RecursionError) as error:
            self._refuse(name, f"is no YAML: {' '.join(str(error).split())[:200]}")
        if not isinstance(config, dict):
            self._refuse(name, "must be a mapping, like task: mine")
        return config

    def _refuse_tag(self, name: str, tag: str) -> NoReturn:
        self._refuse(
            name,
            f"uses {tag}; nothing from a task's file is executed. Write what it does as a Jinja "
            "template or prepare the data before",
        )

    def _checked(self, name: str, config: dict[str, Any]) -> dict[str, Any]:
        """Return a task or group with its data's files as paths; refuse what is not plain."""
        unknown = sorted(str(word) for word in config if word not in _WORDS)
        if unknown:
            self._refuse(
                name,
                f"says {', '.join(unknown)}, which is code or unknown; a file may say "
                f"{', '.join(sorted(_WORDS))}",
            )
        members = config.get("task")
        if isinstance(members, list):
            inner = [self._checked(name, one) if isinstance(one, dict) else one for one in members]
            config = {**config, "task": inner}
        few_shot = config.get("fewshot_config")
        if few_shot is not None and not (
            isinstance(few_shot, dict) and set(few_shot) <= _FEW_SHOT_WORDS
        ):
            words = ", ".join(sorted(_FEW_SHOT_WORDS))
            self._refuse(name, f"may say in fewshot_config only {words}")
        return self._with_data(name, config)

    def _with_data(self, name: str, config: dict[str, Any]) -> dict[str, Any]:
        """Return `config` with the files of its data found in the folder."""
        loader, words = config.get("dataset_path"), config.get("dataset_kwargs")
        if loader is not None and not (isinstance(loader, str) and _HUB_NAME.fullmatch(loader)):
            self._refuse(
                name,
                f"names the dataset_path {loader!r}; it must be one of "
                f"{', '.join(sorted(_LOADERS))}, with dataset_kwargs.data_files in the folder, or "
                "a data set of the Hub as owner/name",
            )
        words = {} if words is None else words
        if not isinstance(words, dict) or not set(words) <= _LOADER_WORDS:
            self._refuse(name, f"may say in dataset_kwargs only {', '.join(sorted(_LOADER_WORDS))}")
        if "data_files" not in words:
            if loader in _LOADERS:
                self._refuse(name, f"loads {loader} and names no dataset_kwargs.data_files")
            return config
        if loader not in _LOADERS:
            self._refuse(
                name,
                f"names data_files; its dataset_path must be one of {', '.join(sorted(_LOADERS))}",
            )
        found = self._found(name, words["data_files"])
        return {**config, "dataset_kwargs": {**words, "data_files": found}}

    def _found(self, name: str, files: object) -> Any:
        """Return files with their whole paths, in the same form: one, several, or by split."""
        if isinstance(files, dict):
            return {str(split): self._found(name, inner) for split, inner in files.items()}
        if isinstance(files, list):
            return [self._found(name, inner) for inner in files]
        path = self._inside(name, files)
        if path is None:
            self._refuse(name, f"names the data file {files!r}, which is not in the folder")
        return str((self._folder / path).absolute())

    def _inside(self, name: str, other: object) -> str | None:
        """Return the name in the folder of a file named relative to the file `name`, or None."""
        if not isinstance(other, str):
            return None
        for base in (posixpath.dirname(name), ""):
            path = posixpath.normpath(posixpath.join(base, other))
            if path in self._files:
                return path
        return None

    def _refuse(self, name: str, what: str) -> NoReturn:
        where = f"{FIELD}: {name}" if name else FIELD
        raise BadRequestError(f"{where} {what}", reason=FailureReason.UNUSABLE_DATASET)
