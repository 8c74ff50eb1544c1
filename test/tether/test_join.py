"""Tests of ``tether.join``."""

from __future__ import annotations

import base64
import json
import zlib

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tether.errors import RemoteViolation
from tether.join import (
    JOIN_MESSAGE_LIMIT,
    Joined,
    JoinRefused,
    JoinRequest,
    Token,
    TokenUnreadable,
    pack_answer,
    pack_request,
    printable,
    unpack_answer,
    unpack_request,
    valid_url,
)

TOKEN = Token(("wss://gw.example:8443", "wss://[::1]"), "edge", "pump", b"s" * 32, b"PEM\n")
_NAME = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", fullmatch=True)


def word_of(content: object) -> str:
    """A word with this inside."""
    return base64.urlsafe_b64encode(zlib.compress(json.dumps(content).encode())).decode().rstrip("=")


class TokenTests(SynchronousTestCase):
    """One opaque word."""

    @given(_NAME, _NAME, st.binary(min_size=1, max_size=64), st.lists(_NAME, min_size=1, max_size=3))
    @settings(max_examples=40, deadline=None)
    def test_round_trip(self, namespace: str, name: str, secret: bytes, hosts: list[str]) -> None:
        """What goes in comes out."""
        token = Token(tuple(f"wss://{host}:1" for host in hosts), namespace, name, secret, b"ca")
        self.assertEqual(Token.decode(token.encode()), token)

    def test_one_word(self) -> None:
        """It needs no quoting in any shell."""
        self.assertRegex(TOKEN.encode(), r"\A[A-Za-z0-9_-]+\Z")
        self.assertFalse(TOKEN.encode().startswith("-"))

    def test_pasted(self) -> None:
        """Line breaks, blanks and quotes of a careless paste do no harm."""
        word = TOKEN.encode()
        self.assertEqual(Token.decode(f" '{word[:20]}\n{word[20:40]}\r\n {word[40:]}' \n"), TOKEN)

    def test_not_shown(self) -> None:
        """The secret is not in the ``repr`` of a token or a request."""
        self.assertNotIn("sss", repr(TOKEN))
        self.assertNotIn("sss", repr(JoinRequest("edge", "pump", b"s" * 32, b"csr")))

    @given(st.integers(min_value=0, max_value=len(TOKEN.encode()) - 1))
    @settings(max_examples=60, deadline=None)
    def test_cut_off(self, length: int) -> None:
        """A word that was cut off anywhere is refused."""
        self.assertRaises(TokenUnreadable, Token.decode, TOKEN.encode()[:length])

    @given(st.text(max_size=60))
    @settings(max_examples=80, deadline=None)
    def test_garbage(self, word: str) -> None:
        """Whatever else was typed is refused in one line."""
        error = self.assertRaises(TokenUnreadable, Token.decode, word)
        self.assertNotIn("\n", str(error))

    def test_lacking(self) -> None:
        """A token without its parts, or with wrong ones, is refused."""
        good = {"v": 1, "urls": ["wss://h"], "ns": "a", "name": "b", "secret": "YQ==", "ca": "x"}
        self.assertEqual(Token.decode(word_of(good)).name, "b")
        for change in (
            {"urls": []},
            {"urls": ["http://h"]},
            {"urls": "wss://h"},
            {"ns": ""},
            {"name": 3},
            {"secret": "?"},
            {"ca": None},
            {"v": 2},
        ):
            self.assertRaises(TokenUnreadable, Token.decode, word_of({**good, **change}))
        self.assertRaises(TokenUnreadable, Token.decode, word_of([1]))

    def test_a_bomb(self) -> None:
        """A word that unpacks to very much is refused without unpacking it."""
        bomb = base64.urlsafe_b64encode(zlib.compress(b" " * 50_000_000, 9)).decode()
        self.assertRaises(TokenUnreadable, Token.decode, bomb)

    def test_urls(self) -> None:
        """Only ``wss`` with a host is a URL to dial."""
        for good in ("wss://h", "wss://h:1/p", "wss://[::1]:8443"):
            self.assertTrue(valid_url(good), good)
        for bad in ("ws://h", "wss://", "wss://h:99999", "wss://h:0", "h:1", "", "wss://["):
            self.assertFalse(valid_url(bad), bad)


class MessageTests(SynchronousTestCase):
    """The two messages of ``join.v1``."""

    def test_request(self) -> None:
        """A request survives the way."""
        request = JoinRequest("edge", "pump", b"secret", b"csr", "arhat/1")
        self.assertEqual(unpack_request(pack_request(request)), request)

    def test_answers(self) -> None:
        """Both answers survive the way."""
        for answer in (Joined(b"chain", b"ca", ("wss://h",)), JoinRefused("no")):
            self.assertEqual(unpack_answer(pack_answer(answer)), answer)

    def test_hostile_answers(self) -> None:
        """A reason is made printable and short; URLs that cannot be dialled are dropped."""
        told = unpack_answer(pack_answer(JoinRefused("a\x1b[31m\nb" + "c" * 5000)))
        assert isinstance(told, JoinRefused)
        self.assertTrue(told.reason.isprintable())
        self.assertLessEqual(len(told.reason), 300)
        joined = unpack_answer(pack_answer(Joined(b"", b"", ("file:///x", "wss://h"))))
        assert isinstance(joined, Joined)
        self.assertEqual(joined.urls, ("wss://h",))

    @given(st.binary(max_size=200))
    @settings(max_examples=80, deadline=None)
    def test_garbage(self, message: bytes) -> None:
        """Garbage is a violation or a message, never another error."""
        for unpack in (unpack_request, unpack_answer):
            try:
                unpack(message)
            except RemoteViolation:
                pass

    def test_too_long(self) -> None:
        """A long message is refused unread."""
        for unpack in (unpack_request, unpack_answer):
            self.assertRaises(RemoteViolation, unpack, b"x" * (JOIN_MESSAGE_LIMIT + 1))

    def test_printable(self) -> None:
        """What people see is one printable line."""
        self.assertEqual(printable("a\n\tb\x00c  d"), "a b c d")
