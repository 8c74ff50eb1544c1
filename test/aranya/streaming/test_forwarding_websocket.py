"""Tests of ``aranya.streaming.forwarding`` over a WebSocket."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from aranya.streaming.forwarding import read_ports
from aranya.streaming.negotiate import Refusal
from test.aranya.streaming.forwards import WebSocketForward


class WebSocketTests(SynchronousTestCase):
    """Ports on channels."""

    def test_greeting(self) -> None:
        """Each port is named on both of its channels, little endian, and connected."""
        running = WebSocketForward("port=80%2C443&port=8080")
        self.assertEqual(
            running.read(),
            [
                b"\x00\x50\x00",
                b"\x01\x50\x00",
                b"\x02\xbb\x01",
                b"\x03\xbb\x01",
                b"\x04\x90\x1f",
                b"\x05\x90\x1f",
            ],
        )
        self.assertEqual([connected.port for connected in running.connections], [80, 443, 8080])

    def test_data(self) -> None:
        """Data goes by the even channels."""
        running = WebSocketForward("port=80,443")
        running.wire.send(running.client.binary(b"\x02hello"))
        running.wire.send(running.client.binary(b"\x03ignored") + running.client.binary(b"\x09ignored"))
        running.connections[1].stream.write(b"world")
        self.assertEqual([connected.data for connected in running.connections], [b"", b"hello"])
        self.assertEqual(running.read()[-1], b"\x02world")

    def test_base64(self) -> None:
        """The base64 form is text."""
        running = WebSocketForward(protocol="v4.base64.channel.k8s.io")
        self.assertEqual(running.read(), [b"0UAA=", b"1UAA="])

    def test_end(self) -> None:
        """The session ends with its last connection."""
        running = WebSocketForward("port=80,81")
        running.connections[0].stream.end()
        self.assertFalse(running.transport.disconnecting)
        running.connections[1].stream.end("no such port")
        self.assertEqual(running.read()[-1], b"\x03no such port")
        self.assertEqual(running.client.closed, 1000)
        self.assertTrue(running.transport.disconnecting)

    def test_no_half_close(self) -> None:
        """When the target has ended, so has the client, for it cannot say so itself."""
        running = WebSocketForward()
        running.connections[0].stream.finish()
        self.assertEqual(running.connections[0].told, ["finished"])

    def test_refused_at_once(self) -> None:
        """Refusals while asking end the session."""
        running = WebSocketForward("port=80,81", on_open=lambda stream: stream.end("refused"))
        self.assertEqual(
            [message for message in running.read() if b"refused" in message], [b"\x01refused", b"\x03refused"]
        )
        self.assertEqual(running.client.closed, 1000)

    def test_abort(self) -> None:
        """An abort tells every connection, and closes once."""
        running = WebSocketForward("port=80,81")
        assert running.session is not None
        running.session.abort("device deleted")
        self.assertEqual(running.read()[-2:], [b"\x01device deleted", b"\x03device deleted"])
        self.assertEqual([connected.told for connected in running.connections], [["gone"], ["gone"]])
        self.assertEqual(running.client.closed, 1000)

    def test_client_gone(self) -> None:
        """The loss of the client is told once to each."""
        running = WebSocketForward("port=80,81")
        running.wire.send(running.client.close())
        running.wire.disconnect()
        self.assertEqual([connected.told for connected in running.connections], [["gone"], ["gone"]])

    def test_bad_ports(self) -> None:
        """Ports are checked before the upgrade."""
        for query, text in (
            ("", b'query parameter "port" is required'),
            ("port=", b'query parameter "port" is required'),
            ("port=x", b'unable to parse "x" as a port: strconv.ParseUint: parsing "x": invalid syntax'),
            ("port=0", b'port "0" must be > 0'),
            (
                "port=65536",
                b'unable to parse "65536" as a port: strconv.ParseUint: parsing "65536": value out of range',
            ),
        ):
            running = WebSocketForward(query)
            self.assertTrue(running.head.startswith(b"HTTP/1.1 400 "), query)
            self.assertEqual(running.body, text)
            self.assertIsNone(running.session)

    @given(st.lists(st.text(max_size=8), max_size=4))
    @settings(max_examples=150, deadline=None)
    def test_any_ports(self, values: list[str]) -> None:
        """Any query is a list of ports or a refusal."""
        found = read_ports(values)
        self.assertTrue(isinstance(found, Refusal) or all(1 <= port <= 65535 for port in found))
