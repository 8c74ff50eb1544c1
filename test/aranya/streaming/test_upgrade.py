"""Tests of ``aranya.streaming.upgrade``: the kubelet's HTTP channel and how it is left."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO

from twisted.internet.protocol import Protocol
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from twisted.web.server import Request

from aranya.streaming.upgrade import (
    BODY_LIMIT,
    FAREWELL_SECONDS,
    FREE_SHARE,
    HEAD_LIMIT,
    IDLE_SECONDS,
    PIECE_COST,
    KubeletSite,
    Lobby,
    refuse,
    take_over,
)
from test.support.kubectl_wire import Answering, KubectlWire, MemoryTransport

HEAD = b"HTTP/1.1 101 Switching Protocols\r\n\r\n"


class Successor(Protocol):
    """Remembers what it got."""

    def __init__(self) -> None:
        self.got = b""
        self.lost: Failure | None = None

    def dataReceived(self, data: bytes) -> None:
        self.got += data

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
        self.lost = reason


class TakeOverTests(SynchronousTestCase):
    """Leaving HTTP."""

    def setUp(self) -> None:
        self.successor = Successor()
        self.requests: list[Request] = []
        self.wire = KubectlWire(self.requests.append)

    def ask(self, rest: bytes = b"") -> None:
        """A request, with bytes right behind it."""
        self.wire.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" + rest)

    def test_at_once(self) -> None:
        """Bytes glued to the request reach the successor, and so do later ones."""
        self.wire = KubectlWire(lambda request: take_over(request, HEAD, self.successor))
        self.ask(b"first")
        self.wire.send(b" second")
        self.assertEqual(self.successor.got, b"first second")
        self.assertEqual(self.wire.take(), HEAD)

    def test_later(self) -> None:
        """A request that waited for a decision is taken over with all that came meanwhile."""
        self.ask(b"first")
        self.wire.send(b" second")
        self.assertTrue(take_over(self.requests[0], HEAD, self.successor))
        self.wire.send(b" third")
        self.assertEqual(self.successor.got, b"first second third")
        self.assertIs(self.successor.transport, self.wire.transport)

    def test_reading_goes_on(self) -> None:
        """Reading that was paused because much came meanwhile is resumed."""
        self.ask(bytes(100_000))
        self.assertFalse(self.wire.transport.reading)
        take_over(self.requests[0], HEAD, self.successor)
        self.assertTrue(self.wire.transport.reading)
        self.assertEqual(len(self.successor.got), 100_000)

    def test_no_timeouts(self) -> None:
        """No timeout of HTTP ends the connection later, and none is left on the clock."""
        self.ask()
        take_over(self.requests[0], HEAD, self.successor)
        self.wire.clock.advance(IDLE_SECONDS * 10)
        self.assertFalse(self.wire.transport.disconnecting)
        self.assertEqual(self.wire.clock.getDelayedCalls(), [])

    def test_producer_is_free(self) -> None:
        """The successor can register as the transport's producer."""
        self.ask()
        take_over(self.requests[0], HEAD, self.successor)
        self.assertIsNone(self.wire.transport.producer)

    def test_no_answer_any_more(self) -> None:
        """The request counts as answered, so that nobody writes HTTP into the new language."""
        self.ask()
        take_over(self.requests[0], HEAD, self.successor)
        self.assertTrue(self.requests[0].finished)

    def test_connection_lost(self) -> None:
        """The successor hears of the loss; the request is told that it is finished."""
        self.ask()
        finished = self.requests[0].notifyFinish()
        take_over(self.requests[0], HEAD, self.successor)
        self.assertIsNone(self.successResultOf(finished))
        self.wire.disconnect()
        self.assertIsNotNone(self.successor.lost)

    def test_client_left(self) -> None:
        """A client that left while a decision was made is not taken over."""
        self.ask()
        self.requests[0].notifyFinish().addErrback(lambda _: None)
        self.wire.disconnect()
        self.assertFalse(take_over(self.requests[0], HEAD, self.successor))
        refuse(self.requests[0], 400, "nobody hears this")
        self.assertEqual(self.wire.take(), b"")


class RefuseTests(SynchronousTestCase):
    """A plain answer."""

    def test_answer(self) -> None:
        """It has a length and closes, so that nobody waits for more."""
        wire = KubectlWire(lambda request: refuse(request, 403, "no", [(b"X-A", b"1"), (b"X-A", b"2")]))
        wire.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        head, _, body = wire.take().partition(b"\r\n\r\n")
        lines = {line.lower() for line in head.split(b"\r\n")}
        self.assertTrue(head.startswith(b"HTTP/1.1 403 Forbidden\r\n"))
        self.assertLessEqual({b"content-length: 2", b"connection: close", b"x-a: 1", b"x-a: 2"}, lines)
        self.assertEqual(body, b"no")
        self.assertTrue(wire.transport.disconnecting)


class LimitTests(SynchronousTestCase):
    """What a client may send."""

    def setUp(self) -> None:
        self.requests: list[Request] = []
        self.wire = KubectlWire(self.requests.append)

    def test_long_command(self) -> None:
        """A command of many times 16 KiB is taken, also in small pieces."""
        argument = b"x" * 900_000
        data = b"POST /exec?command=" + argument + b" HTTP/1.1\r\nHost: x\r\n\r\n"
        for start in range(0, len(data), 1000):
            self.wire.send(data[start : start + 1000])
        (request,) = self.requests
        self.assertEqual(request.uri, b"/exec?command=" + argument)

    def test_endless_line(self) -> None:
        """A line without end is refused at the limit."""
        self.wire.send(b"GET /")
        for _ in range(HEAD_LIMIT // 65536 + 2):
            if not self.wire.transport.disconnecting:
                self.wire.send(b"x" * 65536)
        self.assertTrue(self.wire.take().startswith(b"HTTP/1.1 431 "))
        self.assertTrue(self.wire.transport.disconnecting)

    def test_endless_headers(self) -> None:
        """Headers without end are refused."""
        self.wire.send(b"GET / HTTP/1.1\r\n")
        for number in range(1200):
            if not self.wire.transport.disconnecting:
                self.wire.send(b"X-%d: y\r\n" % number)
        self.assertTrue(self.wire.take().startswith(b"HTTP/1.1 400 "))
        self.assertTrue(self.wire.transport.disconnecting)

    def test_large_body(self) -> None:
        """A body larger than any kubelet needs is refused, whether its length is told or not."""
        for framing in (b"Content-Length: 99999999", b"Transfer-Encoding: chunked"):
            wire = KubectlWire(self.requests.append)
            wire.send(b"POST / HTTP/1.1\r\n" + framing + b"\r\n\r\n")
            for _ in range(BODY_LIMIT // 65536 + 2):
                if not wire.transport.disconnecting:
                    wire.send(b"10000\r\n" + b"x" * 65536 + b"\r\n")
            self.assertTrue(wire.take().startswith(b"HTTP/1.1 413 "))
        self.assertEqual(self.requests, [])

    def test_small_bodies(self) -> None:
        """Small bodies are read past, one request after another, and nothing of them is kept."""
        chunked = b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
        for body in (b"Content-Length: 3\r\n\r\nabc", chunked):
            self.wire.send(b"POST / HTTP/1.1\r\n" + body)
            self.assertIsInstance(self.requests[-1].content, BytesIO)
            self.assertEqual(self.requests[-1].content.getvalue(), b"")
            self.requests[-1].finish()
        self.assertEqual(len(self.requests), 2)

    def test_nothing_in_advance(self) -> None:
        """Of what a stranger sends, neither query nor path nor cookies are taken apart."""
        self.wire.send(b"GET /a/b?c=d&e HTTP/1.1\r\nCookie: f=g\r\n\r\n")
        (request,) = self.requests
        self.assertEqual((request.uri, request.received_cookies), (b"/a/b?c=d&e", {}))
        self.assertIsNone(request.args)

    def test_folded_headers(self) -> None:
        """A head with folded headers is refused, as unfolding many of them would take for ever."""
        self.wire.send(b"GET / HTTP/1.1\r\nHost: x\r\n y\r\n\r\n")
        self.assertTrue(self.wire.take().startswith(b"HTTP/1.1 400 "))
        self.assertEqual(self.requests, [])

    def test_idle(self) -> None:
        """A connection without a request is closed after the idle time."""
        self.wire.clock.advance(IDLE_SECONDS)
        self.assertTrue(self.wire.transport.disconnecting)

    def test_slow_head(self) -> None:
        """A head that drips in for ever does not keep the connection."""
        self.wire.send(b"GET / HTTP/1.1\r\n")
        for _ in range(IDLE_SECONDS):
            if not self.wire.transport.disconnecting:
                self.wire.send(b"x")
                self.wire.clock.advance(1)
        self.assertTrue(self.wire.transport.disconnecting)

    def test_client_that_does_not_close(self) -> None:
        """A connection that we closed and the client did not is cut off after the idle time."""
        for request in (b"GET / HTTP/1.0\r\n\r\n", b"no request\r\n\r\n"):
            wire = KubectlWire(lambda request: request.finish())
            wire.send(request)
            self.assertTrue(wire.transport.disconnecting)
            wire.clock.advance(IDLE_SECONDS - 1)
            self.assertFalse(wire.transport.aborted)
            wire.clock.advance(1)
            self.assertTrue(wire.transport.aborted)
            self.assertEqual(wire.clock.getDelayedCalls(), [])

    def test_client_that_closes(self) -> None:
        """When the client closes, too, no timer is left."""
        self.wire.send(b"no request\r\n\r\n")
        self.wire.disconnect()
        self.assertEqual(self.wire.clock.getDelayedCalls(), [])

    def test_pipelined_producers(self) -> None:
        """An answer that begins while the client has not read the one before is held back at once."""
        self.wire.send(b"GET /1 HTTP/1.1\r\nHost: x\r\n\r\nGET /2 HTTP/1.1\r\nHost: x\r\n\r\n")
        self.wire.channel.pauseProducing()
        self.requests[0].finish()
        producer = StringTransport()
        self.requests[1].registerProducer(producer, True)
        self.assertEqual(producer.producerState, "paused")
        self.wire.channel.resumeProducing()
        self.assertEqual(producer.producerState, "producing")

    def test_keep_alive(self) -> None:
        """Each request buys another idle time."""
        for _ in range(3):
            self.wire.clock.advance(IDLE_SECONDS - 1)
            self.wire.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            self.requests[-1].finish()
        self.assertFalse(self.wire.transport.disconnecting)

    def test_alpn(self) -> None:
        """Only HTTP/1.1 is offered."""
        self.assertEqual(self.wire.site.acceptableProtocols(), [b"http/1.1"])


class Guest(KubectlWire):
    """A connection to a site that shares its lobby with others."""

    def __init__(self, lobby: Lobby, answer: Callable[[Request], object]) -> None:
        super().__init__(answer)
        self.disconnect()  # from the site that it was made with
        self.lost = False
        self.site = KubeletSite(Answering(answer), self.clock, lobby)
        self.channel = self.site.buildProtocol(None)
        self.transport = MemoryTransport()
        self.channel.makeConnection(self.transport)


class LobbyTests(SynchronousTestCase):
    """What strangers may hold together before anybody knows who they are."""

    WHOLE = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
    ROOM = 300_000

    def setUp(self) -> None:
        self.requests: list[Request] = []
        self.lobby = Lobby(places=10, room=self.ROOM)

    def guest(self, data: bytes = b"") -> Guest:
        """A connection that sent ``data``, as TLS hands it on: 16 KiB at a time."""
        guest = Guest(self.lobby, self.requests.append)
        for start in range(0, len(data), 16384):
            guest.send(data[start : start + 16384])
        return guest

    def assert_turned_away(self, guest: Guest) -> None:
        """It got an answer that says why, and was closed."""
        head, _, body = guest.take().partition(b"\r\n\r\n")
        self.assertTrue(head.startswith(b"HTTP/1.1 503 Service Unavailable\r\n"))
        self.assertIn(b"Content-Length: %d\r\n" % len(body), head)
        self.assertIn(b"too many requests", body)
        self.assertTrue(guest.transport.disconnecting)

    def assert_empty(self) -> None:
        """Nobody waits, and nothing is held."""
        self.assertEqual((self.lobby.guests, self.lobby.taken), (0, 0))

    def test_endless_lines(self) -> None:
        """Many that send lines without end cannot hold more than there is room for."""
        guests = [self.guest(b"GET /" + b"x" * 100_000) for _ in range(8)]
        stay = [guest for guest in guests if not guest.transport.disconnecting]
        self.assertEqual(len(stay), 3)
        for guest in guests:
            if guest not in stay:
                self.assert_turned_away(guest)
                held = self.lobby.taken
                guest.send(b"x" * 100_000)
                self.assertEqual((self.lobby.taken, guest.take()), (held, b""))
        self.assertLess(self.lobby.taken, self.ROOM + 5 * 16384)

    def test_endless_headers(self) -> None:
        """Headers count as the request line does."""
        guests = [self.guest(b"GET / HTTP/1.1\r\n" + b"X: %b\r\n" % (b"y" * 75_000) * 2) for _ in range(3)]
        self.assertEqual([guest.transport.disconnecting for guest in guests], [False, False, True])
        self.assert_turned_away(guests[2])

    def test_small_pieces(self) -> None:
        """Short headers and scraps of a line count for the memory that they take, not for their bytes."""
        self.guest(b"GET / HTTP/1.1\r\n" + b"".join(b"x%d:y\r\n" % number for number in range(801)))
        self.assertGreater(self.lobby.taken, 800 * PIECE_COST - FREE_SHARE)
        dripping = self.guest()
        for _ in range(self.ROOM // PIECE_COST):
            dripping.send(b"xy")
        self.assert_turned_away(dripping)

    def test_large_body(self) -> None:
        """A request that waits for its body is not whole: its head still counts."""
        slow = self.guest(b"POST /" + b"x" * 200_000 + b" HTTP/1.1\r\nContent-Length: 2\r\n\r\n")
        self.assertGreater(self.lobby.taken, 200_000 - FREE_SHARE)
        self.assert_turned_away(self.guest(b"GET /" + b"x" * 200_000))
        slow.send(b"ab")
        self.assertEqual(len(self.requests), 1)
        self.assertEqual(self.lobby.guests, 1)

    def test_whole(self) -> None:
        """A request that is whole gives its room back, and another gets it, while the first goes on."""
        for number in range(5):
            self.guest(b"GET /" + b"x" * 250_000 + b" HTTP/1.1\r\n\r\n")
            self.assertEqual(len(self.requests), number + 1)
            self.assert_empty()

    def test_gone(self) -> None:
        """A client that leaves, or comes too slowly, gives its room back."""
        leaving = self.guest(b"GET /" + b"x" * 250_000)
        leaving.disconnect()
        self.assert_empty()
        slow = self.guest(b"GET /" + b"x" * 250_000)
        slow.clock.advance(IDLE_SECONDS)
        self.assertTrue(slow.transport.disconnecting)
        slow.disconnect()
        self.assert_empty()

    def test_turned_away_and_stays(self) -> None:
        """Who was turned away and does not close is cut off soon, and what it holds counts until then."""
        self.guest(b"GET /" + b"x" * 250_000)
        held = self.lobby.taken
        other = self.guest(b"GET /" + b"x" * 250_000)
        self.assertGreater(self.lobby.taken, held)
        other.clock.advance(FAREWELL_SECONDS - 1)
        self.assertFalse(other.transport.aborted)
        other.clock.advance(1)
        self.assertTrue(other.transport.aborted)
        other.disconnect()
        self.assertEqual(self.lobby.taken, held)
        self.assertEqual(other.clock.getDelayedCalls(), [])

    def test_no_room(self) -> None:
        """While there is no room, a request with a usual head is served, also in parts."""
        for _ in range(3):
            self.guest(b"GET /" + b"x" * 150_000)
        guest = self.guest()
        for start in range(0, len(self.WHOLE), 5):
            guest.send(self.WHOLE[start : start + 5])
        self.guest(b"GET /" + b"x" * 16_000 + b" HTTP/1.1\r\n\r\n")
        self.assertEqual(len(self.requests), 2)

    def test_no_place(self) -> None:
        """Only so many may wait; what is read at one go need not."""
        waiting = [self.guest(b"GET") for _ in range(10)]
        self.assert_turned_away(self.guest(b"GET"))
        self.guest(self.WHOLE)
        self.assertEqual(len(self.requests), 1)
        waiting[0].send(self.WHOLE[3:])
        self.assertEqual(len(self.requests), 2)
        self.assertFalse(self.guest(b"GET").transport.disconnecting)

    def test_no_place_behind_a_body(self) -> None:
        """A request that was read together with the one before need not wait either."""
        self.lobby = Lobby(places=0)
        guest = Guest(self.lobby, lambda request: request.finish())
        guest.send(b"POST / HTTP/1.1\r\nContent-Length: 2\r\n\r\nab" + self.WHOLE)
        self.assertEqual(guest.take().count(b"HTTP/1.1 200 OK"), 2)
        self.assertFalse(guest.transport.disconnecting)

    def test_keep_alive(self) -> None:
        """Between requests a connection does not wait, and does so once bytes of the next one came."""
        guest = self.guest()
        for _ in range(2):
            self.assert_empty()
            guest.send(self.WHOLE[:5])
            self.assertEqual(self.lobby.guests, 1)
            guest.send(self.WHOLE[5:])
            self.assert_empty()
            self.requests[-1].finish()

    def test_pipelined(self) -> None:
        """What came behind a request waits once that is answered; reading goes on as ever."""
        guest = self.guest(self.WHOLE + b"GET /" + b"x" * 60_000)
        self.assert_empty()
        self.assertFalse(guest.transport.reading)
        self.requests[0].finish()
        self.assertTrue(guest.transport.reading)
        self.assertGreater(self.lobby.taken, 60_000 - FREE_SHARE)
        guest.send(b" HTTP/1.1\r\n\r\n")
        self.assert_empty()
        self.assertEqual(len(self.requests), 2)

    def test_paused(self) -> None:
        """A request that waits while our answers are not read still counts, and goes on."""
        guest = self.guest(b"GET /" + b"x" * 60_000)
        guest.channel.pauseProducing()
        self.assertFalse(guest.transport.reading)
        self.assertEqual(self.lobby.guests, 1)
        guest.channel.resumeProducing()
        self.assertTrue(guest.transport.reading)
        guest.send(b" HTTP/1.1\r\n\r\n")
        self.assert_empty()

    def test_handed_over(self) -> None:
        """A connection that left HTTP does not count, whatever it carries."""
        successor = Successor()
        guest = self.guest(self.WHOLE + b"first")
        take_over(self.requests[0], HEAD, successor)
        guest.send(bytes(self.ROOM * 2))
        self.assert_empty()
        self.assertEqual(len(successor.got), 5 + self.ROOM * 2)
        guest.disconnect()
        self.assert_empty()

    def test_bad_request(self) -> None:
        """A request that was refused is held until its connection is gone, and no longer; no more is read."""
        guest = self.guest(b"GET /" + b"x" * 100_000 + b" HTTP/1.1\r\nno header\r\n\r\n")
        self.assertTrue(guest.take().startswith(b"HTTP/1.1 400 "))
        held = self.lobby.taken
        self.assertGreater(held, 100_000 - FREE_SHARE)
        guest.send(bytes(self.ROOM * 2))
        self.assertEqual((self.lobby.taken, guest.take()), (held, b""))
        guest.disconnect()
        self.assert_empty()
