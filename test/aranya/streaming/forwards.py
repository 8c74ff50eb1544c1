"""Clients of port-forward in all its languages, and the device side that they reach."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, urlsplit

from twisted.web.server import Request

from aranya.interfaces import ForwardStream
from aranya.streaming.forwarding import forward_streams
from aranya.streaming.negotiate import TUNNEL_PROTOCOL
from aranya.streaming.sessions import Session
from test.support.kubectl_wire import KubectlWire
from test.support.spdy_client import ClientStream, SpdyClient, WebSocketClient


@dataclass
class Connected:
    """One connection as the device's side has it (``ForwardEvents``)."""

    port: int
    stream: ForwardStream
    data: bytes = b""
    told: list[str] = field(default_factory=list)

    def data_received(self, data: bytes) -> None:
        self.data += data

    def finished(self) -> None:
        self.told.append("finished")

    def client_gone(self) -> None:
        self.told.append("gone")


class Forward:
    """A session, and the acceptor behind it."""

    def __init__(self, on_open: Callable[[ForwardStream], None] = lambda stream: None) -> None:
        self.connections: list[Connected] = []
        self.session: Session | None = None
        self._on_open = on_open
        self.wire = KubectlWire(self._answer)
        self.clock = self.wire.clock
        self.transport = self.wire.transport

    def _answer(self, request: Request) -> None:
        query = parse_qs(urlsplit(request.uri.decode()).query, keep_blank_values=True)
        self.session = forward_streams(request, query.get("port", []), self.clock, self)

    def connection_opened(self, port: int, stream: ForwardStream) -> Connected:
        self._on_open(stream)
        self.connections.append(Connected(port, stream))
        return self.connections[-1]


class SpdyForward(Forward):
    """kubectl port-forward over SPDY."""

    def __init__(self, **more: Any) -> None:
        super().__init__(**more)
        self.client = SpdyClient()
        self.head = self.wire.upgrade_to_spdy("portforward.k8s.io", path="/portForward/ns/p")
        self._requests = 0

    def open(self, **headers: str) -> ClientStream:
        """One stream, awaiting its reply."""
        self.send(self.client.syn(**headers))
        return self.client.streams[self.client.last]

    def send(self, data: bytes) -> None:
        """The client writes and reads."""
        self.wire.send(data)
        self.read()

    def read(self) -> None:
        """Read all the server wrote."""
        self.client.receive(self.wire.take())

    def connect(self, port: int = 80) -> tuple[ClientStream, ClientStream]:
        """A pair as kubectl opens it: error stream, its FIN, data stream."""
        number = str(self._requests)
        self._requests += 1
        error = self.open(streamtype="error", port=str(port), requestid=number)
        self.send(self.client.data(error.number, b"", True))
        data = self.open(streamtype="data", port=str(port), requestid=number)
        return error, data


class TunnelForward(SpdyForward):
    """kubectl port-forward over SPDY inside WebSocket messages."""

    def __init__(self, **more: Any) -> None:
        Forward.__init__(self, **more)
        self.client = SpdyClient()
        self.outer = WebSocketClient()
        self.head = self.wire.upgrade_to_websocket(TUNNEL_PROTOCOL, path="/portForward/ns/p")
        self._requests = 0

    def send(self, data: bytes) -> None:
        """The client writes its bytes in messages cut anywhere, and reads."""
        step = max(7, len(data) // 20)
        for start in range(0, len(data), step):
            self.wire.send(self.outer.binary(data[start : start + step]))
        self.read()

    def read(self) -> None:
        """Read all the server wrote."""
        self.outer.receive(self.wire.take())
        self.client.receive(b"".join(self.outer.messages))
        self.outer.messages.clear()


class WebSocketForward(Forward):
    """A WebSocket client that forwards the ports of its query."""

    def __init__(self, query: str = "port=80", protocol: str = "v4.channel.k8s.io", **more: Any) -> None:
        super().__init__(**more)
        self.client = WebSocketClient()
        answer = self.wire.upgrade_to_websocket(protocol, path=f"/portForward/ns/p?{query}")
        self.head, _, self.body = answer.partition(b"\r\n\r\n")
        if self.head.startswith(b"HTTP/1.1 101"):
            self.client.receive(self.body)

    def read(self) -> list[bytes]:
        """All messages so far."""
        self.client.receive(self.wire.take())
        return self.client.messages
