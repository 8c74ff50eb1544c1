"""Tests of ``aranya.streaming.forwarding``: port-forward over SPDY, also in a tunnel."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from aranya.interfaces import ForwardStream
from aranya.streaming import forwarded_spdy
from aranya.streaming.carrier import IDLE_SECONDS, PROBE_SECONDS
from aranya.streaming.forwarded_spdy import PAIRING_SECONDS
from aranya.streaming.intake import EACH_LIMIT
from test.aranya.streaming.commands import Producer
from test.aranya.streaming.forwards import SpdyForward, TunnelForward
from test.support.spdy_client import ClientStream


class SpdyTests(SynchronousTestCase):
    """Pairs of streams on one connection."""

    make: Callable[..., SpdyForward] = SpdyForward

    def test_pair(self) -> None:
        """A pair is one connection to its port."""
        running = self.make()
        _, data = running.connect(8080)
        (connected,) = running.connections
        self.assertEqual(connected.port, 8080)
        running.send(running.client.data(data.number, b"request"))
        connected.stream.write(b"response")
        running.read()
        self.assertEqual((connected.data, data.received), (b"request", b"response"))

    def test_end(self) -> None:
        """A good end finishes both streams and says nothing on the error stream."""
        running = self.make()
        error, data = running.connect()
        running.connections[0].stream.write(b"all")
        running.connections[0].stream.end()
        running.read()
        self.assertEqual((data.received, data.ended, data.reset), (b"all", True, None))
        self.assertEqual((error.received, error.ended), (b"", True))
        self.assertEqual(running.connections[0].told, [])

    def test_error(self) -> None:
        """An error is told in one line on the error stream, and the data stream is reset."""
        running = self.make()
        error, data = running.connect()
        running.connections[0].stream.end("error forwarding port 80:\nrefused")
        running.read()
        self.assertEqual((error.received, error.ended), (b"error forwarding port 80: refused", True))
        self.assertTrue(data.ended)
        self.assertFalse(running.transport.disconnecting)

    def test_refused_at_once(self) -> None:
        """The acceptor may refuse while it is asked."""
        running = self.make(on_open=lambda stream: stream.end("no such port"))
        error, _ = running.connect()
        self.assertEqual(error.received, b"no such port")
        running.wire.disconnect()
        self.assertEqual(running.connections[0].told, [])

    def test_failing_acceptor(self) -> None:
        """A bug of the acceptor ends this connection only."""

        def fail(stream: ForwardStream) -> None:
            raise RuntimeError("bug")

        running = self.make(on_open=fail)
        error, _ = running.connect()
        self.assertIn(b"internal error", error.received)
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)
        self.assertFalse(running.transport.disconnecting)

    def test_half_close_by_client(self) -> None:
        """The client's FIN is told, and the answer still arrives."""
        running = self.make()
        _, data = running.connect()
        running.send(running.client.data(data.number, b"q", True))
        self.assertEqual(running.connections[0].told, ["finished"])
        running.connections[0].stream.write(b"a")
        running.read()
        self.assertEqual(data.received, b"a")

    def test_half_close_by_target(self) -> None:
        """The target's end finishes the data stream, and the client's data still arrives."""
        running = self.make()
        error, data = running.connect()
        running.connections[0].stream.finish()
        running.connections[0].stream.write(b"late")
        running.send(running.client.data(data.number, b"more"))
        self.assertEqual((data.ended, error.ended), (True, False))
        self.assertEqual((running.connections[0].data, data.received), (b"more", b""))

    def test_reset_by_client(self) -> None:
        """A reset of the data stream is the end of this connection alone, and of its error stream."""
        running = self.make()
        error, data = running.connect()
        running.connect()
        running.send(running.client.rst(data.number))
        self.assertEqual([connected.told for connected in running.connections], [["gone"], []])
        self.assertTrue(error.ended)
        running.connections[0].stream.write(b"late")
        running.connections[0].stream.end()
        running.read()

    def test_reset_after_end(self) -> None:
        """kubectl resets the data stream after its end; that is no news."""
        running = self.make()
        _, data = running.connect()
        running.connections[0].stream.end()
        running.read()
        running.send(running.client.rst(data.number))
        self.assertEqual(running.connections[0].told, [])

    def test_interleaved_pairs(self) -> None:
        """Pairs that are opened at the same time find together by their request."""
        running = self.make()
        running.open(streamtype="error", port="1", requestid="a")
        running.open(streamtype="error", port="2", requestid="b")
        second = running.open(streamtype="data", port="2", requestid="b")
        running.open(streamtype="data", port="1", requestid="a")
        self.assertEqual([connected.port for connected in running.connections], [2, 1])
        running.send(running.client.data(second.number, b"x"))
        self.assertEqual([connected.data for connected in running.connections], [b"x", b""])

    def test_unnumbered(self) -> None:
        """Without request ids neighbours are a pair."""
        running = self.make()
        running.open(streamtype="error", port="80")
        running.open(streamtype="data", port="80")
        self.assertEqual(len(running.connections), 1)

    def test_bad_headers(self) -> None:
        """Streams of bad port or type are reset, and the connection goes on."""
        running = self.make()
        for headers in (
            {"streamtype": "data"},
            {"streamtype": "data", "port": "0"},
            {"streamtype": "data", "port": "65536"},
            {"streamtype": "data", "port": "x"},
            {"streamtype": "other", "port": "80"},
            {"port": "80"},
        ):
            self.assertEqual(running.open(requestid="1", **headers).reset, 5)
        self.assertEqual(running.open(streamtype="data", port="80", requestid="9" * 65).reset, 5)
        running.connect()
        self.assertEqual(len(running.connections), 1)

    def test_duplicate(self) -> None:
        """A second data stream of one request is an error of that request."""
        running = self.make()
        error, _ = running.connect()
        extra = running.open(streamtype="data", port="80", requestid="0")
        self.assertEqual(
            error.received, b"error processing stream for request 0: data stream already assigned"
        )
        self.assertTrue(extra.ended)
        self.assertEqual(running.connections[0].told, ["gone"])

    def test_pairing_deadline(self) -> None:
        """An error stream that stays alone is told so."""
        running = self.make()
        error = running.open(streamtype="error", port="80", requestid="0")
        alone = running.open(streamtype="data", port="80", requestid="1")
        running.clock.advance(PAIRING_SECONDS)
        running.read()
        self.assertIn(b"timed out waiting for streams", error.received)
        self.assertTrue(error.ended)
        self.assertTrue(alone.ended)
        running.connect()
        self.assertEqual(len(running.connections), 1)

    def test_early_data(self) -> None:
        """Data that comes before the pair is complete is kept."""
        running = self.make()
        data = running.open(streamtype="data", port="80", requestid="0")
        running.send(running.client.data(data.number, b"early", True))
        running.open(streamtype="error", port="80", requestid="0")
        self.assertEqual((running.connections[0].data, running.connections[0].told), (b"early", ["finished"]))

    def test_pressure_outwards(self) -> None:
        """All producers are paused while the client does not read, and each is resumed."""
        running = self.make()
        producers = []
        for _ in range(3):
            running.connect()
            producers.append(Producer())
            running.connections[-1].stream.register_producer(producers[-1])
        running.transport.producer.pauseProducing()
        running.connections[0].stream.unregister_producer()
        running.transport.producer.resumeProducing()
        self.assertEqual([producer.told for producer in producers], [["pause"], *[["pause", "resume"]] * 2])

    def test_pressure_inwards(self) -> None:
        """A paused connection leaves the others alone until it holds too much; then reading stops."""
        running = self.make()
        _, slow = running.connect()
        _, fast = running.connect()
        running.connections[0].stream.pause()
        running.send(running.client.data(slow.number, bytes(1000)))
        running.send(running.client.data(fast.number, b"quick"))
        self.assertEqual((running.connections[0].data, running.connections[1].data), (b"", b"quick"))
        while running.transport.reading:
            running.send(running.client.data(slow.number, bytes(EACH_LIMIT // 4)))
        running.connections[0].stream.resume()
        self.assertTrue(running.transport.reading)
        self.assertGreater(len(running.connections[0].data), EACH_LIMIT // 2)

    def test_probes(self) -> None:
        """While nothing is read, pings look after the client."""
        running = self.make()
        _, data = running.connect()
        running.connections[0].stream.pause()
        running.send(running.client.data(data.number, bytes(EACH_LIMIT * 2)))
        self.assertFalse(running.transport.reading)
        running.clock.advance(PROBE_SECONDS)
        running.read()
        self.assertIn(2, running.client.pings)

    def test_stuck_one_ends(self) -> None:
        """The end of the connection that blocked the others lets them go on."""
        running = self.make()
        _, data = running.connect()
        running.connections[0].stream.pause()
        running.send(running.client.data(data.number, bytes(EACH_LIMIT * 2)))
        running.connections[0].stream.end()
        self.assertTrue(running.transport.reading)

    def test_client_gone(self) -> None:
        """The loss of the client is told to every connection once; nothing stays on the clock."""
        running = self.make()
        running.connect()
        running.connect()
        running.open(streamtype="error", port="80", requestid="alone")
        running.wire.disconnect()
        self.assertEqual([connected.told for connected in running.connections], [["gone"], ["gone"]])
        self.assertEqual(running.clock.getDelayedCalls(), [])
        assert running.session is not None
        self.successResultOf(running.session.when_gone())

    def test_abort(self) -> None:
        """An abort tells the reason on every error stream, then closes."""
        running = self.make()
        error, _ = running.connect()
        assert running.session is not None
        running.session.abort("the device was deleted")
        running.session.abort("again")
        running.read()
        self.assertEqual(error.received, b"the device was deleted")
        self.assertEqual(running.connections[0].told, ["gone"])
        self.assertTrue(running.transport.disconnecting)
        self.assertIsNotNone(running.client.goaway)

    def test_abort_without_connections(self) -> None:
        """A session on which nothing was ever opened ends as well."""
        running = self.make()
        assert running.session is not None
        running.session.abort("the device was deleted")
        self.assertTrue(running.transport.disconnecting)
        running.wire.disconnect()
        self.assertEqual(running.clock.getDelayedCalls(), [])

    def test_idle(self) -> None:
        """After hours of silence the session ends."""
        running = self.make()
        error, _ = running.connect()
        running.clock.advance(IDLE_SECONDS * 2)
        running.read()
        self.assertIn(b"4 hours", error.received)
        self.assertEqual(running.connections[0].told, ["gone"])

    def test_no_room_for_ever(self) -> None:
        """A client that opens streams without end is refused at the limit."""
        self.patch(forwarded_spdy, "MAX_STREAMS", 200)
        running = self.make()
        data = b"".join(
            running.client.syn(streamtype="error", port="80", requestid=str(number)) for number in range(210)
        )
        running.send(data)
        refused = [stream for stream in running.client.streams.values() if stream.reset == 3]
        self.assertEqual(len(refused), 10)
        running.wire.disconnect()

    def test_streams_without_reading(self) -> None:
        """A client that opens bad streams for ever and reads nothing is cut off."""
        running = self.make()
        running.transport.producer.pauseProducing()
        for _ in range(10_000):
            if not running.transport.disconnecting:
                running.send(running.client.syn(streamtype="bogus"))
        self.assertTrue(running.transport.disconnecting)

    def test_violation(self) -> None:
        """A client that breaks the protocol is cut off."""
        running = self.make()
        running.connect()
        running.send(b"\x80\x03\x00\x63\x00\x00\x00\x00")
        self.assertEqual(running.connections[0].told, ["gone"])
        self.assertTrue(running.transport.disconnecting)


class AnyOrderTests(SynchronousTestCase):
    """Both sides at once."""

    @given(
        st.lists(
            st.sampled_from(["open", "data", "fin", "rst", "write", "finish", "end", "error", "pause"]),
            max_size=25,
        )
    )
    @settings(max_examples=50, deadline=None)
    def test_any_order(self, actions: list[str]) -> None:
        """Whatever both sides do in whatever order, no frame breaks a client's rules."""
        running = SpdyForward()
        streams: list[ClientStream] = []
        for index, action in enumerate(actions):
            if action == "open" or not streams:
                streams.append(running.connect()[1])
                continue
            chosen = index % len(streams)
            number, stream = streams[chosen].number, running.connections[chosen].stream
            if action == "data":
                running.send(running.client.data(number, b"x"))
            elif action == "fin":
                running.send(running.client.data(number, b"", True))
            elif action == "rst":
                running.send(running.client.rst(number))
            elif action == "write":
                stream.write(b"y")
            elif action == "error":
                stream.end("no")
            else:
                getattr(stream, action)()
            running.read()
        running.wire.disconnect()
        for connected in running.connections:
            self.assertNotIn("gone", connected.told[:-1])
        self.assertEqual(running.clock.getDelayedCalls(), [])


class TunnelTests(SpdyTests):
    """The same inside WebSocket messages."""

    make = TunnelForward

    def test_head(self) -> None:
        """The tunnel's name is accepted as the sub-protocol."""
        self.assertIn(b"Sec-WebSocket-Protocol: SPDY/3.1+portforward.k8s.io", self.make().head)

    def test_close_code(self) -> None:
        """The end of SPDY is followed by close 1000."""
        running = TunnelForward()
        assert running.session is not None
        running.session.abort("over")
        running.read()
        self.assertEqual(running.outer.closed, 1000)

    def test_client_close(self) -> None:
        """The close of the WebSocket is the loss of all connections."""
        running = TunnelForward()
        running.connect()
        running.wire.send(running.outer.close())
        self.assertEqual(running.connections[0].told, ["gone"])
        running.read()
        self.assertEqual(running.outer.closed, 1000)
