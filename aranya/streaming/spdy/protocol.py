"""The bridge between a transport and the law of SPDY: it moves bytes and tells events."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from twisted.internet.interfaces import IReactorTime

from aranya.streaming.carrier import CLIENT_CLOSED, Carrier, Listener
from aranya.streaming.spdy.connection import (
    Connection,
    DataReceived,
    Event,
    GoneAway,
    StreamFinished,
    StreamOpened,
    StreamReset,
    Violated,
)
from aranya.streaming.spdy.frames import GoAwayStatus, ResetStatus


class StreamListener(Listener, Protocol):
    """A session on SPDY streams. ``connection_ended`` ends every stream."""

    def stream_opened(self, stream: int, headers: Mapping[str, str]) -> None: ...
    def stream_data(self, stream: int, data: bytes) -> None: ...
    def stream_finished(self, stream: int) -> None: ...
    def stream_reset(self, stream: int) -> None: ...


class SpdyProtocol(Carrier):
    """One SPDY connection. Each control frame is one write, so that it lands in one TLS record."""

    def __init__(self, listener: StreamListener, clock: IReactorTime, max_streams: int) -> None:
        super().__init__(listener, clock)
        self._streams = listener
        self._connection = Connection(max_streams)

    def bytes_received(self, data: bytes) -> None:
        """Read frames; answers go out before the session hears of anything."""
        self.moved()
        events = self._connection.receive(data)
        self.answer(self._connection.take_output())
        for event in events:
            if self.closing:
                return
            self._tell(event)

    def _tell(self, event: Event) -> None:
        match event:
            case DataReceived(stream, payload):
                self._streams.stream_data(stream, payload)
            case StreamOpened(stream, headers):
                self._streams.stream_opened(stream, headers)
            case StreamFinished(stream):
                self._streams.stream_finished(stream)
            case StreamReset(stream):
                self._streams.stream_reset(stream)
            case GoneAway():
                self.fail(CLIENT_CLOSED)
            case Violated(reason):
                goodbye = self._connection.go_away(GoAwayStatus.PROTOCOL_ERROR)
                self.fail(f"the client broke the protocol: {reason}", goodbye)

    def probe(self) -> bytes:
        """A ping with an even id."""
        return self._connection.ping()

    def reply(self, stream: int) -> None:
        """Accept a stream."""
        self.answer(self._connection.reply(stream))

    def refuse(self, stream: int, status: ResetStatus = ResetStatus.CANCEL) -> None:
        """Reset a stream that the client should not have opened."""
        self.answer(self._connection.reset(stream, status))

    def write(self, stream: int, data: bytes) -> None:
        """Send data on a stream; dropped if the stream is over."""
        if not self.closing:
            self.send(self._connection.data(stream, data))

    def finish(self, stream: int) -> None:
        """Half close a stream."""
        self._send_frame(self._connection.finish(stream))

    def reset(self, stream: int, status: ResetStatus = ResetStatus.CANCEL) -> None:
        """End a stream in both directions."""
        self._send_frame(self._connection.reset(stream, status))

    def go_away(self) -> None:
        """Close the connection; the peer has all that was sent before."""
        self._send_frame(self._connection.go_away())
        self.close()

    def _send_frame(self, frame: bytes) -> None:
        if frame:
            self.send([frame])
