"""A student's layers are of the kind that they were in its teacher, or it is refused."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from tests.worker.methods.models import SMALL

from kubequant_worker.errors import BadRequestError
from kubequant_worker.methods.student_layers import Cut, shortened

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedConfig

KEPT = (0, 2, 5)
SIX = {**SMALL, "num_hidden_layers": 6}
EXPERTS = {
    "n_routed_experts": 2, "num_experts_per_tok": 1, "n_group": 1, "topk_group": 1,
    "moe_intermediate_size": 32, "kv_lora_rank": 8, "q_lora_rank": 8, "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8, "v_head_dim": 8, "num_key_value_heads": 3,
}  # fmt: skip
# Case -> (the teacher's config.json, what the student's says of its layers).
WRITTEN: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "layers that are all of one kind": ({"model_type": "llama", **SIX}, {}),
    "every second layer sees all of the text": (
        {"model_type": "gemma2", **SIX},
        {"layer_types": ["sliding_attention", "sliding_attention", "full_attention"]},
    ),
    "every third layer does": (
        {"model_type": "gemma3_text", "sliding_window_pattern": 3, **SIX},
        {"layer_types": ["sliding_attention", "full_attention", "full_attention"]},
    ),
    "a list that the config has itself": (
        {"model_type": "gemma2", "layer_types": ["full_attention"] * 6, **SIX},
        {"layer_types": ["full_attention"] * 3},
    ),
    "the first layers have no experts": (
        {"model_type": "deepseek_v3", "first_k_dense_replace": 3, **SIX, **EXPERTS},
        {"first_k_dense_replace": 2},
    ),
}
NEO = {
    "model_type": "gpt_neo",
    "attention_types": [[["global", "local"], 3]],
    "num_layers": 6,
    "hidden_size": 64,
    "num_heads": 2,
}
WRITTEN["every second layer is local, by GPT-Neo's words"] = (
    NEO,
    {
        "attention_layers": ["global", "global", "local"],
        "attention_types": [[["global", "global", "local"], 1]],
    },
)
# Case -> (the teacher's config.json, what is said where transformers had no lists).
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a config that no longer adds up": (NEO, "transformers does not read config.json"),
    "another kind of attention": (
        {"model_type": "gemma2", **SIX},
        "made: self_attn.layer_type is full_attention and not sliding_attention",
    ),
}


def written(folder: Path, config: dict[str, Any]) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def student(folder: Path, teacher: dict[str, Any], *, lists: bool = True) -> PreTrainedConfig:
    """Return the config of a student that keeps `KEPT`, read after the teacher's was written."""
    from kubequant_worker.methods import distill_layers  # noqa: PLC0415 - imports torch

    path = str(written(folder / "teacher", teacher))
    told = distill_layers.layer_lists(path, 6, trusted=False) if lists else {}
    config = shortened({**told, **teacher}, Cut(KEPT, 6))
    made = str(written(folder / "student", config))
    before = distill_layers.read_config(path, "spec.model", trusted=False)
    after: PreTrainedConfig = distill_layers.read_config(
        made, "spec.distill.student", trusted=False
    )
    distill_layers.require_same_layers(before, after, KEPT, trusted=False)
    return after


@pytest.mark.parametrize("case", WRITTEN)
def test_what_a_layer_is_by_its_number_is_written_out(case: str, tmp_path: Path) -> None:
    teacher, expected = WRITTEN[case]

    config = student(tmp_path, teacher)

    assert config.get_text_config().num_hidden_layers == 3
    assert {name: getattr(config, name) for name in expected} == expected


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_written_is_refused(case: str, tmp_path: Path) -> None:
    teacher, said = REFUSED[case]

    with pytest.raises(BadRequestError, match=said) as caught:
        student(tmp_path, teacher, lists=False)

    assert caught.value.message.startswith("spec.distill.student")
    assert "spec.distill.student.uri" in caught.value.advice
