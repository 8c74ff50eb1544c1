"""How a device joins: the token, one opaque word, and the two messages of ``join.v1``.

A token is typed or pasted by people, so reading it forgives white space and
quotes, and says in one line what is wrong with it. Inside is deflated JSON in
base64url: its checksum catches a word that was cut off. Whoever holds the token can
become the device once, so neither the token nor its secret is ever shown in a
``repr``, a log or an error.
"""

from __future__ import annotations

import base64
import json
import zlib
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from google.protobuf.message import DecodeError

from tether.errors import RemoteViolation
from tether.schema import tether_pb2 as schema

#: The most bytes a join message may have.
JOIN_MESSAGE_LIMIT = 64 * 1024
#: In the place of a CA bundle: trust what the operating system trusts.
SYSTEM_TRUST = b"system"

_WORD_LIMIT = 128 * 1024
_JSON_LIMIT = 256 * 1024
_TOKEN_VERSION = 1


class TokenUnreadable(ValueError):
    """A word is not a join token, and why in one line."""


@dataclass(frozen=True, slots=True)
class Token:
    """What a device needs to join: where, as whom, with which secret, and whom to trust."""

    urls: tuple[str, ...]
    namespace: str
    name: str
    secret: bytes = field(repr=False)
    ca_bundle: bytes = field(repr=False)

    def encode(self) -> str:
        """The one word that ``--join`` takes."""
        content = {
            "v": _TOKEN_VERSION,
            "urls": self.urls,
            "ns": self.namespace,
            "name": self.name,
            "secret": base64.b64encode(self.secret).decode("ascii"),
            "ca": self.ca_bundle.decode("ascii"),
        }
        packed = zlib.compress(json.dumps(content, separators=(",", ":")).encode("utf-8"), 9)
        return base64.urlsafe_b64encode(packed).rstrip(b"=").decode("ascii")

    @classmethod
    def decode(cls, word: str) -> Token:
        """Read the word; raises ``TokenUnreadable``."""
        content = _content(word)
        if content.get("v") != _TOKEN_VERSION:
            raise TokenUnreadable("the join token is of a newer aranya; update arhat first")
        urls, namespace, name = content.get("urls"), content.get("ns"), content.get("name")
        secret, bundle = content.get("secret"), content.get("ca")
        if (
            not isinstance(urls, list)
            or not urls
            or not all(isinstance(url, str) and valid_url(url) for url in urls)
            or not (isinstance(namespace, str) and namespace)
            or not (isinstance(name, str) and name)
            or not isinstance(secret, str)
            or not isinstance(bundle, str)
        ):
            raise TokenUnreadable("the join token lacks what a device needs to join; make a new one")
        try:
            raw = base64.b64decode(secret, validate=True)
            trusted = bundle.encode("ascii")
        except ValueError:
            raise TokenUnreadable("the join token is damaged; make a new one") from None
        return cls(tuple(urls), namespace, name, raw, trusted)


def valid_url(url: str) -> bool:
    """Whether a device can dial this: ``wss://HOST[:PORT][/PATH]``."""
    try:
        parts = urlsplit(url)
        return parts.scheme == "wss" and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def _content(word: str) -> dict[str, Any]:
    bare = "".join(word.split()).strip("'\"")
    if not bare:
        raise TokenUnreadable("the join token is empty")
    if len(bare) > _WORD_LIMIT:
        raise TokenUnreadable("this is not a join token: it is too long")
    try:
        packed = base64.b64decode(bare + "=" * (-len(bare) % 4), altchars=b"-_", validate=True)
        unpacker = zlib.decompressobj()
        text = unpacker.decompress(packed, _JSON_LIMIT)
    except (ValueError, zlib.error):
        raise TokenUnreadable("this is not a join token, or it was damaged in copying") from None
    if not unpacker.eof:
        raise TokenUnreadable("the join token was cut off in copying")
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        raise TokenUnreadable("this is not a join token, or it was damaged in copying") from None
    if not isinstance(content, dict):
        raise TokenUnreadable("this is not a join token")
    return content


# ---- the two messages ---------------------------------------------------------


@dataclass(frozen=True, slots=True)
class JoinRequest:
    """Device to controller: I am this one, here is the secret; sign this key."""

    namespace: str
    name: str
    secret: bytes = field(repr=False)
    csr: bytes = field(repr=False)
    software: str = ""


@dataclass(frozen=True, slots=True)
class Joined:
    """Controller to device: your certificate (PEM chain), whom to trust, where to dial."""

    certificate: bytes
    ca_bundle: bytes = field(repr=False)
    urls: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class JoinRefused:
    """Controller to device: no, and why in one line."""

    reason: str


JoinAnswer = Joined | JoinRefused


def pack_request(request: JoinRequest) -> bytes:
    """The request as one binary message."""
    return schema.JoinRequest(
        namespace=request.namespace,
        name=request.name,
        secret=request.secret,
        csr=request.csr,
        software=request.software,
    ).SerializeToString()


def unpack_request(message: bytes) -> JoinRequest:
    """Read a request; raises ``RemoteViolation``."""
    parsed = schema.JoinRequest()
    _parse(parsed, message)
    return JoinRequest(parsed.namespace, parsed.name, parsed.secret, parsed.csr, parsed.software)


def pack_answer(answer: JoinAnswer) -> bytes:
    """The answer as one binary message."""
    if isinstance(answer, JoinRefused):
        return schema.JoinAnswer(refused=answer.reason).SerializeToString()
    joined = schema.Joined(certificate=answer.certificate, ca_bundle=answer.ca_bundle, urls=list(answer.urls))
    return schema.JoinAnswer(joined=joined).SerializeToString()


def unpack_answer(message: bytes) -> JoinAnswer:
    """Read an answer; raises ``RemoteViolation``."""
    parsed = schema.JoinAnswer()
    _parse(parsed, message)
    outcome = parsed.WhichOneof("outcome")
    if outcome == "refused":
        return JoinRefused(printable(parsed.refused))
    if outcome == "joined":
        joined = parsed.joined
        urls = tuple(url for url in joined.urls if valid_url(url))
        return Joined(joined.certificate, joined.ca_bundle, urls)
    raise RemoteViolation("the answer to a join says nothing that is known here")


def printable(text: str, limit: int = 300) -> str:
    """A peer's words made fit for a log or a terminal: printable, one line, not long."""
    kept = "".join(character if character.isprintable() else " " for character in text[: limit * 2])
    return " ".join(kept.split())[:limit]


def _parse(into: Any, message: bytes) -> None:
    if len(message) > JOIN_MESSAGE_LIMIT:
        raise RemoteViolation("a join message is too long")
    try:
        into.ParseFromString(message)
    except DecodeError:
        raise RemoteViolation("a join message cannot be read") from None
