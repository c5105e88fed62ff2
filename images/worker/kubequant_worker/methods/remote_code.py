"""The lock on a model's own Python: the spec alone decides whether it may run.

For children that import transformers; nothing is imported before `decide` is called.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable


def decide(*, trusted: bool) -> None:
    """Let the spec decide, whatever a library passes.

    Libraries pass trust_remote_code=True in places and nothing in others, where transformers would
    ask the terminal. Without trust there are two locks: every `from_pretrained` of the Auto classes
    gets False, and the one function that executes such files refuses.
    """
    import transformers  # noqa: PLC0415 - heavy, and only children need it
    from transformers import dynamic_module_utils  # noqa: PLC0415 - as above

    def refuse(*_: object, **__: object) -> Any:
        raise ValueError("trust_remote_code is not allowed")

    if not trusted:
        dynamic_module_utils.get_class_in_module = refuse
    # AutoProcessor is left to the second lock: only to name it imports seconds' worth of modules.
    for name in ("AutoConfig", "AutoTokenizer", "AutoModelForCausalLM"):
        loader = getattr(transformers, name)
        loader.from_pretrained = _deciding(loader.from_pretrained, trusted=trusted)


def _deciding(load: Callable[..., Any], *, trusted: bool) -> Callable[..., Any]:
    """Return `load` with the decision made: False always wins, True only where nothing was said."""
    name = "trust_remote_code"

    def from_pretrained(*arguments: object, **settings: object) -> Any:
        return load(*arguments, **{**settings, name: trusted and settings.get(name, True)})

    return from_pretrained
