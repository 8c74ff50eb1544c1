"""One watch request: begun when first read, paused while its reader is slow, given up when it is silent."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Callable

from twisted.internet import error as network
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IDelayedCall, IPushProducer, IReactorTime
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from twisted.web.client import ResponseDone, ResponseFailed
from twisted.web.http import PotentialDataLoss
from twisted.web.iweb import IResponse

from aranya.interfaces import Change, Object
from aranya.kube.errors import Unreachable
from aranya.kube.trouble import plainly
from aranya.kube.watch import Event, WatchDecoder

#: How many events wait for their reader before the connection is paused.
EVENTS_WAITING = 256
#: Who has sent bookmarks, which come each minute, is given up after so many seconds without anything.
SILENCE_SECONDS = 180.0


class Watch(AsyncIterator[Event]):
    """One watch request, iterated; ``close`` it when leaving before its end."""

    def __init__(
        self,
        clock: IReactorTime,
        begin: Callable[[], Deferred[IResponse]],
        longest: float,
        unreachable: Callable[[str], Unreachable],
        closed: Callable[[Watch, Deferred[None]], None],
    ) -> None:
        self._clock = clock
        self._begin = begin
        self._told_closed = closed
        self._longest = longest
        self._unreachable = unreachable
        self._stream: _Stream | None = None
        self._closed = False

    def __aiter__(self) -> Watch:
        return self

    async def __anext__(self) -> tuple[Change, Object]:
        if self._closed:
            raise StopAsyncIteration
        try:
            if self._stream is None:
                response = await self._begin()
                self._stream = _Stream(self._clock, self._longest, self._unreachable)
                response.deliverBody(self._stream)
            event = await self._stream.next()
        except BaseException:
            self.close()
            raise
        if event is None:
            self.close()
            raise StopAsyncIteration
        return event

    def close(self) -> None:
        """End the request; nothing more comes."""
        if self._closed:
            return
        self._closed = True
        if self._stream is not None:
            self._stream.abandon()
        self._told_closed(self, succeed(None) if self._stream is None else self._stream.lost)


class _Stream(Protocol):
    """The body of a watch: bytes in, events out, paused while too many wait."""

    def __init__(
        self, clock: IReactorTime, longest: float, unreachable: Callable[[str], Unreachable]
    ) -> None:
        self._clock = clock
        self._unreachable = unreachable
        self._decoder = WatchDecoder()
        self._events: deque[Event] = deque()
        self._error: Exception | None = None
        self._ended = False
        self._paused = False
        self._reader: Deferred[None] | None = None
        self._ending: IDelayedCall | None = clock.callLater(longest, self._silent, longest)
        self._silence: IDelayedCall | None = None
        #: Fires when the connection has ended.
        self.lost: Deferred[None] = Deferred()

    async def next(self) -> Event | None:
        """The next event; ``None`` at a quiet end."""
        while not self._events:
            if self._error is not None:
                raise self._error
            if self._ended:
                return None
            self._resume()
            self._reader = Deferred()
            try:
                await self._reader
            finally:
                self._reader = None
        return self._events.popleft()

    def abandon(self) -> None:
        """Nobody reads any more: end the connection."""
        self._events.clear()
        self._finish(None)
        transport = self.transport
        if transport is not None:
            abort = getattr(transport, "abortConnection", None) or transport.loseConnection
            abort()

    def dataReceived(self, data: bytes) -> None:
        if self._ended:
            return
        events, error = self._decoder.receive(data)
        self._events += events
        if error is not None:
            self._finish(error)
            return
        if self._decoder.bookmarked:
            if self._silence is None:
                self._silence = self._clock.callLater(SILENCE_SECONDS, self._silent, SILENCE_SECONDS)
            else:
                self._silence.reset(SILENCE_SECONDS)
        if len(self._events) >= EVENTS_WAITING:
            self._pause()
        if self._events:
            self._wake()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.transport = None
        # A server that dies in mid-watch and one that ends it look alike: both are resumed from.
        quiet = reason.check(ResponseDone, PotentialDataLoss, ResponseFailed, network.ConnectionClosed)
        self._finish(None if quiet else self._unreachable(plainly(reason.value)))
        self.lost.callback(None)

    def _silent(self, seconds: float) -> None:
        self._finish(self._unreachable(f"a watch was silent for {seconds:.0f} s"))

    def _finish(self, error: Exception | None) -> None:
        if self._ended:
            return
        self._ended = True
        self._error = error
        for call in (self._ending, self._silence):
            if call is not None and call.active():
                call.cancel()
        self._wake()

    def _wake(self) -> None:
        reader = self._reader
        if reader is not None and not reader.called:
            reader.callback(None)

    def _pause(self) -> None:
        if not self._paused and self.transport is not None:
            self._paused = True
            IPushProducer(self.transport).pauseProducing()
            if self._silence is not None:
                # We do not listen, so silence says nothing.
                self._silence.cancel()
                self._silence = None

    def _resume(self) -> None:
        if self._paused and self.transport is not None:
            self._paused = False
            IPushProducer(self.transport).resumeProducing()
