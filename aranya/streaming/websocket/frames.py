"""RFC 6455 as its server sees it: bytes in, events out, calls to bytes.

Strict and small: no extensions, clients must mask, control frames are whole and
short. Messages are handed on in parts as they arrive, so none is held in memory;
a message may still not exceed what the real kubelet takes.

A peer that breaks the law yields one last event, ``Violated``. No bytes whatever
make ``receive`` raise.
"""

from __future__ import annotations

import base64
import hashlib
import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Final

from autobahn.websocket.xormasker import create_xor_masker  # type: ignore[attr-defined]  # chosen at run time

MESSAGE_LIMIT: Final = 32 * 1024 * 1024
_CONTROL_LIMIT: Final = 125
_MAGIC: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


class Opcode(IntEnum):
    """The kinds of frames."""

    CONTINUATION = 0
    TEXT = 1
    BINARY = 2
    CLOSE = 8
    PING = 9
    PONG = 10


class CloseCode(IntEnum):
    """The reasons this side closes with."""

    NORMAL = 1000
    PROTOCOL_ERROR = 1002
    TOO_BIG = 1009


@dataclass(frozen=True, slots=True)
class Part:
    """Some bytes of a message; ``first`` and ``last`` mark its bounds."""

    data: bytes
    first: bool
    last: bool
    text: bool = False


@dataclass(frozen=True, slots=True)
class Ping:
    """To be answered with a pong of the same payload."""

    payload: bytes


@dataclass(frozen=True, slots=True)
class Pong:
    """The peer lives."""

    payload: bytes


@dataclass(frozen=True, slots=True)
class Closed:
    """The peer closes, or answers our close; it sends nothing more."""

    code: int


@dataclass(frozen=True, slots=True)
class Violated:
    """The peer broke the protocol; nothing after this is read."""

    code: CloseCode
    reason: str


Event = Part | Ping | Pong | Closed | Violated


class _Violation(Exception):
    def __init__(self, reason: str, code: CloseCode = CloseCode.PROTOCOL_ERROR) -> None:
        super().__init__(reason)
        self.code = code


def accept_key(key: bytes) -> bytes:
    """The value of ``Sec-WebSocket-Accept`` for a client's key."""
    return base64.b64encode(hashlib.sha1(key + _MAGIC, usedforsecurity=False).digest())


class Framing:
    """The receiving state of one connection."""

    def __init__(self) -> None:
        self._held = b""
        self._over = False
        self._message: Opcode | None = None
        self._message_size = 0
        self._at_start = True
        # The data frame in the midst of which we are.
        self._left = 0
        self._final = False
        self._masker: Any = None  # autobahn gives it no type

    def receive(self, data: bytes) -> list[Event]:
        """What the peer sent, as told by these bytes and those before them."""
        events: list[Event] = []
        if self._over or not data:
            return events
        try:
            self._read(data, events)
        except _Violation as broken:
            self._stop()
            events.append(Violated(broken.code, str(broken)))
        return events

    def _stop(self) -> None:
        self._over = True
        self._held = b""

    def _read(self, data: bytes, events: list[Event]) -> None:
        if self._held:
            data = self._held + data
            self._held = b""
        position, end = 0, len(data)
        while position < end and not self._over:
            if self._left:
                taken = min(self._left, end - position)
                payload = data if taken == end else data[position : position + taken]
                position += taken
                self._left -= taken
                self._payload(self._masker.process(payload), events)
                continue
            head = _Head.read(data, position, end)
            if head is None:
                break
            if head.opcode >= Opcode.CLOSE:
                if end - head.end < head.length:
                    break
                position = head.end + head.length
                self._control(head, data[head.end : position], events)
            else:
                position = head.end
                self._begin(head, events)
        if not self._over:
            self._held = data[position:]

    def _begin(self, head: _Head, events: list[Event]) -> None:
        if head.opcode is Opcode.CONTINUATION:
            if self._message is None:
                raise _Violation("a continuation of nothing")
        elif self._message is not None:
            raise _Violation("a message within a message")
        else:
            self._message = head.opcode
            self._message_size = 0
            self._at_start = True
        self._message_size += head.length
        if self._message_size > MESSAGE_LIMIT:
            raise _Violation("a message is too big", CloseCode.TOO_BIG)
        self._left = head.length
        self._final = head.final
        self._masker = create_xor_masker(head.mask, head.length)
        if not head.length and head.final:
            self._payload(b"", events)

    def _payload(self, payload: bytes, events: list[Event]) -> None:
        last = self._final and not self._left
        events.append(Part(payload, self._at_start, last, self._message is Opcode.TEXT))
        self._at_start = False
        if last:
            self._message = None

    def _control(self, head: _Head, masked: bytes, events: list[Event]) -> None:
        payload = create_xor_masker(head.mask, head.length).process(masked)
        if head.opcode is Opcode.PING:
            events.append(Ping(payload))
        elif head.opcode is Opcode.PONG:
            events.append(Pong(payload))
        else:
            if len(payload) == 1:
                raise _Violation("a close frame is cut short")
            code = struct.unpack_from(">H", payload)[0] if payload else 1005
            self._stop()
            events.append(Closed(code))


@dataclass(frozen=True, slots=True)
class _Head:
    """A frame's header; ``end`` is where its payload begins."""

    opcode: Opcode
    final: bool
    length: int
    mask: bytes
    end: int

    @classmethod
    def read(cls, data: bytes, position: int, end: int) -> _Head | None:
        """The header at ``position``, or ``None`` while it is not whole. Raises ``_Violation``."""
        if end - position < 2:
            return None
        first, second = data[position], data[position + 1]
        if first & 0x70:
            raise _Violation("reserved bits are set")
        try:
            opcode = Opcode(first & 0x0F)
        except ValueError:
            raise _Violation("an unknown opcode") from None
        if not second & 0x80:
            raise _Violation("a frame without a mask")
        final, length = bool(first & 0x80), second & 0x7F
        if opcode >= Opcode.CLOSE and (not final or length > _CONTROL_LIMIT):
            raise _Violation("a control frame is fragmented or too long")
        position += 2
        extra = {126: 2, 127: 8}.get(length, 0)
        if end - position < extra + 4:
            return None
        if extra:
            length = int.from_bytes(data[position : position + extra], "big")
            position += extra
        return cls(opcode, final, length, data[position : position + 4], position + 4)


def header(opcode: Opcode, length: int) -> bytes:
    """The header of a whole, unmasked frame."""
    if length < 126:
        return struct.pack(">BB", 0x80 | opcode, length)
    if length < 1 << 16:
        return struct.pack(">BBH", 0x80 | opcode, 126, length)
    return struct.pack(">BBQ", 0x80 | opcode, 127, length)


def ping() -> bytes:
    """A ping of ours."""
    return header(Opcode.PING, 0)


def pong(payload: bytes) -> bytes:
    """The answer to a ping."""
    return header(Opcode.PONG, len(payload)) + payload


def close(code: int = CloseCode.NORMAL, reason: str = "") -> bytes:
    """The last frame of this side."""
    if code == 1005:  # "no code was given" may not appear on the wire
        return header(Opcode.CLOSE, 0)
    text = reason.encode()[: _CONTROL_LIMIT - 2].decode(errors="ignore").encode()
    return header(Opcode.CLOSE, 2 + len(text)) + struct.pack(">H", code) + text
