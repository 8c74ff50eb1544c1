"""port-forward: each connection a client forwards, as a ``ForwardStream``.

Over SPDY one connection carries any number of forwarded ones, each a pair of
streams (``error`` and ``data``) opened one after the other. Over WebSocket each
port of the query is one forwarded connection. The WebSocket tunnel carries the
SPDY form inside binary messages.

There is no flow control per forwarded connection in any of these languages. One
that does not take its data may leave a megabyte here; only then the whole
connection stops reading, and the others with it, until it takes or ends.

An error text makes kubectl end its whole session, so only a caller that could
not reach the target should give one to ``end``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from twisted.internet.interfaces import IReactorTime
from twisted.web.http import Request

from aranya.interfaces import ForwardAcceptor
from aranya.streaming.forwarded_spdy import SpdyForwarding
from aranya.streaming.forwarded_websocket import WebSocketForwarding
from aranya.streaming.negotiate import (
    PORT_FORWARD,
    TUNNEL_PROTOCOL,
    Refusal,
    Spdy,
    WebSocket,
    negotiate,
)
from aranya.streaming.remotecommand import upgrade_request
from aranya.streaming.sessions import Session
from aranya.streaming.tunnel import Tunnel
from aranya.streaming.upgrade import refuse, take_over
from aranya.streaming.websocket.channels import PROTOCOLS

#: A channel is one byte, and a port takes two of them.
_MAX_PORTS: Final = 100


def forward_streams(
    request: Request, asked: Sequence[str], clock: IReactorTime, acceptor: ForwardAcceptor
) -> Session | None:
    """Answer a port-forward request: refuse it (``None``), or take its connection over.

    ``asked`` are the values of the query's ``port``; they matter over WebSocket only.
    """
    answer = negotiate(upgrade_request(request), PORT_FORWARD)
    ports: list[int] = []
    if isinstance(answer, WebSocket) and answer.protocol != TUNNEL_PROTOCOL:
        found = read_ports(asked)
        if isinstance(found, Refusal):
            answer = found
        else:
            ports = found
    match answer:
        case Refusal(code, text, headers):
            refuse(request, code, text, [(name.encode(), value.encode()) for name, value in headers])
            return None
        case Spdy():
            on_spdy = SpdyForwarding(clock, acceptor)
            return on_spdy if take_over(request, answer.head(), on_spdy.wire) else None
        case WebSocket(name) if name == TUNNEL_PROTOCOL:
            tunnelled = SpdyForwarding(clock, acceptor)
            tunnel = Tunnel(clock, tunnelled.wire)
            return tunnelled if take_over(request, answer.head(), tunnel.wire) else None
        case WebSocket(name):
            on_websocket = WebSocketForwarding(clock, acceptor, PROTOCOLS[name], ports)
            return on_websocket if take_over(request, answer.head(), on_websocket.wire) else None


def read_ports(values: Sequence[str]) -> list[int] | Refusal:
    """The ports of a query, each value a number or a comma list."""
    ports: list[int] = []
    words = [word for value in values for word in value.split(",")]
    if not any(words):
        return Refusal(400, 'query parameter "port" is required')
    for word in words:
        if not (word.isascii() and word.isdigit()):
            return _bad_port(word, "invalid syntax")
        if len(word) > 5 or int(word) > 0xFFFF:
            return _bad_port(word, "value out of range")
        if int(word) == 0:
            return Refusal(400, f'port "{word}" must be > 0')
        ports.append(int(word))
    if len(ports) > _MAX_PORTS:
        return Refusal(400, f"too many ports: at most {_MAX_PORTS} can be forwarded at once")
    return ports


def _bad_port(word: str, why: str) -> Refusal:
    shown = "".join(character for character in word[:64] if character.isprintable())
    return Refusal(400, f'unable to parse "{shown}" as a port: strconv.ParseUint: parsing "{shown}": {why}')
