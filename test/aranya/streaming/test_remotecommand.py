"""Tests of ``aranya.streaming.remotecommand``: exec and attach over SPDY."""

from __future__ import annotations

import json

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from aranya.interfaces import ClientStreams, Status
from aranya.streaming.carrier import IDLE_SECONDS, LINGER_SECONDS, PROBE_SECONDS
from aranya.streaming.intake import EACH_LIMIT
from aranya.streaming.remotecommand import CREATION_SECONDS, StreamOptions
from aranya.streaming.sessions import Sessions
from test.aranya.streaming.commands import (
    TTY,
    V4,
    Producer,
    SpdyExec,
    go_decodes,
)


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
