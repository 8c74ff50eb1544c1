"""A link: streams and their channels over one message transport at a time.

A ``Tether`` belongs to one peer and may outlive the transport it runs on. It is
given a transport by ``receiver()``, which makes the ear for one connection. When
the connection is lost its channels wait for the grace; a new connection on which
the peer proves to be the same process takes them over, else they end as lost.

The grace is the controller's to say (``Settings.grace_seconds``), for both ends must
wait equally long, and there is none unless both ends list ``RESUME``: a peer that
drops its sessions with the link must not be waited for.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from zope.interface import implementer

from tether.errors import LinkLost, Reason, RemoteViolation, ResetCode
from tether.link.channel import MuxChannel
from tether.link.connection import Connection
from tether.link.interfaces import Acceptor, Channel, Link, Receiver
from tether.link.transport import GOING_AWAY, POLICY_VIOLATION, MessageReceiver, MessageTransport
from tether.verbs.codec import (
    decode_facts,
    decode_request,
    decode_settings,
    encode_facts,
    encode_request,
    encode_settings,
)
from tether.verbs.requests import DeviceFacts, Request, Settings
from tether.wire import frames
from tether.wire.events import (
    DataArrived,
    DutyTold,
    Event,
    Introduced,
    PeerLeaves,
    PongArrived,
    StreamBroken,
    StreamClosed,
    StreamFinished,
    StreamOpened,
)
from tether.wire.frames import Duty
from tether.wire.mux import WINDOW, Mux, Role

#: Capability: sessions outlive a link.
RESUME = "resume"
#: Capability: of several agents of one host one is active, and ``Duty`` says which.
TAKEOVER = "takeover"

_UNKNOWN_VERB = Reason(ResetCode.UNSUPPORTED, "this side does not know what is asked")
_FAILED = Reason(ResetCode.INTERNAL, "the accepting side failed; its log says why")


@dataclass(frozen=True, slots=True)
class PeerIntroduction:
    """What a side says of itself in its Hello: an ``Introduction``."""

    software: str
    capabilities: frozenset[str] = frozenset()
    instance: bytes = b""
    host_boot_id: str = ""
    facts: DeviceFacts | None = None
    settings: Settings | None = None
    started: int = 0
    companions: frozenset[bytes] = frozenset()
    draining: bool = False
    # Which Hello of its process it is, counted by the mux; no part of what it says.
    number: int = field(default=0, compare=False)

    @classmethod
    def of(cls, hello: frames.Hello) -> PeerIntroduction:
        """What this Hello says; raises ``RemoteViolation`` when it makes no sense."""
        return cls(
            software=hello.software,
            capabilities=hello.capabilities,
            instance=hello.instance,
            host_boot_id=hello.host_boot_id,
            facts=None if hello.facts is None else decode_facts(hello.facts),
            settings=None if hello.settings is None else decode_settings(hello.settings),
            started=hello.started,
            companions=hello.companions,
            draining=hello.draining,
            number=hello.number,
        )

    def hello(self) -> frames.Hello:
        """The frame that says this."""
        return frames.Hello(
            software=self.software,
            capabilities=self.capabilities,
            instance=self.instance,
            host_boot_id=self.host_boot_id,
            facts=None if self.facts is None else encode_facts(self.facts),
            settings=None if self.settings is None else encode_settings(self.settings),
            started=self.started,
            companions=self.companions,
            draining=self.draining,
            number=self.number,
        )


class Watcher(Protocol):
    """Whoever wants to know how a link fares; calls never raise."""

    def link_up(self, link: Link, resumed: bool) -> None:
        """The peer said Hello: streams may be opened. ``resumed``: those of the last connection go on."""

    def link_down(self, link: Link, reason: str, retry: bool) -> None:
        """A connection is gone, or never came up, and why. Called once for each ``receiver()`` that was used.

        ``retry`` false: the peer asked not to come back before something changed.
        """

    def link_over(self, link: Link) -> None:
        """After ``link_down``: the channels have ended, who comes now starts afresh.

        Not called while there is a connection, though channels may end when a newer one comes.
        """

    def duty_told(self, link: Link, duty: Duty) -> None:
        """The peer says who takes new sessions."""


@implementer(Link)
class Tether:
    """All channels to one peer; see the module's docstring.

    ``introduction.instance`` is this process's; it must stay the same for as long
    as streams shall outlive a connection.
    """

    _log = Logger()

    def __init__(
        self,
        role: Role,
        clock: IReactorTime,
        introduction: PeerIntroduction,
        acceptor: Acceptor,
        watcher: Watcher,
        *,
        window: int = WINDOW,
        keepalive: float = 15.0,
        patience: float = 15.0,
    ) -> None:
        self.mux = Mux(role, introduction.instance, window)
        self.peer: PeerIntroduction | None = None
        self._clock = clock
        self._introduction = introduction
        self._acceptor = acceptor
        self._watcher = watcher
        self._grace = 0.0
        self._keepalive = keepalive
        self._patience = patience
        self._channels: dict[int, MuxChannel] = {}
        self._pressed: set[MuxChannel] = set()
        self._connection: Connection | None = None
        self._grace_call: IDelayedCall | None = None
        self._calls: deque[Callable[[], None]] = deque()
        self._settling = False

    # ---- what the daemons use ----------------------------------------------------

    @property
    def is_up(self) -> bool:
        """True while there is a connection on which the peer said Hello."""
        return self.mux.introduced

    @property
    def transport(self) -> MessageTransport | None:
        """The present connection's transport, for its address and certificate."""
        return None if self._connection is None else self._connection.transport

    @property
    def waits(self) -> bool:
        """True while there is no connection and channels wait for the next one."""
        return self._grace_call is not None and bool(self._channels)

    def is_late(self, said: PeerIntroduction) -> bool:
        """Whether a later connection of who says this in its Hello came before this one."""
        return self.mux.is_late(said.hello())

    def tell_duty(self, duty: Duty) -> bool:
        """Tell the peer who takes new sessions, after each Hello anew; false: it would not understand."""
        if not self.is_up or not self._both_list(TAKEOVER):
            return False
        self.mux.tell_duty(duty)
        self.settle()
        return True

    def introduce_as(self, introduction: PeerIntroduction) -> None:
        """Say this in the next Hello: facts and settings change, the instance does not."""
        self._introduction = introduction

    def receiver(self) -> MessageReceiver:
        """The ear for one new connection; once connected it takes the place of an older one."""
        return Connection(self)

    def open(self, request: Request, receiver: Receiver) -> Channel:
        """Open a stream at once."""
        if not self.is_up:
            raise LinkLost("there is no link")
        channel = MuxChannel(self.mux.open(encode_request(request)), self, receiver)
        self._channels[channel.stream] = channel
        self.settle()
        return channel

    def close(self, reason: str, retry: bool = True) -> None:
        """Say goodbye, then close; streams end as lost, without grace."""
        connection = self._connection
        if connection is not None:
            self.mux.say_goodbye(reason, retry)
            connection.flush_control()
            self._lost(connection, reason, retry, final=True)
            connection.close(GOING_AWAY, reason)
        else:
            self._abandon(reason)
        self.settle()

    # ---- what its connection tells ---------------------------------------------------

    @property
    def clock(self) -> IReactorTime:
        """Whose seconds count here."""
        return self._clock

    def attached(self, connection: Connection) -> None:
        """A connection came: it is the one from here on."""
        older = self._connection
        if older is not None:
            reason = "a newer link took its place"
            self._detached(older, reason, retry=True)
            if self._grace:
                self._wait(reason)
            else:
                # The channels are lost, but the link goes on: it is not over.
                self._end_channels(reason)
            older.abort()
        self._connection = connection
        self.mux.attach(self._introduction.hello())
        self.settle()

    def message_received(self, connection: Connection, message: bytes) -> None:
        """The peer's next message."""
        if connection is not self._connection:
            return
        # What one message brings is answered together, not piece by piece.
        self._settling, settling = True, self._settling
        try:
            for event in self.mux.receive(message):
                self._occurred(connection, event)
        except RemoteViolation as violation:
            self._violated(connection, str(violation))
        finally:
            self._settling = settling
        self.settle()

    def connection_lost(self, connection: Connection, reason: str) -> None:
        """The connection is over."""
        if connection is self._connection:
            left = connection.goodbye
            self._lost(connection, left or reason, connection.retry, final=left is not None)
        else:
            self._tell_down(connection, reason, connection.retry)
        self.settle()

    def drop(self, connection: Connection, reason: str) -> None:
        """End this connection now; its streams may be taken over by the next."""
        if connection is self._connection:
            self._lost(connection, reason, retry=True, final=False)
            connection.abort()
            self.settle()

    # ---- what its channels use ---------------------------------------------------------

    def later(self, call: Callable[[], None]) -> None:
        """Call when no other call to a receiver is under way."""
        self._calls.append(call)
        self.settle()

    def settle(self) -> None:
        """Make the calls that wait, send what may be sent, until nothing moves."""
        if self._settling:
            return
        self._settling = True
        try:
            while True:
                while self._calls:
                    self._calls.popleft()()
                if self._connection is not None:
                    self._connection.pull()
                if self._pressed:
                    self._pressed = {channel for channel in self._pressed if not channel.relieve()}
                if not self._calls:
                    break
        finally:
            self._settling = False

    def pressed(self, channel: MuxChannel) -> None:
        """Ask this channel to resume its producer when bytes went."""
        self._pressed.add(channel)

    def forget(self, channel: MuxChannel) -> None:
        """The channel is closed."""
        if self._channels.get(channel.stream) is channel:
            # A peer that starts afresh may have opened another of this id already.
            del self._channels[channel.stream]
        self._pressed.discard(channel)

    # ---- what happens --------------------------------------------------------------------

    def _occurred(self, connection: Connection, event: Event) -> None:
        match event:
            case DataArrived():
                if (channel := self._channels.get(event.stream)) is not None:
                    channel.data_arrived(event.lane, event.data)
            case StreamFinished():
                if (channel := self._channels.get(event.stream)) is not None:
                    channel.finish_arrived()
            case StreamOpened():
                self._opened(event)
            case StreamBroken():
                if (channel := self._channels.get(event.stream)) is not None:
                    channel.broke(event.reason)
            case StreamClosed():
                if (channel := self._channels.get(event.stream)) is not None:
                    channel.closed_at_last()
            case Introduced():
                self._introduced(connection, event)
            case PeerLeaves():
                connection.goodbye = event.reason
                connection.retry = event.retry
            case DutyTold():
                self.later(lambda: self._watcher.duty_told(self, event.duty))
            case PongArrived():
                pass  # Its bytes were the sign of life already.

    def _introduced(self, connection: Connection, event: Introduced) -> None:
        self.peer = peer = PeerIntroduction.of(event.hello)
        if self._grace_call is not None:
            self._grace_call.cancel()
            self._grace_call = None
        settings = self._introduction.settings or peer.settings
        keepalive = float(settings.keepalive_seconds if settings else 0) or self._keepalive
        self._grace = float(settings.grace_seconds) if settings and self._both_list(RESUME) else 0.0
        connection.greeted(keepalive, self._patience)
        self.later(lambda: self._watcher.link_up(self, event.resumed))

    def _both_list(self, capability: str) -> bool:
        peer = self.peer
        return (
            peer is not None
            and capability in peer.capabilities
            and capability in self._introduction.capabilities
        )

    def _opened(self, event: StreamOpened) -> None:
        channel = MuxChannel(event.stream, self)
        self._channels[event.stream] = channel
        try:
            request = decode_request(event.request)
        except RemoteViolation as violation:
            channel.reset(Reason(ResetCode.INVALID, str(violation)))
            return
        if request is None:
            channel.reset(_UNKNOWN_VERB)
            return
        self.later(lambda: self._accept(request, channel))

    def _accept(self, request: Request, channel: MuxChannel) -> None:
        try:
            channel.accepted_by(self._acceptor.stream_opened(request, channel))
        except Exception:
            self._log.failure("stream {stream}: its acceptor failed", stream=channel.stream)
            channel.reset(_FAILED)

    def _violated(self, connection: Connection, reason: str) -> None:
        self._log.warn(
            "link to {peer}: dropped, the other side broke the protocol: {reason}",
            peer=connection.address,
            reason=reason,
        )
        # Streams are not kept: what the peer believes of them cannot be known.
        self.mux.say_goodbye(reason, True)
        connection.flush_control()
        self._lost(connection, reason, retry=True, final=True)
        connection.close(POLICY_VIOLATION, reason)

    def _lost(self, connection: Connection, reason: str, retry: bool, final: bool) -> None:
        """This connection is not the one any more, and there is no other."""
        self._detached(connection, reason, retry)
        if final or not self._grace:
            self._abandon(reason)
        else:
            self._wait(reason)

    def _detached(self, connection: Connection, reason: str, retry: bool) -> None:
        self._connection = None
        connection.ended()
        self.mux.detach()
        self._tell_down(connection, reason, retry)

    def _wait(self, reason: str) -> None:
        """The channels wait for the next connection on which the peer says Hello."""
        if self._grace_call is None:
            self._grace_call = self._clock.callLater(self._grace, self._grace_over, reason)

    def _tell_down(self, connection: Connection, reason: str, retry: bool) -> None:
        if not connection.told_down:
            connection.told_down = True
            self.later(lambda: self._watcher.link_down(self, reason, retry))

    def _grace_over(self, reason: str) -> None:
        self._grace_call = None
        connection = self._connection
        if connection is None:
            self._abandon(reason)
        else:
            # The peer was told on it that the streams are held, and has not answered yet.
            self._lost(connection, reason, retry=True, final=True)
            connection.abort()
        self.settle()

    def _abandon(self, reason: str) -> None:
        """Nobody will come back: the link is over."""
        self._end_channels(reason)
        self.later(lambda: self._watcher.link_over(self))

    def _end_channels(self, reason: str) -> None:
        """No connection will take the streams over: they end as lost."""
        if self._grace_call is not None:
            self._grace_call.cancel()
            self._grace_call = None
        lost = Reason(ResetCode.LOST, reason)
        for event in self.mux.abandon(lost):
            channel = self._channels.get(event.stream)
            if channel is not None:
                if isinstance(event, StreamBroken):
                    channel.broke(event.reason)
                else:
                    channel.closed_at_last()
        for channel in list(self._channels.values()):
            # One whose end came with an introduction that made no sense, so that it was not heard.
            channel.broke(lost)
