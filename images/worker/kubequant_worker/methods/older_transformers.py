"""What a transformers before 5 calls otherwise: the legacy engines are bound to one.

It stands here and nowhere else, and says nothing where transformers is newer. transformers is
imported here, so only children import this module.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

import huggingface_hub.errors
import transformers
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerFast

from kubequant.api.outcome import FailureReason
from kubequant_worker.errors import BadRequestError
from kubequant_worker.methods.published_config import older_rotation

if TYPE_CHECKING:
    from pathlib import Path

_BEFORE_5: Final = int(transformers.__version__.partition(".")[0]) < 5  # noqa: PLR2004 - a version
DTYPE: Final = "torch_dtype" if _BEFORE_5 else "dtype"
"""The argument of `from_pretrained` that names the type to load in."""
# What transformers raises since version 5 where values in a config do not fit.
UNFIT: Final[type[Exception]] = getattr(huggingface_hub.errors, "StrictDataclassError", ValueError)
# A tokenizer class of transformers 5 that reads tokenizer.json and adds nothing of its own.
_PLAIN_TOKENIZER: Final = "TokenizersBackend"


def tokenizer(path: Path, **settings: Any) -> Any:
    """Return the tokenizer in the folder `path`, whichever version of transformers wrote it.

    In what version 5 writes, the key extra_special_tokens holds a list; before, it held names.
    """
    if not _BEFORE_5:
        return AutoTokenizer.from_pretrained(path, **settings)
    file = path / "tokenizer_config.json"
    written = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    extra = written.get("extra_special_tokens")
    if isinstance(extra, list):
        settings |= {"extra_special_tokens": {}, "additional_special_tokens": extra}
    plain = written.get("tokenizer_class") == _PLAIN_TOKENIZER
    return (PreTrainedTokenizerFast if plain else AutoTokenizer).from_pretrained(path, **settings)


def config(path: Path, **settings: Any) -> Any:
    """Return the config in the folder `path`, whichever version of transformers wrote it.

    Raises:
        BadRequestError: It says what an older transformers has no words for.
        ValueError: Its values do not fit.
    """
    try:
        found = AutoConfig.from_pretrained(path, **settings)
    except UNFIT as error:
        raise ValueError(str(error)) from error
    if _BEFORE_5:
        _say_in_older_words(found)
    return found


def model_arguments(found: Any) -> dict[str, Any]:
    """Return arguments of `from_pretrained`: the config, where `config` changed its words."""
    return {"config": found} if _BEFORE_5 else {}


def _say_in_older_words(found: Any) -> None:
    """Put what version 5 calls rope_parameters where a transformers before it looks.

    It would take its defaults in silence.
    """
    rotation = getattr(found, "rope_parameters", None)
    if not rotation:
        return
    older = older_rotation(rotation)
    if older is None:
        raise BadRequestError(
            f"spec.model: config.json rotates positions by {', '.join(rotation)}, which "
            f"transformers {transformers.__version__} cannot; legacy engines are bound to it",
            reason=FailureReason.UNSUPPORTED_MODEL,
            advice="take an engine that is kept up",
        )
    for name, value in older.items():
        setattr(found, name, value)
