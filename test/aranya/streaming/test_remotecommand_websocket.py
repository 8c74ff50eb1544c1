"""Tests of ``aranya.streaming.remotecommand`` over a WebSocket."""

from __future__ import annotations

import base64
import json

from twisted.trial.unittest import SynchronousTestCase

from aranya.interfaces import Status
from aranya.streaming.carrier import IDLE_SECONDS, PROBE_SECONDS
from aranya.streaming.intake import EACH_LIMIT
from aranya.streaming.remotecommand import StreamOptions
from test.aranya.streaming.commands import (
    ALL,
    TTY,
    V4,
    Exec,
    WebSocketExec,
)
from test.support.spdy_client import WebSocketClient


class WebSocketTests(SynchronousTestCase):
    """exec over WebSocket channels."""

    def test_head(self) -> None:
        """The handshake is accepted with the chosen sub-protocol and the standard's sample key."""
        head = WebSocketExec(protocol="v5.channel.k8s.io").head
        self.assertIn(b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=", head)
        self.assertIn(b"Sec-WebSocket-Protocol: v5.channel.k8s.io", head)

    def test_unnamed(self) -> None:
        """A client that names no sub-protocol gets none back, and v1."""
        running = WebSocketExec(protocol="")
        self.assertNotIn(b"Sec-WebSocket-Protocol", running.head)
        running.streams.end(Status())
        self.assertEqual(running.read(), [b"\x01"])

    def test_ready(self) -> None:
        """An empty message on the first output channel says that all is ready."""
        self.assertEqual(WebSocketExec().read(), [b"\x01"])
        self.assertEqual(WebSocketExec(StreamOptions(stderr=True)).read(), [b"\x02"])
        self.assertEqual(WebSocketExec(StreamOptions(stdin=True)).read(), [b"\x03"])

    def test_conversation(self) -> None:
        """Input, outputs and the status travel on their channels; code 1000 ends it."""
        running = WebSocketExec()
        running.send(b"\x00input")
        running.streams.write_stdout(b"out")
        running.streams.write_stderr(b"err")
        running.streams.end(Status(exit_code=2))
        ready, out, err, status = running.read()
        self.assertEqual((running.events.stdin, ready, out, err), (b"input", b"\x01", b"\x01out", b"\x02err"))
        self.assertEqual(status[0], 3)
        self.assertEqual(json.loads(status[1:])["details"]["causes"][0]["message"], "2")
        self.assertEqual(running.client.closed, 1000)
        self.assertTrue(running.transport.disconnecting)

    def test_success(self) -> None:
        """Success is told as JSON from v4 on, and by silence before."""
        running = WebSocketExec()
        running.streams.end(Status())
        self.assertEqual(json.loads(running.read()[-1][1:]), {"metadata": {}, "status": "Success"})
        running = WebSocketExec(protocol="channel.k8s.io")
        running.streams.end(Status())
        self.assertEqual(running.read(), [b"\x01"])

    def test_base64(self) -> None:
        """The base64 forms are text both ways."""
        running = WebSocketExec(protocol="v4.base64.channel.k8s.io")
        running.wire.send(running.client.frame(1, b"0" + base64.b64encode(b"input")))
        running.streams.write_stdout(b"out")
        self.assertEqual(running.read(), [b"1", b"1" + base64.b64encode(b"out")])
        self.assertEqual(running.client.text, [True, True])
        self.assertEqual(running.events.stdin, b"input")

    def test_text_frames(self) -> None:
        """Clients that mark binary channels as text are understood."""
        running = WebSocketExec()
        running.wire.send(running.client.frame(1, b"\x00ls\n"))
        self.assertEqual(running.events.stdin, b"ls\n")

    def test_v5_close(self) -> None:
        """v5 can end stdin; older ones send data to a channel nobody knows."""
        running = WebSocketExec(protocol="v5.channel.k8s.io")
        running.send(b"\xff\x00")
        self.assertEqual(running.events.told, ["end"])
        running = WebSocketExec()
        running.send(b"\xff\x00")
        self.assertEqual(running.events.told, [])

    def test_resize(self) -> None:
        """Sizes come on channel 4 of a terminal."""
        running = WebSocketExec(TTY)
        running.send(b'\x04{"Width":80,"Height":24}')
        self.assertEqual(running.events.told, [(80, 24)])

    def test_channels_not_asked_for(self) -> None:
        """Data for channels that were not requested is ignored."""
        running = WebSocketExec(StreamOptions(stdout=True))
        for message in (b"\x00in", b'\x04{"Width":80,"Height":24}', b"\x07?", b"", b"\x00"):
            running.send(message)
        self.assertEqual((running.events.stdin, running.events.told), (b"", []))

    def test_ping(self) -> None:
        """A ping is answered with its payload, and counts as no movement."""
        running = WebSocketExec()
        running.clock.advance(IDLE_SECONDS - 1)
        running.wire.send(running.client.frame(9, b"hi"))
        running.read()
        self.assertEqual(running.client.pongs, [b"hi"])
        running.clock.advance(1)
        self.assertEqual(len(running.events.told), 1)

    def test_client_close(self) -> None:
        """The client's close is answered and told."""
        running = WebSocketExec()
        running.wire.send(running.client.close(1001))
        running.read()
        self.assertEqual(running.client.closed, 1001)
        self.assertEqual(running.events.told, ["gone: the client closed the connection"])

    def test_violation(self) -> None:
        """An unmasked frame closes with 1002."""
        running = WebSocketExec()
        running.wire.send(running.client.frame(2, b"\x00x", masked=False))
        running.read()
        self.assertEqual(running.client.closed, 1002)
        self.assertIn("broke the protocol", running.events.told[0])

    def test_paused_stdin(self) -> None:
        """Paused stdin is bounded here too, and WebSocket pings look after the client."""
        running = WebSocketExec()
        running.streams.pause_stdin()
        running.send(b"\x00" + bytes(EACH_LIMIT + 1))
        self.assertFalse(running.transport.reading)
        running.clock.advance(PROBE_SECONDS)
        running.read()
        self.assertEqual(running.client.pings, 1)
        running.streams.resume_stdin()
        self.assertTrue(running.transport.reading)
        self.assertEqual(len(running.events.stdin), EACH_LIMIT + 1)

    def test_early_data(self) -> None:
        """Frames glued to the request are not lost."""
        running = Exec(ALL)
        running.wire.upgrade_to_websocket(V4, glued=WebSocketClient().binary(b"\x00now"))
        self.assertEqual(running.events.stdin, b"now")
