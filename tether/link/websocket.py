"""The WebSocket beneath a link; autobahn lives here and nowhere else.

Only whole binary messages pass. Which sub-protocol is spoken, and whether this
peer is let in at all, is decided within the handshake, before a byte of ours is
spent on it. Sizes are capped before anything is buffered, nothing is compressed,
and every wait is on the clock that was handed in: autobahn's own timers, which
run on the global reactor, are off.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from autobahn.twisted.websocket import (
    WebSocketClientFactory,
    WebSocketClientProtocol,
    WebSocketServerFactory,
    WebSocketServerProtocol,
)
from autobahn.websocket import USES_NVX
from autobahn.websocket.types import ConnectionDeny
from cryptography.x509 import Certificate
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IDelayedCall, IPushProducer, IReactorTime
from twisted.internet.protocol import connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from tether.link.transport import MessageReceiver, MessageTransport
from tether.wire.frames import MESSAGE_LIMIT

#: The sub-protocols that are spoken here.
TETHER = "tether.v1"
JOIN = "join.v1"

#: How long TLS and the opening handshake may take, and how long the end.
OPEN_PATIENCE = 10.0
CLOSE_PATIENCE = 5.0

#: The most bytes of the peer's half of the opening handshake.
_HANDSHAKE_LIMIT = 16 * 1024
#: The most frames of one message: nobody here sends more than one.
_FRAGMENTS_LIMIT = 64
#: What the kernel may hold that was not sent yet: bulk in there delays every keystroke.
_NOTSENT_LOWAT = 32 * 1024
_TCP_NOTSENT_LOWAT = getattr(socket, "TCP_NOTSENT_LOWAT", 25)  # 25 on Linux, whose name Python may lack

_UNSUPPORTED_DATA = 1003

_log = Logger()


def nvx_available() -> bool:
    """Whether frames are masked in C; in pure Python a client sends 10 MB/s and burns a core for it."""
    return bool(USES_NVX)


@dataclass(frozen=True, slots=True)
class Refusal:
    """Not let in: an HTTP status and one line."""

    status: int
    line: str


#: Given the sub-protocol and the connection (for its certificate and address): who hears it, or why not.
Decide = Callable[[str, MessageTransport], MessageReceiver | Refusal]


class _Silence:
    """Takes autobahn's chatter; what matters is told to the receiver."""

    def debug(self, *_: object, **__: object) -> None:
        """Nothing."""

    info = warn = error = trace = failure = debug


@implementer(IPushProducer)
class _Messages:
    """What server and client have in common: a ``MessageTransport`` over autobahn's protocol.

    It is mixed in before autobahn's class, so its methods come first.
    """

    log = _Silence()
    # What autobahn's class brings, which has no types.
    STATE_OPEN: int
    STATE_CONNECTING: int
    factory: Any
    transport: Any
    state: int
    data: bytes
    message_data: Any
    message_is_binary: bool
    failedByMe: bool
    droppedByMe: bool
    wasNotCleanReason: str | None
    remoteCloseReason: str | None
    sendMessage: Callable[..., None]
    sendPong: Callable[[bytes], None]
    sendCloseFrame: Callable[[int, bytes], None]
    _dataReceived: Callable[[bytes], None]

    def __init__(self) -> None:
        super().__init__()
        self.receiver: MessageReceiver | None = None
        self._clock: IReactorTime
        self._deadline: IDelayedCall | None = None
        self._heard_at = 0.0
        self._fragments = 0
        self._why: str | None = None
        self._producer: IPushProducer | None = None
        self._registered = False
        self._full = False

    # ---- Twisted calls

    def connectionMade(self) -> None:
        """TCP is there; TLS and the handshake must follow in time."""
        self._clock = self.factory.clock
        self._heard_at = self._clock.seconds()
        self._deadline = self._clock.callLater(OPEN_PATIENCE, self._late)
        _prefer_latency(self.transport)
        super().connectionMade()  # type: ignore[misc]  # autobahn's

    def dataReceived(self, data: bytes) -> None:
        """Bytes of the peer, which is alive, then."""
        self._heard_at = self._clock.seconds()
        if self.state == self.STATE_CONNECTING and len(self.data) + len(data) > _HANDSHAKE_LIMIT:
            self._break("the opening handshake is too long")
            return
        # Not autobahn's ``dataReceived``: it formats a log line for every piece.
        self._dataReceived(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """TCP is gone."""
        self._cancel_deadline()
        super().connectionLost(reason)  # type: ignore[misc]  # autobahn's
        receiver, self.receiver = self.receiver, None
        if receiver is not None:
            receiver.connection_lost(self._reason(reason))

    def pauseProducing(self) -> None:
        """The transport is full."""
        self._full = True
        if self._producer is not None:
            self._producer.pauseProducing()

    def resumeProducing(self) -> None:
        """The transport drained."""
        self._full = False
        if self._producer is not None:
            self._producer.resumeProducing()

    def stopProducing(self) -> None:
        """The transport is gone; ``connectionLost`` follows."""

    # ---- autobahn calls

    def onOpen(self) -> None:
        """The handshake is done."""
        self._cancel_deadline()
        self._registered = True
        self.transport.registerProducer(self, True)
        if self.receiver is not None:
            self.receiver.connected(self)

    def onMessageFrameBegin(self, length: int) -> None:
        """A frame begins; a message of endlessly many empty ones must not pile up."""
        super().onMessageFrameBegin(length)  # type: ignore[misc]  # autobahn's
        self._fragments += 1
        if self._fragments > _FRAGMENTS_LIMIT:
            self._break(f"a message of more than {_FRAGMENTS_LIMIT} frames")

    def onMessageEnd(self) -> None:
        """A message is complete. Not autobahn's own: it fires an observer for every message."""
        self._fragments = 0
        pieces, self.message_data = self.message_data, None
        if self.failedByMe or self.receiver is None:
            return
        if not self.message_is_binary:
            self._break("a text message, where only binary ones are spoken")
            return
        self.receiver.message_received(pieces[0] if len(pieces) == 1 else b"".join(pieces))

    def onPing(self, payload: bytes) -> None:
        """Nobody here sends these, but an answer is due, unless nobody reads it."""
        if not self._full:
            self.sendPong(payload)

    def unregisterProducer(self) -> None:
        """Autobahn hangs up, perhaps before it ever shook hands."""
        if self._registered:
            self._registered = False
            self.transport.unregisterProducer()

    def sendData(self, data: bytes, sync: bool = False, chopsize: int | None = None) -> None:
        """Write to the transport. Not autobahn's own: it formats a log line for every piece."""
        self.transport.write(data)

    # ---- MessageTransport

    @property
    def address(self) -> str:
        """Where the peer is."""
        peer = self.transport.getPeer()
        host, port = getattr(peer, "host", None), getattr(peer, "port", None)
        return f"{host}:{port}" if host is not None else str(peer)

    @property
    def heard_at(self) -> float:
        """When the last byte came."""
        return self._heard_at

    def send(self, message: bytes) -> None:
        """Send one binary message."""
        if self.state == self.STATE_OPEN:
            self.sendMessage(message, isBinary=True)

    def register(self, producer: IPushProducer) -> None:
        """Tell ``producer`` when the transport is full, and when it drained."""
        self._producer = producer

    def close(self, code: int, reason: str) -> None:
        """Shut hands and close; if that takes too long, without shaking."""
        if self.state != self.STATE_OPEN:
            self.abort()
            return
        self._why = self._why or reason
        self._cancel_deadline()
        self._deadline = self._clock.callLater(CLOSE_PATIENCE, self.abort)
        # Not ``sendClose``: that keeps the codes of RFC 6455 for itself.
        self.sendCloseFrame(code, reason.encode()[:123].decode(errors="ignore").encode())

    def abort(self) -> None:
        """Drop the connection."""
        self._cancel_deadline()
        self.transport.abortConnection()

    def peer_certificate(self) -> Certificate | None:
        """What the peer proved in the TLS handshake."""
        ask = getattr(self.transport, "getPeerCertificate", None)
        certificate = None if ask is None else ask()
        return None if certificate is None else certificate.to_cryptography()

    # ---- odds

    def _late(self) -> None:
        self._deadline = None
        self._break(f"the handshake took longer than {OPEN_PATIENCE:.0f} s")

    def _break(self, why: str) -> None:
        """The peer does not keep to what is spoken here."""
        self._why = self._why or why
        self.failedByMe = True
        self.abort()

    def _cancel_deadline(self) -> None:
        if self._deadline is not None:
            if self._deadline.active():
                self._deadline.cancel()
            self._deadline = None

    def _reason(self, failure: Failure) -> str:
        """Why the connection ended, in one line."""
        told: str | None = self.remoteCloseReason
        if self._why or told:
            return str(self._why or told)
        if self.failedByMe or self.droppedByMe:
            return str(self.wasNotCleanReason or "the connection was closed")
        if failure.check(ConnectionDone):
            return "the other side closed the connection"
        if failure.check(ConnectionLost):
            return "the connection was lost"
        return f"the connection was lost: {failure.getErrorMessage()}"


class ServerProtocol(_Messages, WebSocketServerProtocol):  # type: ignore[misc]  # autobahn is untyped
    """One device's connection, seen by the controller."""

    def onConnect(self, request: Any) -> str:
        """Within the handshake: let in, and as what?"""
        try:
            decided = self._decided(request)
        except Exception:
            _log.failure("deciding on a connection from {peer} failed", peer=self.address)
            decided = Refusal(500, "internal error")
        if isinstance(decided, Refusal):
            raise ConnectionDeny(decided.status, decided.line)
        sub_protocol, self.receiver = decided
        return sub_protocol

    def _decided(self, request: Any) -> tuple[str, MessageReceiver] | Refusal:
        if request.origin:
            return Refusal(403, "no browsers")
        for sub_protocol in request.protocols:
            if sub_protocol in self.factory.sub_protocols:
                decided = self.factory.decide(sub_protocol, self)
                return decided if isinstance(decided, Refusal) else (sub_protocol, decided)
        return Refusal(400, f"the sub-protocols spoken here are {', '.join(self.factory.sub_protocols)}")

    def failHandshake(self, reason: str, code: int = 400, responseHeaders: object = None) -> None:
        """Answer in HTTP, with one line, and close."""
        if "upgrade" not in getattr(self, "http_headers", {}) and code in (400, 426):
            code, reason = (404, "not found") if code == 400 else (426, "only WebSocket is spoken here")
        line = " ".join(reason.split())
        body = f"{line}\n".encode()
        head = (
            f"HTTP/1.1 {code} {line}\r\nContent-Type: text/plain; charset=utf-8\r\n"
            f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        )
        self._why = line
        self._cancel_deadline()
        self._deadline = self._clock.callLater(CLOSE_PATIENCE, self.abort)
        self.sendData(head.encode() + body)
        self.dropConnection(abort=False)


class ClientProtocol(_Messages, WebSocketClientProtocol):  # type: ignore[misc]  # autobahn is untyped
    """A device's connection to the gateway, seen by the device."""

    def connectionMade(self) -> None:
        """TCP is there; whoever hears this connection hears how it goes from here on."""
        self.receiver = self.factory.make_receiver()
        super().connectionMade()

    def onConnect(self, response: Any) -> None:
        """The gateway let us in; it must speak what was asked for."""
        if response.protocol != self.factory.sub_protocol:
            self._break(f"the gateway does not speak {self.factory.sub_protocol}")

    def failHandshake(self, reason: str) -> None:
        """The gateway did not let us in: its status line says why."""
        _, status, line = (*getattr(self, "http_status_line", "").split(maxsplit=2), "", "", "")[:3]
        if status.isdecimal() and status != "101":
            self.factory.refusal = Refusal(int(status), line)
            reason = f"the gateway refused: {line or 'it does not say why'} ({status})"
        self._break(reason)


class ServerFactory(WebSocketServerFactory):
    """Connections that devices open; for any Twisted server endpoint, TLS in front or not."""

    protocol = ServerProtocol
    noisy = False

    def __init__(
        self, decide: Decide, clock: IReactorTime, sub_protocols: tuple[str, ...] = (TETHER, JOIN)
    ) -> None:
        super().__init__(protocols=list(sub_protocols), server="", reactor=clock)
        self.decide = decide
        self.clock = clock
        self.sub_protocols = sub_protocols
        self.setProtocolOptions(
            versions=[13],
            webStatus=False,
            requireMaskedClientFrames=True,
            serveFlashSocketPolicy=False,
            **_COMMON,
        )


class ClientFactory(WebSocketClientFactory):
    """A connection to a gateway; for any Twisted client endpoint, TLS in front or not.

    ``make_receiver`` is called for every connection. When the gateway refuses,
    the receiver hears ``connection_lost`` without ``connected``, and ``refusal``
    says what it answered; it is ``None`` otherwise.
    """

    protocol = ClientProtocol
    noisy = False

    def __init__(
        self,
        url: str,
        sub_protocol: str,
        make_receiver: Callable[[], MessageReceiver],
        clock: IReactorTime,
        software: str = "",
    ) -> None:
        super().__init__(url=url, protocols=[sub_protocol], useragent=software, reactor=clock)
        self.make_receiver = make_receiver
        self.refusal: Refusal | None = None
        self.clock = clock
        self.sub_protocol = sub_protocol
        self.setProtocolOptions(
            version=18,
            acceptMaskedServerFrames=False,
            maskClientFrames=True,
            serverConnectionDropTimeout=0,
            **_COMMON,
        )


_COMMON: dict[str, Any] = {
    "utf8validateIncoming": False,
    "applyMask": True,
    "maxFramePayloadSize": MESSAGE_LIMIT,
    "maxMessagePayloadSize": MESSAGE_LIMIT,
    "autoFragmentSize": 0,
    "failByDrop": True,
    "echoCloseCodeReason": False,
    # Off, because autobahn runs them on the global reactor; ``_Messages`` has its own.
    "openHandshakeTimeout": 0,
    "closeHandshakeTimeout": 0,
    "autoPingInterval": 0,
    "autoPingTimeout": 0,
}


def _prefer_latency(transport: Any) -> None:
    """Send small writes at once and keep what the kernel holds small, where there is a TCP socket beneath.

    Autobahn's own ``tcpNoDelay`` comes too early to take effect.
    """
    while transport is not None and not isinstance(getattr(transport, "socket", None), socket.socket):
        transport = getattr(transport, "transport", None)
    if transport is None:
        return
    try:
        transport.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        transport.socket.setsockopt(socket.IPPROTO_TCP, _TCP_NOTSENT_LOWAT, _NOTSENT_LOWAT)
    except OSError:
        pass  # A socket of another family, in a test or behind a proxy of one.
