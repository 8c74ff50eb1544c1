"""A program whose output is cut into lines."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from arhat.executor.logs import child
from arhat.executor.logs.child import LONGEST_LINE, LineChild


class LineTests(SynchronousTestCase):
    """What is heard of what was read."""

    def setUp(self) -> None:
        self.lines: list[bytes] = []
        self.child = LineChild(self.lines.extend)

    def read(self, *pieces: bytes) -> list[bytes]:
        """The lines heard when these pieces were read."""
        self.lines.clear()
        for piece in pieces:
            self.child.outReceived(piece)
        return list(self.lines)

    def test_pieces(self) -> None:
        """Lines are heard whole, and not before they ended, wherever they were cut."""
        self.assertEqual(self.read(b"a\nb"), [b"a"])
        self.assertEqual(self.read(b"c", b"", b"d\n\ne"), [b"bcd", b""])
        self.assertEqual(self.read(b"\n"), [b"e"])

    def test_too_long(self) -> None:
        """A line that is too long is left out, those around it are not."""
        self.patch(child, "LONGEST_LINE", 10)
        self.assertEqual(self.read(b"before\n" + b"x" * 8, b"xx", b"\n"), [b"before", b"x" * 10])
        self.assertEqual(self.read(b"x" * 8, b"xxx", b"x" * 20, b"xxx\nafter\nnext"), [b"after"])
        self.assertEqual(self.read(b"\n"), [b"next"])

    def test_longest_line_in_small_pieces(self) -> None:
        """A line of the greatest length is whole, however it came."""
        lines = self.read(*(b"x" * 1024 for _ in range(LONGEST_LINE // 1024)), b"\n")
        self.assertEqual([len(line) for line in lines], [LONGEST_LINE])
