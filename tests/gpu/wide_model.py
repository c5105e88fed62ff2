"""Writes a random Llama with layers of real width and the tiny model's tokenizer.

Usage: python wide_model.py FOLDER WIDTH LAYERS, where WIDTH is one of those below. It needs torch
and safetensors alone. Weights are normal, of the size that training starts from; what comes out of
the layers is then no language, and still tells a right packing from a wrong one.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

TINY = Path(__file__).parents[2] / "examples" / "models" / "tiny-llama"
# hidden, feed-forward, heads, key-value heads
WIDTHS = {"tiny": (256, 768, 4, 2), "7b": (4096, 11008, 32, 32), "8b": (4096, 14336, 32, 8)}
VOCABULARY = 2048
STANDARD_DEVIATION = 0.02


def layer(number: int, width: str, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Return the weights of one layer."""
    hidden, inner, heads, groups = WIDTHS[width]
    narrow = hidden // heads * groups
    shapes = {
        "self_attn.q_proj": (hidden, hidden), "self_attn.k_proj": (narrow, hidden),
        "self_attn.v_proj": (narrow, hidden), "self_attn.o_proj": (hidden, hidden),
        "mlp.gate_proj": (inner, hidden), "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }  # fmt: skip
    found = {
        f"model.layers.{number}.{name}.weight": normal(shape, generator)
        for name, shape in shapes.items()
    }
    for name in ("input_layernorm", "post_attention_layernorm"):
        found[f"model.layers.{number}.{name}.weight"] = torch.ones(hidden, dtype=torch.bfloat16)
    return found


def normal(shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """Return a random tensor in bfloat16."""
    return (torch.randn(shape, generator=generator) * STANDARD_DEVIATION).to(torch.bfloat16)


def write(folder: Path, width: str, layers: int) -> None:
    """Write the checkpoint, a shard for each layer."""
    hidden, inner, heads, groups = WIDTHS[width]
    generator = torch.Generator().manual_seed(0)
    folder.mkdir(parents=True)
    for name in ("tokenizer.json", "tokenizer.model", "tokenizer_config.json"):
        shutil.copyfile(TINY / name, folder / name)
    outside = {
        "model.embed_tokens.weight": normal((VOCABULARY, hidden), generator),
        "lm_head.weight": normal((VOCABULARY, hidden), generator),
        "model.norm.weight": torch.ones(hidden, dtype=torch.bfloat16),
    }
    index: dict[str, str] = {}
    total = 0
    for number in range(layers + 1):
        tensors = layer(number, width, generator) if number < layers else outside
        name = f"model-{number + 1:05d}-of-{layers + 1:05d}.safetensors"
        save_file(tensors, folder / name, metadata={"format": "pt"})
        index |= dict.fromkeys(tensors, name)
        total += sum(tensor.nbytes for tensor in tensors.values())
    whole = {"metadata": {"total_size": total}, "weight_map": index}
    (folder / "model.safetensors.index.json").write_text(json.dumps(whole))
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": hidden,
        "intermediate_size": inner, "num_attention_heads": heads, "num_key_value_heads": groups,
        "head_dim": hidden // heads, "num_hidden_layers": layers, "vocab_size": VOCABULARY,
        "max_position_embeddings": 2048, "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
        "hidden_act": "silu", "tie_word_embeddings": False, "torch_dtype": "bfloat16",
        "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config, indent=2))


if __name__ == "__main__":
    write(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
