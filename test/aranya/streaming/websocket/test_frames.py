"""Tests of ``aranya.streaming.websocket.frames``: RFC 6455 without I/O."""

from __future__ import annotations

import struct

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from aranya.streaming.websocket import frames
from aranya.streaming.websocket.frames import (
    MESSAGE_LIMIT,
    CloseCode,
    Closed,
    Event,
    Framing,
    Opcode,
    Part,
    Ping,
    Pong,
    Violated,
)
from test.support.spdy_client import WebSocketClient

frame = WebSocketClient.frame


def messages(events: list[Event]) -> list[tuple[bool, bytes]]:
    """Whole messages out of their parts."""
    whole: list[tuple[bool, bytes]] = []
    held = b""
    for event in events:
        assert isinstance(event, Part)
        held = event.data if event.first else held + event.data
        if event.last:
            whole.append((event.text, held))
    return whole


class ReceiveTests(SynchronousTestCase):
    """What clients send."""

    @given(
        st.lists(st.tuples(st.booleans(), st.binary(max_size=300)), max_size=5),
        st.lists(st.integers(1, 60), max_size=30),
    )
    @settings(max_examples=80, deadline=None)
    def test_any_split(self, wanted: list[tuple[bool, bytes]], cuts: list[int]) -> None:
        """Messages are the same wherever their bytes are cut."""
        data = b"".join(frame(1 if text else 2, payload) for text, payload in wanted)
        framing = Framing()
        events: list[Event] = []
        for cut in cuts:
            events += framing.receive(data[:cut])
            data = data[cut:]
        events += framing.receive(data)
        self.assertEqual(messages(events), wanted)

    def test_fragments(self) -> None:
        """A message in fragments, with a ping between them, is one message."""
        data = frame(2, b"ab", final=False) + frame(9, b"?") + frame(0, b"", final=False) + frame(0, b"cd")
        events = Framing().receive(data)
        self.assertIn(Ping(b"?"), events)
        parts = [event for event in events if not isinstance(event, Ping)]
        self.assertEqual(messages(parts), [(False, b"abcd")])

    def test_long_lengths(self) -> None:
        """Lengths of 16 and of 64 bits are read."""
        for size in (125, 126, 65535, 65536, 200_000):
            payload = bytes(range(256)) * (size // 256 + 1)
            events = Framing().receive(frame(2, payload[:size]))
            self.assertEqual(messages(events), [(False, payload[:size])])

    def test_parts_are_not_held(self) -> None:
        """The parts of a long message are handed on as they come."""
        framing = Framing()
        head = struct.pack(">BBQ", 0x82, 0xFF, 1 << 20) + bytes(4)
        self.assertEqual(framing.receive(head), [])
        self.assertEqual(framing.receive(b"abc"), [Part(b"abc", True, False)])
        self.assertEqual(framing.receive(b"def"), [Part(b"def", False, False)])

    def test_pong_and_close(self) -> None:
        """Pongs are told, and after the close nothing is read."""
        data = frame(10, b"!") + frame(8, struct.pack(">H", 1001) + b"bye") + frame(2, b"late")
        framing = Framing()
        self.assertEqual(framing.receive(data), [Pong(b"!"), Closed(1001)])
        self.assertEqual(framing.receive(frame(2, b"later")), [])
        self.assertEqual(Framing().receive(frame(8)), [Closed(1005)])

    def test_violations(self) -> None:
        """What RFC 6455 forbids is answered with code 1002."""
        for name, bad in {
            "no mask": frame(2, b"x", masked=False),
            "reserved bits": b"\xc2" + frame(2, b"x")[1:],
            "opcode": frame(3, b"x"),
            "control opcode": frame(11, b""),
            "lone continuation": frame(0, b"x"),
            "message in message": frame(2, b"x", final=False) + frame(2, b"y"),
            "fragmented ping": frame(9, b"", final=False),
            "long ping": frame(9, bytes(126)),
            "short close": frame(8, b"x"),
        }.items():
            event = Framing().receive(bad)[-1]
            assert isinstance(event, Violated), name
            self.assertEqual(event.code, CloseCode.PROTOCOL_ERROR, name)

    def test_too_big(self) -> None:
        """A message over the limit is refused by its header alone, in one frame or several."""
        big = struct.pack(">BBQ", 0x82, 0xFF, MESSAGE_LIMIT + 1) + bytes(4)
        (event,) = Framing().receive(big)
        self.assertEqual(event, Violated(CloseCode.TOO_BIG, "a message is too big"))
        rest = struct.pack(">BBQ", 0x80, 0xFF, MESSAGE_LIMIT) + bytes(4)
        self.assertIsInstance(Framing().receive(frame(2, b"x", final=False) + rest)[-1], Violated)

    @given(st.binary(max_size=200), st.integers(1, 40))
    @settings(max_examples=300, deadline=None)
    def test_garbage(self, data: bytes, step: int) -> None:
        """Any bytes are events; a violation comes once and last."""
        framing = Framing()
        events: list[Event] = []
        for start in range(0, len(data), step):
            events += framing.receive(data[start : start + step])
        self.assertFalse(any(isinstance(event, Violated | Closed) for event in events[:-1]))

    @given(st.lists(st.tuples(st.integers(0, 15), st.booleans(), st.binary(max_size=130)), max_size=8))
    @settings(max_examples=200, deadline=None)
    def test_garbage_frames(self, wanted: list[tuple[int, bool, bytes]]) -> None:
        """Any masked frames in any order are events."""
        framing = Framing()
        for opcode, final, payload in wanted:
            for event in framing.receive(frame(opcode, payload, final)):
                self.assertIsInstance(event, Event)


class SendTests(SynchronousTestCase):
    """What we send."""

    def test_headers(self) -> None:
        """Lengths are in their shortest form."""
        self.assertEqual(frames.header(Opcode.BINARY, 5).hex(), "8205")
        self.assertEqual(frames.header(Opcode.TEXT, 126).hex(), "817e007e")
        self.assertEqual(frames.header(Opcode.BINARY, 65536).hex(), "827f0000000000010000")

    def test_close(self) -> None:
        """A close has a code and a short reason; "no code" has neither."""
        self.assertEqual(frames.close().hex(), "880203e8")
        self.assertEqual(frames.close(1005).hex(), "8800")
        self.assertEqual(len(frames.close(1002, "ä" * 100)), 2 + 2 + 122)

    def test_accept_key(self) -> None:
        """The sample of RFC 6455."""
        self.assertEqual(frames.accept_key(b"dGhlIHNhbXBsZSBub25jZQ=="), b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=")
