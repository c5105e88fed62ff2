"""How to load what was published: commands that are right when copied in the artifact's folder.

Made from the report alone. Whatever comes from it is quoted for the shell and for Python: names in
a report are a claim of whoever wrote it.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from kubequant.api.enums import Device, Method
from kubequant.api.outcome import Outcome

if TYPE_CHECKING:
    from kubequant.api.contract import RunReport, VariantReport

PROMPT: Final = "Once upon a time"
_VLLM: Final = "vllm serve "
# What each server wants to hear before it runs a model's own code.
_TRUST: Final = {_VLLM: "--trust-remote-code", "trtllm-serve ": "--trust_remote_code"}
# The longest name of a model that Ollama takes.
_OLLAMA_NAME: Final = 80


@dataclass(frozen=True, slots=True)
class Command:
    """One way to load the artifact: the runtime's name, what to type, and what to know."""

    runtime: str
    text: str
    note: str = ""


def served_variant(report: RunReport) -> VariantReport | None:
    """Return the variant that commands load: the recommended one, or the first."""
    named = [one for one in report.variants if one.name == report.recommended]
    return next(iter((*named, *report.variants)), None)


def commands(report: RunReport) -> tuple[Command, ...]:
    """Return how to load the variant to serve, in each runtime that its format is for.

    The engine's own words come first where the report has them. A run that failed published
    nothing that could be loaded.
    """
    variant = served_variant(report)
    if variant is None or report.outcome is Outcome.FAILED:
        return ()
    paths = [file.path for file in variant.files]
    gguf = next((path for path in paths if path.endswith(".gguf")), None)
    found: list[Command] = []
    if gguf is not None:
        found += _gguf(report, gguf)
    elif report.usage is not None and report.usage.command:
        command = _trusting(report, report.usage.command)
        found.append(Command(report.usage.runtime, command, _note(variant, command)))
    if variant.method is Method.TENSOR_RT:
        return (*found, *_vllm_too(report))
    is_checkpoint = "config.json" in paths and any(path.endswith(".safetensors") for path in paths)
    if is_checkpoint and all(one.runtime != "transformers" for one in found):
        found.append(_transformers(report))
    return tuple(found)


def _vllm_too(report: RunReport) -> tuple[Command, ...]:
    """Return what else loads ModelOpt's checkpoint: transformers would take it for another."""
    asked = report.settings.tensor_rt if report.settings else None
    if asked is None or asked.precision != "FP8":
        return ()
    return (Command("vLLM", _trusting(report, "vllm serve ."), "The checkpoint, not the engine."),)


def _trusting(report: RunReport, command: str) -> str:
    """Return a server's command for a model whose own code was trusted, with the word it needs."""
    trusted = report.settings is not None and report.settings.model.trust_remote_code
    words = (word for server, word in _TRUST.items() if command.startswith(server))
    word = next(words, "") if trusted else ""
    return f"{command} {word}" if word and word not in command else command


def _note(variant: VariantReport, command: str) -> str:
    """Return what to know of vLLM's command, by vLLM's documentation; "" for another's."""
    if not command.startswith(_VLLM):
        return ""
    found = "An OpenAI-compatible API on port 8000."
    if variant.method is Method.BITS_AND_BYTES:
        found += (
            " It needs the package bitsandbytes beside vLLM, and from vLLM 0.28 on vllm-bnb-plugin."
        )
    if variant.method is Method.GPTQ and variant.bits_per_weight in {"2", "3"}:
        found += f" Not every version of vLLM has kernels for {variant.bits_per_weight} bits."
    return found


def _gguf(report: RunReport, path: str) -> tuple[Command, ...]:
    # "./" keeps a name that starts with "-" from being an option.
    file = shlex.quote(path if path[0].isalnum() else f"./{path}")
    name = shlex.quote((report.name or "quantized")[:_OLLAMA_NAME])
    python = _python(
        "from llama_cpp import Llama",
        "",
        f"model = Llama(model_path={path!r}, n_ctx=512, verbose=False)",
        f"answer = model({PROMPT!r}, max_tokens=64)",
        'print(answer["choices"][0]["text"])',
    )
    return (
        Command("llama.cpp", f"llama-server -m {file}", "An OpenAI-compatible API on port 8080."),
        Command(
            "Ollama",
            f"printf 'FROM ./%s\\n' {shlex.quote(path)} > Modelfile\n"
            f"ollama create {name} -f Modelfile\n"
            f"ollama run {name}",
        ),
        Command("llama-cpp-python", python),
    )


def _transformers(report: RunReport) -> Command:
    on_gpu = report.resolved is not None and report.resolved.device is Device.GPU
    trusted = report.settings is not None and report.settings.model.trust_remote_code
    options = (', device_map="auto"' if on_gpu else "") + (
        ", trust_remote_code=True" if trusted else ""
    )
    trust = ", trust_remote_code=True" if trusted else ""
    text = _python(
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        f'tokenizer = AutoTokenizer.from_pretrained("."{trust})',
        f'model = AutoModelForCausalLM.from_pretrained("."{options})',
        f'inputs = tokenizer({PROMPT!r}, return_tensors="pt").to(model.device)',
        "tokens = model.generate(**inputs, max_new_tokens=64)",
        "print(tokenizer.decode(tokens[0], skip_special_tokens=True))",
    )
    return Command("transformers", text)


def _python(*lines: str) -> str:
    return "\n".join(("python - <<'END'", *lines, "END"))
