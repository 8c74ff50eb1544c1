"""What forwarded connections and their sessions have in common, whatever the language."""

from __future__ import annotations

from collections.abc import Sequence

from twisted.internet.interfaces import IPushProducer
from twisted.logger import Logger

from aranya.interfaces import ForwardAcceptor, ForwardEvents
from aranya.streaming.carrier import Carrier
from aranya.streaming.intake import Brake, Intake
from aranya.streaming.sessions import Carried


class Forwarding(Carried):
    """What the sessions share: the acceptor, the brake, one end."""

    _log = Logger()

    def __init__(self, carrier: Carrier, acceptor: ForwardAcceptor) -> None:
        super().__init__()
        self.carrier = carrier
        self._acceptor = acceptor
        self._ended = False
        self.brake = Brake(carrier.pause_reading, carrier.resume_reading)

    def connections(self) -> Sequence[Forwarded]:
        """All that are not over."""
        raise NotImplementedError

    def say_goodbye(self) -> None:
        """Close the carrier in the manners of its language."""
        raise NotImplementedError

    def accept(self, port: int, connection: Forwarded) -> None:
        """Tell the acceptor of a new connection."""
        try:
            events = self._acceptor.connection_opened(port, connection)
        except Exception:
            # The one hop that can still tell the client.
            self._log.failure("a forwarded connection failed to start")
            connection.end(f"error forwarding port {port}: internal error")
            return
        connection.opened(events)

    # ---- Session ---------------------------------------------------------------

    def abort(self, message: str) -> None:
        """End every connection with this error, then the session."""
        if self._ended:
            return
        self._ended = True
        for connection in self.connections():
            connection.abort(message)
        self.say_goodbye()

    # ---- the carrier tells -------------------------------------------------------

    def connection_ended(self, reason: str) -> None:
        self._ended = True
        for connection in self.connections():
            connection.client_gone()


class Forwarded:
    """One forwarded connection: ``ForwardStream``; a subclass writes in its language."""

    def __init__(self, session: Forwarding) -> None:
        self._carrier = session.carrier
        self._intake = Intake(session.brake, self._deliver, self._deliver_end)
        self._events: ForwardEvents | None = None
        self._producer: IPushProducer | None = None
        self._paused = False
        self._over = False
        self._gone_early = False
        self._finished = False

    # ---- a language overrides ------------------------------------------------

    def _write(self, data: bytes) -> None:
        raise NotImplementedError

    def _write_finish(self) -> None:
        raise NotImplementedError

    def _write_end(self, error: str) -> None:
        raise NotImplementedError

    # ---- ForwardStream ----------------------------------------------------------

    def write(self, data: bytes) -> None:
        if data and not self._over and not self._finished:
            self._write(data)

    def register_producer(self, producer: IPushProducer) -> None:
        if not self._over:
            self.unregister_producer()
            self._producer = producer
            self._carrier.add_producer(producer)

    def unregister_producer(self) -> None:
        if self._producer is not None:
            self._carrier.remove_producer(self._producer)
            self._producer = None

    def pause(self) -> None:
        self._paused = True
        self._intake.pause()

    def resume(self) -> None:
        self._paused = False
        if self._events is not None:
            self._intake.resume()

    def finish(self) -> None:
        if not self._over and not self._finished:
            self._finished = True
            self._write_finish()

    def end(self, error: str = "") -> None:
        if not self._over:
            self._stop()
            self._write_end(" ".join(error.split()))

    # ---- the session tells --------------------------------------------------------

    def opened(self, events: ForwardEvents) -> None:
        """Somebody listens now."""
        if self._gone_early:
            events.client_gone()
        if self._over:
            return
        self._events = events
        if not self._paused:
            self._intake.resume()

    def data_received(self, data: bytes) -> None:
        """Bytes of the client."""
        self._intake.receive(data)

    def data_finished(self) -> None:
        """The client sends no more."""
        self._intake.finish()

    def client_gone(self) -> None:
        """The client gave this connection up."""
        if not self._over:
            self._stop()
            self._tell_gone()

    def abort(self, message: str) -> None:
        """End with this error, told to both sides."""
        if not self._over:
            self.end(message)
            self._tell_gone()

    def _tell_gone(self) -> None:
        if self._events is not None:
            self._events.client_gone()
        else:
            self._gone_early = True

    def _stop(self) -> None:
        self._over = True
        self.unregister_producer()
        self._intake.discard()

    def _deliver(self, data: bytes) -> None:
        if self._events is not None:
            self._events.data_received(data)

    def _deliver_end(self) -> None:
        if self._events is not None:
            self._events.finished()
