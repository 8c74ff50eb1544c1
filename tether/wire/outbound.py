"""One stream's outward half: what waits, what is on its way, what to send again.

Writes wait as they came, small neighbours on one lane are joined when they are
taken, large ones are cut. What was taken is kept, as it was cut, until the peer
says that it handed it on; after a cut of the link exactly that is sent again.
Since nothing is taken beyond the peer's limit, what is kept never exceeds the
peer's window; nor do tiny frames pile up, for only so many of them are kept.
"""

from __future__ import annotations

from collections import deque

from tether.errors import Reason, RemoteViolation
from tether.wire.frames import KEPT_LIMIT, PAYLOAD_LIMIT, WINDOW_LIMIT, Data, Finish, Reset
from tether.wire.lanes import RECORD_LANES

#: Up to this size what waits is joined, so that tiny writes cost no object each.
_JOINED = 4096


class Outbound:
    """What one side sends on one stream."""

    __slots__ = (
        "_again",
        "_again_size",
        "_kept",
        "_taken_of_first",
        "_waiting",
        "acknowledged",
        "end",
        "finish_asked",
        "limit",
        "queued",
        "sent",
        "stream",
    )

    def __init__(self, stream: int, limit: int) -> None:
        self.stream = stream
        self.limit = limit  # the peer takes offsets below
        self.sent = 0  # the next offset that was never sent
        self.acknowledged = 0  # the peer handed on everything below
        self.queued = 0  # bytes that were never sent
        self.finish_asked = False
        self.end: Finish | Reset | None = None  # the last frame, once it was taken
        self._waiting: deque[tuple[int, bytes | bytearray]] = deque()
        self._taken_of_first = 0
        self._kept: deque[Data | Finish | Reset] = deque()
        self._again: deque[Data | Finish | Reset] = deque()
        self._again_size = 0

    @property
    def kept(self) -> int:
        """How many offsets were sent and not yet acknowledged."""
        return self.sent - self.acknowledged

    @property
    def on_the_way(self) -> int:
        """How many offsets were sent on this link and not yet acknowledged."""
        return self.kept - self._again_size

    @property
    def over(self) -> bool:
        """True when the last frame was sent and acknowledged."""
        return self.end is not None and self.acknowledged >= self.end.end

    @property
    def sendable(self) -> bool:
        """True when ``take`` has something to give."""
        if self._again:
            return True
        if len(self._kept) >= KEPT_LIMIT:
            return False
        if self._waiting:
            lane, data = self._waiting[0]
            credit = self.limit - self.sent
            return credit >= (len(data) if lane in RECORD_LANES else 1)
        return self.finish_asked and self.end is None

    @property
    def little(self) -> int:
        """The bytes that wait to be sent, or sent again."""
        return self.queued + self._again_size

    def write(self, lane: int, data: bytes) -> None:
        """Queue bytes, or a record."""
        self.queued += len(data)
        if self._waiting and lane not in RECORD_LANES:
            last_lane, last = self._waiting[-1]
            if last_lane == lane and len(last) + len(data) <= _JOINED:
                joined = last if isinstance(last, bytearray) else bytearray(last)
                joined += data
                self._waiting[-1] = (lane, joined)
                return
        self._waiting.append((lane, data))

    def reset(self, reason: Reason) -> Reset:
        """Drop all that waits or is kept; the end is a reset from here on."""
        self._waiting.clear()
        self._taken_of_first = 0
        self._again.clear()
        self._again_size = 0
        self._kept.clear()
        self.queued = 0
        frame = Reset(self.stream, self.sent, reason)
        self.end = frame
        self.sent = frame.end
        self._kept.append(frame)
        return frame

    def take(self, budget: int) -> Data | Finish | Reset | None:
        """The next frame, of at most ``budget`` payload bytes if it may be cut there."""
        if self._again:
            again = self._again.popleft()
            self._again_size -= again.end - again.offset
            return again
        if len(self._kept) >= KEPT_LIMIT:
            return None
        frame: Data | Finish
        if self._waiting:
            lane = self._waiting[0][0]
            credit = self.limit - self.sent
            if lane in RECORD_LANES:
                if len(self._waiting[0][1]) > credit:
                    return None
                payload = bytes(self._waiting.popleft()[1])
            else:
                payload = self._gather(lane, min(budget, PAYLOAD_LIMIT, credit))
                if not payload:
                    return None
            self.queued -= len(payload)
            frame = Data(self.stream, self.sent, lane, payload)
        elif self.finish_asked and self.end is None:
            frame = self.end = Finish(self.stream, self.sent)
        else:
            return None
        self.sent = frame.end
        self._kept.append(frame)
        return frame

    def acknowledge(self, delivered: int, limit: int) -> None:
        """The peer handed on all below ``delivered`` and takes up to ``limit``."""
        if delivered > self.sent:
            raise RemoteViolation(
                f"stream {self.stream}: {delivered} acknowledged, but only {self.sent} were sent"
            )
        # A peer that permits everything and acknowledges nothing must not fill this side's memory.
        self.limit = max(self.limit, min(limit, delivered + WINDOW_LIMIT))
        if delivered > self.acknowledged:
            self.acknowledged = delivered
            while self._kept and self._kept[0].end <= delivered:
                self._kept.popleft()
            while self._again and self._again[0].end <= delivered:
                again = self._again.popleft()
                self._again_size -= again.end - again.offset

    def rewind(self) -> None:
        """A new link: everything kept is to be sent again, first."""
        self._again = self._kept.copy()
        self._again_size = sum(frame.end - frame.offset for frame in self._again)

    def _gather(self, lane: int, room: int) -> bytes:
        """Up to ``room`` bytes off the front, joined across writes on one lane."""
        parts: list[bytes | bytearray] = []
        while room > 0 and self._waiting and self._waiting[0][0] == lane:
            data = self._waiting[0][1]
            start = self._taken_of_first
            part = data[start : start + room] if start or len(data) > room else data
            parts.append(part)
            room -= len(part)
            if start + len(part) == len(data):
                self._waiting.popleft()
                self._taken_of_first = 0
            else:
                self._taken_of_first = start + len(part)
        return bytes(parts[0]) if len(parts) == 1 else b"".join(parts)
