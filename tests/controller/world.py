"""A small world: an API server's objects, the Job controller, a kubelet, a queue and people.

It does what Kubernetes documents, as far as one-pod Jobs go: foreground deletion, the Job's own
podFailurePolicy read off its body, podReplacementPolicy Failed. Time passes only where a test says.
Every pass checks that it is idempotent: what it asked for done, deciding again asks for nothing.
"""

from __future__ import annotations

import copy
import json
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from tests.api.table import flow, merged
from tests.controller.builders import SETTINGS, START, at, failed, published, resource_body

from kubequant.controller.decide import decide
from kubequant.controller.events import newest_words
from kubequant.controller.manifest import as_body
from kubequant.controller.names import CONTAINER, QUEUE_NAME_LABEL, job_name
from kubequant.controller.observe import (
    Rejection,
    observe,
    read_job,
    read_pod,
    read_resource,
)
from kubequant.controller.plan import Action, CreateJob, DeleteJob, DeleteResource, Plan

if TYPE_CHECKING:
    from kubequant.api.outcome import ExitCode, FailureReason
    from kubequant.api.status import Condition, QuantizationJobStatus
    from kubequant.controller.settings import Settings

Body = dict[str, Any]
PAUSE = timedelta(seconds=10)
"""What the Job controller waits at least after a pod has ended."""


class World:
    """One QuantizationJob and all that is in its namespace."""

    def __init__(
        self,
        spec: str = "",
        *,
        settings: Settings = SETTINGS,
        labels: dict[str, str] | None = None,
        name: str = "tiny",
    ) -> None:
        self.resource: Body | None = resource_body(spec, labels=labels, name=name)
        self.settings = settings
        self.jobs: dict[str, Body] = {}
        self.pods: dict[str, Body] = {}
        self.now = START
        self.rejection: Rejection | None = None
        self.pod_rejection = ""
        """Why the server takes no pod; the Job controller posts it, with the pod's name."""
        self.said: list[Body] = []
        """Events of others than the operator."""
        self.questions = 0
        self.queue_is_full = True
        self.default_queue = ""
        self.events: list[str] = []
        self.created: list[str] = []
        self.status_writes = 0
        self.seen: tuple[dict[str, Body], dict[str, Body]] = ({}, {})
        self.ended: dict[str, datetime] = {}
        self.held: set[str] = set()
        self._made = 0

    # The operator.

    def decide(self, rejection: Rejection | None = None, *, late: bool = False) -> Plan:
        assert self.resource is not None
        resource = read_resource(copy.deepcopy(self.resource))
        known = self.seen if late else (self.jobs, self.pods)
        jobs = [read_job(body) for body in known[0].values()]
        pods = [read_pod(body) for body in known[1].values()]
        observed = observe(resource, jobs, pods, rejection=rejection)
        plan = decide(resource, observed, now=self.now, settings=self.settings)
        if plan.question is None:
            return plan
        assert plan == Plan(question=plan.question), "what is asked first is asked before all else"
        self.questions += 1
        said = newest_words(self.events_about(plan.question.uid), plan.question)
        observed = observe(resource, jobs, pods, rejection=rejection, last_event=said)
        return decide(resource, observed, now=self.now, settings=self.settings)

    def pass_once(self) -> Plan:
        """Decide, carry the plan out, and hold that deciding again asks for nothing."""
        if self.resource is None:
            return Plan()
        plan = self.decide()
        rejection = None
        if self.rejection and any(isinstance(action, CreateJob) for action in plan.actions):
            rejection = self.rejection
            plan = self.decide(rejection)
        self._carry_out(plan)
        self.seen = copy.deepcopy((self.jobs, self.pods))
        if self.resource is not None:
            again = self.decide(rejection)
            assert again.actions == ()
            if not any(isinstance(action, DeleteResource) for action in again.afterwards):
                # What has been over for long is deleted in the pass after the one that says so.
                assert again.afterwards == ()
                assert again.events == ()
            if plan.status is not None and again.status is not None:
                assert again.status == plan.status
        return plan

    def pass_cut_short(self) -> None:
        """Decide, and be killed, or refused by the server, before the status is written."""
        if self.resource is not None:
            self._act(self.decide().actions)

    def pass_cut_at_its_end(self) -> None:
        """Decide, and be killed once the status is written and before anything else."""
        if self.resource is not None:
            plan = self.decide()
            self._act(plan.actions)
            self._write(plan)

    def pass_late(self) -> None:
        """Decide on Jobs and pods as they were after the pass before, as a slow watch has them."""
        if self.resource is not None:
            self._carry_out(self.decide(late=True))

    def _carry_out(self, plan: Plan) -> None:
        self._act(plan.actions)
        self._write(plan)
        self.events += [event.reason.value for event in plan.events]
        self._act(plan.afterwards)

    def _act(self, actions: tuple[Action, ...]) -> None:
        for action in actions:
            resource = self.resource
            assert resource is not None
            if isinstance(action, CreateJob):
                self.create(as_body(action.manifest))
            elif isinstance(action, DeleteJob):
                job = self.jobs.get(action.name)
                if job is not None and job["metadata"]["uid"] == action.uid:
                    self.delete_job(action.name)
            else:
                assert isinstance(action, DeleteResource)
                assert resource["metadata"]["uid"] == action.uid
                self.delete_resource()
                self.events.append(action.event.reason.value)

    def _write(self, plan: Plan) -> None:
        resource = self.resource
        if plan.status is not None and resource is not None:
            value = json.loads(json.dumps(plan.status.to_json()))
            if resource.get("status") != value:
                self.status_writes += 1
                resource["status"] = value

    def create(self, body: Body) -> None:
        """Take a Job, as the API server does."""
        name = body["metadata"]["name"]
        if name in self.jobs:
            return
        self.created.append(name)
        if self.default_queue:
            # Kueue's webhook gives a Job without a queue the namespace's default.
            body["metadata"]["labels"].setdefault(QUEUE_NAME_LABEL, self.default_queue)
        body["metadata"] |= {"uid": self._uid("job"), "creationTimestamp": at(self.now)}
        body["status"] = {}
        self.jobs[name] = body

    def _uid(self, kind: str) -> str:
        self._made += 1
        return f"{kind}-{self._made}"

    # The Job controller and the garbage collector.

    def controllers(self) -> bool:
        """Let the controllers do all they have to; say whether anything changed."""
        before = json.dumps([self.jobs, self.pods], sort_keys=True)
        for name in list(self.jobs):
            self._control(name)
        return json.dumps([self.jobs, self.pods], sort_keys=True) != before

    def _control(self, name: str) -> None:
        job = self.jobs[name]
        own = self._pods_of(job)
        if "deletionTimestamp" in job["metadata"]:
            for pod in own:
                del self.pods[pod["metadata"]["name"]]
            del self.jobs[name]
            return
        is_over = any(c["status"] == "True" for c in job["status"].get("conditions", ()))
        if is_over or not job["metadata"]["ownerReferences"]:
            return
        if QUEUE_NAME_LABEL in job["metadata"].get("labels", {}):
            # Kueue's webhook does this while the Job is created.
            job["spec"].setdefault("suspend", self.queue_is_full)
        if job["spec"].get("suspend"):
            # A queue clears it; the Job controller writes it anew only once the Job is let go.
            if QUEUE_NAME_LABEL in job["metadata"].get("labels", {}):
                job["status"].pop("startTime", None)
            self.held.add(name)
            for pod in own:
                if pod["status"]["phase"] not in {"Succeeded", "Failed"}:
                    del self.pods[pod["metadata"]["name"]]
            return
        if name in self.held:
            self.held.discard(name)
            job["status"]["startTime"] = at(self.now)
        job["status"].setdefault("startTime", at(self.now))
        self._count(job, own)

    def _count(self, job: Body, own: list[Body]) -> None:
        if any(pod["status"]["phase"] == "Succeeded" for pod in own):
            self._end_job(job, "Complete", "CompletionsReached", "")
            job["status"]["completionTime"] = at(self.now)
            return
        said = [_policy(job, pod) for pod in own if pod["status"]["phase"] == "Failed"]
        counted = sum(action == "Count" for action, _ in said)
        ended = [why for action, why in said if action == "FailJob"]
        if counted:
            job["status"]["failed"] = counted
        if ended:
            self._end_job(job, "Failed", "PodFailurePolicy", ended[0])
        elif counted > job["spec"]["backoffLimit"]:
            reason = "BackoffLimitExceeded"
            self._end_job(job, "Failed", reason, "Job has reached the specified backoff limit")
        elif self._may_start(own):
            self._new_pod(job)

    def _may_start(self, pods: list[Body]) -> bool:
        """Say whether no pod is alive and the pause after a failure is over."""
        for pod in pods:
            if pod["status"]["phase"] in {"Pending", "Running"}:
                return False
        name = pods[-1]["metadata"]["name"] if pods else ""
        return name not in self.ended or self.ended[name] + PAUSE <= self.now

    def _end_job(self, job: Body, kind: str, reason: str, message: str) -> None:
        condition = {
            "type": kind,
            "status": "True",
            "reason": reason,
            "message": message,
            "lastTransitionTime": at(self.now),
        }
        job["status"].setdefault("conditions", []).append(condition)

    def event(self, about: Body, reason: str, note: str) -> None:
        """Let somebody post an event about an object, as an API server keeps it."""
        self.said.append(
            {
                "metadata": {"creationTimestamp": at(self.now)},
                "regarding": {"uid": about["metadata"]["uid"]},
                "reason": reason,
                "note": note,
                "deprecatedLastTimestamp": at(self.now),
            }
        )

    def events_about(self, uid: str) -> list[Body]:
        return [event for event in self.said if event["regarding"]["uid"] == uid]

    def _new_pod(self, job: Body) -> None:
        if self.pod_rejection:
            name = f"{job['metadata']['name']}-{len(self.said):05d}"
            words = f'Error creating: pods "{name}" is forbidden: {self.pod_rejection}'
            self.event(job, "FailedCreate", words)
            return
        template = copy.deepcopy(job["spec"]["template"])
        uid = self._uid("pod")
        name = f"{job['metadata']['name']}-{uid[4:]}"
        owner = {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "name": job["metadata"]["name"],
            "uid": job["metadata"]["uid"],
            "controller": True,
        }
        template["metadata"] |= {
            "name": name,
            "uid": uid,
            "creationTimestamp": at(self.now),
            "ownerReferences": [owner],
        }
        self.pods[name] = {**template, "status": {"phase": "Pending"}}

    def _pods_of(self, job: Body) -> list[Body]:
        uid = job["metadata"]["uid"]
        return [
            pod for pod in self.pods.values() if pod["metadata"]["ownerReferences"][0]["uid"] == uid
        ]

    # The kubelet and the scheduler, on the youngest pod that has not ended.

    @property
    def pod(self) -> Body | None:
        alive = [p for p in self.pods.values() if p["status"]["phase"] in {"Pending", "Running"}]
        return alive[-1] if alive else None

    def unschedulable(
        self, message: str = "0/3 nodes are available: 3 Insufficient memory."
    ) -> None:
        if self.pod and self.pod["status"]["phase"] == "Pending":
            self.pod["status"]["conditions"] = [
                {
                    "type": "PodScheduled",
                    "status": "False",
                    "reason": "Unschedulable",
                    "message": message,
                }
            ]

    def waiting(self, reason: str, message: str = "") -> None:
        if self.pod and self.pod["status"]["phase"] == "Pending":
            self.pod["spec"]["nodeName"] = "node-1"
            self.pod["status"] = {
                "phase": "Pending",
                **_container({"waiting": {"reason": reason, "message": message}}),
            }

    def starts(self) -> None:
        if self.pod and self.pod["status"]["phase"] == "Pending":
            self.pod["spec"]["nodeName"] = "node-1"
            state = {"running": {"startedAt": at(self.now)}}
            self.pod["status"] = {"phase": "Running", **_container(state)}

    def ends(
        self,
        code: int,
        message: str = "",
        *,
        reason: str = "Error",
        status: Body | None = None,
    ) -> None:
        """End the worker's container with an exit code, a termination message and a reason."""
        pod = self.pod
        if pod is None:
            return
        self.starts()
        state = pod["status"]["containerStatuses"][0]["state"]
        # A worker that has ended beside another container has: only the pod ends.
        ended = state.get("terminated") or {
            "exitCode": code,
            "reason": "Completed" if code == 0 else reason,
            "message": message,
            "startedAt": state["running"]["startedAt"],
            "finishedAt": at(self.now),
        }
        phase = "Succeeded" if code == 0 else "Failed"
        pod["status"] = {"phase": phase, **_container({"terminated": ended}), **(status or {})}
        self.ended[pod["metadata"]["name"]] = self.now

    def worker_ends(self, code: int, message: str = "", *, beside: str = "istio-proxy") -> None:
        """End the worker's container; another of the pod's, that somebody injected, goes on."""
        pod = self.pod
        if pod is None or pod["status"]["phase"] != "Running":
            return
        self.ends(code, message)
        (worker,) = pod["status"]["containerStatuses"]
        running = {**worker, "name": beside, "state": {"running": {"startedAt": at(self.now)}}}
        pod["status"] = {"phase": "Running", "containerStatuses": [worker, running]}
        del self.ended[pod["metadata"]["name"]]

    def being_deleted(self, *, by: str = "", grace: int = 30) -> None:
        """Delete the pod; its node, which alone could say that it has ended, does not answer."""
        pod = self.pod
        if pod is None:
            return
        gone_by = at(self.now + timedelta(seconds=grace))
        pod["metadata"].setdefault("deletionTimestamp", gone_by)
        if by:
            words = f"{by}: deleting"
            condition = {"type": "DisruptionTarget", "status": "True"}
            pod["status"]["conditions"] = [{**condition, "reason": by, "message": words}]

    def publishes(self, **changes: Any) -> None:
        self.ends(0, published(self.digest, **changes))

    def fails(
        self, code: ExitCode, reason: FailureReason, message: str = "It did not work."
    ) -> None:
        self.ends(int(code), failed(self.digest, code, reason, message))

    def oom_killed(self) -> None:
        self.ends(137, reason="OOMKilled")

    def disrupted(self, reason: str = "EvictionByEvictionAPI") -> None:
        condition = {
            "type": "DisruptionTarget",
            "status": "True",
            "reason": reason,
            "message": "Eviction API: evicting",
        }
        self.ends(137, status={"conditions": [condition]})

    def evicted_for_disk(self) -> None:
        words = 'Usage of EmptyDir volume "scratch" exceeds the limit "1Gi".'
        self.ends(137, status={"reason": "Evicted", "message": words})

    # People.

    @property
    def digest(self) -> str:
        """The digest of the run that the youngest Job is for."""
        return list(self.jobs)[-1][-8:] if self.jobs else "00000000"

    def edit(self, spec: str) -> None:
        """Lay `spec` over the resource's spec, as an apply does."""
        if self.resource is None:
            return
        changed = merged(self.resource["spec"], flow(spec))
        if changed != self.resource["spec"]:
            self.resource["spec"] = changed
            self.resource["metadata"]["generation"] += 1

    def delete_job(self, name: str) -> None:
        self.jobs[name]["metadata"].setdefault("deletionTimestamp", at(self.now))

    def delete_resource(self) -> None:
        """Delete the resource; the garbage collector takes what it owned."""
        assert self.resource is not None
        uid = self.resource["metadata"]["uid"]
        self.resource = None
        for name, job in self.jobs.items():
            if job["metadata"]["ownerReferences"][0]["uid"] == uid:
                self.delete_job(name)

    def strangers_job(self, owner: Body | None = None) -> None:
        """Let somebody else create a Job of the run's name."""
        assert self.resource is not None
        name = job_name(self.resource["metadata"]["name"], self.status_or_new_digest())
        self.jobs[name] = {
            "metadata": {
                "name": name,
                "uid": self._uid("job"),
                "creationTimestamp": at(self.now),
                "ownerReferences": [owner] if owner else [],
            },
            "spec": {"suspend": True, "template": {"spec": {"containers": []}}},
            "status": {},
        }

    def status_or_new_digest(self) -> str:
        """Return the digest that the present spec has."""
        status = self.decide().status
        assert status is not None
        assert status.run is not None
        return status.run.digest

    def passes(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)

    # What a test asks.

    @property
    def status(self) -> QuantizationJobStatus:
        assert self.resource is not None
        status = read_resource(self.resource).status
        assert status is not None
        return status

    @property
    def true(self) -> dict[str, Condition]:
        return {c.type.value: c for c in self.status.conditions if c.status == "True"}

    @property
    def reason(self) -> str:
        return self.status.conditions[0].reason

    @property
    def message(self) -> str:
        """What the Ready condition says, which has the verdict's sentence always."""
        return next(c.message for c in self.status.conditions if c.type.value == "Ready")

    def settle(self, rounds: int = 12) -> Plan:
        """Let operator and controllers go on until nothing changes any more."""
        for _ in range(rounds):
            before = self.status_writes
            plan = self.pass_once()
            changed = self.controllers()
            acted = plan.actions or plan.afterwards
            if not acted and not changed and self.status_writes == before:
                return plan
        raise AssertionError("the world does not settle")


def _container(state: Body) -> Body:
    status = {
        "name": CONTAINER,
        "image": "an-image",
        "imageID": "",
        "ready": False,
        "restartCount": 0,
        "state": state,
    }
    return {"containerStatuses": [status]}


def _policy(job: Body, pod: Body) -> tuple[str, str]:
    """Return what the Job's podFailurePolicy says of a failed pod: the first rule that matches."""
    containers = pod["status"].get("containerStatuses", ())
    codes = {c["name"]: c["state"]["terminated"]["exitCode"] for c in containers}
    conditions = {(c["type"], c["status"]) for c in pod["status"].get("conditions", ())}
    for index, rule in enumerate(job["spec"]["podFailurePolicy"]["rules"]):
        wanted = {(c["type"], c["status"]) for c in rule.get("onPodConditions", ())}
        if wanted & conditions:
            return rule["action"], ""
        exits = rule.get("onExitCodes")
        if exits and codes.get(exits["containerName"]) in exits["values"]:
            code = codes[exits["containerName"]]
            words = f"Container worker for pod models/p failed with exit code {code} matching"
            return rule["action"], f"{words} {rule['action']} rule at index {index}"
    return "Count", ""
