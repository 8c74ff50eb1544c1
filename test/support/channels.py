"""A ``Channel`` that remembers what was done to it, and a receiver that remembers what it heard."""

from __future__ import annotations

from dataclasses import dataclass, field

from twisted.internet.interfaces import IPushProducer
from zope.interface import implementer

from tether.errors import Reason
from tether.link.interfaces import Channel, Lane


@implementer(Channel)
class RecordingChannel:
    """One end of a stream with nobody behind it; a test reads ``sent`` and plays the peer itself.

    ``block`` and ``unblock`` act as the peer's credit running out and coming back.
    """

    def __init__(self, stream: int = 2) -> None:
        self.stream = stream
        self.sent: list[tuple[Lane, bytes]] = []
        self.is_finished = False
        self.reset_with: Reason | None = None
        self.paused = False
        self.producer: IPushProducer | None = None

    def lane(self, lane: Lane) -> bytes:
        """All that was written to one lane."""
        return b"".join(data for sent_on, data in self.sent if sent_on is lane)

    def write(self, data: bytes, lane: Lane = Lane.MAIN) -> None:
        if data and not self.is_finished and self.reset_with is None:
            self.sent.append((lane, data))

    def registerProducer(self, producer: object, streaming: bool) -> None:
        assert streaming and self.producer is None
        self.producer = IPushProducer(producer)

    def unregisterProducer(self) -> None:
        self.producer = None

    def finish(self) -> None:
        self.is_finished = True

    def reset(self, reason: Reason) -> None:
        if self.reset_with is None:
            self.reset_with = reason

    def pauseProducing(self) -> None:
        self.paused = True

    def resumeProducing(self) -> None:
        self.paused = False

    def stopProducing(self) -> None:
        self.paused = True

    def block(self) -> None:
        """The peer's credit is used up: pause whoever writes here."""
        if self.producer is not None:
            self.producer.pauseProducing()

    def unblock(self) -> None:
        """The peer granted more credit."""
        if self.producer is not None:
            self.producer.resumeProducing()


@dataclass
class RecordingReceiver:
    """A receiver that keeps what it heard, in order."""

    heard: list[tuple[Lane, bytes]] = field(default_factory=list)
    ended: list[str] = field(default_factory=list)
    reason: Reason | None = None

    def lane(self, lane: Lane) -> bytes:
        """All that was heard on one lane."""
        return b"".join(data for heard_on, data in self.heard if heard_on is lane)

    def data_received(self, lane: Lane, data: bytes) -> None:
        self.heard.append((lane, data))

    def finished(self) -> None:
        self.ended.append("finished")

    def reset(self, reason: Reason) -> None:
        self.ended.append("reset")
        self.reason = reason

    def closed(self) -> None:
        self.ended.append("closed")
