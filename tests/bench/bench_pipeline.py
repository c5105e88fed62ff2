"""The whole pipeline, five types, S3 to S3, against the same steps by hand.

By hand: `aws s3 cp` of the model, the converter, then for each type one process that quantizes, one
that measures the perplexity over the same tokens, and `aws s3 cp` of the result. The pipeline does
more: it measures the original too, divergence, agreement and generations, checks the conversion
against transformers and verifies each file. Who wants to know by hand what quantizing cost measures
the original as well, so that step is timed beside the others.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import llama_cpp
import yaml
from tests.bench.awscli import aws_program
from tests.bench.by_hand import CONTEXT
from tests.testbed.processes import Processes, S3Server, start_s3
from tests.testbed.storage import client_for

from kubequant_worker.datasets import Role, bundled_text
from kubequant_worker.evaluation.perplexity import windows
from kubequant_worker.methods.gguf_runtime import LlamaEngine, LlamaRuntime

ROOT = Path(__file__).parents[2]
TINY = ROOT / "examples" / "models" / "tiny-llama"
TYPES = ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q2_K")
# The default of `evaluation.perplexity.maxTokens`, and what a quick look takes: the more is
# measured, the more both sides do nothing but decode, where the original is a sixth model of ours.
TOKENS = (65_536, 16_384)
ROUNDS = 3
BUCKET = "bench"


def environment(server: S3Server) -> dict[str, str]:
    """Return the variables that both sides read."""
    return {
        **os.environ,
        "AWS_ACCESS_KEY_ID": server.access_key,
        "AWS_SECRET_ACCESS_KEY": server.secret_key,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }


def steps_by_hand(
    folder: Path, server: S3Server, text: Path, tokens: int
) -> tuple[list[list[str]], list[str]]:
    """Return the command lines of the steps, in their order, and that of the original's own."""
    converter = Path(llama_cpp.__file__).parent / "converter" / "convert_hf_to_gguf.py"
    copy = [str(aws_program()), "s3", "cp", "--quiet", "--endpoint-url", server.endpoint]
    hand = [sys.executable, "-m", "tests.bench.by_hand"]
    model, baseline = folder / "model", folder / "model.gguf"
    steps = [
        [*copy, "--recursive", f"s3://{BUCKET}/tiny-llama", str(model)],
        [
            sys.executable,
            str(converter),
            str(model),
            "--outtype",
            "bf16",
            "--outfile",
            str(baseline),
        ],
    ]
    made = {kind: folder / f"model-{kind}.gguf" for kind in TYPES}
    steps += [[*hand, "quantize", str(baseline), str(made[kind]), kind] for kind in TYPES]
    steps += [[*hand, "perplexity", str(made[kind]), str(text), str(tokens)] for kind in TYPES]
    steps += [[*copy, str(path), f"s3://{BUCKET}/by-hand/{path.name}"] for path in made.values()]
    return steps, [*hand, "perplexity", str(baseline), str(text), str(tokens)]


@dataclass(frozen=True)
class ByHand:
    """What the steps took, in seconds: without the original's perplexity, and with it.

    `decoding` is what our engine alone takes to decode all six models over the same tokens.
    """

    without: float
    whole: float
    decoding: float


def by_hand(server: S3Server, text: Path, tokens: int) -> ByHand:
    """Run the steps one after another, then decode what they made by our engine alone."""
    with tempfile.TemporaryDirectory() as temporary:
        steps, original = steps_by_hand(Path(temporary), server, text, tokens)
        started = time.monotonic()
        for step in steps:
            _run(step, server)
        without = time.monotonic() - started
        _run(original, server)
        whole = time.monotonic() - started
        models = [Path(temporary) / "model.gguf"]
        models += [Path(temporary) / f"model-{kind}.gguf" for kind in TYPES]
        return ByHand(without, whole, decoding(models, text, tokens))


def decoding(models: list[Path], text: Path, tokens: int) -> float:
    """Return the seconds that llama.cpp decodes, in our child: no import, nothing reckoned."""
    seconds = 0.0
    with closing(LlamaEngine(len(os.sched_getaffinity(0)))) as engine:
        for path in models:
            with LlamaRuntime(engine, path, CONTEXT) as runtime:
                ids = runtime.tokenize([text.read_text()])[0]
                cut = windows(
                    ids, context_length=CONTEXT, bos_token=runtime.bos_token, max_tokens=tokens
                )
                started = time.monotonic()
                for _ in runtime.logits(cut.inputs):
                    pass
                seconds += time.monotonic() - started
    return seconds


def _run(step: list[str], server: S3Server) -> None:
    subprocess.run(step, check=True, env=environment(server), capture_output=True, cwd=ROOT)


def pipeline(server: S3Server, number: int, tokens: int) -> tuple[float, dict[str, float]]:
    """Run `kubequant run` and return (seconds, seconds of each stage)."""
    endpoint = {"endpoint": server.endpoint, "region": "us-east-1"}
    manifest = {
        "apiVersion": "kubequant.dev/v1alpha1",
        "kind": "QuantizationJob",
        "metadata": {"name": f"round-{number}"},
        "spec": {
            "model": {"uri": f"s3://{BUCKET}/tiny-llama", "s3": endpoint},
            "method": "GGUF",
            "gguf": {"types": list(TYPES)},
            "evaluation": {"perplexity": {"maxTokens": tokens}, "skip": ["Performance"]},
            # A place of its own: else it takes the original's numbers of the round before.
            "output": {"uri": f"s3://{BUCKET}/out-{tokens}-{number}", "s3": endpoint},
        },
    }
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "manifest.yaml"
        path.write_text(yaml.safe_dump(manifest))
        started = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-m", "kubequant.cli", "run", str(path), "--json"],
            check=True,
            env=environment(server),
            stdout=subprocess.PIPE,
        )
        seconds = time.monotonic() - started
    stages = json.loads(done.stdout)["stages"]
    return seconds, {stage["stage"]: float(stage["seconds"]) for stage in stages}


def main() -> None:
    """Measure both in turn and print the result."""
    folder = Path(tempfile.mkdtemp(prefix="kubequant-bench-"))
    processes = Processes(folder)
    try:
        (folder / "s3").mkdir()
        server = start_s3(processes, folder / "s3")
        client = client_for(server.endpoint, server.access_key, server.secret_key)
        client.create_bucket(Bucket=BUCKET)
        for path in TINY.iterdir():
            client.upload_file(str(path), BUCKET, f"tiny-llama/{path.name}")
        text = folder / "text.txt"
        text.write_text("\n".join(bundled_text(Role.MEASUREMENT).documents))
        pairs = {
            tokens: [
                (pipeline(server, number, tokens), by_hand(server, text, tokens))
                for number in range(ROUNDS)
            ]
            for tokens in TOKENS
        }
    finally:
        processes.stop()
        shutil.rmtree(folder, ignore_errors=True)
    figures = {}
    for tokens, rounds in pairs.items():
        ours = [seconds for (seconds, _), _ in rounds]
        without = [hand.without for _, hand in rounds]
        engine = [hand.decoding for _, hand in rounds]
        for what, mine, theirs in (
            ("wall time, over by hand", ours, without),
            ("the same, the original measured by hand too", ours, [one.whole for _, one in rounds]),
            ("of ours llama.cpp's decoding alone, over by hand", engine, without),
        ):
            ratios = [our / their for our, their in zip(mine, theirs, strict=True)]
            figures[f"{tokens} tokens: {what}"] = (
                f"**{statistics.median(ratios):.2f}** ({statistics.median(mine):.1f} s against "
                f"{statistics.median(theirs):.1f} s)"
            )
        figures[f"{tokens} tokens: seconds of the stages, last round"] = "; ".join(
            f"{name} {seconds:.1f}" for name, seconds in rounds[-1][0][1].items()
        )
    name = (
        "The whole pipeline, five GGUF types of the tiny model, S3 to S3, against the same "
        "engine's steps by hand in sequence (convert, quantize each, perplexity of each in a "
        "process of its own, `aws s3 cp` of each), by how many tokens are measured; medians of "
        f"{ROUNDS} pairs"
    )
    note = (
        "Both sides decode with the same kernels. Ours decodes the original too, which by hand is "
        "left out unless a row says so, and what that alone takes of both cores bounds what can be "
        "asked of the rest."
    )
    print(json.dumps({"name": name, "target": "at most 0.6", "figures": figures, "note": note}))


if __name__ == "__main__":
    main()
