"""kubectl's side of the kubelet door, without a network: a SPDY speaker and a WebSocket speaker.

They keep the manners of the Go clients: streams are opened one after the other,
each only after the reply to the one before; data for a stream without a reply is
lost; reading stops at GOAWAY.
"""

from __future__ import annotations

import os
import struct
import zlib
from dataclasses import dataclass, field

from aranya.streaming.spdy.headers import DICTIONARY


@dataclass
class ClientStream:
    """One stream as the client sees it."""

    number: int
    replied: bool = False
    received: bytes = b""
    ended: bool = False
    reset: int | None = None


@dataclass
class SpdyClient:
    """Writes frames of a client, reads those of a server."""

    streams: dict[int, ClientStream] = field(default_factory=dict)
    pings: list[int] = field(default_factory=list)
    order: list[str] = field(default_factory=list)
    goaway: tuple[int, int] | None = None
    _next: int = 1
    _held: bytes = b""

    def __post_init__(self) -> None:
        self._deflater = zlib.compressobj(9, zlib.DEFLATED, 15, 8, 0, DICTIONARY)
        self._inflater = zlib.decompressobj(15, zdict=DICTIONARY)

    # ---- out -----------------------------------------------------------------

    def block(self, headers: dict[str, str]) -> bytes:
        """A compressed header block."""
        plain = struct.pack(">I", len(headers))
        for name, value in headers.items():
            plain += struct.pack(">I", len(name)) + name.encode()
            plain += struct.pack(">I", len(value)) + value.encode()
        return self._deflater.compress(plain) + self._deflater.flush(zlib.Z_SYNC_FLUSH)

    def syn(self, number: int | None = None, flags: int = 0, **headers: str) -> bytes:
        """SYN_STREAM for the next id, or a given one."""
        if number is None:
            number, self._next = self._next, self._next + 2
        self.streams[number] = ClientStream(number)
        body = struct.pack(">IIBB", number, 0, 0, 0) + self.block(headers)
        return struct.pack(">HHI", 0x8003, 1, flags << 24 | len(body)) + body

    @property
    def last(self) -> int:
        """The id of the stream opened last."""
        return self._next - 2

    @staticmethod
    def data(number: int, data: bytes = b"", fin: bool = False) -> bytes:
        """A DATA frame."""
        return struct.pack(">II", number, int(fin) << 24 | len(data)) + data

    @staticmethod
    def rst(number: int, status: int = 5) -> bytes:
        """RST_STREAM."""
        return struct.pack(">HHIII", 0x8003, 3, 8, number, status)

    @staticmethod
    def ping(number: int = 1) -> bytes:
        """PING."""
        return struct.pack(">HHII", 0x8003, 6, 4, number)

    @staticmethod
    def go_away() -> bytes:
        """GOAWAY."""
        return struct.pack(">HHIII", 0x8003, 7, 8, 0, 0)

    # ---- in ------------------------------------------------------------------

    def receive(self, data: bytes) -> None:
        """Read what the server wrote."""
        self._held += data
        while len(self._held) >= 8:
            word, tail = struct.unpack_from(">II", self._held)
            length = tail & 0xFFFFFF
            if len(self._held) < 8 + length:
                return
            body, self._held = self._held[8 : 8 + length], self._held[8 + length :]
            assert self.goaway is None, "a frame after GOAWAY is never read"
            if word & 0x80000000:
                self._control(word & 0xFFFF, body)
            else:
                self._data(word, tail >> 24, body)

    def _control(self, kind: int, body: bytes) -> None:
        (number,) = struct.unpack_from(">I", body)
        if kind == 2:
            assert self._inflater.decompress(body[4:]) == bytes(4)
            assert not self._inflater.unused_data and not self._inflater.unconsumed_tail
            self.streams[number].replied = True
            self.order.append(f"reply {number}")
        elif kind == 3:
            self.streams[number].reset = struct.unpack_from(">I", body, 4)[0]
            self.streams[number].ended = True
            self.order.append(f"reset {number}")
        elif kind == 6:
            self.pings.append(number)
        elif kind == 7:
            self.goaway = struct.unpack(">II", body)
            self.order.append("goaway")
        else:
            raise AssertionError(f"a server sends no frame of type {kind}")

    def _data(self, number: int, flags: int, body: bytes) -> None:
        stream = self.streams[number]
        assert stream.replied, "data before the reply is dropped by clients in Go"
        assert not stream.ended, "data after the end"
        stream.received += body
        if body:
            self.order.append(f"data {number}")
        if flags & 1:
            stream.ended = True
            self.order.append(f"fin {number}")


@dataclass
class WebSocketClient:
    """Writes masked frames of a client, reads those of a server."""

    messages: list[bytes] = field(default_factory=list)
    text: list[bool] = field(default_factory=list)
    pings: int = 0
    pongs: list[bytes] = field(default_factory=list)
    closed: int | None = None
    _held: bytes = b""

    @staticmethod
    def frame(opcode: int, payload: bytes = b"", final: bool = True, masked: bool = True) -> bytes:
        """Any frame."""
        length = len(payload)
        flag = 0x80 if masked else 0
        if length < 126:
            head = struct.pack(">BB", final << 7 | opcode, flag | length)
        elif length < 65536:
            head = struct.pack(">BBH", final << 7 | opcode, flag | 126, length)
        else:
            head = struct.pack(">BBQ", final << 7 | opcode, flag | 127, length)
        if not masked:
            return head + payload
        mask = os.urandom(4)
        return head + mask + bytes(byte ^ mask[index % 4] for index, byte in enumerate(payload))

    def binary(self, payload: bytes) -> bytes:
        """A whole binary message."""
        return self.frame(2, payload)

    def close(self, code: int = 1000) -> bytes:
        """A close frame."""
        return self.frame(8, struct.pack(">H", code))

    def receive(self, data: bytes) -> None:
        """Read what the server wrote."""
        self._held += data
        while len(self._held) >= 2:
            first, length = self._held[0], self._held[1]
            start = 2
            if length == 126:
                if len(self._held) < 4:
                    return
                (length,), start = struct.unpack_from(">H", self._held, 2), 4
            elif length == 127:
                if len(self._held) < 10:
                    return
                (length,), start = struct.unpack_from(">Q", self._held, 2), 10
            if len(self._held) < start + length:
                return
            payload, self._held = self._held[start : start + length], self._held[start + length :]
            assert self.closed is None, "a frame after the close"
            self._frame(first, payload)

    def _frame(self, first: int, payload: bytes) -> None:
        assert first & 0xF0 == 0x80, "frames of this server are whole and plain"
        opcode = first & 0x0F
        if opcode in (1, 2):
            self.messages.append(payload)
            self.text.append(opcode == 1)
        elif opcode == 8:
            self.closed = struct.unpack_from(">H", payload)[0] if payload else 1005
        elif opcode == 9:
            self.pings += 1
        elif opcode == 10:
            self.pongs.append(payload)
