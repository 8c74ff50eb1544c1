"""Tests for ``tether.link.liveness``."""

from __future__ import annotations

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from tether.link.liveness import Liveness


class LivenessTests(SynchronousTestCase):
    """Ten seconds of silence, a ping, five more, and the end."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.heard_at = 0.0
        self.pings: list[float] = []
        self.ends: list[tuple[float, str]] = []
        self.liveness = Liveness(
            self.clock,
            lambda: self.heard_at,
            lambda: self.pings.append(self.clock.seconds()),
            lambda reason: self.ends.append((self.clock.seconds(), reason)),
            keepalive=10,
            patience=5,
        )
        self.liveness.start()

    def pass_time(self, seconds: int, heard: bool = False) -> None:
        for _ in range(seconds):
            self.clock.advance(1)
            if heard:
                self.heard_at = self.clock.seconds()

    def test_silence(self) -> None:
        """Silence is answered by one ping, and then by the end."""
        self.pass_time(60)
        self.assertEqual(self.pings, [10])
        self.assertEqual(self.ends, [(15, "nothing was heard for 15 s")])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_traffic(self) -> None:
        """While bytes come, whatever they are, no ping goes."""
        self.pass_time(100, heard=True)
        self.assertEqual((self.pings, self.ends), ([], []))

    def test_answer(self) -> None:
        """An answer to the ping starts the count anew."""
        self.pass_time(12)
        self.heard_at = 12
        self.pass_time(9)
        self.assertEqual((self.pings, self.ends), ([10], []))
        self.pass_time(6)
        self.assertEqual(self.pings, [10, 22])
        self.pass_time(5)
        self.assertEqual(self.ends, [(27, "nothing was heard for 15 s")])

    def test_silence_from_the_last_byte(self) -> None:
        """The silence counts from the last byte, not from the last look."""
        self.pass_time(6)
        self.heard_at = 6
        self.pass_time(9)
        self.assertEqual(self.pings, [])
        self.pass_time(1)
        self.assertEqual(self.pings, [16])

    def test_stop(self) -> None:
        """After ``stop`` nothing happens any more."""
        self.pass_time(11)
        self.liveness.stop()
        self.liveness.stop()
        self.pass_time(60)
        self.assertEqual((self.pings, self.ends), ([10], []))
