"""Frames as frozen values, and their place in the schema.

One binary message carries one or more frames. Here every length gets its cap,
and whatever does not parse is a ``RemoteViolation``; what a frame *means* is the
business of ``mux``. Requests, facts and settings pass through as opaque bytes:
``tether.verbs`` knows them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from hashlib import sha256

from google.protobuf.message import DecodeError

from tether.errors import Reason, RemoteViolation, ResetCode
from tether.schema import tether_pb2 as schema

PROTOCOL = 1

#: The most bytes of one message, and of the request in an ``Open``.
MESSAGE_LIMIT = 1280 * 1024
REQUEST_LIMIT = 1024 * 1024
#: The most bytes of one ``Data``.
PAYLOAD_LIMIT = 64 * 1024
#: The most frames of one message.
FRAMES_LIMIT = 1024
#: The most streams that one side may have opened and not yet ended.
STREAMS_LIMIT = 4096
#: The most frames of one stream that its sender may have sent and its receiver not yet acknowledged:
#: either keeps an object for each, however small they are.
KEPT_LIMIT = 4096
#: The most bytes of a device's facts or of settings.
INTRODUCTION_LIMIT = 256 * 1024
#: The most characters of a reason, of a software's name, of a boot id.
TEXT_LIMIT = 1024
#: The most capabilities of one side.
CAPABILITIES_LIMIT = 64
#: The most companions of one agent.
COMPANIONS_LIMIT = 64
#: The most bytes that count when a stream is granted more ahead: what the sender has to keep until
#: it is acknowledged is for the sender to bound, whatever the peer permits.
WINDOW_LIMIT = 1024 * 1024

_INSTANCE_LENGTH = 16
_OFFSET_LIMIT = 1 << 62


def alias_of(instance: bytes) -> bytes:
    """What a process is called where others may read it: its instance is for taking up its streams."""
    return sha256(instance).digest()[:_INSTANCE_LENGTH]


class Duty(IntEnum):
    """Who of several agents of one host takes new sessions; the numbers of ``DutyKind`` in the schema."""

    ACTIVE = 1
    STANDBY = 2
    DRAINING = 3


@dataclass(frozen=True, slots=True)
class StreamState:
    """What one side holds of one stream when it comes back on a new link."""

    stream: int
    delivered: int
    limit: int


@dataclass(frozen=True, slots=True)
class Hello:
    """The first frame on every link, both ways."""

    software: str = ""
    capabilities: frozenset[str] = frozenset()
    instance: bytes = b""
    host_boot_id: str = ""
    facts: bytes | None = None
    settings: bytes | None = None
    window: int = 0
    streams: tuple[StreamState, ...] = ()
    epoch: int = 0
    peer_instance: bytes = b""
    peer_epoch: int = 0
    former_epoch: int = 0
    started: int = 0
    companions: frozenset[bytes] = frozenset()
    number: int = 0
    draining: bool = False
    protocol: int = PROTOCOL


@dataclass(frozen=True, slots=True)
class Open:
    """A new stream, what is asked on it, and the credit for the first bytes that come back."""

    stream: int
    window: int
    request: bytes


@dataclass(frozen=True, slots=True)
class Data:
    """Bytes of a stream from ``offset`` on."""

    stream: int
    offset: int
    lane: int
    payload: bytes

    @property
    def end(self) -> int:
        """The first offset behind this frame."""
        return self.offset + len(self.payload)


@dataclass(frozen=True, slots=True)
class Credit:
    """Everything below ``delivered`` was handed on; up to ``limit`` may be sent."""

    stream: int
    delivered: int
    limit: int


@dataclass(frozen=True, slots=True)
class Finish:
    """Half close; takes one offset."""

    stream: int
    offset: int

    @property
    def end(self) -> int:
        """The first offset behind this frame."""
        return self.offset + 1


@dataclass(frozen=True, slots=True)
class Reset:
    """Both directions end now; takes one offset."""

    stream: int
    offset: int
    reason: Reason

    @property
    def end(self) -> int:
        """The first offset behind this frame."""
        return self.offset + 1


@dataclass(frozen=True, slots=True)
class Ping:
    """Are you there?"""

    token: int


@dataclass(frozen=True, slots=True)
class Pong:
    """Yes."""

    token: int


@dataclass(frozen=True, slots=True)
class Goodbye:
    """The link is going to close, why, and whether coming back makes sense."""

    reason: str
    retry: bool


@dataclass(frozen=True, slots=True)
class OnDuty:
    """From the controller: be active, or stand by. From an agent: it takes no new sessions."""

    duty: Duty


Frame = Hello | Open | Data | Credit | Finish | Reset | Ping | Pong | Goodbye | OnDuty


def encode(frames: Iterable[Frame]) -> bytes:
    """One message of these frames."""
    message = schema.Message()
    for frame in frames:
        _put(message.frames.add(), frame)
    return message.SerializeToString()


def decode(encoded: bytes) -> list[Frame]:
    """The frames of one message; kinds of a newer peer are left out."""
    if len(encoded) > MESSAGE_LIMIT:
        raise RemoteViolation(f"a message of {len(encoded)} bytes is longer than {MESSAGE_LIMIT}")
    message = schema.Message()
    try:
        message.ParseFromString(encoded)
    except DecodeError:
        raise RemoteViolation("a message does not parse") from None
    if len(message.frames) > FRAMES_LIMIT:
        raise RemoteViolation(f"a message has {len(message.frames)} frames, more than {FRAMES_LIMIT}")
    taken = (_take(frame) for frame in message.frames)
    return [frame for frame in taken if frame is not None]


def _put(message: schema.Frame, frame: Frame) -> None:
    match frame:
        case Data(stream, offset, lane, payload):
            data = message.data
            data.stream = stream
            data.offset = offset
            data.lane = lane
            data.payload = payload
        case Credit(stream, delivered, limit):
            credit = message.credit
            credit.stream = stream
            credit.delivered = delivered
            credit.limit = limit
        case Finish(stream, offset):
            message.finish.stream = stream
            message.finish.offset = offset
        case Open(stream, window, request):
            message.open.stream = stream
            message.open.window = window
            message.open.request.ParseFromString(request)
            message.open.request.SetInParent()
        case Reset(stream, offset, reason):
            message.reset.stream = stream
            message.reset.offset = offset
            message.reset.code = int(reason.code)  # type: ignore[assignment]  # an enum is an int on the wire
            message.reset.reason = _cut(reason.text)
        case Ping(token):
            message.ping.token = token
            message.ping.SetInParent()
        case Pong(token):
            message.pong.token = token
            message.pong.SetInParent()
        case Goodbye(reason, retry):
            message.goodbye.reason = _cut(reason)
            message.goodbye.retry = retry
            message.goodbye.SetInParent()
        case OnDuty(duty):
            message.duty.kind = int(duty)  # type: ignore[assignment]  # an enum is an int on the wire
        case Hello():
            _put_hello(message.hello, frame)


def _put_hello(message: schema.Hello, hello: Hello) -> None:
    message.protocol = hello.protocol
    message.software = _cut(hello.software)
    message.capabilities.extend(sorted(hello.capabilities))
    message.instance = hello.instance
    message.host_boot_id = hello.host_boot_id
    message.epoch = hello.epoch
    message.peer_instance = hello.peer_instance
    message.peer_epoch = hello.peer_epoch
    message.former_epoch = hello.former_epoch
    message.window = hello.window
    message.started = hello.started
    message.companions.extend(sorted(hello.companions))
    message.number = hello.number
    message.draining = hello.draining
    for state in hello.streams:
        message.streams.add(stream=state.stream, delivered=state.delivered, limit=state.limit)
    if hello.facts is not None:
        message.facts.ParseFromString(hello.facts)
        message.facts.SetInParent()
    if hello.settings is not None:
        message.settings.ParseFromString(hello.settings)
        message.settings.SetInParent()


def _take(message: schema.Frame) -> Frame | None:
    match message.WhichOneof("kind"):
        case "data":
            data = message.data
            payload = data.payload
            if not 0 < len(payload) <= PAYLOAD_LIMIT:
                raise RemoteViolation(
                    f"a data frame of {len(payload)} bytes, not within 1 and {PAYLOAD_LIMIT}"
                )
            return Data(data.stream, _offset(data.offset), data.lane, payload)
        case "credit":
            credit = message.credit
            return Credit(credit.stream, _offset(credit.delivered), _offset(credit.limit))
        case "finish":
            return Finish(message.finish.stream, _offset(message.finish.offset))
        case "open":
            size = message.open.request.ByteSize()
            if size > REQUEST_LIMIT:
                raise RemoteViolation(f"a request of {size} bytes is longer than {REQUEST_LIMIT}")
            return Open(
                message.open.stream,
                min(message.open.window, WINDOW_LIMIT),
                message.open.request.SerializeToString(),
            )
        case "reset":
            reason = Reason(ResetCode.of(message.reset.code), _line("a reason", message.reset.reason))
            return Reset(message.reset.stream, _offset(message.reset.offset), reason)
        case "ping":
            return Ping(message.ping.token)
        case "pong":
            return Pong(message.pong.token)
        case "goodbye":
            return Goodbye(_line("a reason", message.goodbye.reason), message.goodbye.retry)
        case "duty":
            return _take_duty(message.duty.kind)
        case "hello":
            return _take_hello(message.hello)
        case _:
            return None


def _take_duty(kind: int) -> OnDuty | None:
    try:
        return OnDuty(Duty(kind))
    except ValueError:
        return None  # A duty of a newer peer.


def _take_hello(message: schema.Hello) -> Hello:
    if message.protocol != PROTOCOL:
        raise RemoteViolation(f"the peer speaks protocol {message.protocol}, this side {PROTOCOL}")
    if len(message.instance) != _INSTANCE_LENGTH:
        raise RemoteViolation(f"an instance of {len(message.instance)} bytes, not {_INSTANCE_LENGTH}")
    if len(message.peer_instance) not in (0, _INSTANCE_LENGTH):
        raise RemoteViolation(
            f"a peer instance of {len(message.peer_instance)} bytes, not {_INSTANCE_LENGTH}"
        )
    if len(message.capabilities) > CAPABILITIES_LIMIT:
        raise RemoteViolation(f"{len(message.capabilities)} capabilities, more than {CAPABILITIES_LIMIT}")
    if len(message.streams) > 2 * STREAMS_LIMIT:
        raise RemoteViolation(f"{len(message.streams)} streams held, more than {2 * STREAMS_LIMIT}")
    if len(message.companions) > COMPANIONS_LIMIT:
        raise RemoteViolation(f"{len(message.companions)} companions, more than {COMPANIONS_LIMIT}")
    for introduced in (message.facts, message.settings):
        if introduced.ByteSize() > INTRODUCTION_LIMIT:
            raise RemoteViolation(f"an introduction is longer than {INTRODUCTION_LIMIT} bytes")
    return Hello(
        software=_text("a software's name", message.software),
        capabilities=frozenset(_text("a capability", name) for name in message.capabilities),
        instance=message.instance,
        host_boot_id=_text("a boot id", message.host_boot_id),
        facts=message.facts.SerializeToString() if message.HasField("facts") else None,
        settings=message.settings.SerializeToString() if message.HasField("settings") else None,
        window=min(message.window, WINDOW_LIMIT),
        streams=tuple(
            StreamState(state.stream, _offset(state.delivered), _offset(state.limit))
            for state in message.streams
        ),
        epoch=message.epoch,
        peer_instance=message.peer_instance,
        peer_epoch=message.peer_epoch,
        former_epoch=message.former_epoch,
        started=message.started,
        companions=frozenset(_companion(instance) for instance in message.companions),
        number=message.number,
        draining=message.draining,
        protocol=message.protocol,
    )


def _companion(instance: bytes) -> bytes:
    if len(instance) != _INSTANCE_LENGTH:
        raise RemoteViolation(f"a companion of {len(instance)} bytes, not {_INSTANCE_LENGTH}")
    return instance


def _offset(offset: int) -> int:
    if offset > _OFFSET_LIMIT:
        raise RemoteViolation(f"an offset of {offset} is beyond all sense")
    return offset


def _text(name: str, text: str) -> str:
    if len(text) > TEXT_LIMIT:
        raise RemoteViolation(f"{name} of {len(text)} characters is longer than {TEXT_LIMIT}")
    return text


def _line(name: str, text: str) -> str:
    """Words for a person: they end in logs and terminals, where no peer shall move the cursor."""
    checked = _text(name, text)
    if checked.isprintable():
        return checked
    return "".join(character if character.isprintable() else " " for character in checked)


def _cut(text: str) -> str:
    return text if len(text) <= TEXT_LIMIT else text[: TEXT_LIMIT - 1] + "…"
