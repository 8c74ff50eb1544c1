"""The one door for devices: a TLS endpoint that speaks ``join.v1`` and ``tether.v1``, nothing else.

Who has no certificate of ours can reach nothing but the join conversation. Who has one
is let in by ``admission`` within the handshake, or hears in one line why not.

The first message
    A device's Hello is read before it is decided which link it belongs to: the
    same process with the same key takes up the link it had, with all its streams;
    any other gets a fresh one, and ``registry`` decides who is active and who yields.

Who says nothing
    A connection costs nothing to open and may hold most of a message. So those that have yet to
    say what they want are few: for each device that may say Hello, for each address that may join.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable
from dataclasses import dataclass

from cryptography import x509
from OpenSSL import crypto
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import (
    IDelayedCall,
    IListeningPort,
    IReactorTime,
    IStreamServerEndpoint,
)
from twisted.logger import Logger
from twisted.protocols.tls import TLSMemoryBIOFactory

from aranya.certs.contexts import ServerContext
from aranya.certs.verification import CertificateRefused, moment, verify_chain
from aranya.device.admission import Admission, Admitted, NotAdmitted
from aranya.device.joining import JoinDenied, Joins, Welcome
from aranya.device.link import CLOSING, DeviceLink, Heirs
from aranya.device.registry import Registry
from aranya.interfaces import Object
from aranya.kube.errors import KubeError
from aranya.names import DeviceKey
from tether.errors import RemoteViolation
from tether.join import Joined, JoinRefused, pack_answer, printable, unpack_request
from tether.link.arrival import Arrival, Dismissal
from tether.link.link import RESUME, TAKEOVER, PeerIntroduction, Tether
from tether.link.transport import GOING_AWAY, NORMAL, MessageReceiver, MessageTransport
from tether.link.websocket import JOIN, Refusal, ServerFactory
from tether.tasks import spawn
from tether.verbs.requests import Settings
from tether.wire.mux import Role

#: Seconds from the request of a join to its end, and how many may be under way at once.
JOIN_PATIENCE = 30.0
JOINS_AT_ONCE = 64
#: Seconds that one may take to ask, and how many may not have asked yet: in all, and from one address.
JOIN_SILENCE = 10.0
SILENT_JOINS = 1024
SILENT_JOINS_OF_ADDRESS = 128

#: The most connections of one device that may not have said Hello yet.
ARRIVALS_LIMIT = 16

#: The most agents of one device that may be connected or waited for.
PROCESSES_LIMIT = 8

_ELSEWHERE = Dismissal("a process of another host, or of another boot, has this instance", True)
_TOO_MANY = Dismissal(f"{PROCESSES_LIMIT} agents of this device are connected or waited for already", True)
_LATE = Dismissal("a later connection of this process came before this one", True)
_BUSY = "too many joins at once; try again in a minute"
_TOO_MANY_ARRIVALS = f"{ARRIVALS_LIMIT} connections of this device have yet to say Hello"
#: Seconds of silence after which a device is asked whether it is there, unless its EdgeDevice says otherwise.
KEEPALIVE = 15


@dataclass(frozen=True, slots=True)
class LinkTerms:
    """What every link of this controller has in common."""

    software: str
    instance: bytes  # 16 random bytes per process
    capabilities: frozenset[str] = frozenset({RESUME, TAKEOVER})


class Gateway:
    """Listens for devices between ``listen`` and ``close``.

    ``stop_listening`` comes before the EdgeDevices are forgotten, ``close`` may come after: a
    device that is half-way in would else hear that it is unknown, and stay away for long.

    ``authorities`` (PEM) is who may sign devices. ``settings`` says what a device is
    told in the controller's Hello. It must listen only while this process leads, and after
    EdgeDevices and records were read.
    """

    _log = Logger()

    def __init__(
        self,
        endpoint: IStreamServerEndpoint,
        context: ServerContext,
        authorities: bytes,
        admission: Admission,
        joins: Joins,
        registry: Registry,
        welcome: Callable[[], Welcome],
        settings: Callable[[DeviceKey], Settings],
        terms: LinkTerms,
        clock: IReactorTime,
    ) -> None:
        self._endpoint = endpoint
        self._context = context
        self._authorities = authorities
        self._admission = admission
        self._joins = joins
        self._registry = registry
        self._welcome = welcome
        self._settings = settings
        self._terms = terms
        self._clock = clock
        self._listening: IListeningPort | None = None
        self._joining = _JoinRoom()
        self._arrivals = _Crowd(ARRIVALS_LIMIT)
        # A process may have two: one of its name may come with another key, and may be sent away.
        self._links: dict[DeviceKey, list[DeviceLink]] = {}
        self._heirs = Heirs()
        self._closing = False

    @property
    def closing(self) -> bool:
        """Whether nobody is let in any more."""
        return self._closing

    @property
    def agents(self) -> int:
        """How many agents are connected or waited for."""
        return sum(len(links) for links in self._links.values())

    @property
    def address(self) -> object:
        """Where it listens now; ``None`` if it does not."""
        return self._listening.getHost() if self._listening is not None else None

    async def listen(self) -> None:
        """Open the door; raises what the endpoint raises when it cannot listen."""
        factory = ServerFactory(self.decide, self._clock)
        self._listening = await self._endpoint.listen(
            TLSMemoryBIOFactory(self._context, False, factory, self._clock)
        )

    async def stop_listening(self) -> None:
        """Close the door; who is in stays in, who is half-way in is to come again."""
        self._closing = True
        listening, self._listening = self._listening, None
        for conversation in list(self._joining.present):
            conversation.stop()
        if listening is not None:
            stopped = listening.stopListening()
            if isinstance(stopped, Deferred):
                await stopped

    async def close(self, reason: str) -> None:
        """Close the door and end every link; devices are told to come back."""
        await self.stop_listening()
        for link in [link for links in self._links.values() for link in links]:
            link.close(reason)

    def link_over(self, link: DeviceLink) -> None:
        """Nobody will come back for this link's sessions."""
        key = link.admitted.identity.key
        links = self._links.get(key, [])
        if link in links:
            links.remove(link)
            if not links:
                del self._links[key]

    def decide(self, sub_protocol: str, transport: MessageTransport) -> MessageReceiver | Refusal:
        """Who hears this connection, or why it is not let in."""
        if self._closing:
            return _Closing()
        if sub_protocol == JOIN:
            host = _host(transport)
            if not self._joining.has_room(host):
                return Refusal(503, _BUSY)
            return _JoinConversation(self._joins, self._welcome, self._clock, self._joining, host)
        try:
            admitted = self._admission.admit(self._verified(transport.peer_certificate()))
        except (CertificateRefused, NotAdmitted) as refused:
            self._log.info(
                "connection from {peer} refused: {reason}", peer=transport.address, reason=str(refused)
            )
            return Refusal(403, str(refused))
        if not self._arrivals.has_room(admitted.identity):
            self._log.info(
                "connection from {peer} refused: {reason}", peer=transport.address, reason=_TOO_MANY_ARRIVALS
            )
            # No agent takes this for a refusal: it comes again soon.
            return Refusal(503, _TOO_MANY_ARRIVALS)
        return Arrival(
            self._clock,
            lambda said, _: self._tether_for(admitted, said),
            self._arrivals.enter(admitted.identity),
        )

    def _verified(self, certificate: x509.Certificate | None) -> x509.Certificate:
        if certificate is None:
            raise CertificateRefused("a device certificate is needed here; join first")
        leaf = crypto.X509.from_cryptography(certificate)
        # The authority signs devices itself, so no chain is needed or believed.
        return verify_chain(leaf, (), self._authorities, moment(self._clock.seconds()))

    def _tether_for(self, admitted: Admitted, said: PeerIntroduction) -> Tether | Dismissal:
        key, instance = admitted.identity.key, said.instance
        links = self._links.get(key, [])
        namesakes = [link for link in links if link.instance == instance]
        if any(link.is_elsewhere(said) for link in namesakes):
            # The state folder names the instances that live: who copied it holds the key, too.
            return _ELSEWHERE
        if any(link.overtook(admitted, said) for link in namesakes):
            return _LATE
        for link in namesakes:
            if link.continued_by(admitted):
                link.tether.introduce_as(self._introduction(key))
                return link.tether
        if len(links) >= PROCESSES_LIMIT:
            return _TOO_MANY

        def new_tether(device_link: DeviceLink) -> Tether:
            return Tether(Role.CONTROLLER, self._clock, self._introduction(key), device_link, device_link)

        link = DeviceLink(
            admitted,
            instance,
            new_tether,
            self._admission,
            self._joins,
            self._registry,
            self._heirs,
            self,
        )
        # One of the same name, but another key, is the registry's to end, once this one is let in.
        self._links.setdefault(key, links).append(link)
        return link.tether

    def _introduction(self, key: DeviceKey) -> PeerIntroduction:
        return PeerIntroduction(
            software=self._terms.software,
            capabilities=self._terms.capabilities,
            instance=self._terms.instance,
            settings=self._settings(key),
        )


def device_settings(key: DeviceKey, edge_device: Object | None, welcome: Welcome, grace: int) -> Settings:
    """What a device is told; its EdgeDevice may set the keep-alive, and a grace of its own."""
    connectivity = ((edge_device or {}).get("spec") or {}).get("connectivity") or {}
    return Settings(
        key.namespace,
        key.name,
        _seconds(connectivity.get("keepaliveSeconds"), 1, KEEPALIVE),
        welcome.urls,
        welcome.ca_bundle,
        _seconds(connectivity.get("graceSeconds"), 0, grace),
    )


def _host(transport: MessageTransport) -> str:
    return transport.address.rpartition(":")[0]


def _seconds(told: object, least: int, otherwise: int) -> int:
    if isinstance(told, int) and not isinstance(told, bool) and least <= told <= 3600:
        return told
    return otherwise


class _Closing:
    """Sends a newcomer away without refusing it, for who is refused stays away for long."""

    def connected(self, transport: MessageTransport) -> None:
        """The handshake was under way when the door was closed."""
        transport.close(GOING_AWAY, CLOSING)

    def message_received(self, message: bytes) -> None:
        """Too late."""

    def connection_lost(self, reason: str) -> None:
        """Nothing is held."""


class _Crowd:
    """How many wait, in all and of each origin; bounded."""

    def __init__(self, limit_of_origin: int, limit: int | None = None) -> None:
        self._limit_of_origin = limit_of_origin
        self._limit = limit
        self._waiting: Counter[Hashable] = Counter()

    def has_room(self, origin: Hashable) -> bool:
        """Whether one more of this origin may wait."""
        full = self._limit is not None and self._waiting.total() >= self._limit
        return not full and self._waiting[origin] < self._limit_of_origin

    def enter(self, origin: Hashable) -> Callable[[], None]:
        """One more waits; what is given back is to be called once, when it waits no more."""
        self._waiting[origin] += 1

        def leave() -> None:
            self._waiting[origin] -= 1
            if not self._waiting[origin]:
                del self._waiting[origin]

        return leave


class _JoinRoom:
    """All ``join.v1`` connections: those that have yet to ask, and those that wait for their answer.

    Asking takes a secret or is over at once, so who has asked is not counted with who only came.
    """

    def __init__(self) -> None:
        self.present: set[_JoinConversation] = set()
        self.asking: set[_JoinConversation] = set()
        self.silent = _Crowd(SILENT_JOINS_OF_ADDRESS, SILENT_JOINS)

    @property
    def is_busy(self) -> bool:
        """Whether nobody more can be answered now."""
        return len(self.asking) >= JOINS_AT_ONCE

    def has_room(self, host: str) -> bool:
        """Whether one more from this address may come in."""
        return not self.is_busy and self.silent.has_room(host)


class _JoinConversation:
    """One ``join.v1`` connection: one request, one answer."""

    _log = Logger()

    def __init__(
        self,
        joins: Joins,
        welcome: Callable[[], Welcome],
        clock: IReactorTime,
        room: _JoinRoom,
        host: str,
    ) -> None:
        self._joins = joins
        self._welcome = welcome
        self._clock = clock
        self._room = room
        self._host = host
        self._transport: MessageTransport | None = None
        self._deadline: IDelayedCall | None = None
        self._silence_over: Callable[[], None] | None = room.silent.enter(host)

    def connected(self, transport: MessageTransport) -> None:
        """The handshake is done."""
        self._transport = transport
        self._room.present.add(self)
        self._deadline = self._clock.callLater(JOIN_SILENCE, self.stop)

    def message_received(self, message: bytes) -> None:
        """The request; there is only one."""
        if self._silence_over is None or self._transport is None:
            self.stop()
            return
        self._end_silence()
        if self._room.is_busy:
            # Not a refusal, which would be believed.
            self._transport.close(GOING_AWAY, _BUSY)
            return
        self._room.asking.add(self)
        self._deadline = self._clock.callLater(JOIN_PATIENCE, self.stop)
        spawn(self._answer(message), self._log, "a join failed")

    def connection_lost(self, reason: str) -> None:
        """The asker is gone."""
        self._transport = None
        self._room.present.discard(self)
        self._room.asking.discard(self)
        self._end_silence()

    def stop(self) -> None:
        """It took too long, or the gateway closes."""
        if self._transport is not None:
            self._transport.abort()

    def _end_silence(self) -> None:
        if self._deadline is not None and self._deadline.active():
            self._deadline.cancel()
        silence_over, self._silence_over = self._silence_over, None
        if silence_over is not None:
            silence_over()

    async def _answer(self, message: bytes) -> None:
        try:
            answer = await self._answer_to(message)
        finally:
            self._room.asking.discard(self)
        if self._transport is not None:
            self._transport.send(pack_answer(answer))
            self._transport.close(NORMAL, "")

    async def _answer_to(self, message: bytes) -> Joined | JoinRefused:
        try:
            request = unpack_request(message)
            key = DeviceKey(printable(request.namespace, 63), printable(request.name, 63))
            chain = await self._joins.redeem(key, request.secret, request.csr, self._host)
        except (JoinDenied, RemoteViolation) as denied:
            return JoinRefused(str(denied))
        except KubeError as error:
            self._log.warn("a join failed: {reason}", reason=str(error))
            return JoinRefused("the controller cannot record the join now; try again with the same token")
        welcome = self._welcome()
        return Joined(chain, welcome.ca_bundle, welcome.urls)
