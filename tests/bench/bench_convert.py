"""Peak anonymous memory of converting a model of about 2 GB in four shards, over its largest shard.

    python -m tests.bench.bench_convert

What the interpreter and its libraries hold is what the converting child holds after it has
converted a tiny model; it is subtracted, and printed. Anonymous memory is RssAnon of
/proc/PID/status, sampled every 5 milliseconds; mapped files, which the kernel can drop, are not in
it.
"""

from __future__ import annotations

import json
import re
import shutil
import struct
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

from kubequant_worker.methods.cpu import thread_count
from kubequant_worker.methods.gguf_convert import Converter

TINY = Path(__file__).parents[2] / "examples" / "models" / "tiny-llama"
SHARDS = 4
# The shape of a Llama of 1.1 billion parameters, with the tiny model's vocabulary.
HIDDEN, INNER, LAYERS, HEADS, KV_HEADS, VOCABULARY = 2048, 5632, 22, 32, 4, 2048
MOST = 1.2


def shapes() -> dict[str, tuple[int, ...]]:
    """Return every tensor's shape by name, in the order of a checkpoint."""
    narrow = HIDDEN // HEADS * KV_HEADS
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCABULARY, HIDDEN)}
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}."
        for name, shape in {
            "self_attn.q_proj": (HIDDEN, HIDDEN),
            "self_attn.k_proj": (narrow, HIDDEN),
            "self_attn.v_proj": (narrow, HIDDEN),
            "self_attn.o_proj": (HIDDEN, HIDDEN),
            "mlp.gate_proj": (INNER, HIDDEN),
            "mlp.up_proj": (INNER, HIDDEN),
            "mlp.down_proj": (HIDDEN, INNER),
            "input_layernorm": (HIDDEN,),
            "post_attention_layernorm": (HIDDEN,),
        }.items():
            found[f"{prefix}{name}.weight"] = shape
    return {**found, "model.norm.weight": (HIDDEN,), "lm_head.weight": (VOCABULARY, HIDDEN)}


def write_shard(path: Path, part: dict[str, tuple[int, ...]], block: bytes) -> None:
    """Write random bfloat16 tensors as one safetensors file, without holding it in memory."""
    header, offset = {}, 0
    for name, shape in part.items():
        size = 2 * int(np.prod(shape))
        header[name] = {
            "dtype": "BF16",
            "shape": list(shape),
            "data_offsets": [offset, offset + size],
        }
        offset += size
    encoded = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(encoded)) + encoded)
        while offset > 0:
            offset -= file.write(block[:offset])


def write_model(folder: Path) -> int:
    """Write the checkpoint and return the bytes of its largest shard."""
    draw = np.random.default_rng(0).normal(0, 0.02, 1 << 23).astype(np.float32)
    block = (draw.view(np.uint32) >> 16).astype(np.uint16).tobytes()
    config = json.loads((TINY / "config.json").read_text())
    config |= {
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HIDDEN // HEADS,
        "vocab_size": VOCABULARY,
    }
    (folder / "config.json").write_text(json.dumps(config))
    for name in ("tokenizer.json", "tokenizer.model", "tokenizer_config.json"):
        shutil.copyfile(TINY / name, folder / name)
    everything = shapes()
    total = sum(2 * int(np.prod(shape)) for shape in everything.values())
    parts: list[dict[str, tuple[int, ...]]] = [{}]
    filled = 0
    for name, shape in everything.items():
        if filled >= total / SHARDS and len(parts) < SHARDS:
            parts.append({})
            filled = 0
        parts[-1][name] = shape
        filled += 2 * int(np.prod(shape))
    index = {}
    for number, part in enumerate(parts, 1):
        file = f"model-{number:05}-of-{SHARDS:05}.safetensors"
        write_shard(folder / file, part, block)
        index |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": total}, "weight_map": index})
    )
    return max(path.stat().st_size for path in folder.glob("*.safetensors"))


def anonymous_bytes(pid: int) -> int:
    """Return a process's anonymous resident memory."""
    found = re.search(r"RssAnon:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return int(found.group(1)) * 1024 if found else 0


class Peak(threading.Thread):
    """Samples a process until it is stopped; `highest` is what it saw."""

    def __init__(self, pid: int) -> None:
        super().__init__()
        self.pid = pid
        self.highest = 0
        self.stopped = threading.Event()

    def run(self) -> None:
        while not self.stopped.wait(0.005):
            self.highest = max(self.highest, anonymous_bytes(self.pid))


def main() -> None:
    """Measure and print one JSON object as the last line."""
    with tempfile.TemporaryDirectory(prefix="kubequant-bench-") as name:
        folder = Path(name)
        (folder / "model").mkdir()
        print("writing a checkpoint of 2 GB in four shards", file=sys.stderr, flush=True)
        largest = write_model(folder / "model")
        with Converter(threads=thread_count(), trust_remote_code=False) as converter:
            converter.convert(TINY, folder / "tiny.gguf", name="tiny", on_bytes=lambda *_: None)
            before = anonymous_bytes(converter.pid)
            peak = Peak(converter.pid)
            peak.start()
            started = time.monotonic()
            converter.convert(
                folder / "model", folder / "out.gguf", name="bench", on_bytes=lambda *_: None
            )
            seconds = time.monotonic() - started
            peak.stopped.set()
            peak.join()
        written = (folder / "out.gguf").stat().st_size
    added = peak.highest - before
    result = {
        "name": "Peak anonymous memory of convert, over the largest shard of a 2 GB checkpoint",
        "target": f"at most {MOST}",
        "figures": {
            "peak over largest shard": f"{added / largest:.3f}",
            "peak added by the conversion": f"{added / 1e6:.0f} MB",
            "largest of four shards": f"{largest / 1e6:.0f} MB",
            "held before by interpreter and libraries": f"{before / 1e6:.0f} MB",
            "GGUF written": f"{written / 1e6:.0f} MB in {seconds:.0f} s",
        },
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
