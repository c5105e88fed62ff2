"""What a status holds besides its verdict: times, runs, numbers, history; and what is told."""

from __future__ import annotations

import json
from datetime import timedelta

import pytest
from tests.controller.builders import START, failed
from tests.controller.world import World

from kubequant.api.enums import Method
from kubequant.api.outcome import ExitCode, FailureReason, Stage
from kubequant.api.status import EscalationStep, Failure, Phase
from kubequant.controller.plan import DeleteResource, Plan


def running(spec: str = "") -> World:
    world = World(spec)
    world.settle()
    world.starts()
    world.settle()
    return world


def complete(spec: str = "") -> World:
    world = running(spec)
    world.passes(600)
    world.publishes()
    world.settle()
    return world


def test_a_published_run_has_the_workers_numbers() -> None:
    status = complete().status
    assert status.run
    assert status.artifact
    assert status.artifact.uri == f"s3://bucket/prefix/tiny/{status.run.digest}/"
    assert status.artifact.manifest_sha256
    assert status.original
    assert status.original.perplexity == "6.24"
    assert [v.size_reduction_percent for v in status.variants] == ["70"]
    assert status.usage
    assert status.recommendations
    assert status.resolved
    assert (status.resolved.method, status.resolved.engine, status.resolved.model_revision) == (
        Method.GGUF,
        "llama.cpp 0.3.36",
        "0e9e39f",
    )
    assert status.progress
    assert (status.progress.stage, status.progress.percent) == (Stage.REPORTING, 100)
    assert status.start_time == START
    assert status.completion_time == START + timedelta(seconds=600)
    assert status.observed_generation == 1
    assert status.failure is None


def test_a_pod_cannot_move_the_artifact() -> None:
    world = running()
    world.publishes(artifact={"uri": "s3://elsewhere/"})
    world.settle()
    assert world.status.artifact
    assert world.status.artifact.uri.startswith("s3://bucket/prefix/tiny/")


def test_a_failed_gate_leaves_the_numbers() -> None:
    world = running()
    world.fails(ExitCode.GATE_FAILED, FailureReason.GATE_FAILED, "Perplexity rose by 9 %.")
    world.settle()
    assert world.status.failure
    assert world.status.failure.message == "Perplexity rose by 9 %."
    assert world.status.failure.exit_code == 11


def test_the_report_of_a_failed_run_is_where_the_spec_says_whatever_the_pod_says() -> None:
    world = running()
    failure = Failure(
        reason=FailureReason.GATE_FAILED, message="No.", report_uri="s3://elsewhere/report.json"
    )
    world.ends(11, failed(world.digest, ExitCode.GATE_FAILED, failure.reason, "", failure=failure))
    world.settle()
    assert world.status.failure
    assert world.status.failure.report_uri == (
        f"s3://bucket/prefix/tiny/{world.digest}.failed/report.json"
    )
    assert world.status.artifact is None


STEPS = (
    {
        "variant": "Q2_K",
        "inPlaceOf": "Q2_K",
        "method": "GGUF",
        "setting": "Q2_K",
        "perplexityIncreasePercent": "6.4",
        "gatesPassed": False,
        "missed": "spec.gates[0]: Q2_K: PerplexityIncreasePercent is 6.4, at most 2.0: by 4.4",
    },
    {"variant": "Q3_K_M", "inPlaceOf": "Q2_K", "method": "GGUF", "gatesPassed": True},
)


def test_every_step_of_an_escalation_is_shown_whether_it_ends_well_or_not() -> None:
    steps = tuple(EscalationStep.model_validate(step) for step in STEPS)
    well = running("onGateFailure: Escalate")
    well.publishes(
        escalation=list(STEPS),
        resolved={"method": "GPTQ", "engine": "x 1", "reason": "The spec names GGUF. And more."},
    )
    well.settle()
    assert well.status.escalation == steps
    assert "stands in place of Q2_K, whose gates failed" in well.true["Complete"].message
    assert well.status.resolved
    assert (well.status.resolved.method, well.status.resolved.reason) == (
        Method.GPTQ,
        "The spec names GGUF. And more.",
    )
    badly = running("onGateFailure: Escalate")
    code, reason = ExitCode.GATE_FAILED, FailureReason.GATE_FAILED
    badly.ends(11, failed(badly.digest, code, reason, "No.", escalation=steps[:1]))
    badly.settle()
    assert badly.status.escalation == steps[:1]


def test_what_was_published_with_failed_gates_says_by_how_much_and_warns_once() -> None:
    world = running("onGateFailure: Publish")
    gate = {
        "variant": "Q2_K",
        "metric": "PerplexityIncreasePercent",
        "value": "2.1",
        "standardError": "0.3",
        "max": "2.0",
        "margin": "-0.1",
        "certain": False,
        "passed": False,
    }
    world.publishes(variants=[{"name": "Q2_K", "gatesPassed": False}], gates=[gate])
    world.settle()
    says = "is 2.1 ± 0.3, at most 2.0: does not hold, by 0.1, which is within two standard errors"
    assert says in world.true["Complete"].message
    assert world.events.count("GateFailed") == 1


@pytest.mark.parametrize(
    ("hardware", "priority", "method", "device", "parameters"),
    [
        ("GPU", "Quality", "AWQ", "GPU", {"bits": 4}),
        ("GPU", "Speed", "GPTQ", "GPU", {"bits": 4}),
        ("GPU", "Balanced", "INT8", "GPU", {}),
        ("CPU", "Quality", "GGUF", "CPU", {"types": ["Q6_K", "Q8_0"]}),
        ("CPU", "Speed", "GGUF", "CPU", {"types": ["Q4_0"]}),
        ("CPU", "Balanced", "GGUF", "CPU", {"types": ["Q4_K_M", "Q5_K_M"]}),
        *(
            ("AppleSilicon", priority, "GGUF", "CPU", {"types": ["Q4_K_M", "Q5_K_M"]})
            for priority in ("Quality", "Speed", "Balanced")
        ),
    ],
)
def test_auto_runs_what_its_goal_asks_for_on_what_the_method_needs(
    hardware: str, priority: str, method: str, device: str, parameters: dict[str, object]
) -> None:
    world = World(f"method: Auto, goal: {{hardware: {hardware}, priority: {priority}}}")
    world.settle()
    resolved = world.status.resolved
    assert resolved
    assert resolved.method is not None
    assert resolved.device is not None
    assert (resolved.method.value, resolved.device.value) == (method, device)
    assert f"Auto for {hardware} and {priority} is {method}: " in resolved.reason
    # Where the method has several engines, why it is this one stands beside.
    assert (f"does {method} on a {device}: " in resolved.reason) is (method != "GGUF")
    (job,) = world.jobs.values()
    container = job["spec"]["template"]["spec"]["containers"][0]
    told = json.loads(next(e["value"] for e in container["env"] if e["name"] == "KUBEQUANT_RUN"))
    member = {"GGUF": "gguf", "AWQ": "awq", "GPTQ": "gptq", "INT8": "int8"}[method]
    assert (told["spec"]["method"], told["spec"]["device"]) == (method, device)
    assert told["spec"][member].items() >= parameters.items()
    assert told["reason"].startswith("Auto for ")
    assert told["reason"] in resolved.reason
    limits = container["resources"].get("limits") or {}
    assert ("nvidia.com/gpu" in limits) is (device == "GPU")


def test_a_condition_keeps_its_time_while_its_status_stays() -> None:
    world = running()
    before = world.true["Reconciling"].last_transition_time
    world.passes(1000)
    world.disrupted()
    world.settle()
    assert world.true["Reconciling"].reason == "Disrupted"
    assert world.true["Reconciling"].last_transition_time == before == START
    world.passes(10)
    world.settle()
    world.publishes()
    world.settle()
    assert world.true["Complete"].last_transition_time == START + timedelta(seconds=1010)


def test_every_condition_is_there_from_the_first_visit_on() -> None:
    world = World()
    world.pass_once()
    kinds = [condition.type.value for condition in world.status.conditions]
    assert kinds == ["Complete", "Failed", "Suspended", "Ready", "Reconciling", "Stalled"]
    assert {condition.observed_generation for condition in world.status.conditions} == {1}


def test_attempts_count_pods_also_those_that_are_gone() -> None:
    world = running()
    for _ in range(3):
        world.disrupted()
        world.settle()
        world.pods.clear()
        world.settle()
        world.starts()
        world.settle()
    assert world.status.run
    assert world.status.run.attempts == 4


def test_an_older_pod_is_no_attempt_when_a_younger_one_is_gone() -> None:
    world = running()
    world.fails(ExitCode.UNAVAILABLE, FailureReason.UNAVAILABLE)
    world.settle()
    world.passes(10)
    world.settle()
    world.starts()
    world.settle()
    assert world.pod
    second = world.pod["metadata"]["name"]
    world.passes(100)
    world.disrupted()
    world.settle()
    del world.pods[second]
    world.pass_once()
    assert world.status.run
    assert (world.status.run.attempts, world.status.run.pod_name) == (2, second)
    world.settle()
    world.starts()
    world.settle()
    assert world.status.run.attempts == 3
    assert world.pod["metadata"]["name"] == world.status.run.pod_name != second


def test_a_resource_costs_three_status_writes_and_one_event_in_its_life() -> None:
    world = World()
    world.pass_once()
    world.controllers()
    world.pass_once()
    world.starts()
    world.pass_once()
    world.passes(100)
    world.pass_once()
    world.publishes()
    world.controllers()
    world.pass_once()
    world.passes(100)
    world.pass_once()
    assert world.status_writes == 3
    assert world.events == ["Published"]
    assert len(world.created) == 1


def test_history_keeps_the_last_ten_runs_the_newest_first() -> None:
    world = complete()
    digests = [world.digest]
    for samples in range(1, 13):
        world.edit(f"calibration: {{samples: {samples}}}")
        world.settle()
        digests.insert(0, world.digest)
        world.starts()
        world.settle()
        if samples % 2:
            world.publishes()
            world.settle()
    history = world.status.history
    assert [entry.digest for entry in history] == digests[1:11]
    assert {entry.reason for entry in history} == {"Published", "Superseded"}
    by_reason = {entry.reason: entry for entry in history}
    assert by_reason["Published"].phase is Phase.SUCCEEDED
    assert by_reason["Published"].artifact_uri
    assert by_reason["Superseded"].phase is Phase.FAILED


def test_a_run_that_nobody_saw_end_is_in_history_as_its_job_tells() -> None:
    world = running()
    world.publishes()
    world.controllers()
    world.edit("gguf: {types: [Q8_0]}")
    world.settle()
    assert [(e.phase, e.reason) for e in world.status.history] == [(Phase.SUCCEEDED, "Published")]


def test_a_run_that_nobody_saw_end_is_in_history_also_where_a_pass_is_cut_short() -> None:
    world = running()
    world.publishes()
    world.controllers()
    world.edit("gguf: {types: [Q8_0]}")
    world.pass_cut_short()
    world.controllers()
    world.settle()
    assert [(e.phase, e.reason) for e in world.status.history] == [(Phase.SUCCEEDED, "Published")]


def test_a_run_that_never_started_is_no_history() -> None:
    world = World("suspend: true")
    world.settle()
    world.edit("gguf: {types: [Q8_0]}")
    world.settle()
    assert world.status.history == ()


def test_a_new_run_waits_until_the_old_one_has_stopped() -> None:
    world = running()
    old = world.digest
    world.edit("gguf: {types: [Q8_0]}")
    plan = world.pass_once()
    assert [type(action).__name__ for action in plan.afterwards] == ["DeleteJob"]
    assert world.reason == "Replacing"
    assert f"tiny-{old}" in world.message
    assert world.pass_once().actions == ()
    world.controllers()
    plan = world.pass_once()
    assert [type(action).__name__ for action in plan.actions] == ["CreateJob"]


def test_what_is_being_deleted_is_left_alone() -> None:
    world = running()
    assert world.resource
    world.resource["metadata"]["deletionTimestamp"] = "2026-01-02T03:04:05Z"
    world.edit("gguf: {types: [Q8_0]}")
    assert world.decide() == Plan()


@pytest.mark.parametrize("how", ["published", "failed", "refused"])
def test_what_is_over_is_deleted_when_its_ttl_has_passed(how: str) -> None:
    if how == "refused":
        world = World("ttlSecondsAfterFinished: 100, device: GPU")
        world.settle()
    else:
        world = running("ttlSecondsAfterFinished: 100")
        if how == "published":
            world.publishes()
        else:
            world.fails(ExitCode.ACCESS, FailureReason.ACCESS_DENIED)
        world.settle()
    world.passes(99)
    plan = world.settle()
    assert plan.afterwards == ()
    assert plan.requeue_after_seconds == 1
    world.passes(1)
    plan = world.pass_once()
    (action,) = plan.afterwards
    assert isinstance(action, DeleteResource)
    assert (action.uid, action.event.reason.value) == ("resource-1", "Expired")


@pytest.mark.parametrize("ttl", [0, 100])
def test_an_end_is_written_before_its_ttl_deletes_it(ttl: int) -> None:
    world = running(f"ttlSecondsAfterFinished: {ttl}")
    world.publishes()
    world.controllers()
    world.passes(ttl)
    plan = world.pass_once()
    assert (world.reason, plan.requeue_after_seconds) == ("Published", 1)
    world.pass_once()
    assert world.resource is None


def test_a_refusal_of_another_generation_is_written_before_it_is_deleted() -> None:
    world = World("ttlSecondsAfterFinished: 0, device: GPU")
    world.pass_once()
    world.edit("backoffLimit: 3")
    world.pass_once()
    assert world.status.observed_generation == 2


def test_what_runs_has_no_ttl() -> None:
    world = running("ttlSecondsAfterFinished: 0")
    assert world.resource is not None


def test_the_last_words_of_a_pod_are_waited_for() -> None:
    """The watch on Jobs was faster: the Job is complete, and its pod seems to run."""
    world = running()
    pod = dict(world.pods)
    world.publishes()
    world.controllers()
    ended, world.pods = (
        world.pods,
        {n: {**p, "status": {"phase": "Running"}} for n, p in pod.items()},
    )
    plan = world.pass_once()
    assert (world.reason, plan.requeue_after_seconds) == ("Finishing", 30)
    world.pods = ended
    world.pass_once()
    assert world.status.variants


def test_the_last_words_of_a_pod_are_not_waited_for_for_ever() -> None:
    world = running()
    world.publishes()
    world.controllers()
    world.pods.clear()
    world.pass_once()
    assert world.reason == "Finishing"
    world.passes(30)
    world.pass_once()
    assert world.reason == "Published"
    assert "the worker's pod is gone" in world.message


def test_the_time_that_a_user_held_a_run_does_not_count() -> None:
    world = running("activeDeadlineSeconds: 1000")
    world.passes(900)
    world.edit("suspend: true")
    world.settle()
    world.passes(10_000)
    world.edit("suspend: false")
    world.settle()
    world.starts()
    plan = world.settle()
    assert (world.reason, plan.requeue_after_seconds) == ("Running", 1000)


def test_events_fit_the_api_and_say_nothing_twice() -> None:
    world = World()
    world.settle()
    world.unschedulable("no node " * 1000)
    plan = world.pass_once()
    assert [event.reason.value for event in plan.events] == ["Unschedulable"]
    assert len(plan.events[0].message.encode()) == 1024
    world.unschedulable("now for another reason")
    assert world.pass_once().events == ()
    assert "another reason" in world.message


def test_a_progress_that_was_reported_is_kept_while_its_pod_runs() -> None:
    world = running()
    assert world.resource
    assert world.status.progress
    assert world.status.progress.stage is Stage.PREFLIGHT
    world.resource["status"]["progress"] = {"stage": "Quantizing", "percent": 42}
    world.pass_once()
    assert world.status.progress
    assert world.status.progress.percent == 42
    world.disrupted()
    world.settle()
    world.passes(10)
    world.settle()
    assert world.status.progress is None
