"""What a link stands on: something that carries whole messages, and whoever hears them.

``websocket`` has the real one, ``memory`` the double.
"""

from __future__ import annotations

from typing import Protocol

from cryptography.x509 import Certificate
from twisted.internet.interfaces import IPushProducer

#: Close codes of RFC 6455 that are used here.
NORMAL = 1000
GOING_AWAY = 1001
POLICY_VIOLATION = 1008


class MessageTransport(Protocol):
    """One connection that carries whole binary messages, in order."""

    @property
    def address(self) -> str:
        """Where the peer is, for logs: ``host:port``."""

    @property
    def heard_at(self) -> float:
        """When the last byte of the peer arrived, on the clock of this side."""

    def send(self, message: bytes) -> None:
        """Send one message; ignored after the end."""

    def register(self, producer: IPushProducer) -> None:
        """Pause and resume ``producer`` as the transport fills and drains."""

    def close(self, code: int, reason: str) -> None:
        """End in order: what was sent still goes, and soon the connection is over."""

    def abort(self) -> None:
        """End now; what was not sent is dropped."""

    def peer_certificate(self) -> Certificate | None:
        """The certificate that the peer proved in the TLS handshake, if any."""


class MessageReceiver(Protocol):
    """Whoever hears one connection, from its first message to its end."""

    def connected(self, transport: MessageTransport) -> None:
        """The connection is there; called once, first."""

    def message_received(self, message: bytes) -> None:
        """One message of the peer."""

    def connection_lost(self, reason: str) -> None:
        """The connection is over, and why in one line; called once, last."""
