"""The one door for devices: a TLS endpoint that speaks ``join.v1`` and ``tether.v1``, nothing else.

Who has no certificate of ours can reach nothing but the join conversation. Who has one
is let in by ``admission`` within the handshake, or hears in one line why not.

The first message
    A device's Hello is read before it is decided which link it belongs to: the
    same process with the same key takes up the link it had, with all its streams;
    any other gets a fresh one, and ``registry`` decides who yields.
"""

from __future__ import annotations

from collections.abc import Callable
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
from aranya.device.device import LinkedDevice
from aranya.device.joining import JoinDenied, Joins, Welcome
from aranya.device.registry import Cloned, Registry
from aranya.interfaces import Object
from aranya.kube.errors import KubeError
from aranya.names import DeviceKey
from tether.errors import Reason, RemoteViolation, ResetCode
from tether.join import Joined, JoinRefused, pack_answer, printable, unpack_request
from tether.link.arrival import Arrival
from tether.link.interfaces import Channel, Lane, Link, Receiver
from tether.link.link import PeerIntroduction, Tether
from tether.link.transport import GOING_AWAY, NORMAL, MessageReceiver, MessageTransport
from tether.link.websocket import JOIN, Refusal, ServerFactory
from tether.tasks import spawn
from tether.verbs.codec import encode_result
from tether.verbs.requests import Failed, Issued, Renew, Request, Result, Settings
from tether.wire.mux import Role

#: Seconds for one whole join, and how many may be under way at once.
JOIN_PATIENCE = 30.0
JOINS_AT_ONCE = 64

_UNSUPPORTED = Reason(ResetCode.UNSUPPORTED, "the controller does not do this for a device")
_ONE_RENEWAL = Reason(ResetCode.LIMIT, "a renewal of this device is under way already")
_BUSY = "too many joins at once; try again in a minute"
_CLOSING = "the controller is stopping"


@dataclass(frozen=True, slots=True)
class LinkTerms:
    """What every link of this controller has in common."""

    software: str
    instance: bytes  # 16 random bytes per process
    capabilities: frozenset[str] = frozenset()
    grace: float = 0.0


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
        self._joining: set[_JoinConversation] = set()
        self._links: dict[DeviceKey, _DeviceLink] = {}
        self._closing = False

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
        for conversation in list(self._joining):
            conversation.stop()
        if listening is not None:
            stopped = listening.stopListening()
            if isinstance(stopped, Deferred):
                await stopped

    async def close(self, reason: str) -> None:
        """Close the door and end every link; devices are told to come back."""
        await self.stop_listening()
        for link in list(self._links.values()):
            link.close(reason)

    def decide(self, sub_protocol: str, transport: MessageTransport) -> MessageReceiver | Refusal:
        """Who hears this connection, or why it is not let in."""
        if self._closing:
            return _Closing()
        if sub_protocol == JOIN:
            if len(self._joining) >= JOINS_AT_ONCE:
                return Refusal(503, _BUSY)
            return _JoinConversation(self._joins, self._welcome, self._clock, self._joining)
        try:
            admitted = self._admission.admit(self._verified(transport.peer_certificate()))
        except (CertificateRefused, NotAdmitted) as refused:
            self._log.info(
                "connection from {peer} refused: {reason}", peer=transport.address, reason=str(refused)
            )
            return Refusal(403, str(refused))
        return Arrival(self._clock, lambda said, _: self._tether_for(admitted, said.instance))

    def _verified(self, certificate: x509.Certificate | None) -> x509.Certificate:
        if certificate is None:
            raise CertificateRefused("a device certificate is needed here; join first")
        leaf = crypto.X509.from_cryptography(certificate)
        # The authority signs devices itself, so no chain is needed or believed.
        return verify_chain(leaf, (), self._authorities, moment(self._clock.seconds()))

    def _tether_for(self, admitted: Admitted, instance: bytes) -> Tether:
        key = admitted.identity.key
        link = self._links.get(key)
        if link is None or not link.is_of(admitted, instance):

            def new_tether(device_link: _DeviceLink) -> Tether:
                return Tether(
                    Role.CONTROLLER,
                    self._clock,
                    self._introduction(key),
                    device_link,
                    device_link,
                    grace=self._terms.grace,
                    keepalive=float(self._settings(key).keepalive_seconds),
                )

            link = _DeviceLink(
                admitted,
                instance,
                new_tether,
                self._admission,
                self._joins,
                self._registry,
                self._links,
                self._terms.grace > 0,
                lambda: self._closing,
            )
        else:
            link.tether.introduce_as(self._introduction(key))
        return link.tether

    def _introduction(self, key: DeviceKey) -> PeerIntroduction:
        return PeerIntroduction(
            software=self._terms.software,
            capabilities=self._terms.capabilities,
            instance=self._terms.instance,
            settings=self._settings(key),
        )


def device_settings(key: DeviceKey, edge_device: Object | None, welcome: Welcome) -> Settings:
    """What a device is told, with the keep-alive that its EdgeDevice may set."""
    connectivity = ((edge_device or {}).get("spec") or {}).get("connectivity") or {}
    keepalive = connectivity.get("keepaliveSeconds")
    if not isinstance(keepalive, int) or not 1 <= keepalive <= 3600:
        keepalive = 15
    return Settings(key.namespace, key.name, keepalive, welcome.urls, welcome.ca_bundle)


class _Closing:
    """Sends a newcomer away without refusing it, for who is refused stays away for long."""

    def connected(self, transport: MessageTransport) -> None:
        """The handshake was under way when the door was closed."""
        transport.close(GOING_AWAY, _CLOSING)

    def message_received(self, message: bytes) -> None:
        """Too late."""

    def connection_lost(self, reason: str) -> None:
        """Nothing is held."""


class _DeviceLink:
    """One device's link on this side: tells the registry how it fares, renews certificates."""

    _log = Logger()

    def __init__(
        self,
        admitted: Admitted,
        instance: bytes,
        new_tether: Callable[[_DeviceLink], Tether],
        admission: Admission,
        joins: Joins,
        registry: Registry,
        links: dict[DeviceKey, _DeviceLink],
        outlives_connections: bool,
        is_closing: Callable[[], bool],
    ) -> None:
        self._admitted = admitted
        self._instance = instance
        self._admission = admission
        self._joins = joins
        self._registry = registry
        self._links = links
        self._outlives_connections = outlives_connections
        self._is_closing = is_closing
        self._device: LinkedDevice | None = None
        self._renewing = False
        self.tether = new_tether(self)

    def is_of(self, admitted: Admitted, instance: bytes) -> bool:
        """Whether a newcomer is the same process with the same key."""
        return self._admitted == admitted and self._instance == instance

    def close(self, reason: str, retry: bool = True) -> None:
        """End the link for good."""
        self._forget()
        self.tether.close(reason, retry)

    # ---- Watcher

    def link_up(self, link: Link, resumed: bool) -> None:
        """The device said Hello; from here on it can be used."""
        if self._is_closing():
            self.close(_CLOSING)
            return
        key = self._admitted.identity.key
        transport = self.tether.transport
        address = transport.address if transport is not None else ""
        device = LinkedDevice(self._admitted.identity, self._admitted.key_hash, link, address)
        try:
            # A ban or another join may have come since the handshake, when there was no link to end.
            self._admission.check(self._admitted)
            self._registry.arrived(device)
        except NotAdmitted as refused:
            self.close(str(refused), retry=False)
            return
        except Cloned as refused:
            self.close(str(refused))
            return
        older = self._links.get(key)
        self._links[key] = self
        self._device = device
        if older is not None and older is not self:
            # It may be waiting out its grace; nobody will come for its streams any more.
            older.tether.close("the device came back as another process")
        spawn(self._record_use(), self._log, "cannot record which key a device uses")

    def link_down(self, link: Link, reason: str, retry: bool) -> None:
        """The connection is gone; the link may come back within its grace."""
        device, self._device = self._device, None
        if device is not None:
            # Perhaps the device's own words, as it closed the WebSocket.
            self._registry.left(device, printable(reason))
        if not self._outlives_connections:
            self._forget()

    async def _record_use(self) -> None:
        try:
            await self._joins.connected(self._admitted.identity, self._admitted.key_hash)
        except KubeError as error:
            # The key before counts on until the next time.
            device = str(self._admitted.identity.key)
            self._log.warn(
                "cannot record which key {device} uses: {reason}", device=device, reason=str(error)
            )

    def _forget(self) -> None:
        key = self._admitted.identity.key
        if self._links.get(key) is self:
            del self._links[key]

    # ---- Acceptor

    def stream_opened(self, request: Request, channel: Channel) -> Receiver:
        """Devices may ask for a new certificate, and for nothing else."""
        answer = _Answer(channel)
        if isinstance(request, Renew) and self._renewing:
            # Each is signed and recorded: no device may have the controller do that without end.
            channel.reset(_ONE_RENEWAL)
        elif isinstance(request, Renew):
            self._renewing = True
            spawn(self._renew(request, answer), self._log, "cannot renew a device's certificate")
        else:
            channel.reset(_UNSUPPORTED)
        return answer

    async def _renew(self, request: Renew, answer: _Answer) -> None:
        admitted = self._admitted
        try:
            chain = await self._joins.renew(admitted.identity, admitted.key_hash, request.csr)
        except JoinDenied as denied:
            answer.give(Failed(ResetCode.REFUSED, str(denied)))
        except KubeError as error:
            self._log.warn(
                "renewal for {device} failed: {reason}",
                device=str(admitted.identity.key),
                reason=str(error),
            )
            answer.give(Failed(ResetCode.INTERNAL, "the controller cannot record the key now; try later"))
        else:
            answer.give(Issued(chain))
        finally:
            self._renewing = False


class _Answer:
    """Gives one result on a channel, if anybody still waits; receives nothing."""

    def __init__(self, channel: Channel) -> None:
        self._channel: Channel | None = channel

    def give(self, result: Result) -> None:
        """The answer."""
        if self._channel is not None:
            self._channel.write(encode_result(result), Lane.RESULT)
            self._channel.finish()

    def data_received(self, lane: Lane, data: bytes) -> None:
        """Nothing belongs here."""

    def finished(self) -> None:
        """The asker has said all."""

    def reset(self, reason: Reason) -> None:
        """Nobody waits any more."""
        self._channel = None

    def closed(self) -> None:
        """The channel is history."""
        self._channel = None


class _JoinConversation:
    """One ``join.v1`` connection: one request, one answer."""

    _log = Logger()

    def __init__(
        self,
        joins: Joins,
        welcome: Callable[[], Welcome],
        clock: IReactorTime,
        under_way: set[_JoinConversation],
    ) -> None:
        self._joins = joins
        self._welcome = welcome
        self._clock = clock
        self._under_way = under_way
        self._transport: MessageTransport | None = None
        self._deadline: IDelayedCall | None = None
        self._asked = False

    def connected(self, transport: MessageTransport) -> None:
        """The handshake is done."""
        self._transport = transport
        self._under_way.add(self)
        self._deadline = self._clock.callLater(JOIN_PATIENCE, self.stop)

    def message_received(self, message: bytes) -> None:
        """The request; there is only one."""
        if self._asked or self._transport is None:
            self.stop()
            return
        self._asked = True
        spawn(self._answer(message, self._transport), self._log, "a join failed")

    def connection_lost(self, reason: str) -> None:
        """The asker is gone."""
        self._transport = None
        self._under_way.discard(self)
        if self._deadline is not None and self._deadline.active():
            self._deadline.cancel()

    def stop(self) -> None:
        """It took too long, or the gateway closes."""
        if self._transport is not None:
            self._transport.abort()

    async def _answer(self, message: bytes, transport: MessageTransport) -> None:
        answer: Joined | JoinRefused
        try:
            request = unpack_request(message)
            key = DeviceKey(printable(request.namespace, 63), printable(request.name, 63))
            host = transport.address.rpartition(":")[0]
            chain = await self._joins.redeem(key, request.secret, request.csr, host)
        except (JoinDenied, RemoteViolation) as denied:
            answer = JoinRefused(str(denied))
        except KubeError as error:
            self._log.warn("a join failed: {reason}", reason=str(error))
            answer = JoinRefused("the controller cannot record the join now; try again with the same token")
        else:
            welcome = self._welcome()
            answer = Joined(chain, welcome.ca_bundle, welcome.urls)
        if self._transport is not None:
            self._transport.send(pack_answer(answer))
            self._transport.close(NORMAL, "")
