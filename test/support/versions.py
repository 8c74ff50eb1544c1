"""What peers of other versions say: more than this version knows, or less than it says itself.

No second schema is kept for that. A newer peer's bytes are rewritten by the descriptors of this
version's, so whatever message and field there is, or will be, is covered.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from google.protobuf.descriptor import Descriptor, FieldDescriptor

from tether.link.link import RESUME, TAKEOVER
from tether.schema import tether_pb2 as schema

#: A lane that only a newer version has.
NEWER_LANE = 77
#: The number of whatever enum value only a newer version has.
NEWER_VALUE = 77

#: One message to those that are sent in its place.
Rewrite = Callable[[bytes], list[bytes]]

_VARINT, _FIXED64, _BYTES, _GROUP, _GROUP_END, _FIXED32 = range(6)
#: Of more frames than this none are put between: a message has a limit of them.
_FEW = 100


# ---- newer: fields, values, frames -----------------------------------------------


def embellished(encoded: bytes, kind: Descriptor) -> bytes:
    """The same message with unknown fields before, between and behind its own, and so in all within it."""
    unknown = unknown_fields(kind)
    parts = [unknown]
    for number, wire_type, content in _fields(encoded):
        if (inner := _inner(kind, number)) is not None:
            content = embellished(content, inner)
        parts += [_field(number, wire_type, content), unknown]
    return b"".join(parts)


def with_newer_values(encoded: bytes, kind: Descriptor) -> bytes:
    """The same message with an unknown value in every enum that says something."""
    parts = []
    for number, wire_type, content in _fields(encoded):
        if (inner := _inner(kind, number)) is not None:
            content = with_newer_values(content, inner)
        elif kind.fields_by_number[number].type == FieldDescriptor.TYPE_ENUM:
            assert NEWER_VALUE not in kind.fields_by_number[number].enum_type.values_by_number
            content = _varint(NEWER_VALUE)
        parts.append(_field(number, wire_type, content))
    return b"".join(parts)


def unknown_fields(kind: Descriptor) -> bytes:
    """One field of each wire type, under the numbers that the next version would take."""
    taken = max(kind.fields_by_number, default=0)
    return b"".join(
        (
            _field(taken + 1, _VARINT, _varint((1 << 64) - 1)),
            _field(taken + 2, _FIXED64, b"\xff" * 8),
            _field(taken + 3, _BYTES, b"\xff not a message, not even text"),
            _field(taken + 4, _BYTES, b""),
            _field(taken + 5, _GROUP, _field(1, _BYTES, b"within") + _key(taken + 5, _GROUP_END)),
            _field(taken + 6, _FIXED32, b"\xff" * 4),
        )
    )


def unknown_frames() -> bytes:
    """Frames of kinds that are not known, of no kind, and one of a known kind that says an unknown thing."""
    frame, duty = schema.Frame.DESCRIPTOR, schema.Frame.DESCRIPTOR.fields_by_name["duty"]
    kinds = (
        unknown_fields(frame),
        _field(max(frame.fields_by_number) + 1, _BYTES, _field(1, _VARINT, b"\x02")),
        b"",
        _field(duty.number, _BYTES, _field(1, _VARINT, _varint(NEWER_VALUE))),
    )
    return b"".join(_field(1, _BYTES, kind) for kind in kinds)


def newer(message: bytes) -> list[bytes]:
    """What a newer peer says instead, of a message of ``tether.v1``.

    There is more in everything, unknown frames stand between the known ones, and a message of
    nothing else follows. Hello stays the first frame of all: that is the law for every version.
    """
    unknown = unknown_frames()
    parts = [unknown] if not begins_with_hello(message) else []
    frames = list(_fields(message))
    between = unknown if len(frames) <= _FEW else b""
    for number, wire_type, content in frames:
        parts += [_field(number, wire_type, embellished(content, schema.Frame.DESCRIPTOR)), between]
    return [b"".join(parts) + unknown + unknown_fields(schema.Message.DESCRIPTOR), unknown]


def begins_with_hello(message: bytes) -> bool:
    """Whether the first frame is a Hello."""
    frames = schema.Message.FromString(message).frames
    return len(frames) > 0 and frames[0].HasField("hello")


# ---- older -------------------------------------------------------------------------


def older(knows: frozenset[str]) -> Rewrite:
    """What a peer says that knows only these capabilities: nothing that came with the others."""

    def rewrite(message: bytes) -> list[bytes]:
        parsed = schema.Message.FromString(message)
        for frame in parsed.frames:
            assert TAKEOVER in knows or not frame.HasField("duty"), "what it does not know it does not say"
            if frame.HasField("hello"):
                _forget(frame.hello, knows)
        return [parsed.SerializeToString()]

    return rewrite


def _forget(hello: schema.Hello, knows: frozenset[str]) -> None:
    hello.ClearField("number")
    if TAKEOVER not in knows:
        hello.ClearField("started")
        hello.ClearField("companions")
        hello.ClearField("draining")
    if RESUME not in knows:
        if hello.HasField("settings"):
            hello.settings.ClearField("grace_seconds")
        hello.ClearField("epoch")
        hello.ClearField("peer_epoch")
        assert not hello.streams, "it has ended them all"


# ---- bytes -------------------------------------------------------------------------


def _inner(kind: Descriptor, number: int) -> Descriptor | None:
    """Which message a field holds; an entry of a map is none, for it has the same two fields for ever."""
    field = kind.fields_by_number.get(number)
    inner = None if field is None else field.message_type
    return None if inner is None or inner.GetOptions().map_entry else inner


def _fields(encoded: bytes) -> Iterator[tuple[int, int, bytes]]:
    """The fields of a message as they stand: number, wire type, content."""
    position = 0
    while position < len(encoded):
        key, position = _read_varint(encoded, position)
        number, wire_type = key >> 3, key & 7
        end = position
        if wire_type == _VARINT:
            _, end = _read_varint(encoded, position)
        elif wire_type == _BYTES:
            length, position = _read_varint(encoded, position)
            end = position + length
        else:
            end = position + {_FIXED64: 8, _FIXED32: 4}[wire_type]
        yield number, wire_type, encoded[position:end]
        position = end


def _field(number: int, wire_type: int, content: bytes) -> bytes:
    length = _varint(len(content)) if wire_type == _BYTES else b""
    return _key(number, wire_type) + length + content


def _key(number: int, wire_type: int) -> bytes:
    return _varint(number << 3 | wire_type)


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*encoded, value))


def _read_varint(encoded: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = encoded[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte <= 0x7F:
            return value, position
        shift += 7
