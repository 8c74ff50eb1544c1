"""Tests of ``aranya.session.execution``."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from aranya.interfaces import Status
from aranya.session.execution import Execution
from test.support.device import ScriptedDevice, ScriptedSession
from test.support.streams import RecordingStreams
from tether.errors import LinkLost, LocalMisuse, Reason, ResetCode, StreamReset
from tether.link.interfaces import Lane
from tether.verbs.codec import decode_size
from tether.verbs.requests import Exec, Exited, Killed, Size

REQUEST = Exec(argv=(b"true",), stdin=True)


class ExecutionTestCase(SynchronousTestCase):
    """A client and a device, joined."""

    def start(self, *, tty: bool = False, stderr: bool = True) -> None:
        self.device = ScriptedDevice()
        self.streams = RecordingStreams(tty=tty, stderr=stderr)
        self.ended: list[Execution] = []
        self.execution = Execution(self.device, REQUEST, self.streams, self.ended.append)
        self.session = self.device.session
        self.channel = self.session.channel


class EndTests(ExecutionTestCase):
    """The client hears exactly one status, and absence is never success."""

    def test_exit_code(self) -> None:
        """The process's exit code is told after its output."""
        self.start()
        self.session.tell(b"out")
        self.session.tell(b"err", Lane.ERROR)
        self.session.answer(Exited(3))
        self.assertEqual(self.streams.written, [("stdout", b"out"), ("stderr", b"err"), ("end", b"")])
        self.assertEqual(self.streams.status, Status(exit_code=3))
        self.assertEqual(self.ended, [self.execution])
        self.assertTrue(self.channel.is_finished)

    def test_signal(self) -> None:
        """A killed process is 128 and the signal."""
        self.start()
        self.session.answer(Killed(9))
        self.assertEqual(self.streams.status, Status(exit_code=137))

    def test_reset(self) -> None:
        """A session that is cut tells why."""
        self.start()
        self.session.break_off(ResetCode.LOST, "the link is gone")
        self.assertEqual(self.streams.status, Status(message="device dev went offline: the link is gone"))

    def test_finished_without_result(self) -> None:
        """A device that ends without a result is a failure."""
        self.start()
        self.session.tell(b"out")
        self.session.receiver.finished()
        self.session.receiver.closed()
        self.assertFalse(self.streams.status.success)

    def test_closed_without_end(self) -> None:
        """A channel that closes without any end is a failure."""
        self.start()
        self.session.receiver.closed()
        self.assertFalse(self.streams.status.success)

    def test_unreadable_result(self) -> None:
        """A result that does not parse is a failure."""
        self.start()
        self.session.tell(b"\xff\xff\xff", Lane.RESULT)
        self.assertIn("broke the protocol", self.streams.status.message)

    def test_reset_after_result(self) -> None:
        """What happens to the channel after the result changes nothing."""
        self.start()
        self.session.answer(Exited(0))
        self.session.break_off(ResetCode.LOST, "late")
        self.assertTrue(self.streams.status.success)
        self.assertEqual(len(self.ended), 1)

    def test_abort(self) -> None:
        """An endpoint that stops tells the reason and ends the process's session."""
        self.start()
        self.execution.abort("aranya is stopping")
        self.execution.abort("twice")
        self.assertEqual(self.streams.status, Status(message="aranya is stopping"))
        self.assertEqual(self.channel.reset_with, Reason(ResetCode.CANCELLED, "aranya is stopping"))
        self.assertEqual(self.ended, [self.execution])

    def test_abort_without_reason(self) -> None:
        """Even an end that nobody explains is no success."""
        self.start()
        self.execution.abort("\n")
        self.assertEqual(self.streams.status, Status(message="the session was ended"))

    def test_client_gone(self) -> None:
        """A client that leaves cancels the session and is told nothing."""
        self.start()
        self.execution.client_gone("connection lost")
        self.assertEqual(self.channel.reset_with, Reason(ResetCode.CANCELLED, "connection lost"))
        self.session.receiver.closed()
        self.assertEqual(self.streams.statuses, [])
        self.assertEqual(self.ended, [self.execution])

    def test_open_fails(self) -> None:
        """A device that went away between the question and the opening is a failure with a text."""
        for failure, text in (
            (LinkLost("closed"), "device dev went offline: closed"),
            (StreamReset(Reason(ResetCode.LIMIT, "64 sessions")), "device dev is too busy: 64 sessions"),
            (LocalMisuse("too long"), "device dev cannot do this: too long"),
        ):
            device, streams, ended = ScriptedDevice(), RecordingStreams(), []
            device.failure = failure
            execution = Execution(device, REQUEST, streams, ended.append)
            self.assertEqual(streams.status, Status(message=text))
            self.assertEqual(ended, [execution])
            execution.stdin_received(b"late")
            execution.client_gone("late")
            self.assertEqual(len(ended), 1)

    def test_ends_while_being_opened(self) -> None:
        """A session that is over before it is open leaves no channel behind."""
        device, streams = ScriptedDevice(), RecordingStreams()
        device.script = lambda session: session.answer(Exited(0))
        Execution(device, REQUEST, streams)
        self.assertTrue(streams.status.success)
        self.assertIsNotNone(device.session.channel.reset_with)

    @given(
        st.lists(
            st.sampled_from(
                ["out", "err", "result", "finished", "reset", "closed", "gone", "abort", "stdin"]
            ),
            max_size=8,
        )
    )
    @settings(max_examples=200, deadline=None)
    def test_one_end(self, steps: list[str]) -> None:
        """In whatever order things happen there is one end, success comes only by a result."""
        self.start()
        result_first = False
        for step in steps:
            if step == "result" and not self.ended:
                result_first = True
            {
                "out": lambda: self.session.tell(b"o"),
                "err": lambda: self.session.tell(b"e", Lane.ERROR),
                "result": lambda: self.session.answer(Exited(0)),
                "finished": lambda: self.session.receiver.finished(),
                "reset": lambda: self.session.receiver.reset(Reason(ResetCode.LOST, "x")),
                "closed": lambda: self.session.receiver.closed(),
                "gone": lambda: self.execution.client_gone("x"),
                "abort": lambda: self.execution.abort("x"),
                "stdin": lambda: self.execution.stdin_received(b"i"),
            }[step]()
        self.assertLessEqual(len(self.ended), 1)
        self.assertLessEqual(len(self.streams.statuses), 1)
        for status in self.streams.statuses:
            self.assertEqual(status.success, result_first)
        if self.streams.statuses:
            self.assertEqual(self.streams.written[-1], ("end", b""))


class DataTests(ExecutionTestCase):
    """Bytes, sizes and pressure."""

    def test_stdin(self) -> None:
        """Each keystroke goes out as it comes; the end of stdin is a record, not the end."""
        self.start()
        self.execution.stdin_received(b"l")
        self.execution.stdin_received(b"s")
        self.execution.stdin_ended()
        self.execution.resized(Size(80, 24))
        self.execution.stdin_received(b"late")
        lanes = [lane for lane, _ in self.channel.sent]
        self.assertEqual(lanes, [Lane.MAIN, Lane.MAIN, Lane.STDIN_END, Lane.RESIZE])
        self.assertEqual(self.channel.lane(Lane.STDIN_END), b"\0")
        self.assertEqual(decode_size(self.channel.lane(Lane.RESIZE)), Size(80, 24))
        self.assertFalse(self.channel.is_finished)

    def test_stdin_waits_for_the_device(self) -> None:
        """A device that takes no more pauses the client's stdin until it does."""
        self.start()
        self.channel.block()
        self.assertTrue(self.streams.stdin_paused)
        self.channel.unblock()
        self.assertFalse(self.streams.stdin_paused)

    def test_sizes_wait_for_the_device(self) -> None:
        """While the device takes nothing, only the newest size of the terminal is kept."""
        self.start(tty=True)
        self.channel.block()
        for width in range(1, 1000):
            self.execution.resized(Size(width, 24))
        self.assertEqual(self.channel.sent, [])
        self.channel.unblock()
        self.assertEqual(decode_size(self.channel.lane(Lane.RESIZE)), Size(999, 24))
        self.assertFalse(self.streams.stdin_paused)

    def test_output_waits_for_the_client(self) -> None:
        """A client that takes no more pauses the channel; the end never stays paused."""
        self.start()
        assert self.streams.producer is not None
        self.streams.producer.pauseProducing()
        self.assertTrue(self.channel.paused)
        self.execution.abort("stop")
        self.assertFalse(self.channel.paused)
        self.assertIsNone(self.streams.producer)

    def test_unread_stdin(self) -> None:
        """stdin that a finished process never read is dropped, not waited for."""
        self.start()
        self.channel.block()
        self.session.answer(Exited(0))
        self.assertTrue(self.streams.status.success)
        self.assertIsNotNone(self.channel.reset_with)

    def test_terminal_has_one_output(self) -> None:
        """What a device says beside a terminal reaches the terminal."""
        self.start(tty=True, stderr=False)
        self.session.tell(b"no such command\n", Lane.ERROR)
        self.assertEqual(self.streams.written, [("stdout", b"no such command\n")])

    def test_unwanted_stderr(self) -> None:
        """stderr that the client did not ask for is dropped, not mixed into stdout."""
        self.start(stderr=False)
        self.session.tell(b"e", Lane.ERROR)
        self.assertEqual(self.streams.written, [])

    def test_output_while_being_opened(self) -> None:
        """Output that arrives during the opening is not lost."""

        def script(session: ScriptedSession) -> None:
            session.tell(b"early")

        device, streams = ScriptedDevice(), RecordingStreams()
        device.script = script
        Execution(device, REQUEST, streams)
        self.assertEqual(streams.written, [("stdout", b"early")])
        self.assertIsNotNone(streams.producer)
