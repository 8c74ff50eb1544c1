"""The kubelet endpoints: one TLS port per device, one tree of pages for all of them.

An endpoint knows its device by its port, not by anything in a request: to the API
server's proxies the ``Host`` header is the client's, and there is no server name
when it dials an address. So each device has a port of its own and keeps it, as
long as nobody else took it, over restarts.

A new certificate counts for new handshakes; what runs, runs on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, cast

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import (
    IAddress,
    IDelayedCall,
    IHandshakeListener,
    IListeningPort,
    IProtocol,
    IReactorTCP,
    IReactorTime,
)
from twisted.logger import Logger
from twisted.protocols.tls import TLSMemoryBIOFactory, TLSMemoryBIOProtocol
from twisted.python.failure import Failure
from zope.interface import implementer

from aranya.certs.contexts import ServerContext
from aranya.certs.keys import KeyPair
from aranya.interfaces import ServedPod
from aranya.kubelet.root import Door, Root
from aranya.kubelet.visit import Served
from aranya.names import DeviceKey
from aranya.streaming.upgrade import KubeletChannel, KubeletSite, Lobby

#: Connections to one endpoint; nobody honest needs as many.
CONNECTION_LIMIT = 1024
HANDSHAKE_SECONDS = 10.0
#: How long clients may take to read why their session ended.
FAREWELL_SECONDS = 5.0


class CannotServe(OSError):
    """There is no port to listen on, and why in one line."""


@implementer(IHandshakeListener)
class DoorChannel(KubeletChannel):
    """A connection that must finish its TLS handshake soon."""

    def __init__(self) -> None:
        super().__init__()
        self._patience: IDelayedCall | None = None

    def connectionMade(self) -> None:
        """Framework hook: the TCP connection is there."""
        super().connectionMade()
        transport: Any = self.transport
        transport.setTcpKeepAlive(True)
        self._patience = self.callLater(HANDSHAKE_SECONDS, transport.abortConnection)

    def hang_up(self) -> None:
        """Close once all is flushed; a connection that left HTTP closes by itself."""
        if self._successor is None:
            self.loseConnection()

    def handshakeCompleted(self) -> None:
        """Framework hook: TLS is up."""
        self._calm()

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]  # as in KubeletChannel
        """Framework hook: the connection is gone."""
        self._calm()
        super().connectionLost(reason)

    def _calm(self) -> None:
        if self._patience is not None and self._patience.active():
            self._patience.cancel()
        self._patience = None


class DoorSite(KubeletSite):
    """The tree of pages behind ``DoorChannel``."""

    protocol = DoorChannel
    noisy = False


class DoorTLS(TLSMemoryBIOProtocol):
    """TLS whose writes go out as they come, and whose end is heard at any time.

    Twisted's own choice gathers writes for a turn of the reactor and cuts the heap into
    records, and a SYN_REPLY that is cut makes a client in Go drop its whole connection.
    """

    def _tlsShutdownFinished(self, reason: Failure | None) -> None:
        super()._tlsShutdownFinished(reason)
        # A socket that closes resumes a paused producer and goes on waiting for it, while all that
        # the producer writes is swallowed here.
        socket: Any = self.transport
        socket.unregisterProducer()


class BoundedTLS(TLSMemoryBIOFactory):
    """TLS for as many connections as an endpoint takes, and no more."""

    protocol = DoorTLS
    _drained: Deferred[None] | None = None

    def buildProtocol(self, addr: IAddress) -> IProtocol | None:  # type: ignore[override]  # Factory's own type
        """Framework hook: a connection was accepted; ``None`` closes it."""
        if len(self.protocols) >= CONNECTION_LIMIT:
            return None
        return super().buildProtocol(addr)

    def unregisterProtocol(self, protocol: Any) -> None:
        """Framework hook: a connection is gone."""
        super().unregisterProtocol(protocol)
        if self._drained is not None and not self.protocols:
            drained, self._drained = self._drained, None
            drained.callback(None)

    def hang_up(self, clock: IReactorTime) -> Deferred[None]:
        """Close every connection once it is flushed, and drop what does not go; fires when none is left."""
        drained: Deferred[None] = Deferred()
        if not self.protocols:
            drained.callback(None)
            return drained
        self._drained = drained
        patience = clock.callLater(FAREWELL_SECONDS, self._abort)
        drained.addCallback(lambda _: patience.cancel() if patience.active() else None)
        for connection in tuple(self.protocols):
            channel = connection.wrappedProtocol
            if isinstance(channel, DoorChannel):
                channel.hang_up()
        return drained

    def _abort(self) -> None:
        for connection in tuple(self.protocols):
            connection.abortConnection()


@dataclass(slots=True)
class _Endpoint:
    served: Served
    context: ServerContext
    tls: BoundedTLS
    listening: IListeningPort
    port: int


class KubeletEndpoints:
    """The endpoints of all devices (``Endpoints``)."""

    _log = Logger()

    def __init__(
        self,
        reactor: IReactorTCP,
        clock: IReactorTime,
        door: Door,
        *,
        interface: str = "",
        ports: tuple[int, int] | None = None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        lobby: Lobby | None = None,
    ) -> None:
        """``ports`` is the inclusive range to listen in; without it any free port will do.

        In ``lobby`` the requests to all of them wait until they are whole; by default in one as
        large as the process can bear.
        """
        self._reactor = reactor
        self._clock = clock
        self._door = door
        self._interface = interface
        self._ports = ports
        self._now = now
        self._lobby = lobby if lobby is not None else Lobby()
        self._endpoints: dict[DeviceKey, _Endpoint] = {}
        self._pods: dict[DeviceKey, ServedPod] = {}

    async def serve(self, key: DeviceKey, certificate: bytes, private_key: bytes, port: int = 0) -> int:
        """Listen for the device, or swap the certificate of its endpoint; gives back the port.

        Raises ``CannotServe`` when no port is free, ``PairUnusable`` for a bad certificate.
        """
        pair = KeyPair(certificate, private_key)
        running = self._endpoints.get(key)
        if running is not None:
            running.context.swap(pair)
            return running.port
        served = Served(key, self._now().strftime("%Y-%m-%dT%H:%M:%SZ"), self._pods.get(key))
        context = ServerContext(pair)
        site = DoorSite(Root(self._door, served), self._clock, self._lobby)
        tls = BoundedTLS(context, False, site, self._clock)
        listening = self._listen(tls, port)
        address: Any = listening.getHost()
        endpoint = _Endpoint(served, context, tls, listening, address.port)
        self._endpoints[key] = endpoint
        self._log.info("Serving {device} on port {port}.", device=str(key), port=endpoint.port)
        return endpoint.port

    def set_pod(self, pod: ServedPod) -> None:
        """Tell the endpoint which pod, containers and forwards it answers for."""
        self._pods[pod.key] = pod
        endpoint = self._endpoints.get(pod.key)
        if endpoint is not None:
            endpoint.served.pod = pod

    async def stop(self, key: DeviceKey, reason: str) -> None:
        """Stop listening and end the sessions with the reason; clients read it at their leisure."""
        self._pods.pop(key, None)
        endpoint = self._endpoints.pop(key, None)
        if endpoint is not None:
            self._log.info("No longer serving {device}: {reason}", device=str(key), reason=reason)
            closed, _ = self._close(endpoint, reason)
            await closed

    async def stop_all(self, reason: str) -> None:
        """Stop every endpoint, and wait a little for clients to read why: aranya stops, or leads no more."""
        endpoints = tuple(self._endpoints.values())
        self._endpoints.clear()
        self._pods.clear()
        for ending in [self._close(endpoint, reason) for endpoint in endpoints]:
            for part in ending:
                await part

    def _close(self, endpoint: _Endpoint, reason: str) -> tuple[Deferred[None], Deferred[None]]:
        closed = maybeDeferred(_stop_listening, endpoint.listening)
        endpoint.served.end_sessions(reason)
        return closed, endpoint.tls.hang_up(self._clock)

    def port(self, key: DeviceKey) -> int:
        """The port it listens on now; 0 if it does not."""
        endpoint = self._endpoints.get(key)
        return 0 if endpoint is None else endpoint.port

    def sessions(self) -> int:
        """How many client sessions run now, over all devices."""
        return sum(endpoint.served.sessions for endpoint in self._endpoints.values())

    def _listen(self, tls: BoundedTLS, preferred: int) -> IListeningPort:
        failure = "the range is used up"
        for port in self._candidates(preferred):
            try:
                # A wrapping factory is a server factory in all but its declared type.
                return self._reactor.listenTCP(port, cast(Any, tls), interface=self._interface)
            except CannotListenError as error:
                failure = str(error.socketError)
        wanted = "any port" if self._ports is None else "any of the ports {}-{}".format(*self._ports)
        raise CannotServe(f"cannot listen on {wanted} of {self._interface or 'this host'}: {failure}")

    def _candidates(self, preferred: int) -> Iterable[int]:
        if self._ports is None:
            if preferred:
                yield preferred
            yield 0
            return
        low, high = self._ports
        taken = {endpoint.port for endpoint in self._endpoints.values()}
        if low <= preferred <= high and preferred not in taken:
            yield preferred
        for port in range(low, high + 1):
            if port not in taken and port != preferred:
                yield port


async def _stop_listening(listening: IListeningPort) -> None:
    stopped = listening.stopListening()
    if stopped is not None:
        await stopped
