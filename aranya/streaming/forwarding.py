"""port-forward: each connection a client forwards, as a ``ForwardStream``.

Over SPDY one connection carries any number of forwarded ones, each a pair of
streams (``error`` and ``data``) opened one after the other. Over WebSocket each
port of the query is one forwarded connection. The WebSocket tunnel carries the
SPDY form inside binary messages.

There is no flow control per forwarded connection in any of these languages. One
that does not take its data may leave a megabyte here; only then the whole
connection stops reading, and the others with it, until it takes or ends.

An error text makes kubectl end its whole session, so only a caller that could
not reach the target should give one to ``end``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IDelayedCall, IPushProducer, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.http import Request

from aranya.interfaces import ForwardAcceptor, ForwardEvents
from aranya.streaming.carrier import CLIENT_CLOSED, Carrier
from aranya.streaming.intake import Brake, Intake
from aranya.streaming.negotiate import (
    PORT_FORWARD,
    TUNNEL_PROTOCOL,
    Refusal,
    Spdy,
    WebSocket,
    negotiate,
)
from aranya.streaming.remotecommand import upgrade_request
from aranya.streaming.sessions import Carried, Session
from aranya.streaming.spdy.protocol import SpdyProtocol
from aranya.streaming.upgrade import refuse, take_over
from aranya.streaming.websocket.channels import PROTOCOLS, ChannelData, ChannelProtocol, Channels
from aranya.streaming.websocket.frames import Part
from aranya.streaming.websocket.protocol import WebSocketProtocol

PAIRING_SECONDS: Final = 30
MAX_STREAMS: Final = 4096
#: kubectl numbers its requests; whoever names them otherwise must be brief.
_REQUEST_LIMIT: Final = 64
#: A channel is one byte, and a port takes two of them.
_MAX_PORTS: Final = 100


def forward_streams(
    request: Request, asked: Sequence[str], clock: IReactorTime, acceptor: ForwardAcceptor
) -> Session | None:
    """Answer a port-forward request: refuse it (``None``), or take its connection over.

    ``asked`` are the values of the query's ``port``; they matter over WebSocket only.
    """
    answer = negotiate(upgrade_request(request), PORT_FORWARD)
    ports: list[int] = []
    if isinstance(answer, WebSocket) and answer.protocol != TUNNEL_PROTOCOL:
        found = read_ports(asked)
        if isinstance(found, Refusal):
            answer = found
        else:
            ports = found
    match answer:
        case Refusal(code, text, headers):
            refuse(request, code, text, [(name.encode(), value.encode()) for name, value in headers])
            return None
        case Spdy():
            on_spdy = _SpdyForwarding(clock, acceptor)
            return on_spdy if take_over(request, answer.head(), on_spdy.wire) else None
        case WebSocket(name) if name == TUNNEL_PROTOCOL:
            tunnelled = _SpdyForwarding(clock, acceptor)
            tunnel = _Tunnel(clock, tunnelled.wire)
            return tunnelled if take_over(request, answer.head(), tunnel.wire) else None
        case WebSocket(name):
            on_websocket = _WebSocketForwarding(clock, acceptor, PROTOCOLS[name], ports)
            return on_websocket if take_over(request, answer.head(), on_websocket.wire) else None


def read_ports(values: Sequence[str]) -> list[int] | Refusal:
    """The ports of a query, each value a number or a comma list."""
    ports: list[int] = []
    words = [word for value in values for word in value.split(",")]
    if not any(words):
        return Refusal(400, 'query parameter "port" is required')
    for word in words:
        if not (word.isascii() and word.isdigit()):
            return _bad_port(word, "invalid syntax")
        if len(word) > 5 or int(word) > 0xFFFF:
            return _bad_port(word, "value out of range")
        if int(word) == 0:
            return Refusal(400, f'port "{word}" must be > 0')
        ports.append(int(word))
    if len(ports) > _MAX_PORTS:
        return Refusal(400, f"too many ports: at most {_MAX_PORTS} can be forwarded at once")
    return ports


def _bad_port(word: str, why: str) -> Refusal:
    shown = "".join(character for character in word[:64] if character.isprintable())
    return Refusal(400, f'unable to parse "{shown}" as a port: strconv.ParseUint: parsing "{shown}": {why}')


class _Forwarding(Carried):
    """What the sessions share: the acceptor, the brake, one end."""

    _log = Logger()

    def __init__(self, carrier: Carrier, acceptor: ForwardAcceptor) -> None:
        super().__init__()
        self.carrier = carrier
        self._acceptor = acceptor
        self._ended = False
        self.brake = Brake(carrier.pause_reading, carrier.resume_reading)

    def connections(self) -> Sequence[_Forwarded]:
        """All that are not over."""
        raise NotImplementedError

    def say_goodbye(self) -> None:
        """Close the carrier in the manners of its language."""
        raise NotImplementedError

    def accept(self, port: int, connection: _Forwarded) -> None:
        """Tell the acceptor of a new connection."""
        try:
            events = self._acceptor.connection_opened(port, connection)
        except Exception:
            # The one hop that can still tell the client.
            self._log.failure("a forwarded connection failed to start")
            connection.end(f"error forwarding port {port}: internal error")
            return
        connection.opened(events)

    # ---- Session ---------------------------------------------------------------

    def abort(self, message: str) -> None:
        """End every connection with this error, then the session."""
        if self._ended:
            return
        self._ended = True
        for connection in self.connections():
            connection.abort(message)
        self.say_goodbye()

    # ---- the carrier tells -------------------------------------------------------

    def connection_ended(self, reason: str) -> None:
        self._ended = True
        for connection in self.connections():
            connection.client_gone()


class _Forwarded:
    """One forwarded connection: ``ForwardStream``; a subclass writes in its language."""

    def __init__(self, session: _Forwarding) -> None:
        self._carrier = session.carrier
        self._intake = Intake(session.brake, self._deliver, self._deliver_end)
        self._events: ForwardEvents | None = None
        self._producer: IPushProducer | None = None
        self._paused = False
        self._over = False
        self._gone_early = False
        self._finished = False

    # ---- a language overrides ------------------------------------------------

    def _write(self, data: bytes) -> None:
        raise NotImplementedError

    def _write_finish(self) -> None:
        raise NotImplementedError

    def _write_end(self, error: str) -> None:
        raise NotImplementedError

    # ---- ForwardStream ----------------------------------------------------------

    def write(self, data: bytes) -> None:
        if data and not self._over and not self._finished:
            self._write(data)

    def register_producer(self, producer: IPushProducer) -> None:
        if not self._over:
            self.unregister_producer()
            self._producer = producer
            self._carrier.add_producer(producer)

    def unregister_producer(self) -> None:
        if self._producer is not None:
            self._carrier.remove_producer(self._producer)
            self._producer = None

    def pause(self) -> None:
        self._paused = True
        self._intake.pause()

    def resume(self) -> None:
        self._paused = False
        if self._events is not None:
            self._intake.resume()

    def finish(self) -> None:
        if not self._over and not self._finished:
            self._finished = True
            self._write_finish()

    def end(self, error: str = "") -> None:
        if not self._over:
            self._stop()
            self._write_end(" ".join(error.split()))

    # ---- the session tells --------------------------------------------------------

    def opened(self, events: ForwardEvents) -> None:
        """Somebody listens now."""
        if self._gone_early:
            events.client_gone()
        if self._over:
            return
        self._events = events
        if not self._paused:
            self._intake.resume()

    def data_received(self, data: bytes) -> None:
        """Bytes of the client."""
        self._intake.receive(data)

    def data_finished(self) -> None:
        """The client sends no more."""
        self._intake.finish()

    def client_gone(self) -> None:
        """The client gave this connection up."""
        if not self._over:
            self._stop()
            self._tell_gone()

    def abort(self, message: str) -> None:
        """End with this error, told to both sides."""
        if not self._over:
            self.end(message)
            self._tell_gone()

    def _tell_gone(self) -> None:
        if self._events is not None:
            self._events.client_gone()
        else:
            self._gone_early = True

    def _stop(self) -> None:
        self._over = True
        self.unregister_producer()
        self._intake.discard()

    def _deliver(self, data: bytes) -> None:
        if self._events is not None:
            self._events.data_received(data)

    def _deliver_end(self) -> None:
        if self._events is not None:
            self._events.finished()


# ---- SPDY -----------------------------------------------------------------------


class _Pair(_Forwarded):
    """A pair of SPDY streams, complete or not."""

    def __init__(self, session: _SpdyForwarding, request: str, port: int, deadline: IDelayedCall) -> None:
        super().__init__(session)
        self._session = session
        self.request = request
        self.port = port
        self.deadline = deadline
        self.streams: dict[str, int] = {}

    def _write(self, data: bytes) -> None:
        self._session.wire.write(self.streams["data"], data)

    def _write_finish(self) -> None:
        self._session.wire.finish(self.streams["data"])

    def _write_end(self, error: str) -> None:
        wire = self._session.wire
        data, errors = self.streams.get("data"), self.streams.get("error")
        if error:
            if errors is not None:
                wire.write(errors, error.encode())
                wire.finish(errors)
            if data is not None:
                wire.reset(data)
            return
        if data is not None:
            wire.finish(data)
        if errors is not None:
            wire.finish(errors)

    def given_up(self) -> None:
        """The client reset the data stream; it still waits for the end of the errors."""
        self.client_gone()
        errors = self.streams.get("error")
        if errors is not None:
            self._session.wire.finish(errors)

    def _stop(self) -> None:
        super()._stop()
        self._session.forget(self)


class _SpdyForwarding(_Forwarding):
    """Any number of pairs on one SPDY connection."""

    def __init__(self, clock: IReactorTime, acceptor: ForwardAcceptor) -> None:
        self.wire = SpdyProtocol(self, clock, MAX_STREAMS)
        super().__init__(self.wire, acceptor)
        self._clock = clock
        self._pairs: dict[str, _Pair] = {}
        self._by_stream: dict[int, _Pair] = {}

    def connection_made(self) -> None:
        """The client speaks first."""

    def connections(self) -> Sequence[_Forwarded]:
        return tuple(self._pairs.values())

    def say_goodbye(self) -> None:
        self.wire.go_away()

    def forget(self, pair: _Pair) -> None:
        """The pair is over."""
        if pair.deadline.active():
            pair.deadline.cancel()
        self._pairs.pop(pair.request, None)
        for stream in pair.streams.values():
            self._by_stream.pop(stream, None)

    def stream_opened(self, stream: int, headers: Mapping[str, str]) -> None:
        kind = headers.get("streamtype", "").lower()
        port = _port(headers.get("port", ""))
        # Ancient clients number nothing; theirs is the data stream right after the error stream.
        request = headers.get("requestid") or f"#{stream if kind == 'error' else stream - 2}"
        if kind not in ("error", "data") or not port or len(request) > _REQUEST_LIMIT:
            self.wire.refuse(stream)
            return
        self.wire.reply(stream)
        pair = self._pairs.get(request)
        if pair is None:
            deadline = self._clock.callLater(PAIRING_SECONDS, self._not_paired, request)
            pair = self._pairs[request] = _Pair(self, request, port, deadline)
        elif kind in pair.streams:
            self.wire.refuse(stream)
            pair.abort(f"error processing stream for request {request}: {kind} stream already assigned")
            return
        pair.streams[kind] = stream
        self._by_stream[stream] = pair
        if len(pair.streams) == 2:
            pair.deadline.cancel()
            self.accept(pair.port, pair)

    def _not_paired(self, request: str) -> None:
        self._pairs[request].end(f"error forwarding port: request {request} timed out waiting for streams")

    def stream_data(self, stream: int, data: bytes) -> None:
        pair = self._by_stream.get(stream)
        if pair is not None and stream == pair.streams.get("data"):
            pair.data_received(data)

    def stream_finished(self, stream: int) -> None:
        pair = self._by_stream.get(stream)
        if pair is not None and stream == pair.streams.get("data"):
            pair.data_finished()

    def stream_reset(self, stream: int) -> None:
        pair = self._by_stream.get(stream)
        if pair is not None and (stream == pair.streams.get("data") or len(pair.streams) < 2):
            pair.given_up()


def _port(text: str) -> int:
    """A port's number, or 0."""
    if not (text.isascii() and text.isdigit() and len(text) <= 5):
        return 0
    number = int(text)
    return number if number <= 0xFFFF else 0


class _Tunnel:
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


# ---- WebSocket ---------------------------------------------------------------------


class _PortChannels(_Forwarded):
    """A port on two channels: its data, and its errors."""

    def __init__(self, session: _WebSocketForwarding, index: int) -> None:
        super().__init__(session)
        self._session = session
        self._channel = 2 * index

    def begin(self, port: int) -> None:
        """Both channels begin with the port, little endian."""
        greeting = port.to_bytes(2, "little")
        self._session.send(self._channel, greeting)
        self._session.send(self._channel + 1, greeting)

    def _write(self, data: bytes) -> None:
        self._session.send(self._channel, data)

    def _write_finish(self) -> None:
        # No half close here: when the target has ended, so has the client.
        self.data_finished()

    def _write_end(self, error: str) -> None:
        if error:
            self._session.send(self._channel + 1, error.encode())
        self._session.one_ended()


class _WebSocketForwarding(_Forwarding):
    """One connection per port of the query; the session ends with the last of them."""

    def __init__(
        self,
        clock: IReactorTime,
        acceptor: ForwardAcceptor,
        protocol: ChannelProtocol,
        ports: Sequence[int],
    ) -> None:
        self.wire = WebSocketProtocol(self, clock)
        super().__init__(self.wire, acceptor)
        self._channels = Channels(protocol)
        self._ports = ports
        self._connections = [_PortChannels(self, index) for index in range(len(ports))]
        self._running = len(ports)

    def connection_made(self) -> None:
        """Greet on all channels, then connect all ports."""
        for port, connection in zip(self._ports, self._connections, strict=True):
            connection.begin(port)
        for port, connection in zip(self._ports, self._connections, strict=True):
            self.accept(port, connection)

    def connections(self) -> Sequence[_Forwarded]:
        return self._connections

    def say_goodbye(self) -> None:
        self.wire.say_goodbye()

    def send(self, channel: int, data: bytes) -> None:
        """One message on a channel."""
        self.wire.send(self._channels.message(channel, data))

    def one_ended(self) -> None:
        """One port is done."""
        self._running -= 1
        if not self._running and not self._ended:
            self._ended = True
            self.say_goodbye()

    def part_received(self, part: Part) -> None:
        for event in self._channels.receive(part):
            if isinstance(event, ChannelData) and not event.channel % 2:
                index = event.channel // 2
                if index < len(self._connections):
                    self._connections[index].data_received(event.data)
