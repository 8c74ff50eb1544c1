"""One stream as one end holds it: its outward half, its inward half, how far each has come."""

from __future__ import annotations

from tether.wire.credit import Ledger
from tether.wire.outbound import Outbound


class Stream:
    """What a ``Mux`` keeps for one id.

    ``request`` is there on the side that opened the stream only: the ``Open``
    may have to go again until something came back.
    """

    __slots__ = ("id", "inbound_finished", "known", "ledger", "open_sent", "outbound", "request", "was_reset")

    def __init__(self, stream_id: int, limit: int, window: int, request: bytes | None = None) -> None:
        self.id = stream_id
        self.request = request
        self.open_sent = False
        self.known = request is None  # the peer is known to hold it
        self.was_reset = False  # by this side; only the acknowledgement is awaited
        self.inbound_finished = False
        self.outbound = Outbound(stream_id, limit)
        self.ledger = Ledger(window)

    def confirm(self) -> None:
        """The peer is known to hold the stream: what was asked need not be kept any longer."""
        self.known = True
        if self.request:
            self.request = b""

    @property
    def inbound_over(self) -> bool:
        """True when the peer finished and all that it sent was handed on."""
        return self.inbound_finished and self.ledger.delivered == self.ledger.received
