"""Two links joined without a network: what one sends the other hears when ``flush`` says so.

Bytes really are encoded and decoded, credit and turns are the shipped ones. Only
the transport is a double: a queue of messages that reports itself full above
``capacity`` bytes, loses what it holds when it is ``cut``, and can be ``rejoin``ed.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from cryptography.x509 import Certificate
from twisted.internet.interfaces import IPushProducer, IReactorTime

from tether.link.interfaces import Acceptor, Link
from tether.link.link import RESUME, TAKEOVER, PeerIntroduction, Tether, Watcher
from tether.link.transport import MessageReceiver
from tether.verbs.requests import Settings
from tether.wire.frames import Duty
from tether.wire.mux import WINDOW, Role

#: What a Twisted transport holds before it pauses its producer.
CAPACITY = 64 * 1024


class MemoryTransport:
    """One end of a connection that is a queue; a ``MessageTransport``."""

    def __init__(self, clock: IReactorTime, capacity: int = CAPACITY, address: str = "memory") -> None:
        self.sent: deque[bytes] = deque()  # not yet heard by the other end
        self.closed_with: tuple[int, str] | None = None
        self.is_over = False
        self.certificate: Certificate | None = None
        self._clock = clock
        self._capacity = capacity
        self._address = address
        self._heard_at = clock.seconds()
        self._producer: IPushProducer | None = None
        self._paused = False

    @property
    def address(self) -> str:
        """A name for logs."""
        return self._address

    @property
    def heard_at(self) -> float:
        """When the last message was heard."""
        return self._heard_at

    def send(self, message: bytes) -> None:
        """Queue a message for the other end."""
        if self.is_over or self.closed_with is not None:
            return
        self.sent.append(message)
        if self._producer is not None and not self._paused and self._held() > self._capacity:
            self._paused = True
            self._producer.pauseProducing()

    def register(self, producer: IPushProducer) -> None:
        """Pause ``producer`` above ``capacity``, resume it when the queue is empty."""
        self._producer = producer

    def close(self, code: int, reason: str) -> None:
        """End after what was sent."""
        if self.closed_with is None:
            self.closed_with = (code, reason)

    def abort(self) -> None:
        """End now."""
        self.sent.clear()
        self.close(1006, "aborted")

    def peer_certificate(self) -> Certificate | None:
        """Whatever a test put there."""
        return self.certificate

    def taken(self) -> bytes | None:
        """The next message off the queue; the producer is resumed when that was the last."""
        if not self.sent:
            return None
        message = self.sent.popleft()
        if not self.sent and self._paused:
            self._paused = False
            if self._producer is not None:
                self._producer.resumeProducing()
        return message

    def heard(self) -> None:
        """A message of the other end arrived."""
        self._heard_at = self._clock.seconds()

    def _held(self) -> int:
        return sum(len(message) for message in self.sent)


@dataclass
class Wire:
    """Two joined transports with who hears them; moved by ``step``."""

    controller: MemoryTransport
    agent: MemoryTransport
    controller_receiver: MessageReceiver
    agent_receiver: MessageReceiver

    def connect(self) -> None:
        """Both ends are there."""
        self.controller_receiver.connected(self.controller)
        self.agent_receiver.connected(self.agent)

    def step(self) -> bool:
        """Move one message each way; false when nothing moved."""
        moved = self._move(self.controller, self.agent, self.agent_receiver)
        moved = self._move(self.agent, self.controller, self.controller_receiver) or moved
        return self._end_if_closed() or moved

    def cut(self, reason: str = "the connection was cut") -> None:
        """Both ends lose the connection, and with it what was on its way."""
        for transport, receiver in (
            (self.controller, self.controller_receiver),
            (self.agent, self.agent_receiver),
        ):
            transport.sent.clear()
            if not transport.is_over:
                transport.is_over = True
                receiver.connection_lost(reason)

    def _move(self, sender: MemoryTransport, heard: MemoryTransport, receiver: MessageReceiver) -> bool:
        message = sender.taken()
        if message is None:
            return False
        if not heard.is_over:
            heard.heard()
            receiver.message_received(message)
        return True

    def _end_if_closed(self) -> bool:
        for transport in (self.controller, self.agent):
            if transport.closed_with is not None and not transport.sent and not transport.is_over:
                self.cut(transport.closed_with[1])
                return True
        return False


@dataclass
class Watch:
    """A ``Watcher`` that keeps what it heard."""

    ups: list[bool] = field(default_factory=list)  # resumed?
    downs: list[tuple[str, bool]] = field(default_factory=list)  # reason, retry
    overs: int = 0
    duties: list[Duty] = field(default_factory=list)

    def link_up(self, link: Link, resumed: bool) -> None:
        """The peer said Hello."""
        self.ups.append(resumed)

    def link_down(self, link: Link, reason: str, retry: bool) -> None:
        """The connection is gone."""
        self.downs.append((reason, retry))

    def link_over(self, link: Link) -> None:
        """The channels have ended."""
        self.overs += 1

    def duty_told(self, link: Link, duty: Duty) -> None:
        """The peer says who takes new sessions."""
        self.duties.append(duty)


class MemoryPair:
    """A controller's and an agent's link, joined; see ``joined``."""

    def __init__(self, clock: IReactorTime, controller: Tether, agent: Tether, capacity: int) -> None:
        self.controller = controller
        self.agent = agent
        self._clock = clock
        self._capacity = capacity
        self.wire = self._wire()
        self.wire.connect()

    def flush(self, limit: int = 100_000) -> int:
        """Move messages until both ends are quiet; gives back how many rounds that took."""
        for rounds in range(limit):
            if not self.wire.step():
                return rounds
        raise AssertionError(f"still not quiet after {limit} rounds")

    def step(self) -> bool:
        """Move one message each way; false when nothing moved."""
        return self.wire.step()

    def cut(self, reason: str = "the connection was cut") -> None:
        """Lose the connection and all that was on its way."""
        self.wire.cut(reason)

    def rejoin(self) -> None:
        """A new connection between the same two; Hello is exchanged."""
        self.wire = self._wire()
        self.wire.connect()
        self.flush()

    def _wire(self) -> Wire:
        return Wire(
            MemoryTransport(self._clock, self._capacity, "agent"),
            MemoryTransport(self._clock, self._capacity, "controller"),
            self.controller.receiver(),
            self.agent.receiver(),
        )


def joined(
    clock: IReactorTime,
    controller_acceptor: Acceptor,
    agent_acceptor: Acceptor,
    *,
    controller: PeerIntroduction | None = None,
    agent: PeerIntroduction | None = None,
    controller_watcher: Watcher | None = None,
    agent_watcher: Watcher | None = None,
    window: int = WINDOW,
    grace: int = 0,
    keepalive: float = 15.0,
    patience: float = 15.0,
    capacity: int = CAPACITY,
) -> MemoryPair:
    """A controller's and an agent's link that exchanged Hello; ``grace`` is in what the controller says."""
    both = frozenset({RESUME, TAKEOVER})
    controller_introduction = controller or PeerIntroduction(
        "aranya/test", both, b"c" * 16, settings=Settings("", "", keepalive_seconds=0, grace_seconds=grace)
    )
    agent_introduction = agent or PeerIntroduction("arhat/test", both, b"a" * 16, "boot")
    pair = MemoryPair(
        clock,
        Tether(
            Role.CONTROLLER,
            clock,
            controller_introduction,
            controller_acceptor,
            controller_watcher or Watch(),
            window=window,
            keepalive=keepalive,
            patience=patience,
        ),
        Tether(
            Role.AGENT,
            clock,
            agent_introduction,
            agent_acceptor,
            agent_watcher or Watch(),
            window=window,
            keepalive=keepalive,
            patience=patience,
        ),
        capacity,
    )
    pair.flush()
    return pair
