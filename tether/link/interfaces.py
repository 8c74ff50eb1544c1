"""What both daemons program against: links, channels, and who receives on them.

A *link* is one WebSocket. A *channel* is one stream of the tether as Twisted
sees it: something to write to, that can be paused, half-closed and reset. Every
channel has exactly one receiver, given when it is opened or accepted.

The contract of flow control
    Outwards a channel is an ``IConsumer``: a push producer registered with it is
    paused when ``HIGH_WATER`` bytes wait for the peer's credit or the link's
    turn, and resumed below ``LOW_WATER``. Writing while paused is allowed and
    bounded by the caller.
    Inwards a channel is an ``IPushProducer``: after ``pauseProducing`` no more
    data reaches the receiver, the peer's credit runs dry and it stops, while
    every other channel goes on. Credit is granted only after ``data_received``
    returned, and never for bytes that wait in a paused channel.

The contract of the end
    Exactly one of these ends the inward direction: ``finished`` or ``reset``.
    ``reset`` (by either side, or because the peer is gone for good) ends both
    directions; after it nothing is delivered, and writes are ignored. After
    both directions finished the channel is closed and ``closed`` is called.
    ``closed`` is the very last call on every channel, however it ended.
"""

from __future__ import annotations

from typing import Protocol

from twisted.internet.interfaces import IPushProducer
from zope.interface import Attribute, Interface

from tether.errors import Reason
from tether.verbs.requests import DeviceFacts, Request, Settings
from tether.wire.frames import Duty
from tether.wire.lanes import RECORD_LANES, RECORD_LIMIT, Lane

HIGH_WATER = 256 * 1024
LOW_WATER = 64 * 1024


class Receiver(Protocol):
    """Whoever a channel delivers to; calls never raise and never block."""

    def data_received(self, lane: Lane, data: bytes) -> None:
        """Bytes or one record arrived; returning means that they were delivered."""

    def finished(self) -> None:
        """The peer half-closed: nothing more will be delivered."""

    def reset(self, reason: Reason) -> None:
        """The channel ended before its time, by the peer or because the peer is gone."""

    def closed(self) -> None:
        """Both directions are over, the channel holds nothing any more; the last call."""


class Channel(IPushProducer):
    """One stream of the tether, seen from one end.

    ``pauseProducing``, ``resumeProducing`` and ``stopProducing`` govern what
    arrives; ``stopProducing`` is ``reset(CANCELLED)``.
    """

    stream = Attribute("The stream's id on the tether: an int, for logs.")

    def write(data: bytes, lane: Lane = Lane.MAIN) -> None:
        """Send bytes, or one record of at most ``RECORD_LIMIT`` bytes.

        Ignored after ``finish`` or the end, and when empty. Raises
        ``LocalMisuse`` for an oversized record.
        """

    def registerProducer(producer: object, streaming: bool) -> None:
        """Pause and resume ``producer`` (an ``IPushProducer``) as credit allows."""

    def unregisterProducer() -> None:
        """Forget the producer."""

    def finish() -> None:
        """Half-close: all that was written is still sent, nothing more will be."""

    def reset(reason: Reason) -> None:
        """End both directions now; what is unsent is dropped.

        The receiver hears ``closed`` only, not ``reset``.
        """


class Acceptor(Protocol):
    """Decides what to do with a stream that the peer opened."""

    def stream_opened(self, request: Request, channel: Channel) -> Receiver:
        """A request arrived on a new channel; give back who receives on it.

        To refuse, call ``channel.reset`` and return any receiver. Must not raise.
        """


class Link(Interface):
    """One living connection to a peer that has said Hello."""

    peer = Attribute("The peer's ``Introduction``.")

    def open(request: Request, receiver: Receiver) -> Channel:
        """Open a stream at once (no round trip).

        Raises ``LinkLost`` when the link is gone and ``StreamReset`` (``LIMIT``)
        when too many streams are open.
        """

    def close(reason: str, retry: bool = True) -> None:
        """Say goodbye with one line of reason, then close; streams end as lost."""

    def tell_duty(duty: Duty) -> bool:
        """Tell the peer who takes new sessions, after each Hello anew; false: it would not understand."""


class Introduction(Protocol):
    """What a peer said in its Hello."""

    @property
    def software(self) -> str: ...
    @property
    def capabilities(self) -> frozenset[str]: ...
    @property
    def instance(self) -> bytes: ...
    @property
    def host_boot_id(self) -> str: ...
    @property
    def facts(self) -> DeviceFacts | None: ...
    @property
    def settings(self) -> Settings | None: ...
    @property
    def started(self) -> int: ...
    @property
    def companions(self) -> frozenset[bytes]: ...


__all__ = [
    "HIGH_WATER",
    "LOW_WATER",
    "RECORD_LANES",
    "RECORD_LIMIT",
    "Acceptor",
    "Channel",
    "Introduction",
    "Lane",
    "Link",
    "Receiver",
]
