"""Which image runs a method: a literal table, and the sentence for what is not in it.

An image's key is looked up in the administrator's settings; a user never names an image.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from kubequant.api.spec import Device, Method
from kubequant.controller.reasons import Reason, Refusal

if TYPE_CHECKING:
    from kubequant.api.spec import QuantizationJobSpec


class ImageKey(StrEnum):
    """The images that this version is made for, by the names of their folders."""

    GGUF = "gguf"


@dataclass(frozen=True, slots=True)
class Entry:
    """What runs a method: the image, and the engine's name for people."""

    image: ImageKey
    engine: str


ENTRIES: Final[dict[tuple[Method, str, Device], Entry]] = {
    (Method.GGUF, "Auto", Device.CPU): Entry(ImageKey.GGUF, "llama.cpp"),
    # The worker itself says in Preflight whether the device is there and of use to it.
    (Method.GGUF, "Auto", Device.GPU): Entry(ImageKey.GGUF, "llama.cpp"),
}
"""The engine is the spec's word, "Auto" where the method has no choice of engines."""


def entry_for(spec: QuantizationJobSpec) -> Entry | Refusal:
    """Return what runs `spec`, whose method is not Auto, or why nothing does."""
    engine = getattr(spec.parameters(), "engine", "Auto")
    device = spec.effective_device()
    entry = ENTRIES.get((spec.method, engine, device))
    if entry is not None:
        return entry
    there = sorted({method.value for method, _, _ in ENTRIES})
    if spec.method.value in there:
        asked = f"engine {engine} on {device}" if engine != "Auto" else f"device {device}"
        return Refusal(
            Reason.METHOD_UNAVAILABLE,
            f"spec.method: this version has no image that runs {spec.method} with {asked}",
            f"Leave engine and device to the method. Methods with an image: {', '.join(there)}.",
        )
    return Refusal(
        Reason.METHOD_UNAVAILABLE,
        f"spec.method: this version has no image for method {spec.method}",
        f"Methods with an image: {', '.join(there)}.",
    )
