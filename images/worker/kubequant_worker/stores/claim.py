"""The claim: which of several publishers of one digest may write now.

It is one small object that names its owner and the tokens (see `backend`) that the owner may place.
A publisher may place only a token that stood in the claim when the claim was last renewed, and
renewing fails once somebody else has written the claim. So whoever takes the claim over reads there
every token that could still become visible, discards them, and from then on the former owner can
change nothing, though it may be asleep between any two of its instructions.

When a claim counts as dead decides only how soon another may try, never whether a manifest is true.
"""

from __future__ import annotations

import logging
import os
import secrets
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, ValidationError

from kubequant.api.outcome import FailureReason
from kubequant_worker.errors import UnavailableError, WorkerError
from kubequant_worker.stores.backend import Backend, ConflictError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

CLAIM_NAME = ".claim"
_log = logging.getLogger(__name__)

Tokens = tuple[tuple[str, str], ...]


class ClaimLostError(Exception):
    """Somebody else holds the claim now."""


@dataclass(frozen=True, slots=True)
class Timing:
    """After how long a silent claim counts as dead, and how often its owner renews it."""

    stale_seconds: float = 120.0
    renew_seconds: float = 20.0
    poll_seconds: float = 2.0


class ClaimRecord(BaseModel):
    """What stands in the claim.

    `staged` holds (name, token) pairs, `inherited` those of dead owners.
    """

    model_config = ConfigDict(frozen=True)

    owner: str
    serial: int = 0
    released: bool = False
    process: str = ""
    staged: Tokens = ()
    inherited: Tokens = ()


def boot_seconds() -> float:
    """Return seconds that count on while the machine sleeps, as a lease must."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def process_mark() -> str:
    """Return what identifies this process on this boot of this machine; "" without /proc."""
    return _mark_of(os.getpid())


def _mark_of(pid: int) -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        namespace = Path("/proc/self/ns/pid").readlink()
        # The command, which may hold blanks, ends at the last parenthesis; the start time is the
        # 20th field after it.
        fields = (
            Path(f"/proc/{pid}/stat")
            .read_text(encoding="ascii", errors="replace")
            .rpartition(")")[2]
            .split()
        )
    except OSError:
        return ""
    return f"{boot}/{namespace}/{pid}/{fields[19]}"


def died_here(mark: str) -> bool:
    """Say whether `mark` is of a process of this boot and PID namespace that no longer exists."""
    place, _, rest = mark.partition("]/")
    pid = rest.partition("/")[0]
    own_place = process_mark().partition("]/")[0]
    return bool(own_place) and place == own_place and pid.isdigit() and _mark_of(int(pid)) != mark


class Claim:
    """The claim of this run, held."""

    def __init__(self, backend: Backend, record: ClaimRecord, tag: str, timing: Timing) -> None:
        """Hold `record`, which the store has under `tag`; see `acquire`."""
        self._backend = backend
        self._record = record
        self._tag = tag
        self._timing = timing
        self._renewed_at = boot_seconds()
        self._lost = False
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="claim", daemon=True)

    @property
    def lost(self) -> bool:
        """Whether somebody else is known to have taken the claim."""
        return self._lost

    def start(self) -> None:
        """Renew the claim from a thread of its own until `release`."""
        self._thread.start()

    def renew(self, staged: Iterable[tuple[str, str]] | None = None) -> None:
        """Write the claim anew, with `staged` as the tokens that may be placed.

        Raises ClaimLostError.
        """
        with self._lock:
            tokens = self._record.staged if staged is None else tuple(staged)
            self._write(self._record.model_copy(update={"staged": tokens, "inherited": ()}))

    def confirm(self) -> None:
        """Renew the claim unless that was done a moment ago.

        Called just before every visible change.
        """
        with self._lock:
            fresh = boot_seconds() - self._renewed_at < self._timing.stale_seconds / 4
        if not fresh:
            self.renew()
        elif self._lost:
            raise ClaimLostError

    def release(self, *, remove: bool) -> None:
        """Give the claim up: deleted where `remove`, else marked as free.

        Never raises for the world's trouble.
        """
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join(timeout=5)
        if self._lost:
            return
        try:
            with self._lock:
                self._write(self._record.model_copy(update={"released": True, "staged": ()}))
            if remove:
                self._backend.remove(CLAIM_NAME, self._tag)
        except (ClaimLostError, WorkerError) as error:
            _log.warning("the claim could not be released and will expire by itself: %s", error)

    def _write(self, record: ClaimRecord) -> None:
        """Replace the stored record.

        A lost answer to our own write is told from somebody else's by the owner.
        """
        if self._lost:
            raise ClaimLostError
        record = record.model_copy(update={"serial": self._record.serial + 1})
        started = boot_seconds()
        try:
            self._tag = self._backend.replace(CLAIM_NAME, _encode(record), self._tag)
        except ConflictError as error:
            stored = self._backend.read(CLAIM_NAME)
            if stored is None or _decode(stored.body) != record:
                self._lost = True
                raise ClaimLostError from error
            self._tag = stored.tag
        self._record = record
        self._renewed_at = started

    def _keep(self) -> None:
        while not self._stop.wait(self._timing.renew_seconds):
            try:
                self.renew()
            except ClaimLostError:
                _log.warning("another publisher has taken the claim on %s", self._backend.uri)
                return
            except WorkerError as error:
                _log.warning("the claim could not be renewed yet: %s", error)


def acquire(backend: Backend, timing: Timing, *, on_wait: Callable[[str], None]) -> Claim:
    """Take the claim, waiting until a silent owner counts as dead.

    Raises UnavailableError (AnotherPublisher) where its owner is alive. A claim is dead when its
    owner released it, when its process is known to have ended on this machine, when the store's own
    clock says that it was not renewed for `stale_seconds`, or when it did not change for that long
    while we watched by our clock.
    """
    own = ClaimRecord(owner=secrets.token_hex(16), process=process_mark())
    first_tag, first_seen = "", 0.0
    while True:
        try:
            return Claim(backend, own, backend.create(CLAIM_NAME, _encode(own)), timing)
        except ConflictError:
            stored = backend.read(CLAIM_NAME)
        if stored is None:
            continue
        held = _decode(stored.body)
        if held.owner == own.owner:  # The answer to our own write was lost, and its retry refused.
            return _discard_inherited(Claim(backend, held, stored.tag, timing), backend, held)
        now = boot_seconds()
        if not first_tag:
            first_tag, first_seen = stored.tag, now
        if _is_dead(held, stored.age_seconds, timing) or (
            stored.tag == first_tag and now - first_seen >= timing.stale_seconds
        ):
            try:
                return _take_over(backend, own, held, stored.tag, timing)
            except ConflictError:
                continue
        if stored.tag != first_tag:
            raise held_by_another(backend.uri)
        on_wait(
            f"another run holds {backend.uri}; waiting up to "
            f"{timing.stale_seconds - (now - first_seen):.0f} s for a sign of life"
        )
        time.sleep(timing.poll_seconds)


def held_by_another(uri: str) -> UnavailableError:
    """Return the error of a run that may not write because another one does."""
    return UnavailableError(
        f"Another run is publishing to {uri} right now.",
        reason=FailureReason.ANOTHER_PUBLISHER,
        advice="Wait for it to end; this run then finds its artifact and ends as AlreadyPublished.",
    )


def _is_dead(held: ClaimRecord, age_seconds: float | None, timing: Timing) -> bool:
    aged = age_seconds is not None and age_seconds >= timing.stale_seconds
    return held.released or aged or died_here(held.process)


def _take_over(
    backend: Backend, own: ClaimRecord, held: ClaimRecord, tag: str, timing: Timing
) -> Claim:
    """Replace a dead claim and discard every token that its owners could still place.

    The tokens stay in the claim until they are discarded, so that whoever follows us, should we die
    here, inherits them.
    """
    inherited = (*held.inherited, *held.staged)
    record = own.model_copy(update={"inherited": inherited})
    claim = Claim(backend, record, backend.replace(CLAIM_NAME, _encode(record), tag), timing)
    return _discard_inherited(claim, backend, record)


def _discard_inherited(claim: Claim, backend: Backend, record: ClaimRecord) -> Claim:
    for name, token in record.inherited:
        backend.discard(name, token)
    if record.inherited:
        claim.renew()
    return claim


def _encode(record: ClaimRecord) -> bytes:
    return record.model_dump_json().encode()


def _decode(body: bytes) -> ClaimRecord:
    """Read a claim; what nobody of ours wrote holds no token and belongs to nobody we know."""
    try:
        return ClaimRecord.model_validate_json(body)
    except ValidationError:
        return ClaimRecord(owner="")
