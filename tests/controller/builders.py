"""The smallest bodies that an API server sends, and reports as a worker leaves them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from tests.api.table import SMALLEST, flow, merged

from kubequant.api.contract import Failure, RunReport, encode_termination
from kubequant.api.outcome import ExitCode, FailureReason, Outcome
from kubequant.api.problems import parse
from kubequant.controller.settings import Settings

START = datetime(2026, 1, 2, 3, 0, 0, tzinfo=UTC)
SHA = "9f2c41aa" * 8
SETTINGS = Settings()


def at(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def resource_body(
    spec: str = "", *, labels: dict[str, str] | None = None, name: str = "tiny"
) -> dict[str, Any]:
    """Return the smallest QuantizationJob with `spec` (YAML, without its braces) laid over."""
    server_made = {
        "metadata": {
            "name": name,
            "namespace": "models",
            "uid": "resource-1",
            "generation": 1,
            "creationTimestamp": at(START),
            "labels": labels or {},
        },
        # The CRD's default.
        "status": {"observedGeneration": -1},
        "spec": flow(spec),
    }
    return dict(merged(SMALLEST, server_made))


def published(digest: str, **changes: Any) -> str:
    """Return the termination message of a worker that published."""
    uri = f"s3://bucket/prefix/tiny/{digest}/"
    report = parse(
        RunReport,
        {
            "digest": digest,
            "outcome": Outcome.PUBLISHED,
            "exitCode": 0,
            "resolved": {
                "method": "GGUF",
                "engine": "llama.cpp 0.3.36",
                "modelRevision": "0e9e39f",
                "device": "CPU",
            },
            "original": {"sizeBytes": 1000, "perplexity": "6.24", "runtime": "llama.cpp (F16)"},
            "variants": [
                {
                    "name": "Q4_K_M",
                    "uri": f"{uri}model-Q4_K_M.gguf",
                    "sha256": SHA,
                    "sizeBytes": 300,
                    "sizeReductionPercent": "70",
                    "perplexityIncreasePercent": "2.2",
                    "gatesPassed": True,
                }
            ],
            "artifact": {"uri": uri, "manifestSha256": SHA, "reportUri": f"{uri}report.json"},
            "usage": {"runtime": "llama.cpp", "command": "llama-server -m model-Q4_K_M.gguf"},
            "recommendations": ["Calibrate with text of your own."],
            **changes,
        },
        local=True,
    )
    return encode_termination(report)


def failed(digest: str, code: ExitCode, reason: FailureReason, message: str, **changes: Any) -> str:
    """Return the termination message of a worker that ended with `code`."""
    report = RunReport(
        digest=digest,
        outcome=Outcome.FAILED,
        exit_code=code,
        failure=Failure(reason=reason, message=message, exit_code=int(code)),
    )
    return encode_termination(report.model_copy(update=changes) if changes else report)
