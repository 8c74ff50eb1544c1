"""Tests of ``aranya.streaming.remotecommand``: exec and attach over both languages."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.interfaces import IPushProducer
from twisted.trial.unittest import SynchronousTestCase
from twisted.web.server import Request
from zope.interface import implementer

from aranya.interfaces import ClientStreams, Status
from aranya.streaming.carrier import IDLE_SECONDS, LINGER_SECONDS, PROBE_SECONDS
from aranya.streaming.intake import EACH_LIMIT
from aranya.streaming.remotecommand import CREATION_SECONDS, StreamOptions, exec_streams
from aranya.streaming.sessions import Session, Sessions
from test.support.kubectl_wire import KubectlWire
from test.support.spdy_client import ClientStream, SpdyClient, WebSocketClient

V4 = "v4.channel.k8s.io"
ALL = StreamOptions(stdin=True, stdout=True, stderr=True)
TTY = StreamOptions(stdin=True, stdout=True, tty=True)


@implementer(IPushProducer)
class Producer:
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def pauseProducing(self) -> None:
        self.told.append("pause")

    def resumeProducing(self) -> None:
        self.told.append("resume")

    def stopProducing(self) -> None:
        self.told.append("stop")


@dataclass
class Events:
    """What a session hears of its client."""

    stdin: bytes = b""
    told: list[Any] = field(default_factory=list)
    on_stdin: Callable[[], None] | None = None

    def stdin_received(self, data: bytes) -> None:
        self.stdin += data
        if self.on_stdin is not None:
            self.on_stdin()

    def stdin_ended(self) -> None:
        self.told.append("end")

    def resized(self, size: Any) -> None:
        self.told.append((size.width, size.height))

    def client_gone(self, reason: str) -> None:
        self.told.append(f"gone: {reason}")


class Exec:
    """A session on a connection, with the client's and the device's side at hand."""

    def __init__(
        self, options: StreamOptions, on_start: Callable[[ClientStreams], None] = lambda streams: None
    ) -> None:
        self.options = options
        self.events = Events()
        self.started: list[ClientStreams] = []
        self.session: Session | None = None
        self._on_start = on_start
        self.wire = KubectlWire(self._answer)
        self.clock = self.wire.clock
        self.transport = self.wire.transport

    def _answer(self, request: Request) -> None:
        self.session = exec_streams(request, self.options, self.clock, self._start, websocket_v5=True)

    def _start(self, streams: ClientStreams) -> Events:
        self.started.append(streams)
        self._on_start(streams)
        return self.events

    @property
    def streams(self) -> ClientStreams:
        """What the device's side writes to."""
        (streams,) = self.started
        return streams


class SpdyExec(Exec):
    """kubectl over SPDY."""

    def __init__(
        self, options: StreamOptions = ALL, version: str = V4, open_now: bool = True, **more: Any
    ) -> None:
        super().__init__(options, **more)
        self.client = SpdyClient()
        self.names: dict[str, ClientStream] = {}
        self.head = self.wire.upgrade_to_spdy(version)
        if open_now:
            self.open("error")
            for name, wanted in (
                ("stdin", options.stdin),
                ("stdout", options.stdout),
                ("stderr", options.stderr and not options.tty),
                ("resize", options.tty and version >= "v3"),
            ):
                if wanted:
                    self.open(name)

    def open(self, name: str) -> None:
        """Create a stream as Go does: wait for the reply."""
        self.wire.send(self.client.syn(streamtype=name))
        self.names[name] = self.client.streams[self.client.last]
        self.read()

    def read(self) -> None:
        """Read all the server wrote."""
        self.client.receive(self.wire.take())

    def send(self, name: str, data: bytes = b"", fin: bool = False) -> None:
        """DATA on a stream."""
        self.wire.send(self.client.data(self.names[name].number, data, fin))

    def received(self, name: str) -> bytes:
        """What arrived on a stream."""
        self.read()
        return self.names[name].received


class WebSocketExec(Exec):
    """A client over WebSocket."""

    def __init__(self, options: StreamOptions = ALL, protocol: str = V4, **more: Any) -> None:
        super().__init__(options, **more)
        self.client = WebSocketClient()
        answer = self.wire.upgrade_to_websocket(*([protocol] if protocol else []))
        self.head, _, rest = answer.partition(b"\r\n\r\n")
        self.client.receive(rest)

    def send(self, payload: bytes) -> None:
        """One binary message."""
        self.wire.send(self.client.binary(payload))

    def read(self) -> list[bytes]:
        """All messages so far."""
        self.client.receive(self.wire.take())
        return self.client.messages


def go_decodes(text: bytes) -> dict[str, Any]:
    """What ``encoding/json`` of Go makes of an object: the last of a repeated key counts."""
    return dict(json.loads(text, object_pairs_hook=dict))


class SpdyStartTests(SynchronousTestCase):
    """How an exec over SPDY begins."""

    def test_head(self) -> None:
        """The response repeats the chosen version, and no byte of SPDY is glued to it."""
        head = SpdyExec(open_now=False).head
        self.assertTrue(head.startswith(b"HTTP/1.1 101 Switching Protocols\r\n"))
        self.assertIn(b"Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\n", head)
        self.assertTrue(head.endswith(b"X-Stream-Protocol-Version: v4.channel.k8s.io\r\n\r\n"))

    def test_starts_when_complete(self) -> None:
        """The session starts with the last of the expected streams, not before."""
        running = SpdyExec(open_now=False)
        for name in ("error", "stdin", "stdout"):
            running.open(name)
            self.assertEqual(running.started, [])
        running.open("stderr")
        self.assertEqual(len(running.started), 1)
        self.assertTrue(all(stream.replied for stream in running.names.values()))

    def test_status_is_opened_at_once(self) -> None:
        """What is on the error stream before the end is no JSON, so a dead controller is no success."""
        running = SpdyExec()
        self.assertRaises(ValueError, json.loads, running.received("error"))
        self.assertNotEqual(running.received("error"), b"")

    def test_old_versions_say_nothing_early(self) -> None:
        """Before v4 any text is an error, so none is sent at the start."""
        for version in ("channel.k8s.io", "v2.channel.k8s.io", "v3.channel.k8s.io"):
            self.assertEqual(SpdyExec(version=version).received("error"), b"")

    def test_flags(self) -> None:
        """The session knows what the client asked for; a terminal has no stderr."""
        streams = SpdyExec(TTY).streams
        self.assertEqual(
            (streams.tty, streams.has_stdin, streams.has_stdout, streams.has_stderr),
            (True, True, True, False),
        )

    def test_tty_with_stderr(self) -> None:
        """stderr beside a terminal is dropped: opened by the client, it ends at once."""
        options = StreamOptions(stdout=True, stderr=True, tty=True)
        running = SpdyExec(options, open_now=False)
        for name in ("error", "stdout", "stderr", "resize"):
            running.open(name)
        self.assertFalse(running.streams.has_stderr)
        self.assertTrue(running.names["stderr"].ended)

    def test_early_stdin_is_kept(self) -> None:
        """Data and end of stdin that come before the last stream are delivered after the start."""
        running = SpdyExec(open_now=False)
        running.open("error")
        running.open("stdin")
        running.send("stdin", b"early", fin=True)
        running.open("stdout")
        running.open("stderr")
        self.assertEqual((running.events.stdin, running.events.told), (b"early", ["end"]))

    def test_creation_deadline(self) -> None:
        """A client that does not open its streams in time is told so and closed."""
        running = SpdyExec(open_now=False)
        running.open("error")
        running.clock.advance(CREATION_SECONDS)
        status = json.loads(running.received("error"))
        self.assertEqual(status["status"], "Failure")
        self.assertTrue(running.transport.disconnecting)
        self.assertEqual(running.started, [])

    def test_no_deadline_after_start(self) -> None:
        """The deadline ends with the start."""
        running = SpdyExec()
        running.clock.advance(CREATION_SECONDS * 2)
        self.assertFalse(running.transport.disconnecting)

    def test_unknown_stream(self) -> None:
        """A stream of unknown type is refused alone."""
        running = SpdyExec(open_now=False)
        running.open("bogus")
        self.assertEqual(running.names["bogus"].reset, 3)
        self.assertFalse(running.transport.disconnecting)

    def test_duplicate_stream(self) -> None:
        """A second stream of a type is refused."""
        running = SpdyExec(open_now=False)
        running.open("error")
        running.open("error")
        self.assertEqual(running.names["error"].reset, 1)

    def test_failing_start(self) -> None:
        """If the session cannot start by a bug, the client still gets a failure."""

        def fail(streams: ClientStreams) -> None:
            raise RuntimeError("bug")

        running = SpdyExec(on_start=fail)
        self.assertEqual(go_decodes(running.received("error"))["status"], "Failure")
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)

    def test_nothing_requested(self) -> None:
        """A request for no stream at all is refused."""
        running = SpdyExec(StreamOptions(), open_now=False)
        self.assertIn(b"400 Bad Request", running.head)
        self.assertTrue(running.head.endswith(b"you must specify at least 1 of stdin, stdout, stderr"))
        self.assertIsNone(running.session)

    @given(st.lists(st.integers(1, 40), max_size=40))
    @settings(max_examples=40, deadline=None)
    def test_any_split(self, cuts: list[int]) -> None:
        """However the client's frames are cut, the session hears the same."""
        running = SpdyExec(TTY, open_now=False)
        client = running.client
        data = b"".join(
            client.syn(streamtype=name) for name in ("error", "stdin", "stdout", "resize")
        ) + b"".join(
            (
                client.data(3, b"hello "),
                client.ping(7),
                client.data(7, b'{"Width":80,"Height":24}\n'),
                client.data(3, b"world", fin=True),
            )
        )
        for cut in cuts:
            running.wire.send(data[:cut])
            data = data[cut:]
        if data:
            running.wire.send(data)
        running.read()
        self.assertEqual(running.events.stdin, b"hello world")
        self.assertEqual(running.events.told, [(80, 24), "end"])
        self.assertEqual(client.pings, [7])


class SpdyEndTests(SynchronousTestCase):
    """How an exec over SPDY ends."""

    def ended(self, status: Status, version: str = V4) -> tuple[SpdyExec, bytes]:
        """A session ended with ``status``, and the text of its error stream."""
        running = SpdyExec(version=version)
        running.streams.end(status)
        return running, running.received("error")

    def test_success(self) -> None:
        """The completed object says Success."""
        _, text = self.ended(Status())
        self.assertEqual(go_decodes(text), {"metadata": {}, "status": "Success", "message": ""})

    def test_exit_code(self) -> None:
        """An exit code is a cause of reason ExitCode with a decimal string."""
        _, text = self.ended(Status(exit_code=3))
        status = go_decodes(text)
        self.assertEqual((status["status"], status["reason"]), ("Failure", "NonZeroExitCode"))
        self.assertEqual(status["details"], {"causes": [{"reason": "ExitCode", "message": "3"}]})
        self.assertIn("exit status 3", status["message"])

    def test_failure(self) -> None:
        """Any other failure is a message of one line that kubectl prints."""
        _, text = self.ended(Status(message="device offline:\n no link"))
        status = go_decodes(text)
        self.assertEqual(
            (status["status"], status["reason"], status["message"]),
            ("Failure", "InternalError", "device offline: no link"),
        )

    def test_old_text(self) -> None:
        """Before v4 a failure is plain text and a success is nothing."""
        for version in ("channel.k8s.io", "v2.channel.k8s.io", "v3.channel.k8s.io"):
            self.assertEqual(self.ended(Status(), version)[1], b"")
            self.assertIn(b"exit status 3", self.ended(Status(exit_code=3), version)[1])
            self.assertEqual(self.ended(Status(message="no link"), version)[1], b"no link")

    def test_order(self) -> None:
        """Outputs finish, the status is written, errors finish, inputs are reset, GOAWAY is last."""
        running = SpdyExec()
        running.streams.write_stdout(b"out")
        running.streams.write_stderr(b"err")
        running.read()
        running.client.order.clear()
        running.streams.end(Status())
        running.read()
        self.assertEqual(running.client.order, ["fin 5", "fin 7", "data 1", "fin 1", "reset 3", "goaway"])
        self.assertTrue(running.transport.disconnecting)
        self.assertEqual(running.client.goaway, (7, 0))

    def test_only_once(self) -> None:
        """A second end, and output after the end, are ignored."""
        running, text = self.ended(Status(exit_code=4))
        running.streams.end(Status())
        running.streams.write_stdout(b"late")
        self.assertEqual(running.received("error"), text)
        self.assertEqual(running.received("stdout"), b"")

    def test_ended_in_start(self) -> None:
        """A session may end in its very start."""
        running = SpdyExec(on_start=lambda streams: streams.end(Status(message="offline")))
        self.assertEqual(go_decodes(running.received("error"))["message"], "offline")
        running.wire.disconnect()
        self.assertEqual(running.events.told, [])

    def test_no_gone_after_end(self) -> None:
        """After our end the connection's loss is no news."""
        running, _ = self.ended(Status())
        running.wire.disconnect()
        self.assertEqual(running.events.told, [])

    def test_lingers(self) -> None:
        """A client that never reads the end is dropped in the end, not at once."""
        running, _ = self.ended(Status())
        running.clock.advance(LINGER_SECONDS - 1)
        self.assertFalse(running.transport.aborted)
        running.clock.advance(1)
        self.assertTrue(running.transport.aborted)

    def test_no_timers_left(self) -> None:
        """Nothing is left on the clock when the connection is gone."""
        running, _ = self.ended(Status())
        running.wire.disconnect()
        self.assertEqual(running.clock.getDelayedCalls(), [])

    def test_abort(self) -> None:
        """An abort tells the reason to the client and to the session."""
        running = SpdyExec()
        assert running.session is not None
        running.session.abort("the device was deleted")
        self.assertEqual(go_decodes(running.received("error"))["message"], "the device was deleted")
        self.assertEqual(running.events.told, ["gone: the device was deleted"])

    def test_abort_without_reason(self) -> None:
        """Even an end that nobody explains is no success."""
        running = SpdyExec()
        assert running.session is not None
        running.session.abort("")
        self.assertEqual(go_decodes(running.received("error"))["status"], "Failure")

    def test_sessions(self) -> None:
        """The set of sessions holds one until its connection is gone, and can end all."""
        running = SpdyExec()
        sessions = Sessions()
        sessions.add(running.session)
        sessions.add(None)
        self.assertEqual(len(sessions), 1)
        sessions.abort_all("closing")
        self.assertEqual(running.events.told, ["gone: closing"])
        self.assertEqual(len(sessions), 1)
        running.wire.disconnect()
        self.assertEqual(len(sessions), 0)
        assert running.session is not None
        self.successResultOf(running.session.when_gone())


class SpdyRunningTests(SynchronousTestCase):
    """What happens in between."""

    def test_output(self) -> None:
        """stdout and stderr arrive apart and whole, however large."""
        running = SpdyExec()
        large = bytes(range(256)) * 4096
        running.streams.write_stdout(large)
        running.streams.write_stderr(b"oops")
        self.assertEqual(running.received("stdout"), large)
        self.assertEqual(running.received("stderr"), b"oops")

    def test_output_not_asked_for(self) -> None:
        """Output that the client did not ask for goes nowhere."""
        running = SpdyExec(StreamOptions(stdout=True))
        running.streams.write_stderr(b"oops")
        running.read()
        self.assertNotIn("oops", "".join(running.client.order))

    def test_stdin_half_close(self) -> None:
        """The end of stdin ends nothing else."""
        running = SpdyExec()
        running.send("stdin", b"in", fin=True)
        self.assertEqual((running.events.stdin, running.events.told), (b"in", ["end"]))
        running.streams.write_stdout(b"out")
        self.assertEqual(running.received("stdout"), b"out")

    def test_stdin_reset(self) -> None:
        """A reset of stdin is its end, once."""
        running = SpdyExec()
        running.wire.send(running.client.rst(running.names["stdin"].number))
        running.send("stdin", b"", fin=True)
        self.assertEqual(running.events.told, ["end"])

    def test_resize(self) -> None:
        """Sizes arrive however they are split or merged."""
        running = SpdyExec(TTY)
        running.send("resize", b'{"Width":81,"Height":25}\n{"Width":80,')
        running.send("resize", b'"Height":24}')
        self.assertEqual(running.events.told, [(81, 25), (80, 24)])

    def test_ping(self) -> None:
        """A client's ping is echoed, an echo of ours is not."""
        running = SpdyExec()
        running.wire.send(running.client.ping(9) + running.client.ping(2))
        running.read()
        self.assertEqual(running.client.pings, [9])

    def test_client_gone(self) -> None:
        """The loss of the connection is told once, as the last thing."""
        running = SpdyExec()
        running.wire.disconnect(cleanly=False)
        running.streams.end(Status())
        self.assertEqual(running.events.told, ["gone: the connection to the client was lost"])
        self.assertEqual(running.clock.getDelayedCalls(), [])

    def test_client_goes_away(self) -> None:
        """GOAWAY is the client's goodbye."""
        running = SpdyExec()
        running.wire.send(running.client.go_away())
        self.assertEqual(running.events.told, ["gone: the client closed the connection"])
        self.assertTrue(running.transport.disconnecting)
        running.wire.disconnect()
        self.assertEqual(len(running.events.told), 1)

    def test_violation(self) -> None:
        """A client that breaks the protocol is cut off, and the session hears why."""
        running = SpdyExec()
        running.wire.send(b"\x80\x03\x00\x63\x00\x00\x00\x00")
        (told,) = running.events.told
        self.assertIn("broke the protocol", told)
        self.assertTrue(running.transport.disconnecting)

    def test_idle(self) -> None:
        """After hours without any frame the session ends with a reason for both sides."""
        running = SpdyExec()
        running.clock.advance(IDLE_SECONDS - 10)
        running.wire.send(running.client.ping(1))
        running.clock.advance(20)
        self.assertEqual(running.events.told, [])
        running.clock.advance(IDLE_SECONDS)
        self.assertEqual(len(running.events.told), 1)
        self.assertIn("4 hours", go_decodes(running.received("error"))["message"])

    def test_output_pressure(self) -> None:
        """The producer of output follows the transport, and one registered late is told at once."""
        running = SpdyExec()
        producer = Producer()
        running.transport.producer.pauseProducing()
        running.streams.register_producer(producer)
        running.transport.producer.resumeProducing()
        running.streams.unregister_producer()
        running.transport.producer.pauseProducing()
        self.assertEqual(producer.told, ["pause", "resume"])

    def test_end_with_producer(self) -> None:
        """The end does not wait for a producer that was never unregistered."""
        running = SpdyExec()
        running.streams.register_producer(Producer())
        running.streams.end(Status())
        self.assertIsNone(running.transport.producer)

    def test_paused_stdin_is_bounded(self) -> None:
        """Paused stdin is held up to a bound, then the connection is not read any more."""
        running = SpdyExec()
        running.streams.pause_stdin()
        chunk = bytes(32 * 1024)
        sent = 0
        while running.transport.reading:
            running.send("stdin", chunk)
            sent += len(chunk)
            self.assertLessEqual(sent, EACH_LIMIT + len(chunk))
        self.assertEqual(running.events.stdin, b"")
        running.streams.resume_stdin()
        self.assertEqual(len(running.events.stdin), sent)
        self.assertTrue(running.transport.reading)

    def test_resize_passes_paused_stdin(self) -> None:
        """A pause of stdin holds neither sizes nor pings back."""
        running = SpdyExec(TTY)
        running.streams.pause_stdin()
        running.send("stdin", b"wait", fin=True)
        running.send("resize", b'{"Width":1,"Height":2}')
        self.assertEqual(running.events.told, [(1, 2)])
        running.streams.resume_stdin()
        self.assertEqual((running.events.stdin, running.events.told), (b"wait", [(1, 2), "end"]))

    def test_pause_in_delivery(self) -> None:
        """A reader that pauses in the midst of a delivery gets the rest later, in order."""
        running = SpdyExec()
        running.streams.pause_stdin()
        for letter in (b"a", b"b", b"c"):
            running.send("stdin", letter)
        running.events.on_stdin = running.streams.pause_stdin
        running.streams.resume_stdin()
        self.assertEqual(running.events.stdin, b"a")
        running.send("stdin", b"d", fin=True)
        running.events.on_stdin = None
        running.streams.resume_stdin()
        self.assertEqual((running.events.stdin, running.events.told), (b"abcd", ["end"]))

    def test_probes_while_not_reading(self) -> None:
        """While the connection is not read, pings with even ids look whether the client lives."""
        running = SpdyExec()
        running.streams.pause_stdin()
        running.send("stdin", bytes(EACH_LIMIT + 1))
        for _ in range(3):
            running.clock.advance(PROBE_SECONDS)
        running.read()
        self.assertEqual(running.client.pings, [2, 4, 6])
        running.streams.resume_stdin()
        running.clock.advance(PROBE_SECONDS * 3)
        running.read()
        self.assertEqual(len(running.client.pings), 3)

    def test_end_while_not_reading(self) -> None:
        """The end reads again, else the client's goodbye is never heard."""
        running = SpdyExec()
        running.streams.pause_stdin()
        running.send("stdin", bytes(EACH_LIMIT + 1))
        self.assertFalse(running.transport.reading)
        running.streams.end(Status())
        self.assertTrue(running.transport.reading)

    def test_sizes_of_no_terminal(self) -> None:
        """Sizes without a terminal go nowhere."""
        running = SpdyExec()
        running.open("resize")
        running.send("resize", b'{"Width":80,"Height":24}')
        self.assertEqual(running.events.told, [])

    def test_streams_without_reading(self) -> None:
        """A client that opens bad streams for ever and reads nothing is cut off."""
        running = SpdyExec()
        running.transport.producer.pauseProducing()
        for _ in range(10_000):
            if not running.transport.disconnecting:
                running.wire.send(running.client.syn(streamtype="bogus"))
        self.assertTrue(running.transport.disconnecting)
        self.assertIn("does not read", running.events.told[0])

    def test_pings_without_reading(self) -> None:
        """A client that pings for ever and reads nothing is cut off."""
        running = SpdyExec()
        running.transport.producer.pauseProducing()
        for _ in range(100):
            if not running.transport.disconnecting:
                running.wire.send(running.client.ping(1) * 100)
        self.assertTrue(running.transport.disconnecting)
        self.assertIn("does not read", running.events.told[0])
        self.assertLess(len(running.wire.take()), 100_000)


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
