"""The frames of SPDY/3.1 that a server of Kubernetes writes, as bytes."""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import Final

#: Frame header: a word that tells the kind, then 8 bits of flags and 24 of length.
HEADER: Final = struct.Struct(">II")
HEADER_SIZE: Final = HEADER.size
CONTROL: Final = 0x80000000
FIN: Final = 0x01
UNIDIRECTIONAL: Final = 0x02
#: The 24 bits of a length, the 31 bits of a stream id.
LENGTH_MASK: Final = 0xFFFFFF
STREAM_MASK: Final = 0x7FFFFFFF

_CONTROL_3: Final = 0x80030000


class Kind(IntEnum):
    """The types of control frames."""

    SYN_STREAM = 1
    SYN_REPLY = 2
    RST_STREAM = 3
    SETTINGS = 4
    NOOP = 5
    PING = 6
    GOAWAY = 7
    HEADERS = 8
    WINDOW_UPDATE = 9


class ResetStatus(IntEnum):
    """Why a stream was reset; others of the standard are not used here."""

    PROTOCOL_ERROR = 1
    INVALID_STREAM = 2
    REFUSED_STREAM = 3
    CANCEL = 5


class GoAwayStatus(IntEnum):
    """Why a connection ends."""

    OK = 0
    PROTOCOL_ERROR = 1


def control(kind: Kind, body: bytes, flags: int = 0) -> bytes:
    """Any control frame."""
    return HEADER.pack(_CONTROL_3 | kind, flags << 24 | len(body)) + body


def syn_reply(stream: int, block: bytes) -> bytes:
    """The answer to a SYN_STREAM."""
    return control(Kind.SYN_REPLY, struct.pack(">I", stream) + block)


def rst_stream(stream: int, status: ResetStatus) -> bytes:
    """The end of a stream in both directions."""
    return control(Kind.RST_STREAM, struct.pack(">II", stream, status))


def ping(number: int) -> bytes:
    """A ping, or the echo of one."""
    return control(Kind.PING, struct.pack(">I", number))


def goaway(last_stream: int, status: GoAwayStatus) -> bytes:
    """No more streams; the peer stops reading at once."""
    return control(Kind.GOAWAY, struct.pack(">II", last_stream, status))


def data_header(stream: int, length: int, fin: bool = False) -> bytes:
    """What precedes the payload of a DATA frame."""
    return HEADER.pack(stream, (FIN << 24 if fin else 0) | length)
