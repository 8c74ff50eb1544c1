"""The bridge between a transport and the law of WebSocket."""

from __future__ import annotations

from typing import Protocol

from twisted.internet.interfaces import IReactorTime

from aranya.streaming.carrier import CLIENT_CLOSED, Carrier, Listener
from aranya.streaming.websocket import frames
from aranya.streaming.websocket.frames import (
    CloseCode,
    Closed,
    Event,
    Framing,
    Opcode,
    Part,
    Ping,
    Violated,
)


class MessageListener(Listener, Protocol):
    """A session on WebSocket messages."""

    def part_received(self, part: Part) -> None: ...


class WebSocketProtocol(Carrier):
    """One WebSocket connection. Its pings do not count as movement, as in a kubelet."""

    def __init__(self, listener: MessageListener, clock: IReactorTime) -> None:
        super().__init__(listener, clock)
        self._messages = listener
        self._framing = Framing()

    def bytes_received(self, data: bytes) -> None:
        """Read frames."""
        for event in self._framing.receive(data):
            if self.closing:
                return
            self._tell(event)

    def _tell(self, event: Event) -> None:
        match event:
            case Part():
                self.moved()
                self._messages.part_received(event)
            case Ping(payload):
                self.answer(frames.pong(payload))
            case Closed(code):
                self.fail(CLIENT_CLOSED, frames.close(_answer_to(code)))
            case Violated(code, reason):
                self.fail(f"the client broke the protocol: {reason}", frames.close(code, reason))

    def probe(self) -> bytes:
        """A ping."""
        return frames.ping()

    def send_message(self, data: bytes) -> None:
        """One binary message."""
        self.send([frames.header(Opcode.BINARY, len(data)), data])

    def say_goodbye(self) -> None:
        """Close with code 1000, the only one that clients of v5 take for a good end."""
        self.send([frames.close()])
        self.close()


def _answer_to(code: int) -> int:
    forbidden = code in (1004, 1006, 1015) or not 1000 <= code < 5000
    return CloseCode.PROTOCOL_ERROR if forbidden else code
