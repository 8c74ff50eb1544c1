"""One SPDY/3.1 connection as its server sees it: bytes in, events out, calls to bytes.

The law, where Kubernetes departs from the draft or a peer in Go is brittle:

- Windows are not used: SETTINGS and WINDOW_UPDATE are read and forgotten.
- The client speaks first. Before its first byte nothing may be sent, for what
  is glued to the head of the 101 response is lost on the client.
- SYN_REPLY goes before any DATA of its stream, else that data is dropped.
- Ids of streams are odd and grow. Pings with odd ids are echoed; ours are even.
- DATA is handed on as it arrives, so that no frame is held in memory whole.
  Control frames are held, and therefore short.
- Automatic answers (echoes, refusals) gather in ``take_output``.

A peer that breaks the law yields one last event, ``Violated``; after it nothing
is read any more. No bytes whatever make ``receive`` raise.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from aranya.streaming.spdy import frames
from aranya.streaming.spdy.frames import GoAwayStatus, Kind, ResetStatus
from aranya.streaming.spdy.headers import FIRST_EMPTY_BLOCK, LATER_EMPTY_BLOCK, BadHeaders, Inflater

#: A control frame is held until it is whole. Kubernetes needs about a hundred bytes.
CONTROL_LIMIT: Final = 16 * 1024
#: The payload of one DATA frame we send; a reader in Go holds a frame in memory whole.
DATA_LIMIT: Final = 256 * 1024


@dataclass(frozen=True, slots=True)
class StreamOpened:
    """The peer asks for a stream: ``reply`` to it or ``reset`` it."""

    stream: int
    headers: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class DataReceived:
    """Some bytes of a stream, not necessarily a whole frame."""

    stream: int
    data: bytes


@dataclass(frozen=True, slots=True)
class StreamFinished:
    """The peer sends no more on this stream; we still may."""

    stream: int


@dataclass(frozen=True, slots=True)
class StreamReset:
    """The peer ended both directions of this stream."""

    stream: int
    status: int


@dataclass(frozen=True, slots=True)
class GoneAway:
    """The peer closes the connection and reads no more."""

    status: int


@dataclass(frozen=True, slots=True)
class Violated:
    """The peer broke the protocol; nothing after this is read."""

    reason: str


Event = StreamOpened | DataReceived | StreamFinished | StreamReset | GoneAway | Violated


class Misuse(Exception):
    """This side called out of turn: a bug."""


class _Violation(Exception):
    """Carries the reason out of the depth of a frame."""


@dataclass(slots=True)
class _Stream:
    replied: bool = False
    finished_here: bool = False
    finished_there: bool = False


class Connection:
    """The state of one connection. ``max_streams`` bounds those open at a time."""

    def __init__(self, max_streams: int) -> None:
        self._max_streams = max_streams
        self._streams: dict[int, _Stream] = {}
        self._last_stream = 0
        self._inflater = Inflater()
        self._held = b""
        self._output: list[bytes] = []
        self._heard = False
        self._failed = False
        self._any_reply = False
        self._next_ping = 2
        # The DATA frame in the midst of which we are.
        self._payload_left = 0
        self._payload_stream = 0
        self._payload_fin = False

    # ---- in ----------------------------------------------------------------

    def receive(self, data: bytes) -> list[Event]:
        """What the peer did, as told by these bytes and those before them."""
        events: list[Event] = []
        if self._failed or not data:
            return events
        self._heard = True
        try:
            self._read(data, events)
        except (_Violation, BadHeaders) as broken:
            self._failed = True
            self._held = b""
            events.append(Violated(str(broken)))
        return events

    def take_output(self) -> bytes:
        """The automatic answers since the last call; send them before anything else."""
        if not self._output:
            return b""
        output = b"".join(self._output)
        self._output.clear()
        return output

    def _read(self, data: bytes, events: list[Event]) -> None:
        if self._held:
            data = self._held + data
            self._held = b""
        position, end = 0, len(data)
        while position < end:
            if self._payload_left:
                taken = min(self._payload_left, end - position)
                payload = data if taken == end else data[position : position + taken]
                position += taken
                self._payload_left -= taken
                self._payload(payload, events)
                continue
            if end - position < frames.HEADER_SIZE:
                break
            word, tail = frames.HEADER.unpack_from(data, position)
            length = tail & frames.LENGTH_MASK
            flags = tail >> 24
            if word & frames.CONTROL:
                if length > CONTROL_LIMIT:
                    raise _Violation("a control frame is too long")
                whole = frames.HEADER_SIZE + length
                if end - position < whole:
                    break
                body = data[position + frames.HEADER_SIZE : position + whole]
                position += whole
                self._control(word & 0xFFFF, flags, body, events)
            else:
                if word == 0:
                    raise _Violation("data for stream 0")
                position += frames.HEADER_SIZE
                self._payload_stream = word
                self._payload_fin = bool(flags & frames.FIN)
                self._payload_left = length
                if not length:
                    self._payload(b"", events)
        self._held = data[position:]

    def _payload(self, payload: bytes, events: list[Event]) -> None:
        number = self._payload_stream
        stream = self._streams.get(number)
        if stream is None or stream.finished_there:
            return  # a stream that is over already; the peer may not know yet
        if payload:
            events.append(DataReceived(number, payload))
        if self._payload_fin and not self._payload_left:
            self._finished_there(number, stream, events)

    def _finished_there(self, number: int, stream: _Stream, events: list[Event]) -> None:
        stream.finished_there = True
        self._forget_if_over(number, stream)
        events.append(StreamFinished(number))

    def _control(self, kind: int, flags: int, body: bytes, events: list[Event]) -> None:
        match kind:
            case Kind.SYN_STREAM:
                self._syn_stream(flags, body, events)
            case Kind.RST_STREAM:
                number, status = _two_words(body, "RST_STREAM")
                if number == 0:
                    raise _Violation("RST_STREAM for stream 0")
                if self._streams.pop(number, None) is not None:
                    events.append(StreamReset(number, status))
            case Kind.PING:
                if len(body) != 4:
                    raise _Violation("a PING of the wrong length")
                (number,) = struct.unpack(">I", body)
                if number == 0:
                    raise _Violation("PING 0")
                if number % 2:
                    self._output.append(frames.ping(number))
            case Kind.GOAWAY:
                _, status = _two_words(body, "GOAWAY")
                events.append(GoneAway(status))
            case Kind.SYN_REPLY | Kind.HEADERS:
                if len(body) < 4:
                    raise _Violation("a frame with headers is cut short")
                self._inflater.read(body[4:])
                if kind == Kind.SYN_REPLY:
                    raise _Violation("SYN_REPLY from a client")
            case Kind.SETTINGS | Kind.WINDOW_UPDATE | Kind.NOOP:
                pass
            case _:
                raise _Violation(f"an unknown frame type {kind}")

    def _syn_stream(self, flags: int, body: bytes, events: list[Event]) -> None:
        if len(body) < 10:
            raise _Violation("a SYN_STREAM is cut short")
        number = struct.unpack_from(">I", body)[0] & frames.STREAM_MASK
        headers = self._inflater.read(body[10:])
        if number == 0:
            raise _Violation("SYN_STREAM for stream 0")
        if number in self._streams:
            raise _Violation(f"stream {number} was opened twice")
        if number % 2 == 0 or number < self._last_stream:
            self._output.append(frames.rst_stream(number, ResetStatus.PROTOCOL_ERROR))
            return
        self._last_stream = number
        if len(self._streams) >= self._max_streams:
            self._output.append(frames.rst_stream(number, ResetStatus.REFUSED_STREAM))
            return
        stream = self._streams[number] = _Stream(finished_here=bool(flags & frames.UNIDIRECTIONAL))
        events.append(StreamOpened(number, headers))
        if flags & frames.FIN:
            self._finished_there(number, stream, events)

    # ---- out ---------------------------------------------------------------

    @property
    def open_streams(self) -> int:
        """How many streams are not over in both directions."""
        return len(self._streams)

    def reply(self, number: int) -> bytes:
        """Accept a stream."""
        stream = self._streams.get(number)
        if stream is None:
            return b""
        if stream.replied:
            raise Misuse(f"stream {number} was replied to before")
        stream.replied = True
        block = LATER_EMPTY_BLOCK if self._any_reply else FIRST_EMPTY_BLOCK
        self._any_reply = True
        return frames.syn_reply(number, block)

    def data(self, number: int, data: bytes) -> list[bytes]:
        """DATA frames, in pieces to be written in order; nothing for a stream that is over."""
        stream = self._streams.get(number)
        if stream is None or stream.finished_here or not data:
            return []
        self._must_be_replied(number, stream)
        if len(data) <= DATA_LIMIT:
            return [frames.data_header(number, len(data)), data]
        pieces = []
        for start in range(0, len(data), DATA_LIMIT):
            piece = data[start : start + DATA_LIMIT]
            pieces += [frames.data_header(number, len(piece)), piece]
        return pieces

    def finish(self, number: int) -> bytes:
        """Half close: we send no more on this stream."""
        stream = self._streams.get(number)
        if stream is None or stream.finished_here:
            return b""
        self._must_be_replied(number, stream)
        stream.finished_here = True
        self._forget_if_over(number, stream)
        return frames.data_header(number, 0, fin=True)

    def reset(self, number: int, status: ResetStatus = ResetStatus.CANCEL) -> bytes:
        """End both directions; nothing if ours was finished, as peers in Go expect."""
        stream = self._streams.pop(number, None)
        if stream is None or stream.finished_here:
            return b""
        return frames.rst_stream(number, status)

    def ping(self) -> bytes:
        """A ping of ours; nothing before the client has spoken."""
        if not self._heard:
            return b""
        number = self._next_ping
        self._next_ping = number + 2 if number < 0x7FFFFFF0 else 2
        return frames.ping(number)

    def go_away(self, status: GoAwayStatus = GoAwayStatus.OK) -> bytes:
        """The very last frame; nothing if the client has not spoken."""
        return frames.goaway(self._last_stream, status) if self._heard else b""

    def _must_be_replied(self, number: int, stream: _Stream) -> None:
        if not stream.replied:
            raise Misuse(f"stream {number} has no reply yet")

    def _forget_if_over(self, number: int, stream: _Stream) -> None:
        if stream.finished_here and stream.finished_there:
            self._streams.pop(number, None)


def _two_words(body: bytes, name: str) -> tuple[int, int]:
    if len(body) != 8:
        raise _Violation(f"a {name} of the wrong length")
    first, second = struct.unpack(">II", body)
    return first & frames.STREAM_MASK, second
