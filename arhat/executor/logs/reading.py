"""One request for a log: a source on one side, the channel on the other, the limit between them."""

from __future__ import annotations

from typing import Protocol

from twisted.logger import Logger

from arhat.executor.ending import Valve, conclude
from arhat.executor.logs.selection import Limit
from tether.errors import Reason, ResetCode
from tether.link.interfaces import Channel, Lane
from tether.verbs.requests import Failed, Result, Succeeded


class Source(Protocol):
    """Something that reads a log and gives what is wanted of it to a ``Reading``."""

    def start(self) -> None:
        """Begin; called once, maybe after ``pause``."""
        ...

    def pause(self) -> None:
        """Give no more than what is in hand."""
        ...

    def resume(self) -> None:
        """Go on."""
        ...

    def stop(self) -> None:
        """Let everything go and stay silent; may be called twice."""
        ...


class Reading:
    """Hears the end of the channel (``Receiver``), and from the source what to send on it."""

    _log = Logger()

    def __init__(self, channel: Channel, limit: int | None) -> None:
        self._channel = channel
        self._limit = Limit(limit)
        self._source: Source | None = None
        self._over = False
        self._paused = False
        self._sent = False
        channel.registerProducer(Valve(self._pause, self._resume), True)

    # -- the source's side

    @property
    def is_over(self) -> bool:
        """Whether nobody wants more."""
        return self._over

    def begin(self, source: Source) -> None:
        """Read from ``source``; if there was another, it must be done."""
        if self._over:
            return
        self._source = source
        if self._paused:
            source.pause()
        source.start()

    def write(self, data: bytes) -> None:
        """Send what is wanted of the log."""
        if self._over or not data:
            return
        self._sent = True
        self._channel.write(self._limit.cut(data))
        if self._limit.is_reached:
            self.done()

    def done(self) -> None:
        """The log was sent."""
        self._conclude(Succeeded())

    def failed(self, reason: Reason) -> None:
        """The log cannot be read, or no further."""
        if self._sent:
            self._conclude(Failed(reason.code, reason.text))
        elif not self._over:
            self._let_go()
            self._channel.unregisterProducer()
            self._channel.reset(reason)

    def internal_error(self, why: Exception) -> None:
        """Reading itself failed; called while ``why`` is handled."""
        if isinstance(why, OSError):
            text = f"cannot read the log: {(why.strerror or str(why)).lower()}"
        else:
            self._log.failure("Reading a log failed")
            text = "cannot read the log: the agent failed; its own log says why"
        self.failed(Reason(ResetCode.INTERNAL, text))

    # -- the client's side

    def data_received(self, lane: Lane, data: bytes) -> None:
        """There is nothing to say to a log."""

    def finished(self) -> None:
        """The client has nothing to say, either."""

    def reset(self, reason: Reason) -> None:
        """The client went away."""
        self._abandon()

    def closed(self) -> None:
        """The channel is over."""
        self._abandon()

    # -- between them

    def _pause(self) -> None:
        self._paused = True
        if self._source is not None:
            self._source.pause()

    def _resume(self) -> None:
        self._paused = False
        if self._source is not None:
            self._source.resume()

    def _conclude(self, result: Result) -> None:
        if not self._over:
            self._let_go()
            conclude(self._channel, result)

    def _abandon(self) -> None:
        if not self._over:
            self._let_go()
            self._channel.unregisterProducer()

    def _let_go(self) -> None:
        self._over = True
        source, self._source = self._source, None
        if source is not None:
            source.stop()
