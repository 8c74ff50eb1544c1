"""
A kubelet that answers at once: what kubectl and the API server cost alone. ``python -m test.bench.floor``

It speaks SPDY, knows the commands of ``contenders`` and plays them itself instead of running anything, and
forwards to loopback. It checks nobody: it lives on loopback for the length of a run and can do no harm.
Arguments: a PEM file with certificate and key.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qs, urlsplit

from twisted.internet import reactor as running
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol
from twisted.internet.interfaces import IPushProducer
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.ssl import CertificateOptions, PrivateCertificate
from zope.interface import implementer

from aranya.streaming.spdy.connection import (
    Connection,
    DataReceived,
    Event,
    StreamFinished,
    StreamOpened,
    StreamReset,
)
from test.bench.contenders import ECHO, READ, TRUE, WRITE

reactor: Any = running

_SUCCESS = b'{"metadata":{},"status":"Success"}'
_CHUNK = 64 * 1024
_MOST_STREAMS = 4096


@implementer(IPushProducer)
class Kubelet(Protocol):
    """One connection of the API server."""

    transport: Any  # TLS: more than its interface says

    def __init__(self) -> None:
        self._head = b""
        self._spdy: Connection | None = None
        self._play: Callable[[Event], None] = lambda event: None
        self._wanted: set[str] = set()
        self._command: tuple[str, ...] = ()
        self._streams: dict[str, int] = {}
        self._errors: dict[str, int] = {}
        self._targets: dict[int, Target] = {}
        self._early: dict[int, list[bytes]] = {}
        self._file: Any = None
        self._full = False

    def connectionMade(self) -> None:
        """Small frames must not wait for each other."""
        self.transport.setTcpNoDelay(True)

    def dataReceived(self, data: bytes) -> None:
        """A request, then frames."""
        if self._spdy is None:
            self._head += data
            head, end, data = self._head.partition(b"\r\n\r\n")
            if not end or not self._begin(head) or not data:
                return
        spdy = self._spdy
        assert spdy is not None
        events = spdy.receive(data)
        answers = spdy.take_output()
        if answers:
            self.transport.write(answers)
        for event in events:
            self._play(event)

    def _begin(self, head: bytes) -> bool:
        line, *rest = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value for name, _, value in (one.partition(": ") for one in rest)}
        if "spdy" not in headers.get("upgrade", "").lower():
            self.transport.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
            self.transport.loseConnection()
            return False
        url = urlsplit(line.split()[1])
        if url.path.startswith("/portForward/"):
            version, self._play = "portforward.k8s.io", self._forward
        else:
            version, self._play = "v4.channel.k8s.io", self._execute
            query = parse_qs(url.query)
            self._command = tuple(query["command"])
            named = {"input": "stdin", "output": "stdout", "error": "stderr"}
            self._wanted = {"error"} | {stream for flag, stream in named.items() if query.get(flag) == ["1"]}
            if query.get("tty") == ["1"]:
                self._wanted = (self._wanted | {"resize"}) - {"stderr"}
        self._spdy = Connection(_MOST_STREAMS)
        self.transport.write(
            b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n"
            b"X-Stream-Protocol-Version: " + version.encode() + b"\r\n\r\n"
        )
        return True

    # ---- exec

    def _execute(self, event: Event) -> None:
        assert self._spdy is not None
        match event:
            case StreamOpened(stream, headers):
                self.transport.write(self._spdy.reply(stream))
                self._streams[headers["streamtype"]] = stream
                if self._wanted <= self._streams.keys():
                    self._wanted = {"nothing more"}
                    self._run()
            case DataReceived(stream, data) if self._command == ECHO and stream == self._streams.get("stdin"):
                self._say(data)
            case StreamFinished(stream) if self._command == WRITE and stream == self._streams.get("stdin"):
                self._say(b"done\n")
                self._succeed()

    def _run(self) -> None:
        if self._command == TRUE:
            self._succeed()
        elif self._command in (WRITE, ECHO):
            self._say(b"ready\r\n" if self._command == ECHO else b"ready\n")
        elif self._command[0] == READ:
            self._file = open(self._command[1], "rb", buffering=0)  # noqa: SIM115  # closed at its end
            self.transport.registerProducer(self, True)
            self.resumeProducing()

    def _say(self, data: bytes) -> None:
        assert self._spdy is not None
        self.transport.writeSequence(self._spdy.data(self._streams["stdout"], data))

    def _succeed(self) -> None:
        assert self._spdy is not None
        for name in ("stdout", "stderr"):
            if name in self._streams:
                self.transport.write(self._spdy.finish(self._streams[name]))
        error = self._streams["error"]
        self.transport.writeSequence([*self._spdy.data(error, _SUCCESS), self._spdy.finish(error)])
        self.transport.loseConnection()

    def pauseProducing(self) -> None:
        """The API server reads slower than we write."""
        self._full = True
        for target in self._targets.values():
            target.transport.pauseProducing()

    def resumeProducing(self) -> None:
        """It has room again."""
        self._full = False
        for target in self._targets.values():
            target.transport.resumeProducing()
        while self._file is not None and not self._full:
            data = self._file.read(_CHUNK)
            if data:
                self._say(data)
            else:
                self._file.close()
                self._file = None
                self.transport.unregisterProducer()
                self._succeed()

    def stopProducing(self) -> None:
        """It is gone."""
        self._file = None

    # ---- port-forward

    def _forward(self, event: Event) -> None:
        assert self._spdy is not None
        match event:
            case StreamOpened(stream, headers):
                self.transport.write(self._spdy.reply(stream))
                request = headers.get("requestid", "")
                if headers["streamtype"] == "error":
                    self._errors[request] = stream
                    return
                if not self._targets and not self._early:
                    self._unregister()
                    self.transport.registerProducer(self, True)
                self._early[stream] = []
                target = Target(self, stream, self._errors.pop(request, 0))
                endpoint = TCP4ClientEndpoint(reactor, "127.0.0.1", int(headers["port"]))
                connectProtocol(endpoint, target).addErrback(lambda _: self.target_ended(target))
            case DataReceived(stream, data):
                if stream in self._targets:
                    self._targets[stream].transport.write(data)
                elif stream in self._early:
                    self._early[stream].append(data)
            case StreamFinished(stream) | StreamReset(stream, _):
                if stream in self._targets:
                    self._targets[stream].transport.loseConnection()

    def target_ready(self, target: Target) -> None:
        """The target accepted: what waited goes."""
        self._targets[target.stream] = target
        for data in self._early.pop(target.stream, []):
            target.transport.write(data)

    def target_said(self, target: Target, data: bytes) -> None:
        """Pass it on."""
        if self._spdy is not None:
            self.transport.writeSequence(self._spdy.data(target.stream, data))

    def target_ended(self, target: Target) -> None:
        """Close both streams of the connection."""
        self._targets.pop(target.stream, None)
        if self._spdy is not None and self.connected:
            self.transport.write(self._spdy.finish(target.stream) + self._spdy.finish(target.error))

    def hold(self) -> None:
        """A target reads slower than the client writes."""
        self.transport.pauseProducing()

    def release(self) -> None:
        """It has room again."""
        self.transport.resumeProducing()

    def _unregister(self) -> None:
        if getattr(self.transport, "_producer", None) is not None:
            self.transport.unregisterProducer()

    def connectionLost(self, reason: Any = None) -> None:
        """The API server hung up."""
        for target in list(self._targets.values()):
            target.transport.abortConnection()


@implementer(IPushProducer)
class Target(Protocol):
    """One forwarded connection's far end."""

    transport: Any

    def __init__(self, kubelet: Kubelet, stream: int, error: int) -> None:
        self._kubelet = kubelet
        self.stream = stream
        self.error = error

    def connectionMade(self) -> None:
        """It accepted."""
        self.transport.setTcpNoDelay(True)
        self.transport.registerProducer(self, True)
        self._kubelet.target_ready(self)

    def dataReceived(self, data: bytes) -> None:
        """It said something."""
        self._kubelet.target_said(self, data)

    def connectionLost(self, reason: Any = None) -> None:
        """It hung up."""
        self._kubelet.target_ended(self)

    def pauseProducing(self) -> None:
        """It is full."""
        self._kubelet.hold()

    def resumeProducing(self) -> None:
        """It drained."""
        self._kubelet.release()

    def stopProducing(self) -> None:
        """It is gone."""


def main(pem: str) -> None:
    """Serve until killed; the port goes to stdout."""
    with open(pem, "rb") as file:
        pair = PrivateCertificate.loadPEM(file.read())
    options = CertificateOptions(
        privateKey=pair.privateKey.original,
        certificate=pair.original,
        # The API server offers it and Twisted, told of none, breaks off the handshake.
        acceptableProtocols=[b"http/1.1"],
    )
    port = reactor.listenSSL(0, Factory.forProtocol(Kubelet), options, interface="127.0.0.1")
    print(json.dumps(port.getHost().port), flush=True)
    reactor.run()


if __name__ == "__main__":
    main(*sys.argv[1:])
