"""What kopf calls: every event of a watch goes into the index, and its resource into the queue.

Nothing else happens here. kopf's `on.event` is all that is used of it: handlers of changes keep
state in annotations and put a finalizer on every object. What a watch never told, because it was
cut off meanwhile, `audit` finds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import kopf

from kubequant.api.resource import API_GROUP, PLURAL, VERSION
from kubequant.controller import names
from kubequant.controller.index import own_key, owner_key

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kubernetes.aio.client import Configuration

    from kubequant.controller.index import Index, Key, Store
    from kubequant.controller.workqueue import WorkQueue

_SERVER_TIMEOUT_SECONDS: Final = 600
_PAGE: Final = 200
_IDLE_SECONDS: Final = 0.1
"""kopf keeps a task for each object for so long after its last event."""


@dataclass(frozen=True, slots=True)
class Watches:
    """Where events go."""

    index: Index
    queue: WorkQueue[Key]

    def saw(self, store: Store[Any], key: Key, event: Mapping[str, Any]) -> None:
        """Take one event of an object: what is known already wakes nobody."""
        body = event["object"]
        if not key[1]:
            return
        if event["type"] == "DELETED":
            is_news = store.discard(key, body["metadata"]["uid"])
        else:
            is_news = store.put(key, body)
        if is_news:
            self.queue.add(key)

    def registry(self) -> kopf.OperatorRegistry:
        """Return kopf's registry with our three handlers."""
        registry = kopf.OperatorRegistry()

        @kopf.on.event(API_GROUP, VERSION, PLURAL, registry=registry)
        async def resource(event: kopf.RawEvent, **_: Any) -> None:
            self.saw(self.index.resources, own_key(event["object"]), event)

        @kopf.on.event("batch", "v1", "jobs", registry=registry)
        async def job(event: kopf.RawEvent, **_: Any) -> None:
            self.saw(self.index.jobs, owner_key(event["object"]), event)

        @kopf.on.event("", "v1", "pods", registry=registry)
        async def pod(event: kopf.RawEvent, **_: Any) -> None:
            self.saw(self.index.pods, owner_key(event["object"]), event)

        return registry


class _NoEssence(kopf.DiffBaseStorage):
    """What kopf compares bodies by: nothing. It would copy every body of every event for it."""

    def build(self, **_: Any) -> kopf.BodyEssence:
        """Return an essence in which no two bodies differ."""
        return kopf.BodyEssence()

    def fetch(self, *, body: kopf.Body) -> kopf.BodyEssence | None:
        """Return nothing: nothing is stored."""

    def store(self, *, body: kopf.Body, patch: kopf.Patch, essence: kopf.BodyEssence) -> None:
        """Store nothing."""


def kopf_settings() -> kopf.OperatorSettings:
    """Return how kopf is to watch."""
    settings = kopf.OperatorSettings()
    settings.posting.enabled = False
    settings.scanning.disabled = True
    settings.peering.standalone = True
    # A watch that dies without a word is opened again: kopf by itself reconnects where not even a
    # bookmark came for 70 seconds.
    settings.watching.server_timeout = _SERVER_TIMEOUT_SECONDS
    settings.watching.client_timeout = _SERVER_TIMEOUT_SECONDS + 60
    settings.watching.chunk_size = _PAGE
    settings.watching.label_selectors["batch", "v1", "jobs"] = names.SELECTOR
    settings.watching.label_selectors["", "v1", "pods"] = names.SELECTOR
    settings.queueing.idle_timeout = _IDLE_SECONDS
    settings.persistence.diffbase_storage = _NoEssence()
    return settings


async def connection(configuration: Configuration) -> kopf.ConnectionInfo:
    """Return the connection of our own client in kopf's words."""
    token = await configuration.get_api_key_with_prefix("BearerToken") or ""
    return kopf.ConnectionInfo(
        server=configuration.host,
        ca_path=configuration.ssl_ca_cert,
        insecure=not configuration.verify_ssl,
        scheme="Bearer" if token else None,
        # Of a kubeconfig it reads "Bearer ...", of a pod's service account "bearer ...".
        token=token.rpartition(" ")[2] or None,
        certificate_path=configuration.cert_file,
        private_key_path=configuration.key_file,
    )
