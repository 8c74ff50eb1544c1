"""Tests of ``aranya.streaming.intake``."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from aranya.streaming.intake import ALL_LIMIT, EACH_LIMIT, Brake, Intake


class Reader:
    """One intake, and what its reader got."""

    def __init__(self, brake: Brake) -> None:
        self.got: list[bytes] = []
        self.ends = 0
        self.intake = Intake(brake, self.got.append, self._end)

    def _end(self) -> None:
        self.ends += 1


class IntakeTests(SynchronousTestCase):
    """Order, end and pressure."""

    def setUp(self) -> None:
        self.pulled: list[str] = []
        self.brake = Brake(lambda: self.pulled.append("stop"), lambda: self.pulled.append("release"))
        self.reader = Reader(self.brake)

    @given(st.lists(st.one_of(st.sampled_from(["pause", "resume"]), st.binary(min_size=1, max_size=4))))
    @settings(max_examples=100, deadline=None)
    def test_order(self, actions: list[str | bytes]) -> None:
        """Whatever the pauses, all comes in order, and the end once and last."""
        reader = Reader(Brake(lambda: None, lambda: None))
        for action in actions:
            if isinstance(action, bytes):
                reader.intake.receive(action)
            else:
                getattr(reader.intake, action)()
        reader.intake.finish()
        reader.intake.finish()
        reader.intake.resume()
        reader.intake.resume()
        self.assertEqual(b"".join(reader.got), b"".join(each for each in actions if isinstance(each, bytes)))
        self.assertEqual(reader.ends, 1)

    def test_one_full(self) -> None:
        """One paused reader stops the connection at its limit, and releases it when half is taken."""
        for _ in range(EACH_LIMIT // 1024 + 1):
            self.reader.intake.receive(bytes(1024))
        self.assertEqual(self.pulled, ["stop"])
        self.reader.intake.resume()
        self.assertEqual(self.pulled, ["stop", "release"])

    def test_many_readers(self) -> None:
        """Many paused readers together stop it too, each below its own limit."""
        readers = [Reader(self.brake) for _ in range(40)]
        for reader in readers:
            reader.intake.receive(bytes(ALL_LIMIT // 32))
        self.assertEqual(self.pulled, ["stop"])
        for reader in readers:
            reader.intake.discard()
        self.assertEqual(self.pulled, ["stop", "release"])

    def test_tiny_chunks_count(self) -> None:
        """Single bytes are counted for what they really cost."""
        for _ in range(EACH_LIMIT // 50):
            self.reader.intake.receive(b"x")
        self.assertEqual(self.pulled, ["stop"])

    def test_discard(self) -> None:
        """After ``discard`` nothing is delivered or held."""
        self.reader.intake.receive(b"a")
        self.reader.intake.discard()
        self.reader.intake.receive(b"b")
        self.reader.intake.finish()
        self.reader.intake.resume()
        self.assertEqual((self.reader.got, self.reader.ends), ([], 0))
