"""Train `examples/models/tiny-llama`, a Llama of 4 million parameters.

The text is the documentation and the sources of the standard library that runs this script; none of
it is committed. The result is small enough to commit and trained well enough that every
quantization level shows its loss. About 30 minutes on two cores:

    python examples/models/train_tiny_llama.py [--out examples/models/tiny-llama]

Same interpreter, same torch, same thread count: same weights.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import math
import random
import sys
import sysconfig
import time
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import sentencepiece
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
from transformers.models.llama import LlamaTokenizer

VOCABULARY = 2048
CONTEXT = 512
PIECE_CHARACTERS = 4000
HELD_OUT_SHARE = 0.04
REPORT_EVERY = 100
# Tables and tests say little about how the library reads; what is left is about 9 MB.
LEFT_OUT = {
    "test",
    "tests",
    "idlelib",
    "lib2to3",
    "turtledemo",
    "site-packages",
    "encodings",
    "pydoc_data",
}


def documents() -> list[str]:
    """Return the standard library's sources and pydoc's topics, in a fixed order."""
    root = Path(sysconfig.get_path("stdlib"))
    sources = [
        path.read_text(encoding="utf-8", errors="ignore")
        for path in sorted(root.rglob("*.py"))
        if not LEFT_OUT.intersection(path.relative_to(root).parts)
        and "config-" not in path.parent.name
    ]
    topics = import_module("pydoc_data.topics").topics
    return [*sources, *(topics[name] for name in sorted(topics))]


def split_pieces(texts: list[str]) -> tuple[list[str], list[str]]:
    """Cut `texts` into pieces, shuffle them, and return (training pieces, held-out pieces)."""
    pieces = [
        text[start : start + PIECE_CHARACTERS]
        for text in texts
        for start in range(0, len(text), PIECE_CHARACTERS)
    ]
    random.Random(0).shuffle(pieces)  # noqa: S311 -- a fixed order, no secret
    count = int(len(pieces) * HELD_OUT_SHARE)
    return pieces[count:], pieces[:count]


def train_tokenizer(pieces: list[str], folder: Path) -> None:
    """Write a SentencePiece `tokenizer.model` (BPE, byte fallback) and its `tokenizer.json`."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(
            [line for piece in pieces for line in piece.splitlines(keepends=True)]
        ),
        model_writer=model,
        model_type="bpe",
        vocab_size=VOCABULARY,
        byte_fallback=True,
        character_coverage=0.9995,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        max_sentence_length=PIECE_CHARACTERS * 4,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    tokenizer = LlamaTokenizer.from_pretrained(folder, add_bos_token=True)
    tokenizer.model_max_length = CONTEXT
    tokenizer.save_pretrained(folder)
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    drop_newer_keys(folder / "tokenizer_config.json")


def drop_newer_keys(path: Path) -> None:
    """Drop what transformers 4 cannot read and what names this machine."""
    settings = json.loads(path.read_text())
    for key in ("extra_special_tokens", "local_files_only", "is_local", "backend"):
        settings.pop(key, None)
    path.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")


def token_stream(tokenizer: object, pieces: list[str]) -> torch.Tensor:
    """Return all pieces as one stream of token ids, shape (tokens,), BOS before each piece."""
    ids: list[int] = []
    for piece in pieces:
        ids += [tokenizer.bos_token_id, *tokenizer(piece, add_special_tokens=False)["input_ids"]]
    return torch.tensor(ids, dtype=torch.long)


@torch.inference_mode()
def perplexity(model: LlamaForCausalLM, stream: torch.Tensor, window: int = CONTEXT) -> float:
    """Return the token-weighted perplexity of `stream` in windows, stride equal to `window`."""
    total, count = 0.0, 0
    for start in range(0, len(stream) - window, window):
        ids = stream[start : start + window][None]
        total += model(input_ids=ids, labels=ids).loss.item() * (window - 1)
        count += window - 1
    return math.exp(total / count)


@dataclass(frozen=True)
class Phase:
    """One part of the training: `steps` of `batch` windows of `window` tokens.

    The learning rate goes up to `peak` over the first 30 steps and, from the share `decay_from` of
    the steps on, down to nothing.
    """

    steps: int
    batch: int
    window: int
    peak: float
    decay_from: float

    def rate_share(self, step: int) -> float:
        """Return the share of the peak rate at `step`."""
        left = (self.steps - step) / self.steps
        return min(1.0, (step + 1) / 30, left / (1 - self.decay_from))


# Short windows teach the language in the least time; the long ones then teach the far positions.
PHASES = (
    Phase(steps=3177, batch=8, window=256, peak=3e-3, decay_from=0.5),
    Phase(steps=400, batch=4, window=CONTEXT, peak=6e-4, decay_from=0.0),
)


def new_model() -> LlamaForCausalLM:
    """Return an untrained model."""
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=256,
            intermediate_size=768,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=64,
            max_position_embeddings=CONTEXT,
            bos_token_id=1,
            eos_token_id=2,
            tie_word_embeddings=False,
        )
    )


def train(model: LlamaForCausalLM, stream: torch.Tensor, phase: Phase) -> LlamaForCausalLM:
    """Train `model` on `stream` by `phase` and return it in bfloat16, as it is saved."""
    model = model.float().train()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=phase.peak, betas=(0.9, 0.95), weight_decay=0.05
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, phase.rate_share)
    draw = torch.Generator().manual_seed(0)
    started, running = time.monotonic(), 0.0
    for step in range(phase.steps):
        starts = torch.randint(0, len(stream) - phase.window - 1, (phase.batch,), generator=draw)
        batch = torch.stack([stream[start : start + phase.window] for start in starts.tolist()])
        loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        running = loss.item() if step == 0 else 0.98 * running + 0.02 * loss.item()
        if (step + 1) % REPORT_EVERY == 0:
            left = (time.monotonic() - started) / (step + 1) * (phase.steps - step - 1)
            print(
                f"step {step + 1} of {phase.steps}, loss {running:.3f}, {left / 60:.1f} min left",
                file=sys.stderr,
                flush=True,
            )
    return model.eval().to(torch.bfloat16)


def main() -> None:
    """Train the tokenizer and the model, save both, and print the held-out perplexity."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent / "tiny-llama", help="folder to write"
    )
    arguments = parser.parse_args()
    training, held_out = split_pieces(documents())
    train_tokenizer(training, arguments.out)
    tokenizer = AutoTokenizer.from_pretrained(arguments.out)
    stream, test_stream = token_stream(tokenizer, training), token_stream(tokenizer, held_out)
    digest = hashlib.sha256("".join(training).encode()).hexdigest()[:8]
    print(
        f"{len(stream)} tokens to train on (text {digest}), {len(test_stream)} held out",
        file=sys.stderr,
    )
    model = new_model()
    for phase in PHASES:
        model = train(model, stream, phase)
    model.generation_config.do_sample = False
    model.save_pretrained(arguments.out)
    for path in arguments.out.iterdir():
        path.chmod(0o644)
    print(f"held-out perplexity {perplexity(model.float(), test_stream):.2f}")


if __name__ == "__main__":
    main()
