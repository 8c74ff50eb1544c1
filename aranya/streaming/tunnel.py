"""SPDY inside binary WebSocket messages, as kubectl 1.31 and newer forward ports."""

from __future__ import annotations

from collections.abc import Sequence

from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IPushProducer, IReactorTime
from twisted.python.failure import Failure

from aranya.streaming.carrier import CLIENT_CLOSED
from aranya.streaming.spdy.protocol import SpdyProtocol
from aranya.streaming.websocket.frames import Part
from aranya.streaming.websocket.protocol import WebSocketProtocol


class Tunnel:
    """The transport of a SPDY connection that runs inside binary WebSocket messages."""

    disconnecting = False

    def __init__(self, clock: IReactorTime, inner: SpdyProtocol) -> None:
        self.wire = WebSocketProtocol(self, clock)
        self._inner = inner
        self._lost = False
        self._producer: IPushProducer | None = None

    # ---- the WebSocket tells ------------------------------------------------------

    def connection_made(self) -> None:
        self._inner.makeConnection(self)

    def part_received(self, part: Part) -> None:
        if part.text:
            return  # an error of the tunnel's client, which also closes
        self._inner.dataReceived(part.data)

    def connection_ended(self, reason: str) -> None:
        self._lose(ConnectionDone() if reason == CLIENT_CLOSED else ConnectionLost(reason))

    def connection_gone(self) -> None:
        self._lose(ConnectionDone())

    def connection_idle(self) -> None:
        """The SPDY connection inside keeps this time itself."""

    def _lose(self, why: Exception) -> None:
        if not self._lost:
            self._lost = True
            self._inner.connectionLost(Failure(why))

    # ---- the SPDY connection calls ---------------------------------------------------

    def write(self, data: bytes) -> None:
        self.wire.send_message(data)

    def writeSequence(self, pieces: Sequence[bytes]) -> None:
        self.wire.send_message(b"".join(pieces))

    def registerProducer(self, producer: IPushProducer, streaming: bool) -> None:
        self._producer = producer
        self.wire.add_producer(producer)

    def unregisterProducer(self) -> None:
        if self._producer is not None:
            self.wire.remove_producer(self._producer)
            self._producer = None

    def pauseProducing(self) -> None:
        self.wire.pause_reading()

    def resumeProducing(self) -> None:
        self.wire.resume_reading()

    def loseConnection(self) -> None:
        self.wire.say_goodbye()

    def abortConnection(self) -> None:
        """The WebSocket's own patience ends the transport."""
