"""Tests of ``aranya.streaming.upgrade``: the kubelet's HTTP channel and how it is left."""

from __future__ import annotations

from io import BytesIO

from twisted.internet.protocol import Protocol
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from twisted.web.server import Request

from aranya.streaming.upgrade import BODY_LIMIT, HEAD_LIMIT, IDLE_SECONDS, refuse, take_over
from test.support.kubectl_wire import KubectlWire

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
