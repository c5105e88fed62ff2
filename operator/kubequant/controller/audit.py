"""Holds the index against what the API server lists: once at the start, then every few minutes.

At the start it says when all that there is has come through the watches; no pass is made before,
since one that knew a resource and not yet its Job would ask for it again. Later it mends what a
watch never told: objects that went while it was cut off (a new list does not name what is gone),
and changes that a dead watch did not deliver. Only metadata is asked for.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

from kubequant.controller.cluster import (
    JOBS,
    PODS,
    RESOURCES,
    ApiError,
    Kind,
    NotFound,
    Refused,
)
from kubequant.controller.index import own_key, owner_key, version_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from kubequant.controller.cluster import ApiServer, Body
    from kubequant.controller.index import Index, Key, Store
    from kubequant.controller.workqueue import WorkQueue

_LOG: Final = logging.getLogger(__name__)

INTERVAL_SECONDS: Final = 300.0
PATIENCE_SECONDS: Final = 15.0
"""How far a watch may lag behind a list before it counts as dead."""
RIGHTS_SECONDS: Final = 30.0
"""So long rights that are applied with the operator may come after it."""
_LOOK_SECONDS: Final = 0.05
_ASK_AGAIN_SECONDS: Final = 5.0
_LIST_AGAIN_SECONDS: Final = 30.0


class RightsError(Exception):
    """The operator may not list what it is to watch; the text says where, what and the way out."""


@dataclass(frozen=True, slots=True)
class _Listed:
    """One object that a list named."""

    kind: Kind
    key: Key
    uid: str
    name: str
    version: int


@dataclass(slots=True)
class Audit:
    """Compares the index with the server; used by one event loop."""

    index: Index
    queue: WorkQueue[Key]
    server: ApiServer
    namespaces: tuple[str, ...] = ()
    interval_seconds: float = INTERVAL_SECONDS
    patience_seconds: float = PATIENCE_SECONDS
    rights_seconds: float = RIGHTS_SECONDS
    complete: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the index held all that there was at the start."""
    is_deaf: bool = False
    """Whether a watch did not tell of a change that is longer ago than our patience."""
    _stores: Mapping[Kind, tuple[Store[Any], Callable[[Body], Key]]] = field(init=False)

    def __post_init__(self) -> None:
        """Say which part of the index holds which kind, and by what key."""
        index = self.index
        self._stores = {
            RESOURCES: (index.resources, own_key),
            JOBS: (index.jobs, owner_key),
            PODS: (index.pods, owner_key),
        }

    async def until_served(self) -> None:
        """Wait until the server knows our kind and lets us list what we watch.

        Raises:
            RightsError: the server refuses that somewhere, and for longer than it takes to apply
                rights; kopf would end at the first watch that is refused, and say only that.
        """
        loop = asyncio.get_running_loop()
        until = loop.time() + self.rights_seconds
        told = ""
        while True:
            try:
                refused = "; ".join(await self._refused())
                if not refused:
                    return
                if loop.time() >= until:
                    raise RightsError(refused)
                if refused != told:
                    _LOG.warning("%s", refused)
                told = refused
            except NotFound:
                _LOG.warning("the API server knows no QuantizationJob: apply the CRD (crds/)")
            except ApiError as trouble:
                _LOG.warning("QuantizationJobs cannot be listed: %s", trouble.message)
            await asyncio.sleep(_ASK_AGAIN_SECONDS)

    async def _refused(self) -> list[str]:
        """Return a sentence for each namespace in which something may not be listed."""
        found = []
        for namespace in self._namespaces():
            lacking = [kind for kind in self._stores if not await self._may_list(kind, namespace)]
            if lacking:
                found.append(_without_rights(namespace, lacking))
        return found

    async def _may_list(self, kind: Kind, namespace: str) -> bool:
        try:
            async for _ in self.server.listed(kind, namespace):
                break
        except Refused as refused:
            if refused.code != HTTPStatus.FORBIDDEN:
                raise
            return False
        return True

    async def run(self) -> None:
        """Wait until the index is complete, then compare for ever."""
        await self.until_complete()
        while True:
            await asyncio.sleep(self.interval_seconds)
            try:
                await self.compare()
            except ApiError as trouble:
                _LOG.warning("the index could not be compared: %s", trouble.message)

    async def until_complete(self) -> None:
        """Wait until everything that is listed now has come through the watches."""
        while not self.complete.is_set():
            try:
                listed = [one for kind in self._stores for one in await self._list(kind)]
            except ApiError as trouble:
                _LOG.warning("the first list failed: %s", trouble.message)
                await asyncio.sleep(_ASK_AGAIN_SECONDS)
                continue
            # An object that is deleted meanwhile never comes; a new list does not name it.
            if not await self._wait_for(listed, _LIST_AGAIN_SECONDS, is_enough=self._is_known):
                self.complete.set()
                _LOG.info("ready: %d objects", len(listed))

    async def compare(self) -> None:
        """Compare once, and mend what differs."""
        behind: list[_Listed] = []
        for kind, (store, _) in self._stores.items():
            known = list(store.objects())
            listed = await self._list(kind)
            named = {one.uid for one in listed}
            for key, uid in known:
                if uid not in named and store.discard(key, uid):
                    _LOG.info("%s/%s: one of its %s is gone unnoticed", *key, kind.plural)
                    self.queue.add(key)
            behind += [one for one in listed if not self._is_current(one)]
        behind = await self._wait_for(behind, self.patience_seconds, is_enough=self._is_current)
        self.is_deaf = False
        for one in behind:
            await self._mend(one)

    async def _mend(self, one: _Listed) -> None:
        store = self._store(one)
        try:
            body = await self.server.read(one.kind, one.key[0], one.name)
        except NotFound:
            return
        if body["metadata"]["uid"] == one.uid and store.put(one.key, body):
            _LOG.warning("%s/%s: a watch of %s tells nothing", *one.key, one.kind.plural)
            self.is_deaf = True
            self.queue.add(one.key)

    async def _list(self, kind: Kind) -> list[_Listed]:
        _, key_of = self._stores[kind]
        return [
            _Listed(kind, key, item["metadata"]["uid"], item["metadata"]["name"], version_of(item))
            for namespace in self._namespaces()
            async for item in self.server.listed(kind, namespace)
            if (key := key_of(item))[1]
        ]

    async def _wait_for(
        self, wanted: list[_Listed], seconds: float, *, is_enough: Callable[[_Listed], bool]
    ) -> list[_Listed]:
        """Return what of `wanted` is still not there after at most so many seconds."""
        loop = asyncio.get_running_loop()
        until = loop.time() + seconds
        missing = list(wanted)
        while True:
            # Only the last is asked about: to go through all of them each time takes too long.
            while missing and is_enough(missing[-1]):
                missing.pop()
            if not missing or loop.time() >= until:
                return [one for one in missing if not is_enough(one)]
            await asyncio.sleep(_LOOK_SECONDS)

    def _is_known(self, one: _Listed) -> bool:
        return self._store(one).version(one.key, one.uid) is not None

    def _is_current(self, one: _Listed) -> bool:
        version = self._store(one).version(one.key, one.uid)
        return version is not None and version >= one.version

    def _store(self, one: _Listed) -> Store[Any]:
        return self._stores[one.kind][0]

    def _namespaces(self) -> tuple[str, ...]:
        return self.namespaces or ("",)


def _without_rights(namespace: str, lacking: list[Kind]) -> str:
    kinds = ", ".join(kind.plural for kind in lacking)
    if not namespace:
        return (
            f"the operator may not list {kinds} in the whole cluster: apply deploy/install.yaml, "
            "or name the namespaces that it is to watch in KUBEQUANT_OPERATOR_NAMESPACES"
        )
    return (
        f"KUBEQUANT_OPERATOR_NAMESPACES names {namespace}, where the operator may not list {kinds}"
        ": bind the ClusterRole kubequant-operator to its account there, or take the namespace out"
    )
