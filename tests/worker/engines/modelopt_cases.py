"""Makes ModelOpt's checkpoints and computes with them in three ways, in the image's environment.

`modelopt_cases.py FOLDER` with {case: {model, precision, …}} as JSON on standard input:
the child is asked directly, so that what the API keeps for engines can be made without a GPU.
Each checkpoint is computed with by our reader, by plain transformers, and by hand; ModelOpt's own
quantized model had computed before it was saved. Prints {case: numbers} as JSON.
"""

from __future__ import annotations

import json
import shutil
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from kubequant_worker.methods.child import Child
from kubequant_worker.methods.gguf_check import compare
from kubequant_worker.methods.modelopt_runtime_child import PlainModel
from kubequant_worker.methods.published_config import publish_config
from kubequant_worker.methods.transformers_model import CheckpointModel, Loading

CHILD = "kubequant_worker.methods.modelopt_child"
BESIDE = {"weight_scale", "input_scale", "pre_quant_scale"}
TEXT = Path(json.__file__).read_text()


@cache
def ids_of(model: str) -> np.ndarray[Any, Any]:
    """Return token ids of a text, shape (12, 64), opened by BOS."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    found = tokenizer(TEXT, add_special_tokens=False, verbose=False)["input_ids"][: 12 * 63]
    opened = np.full((12, 1), tokenizer.bos_token_id or 0, np.int32)
    return np.concatenate([opened, np.array(found, np.int32).reshape(12, 63)], axis=1)


def loading(folder: Path) -> dict[str, Any]:
    return {"device": "cpu", "dtype": "float32", "spill": str(folder / "spill")}


def logits(kind: type[CheckpointModel], path: Path, folder: Path, ids: Any) -> Any:
    """Return a checkpoint's logits over ids, as a child that holds it computes them."""
    model = kind(path, Loading(**loading(folder)))
    return np.concatenate([rows for _, rows in model.rows(ids)])


@cache
def of_original(model: str) -> Any:
    """Return an original's logits, computed once."""
    return logits(CheckpointModel, Path(model), Path("/nowhere"), ids_of(model)[8])


def weight_by_hand(stored: torch.Tensor, scale: torch.Tensor, precision: str) -> torch.Tensor:
    """Return a plain weight: two rows in a byte of INT4, one row in a row else."""
    if precision != "INT4AWQ":
        return stored.float() * scale.reshape(-1, 1)
    signed = np.empty((2 * stored.shape[0], stored.shape[1]), np.float32)
    for half in (0, 1):
        nibble = (stored.numpy().astype(np.int64) >> (4 * half)) % 16
        signed[half::2] = np.where(nibble >= 8, nibble - 16, nibble)
    size = signed.shape[1] // scale.shape[1]
    return torch.from_numpy(signed * np.repeat(scale.numpy(), size, axis=1))


def rounding(columns: torch.Tensor | None, scale: torch.Tensor | None, precision: str) -> Any:
    """Return a hook that does to inputs what the checkpoint says."""

    def rounded(_: Any, given: Any) -> Any:
        (values,) = given
        values = values if columns is None else values * columns.float()
        if scale is None:
            return (values,)
        if precision == "FP8":
            return ((values / scale).clamp(-448, 448).to(torch.float8_e4m3fn).float() * scale,)
        return ((values / scale).round().clamp(-127, 127) * scale,)

    return rounded


def by_hand(artifact: Path, precision: str) -> torch.nn.Module:
    """Return the model of a checkpoint by the format's words alone: no code of kubequant's."""
    config = AutoConfig.from_pretrained(artifact)
    del config.quantization_config
    model = AutoModelForCausalLM.from_config(config).eval().float()
    stored = load_file(artifact / "model.safetensors")
    state = {
        name: one.float() for name, one in stored.items() if name.rpartition(".")[2] not in BESIDE
    }
    for name in stored:
        module, _, part = name.rpartition(".")
        if part == "weight_scale":
            weight = f"{module}.weight"
            state[weight] = weight_by_hand(stored[weight], stored[name], precision)
    if config.tie_word_embeddings:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    model.load_state_dict(state)
    for name, module in model.named_modules():
        columns, scale = stored.get(f"{name}.pre_quant_scale"), stored.get(f"{name}.input_scale")
        if columns is not None or scale is not None:
            module.register_forward_pre_hook(rounding(columns, scale, precision))
    return model


def garble(path: Path) -> None:
    """Give each row of the weights the scales of another: it still loads."""
    tensors = load_file(path)
    for name, tensor in tensors.items():
        if name.endswith(".weight_scale"):
            tensors[name] = tensor.roll(1, 0)
    save_file(tensors, path, metadata={"format": "pt"})


def made(folder: Path, case: dict[str, Any], child: Child) -> dict[str, Any]:
    """Make one checkpoint and return its numbers."""
    artifact, model = folder / "artifact", case["model"]
    artifact.mkdir(parents=True)
    ids = ids_of(model)
    samples, probe = folder / "samples.npy", folder / "probe.npy"
    expected = folder / "expected.npy"
    np.save(samples, ids[:8])
    np.save(probe, ids[8])
    engine = {"checkpoint": str(folder / "ranks"), "tensor_parallel": case.get("parallel", 1)}
    job = {
        "model": model,
        "target": str(artifact),
        "loading": loading(folder),
        "stored": "bfloat16",
        "samples": str(samples),
        "probe": str(probe),
        "expected": str(expected),
        "seed": 0,
        "precision": case["precision"],
        "ignore": case.get("ignore", ["lm_head"]),
        "engine": engine if case.get("engine") else None,
    }
    notes = child.call("quantize", job)
    for path in Path(model).iterdir():  # as the method does
        if path.name.startswith(("token", "special")):
            shutil.copyfile(path, artifact / path.name)
    publish_config(artifact, Path(model), "bfloat16")
    if case.get("garbled"):
        garble(artifact / "model.safetensors")
    mine = logits(PlainModel, artifact, folder, ids[8])
    original, saved = of_original(model), np.load(expected)
    numbers: dict[str, Any] = {
        "notes": notes,
        "original": compare(original, mine).mean_kl_divergence,
        "saved": compare(saved, mine).mean_kl_divergence,
    }
    if case["precision"] == "FP16":
        return numbers
    with torch.inference_mode():
        rows = by_hand(artifact, case["precision"])(torch.from_numpy(ids[8:9].astype(np.int64)))
    numbers["hand"] = float(np.abs(rows.logits[0].numpy() - mine).max())
    if case.get("plain"):
        plain = logits(CheckpointModel, artifact, folder, ids[8])
        numbers["transformers"] = compare(original, plain).mean_kl_divergence
    return numbers


def main() -> None:
    torch.set_num_threads(2)
    folder = Path(sys.argv[1])
    cases: dict[str, dict[str, Any]] = json.load(sys.stdin)
    child = Child(CHILD, engine="ModelOpt", threads=2, arguments=("2",))
    try:
        found = {name: made(folder / name, case, child) for name, case in cases.items()}
    finally:
        child.close()
    print(json.dumps(found))


if __name__ == "__main__":
    main()
