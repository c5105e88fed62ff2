"""Every call that the operator makes to the API server itself; what it watches goes through kopf.

Bodies go in and come out as JSON values: `observe` reads them. Nothing is decided here. A write
says what it needs to be true (a UID, a version), and the server's "no" is one of a few errors:

    ApiError
    ├── Unavailable     the server cannot answer now; the same call may go through later
    ├── Conflict        something changed since it was read
    ├── AlreadyExists   an object of that name is there
    ├── NotFound
    └── Refused         the server will not have it: its code and its words
"""

from __future__ import annotations

import json
import secrets
import socket
from contextlib import asynccontextmanager
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

import aiohttp
from kubernetes.aio import config
from kubernetes.aio.client import ApiClient, Configuration

from kubequant.api.resource import API_GROUP, API_VERSION, KIND, PLURAL
from kubequant.controller import names

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping
    from datetime import datetime

    from kubequant.api.status import QuantizationJobStatus
    from kubequant.controller.observe import Resource
    from kubequant.controller.plan import PostEvent, Question

Body = dict[str, Any]

FIELD_MANAGER: Final = "kubequant-operator"
CONTROLLER: Final = f"{API_GROUP}/operator"
_TIMEOUT: Final = aiohttp.ClientTimeout(total=30)
_PAGE: Final = 500
_METADATA_ONLY: Final = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of object that the operator watches."""

    group_version: str
    plural: str
    selector: str = ""

    def path(self, namespace: str = "") -> str:
        """Return the path of its objects, of all namespaces where none is named."""
        root = "/api/v1" if self.group_version == "v1" else f"/apis/{self.group_version}"
        return (
            f"{root}/namespaces/{namespace}/{self.plural}"
            if namespace
            else (f"{root}/{self.plural}")
        )


RESOURCES: Final = Kind(API_VERSION, PLURAL)
JOBS: Final = Kind("batch/v1", "jobs", names.SELECTOR)
PODS: Final = Kind("v1", "pods", names.SELECTOR)
_EVENTS: Final = Kind("events.k8s.io/v1", "events")


class ApiError(Exception):
    """The API server did not do what it was asked for."""

    def __init__(self, code: int, reason: str, message: str, *, is_said: bool = False) -> None:
        """Keep the HTTP status, Kubernetes' word for it, the sentence, and whether it is its own.

        What stands before an API server, such as a load balancer, answers without a Status.
        """
        super().__init__(message)
        self.is_said = is_said
        self.code = code
        self.reason = reason
        self.message = message


class Unavailable(ApiError):  # noqa: N818 - the API's own word, as Kubernetes spells it
    """The server cannot be reached, is overloaded or is starting."""


class Conflict(ApiError):  # noqa: N818 - as above
    """The object changed since it was read, or is another one by now."""


class AlreadyExists(ApiError):  # noqa: N818 - as above
    """There is an object of that name."""


class NotFound(ApiError):  # noqa: N818 - as above
    """There is no such object, or no such kind."""


class Refused(ApiError):  # noqa: N818 - as above
    """The server will not have it."""


_BUSY: Final = frozenset({HTTPStatus.UNAUTHORIZED, HTTPStatus.TOO_MANY_REQUESTS})
"""What passes by itself: a token that was just replaced, and a server that asks for patience."""


@dataclass(frozen=True, slots=True)
class ApiServer:
    """An API server, reached with the rights of the operator's own account."""

    client: ApiClient

    async def create_job(self, namespace: str, job: Body) -> Body:
        """Create a Job and return it as the server has it."""
        return await self._call("POST", JOBS.path(namespace), job)

    async def read_job(self, namespace: str, name: str) -> Body:
        """Return a Job, whoever it belongs to."""
        return await self._call("GET", f"{JOBS.path(namespace)}/{name}")

    async def delete_job(self, namespace: str, name: str, uid: str) -> Body:
        """Delete the Job of that UID; it stays until its pods are gone."""
        options = _delete_options(uid, "Foreground")
        return await self._call("DELETE", f"{JOBS.path(namespace)}/{name}", options)

    async def delete_resource(self, namespace: str, name: str, uid: str) -> Body:
        """Delete the QuantizationJob of that UID; its Jobs follow."""
        options = _delete_options(uid, "Background")
        return await self._call("DELETE", f"{RESOURCES.path(namespace)}/{name}", options)

    async def write_status(
        self, resource: Resource, version: int, status: QuantizationJobStatus
    ) -> Body:
        """Write the whole status of the resource if it is still the version that was read.

        Of what is not the status the server takes nothing.
        """
        metadata = {
            "name": resource.name,
            "namespace": resource.namespace,
            "uid": resource.uid,
            "resourceVersion": str(version),
        }
        body = {
            "apiVersion": API_VERSION,
            "kind": KIND,
            "metadata": metadata,
            "status": status.to_json(),
        }
        path = f"{RESOURCES.path(resource.namespace)}/{resource.name}/status"
        return await self._call("PUT", path, body, query={"fieldManager": FIELD_MANAGER})

    async def post_event(self, resource: Resource, event: PostEvent, now: datetime) -> None:
        """Post an event about the resource."""
        body = {
            "apiVersion": _EVENTS.group_version,
            "kind": "Event",
            "metadata": {
                "name": f"{resource.name}.{secrets.token_hex(8)}",
                "namespace": resource.namespace,
            },
            "eventTime": now.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
            "reportingController": CONTROLLER,
            "reportingInstance": socket.gethostname()[:128],
            "action": "Reconcile",
            "type": event.type.value,
            "reason": event.reason.value,
            "note": event.message,
            "regarding": {
                "apiVersion": API_VERSION,
                "kind": KIND,
                "name": resource.name,
                "namespace": resource.namespace,
                "uid": resource.uid,
            },
        }
        await self._call("POST", _EVENTS.path(resource.namespace), body)

    async def events_about(self, namespace: str, question: Question) -> list[Body]:
        """Return the events about one object, which may be a few dozen."""
        wanted = {"regarding.uid": question.uid, "reason": question.reason}
        selector = ",".join(f"{name}={value}" for name, value in wanted.items() if value)
        query = {"fieldSelector": selector, "limit": str(_PAGE)}
        found = await self._call("GET", _EVENTS.path(namespace), query=query)
        return list(found["items"] or ())

    async def listed(self, kind: Kind, namespace: str = "") -> AsyncIterator[Body]:
        """Yield the metadata of every object of a kind, page by page."""
        query = {"limit": str(_PAGE), "labelSelector": kind.selector}
        query = {name: value for name, value in query.items() if value}
        while True:
            page = await self._call("GET", kind.path(namespace), query=query, accept=_METADATA_ONLY)
            for item in page["items"] or ():  # null where there is none
                yield item
            following = page["metadata"].get("continue")
            if not following:
                return
            query["continue"] = following

    async def read(self, kind: Kind, namespace: str, name: str) -> Body:
        """Return an object."""
        return await self._call("GET", f"{kind.path(namespace)}/{name}")

    async def _call(
        self,
        method: str,
        path: str,
        body: Body | None = None,
        *,
        query: Mapping[str, str] | None = None,
        accept: str = "application/json",
    ) -> Body:
        client = self.client
        try:
            method, url, headers, content, _ = await client.param_serialize(
                method,
                path,
                query_params=list((query or {}).items()),
                header_params={"Accept": accept},
                body=body,
                auth_settings=["BearerToken"],
            )
            answer = await client.call_api(method, url, headers, content, _request_timeout=_TIMEOUT)
            text: bytes = await answer.response.read()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            words = str(error) or type(error).__name__
            raise Unavailable(0, "Unreachable", f"the API server cannot be reached: {words}") from (
                error
            )
        value = _decoded(text)
        if answer.status < HTTPStatus.BAD_REQUEST:
            return value
        raise _error(answer.status, value, text)


@asynccontextmanager
async def api_server(connections: int, kubeconfig: str | None = None) -> AsyncIterator[ApiServer]:
    """Connect with the pod's service account, or outside of a cluster with a kubeconfig.

    Without a file's name it is the one of KUBECONFIG, as kubectl takes it.

    Raises:
        kubernetes.aio.config.ConfigException: there is neither.
    """
    configuration = await _configuration(kubeconfig)
    configuration.connection_pool_maxsize = connections
    async with ApiClient(configuration) as client:
        client.user_agent = FIELD_MANAGER
        yield ApiServer(client)


async def _configuration(kubeconfig: str | None) -> Configuration:
    configuration = Configuration()
    try:
        config.load_incluster_config(client_configuration=configuration)  # type: ignore[no-untyped-call]
    except config.ConfigException:
        await config.load_kube_config(kubeconfig, client_configuration=configuration)  # type: ignore[no-untyped-call]
    return configuration


def _delete_options(uid: str, propagation: str) -> Body:
    return {
        "apiVersion": "v1",
        "kind": "DeleteOptions",
        "preconditions": {"uid": uid},
        "propagationPolicy": propagation,
    }


def _decoded(text: bytes) -> Body:
    try:
        value = json.loads(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _error(code: int, value: Body, text: bytes) -> ApiError:
    reason = str(value.get("reason") or HTTPStatus(code).phrase)
    message = str(value.get("message") or text[:500].decode(errors="replace"))
    if code >= HTTPStatus.INTERNAL_SERVER_ERROR or code in _BUSY:
        is_said = value.get("kind") == "Status" and bool(value.get("message"))
        return Unavailable(code, reason, message, is_said=is_said)
    if code == HTTPStatus.CONFLICT:
        kind = AlreadyExists if reason == "AlreadyExists" else Conflict
        return kind(code, reason, message)
    return (NotFound if code == HTTPStatus.NOT_FOUND else Refused)(code, reason, message)
