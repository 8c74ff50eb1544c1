"""What a terminal showed lately."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from arhat.executor.scrollback import Scrollback


class ScrollbackTests(SynchronousTestCase):
    """A bounded memory of output."""

    def test_short(self) -> None:
        """What fits is replayed as it was."""
        scrollback = Scrollback(100)
        scrollback.add(b"one\r\n")
        scrollback.add(b"two")
        self.assertEqual(scrollback.replay(), b"one\r\ntwo")

    def test_begins_with_a_line(self) -> None:
        """A replay whose beginning was forgotten starts at a line."""
        scrollback = Scrollback(10)
        for number in range(5):
            scrollback.add(b"line%d\n" % number)
        self.assertEqual(scrollback.replay(), b"line4\n")

    def test_cleared(self) -> None:
        """Nothing is left after clearing."""
        scrollback = Scrollback(10)
        scrollback.add(b"x" * 30)
        scrollback.clear()
        self.assertEqual(scrollback.replay(), b"")

    @given(st.lists(st.binary(max_size=40), max_size=30), st.integers(1, 64))
    @settings(max_examples=200, deadline=None)
    def test_bounded_suffix(self, pieces: list[bytes], limit: int) -> None:
        """A replay is never longer than the limit, and without questions it is the end of the output."""
        pieces = [piece.replace(b"\x1b", b"e").replace(b"\x05", b"E") for piece in pieces]
        scrollback = Scrollback(limit)
        for piece in pieces:
            scrollback.add(piece)
        self.assertLessEqual(len(scrollback.replay()), limit)
        self.assertTrue(b"".join(pieces).endswith(scrollback.replay()))
