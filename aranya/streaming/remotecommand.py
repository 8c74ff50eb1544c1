"""exec and attach: the streams of a client, whatever it speaks, as ``ClientStreams``.

A ``RemoteCommand`` is the part that all languages share: it holds what the client
sends until the other side listens, and sees to it that there is one end. Below it,
one class speaks SPDY streams and one WebSocket channels.

Order of the end: the outputs finish, then the status, then the error stream
finishes, and only then the rest closes. A client that sees the connection close
without a status takes that for success.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from twisted.internet.interfaces import IDelayedCall, IPushProducer, IReactorTime
from twisted.logger import Logger
from twisted.web.http import Request

from aranya.interfaces import ClientEvents, ClientStreams, Status
from aranya.streaming import status as statuses
from aranya.streaming.carrier import Carrier
from aranya.streaming.intake import Brake, Intake
from aranya.streaming.negotiate import (
    REMOTE_COMMAND,
    REMOTE_COMMAND_V5,
    Refusal,
    Spdy,
    UpgradeRequest,
    WebSocket,
    negotiate,
)
from aranya.streaming.resize import SizeReader
from aranya.streaming.sessions import Carried, Session
from aranya.streaming.spdy.frames import ResetStatus
from aranya.streaming.spdy.protocol import SpdyProtocol
from aranya.streaming.upgrade import refuse, take_over
from aranya.streaming.websocket import channels
from aranya.streaming.websocket.channels import ChannelClosed, ChannelData, ChannelProtocol, Channels
from aranya.streaming.websocket.frames import Part
from aranya.streaming.websocket.protocol import WebSocketProtocol
from tether.verbs.requests import Size

#: How long a client may take to open the streams it asked for.
CREATION_SECONDS: Final = 30
_MAX_STREAMS: Final = 6
#: ``kubectl attach`` sends two sizes at once to force a redraw; no one needs more early ones.
_EARLY_SIZES: Final = 8

_ERROR, _STDIN, _STDOUT, _STDERR, _RESIZE = "error", "stdin", "stdout", "stderr", "resize"
_NAMES: Final = (_ERROR, _STDIN, _STDOUT, _STDERR, _RESIZE)

#: Called when all streams are there; gives back who is to hear of the client.
Started = Callable[[ClientStreams], ClientEvents]


@dataclass(frozen=True, slots=True)
class StreamOptions:
    """Which streams the client asked for in its query."""

    stdin: bool = False
    stdout: bool = False
    stderr: bool = False
    tty: bool = False

    @property
    def any(self) -> bool:
        """Whether there is anything to transport at all."""
        return self.stdin or self.stdout or self.stderr


def exec_streams(
    request: Request,
    options: StreamOptions,
    clock: IReactorTime,
    started: Started,
    *,
    websocket_v5: bool = False,
) -> Session | None:
    """Answer an exec or attach request: refuse it (``None``), or take its connection over.

    ``started`` is called once, when the client has opened all it asked for.
    ``websocket_v5`` is for a Node that declares it (see ``REMOTE_COMMAND_V5``).
    """
    if not options.any:
        refuse(request, 400, "you must specify at least 1 of stdin, stdout, stderr")
        return None
    accepts = REMOTE_COMMAND_V5 if websocket_v5 else REMOTE_COMMAND
    match negotiate(upgrade_request(request), accepts):
        case Refusal(code, text, headers):
            refuse(request, code, text, [(name.encode(), value.encode()) for name, value in headers])
            return None
        case Spdy(version) as spdy:
            on_spdy = _SpdyCommand(options, clock, started, version)
            return on_spdy if take_over(request, spdy.head(), on_spdy.wire) else None
        case WebSocket(name) as websocket:
            on_websocket = _WebSocketCommand(options, clock, started, channels.PROTOCOLS[name])
            return on_websocket if take_over(request, websocket.head(), on_websocket.wire) else None


def upgrade_request(request: Request) -> UpgradeRequest:
    """What negotiation must know of a request."""
    return UpgradeRequest(
        request.method.decode("latin-1"),
        {
            name.decode("latin-1").lower(): [value.decode("latin-1") for value in values]
            for name, values in request.requestHeaders.getAllRawHeaders()
        },
    )


class RemoteCommand(Carried):
    """``ClientStreams`` and ``Session``; a subclass writes in its language."""

    _log = Logger()

    def __init__(self, options: StreamOptions, carrier: Carrier, started: Started) -> None:
        super().__init__()
        self._options = options
        self._carrier = carrier
        self._started = started
        self._events: ClientEvents | None = None
        self._ended = False
        self._gone_early = ""
        self._producer: IPushProducer | None = None
        self._size_reader = SizeReader()
        self._early_sizes: list[Size] = []
        self._stdin_paused = False
        self._stdin = Intake(
            Brake(carrier.pause_reading, carrier.resume_reading), self._stdin_data, self._stdin_end
        )

    # ---- a language overrides ------------------------------------------------

    def _write_output(self, name: str, data: bytes) -> None:
        raise NotImplementedError

    def _write_end(self, status: Status) -> None:
        raise NotImplementedError

    # ---- ClientStreams --------------------------------------------------------

    @property
    def tty(self) -> bool:
        return self._options.tty

    @property
    def has_stdin(self) -> bool:
        return self._options.stdin

    @property
    def has_stdout(self) -> bool:
        return self._options.stdout

    @property
    def has_stderr(self) -> bool:
        """Not with a terminal, which has one output only."""
        return self._options.stderr and not self._options.tty

    def write_stdout(self, data: bytes) -> None:
        if self.has_stdout and not self._ended and data:
            self._write_output(_STDOUT, data)

    def write_stderr(self, data: bytes) -> None:
        if self.has_stderr and not self._ended and data:
            self._write_output(_STDERR, data)

    def register_producer(self, producer: IPushProducer) -> None:
        if not self._ended:
            self.unregister_producer()
            self._producer = producer
            self._carrier.add_producer(producer)

    def unregister_producer(self) -> None:
        if self._producer is not None:
            self._carrier.remove_producer(self._producer)
            self._producer = None

    def pause_stdin(self) -> None:
        self._stdin_paused = True
        self._stdin.pause()

    def resume_stdin(self) -> None:
        self._stdin_paused = False
        if self._events is not None:
            self._stdin.resume()

    def end(self, status: Status) -> None:
        if not self._ended:
            self._stop()
            self._write_end(status)

    # ---- Session ---------------------------------------------------------------

    def abort(self, message: str) -> None:
        """End with a failure of this message, told to both sides."""
        if not self._ended:
            # A status without a message would be a success.
            self.end(Status(message=message or "the session was ended"))
            self._tell_gone(message)

    # ---- the carrier tells -------------------------------------------------------

    def connection_ended(self, reason: str) -> None:
        if not self._ended:
            self._stop()
            self._tell_gone(reason)

    # ---- a language tells ----------------------------------------------------------

    def _begin(self) -> None:
        """All streams are there."""
        try:
            events = self._started(self)
        except Exception:
            # The one hop that can still answer; without a status the client reports success.
            self._log.failure("a session failed to start")
            self.end(Status(message="internal error: the session failed to start"))
            return
        if self._gone_early:
            events.client_gone(self._gone_early)
        if self._ended:
            return
        self._events = events
        early, self._early_sizes = self._early_sizes, []
        for size in early:
            events.resized(size)
        if not self._stdin_paused:
            self._stdin.resume()

    def _resize_data(self, data: bytes) -> None:
        for size in self._size_reader.receive(data):
            if self._events is None:
                self._early_sizes = [*self._early_sizes, size][-_EARLY_SIZES:]
            elif not self._ended:
                self._events.resized(size)

    def _stop(self) -> None:
        self._ended = True
        self.unregister_producer()
        self._stdin.discard()

    def _tell_gone(self, reason: str) -> None:
        if self._events is not None:
            self._events.client_gone(reason)
        else:
            self._gone_early = reason

    def _stdin_data(self, data: bytes) -> None:
        if self._events is not None:
            self._events.stdin_received(data)

    def _stdin_end(self) -> None:
        if self._events is not None:
            self._events.stdin_ended()


class _SpdyCommand(RemoteCommand):
    """Each stream of the command is a stream of SPDY, named by the header ``streamtype``."""

    def __init__(self, options: StreamOptions, clock: IReactorTime, started: Started, version: str) -> None:
        self.wire = SpdyProtocol(self, clock, _MAX_STREAMS)
        super().__init__(options, self.wire, started)
        self._structured = version.startswith(("v4.", "v5."))
        self._status_opened = False
        self._streams: dict[str, int] = {}
        self._expected = {_ERROR}
        if self.has_stdin:
            self._expected.add(_STDIN)
        if self.has_stdout:
            self._expected.add(_STDOUT)
        if self.has_stderr:
            self._expected.add(_STDERR)
        if self.tty and version.startswith(("v3.", "v4.", "v5.")):
            self._expected.add(_RESIZE)
        self._clock = clock
        self._creation: IDelayedCall | None = None

    def connection_made(self) -> None:
        """The client speaks first."""
        self._creation = self._clock.callLater(CREATION_SECONDS, self._not_created)

    def stream_opened(self, stream: int, headers: Mapping[str, str]) -> None:
        name = headers.get("streamtype", "").lower()
        if name not in _NAMES:
            self.wire.refuse(stream, ResetStatus.REFUSED_STREAM)
        elif name in self._streams:
            self.wire.refuse(stream, ResetStatus.PROTOCOL_ERROR)
        else:
            self._streams[name] = stream
            self.wire.reply(stream)
            if name not in self._expected:
                # Some clients open a stderr although the container has a terminal, and wait for its end.
                self.wire.finish(stream)
            elif self._expected <= self._streams.keys():
                self._all_created()

    def _all_created(self) -> None:
        self._cancel_creation()
        if self._structured:
            self._status_opened = True
            self.wire.write(self._streams[_ERROR], statuses.OPENING)
        self._begin()

    def _not_created(self) -> None:
        self.end(Status(message="timed out waiting for the client to open its streams"))

    def stream_data(self, stream: int, data: bytes) -> None:
        if stream == self._streams.get(_STDIN) and self.has_stdin:
            self._stdin.receive(data)
        elif stream == self._streams.get(_RESIZE) and self.tty:
            self._resize_data(data)

    def stream_finished(self, stream: int) -> None:
        if stream == self._streams.get(_STDIN) and self.has_stdin:
            self._stdin.finish()

    def stream_reset(self, stream: int) -> None:
        self.stream_finished(stream)

    def _stop(self) -> None:
        super()._stop()
        self._cancel_creation()

    def _cancel_creation(self) -> None:
        if self._creation is not None and self._creation.active():
            self._creation.cancel()

    def _write_output(self, name: str, data: bytes) -> None:
        self.wire.write(self._streams[name], data)

    def _write_end(self, status: Status) -> None:
        for name in (_STDOUT, _STDERR):
            if name in self._streams:
                self.wire.finish(self._streams[name])
        if _ERROR in self._streams:
            error = self._streams[_ERROR]
            if self._status_opened:
                text = statuses.completion(status)
            else:
                text = statuses.to_json(status) if self._structured else statuses.to_text(status)
            self.wire.write(error, text)
            self.wire.finish(error)
        for name in (_STDIN, _RESIZE):
            if name in self._streams:
                self.wire.reset(self._streams[name])
        self.wire.go_away()


class _WebSocketCommand(RemoteCommand):
    """Each stream of the command is a numbered channel."""

    def __init__(
        self, options: StreamOptions, clock: IReactorTime, started: Started, protocol: ChannelProtocol
    ) -> None:
        self.wire = WebSocketProtocol(self, clock)
        super().__init__(options, self.wire, started)
        self._protocol = protocol
        self._channels = Channels(protocol)

    def connection_made(self) -> None:
        """An empty message on the first output tells the client that all is ready."""
        if self.has_stdout:
            first = channels.STDOUT
        else:
            first = channels.STDERR if self.has_stderr else channels.ERROR
        self.wire.send(self._channels.message(first, b""))
        self._begin()

    def part_received(self, part: Part) -> None:
        for event in self._channels.receive(part):
            match event:
                case ChannelData(channels.STDIN, data) if self.has_stdin:
                    self._stdin.receive(data)
                case ChannelData(channels.RESIZE, data) if self.tty:
                    self._resize_data(data)
                case ChannelClosed(channels.STDIN) if self.has_stdin:
                    self._stdin.finish()

    def _write_output(self, name: str, data: bytes) -> None:
        channel = channels.STDOUT if name == _STDOUT else channels.STDERR
        self.wire.send(self._channels.message(channel, data))

    def _write_end(self, status: Status) -> None:
        structured = self._protocol.structured
        text = statuses.to_json(status) if structured else statuses.to_text(status)
        if text:
            self.wire.send(self._channels.message(channels.ERROR, text))
        self.wire.say_goodbye()
