"""Is the peer still there? Silence, a ping, more silence, and then no.

A half-open TCP connection says nothing for many minutes. Any byte of the peer
is a sign of life: on a slow link the answer to a ping may wait behind bulk that
is already on its way, and that bulk is proof enough.
"""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.interfaces import IDelayedCall, IReactorTime


class Liveness:
    """Watches one connection from ``start`` to ``stop``.

    After ``keepalive`` seconds without a byte ``ping`` is called once; after
    ``patience`` more ``give_up`` is, with a reason, and the watch is over.
    """

    def __init__(
        self,
        clock: IReactorTime,
        heard_at: Callable[[], float],
        ping: Callable[[], None],
        give_up: Callable[[str], None],
        keepalive: float,
        patience: float,
    ) -> None:
        self._clock = clock
        self._heard_at = heard_at
        self._ping = ping
        self._give_up = give_up
        self._keepalive = keepalive
        self._patience = patience
        self._started_at = 0.0
        self._pinged_after: float | None = None  # the last sign of life when the ping went
        self._call: IDelayedCall | None = None

    def start(self) -> None:
        """The connection is there."""
        self._started_at = self._clock.seconds()
        self._wait(self._keepalive)

    def stop(self) -> None:
        """The connection is gone, or another's business."""
        if self._call is not None:
            self._call.cancel()
            self._call = None

    def _wait(self, seconds: float) -> None:
        self._call = self._clock.callLater(seconds, self._look)

    def _look(self) -> None:
        self._call = None
        last = max(self._heard_at(), self._started_at)
        silence = self._clock.seconds() - last
        if self._pinged_after == last:
            # Nothing came since the ping, which may have gone later than it was due.
            self._give_up(f"nothing was heard for {silence:.0f} s")
            return
        if silence < self._keepalive:
            self._wait(self._keepalive - silence)
            return
        self._pinged_after = last
        self._wait(self._patience)
        self._ping()
