"""A RunReport as a worker writes it, for tests of what is done with reports."""

from __future__ import annotations

from tests.api.cases import SMALLEST

from kubequant.api.contract import RunReport, settings_of
from kubequant.api.problems import parse
from kubequant.api.resource import read_manifest

SHA = "9f2c41aa" * 8

REPORT = parse(
    RunReport,
    {
        "digest": "9f2c41aa",
        "namespace": "models",
        "name": "llama-3-1-8b",
        "outcome": "Published",
        "exitCode": 0,
        "resolved": {"method": "GGUF", "engine": "llama.cpp", "device": "CPU"},
        "original": {
            "sizeBytes": 16_060_522_496,
            "perplexity": "6.24",
            "runtime": "llama.cpp (F16)",
            "perplexityDetail": {"standardError": "0.031", "tokens": 65_536, "windows": 32},
        },
        "variants": [
            {
                "name": name,
                "uri": f"s3://models/llama/llama-3-1-8b/9f2c41aa/model-{name}.gguf",
                "sha256": SHA,
                "sizeBytes": size,
                "sizeReductionPercent": "69.4",
                "perplexity": "6.38",
                "perplexityIncreasePercent": "2.2",
                "meanKLDivergence": "0.021",
                "topTokenAgreementPercent": "93.5",
                "gatesPassed": True,
                "perplexityDetail": {"standardError": "0.032", "tokens": 65_536},
                "divergenceDetail": {"tokens": 8192, "median": "0.004"},
                "generations": [
                    {
                        "prompt": "Die Hauptstadt von Österreich ist",
                        "original": " Wien, und zwar seit 1918.",
                        "quantized": " Wien, die größte Stadt.",
                        "firstDifference": 3,
                    }
                ],
                "files": [{"path": f"model-{name}.gguf", "sizeBytes": size, "sha256": SHA}],
                "notes": ["blk.0.attn_k.weight fell back to Q5_0: its rows are 192 long"],
            }
            for name, size in (
                ("Q8_0", 8_540_775_392),
                ("Q6_K", 6_596_011_232),
                ("Q5_K_M", 5_732_987_552),
                ("Q4_K_M", 4_920_739_232),
            )
        ],
        "gates": [
            {
                "variant": "Q4_K_M",
                "metric": "PerplexityIncreasePercent",
                "value": "2.2",
                "max": "3.0",
                "passed": True,
            }
        ],
        "artifact": {"uri": "s3://models/llama/llama-3-1-8b/9f2c41aa/", "manifestSha256": SHA},
        "usage": {"runtime": "llama.cpp", "command": "llama-server -m model-Q4_K_M.gguf"},
        "recommendations": ["Calibrate with text of your own."],
        "warnings": ["The bundled text was used."],
        "source": {"uri": "hf://owner/name", "revision": "0e9e39f", "architecture": "Llama"},
        "datasets": [{"role": "evaluation", "bundled": True, "sha256": SHA, "tokens": 65_536}],
        "settings": settings_of(read_manifest(SMALLEST).spec).to_json(),
        "stages": [
            {"stage": "Fetching", "startedAt": "2026-01-02T03:04:05Z", "seconds": "12.5"},
            {"stage": "Quantizing", "startedAt": "2026-01-02T03:05:05Z", "seconds": "112.5"},
        ],
        "environment": {
            "platform": "Linux x86_64",
            "cpu": "A processor",
            "threads": 8,
            "versions": [{"name": "llama-cpp-python", "version": "0.3.36"}],
        },
        "startedAt": "2026-01-02T03:04:05Z",
        "finishedAt": "2026-01-02T03:14:05Z",
    },
    local=True,
)
