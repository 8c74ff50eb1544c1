"""The HTTP side of a kubelet endpoint, and how a connection leaves HTTP.

``twisted.web`` parses the request; an accepted upgrade then takes the transport
over *once and for good*. Three things are easily forgotten, and done here: what
the parser had read beyond the request belongs to the new language; reading was
perhaps paused while the request ran and must go on; no HTTP timeout may fire later.

A command line travels in the URL, so the head of a request may be as long as the
real kubelet lets it be. Whoever sends it is still a stranger, so nothing is done to
it in advance: no query, path or cookie is taken apart, which for a megabyte of them
would hold up everybody for seconds. And a megabyte of each of many strangers would be
all the memory there is, so what is not whole yet waits in one ``Lobby`` for all of them.
Bodies mean nothing to a kubelet: they are short, and not kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from typing import Any, Final

from twisted.internet.interfaces import IAddress, IProducer, IProtocol, IReactorTime
from twisted.python.failure import Failure
from twisted.web.http import HTTPChannel, Request, datetimeToString
from twisted.web.resource import IResource
from twisted.web.server import Site

HEAD_LIMIT: Final = 1024 * 1024
BODY_LIMIT: Final = 64 * 1024
IDLE_SECONDS: Final = 90

#: How many requests may be waited for at once, and how much they may hold in all beyond their free shares.
LOBBY_PLACES: Final = 4096
LOBBY_ROOM: Final = 64 * 1024 * 1024
#: What each may hold in any case: the head of nearly every honest request.
FREE_SHARE: Final = 16 * 1024
#: What a header, or a piece of a line, takes in memory beyond its bytes: short ones are mostly that.
PIECE_COST: Final = 256
#: How long who was turned away may take to read why; what it had sent is held as long.
FAREWELL_SECONDS: Final = 5


class Lobby:
    """Where requests wait until they are whole: one for all connections, as they fill one memory.

    Nobody knows whose a request is before it is whole, so all guests are equal. A request that is
    read at one go never comes here, and one with a usual head needs no room: when the lobby is
    full, only long commands are turned away, and when all places are taken, only what comes in parts.
    """

    def __init__(self, places: int = LOBBY_PLACES, room: int = LOBBY_ROOM) -> None:
        self._places = places
        self._room = room
        self._guests: dict[object, int] = {}
        self._taken = 0

    @property
    def guests(self) -> int:
        """How many wait now."""
        return len(self._guests)

    @property
    def taken(self) -> int:
        """How many bytes they hold beyond their free shares."""
        return self._taken

    def hold(self, guest: object, size: int) -> bool:
        """``guest`` holds ``size`` bytes now, with 0 it has left; false if it must go.

        One for whom there is no room is counted until it has gone: it holds the bytes already.
        """
        before = self._guests.get(guest)
        if not size:
            self._taken -= self._guests.pop(guest, 0)
            return True
        if before is None and len(self._guests) >= self._places:
            return False
        beyond = max(0, size - FREE_SHARE)
        more = beyond - (before or 0)
        self._guests[guest] = beyond
        self._taken += more
        return more <= 0 or self._taken <= self._room


class KubeletChannel(HTTPChannel):
    """HTTP/1.1 with a large head, which can hand its transport to another protocol."""

    MAX_LENGTH = HEAD_LIMIT
    totalHeadersSize = HEAD_LIMIT
    maxHeaders = 1000
    lobby: Lobby

    def __init__(self) -> None:
        super().__init__()
        self._successor: IProtocol | None = None
        self._scraps: list[bytes] = []
        self._scraps_size = 0
        self._body_size = 0

    def dataReceived(self, data: bytes) -> None:
        """Feed whoever has the connection now."""
        if self._successor is not None:
            self._successor.dataReceived(data)
        elif self._abortingCall is None:
            self._read(data)
            if not self._busyReceiving:
                self._wait()
        # What comes after we closed is read past: nobody asks for it, and it would fill the memory.

    def _read(self, data: bytes) -> None:
        if self.line_mode and b"\n" not in data and self._scraps_size < HEAD_LIMIT:
            # No line ends here. The parser would copy all it holds for each of these scraps.
            self._scraps.append(data)
            self._scraps_size += len(data)
            return
        if self._scraps:
            data = b"".join((*self._scraps, data))
            self._scraps.clear()
            self._scraps_size = 0
        super().dataReceived(data)

    def _wait(self) -> None:
        """Wait for the rest of a request, if there is a part of one and it may."""
        if self.lobby.hold(self, self._unfinished()) or self._abortingCall is not None:
            return
        self._abortingCall = self.callLater(FAREWELL_SECONDS, self.forceAbortClient)
        self._refuse_and_disconnect(
            b"503 Service Unavailable", b"aranya waits for the rest of too many requests; try again later\n"
        )

    def _unfinished(self) -> int:
        """What the part of a request that came so far takes in memory; 0 if there is none."""
        if self._handlingRequest or self._successor is not None:
            return 0
        size = self._scraps_size + len(self._buffer) + self._receivedHeaderSize + self._body_size
        return size + PIECE_COST * (len(self._scraps) + self._receivedHeaderCount)

    def resetTimeout(self) -> None:
        """Bytes of a head do not buy time: a whole head must come within the idle time."""
        if not self._scraps_size and not self._receivedHeaderSize:
            super().resetTimeout()

    def rawDataReceived(self, data: bytes) -> None:
        """Take the rest of what was read after a hand-over, or a body."""
        if self._successor is not None:
            self._successor.dataReceived(data)
            return
        if not self._handlingRequest:
            self._body_size += len(data)
            if self._body_size > BODY_LIMIT:
                self._refuse_and_disconnect(b"413 Request Entity Too Large")
                return
        super().rawDataReceived(data)

    def allContentReceived(self) -> None:
        """The request is whole."""
        self._body_size = 0
        super().allContentReceived()

    def lineReceived(self, line: bytes) -> None:
        """A line of a head. Nobody folds headers any more, and to unfold many takes for ever."""
        if line.startswith((b" ", b"\t")):
            self._refuse_and_disconnect(b"400 Bad Request")
        else:
            super().lineReceived(line)

    def lineLengthExceeded(self, line: bytes) -> None:
        """The head is longer than any command line may be."""
        self._refuse_and_disconnect(b"431 Request Header Fields Too Large")

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]  # twisted gives a default
        """Tell whoever has the connection now."""
        if self._successor is not None:
            self._successor.connectionLost(reason)
            return
        self.lobby.hold(self, 0)
        super().connectionLost(reason)

    def registerProducer(self, producer: IProducer, streaming: bool) -> None:
        """Framework hook: an answer has a producer. If the answer before still fills the pipe, it waits."""
        super().registerProducer(producer, streaming)
        if streaming and self._waitingForTransport:
            self.pauseProducing()

    def loseConnection(self) -> None:
        """Close when all is flushed; TLS waits for the client to close as well, but not for ever."""
        self.setTimeout(None)
        if self._abortingCall is None:
            self._abortingCall = self.callLater(IDLE_SECONDS, self.forceAbortClient)
        super().loseConnection()

    def hand_over(self, request: Request, head: bytes, successor: IProtocol) -> None:
        """Write ``head`` as the response and let ``successor`` have the transport."""
        assert self._successor is None and self.requests and self.requests[0] is request
        transport: Any = self.transport
        self.setTimeout(None)
        self.requests.clear()
        request.finished = 1  # whatever fails from here on, no answer goes into the new language
        request.content.close()
        notifications, request.notifications = request.notifications, []
        for told in notifications:
            told.callback(None)
        rest = b"".join(self._dataBuffer)
        self._dataBuffer.clear()
        reading: Any = self._networkProducer
        reading.unregisterProducer()
        reading.resumeProducing()
        transport.write(head)
        self._successor = successor
        successor.makeConnection(transport)
        if rest:
            successor.dataReceived(rest)

    def _refuse_and_disconnect(self, status: bytes, text: bytes = b"") -> None:
        transport: Any = self.transport
        head = b"HTTP/1.1 %b\r\nConnection: close\r\nContent-Length: %d\r\n" % (status, len(text))
        if text:
            head += b"Content-Type: text/plain; charset=utf-8\r\n"
        transport.write(head + b"\r\n" + text)
        self.loseConnection()


class KubeletRequest(Request):
    """A request as it came: its target in one piece, its body read past."""

    def parseCookies(self) -> None:
        """Framework hook: nobody has any."""

    def gotLength(self, length: int | None) -> None:
        """Framework hook: a body may follow. It fills neither memory nor the disk."""
        self.content = BytesIO()

    def handleContentChunk(self, data: bytes) -> None:
        """Framework hook: a piece of the body."""

    def requestReceived(self, command: bytes, path: bytes, version: bytes) -> None:
        """Framework hook: the request is whole."""
        self.method, self.uri, self.clientproto = command, path, version
        self.process()

    def process(self) -> None:
        """Framework hook: let the one resource of the site answer."""
        self.setHeader(b"Date", datetimeToString())
        channel: Any = self.channel
        channel.site.resource.render(self)


class KubeletSite(Site):
    """A resource tree behind ``KubeletChannel``: HTTP/1.1 only, no access log."""

    # Twisted declares the types of its own hybrid channel and of its own request.
    protocol = KubeletChannel  # type: ignore[assignment]
    requestFactory = KubeletRequest  # type: ignore[assignment]

    def __init__(self, resource: IResource, clock: IReactorTime, lobby: Lobby | None = None) -> None:
        """Without a ``lobby`` the site has one of its own."""
        super().__init__(resource, timeout=IDLE_SECONDS, reactor=clock, parsePOSTFormSubmission=False)
        self._lobby = lobby if lobby is not None else Lobby()

    def startFactory(self) -> None:
        """Nothing: the clock of Twisted's access log ticks each second for every port."""

    def stopFactory(self) -> None:
        """Nothing, as nothing was started."""

    def log(self, request: Request) -> None:
        """No access log."""

    def acceptableProtocols(self) -> list[bytes]:
        """What ALPN may choose; a connection of HTTP/2 could not be taken over."""
        return [b"http/1.1"]

    def buildProtocol(self, addr: IAddress | None) -> KubeletChannel:  # type: ignore[override]  # as above
        """A channel for a new connection."""
        channel: KubeletChannel = super().buildProtocol(addr)
        channel.lobby = self._lobby
        return channel


def take_over(request: Request, head: bytes, successor: IProtocol) -> bool:
    """Answer with ``head`` and give the connection to ``successor``; false if the client is gone."""
    channel = request.channel
    if channel is None:
        return False
    if not isinstance(channel, KubeletChannel):
        raise TypeError("only a KubeletChannel can hand over its connection")
    channel.hand_over(request, head, successor)
    return True


def refuse(request: Request, code: int, text: str, headers: Sequence[tuple[bytes, bytes]] = ()) -> None:
    """Answer with a plain text and close: no one waits for the rest of an error."""
    channel = request.channel
    if channel is None:
        return
    body = text.encode()
    channel.persistent = False
    request.setResponseCode(code)
    request.setHeader(b"content-type", b"text/plain; charset=utf-8")
    request.setHeader(b"content-length", str(len(body)).encode())
    request.setHeader(b"connection", b"close")
    for name, value in headers:
        request.responseHeaders.addRawHeader(name, value)
    request.write(body)
    request.finish()
