"""``arhat.executor.logs.selection``: which bytes of a log are wanted."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from arhat.executor.logs import stamps
from arhat.executor.logs.selection import DEFAULT_BYTES, LONGEST_PIECE, Limit, Lines, Selection
from tether.verbs.requests import Logs

NOW = 1_710_000_000 * stamps.NANOS


class SelectionTests(SynchronousTestCase):
    """What a request comes to."""

    def test_since_seconds(self) -> None:
        """Seconds count back from now; a moment stands for itself."""
        self.assertEqual(Selection.of(Logs(since_seconds=60), NOW).since, NOW - 60 * stamps.NANOS)
        self.assertEqual(Selection.of(Logs(since_unix_nanos=5), NOW).since, 5)

    def test_default_amount(self) -> None:
        """Only a request that names no amount is given the default one."""
        self.assertEqual(Selection.of(Logs(follow=True), NOW).most, DEFAULT_BYTES)
        for request in (Logs(tail_lines=0), Logs(since_seconds=1), Logs(limit_bytes=1)):
            self.assertIsNone(Selection.of(request, NOW).most)

    def test_the_previous_log_is_over(self) -> None:
        """Nobody follows what is over."""
        self.assertFalse(Selection.of(Logs(follow=True, previous=True), NOW).follow)


class LimitTests(SynchronousTestCase):
    """Cutting at the limit."""

    @settings(max_examples=50, deadline=None)
    @given(st.lists(st.binary(max_size=9)), st.integers(1, 40))
    def test_cuts(self, pieces: list[bytes], size: int) -> None:
        """However the bytes come, the first so many pass."""
        limit = Limit(size)
        self.assertEqual(b"".join(map(limit.cut, pieces)), b"".join(pieces)[:size])
        self.assertEqual(limit.is_reached, len(b"".join(pieces)) >= size)


class LinesTests(SynchronousTestCase):
    """From a file's bytes to the wanted lines."""

    @settings(max_examples=50, deadline=None)
    @given(st.binary(max_size=50).map(lambda data: data.replace(b"0", b"\n")), st.integers(1, 9))
    def test_plain(self, data: bytes, step: int) -> None:
        """Without options the bytes pass unchanged, whole lines at a time."""
        lines = Lines(Selection())
        passed = b""
        for at in range(0, len(data), step):
            piece = lines.feed(data[at : at + step], NOW)
            self.assertTrue(not piece or piece.endswith(b"\n"))
            passed += piece
        self.assertEqual(passed + lines.rest(NOW), data)

    @settings(max_examples=50, deadline=None)
    @given(st.lists(st.sampled_from([b"a", b"\xc3\xa9 b", b"", b"c\rd"]), max_size=9), st.integers(1, 9))
    def test_timestamps(self, texts: list[bytes], step: int) -> None:
        """Each line gets one prefix, however the bytes come."""
        data = b"\n".join(texts)
        lines = Lines(Selection(timestamps=True))
        shown = b"".join(lines.feed(data[at : at + step], NOW) for at in range(0, len(data), step))
        shown += lines.rest(NOW)
        expected = [stamps.written(NOW) + line for line in data.split(b"\n")]
        if data.endswith(b"\n") or not data:
            expected[-1] = b""
        self.assertEqual(shown, b"\n".join(expected))

    def test_since(self) -> None:
        """What is older is dropped, with the lines that belong to it; the moment itself is not."""
        moment = stamps.read(b"2024-01-02T00:00:00Z", 0)
        lines = Lines(Selection(since=moment))
        shown = lines.feed(
            b"no time yet\n"
            b"2024-01-01T23:59:59.999999999Z old\n  trace of old\n"
            b"2024-01-02T00:00:00Z new\n  trace of new\n",
            NOW,
        )
        self.assertEqual(shown, b"no time yet\n2024-01-02T00:00:00Z new\n  trace of new\n")

    def test_since_in_the_middle(self) -> None:
        """Where older lines were left out before, lines without a time belong to them."""
        lines = Lines(Selection(since=NOW), begins_before=True)
        shown = lines.feed(b"  trace of old\n2024-04-02T00:00:00Z new\n", NOW)
        self.assertEqual(shown, b"2024-04-02T00:00:00Z new\n")

    def test_own_time(self) -> None:
        """A line's own time is its prefix, else that of the line before."""
        lines = Lines(Selection(timestamps=True))
        self.assertEqual(
            lines.feed(b"2024-01-02T00:00:00Z a\n b\n", NOW),
            b"2024-01-02T00:00:00.000000000Z 2024-01-02T00:00:00Z a\n2024-01-02T00:00:00.000000000Z  b\n",
        )

    def test_endless_line(self) -> None:
        """A very long line comes in pieces, with one prefix."""
        lines = Lines(Selection(timestamps=True))
        piece = b"x" * (LONGEST_PIECE + 1)
        shown = lines.feed(piece, NOW) + lines.feed(piece, NOW) + lines.feed(b"\nend\n", NOW)
        self.assertEqual(shown, stamps.written(NOW) + piece * 2 + b"\n" + stamps.written(NOW) + b"end\n")
