"""The ``channel.k8s.io`` sub-protocols: numbered channels in WebSocket messages.

Binary: one byte of channel number, then data. Base64: one character counted from
``"0"``, then base64 text. Only v5 can say that the client ended a channel (255).
Clients mark messages as text or binary as they please; the sub-protocol decides
how to read them. Nothing a client sends is an error here: what makes no sense is
dropped, as the real kubelet does.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from typing import Final

from aranya.streaming.websocket import frames
from aranya.streaming.websocket.frames import Opcode, Part

STDIN: Final = 0
STDOUT: Final = 1
STDERR: Final = 2
ERROR: Final = 3
RESIZE: Final = 4
CLOSE: Final = 255


@dataclass(frozen=True, slots=True)
class ChannelProtocol:
    """What one sub-protocol can do."""

    name: str  # as negotiated; "" when the client named none
    base64: bool = False
    structured: bool = False  # the status is JSON
    closes: bool = False  # the client may end a channel


PROTOCOLS: Final = {
    protocol.name: protocol
    for protocol in (
        ChannelProtocol(""),
        ChannelProtocol("channel.k8s.io"),
        ChannelProtocol("base64.channel.k8s.io", base64=True),
        ChannelProtocol("v4.channel.k8s.io", structured=True),
        ChannelProtocol("v4.base64.channel.k8s.io", base64=True, structured=True),
        ChannelProtocol("v5.channel.k8s.io", structured=True, closes=True),
    )
}


@dataclass(frozen=True, slots=True)
class ChannelData:
    """Some bytes for a channel."""

    channel: int
    data: bytes


@dataclass(frozen=True, slots=True)
class ChannelClosed:
    """The client ended its direction of a channel."""

    channel: int


Event = ChannelData | ChannelClosed


class Channels:
    """Parts of messages to channels, and back."""

    def __init__(self, protocol: ChannelProtocol) -> None:
        self._protocol = protocol
        self._channel: int | None = None
        self._text = b""
        self._broken = False

    def receive(self, part: Part) -> list[Event]:
        """What this part of a message says."""
        if part.first:
            self._channel = None
            self._text = b""
            self._broken = False
        data = part.data
        if self._channel is None:
            if not data:
                return []
            self._channel = (data[0] - ord("0")) & 0xFF if self._protocol.base64 else data[0]
            data = data[1:]
        if self._protocol.base64:
            data = self._decode(data, part.last)
        if not data:
            return []
        if self._channel == CLOSE and self._protocol.closes:
            closed, self._channel = data[0], 254  # what else the message holds belongs nowhere
            return [ChannelClosed(closed)]
        return [ChannelData(self._channel, data)]

    def _decode(self, text: bytes, last: bool) -> bytes:
        if self._broken:
            return b""
        text = self._text + text
        whole = len(text) if last else len(text) // 4 * 4
        self._text = text[whole:]
        try:
            return base64.b64decode(text[:whole], validate=True)
        except binascii.Error:
            self._broken = True
            return b""

    def message(self, channel: int, data: bytes) -> list[bytes]:
        """One message for the client, in pieces to be written in order."""
        if self._protocol.base64:
            text = base64.b64encode(data)
            return [frames.header(Opcode.TEXT, len(text) + 1) + bytes([ord("0") + channel]), text]
        return [frames.header(Opcode.BINARY, len(data) + 1) + bytes([channel]), data]
