"""What kubectl writes after an upgrade, and a reader of what it is sent: SPDY and WebSocket."""

from __future__ import annotations

import json
import struct
import zlib
from typing import Any

from aranya.streaming.spdy.headers import DICTIONARY
from test.support.door import Answer, Connection, House, parsed

SPDY_UPGRADE = ("Connection: Upgrade", "Upgrade: SPDY/3.1")


class SpdyClient:
    """One upgraded connection; streams are opened by name, what they carried is kept by name."""

    def __init__(self, house: House, target: str, *versions: str) -> None:
        offers = [f"X-Stream-Protocol-Version: {version}" for version in versions or ("v4.channel.k8s.io",)]
        self.connection: Connection = house.ask("POST", target, *SPDY_UPGRADE, *offers)
        self._deflate = zlib.compressobj(9, zlib.DEFLATED, 15, 8, 0, zdict=DICTIONARY)
        self._rest = b""
        self._next = 1
        self.ids: dict[str, int] = {}
        self.received: dict[str, bytes] = {}
        self.ended: set[str] = set()
        self.order: list[str] = []
        data = self.connection.take()
        _, _, self._rest = data.partition(b"\r\n\r\n")
        self.answer: Answer = parsed(data)

    def open(self, *names: str, **headers: str) -> None:
        """Open streams in kubectl's way."""
        for name in names:
            fields = {"streamtype": name, **headers}
            plain = struct.pack(">I", len(fields))
            for key, value in fields.items():
                for text in (key.encode(), value.encode()):
                    plain += struct.pack(">I", len(text)) + text
            block = self._deflate.compress(plain) + self._deflate.flush(zlib.Z_SYNC_FLUSH)
            body = struct.pack(">IIBB", self._next, 0, 0, 0) + block
            key = name + headers.get("requestid", "")
            self.ids[key], self._next = self._next, self._next + 2
            self.connection.send(struct.pack(">HHI", 0x8003, 1, len(body)) + body)

    def write(self, name: str, data: bytes, fin: bool = False) -> None:
        """Write on a stream."""
        head = struct.pack(">II", self.ids[name], (int(fin) << 24) | len(data))
        self.connection.send(head + data)

    def read(self) -> None:
        """Take apart all that came."""
        data = self._rest + self.connection.take()
        names = {number: name for name, number in self.ids.items()}
        while len(data) >= 8:
            first, second = struct.unpack(">II", data[:8])
            length = second & 0xFFFFFF
            if len(data) < 8 + length:
                break
            body, data = data[8 : 8 + length], data[8 + length :]
            if not first >> 31:
                name = names[first]
                self.received[name] = self.received.get(name, b"") + body
                if body:
                    self.order.append(name)
                if second >> 24 & 1:
                    self.ended.add(name)
            elif first & 0xFFFF == 3:
                self.ended.add(names[struct.unpack(">I", body[:4])[0]])
        self._rest = data

    @property
    def status(self) -> dict[str, Any]:
        """The status on the error stream."""
        self.read()
        assert "error" in self.ended, self.ended
        status: dict[str, Any] = json.loads(self.received["error"])
        return status


class WebSocketClient:
    """One upgraded connection that speaks numbered channels."""

    def __init__(self, house: House, target: str, protocol: str = "v4.channel.k8s.io") -> None:
        self.connection = house.ask(
            "GET",
            target,
            "Connection: Upgrade",
            "Upgrade: websocket",
            "Sec-WebSocket-Version: 13",
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
            f"Sec-WebSocket-Protocol: {protocol}",
        )
        data = self.connection.take()
        _, _, self._rest = data.partition(b"\r\n\r\n")
        self.answer = parsed(data)
        self.received: dict[int, bytes] = {}
        self.close_code = 0

    def write(self, channel: int, data: bytes) -> None:
        """Send one message."""
        payload = bytes([channel]) + data
        assert len(payload) < 126
        self.connection.send(bytes([0x82, 0x80 | len(payload), 0, 0, 0, 0]) + payload)

    def read(self) -> dict[int, bytes]:
        """All that came so far, by channel."""
        data = self._rest + self.connection.take()
        while len(data) >= 2:
            length, start = data[1] & 127, 2
            if length == 126:
                length, start = int.from_bytes(data[2:4], "big"), 4
            payload = data[start : start + length]
            if data[0] & 15 == 8:
                self.close_code = int.from_bytes(payload[:2], "big")
            elif payload:
                self.received[payload[0]] = self.received.get(payload[0], b"") + payload[1:]
            data = data[start + length :]
        self._rest = data
        return self.received
