"""Which language an upgrade request wants to speak, or why it is refused. Pure.

The codes and texts are those of the real kubelet: clients fall back from
WebSocket to SPDY on a prompt refusal, and print the texts to people.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from aranya.streaming.websocket.frames import accept_key

VERSION_HEADER: Final = "X-Stream-Protocol-Version"
FORWARD_PROTOCOL: Final = "portforward.k8s.io"
TUNNEL_PROTOCOL: Final = "SPDY/3.1+portforward.k8s.io"

_REMOTE_VERSIONS: Final = (
    "v4.channel.k8s.io",
    "v3.channel.k8s.io",
    "v2.channel.k8s.io",
    "channel.k8s.io",
)


@dataclass(frozen=True, slots=True)
class Accepts:
    """What one kind of endpoint speaks."""

    spdy: tuple[str, ...]
    #: Taken only if the client offers none of ``spdy``, as the real kubelet does not know them.
    spdy_also: tuple[str, ...]
    websocket: tuple[str, ...]


REMOTE_COMMAND: Final = Accepts(
    spdy=_REMOTE_VERSIONS,
    spdy_also=("v5.channel.k8s.io",),
    websocket=(
        "channel.k8s.io",
        "base64.channel.k8s.io",
        "v4.channel.k8s.io",
        "v4.base64.channel.k8s.io",
    ),
)

#: For an endpoint whose Node declares ``ExtendWebSocketsToKubelet``, which obliges it to v5. No other
#: should offer it: kubectl 1.29 to 1.33 drops output that arrives before it has set up its streams
#: (kubernetes#131203), and over SPDY, to which it falls back, a dead controller is never a success.
REMOTE_COMMAND_V5: Final = replace(REMOTE_COMMAND, websocket=(*REMOTE_COMMAND.websocket, "v5.channel.k8s.io"))

PORT_FORWARD: Final = Accepts(
    spdy=(FORWARD_PROTOCOL,),
    spdy_also=(),
    websocket=("v4.channel.k8s.io", "v4.base64.channel.k8s.io", TUNNEL_PROTOCOL),
)


@dataclass(frozen=True, slots=True)
class UpgradeRequest:
    """What matters of a request: its method, and all values of its headers by lower-case name."""

    method: str
    headers: Mapping[str, Sequence[str]]

    def values(self, name: str) -> tuple[str, ...]:
        """All values of a header."""
        return tuple(self.headers.get(name.lower(), ()))

    def words(self, name: str) -> tuple[str, ...]:
        """All values, with comma lists taken apart."""
        return tuple(word.strip() for value in self.values(name) for word in value.split(",") if word.strip())

    def mentions(self, name: str, word: str) -> bool:
        """Whether any value contains the word, in any case."""
        return any(word in value.lower() for value in self.values(name))


@dataclass(frozen=True, slots=True)
class Spdy:
    """Speak SPDY/3.1 with this version of the stream protocol."""

    version: str

    def head(self) -> bytes:
        """The response that accepts it."""
        return _head(("Connection", "Upgrade"), ("Upgrade", "SPDY/3.1"), (VERSION_HEADER, self.version))


@dataclass(frozen=True, slots=True)
class WebSocket:
    """Speak RFC 6455 with this sub-protocol ("" if the client named none)."""

    protocol: str
    key: str

    def head(self) -> bytes:
        """The response that accepts it."""
        headers = [
            ("Upgrade", "websocket"),
            ("Connection", "Upgrade"),
            ("Sec-WebSocket-Accept", accept_key(self.key.encode()).decode()),
        ]
        if self.protocol:
            headers.append(("Sec-WebSocket-Protocol", self.protocol))
        return _head(*headers)


@dataclass(frozen=True, slots=True)
class Refusal:
    """Answer with this instead."""

    code: int
    text: str = ""
    headers: tuple[tuple[str, str], ...] = ()


Answer = Spdy | WebSocket | Refusal


def negotiate(request: UpgradeRequest, accepts: Accepts) -> Answer:
    """Which language to speak."""
    if not request.mentions("Connection", "upgrade"):
        return Refusal(500, "Upgrade request required")
    if is_websocket(request):
        return _websocket(request, accepts)
    return _spdy(request, accepts)


def is_websocket(request: UpgradeRequest) -> bool:
    """Whether it asks for WebSocket."""
    return request.mentions("Connection", "upgrade") and any(
        value.strip().lower() == "websocket" for value in request.values("Upgrade")
    )


def _spdy(request: UpgradeRequest, accepts: Accepts) -> Answer:
    if request.method not in ("GET", "POST"):
        return Refusal(405, "405: Method Not Allowed", (("Allow", "GET, POST"),))
    offered = request.words(VERSION_HEADER)
    if not offered:
        return Refusal(
            400,
            f"unable to upgrade: header {VERSION_HEADER} does not exist in request"
            f" with {len(request.headers)} headers",
        )
    version = _first(offered, accepts.spdy) or _first(offered, accepts.spdy_also)
    if not version:
        return Refusal(
            403,
            "unable to upgrade: unable to negotiate protocol: client supports"
            f" [{' '.join(offered)}], server accepts [{' '.join(accepts.spdy)}]",
            tuple(("X-Accepted-Stream-Protocol-Versions", each) for each in accepts.spdy),
        )
    if not request.mentions("Upgrade", "spdy/3.1"):
        return Refusal(400, "unable to upgrade: missing upgrade headers in request: Upgrade is not SPDY/3.1")
    return Spdy(version)


def _websocket(request: UpgradeRequest, accepts: Accepts) -> Answer:
    if request.method != "GET":
        return Refusal(405, "405: Method Not Allowed", (("Allow", "GET"),))
    if request.words("Sec-WebSocket-Version") != ("13",):
        return Refusal(400, "missing or bad WebSocket Version", (("Sec-WebSocket-Version", "13"),))
    key = next(iter(request.values("Sec-WebSocket-Key")), "").strip()
    if not key:
        return Refusal(400, "missing or bad WebSocket Key")
    offered = request.words("Sec-WebSocket-Protocol")
    if not offered:
        return WebSocket("", key)
    protocol = _first(offered, accepts.websocket)
    if not protocol:
        return Refusal(403)
    return WebSocket(protocol, key)


def _first(offered: Sequence[str], known: Sequence[str]) -> str:
    return next((each for each in offered if each in known), "")


def _head(*headers: tuple[str, str]) -> bytes:
    lines = ["HTTP/1.1 101 Switching Protocols", *(f"{name}: {value}" for name, value in headers)]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()
