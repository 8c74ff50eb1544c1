"""Tests of ``aranya.streaming.websocket.channels``."""

from __future__ import annotations

import base64

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from aranya.streaming.websocket.channels import PROTOCOLS, ChannelClosed, ChannelData, Channels, Event
from aranya.streaming.websocket.frames import Part
from test.support.spdy_client import WebSocketClient

BINARY = PROTOCOLS["v4.channel.k8s.io"]
BASE64 = PROTOCOLS["base64.channel.k8s.io"]
V5 = PROTOCOLS["v5.channel.k8s.io"]


def parts(message: bytes, cuts: list[int]) -> list[Part]:
    """A message cut into parts."""
    pieces: list[bytes] = []
    for cut in cuts:
        pieces.append(message[:cut])
        message = message[cut:]
    pieces.append(message)
    last = len(pieces) - 1
    return [Part(piece, index == 0, index == last) for index, piece in enumerate(pieces)]


def received(channels: Channels, message: bytes, cuts: list[int]) -> list[Event]:
    """All that a message says."""
    return [event for part in parts(message, cuts) for event in channels.receive(part)]


CUTS = st.lists(st.integers(0, 7), max_size=10)


class ReceiveTests(SynchronousTestCase):
    """Messages to channels."""

    @given(st.integers(0, 255), st.binary(max_size=60), CUTS)
    @settings(max_examples=100, deadline=None)
    def test_binary(self, channel: int, data: bytes, cuts: list[int]) -> None:
        """The first byte is the channel, however the message is cut."""
        events = received(Channels(BINARY), bytes([channel]) + data, cuts)
        self.assertTrue(all(isinstance(event, ChannelData) and event.channel == channel for event in events))
        self.assertEqual(b"".join(event.data for event in events if isinstance(event, ChannelData)), data)

    @given(st.integers(0, 9), st.binary(max_size=60), CUTS)
    @settings(max_examples=100, deadline=None)
    def test_base64(self, channel: int, data: bytes, cuts: list[int]) -> None:
        """The first character is the channel, the rest base64, however the message is cut."""
        message = str(channel).encode() + base64.b64encode(data)
        events = received(Channels(BASE64), message, cuts)
        self.assertTrue(all(isinstance(event, ChannelData) and event.channel == channel for event in events))
        self.assertEqual(b"".join(event.data for event in events if isinstance(event, ChannelData)), data)

    def test_bad_base64(self) -> None:
        """Bad base64 is dropped, and the next message is read."""
        channels = Channels(BASE64)
        self.assertEqual(received(channels, b"0!!!!", []), [])
        self.assertEqual(received(channels, b"0abc", []), [])
        self.assertEqual(received(channels, b"0" + base64.b64encode(b"ok"), []), [ChannelData(0, b"ok")])

    @given(CUTS)
    @settings(max_examples=30, deadline=None)
    def test_close(self, cuts: list[int]) -> None:
        """In v5 channel 255 ends the channel it names, once."""
        self.assertEqual(received(Channels(V5), b"\xff\x00", cuts), [ChannelClosed(0)])
        events = received(Channels(V5), b"\xff\x00more", cuts)
        self.assertEqual([event for event in events if isinstance(event, ChannelClosed)], [ChannelClosed(0)])

    def test_empty(self) -> None:
        """Empty messages say nothing."""
        for protocol in PROTOCOLS.values():
            for message in (b"", b"\x00"):
                self.assertEqual(received(Channels(protocol), message, []), [])

    @given(st.sampled_from(list(PROTOCOLS)), st.lists(st.tuples(st.binary(max_size=20), CUTS), max_size=5))
    @settings(max_examples=150, deadline=None)
    def test_garbage(self, name: str, wanted: list[tuple[bytes, list[int]]]) -> None:
        """Any messages are channel events."""
        channels = Channels(PROTOCOLS[name])
        for message, cuts in wanted:
            for event in received(channels, message, cuts):
                self.assertIsInstance(event, Event)


class SendTests(SynchronousTestCase):
    """Channels to messages."""

    def test_binary(self) -> None:
        """Data is framed without a copy."""
        data = b"data"
        pieces = Channels(BINARY).message(1, data)
        self.assertIs(pieces[1], data)
        client = WebSocketClient()
        client.receive(b"".join(pieces))
        self.assertEqual((client.messages, client.text), ([b"\x01data"], [False]))

    def test_base64(self) -> None:
        """base64 goes out as text."""
        client = WebSocketClient()
        client.receive(b"".join(Channels(BASE64).message(3, b"data")))
        self.assertEqual((client.messages, client.text), ([b"3ZGF0YQ=="], [True]))
