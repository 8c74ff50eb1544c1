"""Who erred decides what happens.

``LocalMisuse`` is a bug on this side and raises. ``RemoteViolation`` is a peer
that broke the protocol: the link is dropped with a reason. ``StreamReset`` is
weather: one stream ended before its time, and why. ``LinkLost`` is absence.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum


class ResetCode(IntEnum):
    """Why a stream ended before its time; the numbers of ``ResetCode`` in the schema."""

    UNSPECIFIED = 0
    CANCELLED = 1
    REFUSED = 2
    UNSUPPORTED = 3
    INTERNAL = 4
    PROTOCOL = 5
    LIMIT = 6
    UNREACHABLE = 7
    LOST = 8
    INVALID = 9

    @classmethod
    def of(cls, number: int) -> ResetCode:
        """The code for a number off the wire; a number of a newer peer is ``UNSPECIFIED``."""
        try:
            return cls(number)
        except ValueError:
            return cls.UNSPECIFIED


@dataclass(frozen=True, slots=True)
class Reason:
    """A reset's code with one line for a person."""

    code: ResetCode
    text: str

    def __str__(self) -> str:
        return self.text


class TetherError(Exception):
    """Anything that goes wrong on the tether."""


class LocalMisuse(TetherError):
    """This side called out of turn: a bug."""


class RemoteViolation(TetherError):
    """The peer broke the protocol; the link must be dropped with this reason."""


class LinkLost(TetherError):
    """There is no link, or it went away."""


class StreamReset(TetherError):
    """A stream ended before its time."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason.text)
        self.reason = reason
