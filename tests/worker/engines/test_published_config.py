"""A published config.json means the same to every transformers that a server may hold.

What is published is made here of configs alone, as every method does it; that each engine's
checkpoints go that way is tested beside the engines.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
from tests.worker.engines.runs import program
from tests.worker.methods.models import ROTATED, SMALL

from kubequant_worker.methods.published_config import publish_config

LLAMA = {**SMALL, "model_type": "llama", "architectures": ["LlamaForCausalLM"]}
HALF = {**LLAMA, "torch_dtype": "bfloat16", "tie_word_embeddings": False}
FACTORS = {"short_factor": [1.0 + n / 40 for n in range(16)], "long_factor": [4.0] * 16}
# The environments, and the transformers that each of them holds.
READERS = {"awq-legacy": "4.51", "llmcompressor": "5.17"}
ORIGINALS: dict[str, dict[str, Any]] = {
    "another base": {**HALF, "rope_theta": 500000.0},
    "another base, in newer words": {
        **LLAMA,
        "dtype": "bfloat16",
        "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
    },
    "Llama 3.1": {**HALF, **ROTATED},
    "Llama 3.1, in newer words": {
        **LLAMA,
        "dtype": "bfloat16",
        "rope_parameters": {**ROTATED["rope_scaling"], "rope_theta": ROTATED["rope_theta"]},
    },
    "YaRN, in newer words": {
        **LLAMA,
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 1e6,
            "factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    },
    "Phi-3, in newer words": {
        **LLAMA,
        "model_type": "phi3",
        "architectures": ["Phi3ForCausalLM"],
        "hidden_size": 64,
        "num_attention_heads": 2,
        "head_dim": 32,
        "pad_token_id": None,
        "original_max_position_embeddings": 64,
        "rope_parameters": {
            "rope_type": "longrope",
            "rope_theta": 1e4,
            "original_max_position_embeddings": 64,
            **FACTORS,
        },
    },
}


@pytest.fixture(scope="module")
def rotations(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """How each reader rotates what was published, and the newest the originals."""
    from transformers import AutoConfig  # noqa: PLC0415 - imports torch

    folder = tmp_path_factory.mktemp("configs")
    originals, made = {}, {}
    for name, config in ORIGINALS.items():
        original, published = folder / name / "original", folder / name / "published"
        original.mkdir(parents=True)
        (original / "config.json").write_text(json.dumps(config))
        AutoConfig.from_pretrained(original).save_pretrained(published)
        publish_config(published, original, "bfloat16")
        originals[name], made[name] = str(original), str(published)
    found = {reader: program(reader, "rotations", given=made) for reader in READERS}
    return {**found, "originals": program("llmcompressor", "rotations", given=originals)}


@pytest.mark.parametrize("case", ORIGINALS)
@pytest.mark.parametrize("reader", READERS)
def test_every_transformers_rotates_as_the_original_is_rotated(
    rotations: dict[str, dict[str, Any]], reader: str, case: str
) -> None:
    found, expected = rotations[reader][case], rotations["originals"][case]

    assert found["frequencies"] == pytest.approx(expected["frequencies"], rel=1e-6)
    assert found["scaling"] == pytest.approx(expected["scaling"], rel=1e-6)


def test_the_originals_differ(rotations: dict[str, dict[str, Any]]) -> None:
    kinds = {tuple(one["frequencies"]) for one in rotations["originals"].values()}

    assert len(kinds) == 4
