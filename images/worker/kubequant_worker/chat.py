"""A model's own chat template, found beside its tokenizer and rendered in a sandbox.

A template is code from whoever made the model: it runs in Jinja's immutable sandbox, sees nothing
but the messages, and what it raises becomes a sentence.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

from kubequant.api.outcome import FailureReason
from kubequant_worker.errors import BadRequestError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_MOST_CHARACTERS = 1_000_000


@dataclass(frozen=True, slots=True)
class ChatTemplate:
    """A Jinja template as transformers has it.

    And the text of the special tokens that it may name.
    """

    source: str
    eos_token: str = ""

    def render(self, messages: Sequence[Any], *, where: str) -> str:
        """Return `messages` (each a mapping with role and content) written as the model's chat.

        The BOS token is left empty, since every window of tokens opens with it anyway.

        Raises:
            BadRequestError: The template or the messages do not fit, named by `where`.
        """
        import jinja2  # noqa: PLC0415 - only templates need it
        from jinja2.sandbox import ImmutableSandboxedEnvironment  # noqa: PLC0415 - as above

        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=["jinja2.ext.loopcontrols"],
            autoescape=False,
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _refuse
        try:
            text = environment.from_string(self.source).render(
                messages=messages,
                add_generation_prompt=False,
                bos_token="",
                eos_token=self.eos_token,
            )
        except (jinja2.TemplateError, ArithmeticError, LookupError, RecursionError) as error:
            raise _unusable(where, error) from None
        except (AttributeError, TypeError, ValueError) as error:
            raise _unusable(where, error) from None
        if len(text) > _MOST_CHARACTERS:
            raise _unusable(where, ValueError("it writes more than a million characters"))
        return text


def _unusable(where: str, error: Exception) -> BadRequestError:
    return BadRequestError(
        f"{where}: the model's chat template does not take these messages: {error}",
        reason=FailureReason.UNUSABLE_DATASET,
        advice="messages are lists of {role, content}; or set spec.calibration.applyChatTemplate: "
        "false",
    )


def _refuse(message: str) -> NoReturn:
    raise ValueError(message)


def _to_json(value: object, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


def chat_template(model: Path) -> ChatTemplate | None:
    """Return the chat template in a model's folder, or None where there is none."""
    config = _json_object(model / "tokenizer_config.json")
    eos = config.get("eos_token")
    eos = eos.get("content") if isinstance(eos, dict) else eos
    source: object = None
    if (model / "chat_template.jinja").is_file():
        source = (model / "chat_template.jinja").read_text(encoding="utf-8", errors="replace")
    source = source or _json_object(model / "chat_template.json").get("chat_template")
    source = source or config.get("chat_template")
    if isinstance(source, list):  # several, each with a name
        named = {one.get("name"): one.get("template") for one in source if isinstance(one, dict)}
        source = named.get("default")
    if not isinstance(source, str):
        return None
    return ChatTemplate(source, eos if isinstance(eos, str) else "")


def _json_object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
