"""One connection's life under a ``Tether``: the Hello in time, the pull, the signs of life.

The pull
    The connection is a push producer of its transport, and while that is not paused
    asks the mux for one message after another. So what waits, waits in the mux,
    where turns are taken; in the transport there is at most one message more
    than the transport's own buffer holds. When the transport drains slowly the
    messages get smaller, for a keystroke waits for whatever went before it.
"""

from __future__ import annotations

from typing import Protocol

from twisted.internet.interfaces import IDelayedCall, IPushProducer, IReactorTime
from zope.interface import implementer

from tether.link.liveness import Liveness
from tether.link.transport import MessageTransport
from tether.wire.frames import PAYLOAD_LIMIT
from tether.wire.mux import Mux

#: How long a peer may take to say Hello.
HELLO_PATIENCE = 10.0

#: A message that took longer than this to drain was too large; one that took less than the other, too small.
_SLOW = 0.1
_QUICK = 0.02
_SMALLEST = 16 * 1024


class Holder(Protocol):
    """What a connection needs of its tether."""

    @property
    def mux(self) -> Mux:
        """What there is to send."""

    @property
    def clock(self) -> IReactorTime:
        """Whose seconds count."""

    def attached(self, connection: Connection) -> None:
        """The connection came up: it is the one from here on."""

    def message_received(self, connection: Connection, message: bytes) -> None:
        """The peer's next message."""

    def connection_lost(self, connection: Connection, reason: str) -> None:
        """The connection is over."""

    def drop(self, connection: Connection, reason: str) -> None:
        """The connection is of no use any more: end it."""

    def settle(self) -> None:
        """Something was done to the mux: send what may be sent."""


@implementer(IPushProducer)
class Connection:
    """One transport's life under a ``Tether``: the Hello in time, the pull, the signs of life."""

    def __init__(self, tether: Holder) -> None:
        self._tether = tether
        self._clock = tether.clock
        self.transport: MessageTransport | None = None
        self.goodbye: str | None = None  # why the peer leaves, once it said so
        self.retry = True
        self.told_down = False
        self._clogged_at: float | None = None
        self._limit = PAYLOAD_LIMIT
        self._hello_call: IDelayedCall | None = None
        self._liveness: Liveness | None = None

    @property
    def address(self) -> str:
        """Where the peer is, for logs."""
        return "?" if self.transport is None else self.transport.address

    # ---- MessageReceiver

    def connected(self, transport: MessageTransport) -> None:
        """The transport is there: Hello goes at once, and the peer's must come in time."""
        self.transport = transport
        self._hello_call = self._clock.callLater(HELLO_PATIENCE, self._hello_missed)
        transport.register(self)
        self._tether.attached(self)

    def message_received(self, message: bytes) -> None:
        """One message of the peer."""
        self._tether.message_received(self, message)

    def connection_lost(self, reason: str) -> None:
        """The transport is gone."""
        self._tether.connection_lost(self, reason)
        self.ended()
        self.transport = None

    # ---- IPushProducer, to the transport

    def pauseProducing(self) -> None:
        """The transport is full."""
        if self._clogged_at is None:
            self._clogged_at = self._clock.seconds()

    def resumeProducing(self) -> None:
        """The transport drained."""
        if self._clogged_at is not None:
            took = self._clock.seconds() - self._clogged_at
            if took > _SLOW:
                self._limit = max(_SMALLEST, self._limit // 2)
            elif took < _QUICK:
                self._limit = min(PAYLOAD_LIMIT, self._limit * 2)
            self._clogged_at = None
            self._tether.settle()

    def stopProducing(self) -> None:
        """The transport is gone; ``connection_lost`` says why."""

    # ---- the tether's

    def pull(self) -> None:
        """Send messages for as long as the transport takes them."""
        transport = self.transport
        while self._clogged_at is None and transport is not None:
            message = self._tether.mux.next_message(self._limit)
            if message is None:
                return
            transport.send(message)

    def flush_control(self) -> None:
        """Send one last message of control frames, whether the transport is full or not."""
        for _ in range(2):  # Hello, if it did not go yet, goes alone
            message = self._tether.mux.next_message(0)
            if message is not None and self.transport is not None:
                self.transport.send(message)

    def greeted(self, keepalive: float, patience: float) -> None:
        """The peer said Hello; from here on silence is watched."""
        self._cancel_hello()
        transport = self.transport
        if transport is not None:
            self._liveness = Liveness(
                self._clock, lambda: transport.heard_at, self._ping, self._fell_silent, keepalive, patience
            )
            self._liveness.start()

    def ended(self) -> None:
        """Nobody waits for this connection any more."""
        self._cancel_hello()
        if self._liveness is not None:
            self._liveness.stop()
            self._liveness = None

    def close(self, code: int, reason: str) -> None:
        """End in order."""
        if self.transport is not None:
            self.transport.close(code, reason)

    def abort(self) -> None:
        """End now."""
        if self.transport is not None:
            self.transport.abort()

    def _cancel_hello(self) -> None:
        if self._hello_call is not None:
            self._hello_call.cancel()
            self._hello_call = None

    def _hello_missed(self) -> None:
        self._hello_call = None
        self._tether.drop(self, f"the other side did not say Hello within {HELLO_PATIENCE:.0f} s")

    def _ping(self) -> None:
        self._tether.mux.ping(0)
        self._tether.settle()

    def _fell_silent(self, reason: str) -> None:
        self._tether.drop(self, reason)
