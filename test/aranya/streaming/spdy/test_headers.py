"""Tests of ``aranya.streaming.spdy.headers``."""

from __future__ import annotations

import hashlib
import struct
import zlib

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from aranya.streaming.spdy import headers
from aranya.streaming.spdy.headers import BadHeaders, Inflater, parse
from test.support.spdy_client import SpdyClient

WORDS = st.text("abcdefghijklmnopqrstuvwxyz-", min_size=1, max_size=20)


class DictionaryTests(SynchronousTestCase):
    """The preset dictionary."""

    def test_identity(self) -> None:
        """It is the one of SPDY/3, byte for byte."""
        self.assertEqual(len(headers.DICTIONARY), 1423)
        self.assertEqual(zlib.adler32(headers.DICTIONARY), 0xE3C6A7C2)
        self.assertEqual(
            hashlib.sha256(headers.DICTIONARY).hexdigest(),
            "51d27341373f923f3cd88e1eb7162aeaa3723d7585ff2399201dc06498407f02",
        )


class EmptyBlockTests(SynchronousTestCase):
    """The two constants that are all we ever send."""

    def test_any_number(self) -> None:
        """A client inflates the first and then any number of later ones, each wholly."""
        inflater = zlib.decompressobj(15, zdict=headers.DICTIONARY)
        self.assertEqual(inflater.decompress(headers.FIRST_EMPTY_BLOCK), bytes(4))
        for _ in range(20_000):
            self.assertEqual(inflater.decompress(headers.LATER_EMPTY_BLOCK), bytes(4))
        self.assertEqual(inflater.unused_data, b"")


class InflaterTests(SynchronousTestCase):
    """What clients send."""

    @given(
        st.lists(
            st.dictionaries(WORDS, st.text(st.characters(min_codepoint=1, max_codepoint=127))), max_size=6
        )
    )
    @settings(max_examples=60, deadline=None)
    def test_round_trip(self, blocks: list[dict[str, str]]) -> None:
        """Blocks of one direction are read one after the other."""
        client, inflater = SpdyClient(), Inflater()
        for block in blocks:
            self.assertEqual(inflater.read(client.block(block)), block)

    def test_first_value(self) -> None:
        """Of several values of one name the first counts, and names are lower case."""
        inflater = Inflater()
        self.assertEqual(inflater.read(SpdyClient().block({"Port": "80\x0081"})), {"port": "80"})

    def test_bomb(self) -> None:
        """A small block that inflates to much is refused without inflating it all."""
        deflater = zlib.compressobj(9, zlib.DEFLATED, 15, 8, 0, headers.DICTIONARY)
        bomb = deflater.compress(bytes(8 * 1024 * 1024)) + deflater.flush(zlib.Z_SYNC_FLUSH)
        self.assertLess(len(bomb), 16 * 1024)
        self.assertRaises(BadHeaders, Inflater().read, bomb)

    def test_ended_stream(self) -> None:
        """A block that ends the compressed stream is refused, since nothing could follow."""
        deflater = zlib.compressobj(9, zlib.DEFLATED, 15, 8, 0, headers.DICTIONARY)
        self.assertRaises(BadHeaders, Inflater().read, deflater.compress(bytes(4)) + deflater.flush())

    def test_no_dictionary(self) -> None:
        """A block made without the dictionary is still zlib; one with another is refused."""
        deflater = zlib.compressobj(9, zlib.DEFLATED, 15, 8, 0, b"another dictionary")
        block = deflater.compress(bytes(4)) + deflater.flush(zlib.Z_SYNC_FLUSH)
        self.assertRaises(BadHeaders, Inflater().read, block)

    def test_malformed(self) -> None:
        """Pairs that repeat, overrun, fall short or are too many are refused."""
        pair = struct.pack(">I", 1) + b"a" + struct.pack(">I", 1) + b"b"
        for plain in (
            b"",
            struct.pack(">I", 1),
            struct.pack(">I", 1) + pair[:-1],
            struct.pack(">I", 1) + pair + b"more",
            struct.pack(">I", 2) + pair + pair,
            struct.pack(">I", 1) + struct.pack(">II", 0, 0),
            struct.pack(">I", 1) + struct.pack(">I", 0xFFFFFFFF) + pair,
            struct.pack(">I", 65)
            + b"".join(
                struct.pack(">I", 2) + b"%02d" % number + struct.pack(">I", 0) for number in range(65)
            ),
        ):
            self.assertRaises(BadHeaders, parse, plain)

    @given(st.binary(max_size=200))
    @settings(max_examples=200, deadline=None)
    def test_garbage(self, data: bytes) -> None:
        """Any bytes are headers or ``BadHeaders``."""
        for read in (Inflater().read, parse):
            try:
                self.assertIsInstance(read(data), dict)
            except BadHeaders:
                pass
