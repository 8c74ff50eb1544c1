"""One taken-over connection below any language: pressure, patience, and the end.

Outwards, the transport pauses all producers of output at once. Inwards, reading
can be paused; while it is, a dead client would go unnoticed, so a probe is
written every few seconds: a write to a dead peer fails, and that ends the
connection. Answers that the client provokes while it does not read are counted,
and too many end the connection.

The end: what was written is flushed, then the connection closes. Closing
discards nothing on its way, so it waits long for a slow reader, but not for ever.
"""

from __future__ import annotations

from typing import Any, Final, Protocol

from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IDelayedCall, IPushProducer, IReactorTime, ITCPTransport
from twisted.internet.protocol import Protocol as TwistedProtocol
from twisted.python.failure import Failure
from zope.interface import implementer

#: The real kubelet's patience with a connection on which nothing moves.
IDLE_SECONDS: Final = 4 * 60 * 60
PROBE_SECONDS: Final = 15
#: How long a reader may take for what is still under way when the session has ended.
LINGER_SECONDS: Final = 10 * 60
#: Answers that may queue while the client does not read.
ANSWERS_LIMIT: Final = 64 * 1024

CLIENT_CLOSED: Final = "the client closed the connection"
CLIENT_LOST: Final = "the connection to the client was lost"


class Listener(Protocol):
    """What every session hears of its connection."""

    def connection_made(self) -> None:
        """The connection is ours; bytes may follow."""
        ...

    def connection_ended(self, reason: str) -> None:
        """The connection ended before ``close`` was called; the last call."""
        ...

    def connection_gone(self) -> None:
        """The transport is no more, however it ended."""
        ...

    def connection_idle(self) -> None:
        """Nothing moved for hours: end the session."""
        ...


@implementer(IPushProducer)
class Carrier(TwistedProtocol):
    """What the bridges of all languages share."""

    def __init__(self, listener: Listener, clock: IReactorTime) -> None:
        self._listener = listener
        self._clock = clock
        self._producers: dict[int, IPushProducer] = {}
        self._output_paused = False
        self._reading_paused = False
        self._answers = 0
        self._closing = False
        self._gone = False
        self._moved_at = clock.seconds()
        self._idle: IDelayedCall | None = None
        self._probe: IDelayedCall | None = None
        self._linger: IDelayedCall | None = None
        self._wire: Any = None

    # ---- the transport calls -----------------------------------------------

    def connectionMade(self) -> None:
        """The transport is ours."""
        self._wire = self.transport
        if ITCPTransport.providedBy(self._wire):
            # A keystroke's echo must not wait for the acknowledgement of the one before.
            self._wire.setTcpNoDelay(True)
        self._wire.registerProducer(self, True)
        self.moved()
        self._idle = self._clock.callLater(IDLE_SECONDS, self._is_idle)
        self._listener.connection_made()

    def dataReceived(self, data: bytes) -> None:
        """Bytes of the client; what comes after our end is dropped."""
        if not self._closing:
            self.bytes_received(data)

    def connectionLost(self, reason: Failure = Failure(ConnectionDone())) -> None:  # noqa: B008  # Twisted's default
        """The transport is no more."""
        self._gone = True
        for timer in (self._idle, self._probe, self._linger):
            if timer is not None and timer.active():
                timer.cancel()
        self._producers.clear()
        if not self._closing:
            self._closing = True
            self._listener.connection_ended(CLIENT_CLOSED if reason.check(ConnectionDone) else CLIENT_LOST)
        self._listener.connection_gone()

    def pauseProducing(self) -> None:
        """The client does not read as fast as we write."""
        self._output_paused = True
        for producer in tuple(self._producers.values()):
            producer.pauseProducing()

    def resumeProducing(self) -> None:
        """There is room again, or the client ended TLS while there was none."""
        if not self._closing and _hung_up(self._wire):
            # Twisted's transport waits for its producer to go, and swallows all that it writes.
            self._wire.abortConnection()
            return
        self._output_paused = False
        self._answers = 0
        # Another one goes first each time, lest the last never find room.
        if self._producers:
            first = next(iter(self._producers))
            self._producers[first] = self._producers.pop(first)
        for key, producer in tuple(self._producers.items()):
            if self._output_paused:
                return
            if key in self._producers:
                producer.resumeProducing()

    def stopProducing(self) -> None:
        """``connectionLost`` follows and tells all."""

    # ---- a language overrides ----------------------------------------------

    def bytes_received(self, data: bytes) -> None:
        """Read these bytes."""
        raise NotImplementedError

    def probe(self) -> bytes:
        """Bytes that ask the client for a sign of life; may be none."""
        raise NotImplementedError

    # ---- sessions and languages call ----------------------------------------

    @property
    def closing(self) -> bool:
        """Nothing is delivered or written any more."""
        return self._closing

    def moved(self) -> None:
        """Something happened: the idle time starts anew."""
        self._moved_at = self._clock.seconds()

    def send(self, pieces: list[bytes]) -> None:
        """Write pieces in order."""
        if pieces and not self._closing:
            self.moved()
            self._wire.writeSequence(pieces)

    def answer(self, data: bytes) -> None:
        """Write what the client provoked; a client that provokes much and reads nothing is cut off."""
        if not data or self._closing:
            return
        if self._output_paused:
            self._answers += len(data)
            if self._answers > ANSWERS_LIMIT:
                self.fail("the client does not read the answers it asks for")
                return
        self._wire.write(data)

    def add_producer(self, producer: IPushProducer) -> None:
        """Pause this producer whenever the client does not keep up."""
        if self._closing:
            return
        self._producers[id(producer)] = producer
        if self._output_paused:
            producer.pauseProducing()

    def remove_producer(self, producer: IPushProducer) -> None:
        """This producer has nothing more to write."""
        self._producers.pop(id(producer), None)

    def pause_reading(self) -> None:
        """Read nothing from the client until ``resume_reading``."""
        if self._reading_paused or self._closing:
            return
        self._reading_paused = True
        self._wire.pauseProducing()
        self._probe = self._clock.callLater(PROBE_SECONDS, self._send_probe)

    def resume_reading(self) -> None:
        """Read on."""
        if not self._reading_paused or self._gone:
            return
        self._reading_paused = False
        if self._probe is not None and self._probe.active():
            self._probe.cancel()
        self._wire.resumeProducing()

    def close(self) -> None:
        """Close when all that was written has been flushed. Only the first call counts."""
        if self._closing:
            return
        # The client's goodbye is only heard while reading; its data no longer matters.
        self.resume_reading()
        self._closing = True
        if self._idle is not None and self._idle.active():
            self._idle.cancel()
        if self._gone or self._wire is None:
            return
        self._producers.clear()
        self._wire.unregisterProducer()
        self._linger = self._clock.callLater(LINGER_SECONDS, self._wire.abortConnection)
        self._wire.loseConnection()

    def fail(self, reason: str, last: bytes = b"") -> None:
        """The client broke the rules: send ``last``, close, and tell the session."""
        if self._closing:
            return
        if last:
            self._wire.write(last)
        self.close()
        self._listener.connection_ended(reason)

    # ---- timers --------------------------------------------------------------

    def _send_probe(self) -> None:
        self._probe = self._clock.callLater(PROBE_SECONDS, self._send_probe)
        probe = self.probe()
        if probe and not self._output_paused:
            self._wire.write(probe)

    def _is_idle(self) -> None:
        left = self._moved_at + IDLE_SECONDS - self._clock.seconds()
        if left > 0:
            self._idle = self._clock.callLater(left, self._is_idle)
        else:
            self._listener.connection_idle()


def _hung_up(wire: Any) -> bool:
    """Whether the connection beneath TLS is already on its way to its end."""
    return bool(getattr(getattr(wire, "transport", None), "disconnecting", False))
