"""The whole pipeline, five types, S3 to S3, against the same steps by hand.

By hand: `aws s3 cp` of the model, the converter, then for each type one process that quantizes, one
that measures the perplexity over the same tokens, and `aws s3 cp` of the result. The pipeline does
more: it measures the original too, divergence, agreement and generations, checks the conversion
against transformers and verifies each file.
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
from pathlib import Path

import llama_cpp
import yaml
from tests.bench.awscli import aws_program
from tests.testbed.processes import Processes, S3Server, start_s3
from tests.testbed.storage import client_for

from kubequant_worker.datasets import Role, bundled_text

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


def steps_by_hand(folder: Path, server: S3Server, text: Path, tokens: int) -> list[list[str]]:
    """Return the command lines of the steps, in their order."""
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
    return steps


def by_hand(server: S3Server, text: Path, tokens: int) -> float:
    """Run the steps one after another and return the seconds they took."""
    with tempfile.TemporaryDirectory() as temporary:
        started = time.monotonic()
        for step in steps_by_hand(Path(temporary), server, text, tokens):
            subprocess.run(step, check=True, env=environment(server), capture_output=True, cwd=ROOT)
        return time.monotonic() - started


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
        ours = statistics.median(seconds for (seconds, _), _ in rounds)
        theirs = statistics.median(seconds for _, seconds in rounds)
        ratio = statistics.median(seconds / hand for (seconds, _), hand in rounds)
        figures |= {
            f"{tokens} tokens: wall time, over by hand (median of pairs)": (
                f"**{ratio:.2f}** ({ours:.1f} s against {theirs:.1f} s)"
            ),
            f"{tokens} tokens: seconds of the stages, last round": "; ".join(
                f"{name} {seconds:.1f}" for name, seconds in rounds[-1][0][1].items()
            ),
        }
    name = (
        "The whole pipeline, five GGUF types of the tiny model, S3 to S3, against the same "
        "engine's steps by hand in sequence (convert, quantize each, perplexity of each in a "
        "process of its own, `aws s3 cp` of each), by how many tokens are measured"
    )
    print(json.dumps({"name": name, "target": "at most 0.6", "figures": figures}))


if __name__ == "__main__":
    main()
