"""The Jobs whose whole manifests are committed under `golden`, to be read by people in reviews.

`python -m tests.controller.golden` writes them again.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

import yaml
from tests.controller.builders import SETTINGS, START, resource_body

from kubequant.controller.case import Case
from kubequant.controller.catalog import ImageKey
from kubequant.controller.manifest import Order, as_body, worker_job
from kubequant.controller.observe import Observed, read_resource

if TYPE_CHECKING:
    from kubequant.controller.settings import Settings

FOLDER: Final = Path(__file__).parent / "golden"

SPECS: Final = {
    "smallest": "",
    "auto": "method: Auto, goal: {hardware: CPU, priority: Speed}, backoffLimit: 0",
    "claims": "model: {uri: 'pvc://models/llama'}, "
    "calibration: {dataset: {uri: 'pvc://texts.example/mine'}}, "
    "output: {uri: 'pvc://models/quantized'}, pod: {modelCache: {claimName: cache}}",
    "everything": "model: {uri: 'hf://owner/gated', secretRef: {name: hub}}, "
    "calibration: {dataset: {uri: 's3://texts/a', secretRef: {name: texts}}}, "
    "evaluation: {perplexity: {dataset: {uri: 'hf://owner/text', secretRef: {name: hub}}}, "
    "generations: {prompts: ['costs $(HOME) or $5?']}}, "
    "output: {s3: {endpoint: 'https://s3.example.com', region: eu-1}, secretRef: {name: s3}}, "
    "method: GPTQ, device: GPU, backoffLimit: 5, "
    "pod: {resources: {requests: {cpu: '8'}, limits: {cpu: '16', memory: 64Gi}}, "
    "gpu: {resourceName: amd.com/gpu, count: 2}, nodeSelector: {zone: a}, "
    "tolerations: [{key: gpu, operator: Exists, effect: NoSchedule}], "
    "affinity: {nodeAffinity: {requiredDuringSchedulingIgnoredDuringExecution: "
    "{nodeSelectorTerms: [{matchExpressions: [{key: zone, operator: In, values: [a]}]}]}}, "
    "podAntiAffinity: {preferredDuringSchedulingIgnoredDuringExecution: [{weight: 10, "
    "podAffinityTerm: {labelSelector: {matchLabels: {app: web}}, "
    "topologyKey: kubernetes.io/hostname}}]}}, "
    "serviceAccountName: irsa, priorityClassName: low, runtimeClassName: nvidia, "
    "imagePullSecrets: [{name: registry}], labels: {team: a}, "
    "annotations: {example.com/note: 'of any form: $(x)'}, "
    "env: [{name: OMP_NUM_THREADS, value: '4'}, {name: PRICE, value: '$(HOME)'}], "
    "scratch: {size: 200Gi, storageClassName: fast}}",
}
LISTED: Final = SETTINGS.model_copy(
    update={
        "allowed_service_accounts": ("irsa",),
        "allowed_env": ("PRICE",),
        "allowed_annotations": ("example.com/*",),
    }
)
"""Settings that allow what these specs ask for."""
_LABELS: Final = {
    "kueue.x-k8s.io/queue-name": "gpus",
    "kueue.x-k8s.io/priority-class": "high",
    "kueue.x-k8s.io/max-exec-time-seconds": "3600",
    "argocd.argoproj.io/instance": "not-handed-on",
}


def order_of(spec: str, settings: Settings = SETTINGS, *, memory_raised: bool = False) -> Order:
    """Return the order for the smallest resource with `spec` laid over its spec."""
    resource = read_resource(resource_body(spec, labels=_LABELS))
    assert resource.spec is not None, resource.problems
    case = Case.of(resource, resource.spec, Observed(), now=START, settings=settings)
    order = case.order(memory_raised=memory_raised)
    assert isinstance(order, Order), order
    return order


def generated() -> dict[str, str]:
    """Return the text of each golden file by its name."""
    images = {key: f"example.com/{key}:1.0" for key in ImageKey}
    listed = LISTED.model_copy(update={"images": images})
    bodies = {
        name: as_body(worker_job(order_of(spec, listed), listed)) for name, spec in SPECS.items()
    }
    ceiling = listed.model_copy(update={"memory_ceiling": "64Gi"})
    raised = worker_job(order_of("", ceiling, memory_raised=True), ceiling)
    bodies["memory-raised"] = as_body(raised)
    return {
        f"{name}.yaml": yaml.safe_dump(body, sort_keys=True, width=100)
        for name, body in bodies.items()
    }


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for file, text in generated().items():
        (FOLDER / file).write_text(text)
