"""What a peer did, as frozen values: what ``Mux.receive`` gives back."""

from __future__ import annotations

from dataclasses import dataclass

from tether.errors import Reason
from tether.wire.frames import Duty, Hello


@dataclass(frozen=True, slots=True)
class Introduced:
    """The peer said Hello; ``resumed`` means that the streams of earlier links go on."""

    hello: Hello
    resumed: bool


@dataclass(frozen=True, slots=True)
class StreamOpened:
    """The peer opened a stream and asks this on it."""

    stream: int
    request: bytes


@dataclass(frozen=True, slots=True)
class DataArrived:
    """The next bytes, or the next record, of a stream. A newer peer's lanes are unknown numbers."""

    stream: int
    lane: int
    data: bytes


@dataclass(frozen=True, slots=True)
class StreamFinished:
    """The peer half-closed; ``Mux.delivered(stream, 1)`` tells it that this was heard."""

    stream: int


@dataclass(frozen=True, slots=True)
class StreamBroken:
    """A stream ended before its time: the peer reset it, or lost it."""

    stream: int
    reason: Reason


@dataclass(frozen=True, slots=True)
class StreamClosed:
    """Both directions ended and everything was acknowledged; the id is history."""

    stream: int


@dataclass(frozen=True, slots=True)
class PongArrived:
    """The peer answered a ping."""

    token: int


@dataclass(frozen=True, slots=True)
class PeerLeaves:
    """The peer is going to close the link, and why."""

    reason: str
    retry: bool


@dataclass(frozen=True, slots=True)
class DutyTold:
    """The peer says who takes new sessions."""

    duty: Duty


Event = (
    Introduced
    | StreamOpened
    | DataArrived
    | StreamFinished
    | StreamBroken
    | StreamClosed
    | PongArrived
    | PeerLeaves
    | DutyTold
)
