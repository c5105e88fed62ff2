"""What the watches have told so far: resources, and their Jobs and pods by the resource's name.

Kept small, since everything of a cluster is in it: a resource as the bytes of its JSON, which are
read when it is its turn, Jobs and pods as the few values that a pass looks at. An object that is
older than what is known of it is passed over, so that what the API server answered to a write of
ours, which is put here at once, is not undone by an event that was on its way.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, TypeAlias, TypeVar

from kubequant.controller import names
from kubequant.controller.observe import JobView, PodView, Resource, read_job, read_resource
from kubequant.controller.pods import read_pod

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

Key: TypeAlias = tuple[str, str]
"""A resource's namespace and name."""
View = TypeVar("View")


@dataclass(frozen=True, slots=True)
class Held(Generic[View]):
    """What is known of one object."""

    version: int
    value: View


@dataclass(slots=True)
class Store(Generic[View]):
    """The objects of one kind by key and UID."""

    read: Callable[[Mapping[str, Any]], View]
    _held: dict[Key, dict[str, Held[View]]] = field(default_factory=dict)

    def put(self, key: Key, body: Mapping[str, Any]) -> bool:
        """Keep `body` unless something as new is known; say whether it was news."""
        uid, version = body["metadata"]["uid"], version_of(body)
        known = self._held.get(key, {}).get(uid)
        if known is not None and known.version >= version:
            return False
        self._held.setdefault(key, {})[uid] = Held(version, self.read(body))
        return True

    def discard(self, key: Key, uid: str) -> bool:
        """Forget an object; say whether it was known."""
        there = self._held.get(key, {})
        was_known = there.pop(uid, None) is not None
        if not there:
            self._held.pop(key, None)
        return was_known

    def values(self, key: Key) -> list[View]:
        """Return what is held for a key."""
        return [held.value for held in self._held.get(key, {}).values()]

    def held(self, key: Key) -> Mapping[str, Held[View]]:
        """Return what is held for a key, by UID."""
        return self._held.get(key, {})

    def version(self, key: Key, uid: str) -> int | None:
        """Return the version that is known of an object."""
        held = self._held.get(key, {}).get(uid)
        return held.version if held else None

    def objects(self) -> Iterator[tuple[Key, str]]:
        """Yield the key and UID of everything that is held."""
        for key, there in self._held.items():
            for uid in there:
                yield key, uid


@dataclass(frozen=True, slots=True)
class Known:
    """A resource as the index has it, with the version that a write has to name."""

    resource: Resource
    version: int


@dataclass(frozen=True, slots=True)
class Index:
    """All that the operator knows of the cluster."""

    resources: Store[bytes] = field(default_factory=lambda: Store(_compact))
    jobs: Store[JobView] = field(default_factory=lambda: Store(read_job))
    pods: Store[PodView] = field(default_factory=lambda: Store(read_pod))

    def resource(self, key: Key) -> Known | None:
        """Return the resource of a key; of two with one name, the newer."""
        there = self.resources.held(key).values()
        if not there:
            return None
        held = max(there, key=lambda one: one.version)
        return Known(read_resource(json.loads(held.value)), held.version)


def own_key(body: Mapping[str, Any]) -> Key:
    """Return the key of a QuantizationJob's body."""
    metadata = body["metadata"]
    return metadata.get("namespace", ""), metadata["name"]


def owner_key(body: Mapping[str, Any]) -> Key:
    """Return the key of the resource that a Job or a pod of ours was made for."""
    metadata = body["metadata"]
    name = (metadata.get("labels") or {}).get(names.NAME_LABEL, "")
    return metadata.get("namespace", ""), name


def version_of(body: Mapping[str, Any]) -> int:
    """Return an object's version as a number.

    API servers have always counted upwards, and since Kubernetes 1.35 that may be relied on.
    """
    version = body["metadata"].get("resourceVersion", "")
    return int(version) if version.isdigit() else 0


def _compact(body: Mapping[str, Any]) -> bytes:
    metadata = {
        name: value
        for name, value in body["metadata"].items()
        if name not in {"managedFields", "annotations"}
    }
    return json.dumps({**body, "metadata": metadata}, separators=(",", ":")).encode()
