"""What is decided in every case that operator.md lists: events in their order, then one verdict."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta

import pytest
from tests.controller.builders import SETTINGS, failed, published
from tests.controller.world import World

from kubequant.api.outcome import ExitCode, FailureReason
from kubequant.controller.observe import Rejection

Step = Callable[[World], object]
QUOTA = "exceeded quota: none, requested: pods=1, used: pods=0, limited: pods=0"
QUEUE = {"kueue.x-k8s.io/queue-name": "gpus"}
CEILING = SETTINGS.model_copy(update={"memory_ceiling": "64Gi"})


def settle(world: World) -> None:
    world.settle()


def unsuspend(world: World) -> None:
    for job in world.jobs.values():
        job["spec"]["suspend"] = False


def evict_from_queue(world: World) -> None:
    for job in world.jobs.values():
        job["spec"]["suspend"] = True


def delete_jobs(world: World) -> None:
    for name in world.jobs:
        world.delete_job(name)


def lose_pods(world: World) -> None:
    world.pods.clear()


def lose_what_waits(world: World) -> None:
    """As where a quota forbids the pod: none is there that could start."""
    for name, pod in [*world.pods.items()]:
        if pod["status"]["phase"] == "Pending":
            del world.pods[name]


def made_before_the_annotation(world: World) -> None:
    for job in world.jobs.values():
        del job["metadata"]["annotations"]["kubequant.dev/handed-on"]


def start_with_an_old_clock(world: World) -> None:
    now, world.now = world.now, world.now - timedelta(minutes=3)
    world.starts()
    world.now = now


def delete_pod(world: World) -> None:
    """As `kubectl delete pod`: SIGTERM, the worker ends with 30, and the pod is gone in the end."""
    world.fails(ExitCode.INTERRUPTED, FailureReason.INTERRUPTED)


def break_status(world: World) -> None:
    assert world.resource
    world.resource["status"] = {"phase": 7, "conditions": "none"}


def of_a_newer_version(world: World) -> None:
    assert world.resource
    world.resource["spec"]["teleport"] = True
    world.resource["metadata"]["generation"] += 1


def grows_a_field(world: World) -> None:
    assert world.resource
    world.resource["spec"]["teleport"] = True


def understood_again(world: World) -> None:
    assert world.resource
    del world.resource["spec"]["teleport"]


def deleting(world: World) -> None:
    assert world.resource
    world.resource["metadata"]["deletionTimestamp"] = "2026-01-02T03:04:05Z"


def old_namesake(world: World) -> None:
    owner = {
        "apiVersion": "kubequant.dev/v1alpha1",
        "kind": "QuantizationJob",
        "name": "tiny",
        "uid": "resource-0",
        "controller": True,
    }
    world.strangers_job(owner)


def give_queues(world: World) -> None:
    world.default_queue = "default"


def change_queue(world: World) -> None:
    assert world.resource
    world.resource["metadata"]["labels"] = {next(iter(QUEUE)): "cpus"}


def waits(reason: str, message: str) -> Step:
    return lambda world: world.waiting(reason, message)


def stranger_goes(world: World) -> None:
    world.jobs.clear()


def edit(spec: str) -> Step:
    return lambda world: world.edit(spec)


def after(seconds: float) -> Step:
    return lambda world: world.passes(seconds)


def rejects(code: int, message: str) -> Step:
    def set_it(world: World) -> None:
        world.rejection = Rejection(code, message)

    return set_it


def takes_jobs(world: World) -> None:
    world.rejection = None


def being_deleted(by: str = "") -> Step:
    return lambda world: world.being_deleted(by=by)


def publishes_beside_another(world: World) -> None:
    world.worker_ends(0, published(world.digest))


def fails_beside_another(code: ExitCode, reason: FailureReason) -> Step:
    return lambda world: world.worker_ends(
        int(code), failed(world.digest, code, reason, "It did not work.")
    )


def rejects_pods(words: str) -> Step:
    return lambda world: setattr(world, "pod_rejection", words)


def pod_event(note: str) -> Step:
    def post(world: World) -> None:
        assert world.pod
        world.event(world.pod, "FailedMount", note)

    return post


def fails(code: ExitCode, reason: FailureReason) -> Step:
    return lambda world: world.fails(code, reason)


def settings(**changes: object) -> Step:
    def set_it(world: World) -> None:
        world.settings = world.settings.model_copy(update=changes)

    return set_it


start, publish = World.starts, World.publishes
begin: tuple[Step, ...] = (settle, start, settle)
cut_short, cut_at_its_end = World.pass_cut_short, World.pass_cut_at_its_end
unavailable = (fails(ExitCode.UNAVAILABLE, FailureReason.UNAVAILABLE), settle, after(10), settle)


@dataclass(frozen=True)
class Row:
    """A story of a resource and how it stands at its end."""

    id: str
    steps: tuple[Step, ...]
    phase: str
    reason: str
    true: tuple[str, ...]
    says: str = ""
    """A part of the sentence that the conditions say."""
    spec: str = ""
    jobs: int | None = None
    """How many Jobs there are at the end."""
    created: int | None = None
    """How many Jobs were created in all."""
    events: tuple[str, ...] = ()
    """The events of the whole story, in order."""
    failure: FailureReason | None = None
    labels: dict[str, str] = field(default_factory=dict)
    settings: object = SETTINGS
    requeue: int | None = None
    """When to look again, in seconds."""


LONG_PROMPTS = [f"'{'😀' * 2000}{index}'" for index in range(16)]
WORKING, DONE, LOST = ("Reconciling",), ("Complete", "Ready"), ("Failed", "Stalled")

ON_THE_WAY = (
    Row(
        "a new resource gets a Job",
        (settle,),
        "Pending",
        "Pending",
        WORKING,
        jobs=1,
        created=1,
        events=(),
        requeue=3600,
    ),
    Row(
        "a pod that runs is shown, with what is left of the deadline",
        (*begin, after(100), settle),
        "Running",
        "Running",
        WORKING,
        says="runs on node node-1",
        created=1,
        events=(),
        requeue=86_300,
    ),
    Row(
        "a suspended resource gets no Job",
        (settle,),
        "Suspended",
        "UserSuspended",
        ("Suspended",),
        spec="suspend: true",
        created=0,
        events=("UserSuspended",),
    ),
    Row(
        "a resource that is suspended while it runs loses its Job",
        (*begin, edit("suspend: true"), settle),
        "Suspended",
        "UserSuspended",
        ("Suspended",),
        jobs=0,
        created=1,
    ),
    Row(
        "a resumed resource gets a new Job",
        (*begin, edit("suspend: true"), settle, edit("suspend: false"), settle),
        "Pending",
        "Pending",
        WORKING,
        jobs=1,
        created=2,
    ),
    Row(
        "a spec that changes while it runs stops the old Job and starts the new one",
        (*begin, edit("gguf: {types: [Q8_0]}"), settle),
        "Pending",
        "Pending",
        WORKING,
        jobs=1,
        created=2,
    ),
    Row(
        "a spec that changes after the run finished is a new run",
        (*begin, publish, settle, edit("gguf: {types: [Q8_0]}"), settle),
        "Pending",
        "Pending",
        WORKING,
        jobs=1,
        created=2,
    ),
    Row(
        "a change that makes no other artifact leaves a running Job alone",
        (*begin, edit("pod: {labels: {team: a}}, activeDeadlineSeconds: 100"), settle),
        "Running",
        "Running",
        WORKING,
        created=1,
    ),
    Row(
        "an edited pod replaces a Job that has yet to start",
        (settle, World.unschedulable, settle, edit("pod: {labels: {team: a}}"), settle),
        "Pending",
        "Pending",
        WORKING,
        jobs=1,
        created=2,
    ),
    Row(
        "an edited deadline does not replace a Job that has yet to start",
        (settle, World.unschedulable, settle, edit("activeDeadlineSeconds: 100"), settle),
        "Pending",
        "Unschedulable",
        WORKING,
        created=1,
    ),
    Row(
        "a corrected image replaces a Job that cannot get the old one",
        (
            settle,
            lambda w: w.waiting("ImagePullBackOff", "Back-off pulling image"),
            settle,
            settings(images={"gguf": "right/gguf:2"}),
            settle,
        ),
        "Pending",
        "Pending",
        WORKING,
        created=2,
    ),
    Row(
        "another image in the settings leaves a Job that starts in its ordinary turn",
        (settle, settings(images={"gguf": "newer/gguf:2"}), settle),
        "Pending",
        "Pending",
        WORKING,
        created=1,
    ),
    Row(
        "a Job that was deleted by hand is created again",
        (*begin, delete_jobs, settle),
        "Pending",
        "Pending",
        WORKING,
        jobs=1,
        created=2,
    ),
    Row(
        "a Job of that name that belongs to nobody we know is left alone and said",
        (World.strangers_job, settle),
        "Pending",
        "JobNameTaken",
        ("Stalled",),
        says="belongs to nobody",
        created=0,
        events=("JobNameTaken",),
        requeue=60,
    ),
    Row(
        "a Job that a deleted resource of the same name left is waited for",
        (old_namesake, settle, stranger_goes, settle),
        "Pending",
        "Pending",
        WORKING,
        created=1,
    ),
    Row(
        "an unschedulable pod shows the scheduler's reason",
        (settle, World.unschedulable, settle),
        "Pending",
        "Unschedulable",
        WORKING,
        says="3 Insufficient memory",
        events=("Unschedulable",),
    ),
    *(
        Row(
            f"an image that cannot be had ({reason}) is said at once",
            (settle, waits(reason, "no such image"), settle),
            "Pending",
            "ImageNotFound",
            WORKING,
            says=f"{reason}: no such image",
        )
        for reason in ("ErrImagePull", "ImagePullBackOff", "InvalidImageName")
    ),
    Row(
        "a container that cannot be created is said at once",
        (settle, lambda w: w.waiting("CreateContainerConfigError", "no such key"), settle),
        "Pending",
        "CannotStart",
        WORKING,
        says="no such key",
    ),
    Row(
        "a container that is being created is nothing to speak of",
        (settle, lambda w: w.waiting("ContainerCreating"), settle),
        "Pending",
        "Pending",
        WORKING,
        events=(),
    ),
    Row(
        "a Job that a queue holds is shown as queued",
        (settle,),
        "Suspended",
        "Queued",
        ("Suspended", "Reconciling"),
        labels=QUEUE,
        says="The queue gpus holds",
        created=1,
    ),
    Row(
        "a Job that the queue lets go runs",
        (settle, unsuspend, settle, start, settle),
        "Running",
        "Running",
        WORKING,
        labels=QUEUE,
        created=1,
    ),
    Row(
        "a resource that changes its queue gets a Job in the other one",
        (
            settle,
            change_queue,
            settle,
        ),
        "Suspended",
        "Queued",
        ("Suspended", "Reconciling"),
        labels=QUEUE,
        says="The queue cpus holds",
        created=2,
    ),
    Row(
        "a Job that a webhook puts into a queue is the one that was asked for",
        (give_queues, settle, after(60), settle),
        "Suspended",
        "Queued",
        ("Suspended", "Reconciling"),
        says="The queue default holds",
        created=1,
    ),
    Row(
        "a resource that is put into a queue gets a Job there, whatever a webhook chose",
        (give_queues, settle, change_queue, settle),
        "Suspended",
        "Queued",
        ("Suspended", "Reconciling"),
        says="The queue cpus holds",
        created=2,
    ),
    Row(
        "time in a queue is no time of waiting",
        (settle, after(100_000), settle),
        "Suspended",
        "Queued",
        ("Suspended", "Reconciling"),
        labels=QUEUE,
    ),
    Row(
        "a Job of an operator that did not note its labels keeps its place in the queue",
        (settle, made_before_the_annotation, settle),
        "Suspended",
        "Queued",
        ("Suspended", "Reconciling"),
        labels=QUEUE,
        created=1,
    ),
    Row(
        "a Job that something else than a queue suspended is shown as queued, for as long as it is",
        (settle, evict_from_queue, settle, after(100_000), settle),
        "Suspended",
        "Queued",
        ("Suspended", "Reconciling"),
        says="Something suspended the Job",
    ),
    Row(
        "a Job that a quota holds up is asked for again later",
        (rejects(403, "exceeded quota"), settle),
        "Pending",
        "JobRejected",
        WORKING,
        says="exceeded quota",
        created=0,
        requeue=60,
    ),
    *(
        Row(
            f"a Job that {who} does not admit is asked for again later",
            (rejects(code, words), settle),
            "Pending",
            "JobRejected",
            WORKING,
            says=words,
            created=0,
            requeue=60,
        )
        for who, code, words in (
            (
                "a webhook without a code",
                400,
                'admission webhook "jobs.example.com" denied the request: no team label',
            ),
            (
                "a webhook with a code of its own",
                422,
                'admission webhook "jobs.example.com" denied the request: no team label',
            ),
            (
                "a policy",
                422,
                "ValidatingAdmissionPolicy 'a.example.com' with binding 'b' denied request: no",
            ),
        )
    ),
    Row(
        "a Job whose pod a quota forbids says so in the server's words",
        (rejects_pods(QUOTA), settle, after(10), settle),
        "Pending",
        "PodRejected",
        WORKING,
        says=f'-…" is forbidden: {QUOTA} - Correct spec.pod',
        created=1,
        events=("PodRejected",),
        requeue=60,
    ),
    Row(
        "a Job whose pod is on its way is given a while before anyone asks",
        (rejects_pods(QUOTA), settle),
        "Pending",
        "Pending",
        WORKING,
        created=1,
        events=(),
        requeue=10,
    ),
    Row(
        "a Job whose pod was refused runs when what forbade it is gone",
        (rejects_pods(QUOTA), settle, after(10), settle, rejects_pods(""), *begin),
        "Running",
        "Running",
        WORKING,
        created=1,
        events=("PodRejected",),
    ),
    Row(
        "a Job whose pod names a class that is not there is replaced by an edit",
        (
            rejects_pods("no class"),
            settle,
            after(10),
            settle,
            rejects_pods(""),
            edit("pod: {priorityClassName: high}"),
            *begin,
        ),
        "Running",
        "Running",
        WORKING,
        created=2,
        events=("PodRejected", "Replacing", "JobCreated"),
    ),
    Row(
        "a Job whose pod is refused is replaced where the administrator's settings have changed",
        (
            rejects_pods("no class"),
            settle,
            after(10),
            settle,
            settings(run_as_user=1),
            after(60),
            settle,
        ),
        "Pending",
        "Pending",
        WORKING,
        created=2,
    ),
    Row(
        "a Job that a queue holds is asked nothing about its pod",
        (rejects_pods(QUOTA), settle, after(1000), settle),
        "Suspended",
        "Queued",
        ("Suspended", "Reconciling"),
        labels=QUEUE,
    ),
    Row(
        "a Job that was refused for a while is created in the end",
        (rejects(403, "exceeded quota"), settle, takes_jobs, settle),
        "Pending",
        "Pending",
        WORKING,
        created=1,
        events=("JobRejected", "JobCreated"),
    ),
)

TRIED_AGAIN = (
    *(
        Row(
            f"a pod that was ended from outside ({reason}) runs again and does not count",
            (
                *begin,
                *(lambda w, r=reason: w.disrupted(r), settle, after(10), settle, start, settle) * 4,
            ),
            "Running",
            "Running",
            WORKING,
            created=1,
        )
        for reason in (
            "EvictionByEvictionAPI",
            "PreemptionByScheduler",
            "DeletionByTaintManager",
            "DeletionByPodGC",
            "TerminationByKubelet",
        )
    ),
    Row(
        "a pod that somebody deletes runs again and does not count",
        (*begin, *(delete_pod, settle, after(10), settle, start, settle) * 4),
        "Running",
        "Running",
        WORKING,
        created=1,
    ),
    Row(
        "a pod that is being deleted is said to be so at once",
        (*begin, being_deleted("EvictionByEvictionAPI"), settle),
        "Running",
        "Disrupted",
        WORKING,
        says="on node node-1 is being deleted (EvictionByEvictionAPI: EvictionByEvictionAPI: dele",
        created=1,
        events=("Disrupted",),
        requeue=60,
    ),
    Row(
        "a pod that is not gone long after it was deleted has a node that does not answer",
        (*begin, being_deleted("DeletionByTaintManager"), settle, after(3600), settle),
        "Running",
        "Disrupted",
        WORKING,
        says="was to be gone by 2026-01-02T03:00:30Z: its node does not answer, or a finalizer",
        created=1,
        events=("Disrupted",),
    ),
    Row(
        "a pod that ends in the time that it has after its deletion runs again",
        (*begin, being_deleted(), settle, delete_pod, settle, after(10), settle, start, settle),
        "Running",
        "Running",
        WORKING,
        created=1,
        events=("Disrupted",),
    ),
    Row(
        "a pod that never started on a node that was lost is said to be lost",
        (settle, waits("ContainerCreating", ""), being_deleted(), settle, after(3000), settle),
        "Running",
        "Disrupted",
        WORKING,
        says="its node does not answer",
        created=1,
    ),
    Row(
        "a worker that ends while another container goes on has ended",
        (*begin, publishes_beside_another, after(10), settle),
        "Running",
        "Finishing",
        WORKING,
        says="other containers of the pod still run: istio-proxy",
        created=1,
        requeue=50,
    ),
    Row(
        "a pod that ran longer than a pod may wait and is gone runs again",
        (*begin, after(4000), settle, World.disrupted, settle, lose_pods, settle),
        "Pending",
        "Pending",
        WORKING,
        created=1,
        jobs=1,
    ),
    Row(
        "a pod that is gone before anyone saw it end runs again",
        (*begin, after(4000), lose_pods, settle, start, settle),
        "Running",
        "Running",
        WORKING,
        created=1,
    ),
    Row(
        "a pod that follows another and is refused says so in the server's words",
        (
            *begin,
            World.disrupted,
            rejects_pods(QUOTA),
            settle,
            after(10),
            settle,
            after(10),
            settle,
        ),
        "Pending",
        "PodRejected",
        WORKING,
        says=QUOTA,
        created=1,
        events=("Disrupted", "PodRejected"),
    ),
    Row(
        "what kept an earlier pod from being made is not told of the next",
        (
            *(rejects_pods(QUOTA), settle, after(10), settle, after(50)),
            *(rejects_pods(""), *begin, lose_pods, World.pass_once, after(10)),
            *(World.pass_once, after(10), settle),
        ),
        "Pending",
        "Pending",
        WORKING,
        created=1,
        events=("PodRejected",),
    ),
    Row(
        "a worker that found its store unavailable is tried again",
        (*begin, *unavailable, start, settle),
        "Running",
        "Running",
        WORKING,
        created=1,
        failure=FailureReason.UNAVAILABLE,
    ),
    Row(
        "what was tried as often as backoffLimit allows has failed",
        (*begin, *unavailable, *unavailable, *unavailable),
        "Failed",
        "BackoffLimitExceeded",
        LOST,
        says="The last: Unavailable: It did not work.",
        created=1,
        failure=FailureReason.UNAVAILABLE,
    ),
    Row(
        "a worker that was killed without a report is tried again",
        (*begin, lambda w: w.ends(137), settle),
        "Running",
        "Retrying",
        WORKING,
        says="killed (signal 9)",
        failure=FailureReason.INTERRUPTED,
    ),
    Row(
        "a bug is tried again, and its last lines are shown",
        (*begin, lambda w: w.ends(1, "Traceback\n  KeyError: 'x'"), settle),
        "Running",
        "Retrying",
        WORKING,
        says="KeyError: 'x'",
        failure=FailureReason.INTERNAL_ERROR,
    ),
    Row(
        "a failed run is tried again when its spec is changed",
        (
            *begin,
            fails(ExitCode.OUT_OF_MEMORY, FailureReason.OUT_OF_MEMORY),
            settle,
            edit("pod: {resources: {limits: {memory: 64Gi}}}"),
            settle,
        ),
        "Pending",
        "Pending",
        WORKING,
        jobs=1,
        created=2,
    ),
    Row(
        "a failed run is tried again when it is suspended and resumed",
        (
            *begin,
            fails(ExitCode.ACCESS, FailureReason.ACCESS_DENIED),
            settle,
            edit("suspend: true"),
            settle,
            edit("suspend: false"),
            settle,
        ),
        "Pending",
        "Pending",
        WORKING,
        jobs=1,
        created=2,
    ),
    Row(
        "a run whose pod was edited on its way and failed is tried again as edited",
        (
            *begin,
            edit("pod: {resources: {limits: {memory: 64Gi}}}"),
            settle,
            fails(ExitCode.OUT_OF_MEMORY, FailureReason.OUT_OF_MEMORY),
            settle,
        ),
        "Pending",
        "Pending",
        WORKING,
        jobs=1,
        created=2,
    ),
    *(
        Row(
            f"a run that ran out of memory ({how}) starts again with the ceiling",
            (*begin, step, settle),
            "Pending",
            "Pending",
            WORKING,
            settings=CEILING,
            jobs=1,
            created=2,
            failure=FailureReason.OUT_OF_MEMORY,
            events=("MemoryRaised", "Replacing", "JobCreated"),
        )
        for how, step in (
            ("caught", fails(ExitCode.OUT_OF_MEMORY, FailureReason.OUT_OF_MEMORY)),
            ("killed", World.oom_killed),
        )
    ),
    *(
        Row(
            f"a run that ran out of memory ({how}) keeps its ceiling when a pass is cut {where}",
            (*begin, step, cut, World.controllers, settle),
            "Pending",
            "Pending",
            WORKING,
            settings=CEILING,
            jobs=1,
            created=2,
            says="waits for its pod",
            failure=FailureReason.OUT_OF_MEMORY,
        )
        for how, step in (
            ("caught", fails(ExitCode.OUT_OF_MEMORY, FailureReason.OUT_OF_MEMORY)),
            ("killed", World.oom_killed),
        )
        for where, cut in (("short", cut_short), ("at its end", cut_at_its_end))
    ),
    Row(
        "a run that ran out of memory gets its ceiling though its Job went on meanwhile",
        (*begin, World.oom_killed, cut_at_its_end, after(10), World.controllers, start, settle),
        "Pending",
        "Pending",
        WORKING,
        settings=CEILING,
        jobs=1,
        created=2,
        failure=FailureReason.OUT_OF_MEMORY,
    ),
    Row(
        "a run that ran out of the ceiling too has failed",
        (*begin, World.oom_killed, settle, start, settle, World.oom_killed, settle),
        "Failed",
        "OutOfMemory",
        LOST,
        settings=CEILING,
        created=2,
        failure=FailureReason.OUT_OF_MEMORY,
    ),
)

OVER = (
    Row(
        "a published run is complete",
        (*begin, publish, settle),
        "Succeeded",
        "Published",
        DONE,
        says="published at s3://bucket/prefix/tiny/",
        jobs=1,
        created=1,
        events=("Published",),
    ),
    Row(
        "a run whose artifact was there already is complete",
        (*begin, lambda w: w.publishes(outcome="AlreadyPublished"), settle),
        "Succeeded",
        "AlreadyPublished",
        DONE,
    ),
    Row(
        "a run that published although gates do not hold says so",
        (
            *begin,
            lambda w: w.publishes(variants=[{"name": "Q2_K", "gatesPassed": False}]),
            settle,
        ),
        "Succeeded",
        "Published",
        DONE,
        spec="onGateFailure: Publish",
        says="Gates do not hold for Q2_K",
    ),
    Row(
        "a worker that ended well and left no report that can be read has published all the same",
        (*begin, lambda w: w.ends(0, "z:garbage"), settle),
        "Succeeded",
        "Published",
        DONE,
        says="Its numbers are only in report.json there",
    ),
    Row(
        "a complete run stays complete when its Job is deleted",
        (*begin, publish, settle, delete_jobs, settle),
        "Succeeded",
        "Published",
        DONE,
        jobs=0,
        created=1,
    ),
    Row(
        "a complete run stays complete when it is suspended or its pod edited",
        (*begin, publish, settle, edit("suspend: true, pod: {labels: {team: a}}"), settle),
        "Succeeded",
        "Published",
        DONE,
        created=1,
    ),
    *(
        Row(
            f"a worker's {reason.value} is not tried again",
            (*begin, fails(code, reason), settle),
            "Failed",
            reason.value,
            LOST,
            says="It did not work.",
            created=1,
            failure=reason,
            jobs=1,
        )
        for code, reason in (
            (ExitCode.BAD_REQUEST, FailureReason.INVALID_SPEC),
            (ExitCode.BAD_REQUEST, FailureReason.UNSUPPORTED_MODEL),
            (ExitCode.ACCESS, FailureReason.MODEL_NOT_FOUND),
            (ExitCode.ACCESS, FailureReason.ACCESS_DENIED),
            (ExitCode.OUT_OF_MEMORY, FailureReason.OUT_OF_MEMORY),
        )
    ),
    *(
        Row(
            f"gates that do not hold under onGateFailure {choice} fail the run",
            (*begin, fails(ExitCode.GATE_FAILED, FailureReason.GATE_FAILED), settle),
            "Failed",
            "GateFailed",
            LOST,
            spec=f"onGateFailure: {choice}",
            created=1,
        )
        for choice in ("Fail", "Escalate")
    ),
    Row(
        "a container that was killed for memory has failed, with advice",
        (*begin, World.oom_killed, settle),
        "Failed",
        "OutOfMemory",
        LOST,
        created=1,
        failure=FailureReason.OUT_OF_MEMORY,
        jobs=0,
    ),
    Row(
        "memory that the user chose is not raised",
        (*begin, World.oom_killed, settle),
        "Failed",
        "OutOfMemory",
        LOST,
        spec="pod: {resources: {limits: {memory: 4Gi}}}",
        settings=CEILING,
        created=1,
    ),
    Row(
        "a pod that used more disk than it may has failed, with advice",
        (*begin, World.evicted_for_disk, settle),
        "Failed",
        "DiskFull",
        LOST,
        says="exceeds the limit",
        failure=FailureReason.DISK_FULL,
    ),
    Row(
        "a worker whose disk was full has failed: the next has no larger one",
        (*begin, fails(ExitCode.UNAVAILABLE, FailureReason.DISK_FULL), World.controllers, settle),
        "Failed",
        "DiskFull",
        LOST,
        failure=FailureReason.DISK_FULL,
    ),
    *(
        Row(
            f"{what} fails the run once, also where a pass is cut {where}",
            (*begin, *steps, cut, World.controllers, settle),
            "Failed",
            reason.value,
            LOST,
            failure=reason,
            jobs=0,
            created=1,
        )
        for what, steps, reason in (
            ("a full disk", (World.evicted_for_disk,), FailureReason.DISK_FULL),
            ("lacking memory", (World.oom_killed,), FailureReason.OUT_OF_MEMORY),
            ("a deadline", (after(86_400),), FailureReason.DEADLINE_EXCEEDED),
        )
        for where, cut in (("short", cut_short), ("at its end", cut_at_its_end))
    ),
    *(
        Row(
            f"{what} gives the run up once, also where a pass is cut {where}",
            (settle, step, settle, after(3600), cut, World.controllers, settle),
            "Failed",
            reason.value,
            LOST,
            failure=reason,
            jobs=0,
            created=1,
        )
        for what, step, reason in (
            ("no node", World.unschedulable, FailureReason.PENDING_DEADLINE_EXCEEDED),
            ("no image", waits("ErrImagePull", "not found"), FailureReason.IMAGE_NOT_FOUND),
        )
        for where, cut in (("short", cut_short), ("at its end", cut_at_its_end))
    ),
    Row(
        "a Job whose pods are gone tells why by itself",
        (
            *begin,
            fails(ExitCode.ACCESS, FailureReason.ACCESS_DENIED),
            World.controllers,
            lose_pods,
            settle,
            after(60),
            settle,
        ),
        "Failed",
        "AccessDenied",
        LOST,
        says="its pods are gone",
    ),
    Row(
        "a run that takes too long is ended",
        (*begin, after(86_400), settle),
        "Failed",
        "DeadlineExceeded",
        LOST,
        jobs=0,
        failure=FailureReason.DEADLINE_EXCEEDED,
    ),
    Row(
        "a worker that published while nobody looked is not ended by its deadline",
        (*begin, publish, after(86_400), settle),
        "Succeeded",
        "Published",
        DONE,
    ),
    Row(
        "a deadline that was raised after it had passed counts from the new try on",
        (*begin, after(86_400), World.pass_once, edit("activeDeadlineSeconds: 90000"), settle),
        "Pending",
        "Pending",
        WORKING,
        created=2,
    ),
    Row(
        "a try that is going is not ended by the deadline that it had",
        (*begin, after(86_400), World.pass_once, edit("pod: {labels: {team: b}}"), settle),
        "Pending",
        "Pending",
        WORKING,
        created=2,
    ),
    Row(
        "the deadline counts over all attempts",
        (*begin, after(50_000), *unavailable, start, after(40_000), settle),
        "Failed",
        "DeadlineExceeded",
        LOST,
    ),
    Row(
        "no deadline expires while a queue holds the Job that it evicted",
        (settle, unsuspend, *begin, after(50_000), evict_from_queue, settle, after(90_000), settle),
        "Suspended",
        "Queued",
        ("Suspended", "Reconciling"),
        labels=QUEUE,
        created=1,
    ),
    *(
        Row(
            f"the deadline begins anew when a queue lets go the Job that it evicted ({how})",
            (
                *(settle, unsuspend, settle, after(20), start, settle, after(50_000)),
                *(*evicted, after(90_000)),
                *(unsuspend, World.controllers, settle, start, settle),
            ),
            "Running",
            "Running",
            WORKING,
            labels=QUEUE,
            created=1,
            requeue=86_400,
        )
        for how, evicted in (
            ("seen", (evict_from_queue, settle)),
            ("while nobody looked", (evict_from_queue, World.controllers)),
            ("after a pod had failed", (*unavailable, start, evict_from_queue, settle)),
        )
    ),
    Row(
        "a run that a queue evicted and let go is ended when it takes too long then",
        (
            *(settle, unsuspend, *begin, after(50_000), evict_from_queue, settle, after(90_000)),
            *(unsuspend, settle, start, settle, after(86_400), settle),
        ),
        "Failed",
        "DeadlineExceeded",
        LOST,
        labels=QUEUE,
    ),
    Row(
        "the deadline goes on where a run gets another Job with more memory",
        (*begin, after(50_000), World.oom_killed, settle, start, after(40_000), settle),
        "Failed",
        "DeadlineExceeded",
        LOST,
        settings=CEILING,
        created=2,
    ),
    Row(
        "a deadline that passes on a lost node blames the node",
        (*begin, being_deleted(), settle, after(86_400), settle, lose_pods, settle),
        "Failed",
        "DeadlineExceeded",
        LOST,
        says="was to be gone by 2026-01-02T03:00:30Z: its node does not answer",
    ),
    Row(
        "a pending deadline that passes on a lost node blames the node",
        (
            *(settle, waits("ContainerCreating", ""), being_deleted(), settle, after(3600)),
            *(settle, lose_pods, settle),
        ),
        "Failed",
        "PendingDeadlineExceeded",
        LOST,
        says="its node does not answer",
    ),
    *(
        Row(
            f"what was published counts though another container goes on ({when})",
            (*begin, after(before), publishes_beside_another, after(60), settle),
            "Succeeded",
            "Published",
            DONE,
            says="The artifact is published",
            jobs=0,
            created=1,
            events=("Published",),
        )
        for when, before in (("soon", 10), ("just before the deadline", 86_390))
    ),
    Row(
        "what was published counts though its pod is being deleted then",
        (*begin, publishes_beside_another, being_deleted(), after(60), settle),
        "Succeeded",
        "Published",
        DONE,
        jobs=0,
    ),
    *(
        Row(
            f"a worker that failed beside another container has failed ({reason})",
            (*begin, fails_beside_another(code, reason), after(60), settle),
            "Failed",
            shown,
            LOST,
            says=says,
            failure=reason,
            jobs=0,
            created=1,
        )
        for code, reason, shown, says in (
            (ExitCode.GATE_FAILED, FailureReason.GATE_FAILED, "GateFailed", "It did not work."),
            (
                ExitCode.UNAVAILABLE,
                FailureReason.UNAVAILABLE,
                "BackoffLimitExceeded",
                "since other containers of the pod (istio-proxy) still ran",
            ),
        )
    ),
    Row(
        "a pod that no node takes in time is given up",
        (settle, World.unschedulable, settle, after(3600), settle),
        "Failed",
        "PendingDeadlineExceeded",
        LOST,
        says="3 Insufficient memory",
        jobs=0,
    ),
    Row(
        "a Job whose pods a quota forbids is given up in the server's words",
        (rejects_pods(QUOTA), settle, after(3600), settle),
        "Failed",
        "PendingDeadlineExceeded",
        LOST,
        says=f'-…" is forbidden: {QUOTA}',
        jobs=0,
    ),
    Row(
        "a Job whose pods nobody makes is given up",
        (settle, lose_pods, after(3600), World.pass_once, settle),
        "Failed",
        "PendingDeadlineExceeded",
        LOST,
        says="none was made, and no event of the Job says why",
        jobs=0,
    ),
    Row(
        "a pod whose volume is not there in time is given up with the kubelet's last word",
        (
            *(settle, waits("ContainerCreating", ""), pod_event("Pulling image"), after(1000)),
            *(pod_event('secret "s3-writer" not found'), after(2600), settle),
        ),
        "Failed",
        "PendingDeadlineExceeded",
        LOST,
        says='ContainerCreating; its last event: secret "s3-writer" not found',
        jobs=0,
    ),
    Row(
        "the deadline of a run whose next pod is refused says that it is",
        (
            *(*begin, World.disrupted, rejects_pods(QUOTA), settle, after(86_400)),
            *(World.controllers, settle),
        ),
        "Failed",
        "DeadlineExceeded",
        LOST,
        says=QUOTA,
    ),
    Row(
        "a Job that follows another is given up too where it gets no pod",
        (*begin, after(60), delete_jobs, settle, lose_pods, after(3600), World.pass_once, settle),
        "Failed",
        "PendingDeadlineExceeded",
        LOST,
        created=2,
        jobs=0,
    ),
    Row(
        "a Job that a queue let go again is given up too where it gets no pod",
        (
            *(settle, unsuspend, *begin, after(4000), settle, evict_from_queue, settle),
            *(unsuspend, World.controllers, lose_pods, World.pass_once),
            *(after(3600), World.pass_once, settle),
        ),
        "Failed",
        "PendingDeadlineExceeded",
        LOST,
        labels=QUEUE,
        jobs=0,
    ),
    Row(
        "so is one of which an attempt before has failed",
        (
            *(settle, unsuspend, settle, start, *unavailable, after(600)),
            *(evict_from_queue, settle),
            *(unsuspend, World.controllers, lose_what_waits, World.pass_once),
            *(after(3600), World.pass_once, settle),
        ),
        "Failed",
        "PendingDeadlineExceeded",
        LOST,
        labels=QUEUE,
        jobs=0,
    ),
    *(
        Row(
            f"a Job that something held for long begins its deadlines anew ({how})",
            (
                *(*begin, *before, evict_from_queue, settle, after(90_000)),
                # The Job still says when it was started first.
                *(unsuspend, World.pass_once, settle, start, settle),
            ),
            "Running",
            "Running",
            WORKING,
            created=1,
            requeue=86_400,
        )
        for how, before in (("its only pod gone", ()), ("after a pod had failed", unavailable))
    ),
    Row(
        "the deadline counts where a node's clock is behind",
        (settle, start_with_an_old_clock, settle, after(86_400), settle),
        "Failed",
        "DeadlineExceeded",
        LOST,
    ),
    Row(
        "an image that cannot be had in time is given up",
        (settle, lambda w: w.waiting("ErrImagePull", "not found"), settle, after(3600), settle),
        "Failed",
        "ImageNotFound",
        LOST,
        says="not found",
        jobs=0,
    ),
    Row(
        "a Job that the server will never take has failed",
        (rejects(422, "spec.template: Invalid value"), settle, takes_jobs, settle),
        "Failed",
        "JobRejected",
        LOST,
        says="Invalid value",
        created=0,
    ),
    Row(
        "what is over with no TTL is never looked at again",
        (*begin, publish, settle, after(10_000_000), settle),
        "Succeeded",
        "Published",
        DONE,
    ),
    Row(
        "what is over is looked at again when its TTL passes",
        (*begin, publish, settle, after(40), settle),
        "Succeeded",
        "Published",
        DONE,
        spec="ttlSecondsAfterFinished: 100",
        requeue=60,
    ),
)

REFUSED = (
    Row(
        "a device without an image is refused with the methods that have one",
        (settle,),
        "Failed",
        "MethodUnavailable",
        LOST,
        spec="method: GGUF, device: GPU",
        says="Methods with an image: AWQ, BitsAndBytes, Distill, FP8, GGUF, GPTQ, INT4, INT8",
        created=0,
        failure=FailureReason.METHOD_UNAVAILABLE,
        events=("MethodUnavailable",),
    ),
    Row(
        "a device without an image is refused",
        (settle,),
        "Failed",
        "MethodUnavailable",
        LOST,
        spec="method: GGUF, device: GPU",
        says="no image that runs GGUF with device GPU",
        created=0,
    ),
    *(
        Row(
            f"{what} is refused unless the administrator allows it",
            (settle,),
            "Failed",
            "NotPermitted",
            LOST,
            spec=spec,
            says=says,
            created=0,
        )
        for what, spec, says in (
            ("a model's own code", "model: {trustRemoteCode: true}", "spec.model.trustRemoteCode"),
            ("a pickle", "model: {allowPickle: true}", "spec.model.allowPickle"),
            (
                "a service account",
                "pod: {serviceAccountName: admin}",
                "spec.pod.serviceAccountName: admin",
            ),
            (
                "a priority of the cluster's own",
                "pod: {priorityClassName: system-node-critical}",
                "for the cluster's own pods",
            ),
            (
                "a variable that loads code",
                "pod: {env: [{name: LD_PRELOAD, value: /volumes/a/b.so}]}",
                "spec.pod.env: LD_PRELOAD",
            ),
            *(
                (
                    f"{name}, by which a program takes other code",
                    f"pod: {{env: [{{name: {name}, value: /volumes/models/mine}}]}}",
                    f"spec.pod.env: {name} is not among the variables that a run may set",
                )
                for name in (
                    "LLAMA_CPP_LIB_PATH",
                    "TENSORRT_LLM_PYTHON",
                    "TENSORRT_LLM_LIBRARY_PATH",
                    "VLLM_PYTHON",
                    "TRITON_PTXAS_PATH",
                    "CC",
                    "OMP_TOOL_LIBRARIES",
                    "NCCL_NET_PLUGIN",
                    "HF_HUB_CACHE",
                    "A_VARIABLE_OF_NOBODY",
                )
            ),
            (
                "what no one listed beside what is known",
                "pod: {env: [{name: CC}, {name: TZ, value: UTC}, {name: CXX}]}",
                (
                    "spec.pod.env: CC, CXX are not among the variables that a run may set, and the "
                    "administrator does not list them in KUBEQUANT_OPERATOR_ALLOWED_ENV"
                ),
            ),
            (
                "a variable that shows GPUs",
                "pod: {env: [{name: NVIDIA_VISIBLE_DEVICES, value: all}]}",
                "NVIDIA_VISIBLE_DEVICES",
            ),
            *(
                (
                    f"{name} beside what the namespace's own account may reach",
                    f"pod: {{env: [{{name: {name}, value: 'http://evil'}}]}}",
                    f"spec.pod.env: {name} could send credentials",
                )
                for name in (
                    "AWS_ENDPOINT_URL_STS",
                    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
                    "AWS_CA_BUNDLE",
                    "HF_ENDPOINT",
                    "https_proxy",
                )
            ),
            (
                "a hub of one's own beside a token",
                (
                    "model: {secretRef: {name: token}}, "
                    "pod: {env: [{name: HF_ENDPOINT, value: 'http://evil'}]}"
                ),
                "could send credentials",
            ),
            ("a label of the Job controller's", "pod: {labels: {job-name: a}}", "job-name"),
            *(
                (
                    f"the label {key}, which others act on or select by",
                    f"pod: {{labels: {{{key}: 'true', team: a}}}}",
                    f"spec.pod.labels: {key} is not among the labels that the administrator lists",
                )
                for key in ("azure.workload.identity/use", "sidecar.istio.io/inject", "app")
            ),
            *(
                (
                    f"the annotation {key}, by which another controller acts",
                    f"pod: {{annotations: {{{key}: a}}}}",
                    f"spec.pod.annotations: {key} is not among the annotations that",
                )
                for key in ("sidecar.istio.io/proxyImage", "iam.amazonaws.com/role", "note")
            ),
        )
    ),
    *(
        Row(
            f"{what} runs where the administrator allows it",
            (settle,),
            "Pending",
            "Pending",
            WORKING,
            spec=spec,
            settings=SETTINGS.model_copy(update=allowed),
            created=1,
        )
        for what, spec, allowed in (
            ("a model's own code", "model: {trustRemoteCode: true}", {"allow_remote_code": True}),
            ("a pickle", "model: {allowPickle: true}", {"allow_pickle": True}),
            (
                "a service account",
                "pod: {serviceAccountName: irsa}",
                {"allowed_service_accounts": ("irsa",)},
            ),
            (
                "a guarded variable",
                "pod: {env: [{name: PYTHONHASHSEED, value: '0'}]}",
                {"allowed_env": ("PYTHONHASHSEED",)},
            ),
            (
                "every variable of a kind that the administrator lists",
                "pod: {env: [{name: TRITON_PTXAS_PATH}, {name: TRITON_CACHE_DIR}]}",
                {"allowed_env": ("TRITON_*",)},
            ),
            (
                "an annotation that the administrator lists",
                "pod: {annotations: {iam.amazonaws.com/role: a, example.com/a: b}}",
                {"allowed_annotations": ("iam.amazonaws.com/role", "example.com/*")},
            ),
            (
                "a label that says whose the pod is",
                "pod: {labels: {team: a, cost-center: '7'}}",
                {},
            ),
            (
                "a label that the administrator lists",
                "pod: {labels: {azure.workload.identity/use: 'true', example.com/a: b}}",
                {"allowed_labels": ("azure.workload.identity/use", "example.com/*")},
            ),
            *(
                (
                    f"{key}, which changes nothing in the pod",
                    f"pod: {{annotations: {{{key}: a}}}}",
                    {},
                )
                for key in (
                    "cluster-autoscaler.kubernetes.io/safe-to-evict",
                    "karpenter.sh/do-not-disrupt",
                    "prometheus.io/scrape",
                )
            ),
            *(
                (f"{name}, which changes no code", f"pod: {{env: [{{name: {name}}}]}}", {})
                for name in (
                    "TZ",
                    "LANG",
                    "LC_ALL",
                    "OMP_NUM_THREADS",
                    "MKL_NUM_THREADS",
                    "MALLOC_ARENA_MAX",
                    "PYTORCH_CUDA_ALLOC_CONF",
                    "TRANSFORMERS_VERBOSITY",
                    "TORCH_CPP_LOG_LEVEL",
                    "HF_HUB_DOWNLOAD_TIMEOUT",
                    "HF_HUB_DISABLE_XET",
                    "AWS_REGION",
                    "NO_PROXY",
                )
            ),
            (
                "a hub of one's own",
                "pod: {env: [{name: HF_ENDPOINT, value: 'http://mirror'}]}",
                {"allowed_env": ("HF_ENDPOINT",)},
            ),
        )
    ),
    Row(
        "a refusal ends when the administrator allows what was refused",
        (settle, settings(allow_pickle=True), settle),
        "Pending",
        "Pending",
        WORKING,
        spec="model: {allowPickle: true}",
        created=1,
    ),
    Row(
        "a request that no environment variable can hold is refused",
        (settle,),
        "Failed",
        "InvalidSpec",
        LOST,
        spec=f"evaluation: {{generations: {{prompts: [{', '.join(LONG_PROMPTS)}]}}}}",
        says="a worker can be told at most 120000",
        created=0,
    ),
    Row(
        "a resource of a newer version is said to be unreadable and nothing is touched",
        (*begin, of_a_newer_version, settle),
        "Failed",
        "InvalidSpec",
        LOST,
        says="spec.teleport: is not a field",
        jobs=1,
        created=1,
    ),
    Row(
        "a run that was permitted when it began goes on when the administrator forbids it",
        (*begin, settings(allow_pickle=False), settle),
        "Running",
        "Running",
        WORKING,
        spec="model: {allowPickle: true}",
        settings=SETTINGS.model_copy(update={"allow_pickle": True}),
        created=1,
    ),
    Row(
        "a complete resource stays so under an older operator that cannot read it",
        (*begin, publish, settle, grows_a_field, settle),
        "Succeeded",
        "Published",
        DONE,
        created=1,
    ),
    Row(
        "a resource that can be read again goes on",
        (*begin, of_a_newer_version, settle, understood_again, settle),
        "Running",
        "Running",
        WORKING,
        jobs=1,
        created=1,
    ),
    Row(
        "a status that cannot be read is made again from what there is",
        (*begin, break_status, settle),
        "Running",
        "Running",
        WORKING,
        created=1,
    ),
    Row(
        "a lost status of a complete run is made again from the worker's report",
        (*begin, publish, settle, break_status, settle),
        "Succeeded",
        "Published",
        DONE,
        created=1,
    ),
)

ROWS = (*ON_THE_WAY, *TRIED_AGAIN, *OVER, *REFUSED)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.id)
def test_decide(row: Row) -> None:
    world = World(row.spec, settings=row.settings, labels=row.labels)  # type: ignore[arg-type]
    for step in row.steps:
        step(world)
    plan = world.settle()
    assert (world.status.phase, world.reason) == (row.phase, row.reason), world.message
    assert tuple(sorted(world.true)) == tuple(sorted(row.true))
    assert row.says in world.message
    assert row.jobs is None or len(world.jobs) == row.jobs
    assert row.created is None or len(world.created) == row.created
    assert not row.events or tuple(world.events) == row.events
    if row.failure:
        assert world.status.failure
        assert world.status.failure.reason is row.failure
        assert world.status.failure.advice
    if row.requeue is not None:
        assert plan.requeue_after_seconds == row.requeue
