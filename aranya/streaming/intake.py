"""What the client sent and nobody has taken yet: bounded, in order, with its end.

SPDY and WebSocket have no windows here, so the only brake is the whole
connection's reading, which also carries resizes, ends and the news of the
client's death. It is therefore pulled late: an ``Intake`` whose reader pauses
first holds up to a limit, and only then does its ``Brake`` stop the reading.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

#: What one paused reader may leave lying, and all of a connection together.
EACH_LIMIT: Final = 1024 * 1024
ALL_LIMIT: Final = 16 * 1024 * 1024
#: What a chunk costs beside its bytes; a client may send them one by one.
_CHUNK_COST: Final = 64


class Brake:
    """Stops the reading of a connection while too much waits in its intakes."""

    def __init__(self, stop: Callable[[], None], release: Callable[[], None]) -> None:
        self._stop = stop
        self._release = release
        self._held = 0
        self._full = 0
        self._stopped = False

    def changed(self, size: int, full: int) -> None:
        """So many bytes more wait, in so many more full intakes."""
        self._held += size
        self._full += full
        if not self._stopped and (self._full or self._held > ALL_LIMIT):
            self._stopped = True
            self._stop()
        elif self._stopped and not self._full and self._held <= ALL_LIMIT // 2:
            self._stopped = False
            self._release()


class Intake:
    """One direction from the client to a reader. It begins paused."""

    def __init__(self, brake: Brake, deliver: Callable[[bytes], None], end: Callable[[], None]) -> None:
        self._brake = brake
        self._deliver = deliver
        self._end = end
        self._chunks: deque[bytes] = deque()
        self._size = 0
        self._full = False
        self._paused = True
        self._delivering = False
        self._finished = False
        self._over = False

    def receive(self, data: bytes) -> None:
        """More from the client."""
        if self._finished or self._over or not data:
            return
        if not self._paused and not self._chunks and not self._delivering:
            self._deliver(data)
            return
        self._chunks.append(data)
        self._resized(len(data) + _CHUNK_COST)

    def finish(self) -> None:
        """The client sends no more; told once all before it was taken."""
        if not self._finished:
            self._finished = True
            self._flow()

    def pause(self) -> None:
        """Deliver nothing until ``resume``."""
        self._paused = True

    def resume(self) -> None:
        """Deliver what waits, and what comes."""
        self._paused = False
        self._flow()

    def discard(self) -> None:
        """Nobody will take anything any more."""
        self._over = True
        self._chunks.clear()
        self._resized(-self._size)

    def _flow(self) -> None:
        if self._delivering:
            return
        self._delivering = True
        try:
            while self._chunks and not self._paused:
                chunk = self._chunks.popleft()
                self._resized(-len(chunk) - _CHUNK_COST)
                self._deliver(chunk)
        finally:
            self._delivering = False
        if self._finished and not (self._chunks or self._paused or self._over):
            self._over = True
            self._end()

    def _resized(self, change: int) -> None:
        self._size += change
        was_full = self._full
        self._full = self._size > (EACH_LIMIT // 2 if was_full else EACH_LIMIT)
        self._brake.changed(change, self._full - was_full)
