"""RunReports of every method with everything measured, for tests of what is made of a report."""

from __future__ import annotations

from typing import Any

from tests.api.cases import SMALLEST
from tests.api.table import merged

from kubequant.api.contract import RunReport, settings_of
from kubequant.api.engines import ENGINES, ONNX_RUNTIME, TORCH_AO
from kubequant.api.enums import Method
from kubequant.api.problems import parse
from kubequant.api.resource import read_manifest

SHA = "9f2c41aa" * 8
METHODS = tuple(method for method in Method if method is not Method.AUTO)
ENGINES_OF_METHODS = tuple(
    (method, one.name) for method, engines in ENGINES.items() for one in engines
)
SIZE = 16_060_522_496

_GGUF = {
    "Q8_0": (8_540_775_392, "46.8", "6.242", "0.03", "0.0004", "99.1", "55.2"),
    "Q5_K_M": (5_732_987_552, "64.3", "6.265", "0.40", "0.0061", "97.2", "66.0"),
    "Q4_K_M": (4_920_739_232, "69.4", "6.310", "1.12", "0.0214", "94.9", "71.0"),
    "Q2_K": (3_179_131_552, "80.2", "7.180", "15.06", "0.2310", "81.3", "74.4"),
}
_ONE = (5_734_000_000, "64.3", "6.330", "1.44", "0.0301", "93.4", "82.5")
_RUNTIME = {Method.GGUF: "llama.cpp (llama-cpp-python 0.3.36), BF16"}
_USAGE: dict[str, tuple[str, str]] = {
    Method.GGUF: ("llama.cpp", "llama-server -m llama-3-1-8b-Q4_K_M.gguf"),
    Method.TENSOR_RT: ("TensorRT-LLM", "trtllm-serve ."),
    TORCH_AO: ("transformers", "python -c 'import transformers'"),
    ONNX_RUNTIME: ("ONNX Runtime", "python - <<'END'\nimport onnxruntime\nEND"),
}
SPARSITY = {
    "askedPercent": "50",
    "percent": "50.01",
    "moduleCount": 4,
    "modules": [
        {
            "module": f"model.layers.{layer}.mlp.{name}_proj",
            "weights": 1000,
            "zeros": 500 + layer,
            "percent": f"{50 + layer / 10:g}",
        }
        for layer in (0, 1)
        for name in ("up", "down")
    ],
}
DISTILLATION = {
    "keptLayers": [0, 10, 21, 31],
    "teacherLayers": 32,
    "steps": 2000,
    "sequences": 4096,
    "sequenceLength": 2048,
    "tokens": 32_768_000,
    "sequencesAtOnce": 1,
    "precision": "bfloat16",
    "resumedAt": [1200],
    "points": [
        {
            "step": 10 * step,
            "loss": f"{1 + 20 / step:.3f}",
            "divergence": f"{0.8 + 20 / step:.3f}",
            "hardLoss": f"{2.8 + 20 / step:.3f}",
            "learningRate": f"{step / 2_000_000:.9f}",
        }
        for step in range(1, 201)
    ],
    "untrained": {
        "perplexity": "312.4",
        "perplexityStandardError": "9.1",
        "perplexityIncreasePercent": "4906.4",
        "meanKLDivergence": "3.912",
        "topTokenAgreementPercent": "12.1",
        "perplexityReductionPercent": "97.97",
        "divergenceReductionPercent": "99.23",
    },
}
ENGINE = {
    "gpu": "NVIDIA L4",
    "gpuProduct": "NVIDIA-L4",
    "computeCapability": "8.9",
    "driver": "580.1",
    "cuda": "13.0",
    "tensorrt": "10.14.1",
    "tensorrtLLM": "1.2.1",
    "precision": "FP8",
    "maxBatchSize": 8,
    "maxInputLength": 2048,
    "maxOutputLength": 512,
}
TEXT = " a fishing boat came home without its crew. The harbour master wrote nothing down."


def _speed(rate: str, first: str) -> dict[str, Any]:
    return {
        "promptTokens": 512,
        "newTokens": 128,
        "repetitions": 3,
        "tokensPerSecondDeviation": "0.8",
        "promptTokensPerSecond": "812.4",
        "promptTokensPerSecondDeviation": "11.2",
        "firstTokenSeconds": first,
        "loadSeconds": "3.2",
        "batches": [
            {"batchSize": size, "tokensPerSecond": f"{float(rate) * size * 0.8:.1f}"}
            for size in (2, 4, 8)
        ],
        "threads": 16,
        "device": "AMD EPYC 9354",
        "runtime": "llama.cpp",
    }


def _variant(method: Method, name: str, numbers: tuple[Any, ...], paths: list[str]) -> Any:
    size, reduction, perplexity, increase, divergence, agreement, rate = numbers
    short = ["the weights are 64.3 % smaller, and 75 % are usual"] if increase > "1.2" else []
    return {
        "name": name,
        "method": method.value,
        "setting": f"{name}, about 4 bits" if method is Method.GGUF else "4 bits in groups of 128",
        "uri": f"s3://models/llama/llama-3-1-8b/9f2c41aa/{paths[0]}",
        "sizeBytes": size,
        "sizeReductionPercent": reduction,
        "perplexity": perplexity,
        "perplexityIncreasePercent": increase,
        "perplexityIncreaseStandardError": "0.06",
        "meanKLDivergence": divergence,
        "topTokenAgreementPercent": agreement,
        "tokensPerSecond": rate,
        "speedup": f"{float(rate) / 38.1:.2f}",
        "peakMemoryBytes": int(size * 1.1),
        "gatesPassed": float(increase) <= 2,
        "expected": {
            "sizeReductionPercent": "75",
            "mostPerplexityIncreasePercent": "3",
            "quality": "very good",
            "shortfalls": short,
        },
        "perplexityDetail": {"standardError": "0.031", "tokens": 65_536, "contextLength": 2048},
        "divergenceDetail": {
            "tokens": 8192,
            "standardError": "0.0003",
            "topTokenAgreementStandardError": "0.3",
        },
        "performanceDetail": _speed(rate, "0.62"),
        "benchmarkDetails": [
            {
                "task": "hellaswag",
                "metric": "acc_norm",
                "original": "0.7921",
                "originalStandardError": "0.0041",
                "quantized": "0.7868",
                "quantizedStandardError": "0.0041",
                "samples": 10_042,
            }
        ],
        "generations": [
            {
                "prompt": "Once upon a time, in a village by the sea,",
                "original": TEXT,
                "quantized": TEXT.replace("harbour master wrote", "harbourmaster said"),
                "firstDifference": 11,
            },
            {
                "prompt": "def read_lines(path):\n    ",
                "original": "with open(path) as file:\n        return file.readlines()",
                "quantized": "with open(path) as file:\n        return file.readlines()",
            },
        ],
        "files": [
            {"path": path, "sizeBytes": size if n == 0 else 1024, "sha256": SHA}
            for n, path in enumerate(paths)
        ],
        **({"sparsityDetail": SPARSITY} if method is Method.PRUNE else {}),
        **({"distillationDetail": DISTILLATION} if method is Method.DISTILL else {}),
        **({"engineDetail": ENGINE} if method is Method.TENSOR_RT else {}),
        "notes": ["blk.0.attn_k.weight fell back to Q5_0: its rows are 192 long"],
    }


def whole_report(
    method: Method = Method.GGUF, engine: str = "an engine", **changes: Any
) -> RunReport:
    """Return a report of a method in which everything was measured, with `changes` over it."""
    if method is Method.GGUF:
        variants = [
            _variant(method, name, numbers, [f"llama-3-1-8b-{name}.gguf"])
            for name, numbers in _GGUF.items()
        ]
    elif method is Method.TENSOR_RT:
        variants = [_variant(method, method.value, _ONE, ["rank0.engine", "config.json"])]
    else:
        weights = "model.onnx" if engine == ONNX_RUNTIME else "model.safetensors"
        paths = [weights, "config.json", "tokenizer.json"]
        variants = [_variant(method, method.value, _ONE, paths)]
    runtime, command = _USAGE.get(engine) or _USAGE.get(method) or ("vLLM", "vllm serve .")
    spec = read_manifest(merged(SMALLEST, {"spec": {"method": method.value}})).spec
    content = {
        "schemaVersion": 2,
        "digest": "9f2c41aa",
        "namespace": "models",
        "name": "llama-3-1-8b",
        "outcome": "Published",
        "exitCode": 0,
        "resolved": {
            "method": method.value,
            "engine": f"{engine} 1.2.3",
            "device": "CPU",
            "reason": "It does this method.",
        },
        "original": {
            "sizeBytes": SIZE,
            "perplexity": "6.240",
            "tokensPerSecond": "38.1",
            "peakMemoryBytes": int(SIZE * 1.08),
            "runtime": _RUNTIME.get(method, "transformers 5.23.0 in float32 on cpu"),
            "perplexityDetail": {"standardError": "0.031", "tokens": 65_536, "contextLength": 2048},
            "performanceDetail": _speed("38.1", "1.31"),
        },
        "variants": variants,
        "gates": [
            {
                "gate": 0,
                "variant": one["name"],
                "metric": "PerplexityIncreasePercent",
                "value": one["perplexityIncreasePercent"],
                "standardError": "0.06",
                "max": "2.0",
                "passed": one["gatesPassed"],
                "certain": True,
            }
            for one in variants
        ],
        "recommended": "Q4_K_M" if method is Method.GGUF else "",
        "artifact": {"uri": "s3://models/llama/llama-3-1-8b/9f2c41aa/", "manifestSha256": SHA},
        "usage": {"runtime": runtime, "command": command},
        "recommendations": ["Calibrate with text of your own domain."],
        "warnings": ["The text that comes with kubequant was used."],
        "source": {
            "uri": "hf://meta-llama/Llama-3.1-8B-Instruct",
            "revision": "0e9e39f249a16976918f6564b8830bc894c89659",
            "architecture": "LlamaForCausalLM",
            "card": {"license": "llama3.1", "languages": ["en", "de"]},
            "files": [{"path": "model.safetensors", "sizeBytes": SIZE, "sha256": SHA}],
        },
        "datasets": [{"role": "evaluation", "bundled": True, "sha256": SHA, "tokens": 65_536}],
        "settings": settings_of(spec).to_json(),
        "files": [file for one in variants for file in one["files"]],
        "stages": [
            {"stage": "Fetching", "startedAt": "2026-01-02T03:04:05Z", "seconds": "12.5"},
            {"stage": "Quantizing", "startedAt": "2026-01-02T03:05:05Z", "seconds": "612.5"},
        ],
        "environment": {
            "platform": "Linux x86_64",
            "cpu": "AMD EPYC 9354",
            "threads": 16,
            "versions": [{"name": "torch", "version": "2.13.0"}],
        },
        "startedAt": "2026-01-02T03:04:05Z",
        "finishedAt": "2026-01-02T03:14:05Z",
        **changes,
    }
    return parse(RunReport, content, local=True)
