"""Makers of small random models in shapes that the tiny model has not."""

from __future__ import annotations

import copy
import json
import shutil
from typing import TYPE_CHECKING, Any

from tests.worker.methods.conftest import TINY

if TYPE_CHECKING:
    from pathlib import Path

TOKENIZER = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json")
SMALL = {
    "vocab_size": 2048,
    "hidden_size": 192,
    "intermediate_size": 320,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
    "head_dim": 64,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "initializer_range": 0.08,
}
# Changes to `SMALL` whose rows are whole numbers of groups of 128.
EVEN = {"hidden_size": 256, "num_attention_heads": 4, "intermediate_size": 384}


# What older Llama models say of how they generate: a temperature, though nothing is sampled.
WORDS = {"temperature": 0.9, "top_p": 0.6, "max_length": 4096, "eos_token_id": 2}


def worded(folder: Path) -> Path:
    """Save a small random Llama that says `WORDS`, which transformers refuses to write."""
    sizes = {"hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 2}
    random_llama(folder, **sizes)
    (folder / "generation_config.json").write_text(json.dumps(WORDS))
    return folder


def copy_tokenizer(folder: Path) -> None:
    """Put the tiny model's tokenizer into `folder`."""
    for name in TOKENIZER:
        shutil.copyfile(TINY / name, folder / name)


def random_llama(
    folder: Path, *, shard: str = "5GB", stored: str = "bfloat16", **changes: Any
) -> Path:
    """Save a random Llama of `SMALL` and `changes`, with the tiny tokenizer."""
    import torch  # noqa: PLC0415 - seconds, and only these tests need it
    from transformers import LlamaConfig, LlamaForCausalLM  # noqa: PLC0415 - as above

    torch.manual_seed(0)
    config = LlamaConfig(**{**SMALL, "tie_word_embeddings": False, **changes})
    model = LlamaForCausalLM(config).to(getattr(torch, stored))
    model.save_pretrained(folder, max_shard_size=shard)
    copy_tokenizer(folder)
    return folder


# What config.json of the tiny model says only in the words of transformers since version 5.
OLDER_WORDS = {"torch_dtype": "bfloat16", "rope_theta": 10000.0}
# How Llama 3.1 rotates positions, in the words of transformers before version 5.
ROTATED = {
    "rope_theta": 500000.0,
    "rope_scaling": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
}


def rotated_llama(folder: Path) -> Path:
    """Save a random Llama with `ROTATED`, its config.json as a transformers before 5 wrote it."""
    sizes = {"hidden_size": 256, "num_attention_heads": 4, "intermediate_size": 384}
    random_llama(folder, **sizes, **copy.deepcopy(ROTATED))  # transformers adds to it
    path = folder / "config.json"
    config = json.loads(path.read_text())
    del config["rope_parameters"]
    older = {**ROTATED, "torch_dtype": config.pop("dtype"), "transformers_version": "4.43.0"}
    path.write_text(json.dumps({**config, **older}))
    return folder


def random_mixtral(folder: Path) -> Path:
    """Save a random Mixtral with four experts of which two are used."""
    import torch  # noqa: PLC0415 - as above
    from transformers import MixtralConfig, MixtralForCausalLM  # noqa: PLC0415 - as above

    torch.manual_seed(0)
    sizes = {**SMALL, "hidden_size": 256, "intermediate_size": 256, "num_attention_heads": 4}
    config = MixtralConfig(**sizes, num_local_experts=4, num_experts_per_tok=2)
    MixtralForCausalLM(config).to(torch.float16).save_pretrained(folder)
    copy_tokenizer(folder)
    return folder


def random_qwen3_moe(folder: Path) -> Path:
    """Save a random Qwen3 with four experts of which two are used, each under names of its own."""
    import torch  # noqa: PLC0415 - as above
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM  # noqa: PLC0415 - as above

    torch.manual_seed(0)
    sizes = {**SMALL, "hidden_size": 256, "num_attention_heads": 4, "num_key_value_heads": 2}
    experts = {"moe_intermediate_size": 256, "num_experts": 4, "num_experts_per_tok": 2}
    config = Qwen3MoeConfig(**{**sizes, "intermediate_size": 256, **experts})
    Qwen3MoeForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    copy_tokenizer(folder)
    return folder


def random_qwen2(folder: Path) -> Path:
    """Save a random Qwen2: biases, tied embeddings, grouped heads."""
    import torch  # noqa: PLC0415 - as above
    from transformers import Qwen2Config, Qwen2ForCausalLM  # noqa: PLC0415 - as above

    torch.manual_seed(0)
    sizes = {key: value for key, value in SMALL.items() if key != "head_dim"}
    changes = {"hidden_size": 256, "intermediate_size": 384, "num_attention_heads": 4}
    config = Qwen2Config(**{**sizes, **changes}, tie_word_embeddings=True)
    Qwen2ForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    copy_tokenizer(folder)
    return folder


def random_mamba(folder: Path) -> Path:
    """Save a random Mamba, which keeps a state between tokens, and no keys and values."""
    import torch  # noqa: PLC0415 - as above
    from transformers import MambaConfig, MambaForCausalLM  # noqa: PLC0415 - as above

    torch.manual_seed(0)
    config = MambaConfig(vocab_size=2048, hidden_size=64, state_size=4, num_hidden_layers=1)
    MambaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    copy_tokenizer(folder)
    return folder


def random_gpt2(folder: Path, positions: int = 64) -> Path:
    """Save a random GPT-2 whose byte-level BPE nobody has seen before."""
    import torch  # noqa: PLC0415 - as above
    from tokenizers import ByteLevelBPETokenizer  # noqa: PLC0415 - as above
    from transformers import (  # noqa: PLC0415 - as above
        GPT2Config,
        GPT2LMHeadModel,
        PreTrainedTokenizerFast,
    )

    torch.manual_seed(0)
    # n_ctx: the converter reads it, and transformers no longer writes it by itself.
    sizes = {"vocab_size": 400, "n_positions": positions, "n_ctx": positions, "n_embd": 64}
    config = GPT2Config(**sizes, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0)
    GPT2LMHeadModel(config).save_pretrained(folder)
    tokenizer = ByteLevelBPETokenizer()
    text = (TINY / "tokenizer.json").read_text()[:20000]
    tokenizer.train_from_iterator([text], vocab_size=400, show_progress=False)
    tokenizer.save(str(folder / "raw.json"))
    PreTrainedTokenizerFast(tokenizer_file=str(folder / "raw.json")).save_pretrained(folder)
    (folder / "raw.json").unlink()
    return folder


def noisy(source: Path, folder: Path, level: float) -> Path:
    """Copy a checkpoint with noise in its matrices, `level` times the spread of each one's values.

    The noise of a higher level is the lower one's, made larger.
    """
    import torch  # noqa: PLC0415 - as above
    from safetensors.torch import load_file, save_file  # noqa: PLC0415 - as above

    shutil.copytree(source, folder)
    torch.manual_seed(0)
    for path in sorted(folder.glob("*.safetensors")):
        tensors = load_file(path)
        for name, tensor in tensors.items():
            if tensor.dim() > 1:
                values = tensor.float()
                noise = torch.randn_like(values) * level * values.std()
                tensors[name] = (values + noise).to(tensor.dtype)
        save_file(tensors, path, metadata={"format": "pt"})
    return folder


def changed_config(source: Path, folder: Path, **changes: Any) -> Path:
    """Copy a model's folder and change keys of its config.json."""
    shutil.copytree(source, folder)
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return folder
