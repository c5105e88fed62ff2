"""What config.json of a made checkpoint says, by the original's and by what an engine saved."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from tests.worker.methods.models import ROTATED

from kubequant_worker.methods.published_config import (
    in_older_words_too,
    older_rotation,
    publish_config,
    published,
)

if TYPE_CHECKING:
    from pathlib import Path

SCALED = ROTATED["rope_scaling"]
OLDER = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "num_hidden_layers": 2,
    "torch_dtype": "float16",
    "transformers_version": "4.43.0",
    "the publisher's": "own word",
    **ROTATED,
}
NEWER = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "num_hidden_layers": 2,
    "dtype": "float32",
    "rope_parameters": {**SCALED, "rope_theta": 500000.0},
    "tie_word_embeddings": False,
    "transformers_version": "5.17.0",
}
QUANTIZED = {**NEWER, "quantization_config": {"quant_method": "compressed-tensors"}}
TYPED = {"dtype": "bfloat16", "torch_dtype": "bfloat16"}
# Case -> (the original's config.json, the one that an engine saved, what is published).
PUBLISHED: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "an original in older words keeps every one of them": (
        OLDER,
        QUANTIZED,
        {
            **OLDER,
            **TYPED,
            "tie_word_embeddings": False,
            "quantization_config": QUANTIZED["quantization_config"],
        },
    ),
    "an original in newer words says them in older ones too": (
        NEWER, QUANTIZED, {**QUANTIZED, **TYPED, **ROTATED},
    ),
    "what is pruned or trained has no quantization": (
        OLDER, NEWER, {**OLDER, **TYPED, "tie_word_embeddings": False},
    ),
    "an output head that became one of its own": (
        {**OLDER, "tie_word_embeddings": True},
        QUANTIZED,
        {
            **OLDER,
            **TYPED,
            "tie_word_embeddings": False,
            "quantization_config": QUANTIZED["quantization_config"],
        },
    ),
    "an output head of the text's half that became one of its own": (
        {"model_type": "both", "text_config": {"hidden_size": 8, "tie_word_embeddings": True}},
        {"model_type": "both", "text_config": {"tie_word_embeddings": False, "new": 1}},
        {
            "model_type": "both",
            "text_config": {"hidden_size": 8, "tie_word_embeddings": False},
            **TYPED,
        },
    ),
    "the text's half of a model that also sees": (
        {"model_type": "both", "text_config": OLDER},
        {**QUANTIZED, "model_type": "both_text"},
        {**QUANTIZED, "model_type": "both_text", **TYPED, **ROTATED},
    ),
    "an engine that kept the original's words": (
        OLDER,
        {**OLDER, "quantization_config": {"quant_method": "gptq"}},
        {**OLDER, **TYPED, "quantization_config": {"quant_method": "gptq"}},
    ),
}  # fmt: skip
# Case -> (rope_parameters, what an older transformers calls it).
ROTATIONS: dict[str, tuple[dict[str, Any], dict[str, Any] | None]] = {
    "plain": ({"rope_type": "default", "rope_theta": 1e6}, {"rope_theta": 1e6}),
    "scaled": ({**SCALED, "rope_theta": 500000.0}, ROTATED),
    "of a part of each head": (
        {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5},
        {"rope_theta": 1e4, "partial_rotary_factor": 0.5},
    ),
    "in sections": (
        {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
        {
            "rope_theta": 1e6,
            "rope_scaling": {"rope_type": "default", "mrope_section": [16, 24, 24]},
        },
    ),
    "Phi-3's": (
        {
            "rope_type": "longrope", "type": "longrope", "rope_theta": 1e4, "short_factor": [1],
            "long_factor": [2], "original_max_position_embeddings": 4096,
        },
        {
            "rope_theta": 1e4,
            "original_max_position_embeddings": 4096,
            "rope_scaling": {"type": "longrope", "short_factor": [1], "long_factor": [2]},
        },
    ),
    "by the kind of layer": (
        {"full_attention": {"rope_type": "default", "rope_theta": 1e6}, "sliding_attention": None},
        None,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", PUBLISHED)
def test_what_is_published(case: str) -> None:
    original, saved, expected = PUBLISHED[case]

    assert published(original, saved, "bfloat16") == expected


@pytest.mark.parametrize("case", ROTATIONS)
def test_a_rotation_in_older_words(case: str) -> None:
    newer, older = ROTATIONS[case]

    assert older_rotation(newer) == older
    said = in_older_words_too({"text_config": {"rope_parameters": newer}})
    assert said == {"text_config": {"rope_parameters": newer, **(older or {})}}


def test_what_is_said_in_older_words_already_stays() -> None:
    said = in_older_words_too({**NEWER, "rope_theta": 7.0, "rope_scaling": None})

    assert (said["rope_theta"], said["rope_scaling"]) == (7.0, SCALED)


def test_the_file_is_written_anew(tmp_path: Path) -> None:
    for name, config in (("original", OLDER), ("made", QUANTIZED)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(config))

    publish_config(tmp_path / "made", tmp_path / "original", "bfloat16")

    written = json.loads((tmp_path / "made" / "config.json").read_text())
    assert written == published(OLDER, QUANTIZED, "bfloat16")
