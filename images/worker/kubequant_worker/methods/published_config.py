"""What config.json of a made checkpoint says: the original's own words, and what was done to it.

Libraries that save a checkpoint write its config anew, in the words of their own version: since
version 5 transformers calls rope_theta and rope_scaling rope_parameters, and torch_dtype dtype. A
server bound to an older one then takes its defaults in silence. So the original's file is kept, and
what it says in newer words alone stands there in the older ones too. No library is needed here.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from kubequant_worker.sources.model_folder import model_config

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_TIED: Final = "tie_word_embeddings"
# What an engine knows better than the original's config.json: how the tensors that it saved are
# named, whether the output head became one of its own, how they are to be read.
_ENGINES: Final = ("architectures", _TIED, "quantization_config")
# The two names of the type to compute in.
_TYPES: Final = ("dtype", "torch_dtype")
_ROTATION: Final = "rope_parameters"
# Of what rope_parameters holds, that which has its own place in a config of older words.
_BESIDE: Final = ("rope_theta", "partial_rotary_factor")
_PRETRAINED: Final = "original_max_position_embeddings"


def publish_config(folder: Path, original: Path, stored: str) -> None:
    """Write config.json of the checkpoint in `folder`, which was made of the one in `original`.

    `stored` is torch's name of the type that the weights are stored in.
    """
    config = published(model_config(original), model_config(folder), stored)
    text = json.dumps(config, indent=2) + "\n"
    (folder / "config.json").write_text(text, encoding="utf-8")


def published(original: Mapping[str, Any], saved: Mapping[str, Any], stored: str) -> dict[str, Any]:
    """Return what config.json is to say, given the original's and the one that an engine saved.

    Where the engine saved a model of another type, like the text half of one that also sees, its
    words are kept. The type that is named is `stored`, since servers compute in what is named and
    an engine names what it computed in.
    """
    if original.get("model_type") != saved.get("model_type"):
        config = dict(saved)
    else:
        config = {**original, **{name: saved[name] for name in _ENGINES if name in saved}}
        for name, part in original.items():
            theirs = saved.get(name)
            if isinstance(part, dict) and isinstance(theirs, dict) and _TIED in theirs:
                config[name] = {**part, _TIED: theirs[_TIED]}
    return in_older_words_too({**config, **dict.fromkeys(_TYPES, stored)})


def in_older_words_too(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config, and those in it, with what only newer words say in older words beside them.

    What is there in older words stays as it is.
    """
    said = {
        name: in_older_words_too(value)
        if isinstance(value, dict) and name.endswith("_config") and name != "quantization_config"
        else value
        for name, value in config.items()
    }
    if said.get("dtype") is not None:
        said.setdefault("torch_dtype", said["dtype"])
    rotation = said.get(_ROTATION)
    if isinstance(rotation, dict):
        older = older_rotation(rotation) or {}
        said |= {name: value for name, value in older.items() if said.get(name) is None}
    return said


def older_rotation(parameters: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return what a transformers before 5 has for `rope_parameters`, by its names in a config.

    None where there is no such thing: each kind of layer has parameters of its own.
    """
    if any(isinstance(value, dict) for value in parameters.values()):
        return None
    left = {name: value for name, value in parameters.items() if name not in _BESIDE}
    older = {name: parameters[name] for name in _BESIDE if name in parameters}
    kind = left.pop("rope_type", left.pop("type", "default"))
    left.pop("type", None)
    if kind == "longrope":
        # Phi-3, whose rotation this is, allows no more than its type and factors there.
        if _PRETRAINED in left:
            older[_PRETRAINED] = left.pop(_PRETRAINED)
        older["rope_scaling"] = {"type": kind, **left}
    elif kind != "default" or left:  # by default, sections of several dimensions may be there
        older["rope_scaling"] = {"rope_type": kind, **left}
    return older
