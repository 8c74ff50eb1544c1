"""Tests of ``aranya.streaming.spdy.connection``: the law of SPDY, without I/O."""

from __future__ import annotations

import struct

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from aranya.streaming.spdy import frames
from aranya.streaming.spdy.connection import (
    CONTROL_LIMIT,
    DATA_LIMIT,
    Connection,
    DataReceived,
    Event,
    GoneAway,
    Misuse,
    StreamFinished,
    StreamOpened,
    StreamReset,
    Violated,
)
from aranya.streaming.spdy.frames import GoAwayStatus, ResetStatus
from test.support.spdy_client import SpdyClient


def joined(events: list[Event]) -> list[Event]:
    """The events with adjacent data of one stream joined."""
    result: list[Event] = []
    for event in events:
        last = result[-1] if result else None
        if isinstance(event, DataReceived) and isinstance(last, DataReceived) and last.stream == event.stream:
            result[-1] = DataReceived(event.stream, last.data + event.data)
        else:
            result.append(event)
    return result


class VectorTests(SynchronousTestCase):
    """Frames as bytes, as measured of real ones."""

    def opened(self, *numbers: int) -> Connection:
        """A connection on which a client opened streams up to the last."""
        connection, client = Connection(8), SpdyClient()
        for number in numbers:
            connection.receive(client.syn(number, streamtype="data"))
        return connection

    def test_replies(self) -> None:
        """The first and the second SYN_REPLY of a connection."""
        connection = self.opened(1, 3)
        self.assertEqual(
            connection.reply(1).hex(" "),
            "80 03 00 02 00 00 00 14 00 00 00 01 78 f9 e3 c6 a7 c2 02 a6 23 06 00 00 00 00 ff ff",
        )
        self.assertEqual(
            connection.reply(3).hex(" "),
            "80 03 00 02 00 00 00 0c 00 00 00 03 02 01 00 00 00 00 ff ff",
        )

    def test_finish(self) -> None:
        """An empty DATA with FIN."""
        connection = self.opened(5)
        connection.reply(5)
        self.assertEqual(connection.finish(5).hex(" "), "00 00 00 05 01 00 00 00")

    def test_reset(self) -> None:
        """RST_STREAM with CANCEL."""
        self.assertEqual(self.opened(3).reset(3).hex(" "), "80 03 00 03 00 00 00 08 00 00 00 03 00 00 00 05")

    def test_ping(self) -> None:
        """A ping is echoed to the byte."""
        ping = bytes.fromhex("80 03 00 06 00 00 00 04 00 00 00 01")
        connection = Connection(8)
        self.assertEqual(connection.receive(ping), [])
        self.assertEqual(connection.take_output(), ping)
        self.assertEqual(connection.take_output(), b"")

    def test_goaway(self) -> None:
        """GOAWAY names the last stream."""
        self.assertEqual(
            self.opened(1, 5).go_away().hex(" "), "80 03 00 07 00 00 00 08 00 00 00 05 00 00 00 00"
        )


class ReceiveTests(SynchronousTestCase):
    """What a client does, and what it hears at once."""

    def setUp(self) -> None:
        self.connection = Connection(4)
        self.client = SpdyClient()

    def test_stream(self) -> None:
        """A stream is opened, sends, and finishes."""
        data = (
            self.client.syn(streamtype="stdin")
            + self.client.data(1, b"abc")
            + self.client.data(1, b"d", True)
        )
        self.assertEqual(
            self.connection.receive(data),
            [
                StreamOpened(1, {"streamtype": "stdin"}),
                DataReceived(1, b"abc"),
                DataReceived(1, b"d"),
                StreamFinished(1),
            ],
        )

    @given(st.lists(st.integers(1, 30), max_size=30))
    @settings(max_examples=60, deadline=None)
    def test_any_split(self, cuts: list[int]) -> None:
        """Where the bytes are cut makes no difference."""
        connection, client = Connection(4), SpdyClient()
        data = (
            client.syn(streamtype="error")
            + client.syn(streamtype="data")
            + client.data(3, b"some longer text", True)
            + client.ping(5)
            + client.rst(1)
            + client.go_away()
        )
        events: list[Event] = []
        for cut in cuts:
            events += connection.receive(data[:cut])
            data = data[cut:]
        events += connection.receive(data)
        self.assertEqual(
            joined(events),
            [
                StreamOpened(1, {"streamtype": "error"}),
                StreamOpened(3, {"streamtype": "data"}),
                DataReceived(3, b"some longer text"),
                StreamFinished(3),
                StreamReset(1, 5),
                GoneAway(0),
            ],
        )
        self.assertEqual(connection.take_output(), client.ping(5))

    def test_large_frame_is_not_held(self) -> None:
        """The parts of a large DATA frame are handed on as they come."""
        self.connection.receive(self.client.syn(streamtype="stdin"))
        self.connection.receive(struct.pack(">II", 1, 0xFFFFFF))
        part = bytes(1000)
        for _ in range(10):
            self.assertEqual(self.connection.receive(part), [DataReceived(1, part)])

    def test_fin_with_syn(self) -> None:
        """A stream may be finished from its start."""
        events = self.connection.receive(self.client.syn(flags=frames.FIN))
        self.assertEqual(events, [StreamOpened(1, {}), StreamFinished(1)])

    def test_stream_limit(self) -> None:
        """Streams over the limit are refused, and room is made by those that end."""
        for _ in range(4):
            self.connection.receive(self.client.syn())
        self.assertEqual(self.connection.receive(self.client.syn()), [])
        self.client.receive(self.connection.take_output())
        self.assertEqual(self.client.streams[9].reset, ResetStatus.REFUSED_STREAM)
        self.connection.receive(self.client.rst(1))
        self.assertEqual(self.connection.receive(self.client.syn()), [StreamOpened(11, {})])

    def test_ten_thousand_streams(self) -> None:
        """A client that opens streams without end costs a bounded table."""
        connection = Connection(100)
        for _ in range(10_000):
            connection.receive(self.client.syn())
            connection.take_output()
        self.assertEqual(connection.open_streams, 100)

    def test_headers_of_refused_streams_are_read(self) -> None:
        """Header blocks of refused streams pass the inflater, so later ones are understood."""
        self.connection.receive(self.client.syn(5, streamtype="a"))
        self.assertEqual(self.connection.receive(self.client.syn(3, streamtype="b")), [])
        self.assertEqual(self.connection.receive(self.client.syn(4, streamtype="c")), [])
        self.client.receive(self.connection.take_output())
        self.assertEqual([self.client.streams[number].reset for number in (3, 4)], [1, 1])
        events = self.connection.receive(self.client.syn(7, streamtype="d"))
        self.assertEqual(events, [StreamOpened(7, {"streamtype": "d"})])

    def test_data_for_nobody(self) -> None:
        """Data for streams that are over or were never there is dropped."""
        self.connection.receive(self.client.syn())
        data = self.client.data(1, b"", True) + self.client.data(1, b"x") + self.client.data(9, b"y", True)
        self.assertEqual(self.connection.receive(data), [StreamFinished(1)])

    def test_windows_are_ignored(self) -> None:
        """SETTINGS, WINDOW_UPDATE and NOOP mean nothing; HEADERS are inflated and dropped."""
        data = (
            frames.control(frames.Kind.SETTINGS, struct.pack(">III", 1, 4, 100))
            + frames.control(frames.Kind.WINDOW_UPDATE, struct.pack(">II", 1, 100))
            + frames.control(frames.Kind.NOOP, b"")
            + frames.control(frames.Kind.HEADERS, struct.pack(">I", 1) + self.client.block({"x": "y"}))
        )
        self.assertEqual(self.connection.receive(data), [])
        self.assertEqual(self.connection.receive(self.client.syn(a="b")), [StreamOpened(1, {"a": "b"})])

    def test_violations(self) -> None:
        """What cannot be understood ends the connection, and nothing after it is read."""
        syn = self.client.syn()
        for name, bad in {
            "data for stream 0": struct.pack(">II", 0, 3) + b"abc",
            "unknown type": frames.control(99, b""),  # type: ignore[arg-type]
            "syn reply": frames.control(frames.Kind.SYN_REPLY, struct.pack(">I", 1) + SpdyClient().block({})),
            "short syn": frames.control(frames.Kind.SYN_STREAM, b"123"),
            "stream 0": SpdyClient().syn(0),
            "no zlib": frames.control(frames.Kind.SYN_STREAM, bytes(30)),
            "short rst": frames.control(frames.Kind.RST_STREAM, b"1234"),
            "rst 0": frames.rst_stream(0, ResetStatus.CANCEL),
            "short ping": frames.control(frames.Kind.PING, b"1"),
            "ping 0": frames.ping(0),
            "short goaway": frames.control(frames.Kind.GOAWAY, b"1"),
            "short headers": frames.control(frames.Kind.HEADERS, b"1"),
            "long control": struct.pack(">HHI", 0x8003, 1, CONTROL_LIMIT + 1),
        }.items():
            connection = Connection(4)
            (event,) = connection.receive(bad + syn)
            self.assertIsInstance(event, Violated, name)
            self.assertEqual(connection.receive(syn), [], name)

    def test_opened_twice(self) -> None:
        """The id of an open stream cannot be used again."""
        self.connection.receive(self.client.syn(1))
        (event,) = self.connection.receive(self.client.syn(1))
        self.assertIsInstance(event, Violated)

    @given(st.binary(max_size=300), st.integers(1, 50))
    @settings(max_examples=300, deadline=None)
    def test_garbage(self, data: bytes, step: int) -> None:
        """Any bytes are events; a violation comes once and last."""
        connection, client = Connection(4), SpdyClient()
        connection.receive(client.syn())
        events: list[Event] = []
        for start in range(0, len(data), step):
            events += connection.receive(data[start : start + step])
        self.assertFalse(any(isinstance(event, Violated) for event in events[:-1]))

    @given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 3), st.binary(max_size=24)), max_size=12))
    @settings(max_examples=200, deadline=None)
    def test_garbage_frames(self, wanted: list[tuple[int, int, bytes]]) -> None:
        """Any well-formed control frames of any content are events."""
        connection = Connection(2)
        for kind, flags, body in wanted:
            for event in connection.receive(frames.control(kind, body, flags)):  # type: ignore[arg-type]
                self.assertIsInstance(event, Event)


class SendTests(SynchronousTestCase):
    """What we may send, and when."""

    def setUp(self) -> None:
        self.connection = Connection(4)
        self.client = SpdyClient()

    def open(self) -> int:
        """A stream, replied to."""
        self.connection.receive(self.client.syn())
        self.client.receive(self.connection.reply(self.client.last))
        return self.client.last

    def test_silent_before_the_client(self) -> None:
        """Before the client's first byte there is nothing to send."""
        self.assertEqual((self.connection.ping(), self.connection.go_away()), (b"", b""))

    def test_reply_first(self) -> None:
        """Data and finish before the reply are bugs, and so is a second reply."""
        self.connection.receive(self.client.syn())
        self.assertRaises(Misuse, self.connection.data, 1, b"x")
        self.assertRaises(Misuse, self.connection.finish, 1)
        self.connection.reply(1)
        self.assertRaises(Misuse, self.connection.reply, 1)

    def test_data(self) -> None:
        """Data is framed without a copy, and cut when it is very large."""
        number = self.open()
        payload = bytes(1000)
        _, same = self.connection.data(number, payload)
        self.assertIs(same, payload)
        large = bytes(range(256)) * (DATA_LIMIT // 128)
        pieces = self.connection.data(number, large)
        self.assertEqual(len(pieces), 4)
        self.client.receive(b"".join(pieces))
        self.assertEqual(self.client.streams[number].received, large)

    def test_after_the_end(self) -> None:
        """A stream that is over takes nothing and says nothing."""
        number = self.open()
        self.connection.receive(self.client.rst(number))
        self.assertEqual(self.connection.data(number, b"x"), [])
        self.assertEqual((self.connection.finish(number), self.connection.reset(number)), (b"", b""))

    def test_no_reset_after_finish(self) -> None:
        """What was finished is not reset."""
        number = self.open()
        self.connection.finish(number)
        self.assertEqual(self.connection.finish(number), b"")
        self.assertEqual(self.connection.data(number, b"x"), [])
        self.assertEqual(self.connection.reset(number), b"")

    def test_both_directions(self) -> None:
        """A stream is over when both sides have finished it, in either order."""
        first, second = self.open(), self.open()
        self.connection.finish(first)
        self.connection.receive(self.client.data(first, b"", True))
        self.connection.receive(self.client.data(second, b"", True))
        self.assertEqual(self.connection.open_streams, 1)
        self.connection.finish(second)
        self.assertEqual(self.connection.open_streams, 0)

    def test_pings_are_even(self) -> None:
        """Our pings have even ids, and their echoes are not echoed."""
        self.open()
        self.client.receive(self.connection.ping() + self.connection.ping())
        self.assertEqual(self.client.pings, [2, 4])
        self.connection.receive(self.client.ping(2))
        self.assertEqual(self.connection.take_output(), b"")

    def test_goaway_status(self) -> None:
        """GOAWAY can say that the client erred."""
        number = self.open()
        self.client.receive(self.connection.go_away(GoAwayStatus.PROTOCOL_ERROR))
        self.assertEqual(self.client.goaway, (number, 1))
