"""Tests of ``aranya.streaming.resize``."""

from __future__ import annotations

import json

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from aranya.streaming.resize import SizeReader
from tether.verbs.requests import Size

SIDE = st.integers(0, 0xFFFF)


class SizeReaderTests(SynchronousTestCase):
    """Sizes out of a stream."""

    @given(
        st.lists(st.tuples(SIDE, SIDE), max_size=5), st.sampled_from(["", "\n", " \r\n"]), st.integers(1, 50)
    )
    @settings(max_examples=100, deadline=None)
    def test_any_split(self, sizes: list[tuple[int, int]], separator: str, step: int) -> None:
        """Objects are read however they are split, merged and separated."""
        data = separator.join(
            json.dumps({"Width": width, "Height": height}) for width, height in sizes
        ).encode()
        reader = SizeReader()
        read: list[Size] = []
        for start in range(0, len(data), step):
            read += reader.receive(data[start : start + step])
        self.assertEqual(read, [Size(*size) for size in sizes])

    def test_names_in_any_case(self) -> None:
        """Names of fields are read as Go reads them."""
        self.assertEqual(SizeReader().receive(b'{"width":1,"HEIGHT":2,"more":"x"}'), [Size(1, 2)])

    def test_first_bad_one_silences(self) -> None:
        """After a bad object no size is believed."""
        for bad in (
            b"x",
            b'{"Width":-1}',
            b'{"Width":65536}',
            b'{"Width":"8"}',
            b'{"Width":true}',
            b"{]}",
            b"[1]",
        ):
            reader = SizeReader()
            self.assertEqual(reader.receive(b'{"Width":1,"Height":1}' + bad), [Size(1, 1)], bad)
            self.assertEqual(reader.receive(b'{"Width":2,"Height":2}'), [], bad)

    def test_bounded(self) -> None:
        """An object without end is not held."""
        reader = SizeReader()
        for _ in range(100):
            reader.receive(b"{" if reader._held == b"" else b" " * 100)
        self.assertLess(len(reader._held), 5000)

    @given(st.lists(st.binary(max_size=60), max_size=5))
    @settings(max_examples=150, deadline=None)
    def test_garbage(self, chunks: list[bytes]) -> None:
        """Any bytes are sizes or nothing."""
        reader = SizeReader()
        for chunk in chunks:
            for size in reader.receive(chunk):
                self.assertIsInstance(size, Size)
