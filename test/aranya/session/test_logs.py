"""Tests of ``aranya.session.logs``."""

from __future__ import annotations

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from aranya.session.logs import FOLLOW_PATIENCE, LogStream
from test.support.device import ScriptedDevice
from test.support.streams import RecordingLog
from tether.errors import LinkLost, ResetCode
from tether.link.interfaces import Lane
from tether.verbs.codec import encode_result
from tether.verbs.requests import Failed, Logs, Succeeded


class LogStreamTests(SynchronousTestCase):
    """A log on its way from a device to a client."""

    def start(self, *, follow: bool = True, failure: Exception | None = None) -> None:
        self.device = ScriptedDevice()
        self.device.failure = failure
        self.output = RecordingLog()
        self.clock = Clock()
        self.ended: list[LogStream] = []
        self.stream = LogStream(self.device, Logs(follow=follow), self.output, self.clock, self.ended.append)

    def test_whole_log(self) -> None:
        """A log that ends is a success, also when it is empty."""
        for pieces in ([], [b"one\n", b"two\n"]):
            self.start(follow=False)
            for piece in pieces:
                self.device.session.tell(piece)
            self.device.session.answer(Succeeded())
            self.device.session.receiver.closed()
            self.assertEqual(self.output.calls, ["begin", "end"])
            self.assertEqual(self.output.text, b"".join(pieces))
            self.assertEqual(self.ended, [self.stream])
            self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_refused(self) -> None:
        """A refusal before the first byte is an error, not a line in the log."""
        self.start()
        self.device.session.break_off(ResetCode.REFUSED, "logs.files does not list it")
        self.assertEqual(self.output.calls, ["refuse"])
        self.assertEqual(self.output.refusal, "device dev refused: logs.files does not list it")
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_failed(self) -> None:
        """A failure told as a result before the first byte is an error, too."""
        self.start()
        self.device.session.tell(encode_result(Failed(ResetCode.INVALID, "no such boot")), Lane.RESULT)
        self.device.session.receiver.finished()
        self.assertEqual(self.output.calls, ["refuse"])
        self.assertEqual(self.output.refusal, "device dev cannot do this: no such boot")

    def test_link_lost_while_opening(self) -> None:
        """A device that goes away at that moment is an error."""
        self.start(failure=LinkLost("closed"))
        self.assertEqual(self.output.refusal, "device dev went offline: closed")
        self.assertEqual(self.ended, [self.stream])

    def test_silent_follow(self) -> None:
        """A follower of a silent log sees the answer begin after a second."""
        self.start()
        self.assertEqual(self.output.calls, [])
        self.clock.advance(FOLLOW_PATIENCE)
        self.assertEqual(self.output.calls, ["begin"])
        self.device.session.tell(b"line\n")
        self.assertEqual(self.output.calls, ["begin"])

    def test_silence_without_follow(self) -> None:
        """Without follow the answer waits for what a large log needs."""
        self.start(follow=False)
        self.clock.advance(FOLLOW_PATIENCE)
        self.assertEqual(self.output.calls, [])

    def test_cut(self) -> None:
        """A lost link ends the log with a line of its own that says so."""
        for text in (b"line\n", b"half a li"):
            self.start()
            self.device.session.tell(text)
            self.device.session.break_off(ResetCode.LOST, "no sign of life")
            expected = b"aranya: log stream cut: device dev went offline: no sign of life\n"
            self.assertEqual(self.output.text.splitlines(keepends=True)[-1], expected)
            self.assertEqual(self.output.calls, ["begin", "end"])
            self.assertEqual(self.ended, [self.stream])

    def test_abort(self) -> None:
        """An endpoint that stops says so in the log and ends it on the device."""
        self.start()
        self.device.session.tell(b"line\n")
        self.stream.abort("aranya is stopping")
        self.assertEqual(self.output.text, b"line\naranya: log stream cut: aranya is stopping\n")
        self.assertIsNotNone(self.device.session.channel.reset_with)

    def test_client_gone(self) -> None:
        """A client that leaves ends the log on the device; nothing is written any more."""
        self.start()
        self.device.session.tell(b"line\n")
        self.stream.client_gone()
        self.device.session.tell(b"more\n")
        self.device.session.receiver.closed()
        self.assertEqual(self.output.text, b"line\n")
        reset = self.device.session.channel.reset_with
        assert reset is not None
        self.assertIs(reset.code, ResetCode.CANCELLED)
        self.assertEqual(self.ended, [self.stream])

    def test_pressure(self) -> None:
        """A slow client pauses the channel."""
        self.start()
        assert self.output.producer is not None
        self.output.producer.pauseProducing()
        self.assertTrue(self.device.session.channel.paused)
