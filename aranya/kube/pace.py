"""Waiting: how long until the next attempt, and a wait that can be cancelled."""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime

#: A number in [0, 1); ``random.random`` but for tests.
Jitter = Callable[[], float]


class Backoff:
    """Doubling waits with full jitter, so that many who failed together do not return together."""

    def __init__(self, base: float, cap: float, jitter: Jitter) -> None:
        self._base = base
        self._cap = cap
        self._jitter = jitter
        self._failures = 0

    @property
    def failures(self) -> int:
        """How many failures stand in a row."""
        return self._failures

    def next(self) -> float:
        """Count one more failure and say how long to wait for the next attempt."""
        # Beyond some doublings every cap is passed; the bound keeps the power small.
        ceiling = min(self._cap, self._base * float(2 ** min(self._failures, 30)))
        self._failures += 1
        # A tenth of the ceiling at least: zero waits would make a loop of it.
        return ceiling * (0.1 + 0.9 * self._jitter())

    def reset(self) -> None:
        """An attempt went well."""
        self._failures = 0


def pause(clock: IReactorTime, seconds: float) -> Deferred[None]:
    """Fires after so long; may be cancelled."""
    waiting: Deferred[None] = Deferred(lambda _: call.cancel())
    call = clock.callLater(seconds, waiting.callback, None)
    return waiting
