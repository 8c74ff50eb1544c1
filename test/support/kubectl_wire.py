"""One HTTP connection to a kubelet site, held in memory, and a client that upgrades it."""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Request

from aranya.streaming.upgrade import KubeletChannel, KubeletSite

WEBSOCKET_KEY = "dGhlIHNhbXBsZSBub25jZQ=="


class MemoryTransport(StringTransport):
    """Remembers how it was closed; the test says when it is gone."""

    aborted = False

    def abortConnection(self) -> None:
        self.aborted = True
        self.disconnecting = True

    @property
    def reading(self) -> bool:
        """Whether bytes of the client would be read."""
        return self.producerState == "producing"


class Answering(Resource):
    """A resource that hands each request to a function, now or later."""

    isLeaf = True

    def __init__(self, answer: Callable[[Request], object]) -> None:
        super().__init__()
        self._answer = answer

    def render(self, request: Request) -> int:
        self._answer(request)
        return NOT_DONE_YET


class KubectlWire:
    """A connection to a site whose every request goes to ``answer``."""

    def __init__(self, answer: Callable[[Request], object], clock: Clock | None = None) -> None:
        self.clock = clock or Clock()
        self.site = KubeletSite(Answering(answer), self.clock)
        self.channel: KubeletChannel = self.site.buildProtocol(None)
        self.transport = MemoryTransport()
        self.channel.makeConnection(self.transport)
        self.lost = False

    def send(self, data: bytes) -> None:
        """The client writes."""
        self.channel.dataReceived(data)

    def take(self) -> bytes:
        """What the server wrote since the last time."""
        data = self.transport.value()
        self.transport.clear()
        return data

    def disconnect(self, cleanly: bool = True) -> None:
        """The connection is gone."""
        if not self.lost:
            self.lost = True
            self.channel.connectionLost(Failure(ConnectionDone() if cleanly else ConnectionLost()))

    def upgrade_to_spdy(self, *versions: str, path: str = "/exec/ns/p/c?command=sh") -> bytes:
        """POST as kubectl does; gives back the head of the response."""
        lines = [f"POST {path} HTTP/1.1", "Host: x", "Connection: Upgrade", "Upgrade: SPDY/3.1"]
        lines += [f"X-Stream-Protocol-Version: {version}" for version in versions]
        lines += ["Content-Length: 0"]
        self.send(("\r\n".join(lines) + "\r\n\r\n").encode())
        return self.take()

    def upgrade_to_websocket(
        self, *protocols: str, path: str = "/exec/ns/p/c?command=sh", glued: bytes = b""
    ) -> bytes:
        """GET as a WebSocket client does, ``glued`` right behind; gives back all that is answered."""
        lines = [f"GET {path} HTTP/1.1", "Host: x", "Connection: Upgrade", "Upgrade: websocket"]
        lines += ["Sec-WebSocket-Version: 13", f"Sec-WebSocket-Key: {WEBSOCKET_KEY}"]
        if protocols:
            lines += [f"Sec-WebSocket-Protocol: {', '.join(protocols)}"]
        self.send(("\r\n".join(lines) + "\r\n\r\n").encode() + glued)
        return self.take()
