"""Any world that any order of events can reach settles, and a settled world costs nothing.

`World.pass_once` holds in every pass that deciding again asks for nothing.
"""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tests.controller.builders import SETTINGS, published
from tests.controller.world import World

from kubequant.api.outcome import ExitCode, FailureReason
from kubequant.api.status import MAX_HISTORY, QuantizationJobStatus
from kubequant.controller.observe import Rejection

Event = Callable[[World], object]
QUEUE = "kueue.x-k8s.io/queue-name"


def _delete_jobs(world: World) -> None:
    for name in world.jobs:
        world.delete_job(name)


def _drop_pods(world: World) -> None:
    world.pods.clear()


def _lose_status(world: World) -> None:
    if world.resource:
        world.resource["status"] = {"observedGeneration": -1}


def _garble_status(world: World) -> None:
    if world.resource:
        world.resource["status"] = {"phase": {}, "run": "x"}


def _of_a_newer_version(world: World) -> None:
    if world.resource and "teleport" not in world.resource["spec"]:
        world.resource["spec"]["teleport"] = True
        world.resource["metadata"]["generation"] += 1


def _understood_again(world: World) -> None:
    if world.resource and world.resource["spec"].pop("teleport", None):
        world.resource["metadata"]["generation"] += 1


def _queue(*, suspends: bool) -> Event:
    def act(world: World) -> None:
        world.queue_is_full = suspends
        for job in world.jobs.values():
            job["spec"]["suspend"] = suspends

    return act


def _join_queue(world: World) -> None:
    if world.resource:
        world.resource["metadata"]["labels"][QUEUE] = "gpus"


def _leave_queue(world: World) -> None:
    if world.resource:
        world.resource["metadata"]["labels"].pop(QUEUE, None)


def _stranger(world: World) -> None:
    if world.resource and "teleport" not in world.resource["spec"]:
        status = world.decide().status
        if status and status.run and not any(n.endswith(status.run.digest) for n in world.jobs):
            world.strangers_job()


def _strangers_go(world: World) -> None:
    for name, job in list(world.jobs.items()):
        if not job["metadata"]["ownerReferences"]:
            del world.jobs[name]


def _rejects(code: int | None) -> Event:
    def act(world: World) -> None:
        world.rejection = Rejection(code, "not this one") if code else None

    return act


def _allow(**changes: object) -> Event:
    def act(world: World) -> None:
        world.settings = world.settings.model_copy(update=changes)

    return act


def _ends(code: int, message: str = "") -> Event:
    return lambda world: world.ends(code, message)


def _edit(spec: str) -> Event:
    return lambda world: world.edit(spec)


def _after(seconds: int) -> Event:
    return lambda world: world.passes(seconds)


EVENTS: dict[str, Event] = {
    "a pass": World.pass_once,
    "a pass on old news": World.pass_late,
    "a pass that is cut short": World.pass_cut_short,
    "a pass that is cut at its end": World.pass_cut_at_its_end,
    "the controllers act": World.controllers,
    "the pod starts": World.starts,
    "the pod finds no node": World.unschedulable,
    "the image is not there": lambda w: w.waiting("ErrImagePull", "not found"),
    "the worker publishes": World.publishes,
    "the worker ends well without a word": _ends(0),
    "the worker found it published": lambda w: w.publishes(outcome="AlreadyPublished"),
    "the worker refuses": lambda w: w.fails(ExitCode.BAD_REQUEST, FailureReason.INVALID_SPEC),
    "a gate fails": lambda w: w.fails(ExitCode.GATE_FAILED, FailureReason.GATE_FAILED),
    "the store is away": lambda w: w.fails(ExitCode.UNAVAILABLE, FailureReason.UNAVAILABLE),
    "the memory is out": lambda w: w.fails(ExitCode.OUT_OF_MEMORY, FailureReason.OUT_OF_MEMORY),
    "the kernel kills": World.oom_killed,
    "somebody kills": _ends(137, "last words"),
    "the pod is evicted": World.disrupted,
    "the pod is deleted": lambda w: w.fails(ExitCode.INTERRUPTED, FailureReason.INTERRUPTED),
    "the pod is being deleted": World.being_deleted,
    "its worker publishes beside another": lambda w: w.worker_ends(0, published(w.digest)),
    "its worker fails beside another": lambda w: w.worker_ends(1),
    "the disk is full": World.evicted_for_disk,
    "pods vanish": _drop_pods,
    "the Job is deleted": _delete_jobs,
    "suspend": _edit("suspend: true"),
    "resume": _edit("suspend: false"),
    "another type": _edit("gguf: {types: [Q8_0]}"),
    "the first type": _edit("gguf: {types: [Q4_K_M]}"),
    "a device without image": _edit("device: GPU"),
    "back to a CPU": _edit("device: CPU"),
    "more memory": _edit("pod: {resources: {limits: {memory: 64Gi}}}"),
    "a short deadline": _edit("activeDeadlineSeconds: 60"),
    "a TTL": _edit("ttlSecondsAfterFinished: 1000"),
    "no time to live": _edit("ttlSecondsAfterFinished: 0"),
    "a pickle": _edit("model: {allowPickle: true}"),
    "the administrator allows": _allow(allow_pickle=True, memory_ceiling="64Gi"),
    "the administrator forbids": _allow(allow_pickle=False, memory_ceiling=None),
    "another image": _allow(images={"gguf": "newer/gguf:2"}),
    "the status is lost": _lose_status,
    "the status is garbled": _garble_status,
    "a newer version writes": _of_a_newer_version,
    "it can be read again": _understood_again,
    "the queue is joined": _join_queue,
    "the queue is left": _leave_queue,
    "a webhook gives queues": lambda w: setattr(w, "default_queue", "gpus"),
    "the queue lets go": _queue(suspends=False),
    "the queue evicts": _queue(suspends=True),
    "a stranger takes the name": _stranger,
    "strangers go": _strangers_go,
    "a quota is in the way": _rejects(403),
    "the server never takes it": _rejects(422),
    "the server takes it": _rejects(None),
    "a quota forbids pods": lambda w: setattr(w, "pod_rejection", "exceeded quota"),
    "pods are allowed": lambda w: setattr(w, "pod_rejection", ""),
    "ten seconds": _after(10),
    "ten minutes": _after(600),
    "an hour": _after(3600),
    "a day": _after(86_400),
}


NEXT: dict[str, Event] = {
    "unseen": lambda _: None,
    "late": World.pass_late,
    "at once": World.pass_once,
    "settled": World.settle,
}
# Most worlds have time between two events, and only those come far.
SEEN = [*NEXT, "settled", "settled", "settled"]


def _bounded(status: QuantizationJobStatus) -> None:
    # Reading it again holds every bound of the schema.
    again = QuantizationJobStatus.model_validate_json(status.model_dump_json())
    assert again == status
    assert len(status.history) <= MAX_HISTORY
    assert len({condition.type for condition in status.conditions}) == len(status.conditions)


def _goes_well_from_here(world: World) -> None:
    """Let everything that can stand in the way go away, and workers publish."""
    _understood_again(world)
    _strangers_go(world)
    world.rejection, world.pod_rejection = None, ""
    world.edit(
        "suspend: false, device: (removed), model: {allowPickle: false}, pod: (removed), "
        "calibration: {samples: 77}"
    )
    _leave_queue(world)
    for _ in range(6):
        _queue(suspends=False)(world)
        world.settle()
        world.starts()
        world.publishes()
        world.passes(60)


WORKER_BEFORE_ITS_POD = [
    ("a pass", "settled"),
    ("the pod starts", "settled"),
    ("its worker fails beside another", "unseen"),
    ("the disk is full", "settled"),
]


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow], database=None
)
@given(
    st.lists(st.tuples(st.sampled_from(sorted(EVENTS)), st.sampled_from(SEEN)), max_size=20),
    st.sampled_from([None, "64Gi"]),
)
@example(WORKER_BEFORE_ITS_POD, None)
def test_every_world_settles_and_ends(story: list[tuple[str, str]], ceiling: str | None) -> None:
    world = World(settings=SETTINGS.model_copy(update={"memory_ceiling": ceiling}))
    for event, seen in story:
        EVENTS[event](world)
        NEXT[seen](world)
    world.settle()
    if world.resource is None:
        return
    _bounded(world.status)
    writes = world.status_writes
    plan = world.pass_once()
    assert (plan.actions, plan.afterwards, plan.events) == ((), (), ())
    assert world.status_writes == writes
    _goes_well_from_here(world)
    if world.resource is not None:
        world.settle()
        assert "Complete" in world.true, (world.reason, world.message)
        _bounded(world.status)
        assert sum(not _is_gone(job) for job in world.jobs.values()) <= 1


def _is_gone(job: dict[str, object]) -> bool:
    metadata = job["metadata"]
    return isinstance(metadata, dict) and "deletionTimestamp" in metadata
