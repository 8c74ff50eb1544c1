"""Tests for ``tether.wire.frames``."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tether.errors import Reason, RemoteViolation, ResetCode
from tether.schema import tether_pb2 as schema
from tether.verbs.codec import encode_facts, encode_request, encode_settings
from tether.verbs.requests import DeviceFacts, Exec, Settings
from tether.wire.frames import (
    FRAMES_LIMIT,
    MESSAGE_LIMIT,
    PAYLOAD_LIMIT,
    TEXT_LIMIT,
    WINDOW_LIMIT,
    Credit,
    Data,
    Duty,
    Finish,
    Frame,
    Goodbye,
    Hello,
    OnDuty,
    Open,
    Ping,
    Pong,
    Reset,
    StreamState,
    decode,
    encode,
)

IDS = st.integers(0, (1 << 64) - 1)
OFFSETS = st.integers(0, 1 << 62)
LINES = st.text(max_size=9).filter(str.isprintable)
ANY = st.one_of(
    st.builds(
        Hello,
        software=st.text(max_size=20),
        capabilities=st.frozensets(st.text(max_size=9), max_size=4),
        instance=st.binary(min_size=16, max_size=16),
        host_boot_id=st.text(max_size=9),
        facts=st.sampled_from((None, encode_facts(DeviceFacts(os="linux", labels={"a": "b"})))),
        settings=st.sampled_from((None, encode_settings(Settings("ns", "dev")))),
        window=st.integers(0, WINDOW_LIMIT),
        streams=st.lists(st.builds(StreamState, IDS, OFFSETS, OFFSETS), max_size=3).map(tuple),
        epoch=IDS,
        peer_instance=st.sampled_from((b"", b"p" * 16)),
        peer_epoch=IDS,
        started=IDS,
        companions=st.frozensets(st.binary(min_size=16, max_size=16), max_size=3),
        number=IDS,
        draining=st.booleans(),
    ),
    st.builds(
        Open, IDS, st.integers(0, WINDOW_LIMIT), st.sampled_from((b"", encode_request(Exec((b"a", b"\xff")))))
    ),
    st.builds(Data, IDS, OFFSETS, st.integers(0, 9), st.binary(min_size=1, max_size=50)),
    st.builds(Credit, IDS, OFFSETS, OFFSETS),
    st.builds(Finish, IDS, OFFSETS),
    st.builds(Reset, IDS, OFFSETS, st.builds(Reason, st.sampled_from(ResetCode), LINES)),
    st.builds(Ping, IDS),
    st.builds(Pong, IDS),
    st.builds(Goodbye, LINES, st.booleans()),
    st.builds(OnDuty, st.sampled_from(Duty)),
)


def encode_large(size: int) -> bytes:
    """A message with one field of ``size`` bytes that nobody knows."""
    length = bytes([size & 0x7F | 0x80, size >> 7 & 0x7F | 0x80, size >> 14])
    return b"\xfa\x07" + length + b"x" * size


class FramesTests(SynchronousTestCase):
    """Frames as bytes, and back."""

    @settings(max_examples=200, deadline=None)
    @given(st.lists(ANY, max_size=5))
    def test_there_and_back(self, said: list[Frame]) -> None:
        """Every frame comes out as it went in."""
        self.assertEqual(decode(encode(said)), said)

    @settings(max_examples=200, deadline=None)
    @given(st.binary(max_size=100))
    def test_garbage(self, message: bytes) -> None:
        """Any bytes are frames or a violation."""
        try:
            decode(message)
        except RemoteViolation:
            pass

    def test_newer_kinds(self) -> None:
        """Frames and fields of a newer peer are left out."""
        message = encode([Ping(1)]) + b"\x0a\x04\xfa\x07\x01x" + encode([Ping(2)]) + b"\xf8\x07\x01"
        self.assertEqual(decode(message), [Ping(1), Ping(2)])

    def test_unknown_code(self) -> None:
        """A reset code of a newer peer is unspecified."""
        message = schema.Message()
        message.frames.add().reset.code = 77  # type: ignore[assignment]  # an enum is an int on the wire
        self.assertEqual(
            decode(message.SerializeToString()), [Reset(0, 0, Reason(ResetCode.UNSPECIFIED, ""))]
        )

    def test_duties(self) -> None:
        """Duties have the numbers of the schema; one of a newer peer, or none, is no word of duty."""
        names = {f"DUTY_{duty.name}": int(duty) for duty in Duty}
        self.assertEqual(names | {"DUTY_UNSPECIFIED": 0}, dict(schema.DutyKind.items()))
        message = schema.Message()
        for kind in (77, 0, 2):
            frame = message.frames.add()
            frame.duty.SetInParent()
            frame.duty.kind = kind  # type: ignore[assignment]  # an enum is an int on the wire
        self.assertEqual(decode(message.SerializeToString()), [OnDuty(Duty.STANDBY)])

    def test_older_hello(self) -> None:
        """A peer that knows nothing of ages, companions, numbers and draining has none."""
        message = schema.Message()
        message.frames.add().hello.protocol = 1
        message.frames[0].hello.instance = b"i" * 16
        [hello] = decode(message.SerializeToString())
        assert isinstance(hello, Hello)
        self.assertEqual((hello.started, hello.companions, hello.number), (0, frozenset(), 0))
        self.assertFalse(hello.draining)

    def test_caps(self) -> None:
        """Whatever is too long, too many or of another protocol is a violation with its reason."""
        hello = Hello(instance=b"i" * 16)
        for message, reason in (
            (b"\x00" * (MESSAGE_LIMIT + 1), "a message of"),
            (encode([Ping(0)] * (FRAMES_LIMIT + 1)), "frames, more than"),
            (encode([Data(1, 0, 0, b"x" * (PAYLOAD_LIMIT + 1))]), "a data frame of"),
            (encode([Data(1, 0, 0, b"")]), "a data frame of 0"),
            (encode([Hello(instance=b"i" * 16, protocol=9)]), "speaks protocol 9"),
            (encode([Hello(instance=b"i" * 16, peer_instance=b"x")]), "a peer instance of"),
            (
                encode([Hello(instance=b"i" * 16, capabilities=frozenset(map(str, range(65))))]),
                "capabilities",
            ),
            (
                encode([Hello(instance=b"i" * 16, streams=(StreamState(1, 1, 1),) * 8193)]),
                "streams held, more than",
            ),
            (
                encode([Hello(instance=b"i" * 16, companions=frozenset(bytes([n]) * 16 for n in range(65)))]),
                "65 companions, more than 64",
            ),
            (
                encode([Hello(instance=b"i" * 16, companions=frozenset((b"short",)))]),
                "a companion of 5 bytes",
            ),
            (encode([Open(1, 1, encode_large(1024 * 1024 + 1))]), "a request of"),
            (encode([Hello(instance=b"i" * 16, facts=encode_large(300_000))]), "an introduction is longer"),
            (b"\xff", "does not parse"),
        ):
            with self.assertRaises(RemoteViolation) as caught:
                decode(message)
            self.assertIn(reason, str(caught.exception))
        self.assertEqual(decode(encode([hello])), [hello])

    def test_words_for_a_terminal(self) -> None:
        """A peer's reasons end in logs and terminals: whatever moves the cursor is blanked."""
        reason = Reason(ResetCode.CANCELLED, "gone\x1b[2J\nroot: all is well")
        goodbye, reset = decode(encode([Goodbye(reason.text, True), Reset(2, 0, reason)]))
        assert isinstance(goodbye, Goodbye) and isinstance(reset, Reset)
        self.assertEqual(goodbye.reason, "gone [2J root: all is well")
        self.assertEqual(reset.reason.text, goodbye.reason)

    def test_long_text(self) -> None:
        """A reason that is too long is cut on the way out, refused on the way in."""
        [frame] = decode(encode([Goodbye("x" * 5000, True)]))
        assert isinstance(frame, Goodbye)
        self.assertEqual(len(frame.reason), TEXT_LIMIT)
        message = schema.Message()
        message.frames.add().goodbye.reason = "x" * 5000
        with self.assertRaises(RemoteViolation):
            decode(message.SerializeToString())
