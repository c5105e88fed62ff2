"""How an artifact came to be, as an in-toto statement that a policy engine can read.

Form: in-toto Statement v1 (https://in-toto.io/Statement/v1) with an SLSA provenance v1 predicate
(https://slsa.dev/spec/v1.1/provenance).
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from kubequant import __version__

if TYPE_CHECKING:
    from kubequant.api.contract import RunReport

STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = "https://slsa.dev/provenance/v1"
BUILD_TYPE = "https://kubequant.dev/QuantizationJob/v1alpha1"


def statement(report: RunReport) -> bytes:
    """Return provenance.json for what `report` says was made: subjects, sources and parameters."""
    document = {
        "_type": STATEMENT,
        "subject": [
            {"name": file.path, "digest": {"sha256": file.sha256}} for file in report.files
        ],
        "predicateType": PREDICATE,
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": report.settings.to_json() if report.settings else {},
                "internalParameters": _made(report),
                "resolvedDependencies": _dependencies(report),
            },
            "runDetails": {
                "builder": {
                    "id": f"https://kubequant.dev/worker/{__version__}",
                    "version": _versions(report),
                },
                "metadata": _metadata(report),
            },
        },
    }
    return json.dumps(document, indent=2, ensure_ascii=False).encode() + b"\n"


def _made(report: RunReport) -> dict[str, Any]:
    """Return what was done really, also where gates made the run escalate from what was asked.

    "before" are the steps by which the source had been made, the first one first.
    """
    document: dict[str, Any] = {
        "digest": report.digest,
        "made": [
            {
                "variant": variant.name,
                "method": variant.method.value if variant.method else "",
                "setting": variant.setting,
                "inPlaceOf": list(variant.in_place_of),
            }
            for variant in report.variants
        ],
    }
    if report.source is not None and report.source.steps:
        document["before"] = [step.to_json() for step in report.source.steps]
    if report.escalation:
        document["escalation"] = [step.to_json() for step in report.escalation]
    return document


def _dependencies(report: RunReport) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for name, source in (("model", report.source), ("student", report.student)):
        if source is None:
            continue
        base = {"name": name, "uri": source.uri}
        if source.revision:
            found.append({**base, "digest": {"gitCommit": source.revision}})
        found += [
            {"name": f"{name}/{file.path}", "uri": source.uri, "digest": {"sha256": file.sha256}}
            for file in source.files
        ]
    found += [
        {
            "name": f"{dataset.role} text",
            "uri": dataset.uri or "https://kubequant.dev/bundled-text",
            "digest": {"sha256": dataset.sha256},
        }
        for dataset in report.datasets
        if dataset.sha256
    ]
    if report.environment is not None and report.environment.image:
        found.append({"name": "image", "uri": report.environment.image})
    return found


def _versions(report: RunReport) -> dict[str, str]:
    libraries = report.environment.versions if report.environment else ()
    return {library.name: library.version for library in libraries}


def _metadata(report: RunReport) -> dict[str, str]:
    document = {"invocationId": f"{report.namespace}/{report.name}/{report.digest}".lstrip("/")}
    if report.started_at:
        document["startedOn"] = report.started_at.isoformat()
    if report.finished_at:
        document["finishedOn"] = report.finished_at.isoformat()
    return document
