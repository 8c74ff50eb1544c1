"""Forwarded connections over SPDY: each a pair of streams, ``error`` and ``data``, one after the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from twisted.internet.interfaces import IDelayedCall, IReactorTime

from aranya.interfaces import ForwardAcceptor
from aranya.streaming.forwarded import Forwarded, Forwarding
from aranya.streaming.spdy.protocol import SpdyProtocol

PAIRING_SECONDS: Final = 30
MAX_STREAMS: Final = 4096
#: kubectl numbers its requests; whoever names them otherwise must be brief.
_REQUEST_LIMIT: Final = 64


class _Pair(Forwarded):
    """A pair of SPDY streams, complete or not."""

    def __init__(self, session: SpdyForwarding, request: str, port: int, deadline: IDelayedCall) -> None:
        super().__init__(session)
        self._session = session
        self.request = request
        self.port = port
        self.deadline = deadline
        self.streams: dict[str, int] = {}

    def _write(self, data: bytes) -> None:
        self._session.wire.write(self.streams["data"], data)

    def _write_finish(self) -> None:
        self._session.wire.finish(self.streams["data"])

    def _write_end(self, error: str) -> None:
        wire = self._session.wire
        data, errors = self.streams.get("data"), self.streams.get("error")
        if error:
            if errors is not None:
                wire.write(errors, error.encode())
                wire.finish(errors)
            if data is not None:
                wire.reset(data)
            return
        if data is not None:
            wire.finish(data)
        if errors is not None:
            wire.finish(errors)

    def given_up(self) -> None:
        """The client reset the data stream; it still waits for the end of the errors."""
        self.client_gone()
        errors = self.streams.get("error")
        if errors is not None:
            self._session.wire.finish(errors)

    def _stop(self) -> None:
        super()._stop()
        self._session.forget(self)


class SpdyForwarding(Forwarding):
    """Any number of pairs on one SPDY connection."""

    def __init__(self, clock: IReactorTime, acceptor: ForwardAcceptor) -> None:
        self.wire = SpdyProtocol(self, clock, MAX_STREAMS)
        super().__init__(self.wire, acceptor)
        self._clock = clock
        self._pairs: dict[str, _Pair] = {}
        self._by_stream: dict[int, _Pair] = {}

    def connection_made(self) -> None:
        """The client speaks first."""

    def connections(self) -> Sequence[Forwarded]:
        return tuple(self._pairs.values())

    def say_goodbye(self) -> None:
        self.wire.go_away()

    def forget(self, pair: _Pair) -> None:
        """The pair is over."""
        if pair.deadline.active():
            pair.deadline.cancel()
        self._pairs.pop(pair.request, None)
        for stream in pair.streams.values():
            self._by_stream.pop(stream, None)

    def stream_opened(self, stream: int, headers: Mapping[str, str]) -> None:
        kind = headers.get("streamtype", "").lower()
        port = _port(headers.get("port", ""))
        # Ancient clients number nothing; theirs is the data stream right after the error stream.
        request = headers.get("requestid") or f"#{stream if kind == 'error' else stream - 2}"
        if kind not in ("error", "data") or not port or len(request) > _REQUEST_LIMIT:
            self.wire.refuse(stream)
            return
        self.wire.reply(stream)
        pair = self._pairs.get(request)
        if pair is None:
            deadline = self._clock.callLater(PAIRING_SECONDS, self._not_paired, request)
            pair = self._pairs[request] = _Pair(self, request, port, deadline)
        elif kind in pair.streams:
            self.wire.refuse(stream)
            pair.abort(f"error processing stream for request {request}: {kind} stream already assigned")
            return
        pair.streams[kind] = stream
        self._by_stream[stream] = pair
        if len(pair.streams) == 2:
            pair.deadline.cancel()
            self.accept(pair.port, pair)

    def _not_paired(self, request: str) -> None:
        self._pairs[request].end(f"error forwarding port: request {request} timed out waiting for streams")

    def stream_data(self, stream: int, data: bytes) -> None:
        pair = self._by_stream.get(stream)
        if pair is not None and stream == pair.streams.get("data"):
            pair.data_received(data)

    def stream_finished(self, stream: int) -> None:
        pair = self._by_stream.get(stream)
        if pair is not None and stream == pair.streams.get("data"):
            pair.data_finished()

    def stream_reset(self, stream: int) -> None:
        pair = self._by_stream.get(stream)
        if pair is not None and (stream == pair.streams.get("data") or len(pair.streams) < 2):
            pair.given_up()


def _port(text: str) -> int:
    """A port's number, or 0."""
    if not (text.isascii() and text.isdigit() and len(text) <= 5):
        return 0
    number = int(text)
    return number if number <= 0xFFFF else 0
