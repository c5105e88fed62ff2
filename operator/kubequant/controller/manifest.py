"""The Job of a run, as Kubernetes' own models. Pure: the same resource and settings, the same Job.

What decides whether and when it is created stands in `decide`.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from kubernetes.aio.client import (
    V1Affinity,
    V1Capabilities,
    V1Container,
    V1EnvVar,
    V1Job,
    V1JobSpec,
    V1LocalObjectReference,
    V1ObjectMeta,
    V1OwnerReference,
    V1PodFailurePolicy,
    V1PodFailurePolicyOnExitCodesRequirement,
    V1PodFailurePolicyOnPodConditionsPattern,
    V1PodFailurePolicyRule,
    V1PodSecurityContext,
    V1PodSpec,
    V1PodTemplateSpec,
    V1ResourceRequirements,
    V1SeccompProfile,
    V1SecurityContext,
    V1Toleration,
)

from kubequant.api.contract import RunRequest, settings_of
from kubequant.api.enums import Device
from kubequant.api.fields import quantity_bytes
from kubequant.api.outcome import ExitCode
from kubequant.api.pod import GPU
from kubequant.api.resource import API_VERSION, KIND
from kubequant.api.spec import QuantizationJobSpec
from kubequant.api.tensorrt import GPU_PRODUCT_LABEL
from kubequant.controller import names
from kubequant.controller.volumes import SCRATCH, volumes_and_mounts

if TYPE_CHECKING:
    from kubernetes.aio.client import V1Volume, V1VolumeMount

    from kubequant.controller.observe import Resource
    from kubequant.controller.settings import Settings

LARGEST_REQUEST_BYTES: Final = 120_000
"""Linux takes no environment variable of 128 KiB or more."""

ENDS_THE_JOB: Final = (
    ExitCode.BAD_REQUEST,
    ExitCode.GATE_FAILED,
    ExitCode.ACCESS,
    ExitCode.OUT_OF_MEMORY,
)
"""Exit codes after which another pod like this one cannot do better. What ran out of memory needs a
Job with more of it, which is decided by us."""

_GRACE_SECONDS: Final = 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What is to be run: the resource's spec, resolved, with its digest and image."""

    resource: Resource
    digest: str
    spec: QuantizationJobSpec
    """Method Auto is resolved."""
    reason: str
    """Why the method is this one."""
    image: str
    memory_raised: bool = False
    """Whether the run before ran out of memory and this one gets the ceiling."""

    @property
    def request(self) -> RunRequest:
        """What the worker is told: only what decides what comes out.

        A deadline that is edited thus leaves the Job as it is. The worker finds credentials by
        role, never by name.
        """
        fields = QuantizationJobSpec.model_fields
        course = ("suspend", "backoff_limit", "active_deadline_seconds", "pending_deadline_seconds")
        defaults = {name: fields[name].default for name in (*course, "ttl_seconds_after_finished")}
        return RunRequest(
            namespace=self.resource.namespace,
            name=self.resource.name,
            digest=self.digest,
            spec=settings_of(self.spec).model_copy(update=defaults),
            reason=self.reason,
            image=self.image,
        )


def worker_job(order: Order, settings: Settings) -> V1Job:
    """Return the Job that carries out `order`."""
    resource = order.resource
    spec = _job_spec(order, settings)
    handed_on = names.handed_on(dict(resource.labels))
    annotations = {
        names.TEMPLATE_ANNOTATION: template_digest(spec),
        names.GENERATION_ANNOTATION: str(resource.generation),
        names.HANDED_ON_ANNOTATION: names.labels_text(handed_on),
    }
    if order.memory_raised:
        annotations[names.MEMORY_ANNOTATION] = "true"
    owner = V1OwnerReference(
        api_version=API_VERSION,
        kind=KIND,
        name=resource.name,
        uid=resource.uid,
        controller=True,
        block_owner_deletion=True,
    )
    metadata = V1ObjectMeta(
        name=names.job_name(resource.name, order.digest),
        namespace=resource.namespace,
        labels={**_labels(order), **handed_on},
        annotations=annotations,
        owner_references=[owner],
    )
    return V1Job(api_version="batch/v1", kind="Job", metadata=metadata, spec=spec)


def as_body(job: V1Job) -> dict[str, Any]:
    """Return the JSON value that an API server takes."""
    return job.model_dump(mode="json", by_alias=True, exclude_none=True)


def template_digest(spec: V1JobSpec) -> str:
    """Return sixteen hexadecimal digits that name what a Job is made from."""
    value = spec.model_dump(mode="json", by_alias=True, exclude_none=True)
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def can_raise_memory(spec: QuantizationJobSpec, settings: Settings) -> bool:
    """Say whether a run that ran out of memory can be given more than its user left it with."""
    if settings.memory_ceiling is None or "memory" in _named(spec):
        return False
    defaults = _defaults(spec, settings)
    given = defaults.limits.get("memory") or defaults.requests.get("memory")
    return given is not None and quantity_bytes(settings.memory_ceiling) > quantity_bytes(given)


def _labels(order: Order) -> dict[str, str]:
    return names.run_labels(order.resource.name, order.digest, order.spec.method.value)


def _job_spec(order: Order, settings: Settings) -> V1JobSpec:
    pod = order.spec.pod
    template = V1PodTemplateSpec(
        metadata=V1ObjectMeta(
            labels={**pod.labels, **_labels(order)},
            annotations=dict(pod.annotations) or None,
        ),
        spec=_pod_spec(order, settings),
    )
    return V1JobSpec(
        completions=1,
        parallelism=1,
        backoff_limit=order.spec.backoff_limit,
        pod_replacement_policy="Failed",
        pod_failure_policy=_failure_policy(),
        template=template,
    )


def _failure_policy() -> V1PodFailurePolicy:
    # The first rule that matches counts. An interrupted worker (a pod that was deleted, a node that
    # shuts down) was told to stop from outside, as a disrupted one was.
    return V1PodFailurePolicy(
        rules=[
            V1PodFailurePolicyRule(
                action="Ignore",
                on_pod_conditions=[
                    V1PodFailurePolicyOnPodConditionsPattern(type="DisruptionTarget", status="True")
                ],
            ),
            _on_exit("FailJob", *ENDS_THE_JOB),
            _on_exit("Ignore", ExitCode.INTERRUPTED),
        ]
    )


def _on_exit(action: str, *codes: ExitCode) -> V1PodFailurePolicyRule:
    requirement = V1PodFailurePolicyOnExitCodesRequirement(
        container_name=names.CONTAINER, operator="In", values=[int(code) for code in codes]
    )
    return V1PodFailurePolicyRule(action=action, on_exit_codes=requirement)


def _pod_spec(order: Order, settings: Settings) -> V1PodSpec:
    pod = order.spec.pod
    volumes, mounts = volumes_and_mounts(order.spec)
    secrets = [V1LocalObjectReference(name=secret.name) for secret in pod.image_pull_secrets]
    tolerations = [
        V1Toleration.from_dict(toleration.model_dump(mode="json", exclude_defaults=True))
        for toleration in pod.tolerations
    ]
    affinity = pod.affinity.model_dump(mode="json", exclude_defaults=True) if pod.affinity else None
    return V1PodSpec(
        restart_policy="Never",
        automount_service_account_token=False,
        enable_service_links=False,
        termination_grace_period_seconds=_GRACE_SECONDS,
        service_account_name=pod.service_account_name or None,
        priority_class_name=pod.priority_class_name or None,
        runtime_class_name=pod.runtime_class_name or None,
        image_pull_secrets=secrets or None,
        node_selector={**pod.node_selector, **_gpu_product(order.spec)} or None,
        tolerations=[toleration for toleration in tolerations if toleration] or None,
        affinity=V1Affinity.from_dict(affinity),
        security_context=_pod_security(settings),
        containers=[_container(order, settings, mounts)],
        volumes=_sorted(volumes),
    )


def _gpu_product(spec: QuantizationJobSpec) -> dict[str, str]:
    """Return the label of the nodes whose GPU an engine is to be built for."""
    wanted = spec.tensor_rt.gpu_product if spec.tensor_rt is not None else None
    return {GPU_PRODUCT_LABEL: wanted} if wanted else {}


def _sorted(volumes: list[V1Volume]) -> list[V1Volume]:
    return sorted(volumes, key=lambda volume: volume.name)


def _pod_security(settings: Settings) -> V1PodSecurityContext:
    user = settings.run_as_user or None
    return V1PodSecurityContext(
        run_as_non_root=True,
        run_as_user=user,
        run_as_group=user,
        # Volumes become writable for the worker's group.
        fs_group=user,
        fs_group_change_policy="OnRootMismatch" if user else None,
        seccomp_profile=V1SeccompProfile(type="RuntimeDefault"),
    )


def _container(order: Order, settings: Settings, mounts: list[V1VolumeMount]) -> V1Container:
    return V1Container(
        name=names.CONTAINER,
        image=order.image,
        image_pull_policy=settings.image_pull_policy,
        env=_environment(order),
        resources=_resources(order, settings),
        volume_mounts=sorted(mounts, key=lambda mount: mount.mount_path),
        termination_message_policy="FallbackToLogsOnError",
        security_context=V1SecurityContext(
            allow_privilege_escalation=False,
            capabilities=V1Capabilities(drop=["ALL"]),
            privileged=False,
            read_only_root_filesystem=True,
            run_as_non_root=True,
            seccomp_profile=V1SeccompProfile(type="RuntimeDefault"),
        ),
    )


def _environment(order: Order) -> list[V1EnvVar]:
    ours = {
        "KUBEQUANT_RUN": order.request.model_dump_json(by_alias=True, exclude_none=True),
        "KUBEQUANT_SCRATCH": SCRATCH,
        # The root file system is read-only, and an arbitrary user has no home in it.
        "HOME": SCRATCH,
        "TMPDIR": SCRATCH,
        "HF_HOME": f"{SCRATCH}/huggingface",
    }
    theirs = {variable.name: variable.value for variable in order.spec.pod.env}
    return [
        V1EnvVar(name=name, value=_literal(value)) for name, value in {**ours, **theirs}.items()
    ]


def _literal(value: str) -> str:
    # The kubelet replaces $(NAME) in values, and $$ by one $.
    return value.replace("$", "$$")


def _resources(order: Order, settings: Settings) -> V1ResourceRequirements:
    """Return the user's words, and for each resource without any the administrator's.

    Every limit is requested too where nothing less is: queues count requests.
    """
    spec = order.spec
    defaults, asked = _defaults(spec, settings), spec.pod.resources
    named = _named(spec)
    requests = {name: value for name, value in defaults.requests.items() if name not in named}
    limits = {name: value for name, value in defaults.limits.items() if name not in named}
    if order.memory_raised and settings.memory_ceiling is not None:
        requests["memory"] = limits["memory"] = settings.memory_ceiling
    gpus = _gpus(spec)
    limits = {**limits, **asked.limits, **gpus}
    requests = {**limits, **requests, **asked.requests, **gpus}
    return V1ResourceRequirements(
        requests=dict(sorted(requests.items())), limits=dict(sorted(limits.items())) or None
    )


def _named(spec: QuantizationJobSpec) -> set[str]:
    return {*spec.pod.resources.requests, *spec.pod.resources.limits}


def _defaults(spec: QuantizationJobSpec, settings: Settings) -> Any:
    on_gpu = spec.effective_device() is Device.GPU
    return settings.gpu_resources if on_gpu else settings.cpu_resources


def _gpus(spec: QuantizationJobSpec) -> dict[str, str]:
    gpu = spec.pod.gpu
    if gpu is None and spec.effective_device() is Device.GPU:
        # A user who names an extended resource (example.com/gpu) among the others knows which.
        named = any("/" in name for name in _named(spec))
        gpu = None if named else GPU(count=spec.least_gpus())
    return {gpu.resource_name: str(gpu.count)} if gpu else {}
