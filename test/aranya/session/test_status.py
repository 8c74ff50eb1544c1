"""Tests of ``aranya.session.status``."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from aranya.interfaces import Status
from aranya.session import status
from tether.errors import Reason, ResetCode
from tether.verbs.requests import DeviceFacts, Exited, Failed, Killed, Succeeded


class ResultTests(SynchronousTestCase):
    """What a device's result means to kubectl."""

    def test_exits(self) -> None:
        """An exit code is told as it is."""
        for code in (0, 1, 3, 126, 127, 255):
            self.assertEqual(status.of_result("dev", Exited(code)), Status(exit_code=code))

    def test_signals(self) -> None:
        """A process killed by signal n counts as exit code 128+n."""
        for signal in (1, 9, 15, 127):
            self.assertEqual(status.of_result("dev", Killed(signal)), Status(exit_code=128 + signal))

    def test_succeeded(self) -> None:
        """An end without a code is a success."""
        self.assertTrue(status.of_result("dev", Succeeded()).success)

    def test_impossible_codes(self) -> None:
        """A code that kubectl cannot take is a failure with a text, never a success."""
        for result in (Exited(256), Exited(-1), Exited(65536), Killed(0), Killed(200), DeviceFacts()):
            told = status.of_result("dev", result)
            self.assertEqual(told.exit_code, 0)
            self.assertIn("dev", told.message)

    def test_failed(self) -> None:
        """A failure names the device, what it did, and why."""
        told = status.of_result("dev", Failed(ResetCode.REFUSED, "exec is off here"))
        self.assertEqual(told, Status(message="device dev refused: exec is off here"))


class SentenceTests(SynchronousTestCase):
    """Why a session ended, in one line."""

    def test_offline(self) -> None:
        """A lost link reads as the device going offline."""
        reason = Reason(ResetCode.LOST, "no sign of life for 30 s")
        self.assertEqual(status.sentence("dev", reason), "device dev went offline: no sign of life for 30 s")

    def test_without_text(self) -> None:
        """A reason without a text still says what happened."""
        self.assertEqual(status.sentence("dev", Reason(ResetCode.LOST, "")), "device dev went offline")

    @given(st.sampled_from(list(ResetCode)), st.text())
    @settings(max_examples=100, deadline=None)
    def test_never_success(self, code: ResetCode, text: str) -> None:
        """Whatever a device says, a reset is one printable line and no success."""
        told = status.of_reset("dev", Reason(code, text))
        self.assertFalse(told.success)
        self.assertTrue(told.message.isprintable())
        self.assertLess(len(told.message), 2000)
