"""Leadership on a Lease, by client-go's fields and rules.

The rule
    Who finds the lease free, or its holder silent for the lease's duration, may write
    itself in; the write names the version that was read, so one of two wins. Silence is
    measured on our own clock from the moment we *saw* the record change: the
    holder's clock does not matter.

The safety
    A leader that could not renew within the renew deadline stops, and that is before
    anybody else may start: deadline < duration. The time of a renewal counts from
    before it was sent. ``stopped_leading`` has ended before the lease is given
    away or asked for again.

``decide`` is pure; ``Election`` is its service.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import Enum
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from aranya.interfaces import Kubernetes, Object
from aranya.kube.errors import KubeError, NotFound, Unreachable
from aranya.kube.objects import LEASES, micro_time, new_object, parse_time
from aranya.kube.pace import Jitter, pause
from tether.tasks import spawn


@dataclass(frozen=True, slots=True)
class Timing:
    """client-go's three times, in seconds."""

    lease: float = 15.0
    renew: float = 10.0
    retry: float = 2.0

    def __post_init__(self) -> None:
        if not self.lease > self.renew > self.retry * 1.2:
            raise ValueError("the lease must outlast the renew deadline, and that some retries")


@dataclass(frozen=True, slots=True)
class Record:
    """What a Lease says about leadership."""

    holder: str = ""
    duration: int = 0
    acquired: datetime | None = None
    renewed: datetime | None = None
    transitions: int = 0

    @classmethod
    def of(cls, lease: Object) -> Record:
        """Read a Lease."""
        spec: dict[str, Any] = lease.get("spec") or {}
        return cls(
            spec.get("holderIdentity") or "",
            int(spec.get("leaseDurationSeconds") or 0),
            parse_time(spec.get("acquireTime")),
            parse_time(spec.get("renewTime")),
            int(spec.get("leaseTransitions") or 0),
        )

    def spec(self) -> Object:
        """The Lease's ``spec``."""
        spec: Object = {
            "holderIdentity": self.holder,
            "leaseDurationSeconds": self.duration,
            "leaseTransitions": self.transitions,
        }
        if self.acquired is not None:
            spec["acquireTime"] = micro_time(self.acquired)
        if self.renewed is not None:
            spec["renewTime"] = micro_time(self.renewed)
        return spec


class Decision(Enum):
    """What a candidate may do now."""

    TAKE = "take"
    RENEW = "renew"
    WAIT = "wait"


def decide(record: Record | None, observed_at: float, now: float, me: str) -> Decision:
    """The rule. ``observed_at`` is when this record was first seen as it is, on our clock."""
    if record is None or not record.holder:
        return Decision.TAKE
    if record.holder == me:
        return Decision.RENEW
    return Decision.WAIT if now < observed_at + record.duration else Decision.TAKE


class Election(Service):
    """Candidate, perhaps leader, from start to stop.

    ``started_leading`` and ``stopped_leading`` alternate. What ``stopped_leading`` gives
    back is awaited before this candidate goes on.
    """

    _log = Logger()

    def __init__(
        self,
        kube: Kubernetes,
        clock: IReactorTime,
        namespace: str,
        name: str,
        identity: str,
        started_leading: Callable[[], None],
        stopped_leading: Callable[[str], Deferred[None] | None],
        *,
        timing: Timing | None = None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        jitter: Jitter = random.random,
    ) -> None:
        self._kube = kube
        self._clock = clock
        self._namespace = namespace
        self._name = name
        self._me = identity
        self._started_leading = started_leading
        self._stopped_leading = stopped_leading
        self._timing = timing or Timing()
        self._now = now
        self._jitter = jitter
        self._seen: Record | None = None
        self._seen_at = clock.seconds()
        self._leading = False
        self._trouble = ""
        self._renewed_at = clock.seconds()
        self._ending: Deferred[None] | None = None
        self._running: Deferred[None] | None = None

    @property
    def is_leading(self) -> bool:
        """Whether this candidate leads now."""
        return self._leading

    @property
    def leader(self) -> str:
        """Who led when last seen; "" for nobody."""
        return self._seen.holder if self._seen is not None else ""

    # -- its life

    def startService(self) -> None:
        super().startService()
        self._running = spawn(self._run(), self._log, "the leader election stopped working")

    async def _stop(self) -> None:
        running, self._running = self._running, None
        if running is not None:
            running.cancel()
            await running
        if self._leading:
            await self._stop_leading("stopping")
            await self._release()
        elif self._ending is not None:
            await _end_of(self._ending)

    def stopService(self) -> Deferred[None]:
        """Stop leading, then give the lease away, so that the next one need not wait for its end."""
        super().stopService()
        return spawn(self._stop(), self._log, "the leader election did not stop cleanly")

    async def _run(self) -> None:
        while True:
            await self._acquire()
            self._leading = True
            self._log.info("leading as {identity}", identity=self._me)
            try:
                self._started_leading()
            except Exception:
                self._log.failure("starting to lead failed: a bug")
                await self._stop_leading("it could not start")
                await self._release()
                await pause(self._clock, self._timing.lease)
            else:
                await self._stop_leading(await self._hold())

    async def _stop_leading(self, reason: str) -> None:
        self._leading = False
        self._log.info("{identity} leads no longer: {reason}", identity=self._me, reason=reason)
        self._ending = self._stopped_leading(reason)
        if self._ending is not None:
            await _end_of(self._ending)

    async def _acquire(self) -> None:
        """Come again every retry period until the lease is ours."""
        while True:
            before = self._seen.holder if self._seen is not None else None
            try:
                won = await self._try(self._timing.renew)
            except KubeError as error:
                self._tell_trouble(str(error))
            else:
                self._tell_trouble("")
                if won:
                    return
                if self.leader != before:
                    self._log.info("{leader} leads; standing by", leader=self.leader)
            # Spread, so that candidates who failed together do not try together.
            await pause(self._clock, self._timing.retry * (1 + 0.2 * self._jitter()))

    async def _hold(self) -> str:
        """Renew until that fails for too long or another holds it; gives back why."""
        trouble = "the lease was not renewed in time"
        while True:
            end = self._renewed_at + self._timing.renew
            left = end - self._clock.seconds()
            await pause(self._clock, max(0.0, min(self._timing.retry, left)))
            left = end - self._clock.seconds()
            if left <= 0:
                return trouble
            try:
                won = await self._try(left)
            except KubeError as error:
                trouble = f"the lease was not renewed in time: {error}"
                self._tell_trouble(str(error))
                continue
            self._tell_trouble("")
            if not won:
                return f"{self.leader} holds the lease"

    async def _try(self, seconds: float) -> bool:
        """One attempt to take or renew, within so long; whether the lease is ours."""

        def late(_result: object, _seconds: float) -> bool:
            raise Unreachable("the API server did not answer in time")

        attempt: Deferred[bool] = Deferred.fromCoroutine(self._take_or_renew())
        try:
            return await attempt.addTimeout(seconds, self._clock, late)
        except (KubeError, CancelledError):
            raise
        except Exception as error:
            # Whatever it is, a leader must not lead on without renewing, nor a candidate fall asleep.
            self._log.failure("an attempt at the lease failed: a bug")
            raise Unreachable(f"an attempt at the lease failed: {error!r}") from error

    async def _take_or_renew(self) -> bool:
        began = self._clock.seconds()
        try:
            lease = await self._kube.get(LEASES, self._namespace, self._name)
        except NotFound:
            lease = None
        record = None if lease is None else Record.of(lease)
        if record != self._seen:
            self._seen, self._seen_at = record, self._clock.seconds()
        decision = decide(record, self._seen_at, self._clock.seconds(), self._me)
        if decision is Decision.WAIT:
            return False
        mine = self._mine(record, decision)
        if lease is None:
            body = new_object(LEASES, {"name": self._name, "namespace": self._namespace}, spec=mine.spec())
            await self._kube.create(LEASES, self._namespace, body)
        else:
            body = {**lease, "spec": {**(lease.get("spec") or {}), **mine.spec()}}
            await self._kube.replace(LEASES, self._namespace, self._name, body)
        self._seen, self._seen_at = mine, self._clock.seconds()
        self._renewed_at = began
        return True

    def _mine(self, record: Record | None, decision: Decision) -> Record:
        now = self._now()
        mine = Record(self._me, int(self._timing.lease), now, now, 0)
        if record is None:
            return mine
        if decision is Decision.RENEW:
            return replace(mine, acquired=record.acquired or now, transitions=record.transitions)
        return replace(mine, transitions=record.transitions + 1)

    async def _release(self) -> None:
        """Leave the lease to whoever comes first, as client-go's ``ReleaseOnCancel`` does."""

        async def release() -> None:
            lease = await self._kube.get(LEASES, self._namespace, self._name)
            record = Record.of(lease)
            if record.holder != self._me:
                return
            now = self._now()
            empty = replace(record, holder="", duration=1, acquired=now, renewed=now)
            body = {**lease, "spec": {**(lease.get("spec") or {}), **empty.spec()}}
            await self._kube.replace(LEASES, self._namespace, self._name, body)

        attempt: Deferred[None] = Deferred.fromCoroutine(release())
        try:
            await attempt.addTimeout(self._timing.retry, self._clock)
        except Exception as error:
            # It ends by itself after its duration.
            self._log.info("the lease was not given away: {error}", error=str(error) or type(error).__name__)

    def _tell_trouble(self, trouble: str) -> None:
        """Once per kind of trouble, not at each retry."""
        if trouble and trouble != self._trouble:
            self._log.info("the lease cannot be read or written: {error}", error=trouble)
        self._trouble = trouble


def _end_of(ending: Deferred[None]) -> Deferred[None]:
    """Fires when it has ended; to cancel the waiting is not to cancel it."""
    waiting: Deferred[None] = Deferred()

    def ended(result: object) -> object:
        if not waiting.called:
            waiting.callback(None)
        return result

    ending.addBoth(ended)
    return waiting
