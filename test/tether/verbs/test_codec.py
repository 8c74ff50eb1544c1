"""Tests for ``tether.verbs.codec``."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tether.errors import LocalMisuse, RemoteViolation, ResetCode
from tether.schema import tether_pb2 as schema
from tether.verbs.codec import (
    TEXT_LIMIT,
    decode_facts,
    decode_request,
    decode_result,
    decode_settings,
    decode_size,
    encode_facts,
    encode_request,
    encode_result,
    encode_settings,
    encode_size,
)
from tether.verbs.requests import (
    AskFacts,
    Attach,
    DeviceFacts,
    Exec,
    Exited,
    Failed,
    Forward,
    ForwardRule,
    Issued,
    Killed,
    Logs,
    Renew,
    Request,
    Result,
    Settings,
    Size,
    Succeeded,
)

UINT64 = st.integers(0, (1 << 64) - 1)
INT64 = st.integers(-(1 << 63), (1 << 63) - 1)
PORT = st.integers(1, 65535)
SIZE = st.builds(Size, st.integers(0, 65535), st.integers(0, 65535))
SHORT = st.text(max_size=20)
FACTS = st.builds(
    DeviceFacts,
    os=SHORT,
    arch=SHORT,
    kernel=SHORT,
    os_image=SHORT,
    hostname=SHORT,
    machine_id=SHORT,
    boot_id=SHORT,
    cpus=st.integers(0, 1024),
    memory_bytes=UINT64,
    storage_bytes=UINT64,
    allow=st.frozensets(SHORT, max_size=3),
    forward=st.lists(
        st.builds(
            lambda host, ports: ForwardRule(host, min(ports), max(ports)), SHORT, st.tuples(PORT, PORT)
        ),
        max_size=3,
    ).map(tuple),
    labels=st.dictionaries(SHORT, SHORT, max_size=3),
    clock_unix_nanos=INT64,
    agents=st.frozensets(st.binary(min_size=16, max_size=16), max_size=3),
)
FLAGS = {name: st.booleans() for name in ("stdin", "stdout", "stderr", "tty")}
REQUESTS = st.one_of(
    st.builds(Exec, st.lists(st.binary(max_size=20)).map(tuple), size=st.none() | SIZE, **FLAGS),
    st.builds(Attach, size=st.none() | SIZE, **FLAGS),
    st.builds(
        Logs,
        file=SHORT,
        follow=st.booleans(),
        previous=st.booleans(),
        timestamps=st.booleans(),
        tail_lines=st.none() | UINT64,
        since_unix_nanos=st.none() | INT64,
        since_seconds=st.none() | UINT64,
        limit_bytes=st.none() | UINT64,
    ),
    st.builds(Logs, unit=SHORT),
    st.builds(Forward, PORT, SHORT),
    st.builds(Renew, st.binary(max_size=100)),
    st.just(AskFacts()),
)
RESULTS = st.one_of(
    st.builds(Exited, st.integers(0, 255)),
    st.builds(Killed, st.integers(1, 64)),
    st.builds(Failed, st.sampled_from(ResetCode), st.text(max_size=100)),
    st.just(Succeeded()),
    st.builds(Issued, st.binary(max_size=1000)),
    FACTS,
)


class ThereAndBackTests(SynchronousTestCase):
    """What one side says is what the other hears."""

    @settings(max_examples=200, deadline=None)
    @given(REQUESTS)
    def test_requests(self, request: Request) -> None:
        """Every request comes out as it went in; what is empty and what is absent stay apart."""
        self.assertEqual(decode_request(encode_request(request)), request)

    @settings(max_examples=100, deadline=None)
    @given(RESULTS)
    def test_results(self, result: Result) -> None:
        """Every answer comes out as it went in, and is never empty, for an empty record cannot travel."""
        encoded = encode_result(result)
        self.assertEqual(decode_result(encoded), result)
        self.assertTrue(encoded)

    @settings(max_examples=50, deadline=None)
    @given(FACTS)
    def test_facts(self, facts: DeviceFacts) -> None:
        """A device's facts come out as they went in."""
        self.assertEqual(decode_facts(encode_facts(facts)), facts)

    def test_settings(self) -> None:
        """Settings come out as they went in."""
        said = Settings("edge", "dev-1", 30, ("wss://one", "wss://two:8443"), b"PEM")
        self.assertEqual(decode_settings(encode_settings(said)), said)

    def test_size(self) -> None:
        """Sizes come out as they went in; even 0x0 has bytes to travel."""
        for size in (Size(80, 24), Size(0, 0), Size(0, 7), Size(65535, 1)):
            self.assertTrue(encode_size(size))
            self.assertEqual(decode_size(encode_size(size)), size)
        self.assertEqual(decode_size(encode_size(Size(70_000, -1))), Size(65535, 0))


class GarbageTests(SynchronousTestCase):
    """What a peer may not say."""

    DECODERS: tuple[Callable[[bytes], object], ...] = (
        decode_request,
        decode_result,
        decode_facts,
        decode_settings,
        decode_size,
    )

    @settings(max_examples=200, deadline=None)
    @given(st.binary(max_size=100))
    def test_any_bytes(self, encoded: bytes) -> None:
        """Any bytes are a value or a violation."""
        for decoder in self.DECODERS:
            try:
                decoder(encoded)
            except RemoteViolation:
                pass

    def test_too_long(self) -> None:
        """Whatever is longer than its cap is a violation before it is parsed."""
        for decoder in self.DECODERS:
            with self.assertRaises(RemoteViolation):
                decoder(b"\x00" * (2 * 1024 * 1024))

    def test_bad_values(self) -> None:
        """Values that make no sense are named."""
        for decoder, message, reason in (
            (decode_request, schema.Request(forward=schema.Forward(port=0)), "port is 0"),
            (decode_request, schema.Request(forward=schema.Forward(port=65536)), "port is 65536"),
            (decode_request, schema.Request(logs=schema.Logs(file="x" * 4097)), "file has 4097 characters"),
            (decode_request, schema.Request(exec=schema.Exec(argv=[b""] * 16385)), "argv has 16385 words"),
            (decode_request, schema.Request(renew=schema.Renew(csr=b"x" * 131073)), "csr has 131073 bytes"),
            (decode_size, schema.Size(width=65536), "width is 65536"),
            (decode_result, schema.Result(signal=0), "signal is 0"),
            (decode_result, schema.Result(), "without an outcome"),
            (decode_facts, schema.DeviceFacts(allow=[""] * 1025), "allow has 1025 entries"),
            (
                decode_facts,
                schema.DeviceFacts(forward=[schema.ForwardRule(low=9, high=8)]),
                "forward.high is 8",
            ),
            (decode_settings, schema.Settings(keepalive_seconds=3601), "keepalive_seconds is 3601"),
        ):
            with self.assertRaises(RemoteViolation) as caught:
                decoder(message.SerializeToString())
            self.assertIn(reason, str(caught.exception))

    def test_unknown_verb(self) -> None:
        """A verb of a newer peer is told apart from garbage."""
        self.assertIsNone(decode_request(b"\xfa\x07\x01x"))

    def test_long_message(self) -> None:
        """A failure's message that is too long is cut rather than refused."""
        result = decode_result(encode_result(Failed(ResetCode.INTERNAL, "x" * 9999)))
        assert isinstance(result, Failed)
        self.assertEqual(len(result.message), TEXT_LIMIT)

    def test_misuse(self) -> None:
        """A request or an answer that cannot travel is a bug of this side."""
        with self.assertRaises(LocalMisuse):
            encode_request(Exec((b"x" * 1024 * 1024,)))
        with self.assertRaises(LocalMisuse):
            encode_result(Issued(b"x" * 32 * 1024))
