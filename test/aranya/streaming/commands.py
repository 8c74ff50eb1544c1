"""Clients of ``exec`` in both languages, and the device side that they reach."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from twisted.internet.interfaces import IPushProducer
from twisted.web.server import Request
from zope.interface import implementer

from aranya.interfaces import ClientStreams
from aranya.streaming.remotecommand import StreamOptions, exec_streams
from aranya.streaming.sessions import Session
from test.support.kubectl_wire import KubectlWire
from test.support.spdy_client import ClientStream, SpdyClient, WebSocketClient

V4 = "v4.channel.k8s.io"


ALL = StreamOptions(stdin=True, stdout=True, stderr=True)


TTY = StreamOptions(stdin=True, stdout=True, tty=True)


@implementer(IPushProducer)
class Producer:
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def pauseProducing(self) -> None:
        self.told.append("pause")

    def resumeProducing(self) -> None:
        self.told.append("resume")

    def stopProducing(self) -> None:
        self.told.append("stop")


@dataclass
class Events:
    """What a session hears of its client."""

    stdin: bytes = b""
    told: list[Any] = field(default_factory=list)
    on_stdin: Callable[[], None] | None = None

    def stdin_received(self, data: bytes) -> None:
        self.stdin += data
        if self.on_stdin is not None:
            self.on_stdin()

    def stdin_ended(self) -> None:
        self.told.append("end")

    def resized(self, size: Any) -> None:
        self.told.append((size.width, size.height))

    def client_gone(self, reason: str) -> None:
        self.told.append(f"gone: {reason}")


class Exec:
    """A session on a connection, with the client's and the device's side at hand."""

    def __init__(
        self, options: StreamOptions, on_start: Callable[[ClientStreams], None] = lambda streams: None
    ) -> None:
        self.options = options
        self.events = Events()
        self.started: list[ClientStreams] = []
        self.session: Session | None = None
        self._on_start = on_start
        self.wire = KubectlWire(self._answer)
        self.clock = self.wire.clock
        self.transport = self.wire.transport

    def _answer(self, request: Request) -> None:
        self.session = exec_streams(request, self.options, self.clock, self._start, websocket_v5=True)

    def _start(self, streams: ClientStreams) -> Events:
        self.started.append(streams)
        self._on_start(streams)
        return self.events

    @property
    def streams(self) -> ClientStreams:
        """What the device's side writes to."""
        (streams,) = self.started
        return streams


class SpdyExec(Exec):
    """kubectl over SPDY."""

    def __init__(
        self, options: StreamOptions = ALL, version: str = V4, open_now: bool = True, **more: Any
    ) -> None:
        super().__init__(options, **more)
        self.client = SpdyClient()
        self.names: dict[str, ClientStream] = {}
        self.head = self.wire.upgrade_to_spdy(version)
        if open_now:
            self.open("error")
            for name, wanted in (
                ("stdin", options.stdin),
                ("stdout", options.stdout),
                ("stderr", options.stderr and not options.tty),
                ("resize", options.tty and version >= "v3"),
            ):
                if wanted:
                    self.open(name)

    def open(self, name: str) -> None:
        """Create a stream as Go does: wait for the reply."""
        self.wire.send(self.client.syn(streamtype=name))
        self.names[name] = self.client.streams[self.client.last]
        self.read()

    def read(self) -> None:
        """Read all the server wrote."""
        self.client.receive(self.wire.take())

    def send(self, name: str, data: bytes = b"", fin: bool = False) -> None:
        """DATA on a stream."""
        self.wire.send(self.client.data(self.names[name].number, data, fin))

    def received(self, name: str) -> bytes:
        """What arrived on a stream."""
        self.read()
        return self.names[name].received


class WebSocketExec(Exec):
    """A client over WebSocket."""

    def __init__(self, options: StreamOptions = ALL, protocol: str = V4, **more: Any) -> None:
        super().__init__(options, **more)
        self.client = WebSocketClient()
        answer = self.wire.upgrade_to_websocket(*([protocol] if protocol else []))
        self.head, _, rest = answer.partition(b"\r\n\r\n")
        self.client.receive(rest)

    def send(self, payload: bytes) -> None:
        """One binary message."""
        self.wire.send(self.client.binary(payload))

    def read(self) -> list[bytes]:
        """All messages so far."""
        self.client.receive(self.wire.take())
        return self.client.messages


def go_decodes(text: bytes) -> dict[str, Any]:
    """What ``encoding/json`` of Go makes of an object: the last of a repeated key counts."""
    return dict(json.loads(text, object_pairs_hook=dict))
