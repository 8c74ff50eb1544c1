"""One stream of a link as Twisted sees it: the ``Channel`` contract of ``interfaces``.

A channel never calls its receiver from within a call of the receiver's own: all
calls to receivers go through the link's queue, one after another. So whoever
resets in ``data_received``, finishes in ``finished`` or opens in ``closed`` meets
no call that is half done.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Protocol

from twisted.internet.interfaces import IPushProducer
from twisted.logger import Logger
from zope.interface import implementer

from tether.errors import LocalMisuse, Reason, RemoteViolation, ResetCode
from tether.link.interfaces import HIGH_WATER, LOW_WATER, Channel, Receiver
from tether.wire.frames import KEPT_LIMIT
from tether.wire.lanes import RECORD_LANES, Lane
from tether.wire.mux import Mux

#: Up to this size arrivals of a paused channel are joined, so that tiny pieces cost no object each.
_JOINED = 64 * 1024

_CANCELLED = Reason(ResetCode.CANCELLED, "the one who asked went away")
_FAILED = Reason(ResetCode.INTERNAL, "the receiving side failed; its log says why")


class Turntable(Protocol):
    """What a channel needs of its link: the mux, and turns for calls to receivers."""

    @property
    def mux(self) -> Mux:
        """Where the stream lives."""

    def later(self, call: Callable[[], None]) -> None:
        """Call when no other call to a receiver is under way: now, or after it."""

    def settle(self) -> None:
        """Something was done to the mux: send what may be sent."""

    def pressed(self, channel: MuxChannel) -> None:
        """A producer of this channel is paused: call ``relieve`` when bytes went."""

    def forget(self, channel: MuxChannel) -> None:
        """The channel is closed."""


@implementer(Channel)
class MuxChannel:
    """One end of one stream."""

    _log = Logger()

    def __init__(self, stream: int, turntable: Turntable, receiver: Receiver | None = None) -> None:
        self.stream = stream
        self._turntable = turntable
        self._receiver = receiver
        self._inbox: deque[tuple[int, bytes | bytearray] | None] = deque()  # None is the peer's finish
        self._paused = False
        self._over = False  # reset by either side, or closed: the mux knows nothing of it any more
        self._finished = False
        self._producer: IPushProducer | None = None
        self._producer_paused = False

    # ---- outwards ----------------------------------------------------------------

    def write(self, data: bytes, lane: Lane = Lane.MAIN) -> None:
        """Send bytes, or one record."""
        if self._over or self._finished:
            return
        self._turntable.mux.send(self.stream, lane, data)
        self._turntable.settle()
        self._press()

    def registerProducer(self, producer: object, streaming: bool) -> None:
        """Pause and resume ``producer`` as credit allows."""
        if self._producer is not None:
            raise LocalMisuse("a producer is registered already")
        if not streaming:
            raise LocalMisuse("a channel takes push producers only")
        self._producer = IPushProducer(producer)
        self._producer_paused = False
        self._press()

    def unregisterProducer(self) -> None:
        """Forget the producer."""
        self._producer = None
        self._producer_paused = False

    def finish(self) -> None:
        """Half-close, after all that was written."""
        if self._over or self._finished:
            return
        self._finished = True
        self._turntable.mux.finish(self.stream)
        self._turntable.settle()

    def reset(self, reason: Reason) -> None:
        """End both directions now."""
        if self._over:
            return
        self._turntable.mux.reset(self.stream, reason)
        self._end()
        self._turntable.settle()

    def relieve(self) -> bool:
        """Resume the producer if enough went; true when it need not be asked again."""
        if not self._producer_paused or self._over:
            return True
        if self._turntable.mux.queued(self.stream) >= LOW_WATER:
            return False
        self._producer_paused = False
        self._turntable.later(self._resume_producer)
        return True

    def _press(self) -> None:
        if self._producer is None or self._producer_paused or self._over:
            return
        if self._turntable.mux.queued(self.stream) >= HIGH_WATER:
            self._producer_paused = True
            self._turntable.pressed(self)
            self._producer.pauseProducing()

    def _resume_producer(self) -> None:
        if self._producer is not None and not self._producer_paused and not self._over:
            self._guarded(self._producer.resumeProducing)

    # ---- inwards -------------------------------------------------------------------

    def pauseProducing(self) -> None:
        """Nothing more reaches the receiver; the peer's credit runs dry."""
        self._paused = True

    def resumeProducing(self) -> None:
        """What waits, and what comes, reaches the receiver again."""
        if self._paused:
            self._paused = False
            self._turntable.later(self._hand_on)

    def stopProducing(self) -> None:
        """The one who asked went away."""
        self.reset(_CANCELLED)

    def accepted_by(self, receiver: Receiver) -> None:
        """Whoever receives on this stream of the peer was found."""
        self._receiver = receiver

    def data_arrived(self, lane: int, data: bytes) -> None:
        """The peer sent bytes or a record.

        Raises ``RemoteViolation`` when more pieces wait than an honest peer sends unacknowledged.
        """
        if self._paused and self._inbox and lane not in RECORD_LANES:
            last = self._inbox[-1]
            if last is not None and last[0] == lane and len(last[1]) + len(data) <= _JOINED:
                joined = last[1] if isinstance(last[1], bytearray) else bytearray(last[1])
                joined += data
                self._inbox[-1] = (lane, joined)
                return
        if len(self._inbox) >= KEPT_LIMIT:
            raise RemoteViolation(f"stream {self.stream}: more than {KEPT_LIMIT} frames without an answer")
        self._inbox.append((lane, data))
        self._turntable.later(self._hand_on)

    def finish_arrived(self) -> None:
        """The peer half-closed."""
        self._inbox.append(None)
        self._turntable.later(self._hand_on)

    def broke(self, reason: Reason) -> None:
        """The peer reset the stream, or is gone."""
        # What arrived before is handed on before.
        self._turntable.later(lambda: self._break(reason))

    def closed_at_last(self) -> None:
        """Both directions are over and acknowledged."""
        self._turntable.later(self._close)

    def _hand_on(self) -> None:
        receiver = self._receiver
        while self._inbox and not self._paused and not self._over and receiver is not None:
            piece = self._inbox.popleft()
            if piece is None:
                self._guarded(receiver.finished)
                count = 1
            else:
                lane, data = piece
                count = len(data)
                if lane in _KNOWN_LANES:
                    self._guarded(receiver.data_received, Lane(lane), bytes(data))
            if not self._over and self._turntable.mux.delivered(self.stream, count):
                self._end()

    def _break(self, reason: Reason) -> None:
        if not self._over:
            self._end()
            if self._receiver is not None:
                self._guarded(self._receiver.reset, reason)

    def _close(self) -> None:
        if not self._over:
            self._end()

    def _tell_closed(self) -> None:
        receiver, self._receiver = self._receiver, None
        if receiver is not None:
            self._guarded(receiver.closed)

    def _end(self) -> None:
        self._over = True
        self._inbox.clear()
        self.unregisterProducer()
        self._turntable.forget(self)
        self._turntable.later(self._tell_closed)

    def _guarded(self, call: Callable[..., None], *given: object) -> None:
        """Call a receiver or a producer; its failure ends this stream and no other."""
        try:
            call(*given)
        except Exception:
            self._log.failure("stream {stream}: its receiver failed", stream=self.stream)
            self.reset(_FAILED)


_KNOWN_LANES = frozenset(int(lane) for lane in Lane)
