"""Long work in short turns of the reactor, which can be paused, resumed and stopped."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from twisted.internet.interfaces import IDelayedCall, IReactorTime


class Turns:
    """Runs ``steps``; each yields how many seconds to wait before the next.

    What a step raises is told to ``failed`` and ends the work.
    """

    def __init__(
        self, clock: IReactorTime, steps: Iterator[float], failed: Callable[[Exception], None]
    ) -> None:
        self._clock = clock
        self._steps = steps
        self._failed = failed
        self._next: IDelayedCall | None = None
        self._delay = 0.0
        self._started = False
        self._paused = False
        self._stopped = False

    def start(self) -> None:
        """Take the first step in the next turn."""
        self._started = True
        self._schedule()

    def pause(self) -> None:
        """Take no step until ``resume``."""
        self._paused = True
        self._cancel()

    def resume(self) -> None:
        """Go on."""
        self._paused = False
        if self._started:
            self._schedule()

    def stop(self) -> None:
        """Take no step ever again; called from within a step, after that step."""
        self._stopped = True
        self._cancel()

    def _schedule(self) -> None:
        if self._next is None and not self._paused and not self._stopped:
            self._next = self._clock.callLater(self._delay, self._step)

    def _cancel(self) -> None:
        if self._next is not None:
            self._next.cancel()
            self._next = None

    def _step(self) -> None:
        self._next = None
        try:
            self._delay = next(self._steps)
        except StopIteration:
            self._stopped = True
        except Exception as why:
            self._stopped = True
            self._failed(why)
        self._schedule()
