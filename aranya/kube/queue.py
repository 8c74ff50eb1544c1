"""Keys to reconcile: each once, one worker per key, some keys at a time, backoff per key.

Theory of operation
    A key is in at most one of three places: *due* at some moment, *ready* in line, or
    *running*. A key that is added while it runs comes again right after; any
    number of additions is one. A reconcile is told the key alone and looks at
    the world itself, so merging additions loses nothing.

    It gives back ``None`` (nothing to do until the world changes) or seconds after
    which to come again. One that fails is retried with backoff; additions
    meanwhile wait a little, longer with each failure, so that a reconcile which causes
    events before it fails does not spin.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Coroutine, Hashable
from typing import Any, Generic, TypeVar

from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred, DeferredList
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from aranya.kube.errors import ApiError, Conflict, KubeError
from aranya.kube.pace import Backoff, Jitter
from tether.tasks import spawn

K = TypeVar("K", bound=Hashable)

CONCURRENCY = 16
BASE_SECONDS = 0.2
CAP_SECONDS = 60.0
#: The longest that an addition to a failing key waits: somebody may have mended it.
ADDITION_SECONDS = 5.0


class ReconcileQueue(Service, Generic[K]):
    """Runs ``reconcile`` for the keys that were added, while it is started."""

    _log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        reconcile: Callable[[K], Coroutine[Deferred[Any], Any, float | None]],
        *,
        concurrency: int = CONCURRENCY,
        base: float = BASE_SECONDS,
        cap: float = CAP_SECONDS,
        jitter: Jitter = random.random,
    ) -> None:
        self._clock = clock
        self._reconcile = reconcile
        self._concurrency = concurrency
        self._base = base
        self._cap = cap
        self._jitter = jitter
        self._due: dict[K, IDelayedCall] = {}
        self._ready: dict[K, None] = {}  # a set that remembers its order
        self._running: dict[K, Deferred[None]] = {}
        self._handing_out = False
        self._again: dict[K, float] = {}  # running keys that were added meanwhile: when
        self._backoffs: dict[K, Backoff] = {}

    def __len__(self) -> int:
        """How many keys wait for a worker now."""
        return len(self._ready)

    @property
    def busy(self) -> int:
        """How many keys are being worked on."""
        return len(self._running)

    @property
    def failing(self) -> int:
        """How many keys failed when last tried."""
        return len(self._backoffs)

    def add(self, key: K, after: float = 0.0) -> None:
        """Reconcile the key, now or after so many seconds; the soonest wish counts."""
        after = max(after, self._least(key))
        if key in self._running:
            self._want(key, after)
        elif key not in self._ready:
            self._schedule(key, self._clock.seconds() + after)

    # -- its life

    def startService(self) -> None:
        super().startService()
        self._work()

    def stopService(self) -> Deferred[None]:
        """Cancel what runs; fires when all of it has ended."""
        super().stopService()
        for call in self._due.values():
            call.cancel()
        self._due.clear()
        self._ready.clear()
        self._again.clear()
        self._backoffs.clear()
        tasks = list(self._running.values())
        for task in tasks:
            task.cancel()
        return DeferredList(tasks).addCallback(lambda _: None)

    # -- its work

    def _schedule(self, key: K, moment: float) -> None:
        waiting = self._due.get(key)
        if waiting is not None:
            if waiting.getTime() <= moment:
                return
            self._due.pop(key).cancel()
        delay = moment - self._clock.seconds()
        if delay > 0:
            self._due[key] = self._clock.callLater(delay, self._came_due, key)
        else:
            self._line_up(key)

    def _came_due(self, key: K) -> None:
        del self._due[key]
        self._line_up(key)

    def _line_up(self, key: K) -> None:
        self._ready[key] = None
        self._work()

    def _work(self) -> None:
        if self._handing_out:
            # A run that ended at once came back here; the loop below goes on with its place.
            return
        self._handing_out = True
        try:
            while self.running and self._ready and len(self._running) < self._concurrency:
                self._begin(next(iter(self._ready)))
        finally:
            self._handing_out = False

    def _begin(self, key: K) -> None:
        del self._ready[key]
        # It is registered before it starts: it may add its own key, or end, at once.
        gate: Deferred[None] = Deferred()
        self._running[key] = task = spawn(self._one(gate, key), self._log, "the queue failed: a bug")
        task.addCallback(lambda _: self._ended(key))
        gate.callback(None)

    async def _one(self, gate: Deferred[None], key: K) -> None:
        """One reconcile, and when its key comes again."""
        await gate
        try:
            again = await self._reconcile(key)
        except CancelledError:
            raise
        except KubeError as error:
            self._failed(key, error)
        except Exception:
            self._log.failure("reconciling {key} failed: a bug", key=str(key))
            self._failed(key, None)
        else:
            self._backoffs.pop(key, None)
            if again is not None:
                self._want(key, again)

    def _failed(self, key: K, error: KubeError | None) -> None:
        backoff = self._backoffs.get(key)
        if backoff is None:
            backoff = self._backoffs[key] = Backoff(self._base, self._cap, self._jitter)
        seconds = backoff.next()
        if isinstance(error, ApiError) and error.retry_after is not None:
            seconds = max(seconds, error.retry_after)
        if isinstance(error, Conflict):
            # Somebody else wrote first; their write is on its way to us.
            self._log.debug("reconciling {key} again: {error}", key=str(key), error=str(error))
        elif error is not None:
            self._log.warn(
                "reconciling {key} failed, again in {seconds:.1f} s: {error}",
                key=str(key),
                seconds=seconds,
                error=str(error),
            )
        if key in self._again:
            self._again[key] = max(self._again[key], self._clock.seconds() + self._least(key))
        self._want(key, seconds)

    def _least(self, key: K) -> float:
        """How long an addition waits: not at all, unless the key failed."""
        backoff = self._backoffs.get(key)
        return 0.0 if backoff is None else min(self._base * backoff.failures, ADDITION_SECONDS)

    def _want(self, key: K, after: float) -> None:
        moment = self._clock.seconds() + after
        self._again[key] = min(moment, self._again.get(key, moment))

    def _ended(self, key: K) -> None:
        del self._running[key]
        again = self._again.pop(key, None)
        if self.running:
            if again is not None:
                self._schedule(key, again)
            self._work()
