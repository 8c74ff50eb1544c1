"""kubectl at the door of a ``House``: one upgrade, then streams and channels by name."""

from __future__ import annotations

import json
from typing import Any

from test.support import spdy_client
from test.support.door import Answer, House, parsed

SPDY_UPGRADE = ("Connection: Upgrade", "Upgrade: SPDY/3.1")


class SpdyClient:
    """One upgraded connection; streams are opened by name, what they carried is kept by name."""

    def __init__(self, house: House, target: str, *versions: str) -> None:
        offers = [f"X-Stream-Protocol-Version: {version}" for version in versions or ("v4.channel.k8s.io",)]
        self.connection = house.ask("POST", target, *SPDY_UPGRADE, *offers)
        self.answer: Answer = parsed(self.connection.take())
        self._speaker = spdy_client.SpdyClient()
        self._numbers: dict[str, int] = {}

    def open(self, *names: str, **headers: str) -> None:
        """Open streams in kubectl's way."""
        for name in names:
            self.connection.send(self._speaker.syn(streamtype=name, **headers))
            self._numbers[name + headers.get("requestid", "")] = self._speaker.last

    def write(self, name: str, data: bytes, fin: bool = False) -> None:
        """Write on a stream."""
        self.connection.send(self._speaker.data(self._numbers[name], data, fin))

    def _streams(self) -> dict[str, spdy_client.ClientStream]:
        self._speaker.receive(self.connection.take())
        return {name: self._speaker.streams[number] for name, number in self._numbers.items()}

    @property
    def received(self) -> dict[str, bytes]:
        """What each stream carried so far."""
        return {name: stream.received for name, stream in self._streams().items()}

    @property
    def ended(self) -> set[str]:
        """The streams on which nothing will come any more."""
        return {name for name, stream in self._streams().items() if stream.ended}

    @property
    def status(self) -> dict[str, Any]:
        """The status on the error stream."""
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
        head, _, rest = self.connection.take().partition(b"\r\n\r\n")
        self.answer = parsed(head)
        self._speaker = spdy_client.WebSocketClient()
        self._speaker.receive(rest)

    def write(self, channel: int, data: bytes) -> None:
        """Send one message."""
        self.connection.send(self._speaker.binary(bytes([channel]) + data))

    @property
    def received(self) -> dict[int, bytes]:
        """All that came so far, by channel."""
        self._speaker.receive(self.connection.take())
        received: dict[int, bytes] = {}
        for message in self._speaker.messages:
            received[message[0]] = received.get(message[0], b"") + message[1:]
        return received

    @property
    def close_code(self) -> int | None:
        """The code of the close frame, if it came."""
        return self._speaker.closed
