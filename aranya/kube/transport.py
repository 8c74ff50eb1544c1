"""The way to the API server: TLS that knows it, connections that notice its death, a pool of them.

Twisted's ``Agent`` is given its endpoints here. A watch may be silent for minutes,
so TCP itself must find a dead peer (keep-alive, and a bound on unacknowledged bytes).
"""

from __future__ import annotations

import socket
from typing import Any
from urllib.parse import urlsplit

from cryptography import x509
from OpenSSL import SSL, crypto
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import HostnameEndpoint, wrapClientTLS
from twisted.internet.error import VerifyError
from twisted.internet.interfaces import (
    IOpenSSLClientConnectionCreator,
    IProtocol,
    IProtocolFactory,
    IReactorTime,
    IStreamClientEndpoint,
)
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.ssl import (
    Certificate,
    CertificateOptions,
    KeyPair,
    PrivateCertificate,
    optionsForClientTLS,
    platformTrust,
    trustRootFromCertificates,
)
from twisted.protocols.tls import TLSMemoryBIOProtocol
from twisted.python.failure import Failure
from twisted.web.client import URI, Agent, HTTPConnectionPool
from twisted.web.iweb import IAgent, IAgentEndpointFactory
from zope.interface import implementer

from aranya.kube.credentials import ClientPair, ClusterAccess
from aranya.kube.errors import CredentialsError, Unreachable

CONNECT_SECONDS = 10.0
POOL_SIZE = 32
#: Below the 90 s after which the API server closes an idle connection: a POST must not meet that race.
IDLE_SECONDS = 60


class Way:
    """How to reach one API server; the client certificate may be replaced while it runs."""

    def __init__(self, reactor: IReactorTime, access: ClusterAccess) -> None:
        self._endpoints = _Endpoints(reactor, access)
        self._pool = HTTPConnectionPool(reactor, persistent=True)
        self._pool.maxPersistentPerHost = POOL_SIZE
        self._pool.cachedConnectionTimeout = IDLE_SECONDS
        # The client decides itself what may be sent twice.
        self._pool.retryAutomatically = False
        self.agent: IAgent = Agent.usingEndpointFactory(reactor, self._endpoints, self._pool)

    def show(self, pair: ClientPair | None) -> None:
        """Present this client certificate from the next connection on."""
        if self._endpoints.show(pair):
            # A kept connection would go on speaking for the old certificate.
            self._pool.closeCachedConnections()

    def close(self) -> Deferred[None]:
        """Close the connections that nobody uses."""
        closing: Deferred[None] = self._pool.closeCachedConnections()
        return closing

    def forget_idle(self) -> None:
        """Let the next request have a new connection."""
        self._pool.closeCachedConnections()


@implementer(IAgentEndpointFactory)
class _Endpoints:
    """One API server's endpoint, made anew when the client certificate changes."""

    def __init__(self, reactor: IReactorTime, access: ClusterAccess) -> None:
        self._reactor = reactor
        self._access = access
        self._pair: ClientPair | None = None
        self._tls: IOpenSSLClientConnectionCreator | None = None

    def show(self, pair: ClientPair | None) -> bool:
        """Take the certificate for new connections; says whether it is another one than before."""
        if pair == self._pair:
            return False
        self._pair, self._tls = pair, None
        return True

    def endpointForURI(self, uri: URI) -> IStreamClientEndpoint:
        access = self._access
        if access.proxy_url:
            proxy = urlsplit(access.proxy_url)
            way: IStreamClientEndpoint = _Tunnel(
                self._tcp(proxy.hostname or "", proxy.port or 80), access.host, access.port
            )
        else:
            way = self._tcp(access.host, access.port)
        if uri.scheme != b"https":
            return _Quiet(way)
        if self._tls is None:
            self._tls = tls_for(access, self._pair)
        return _Quiet(wrapClientTLS(self._tls, way))

    def _tcp(self, host: str, port: int) -> IStreamClientEndpoint:
        return _Watchful(HostnameEndpoint(self._reactor, host, port, timeout=CONNECT_SECONDS))


@implementer(IStreamClientEndpoint)
class _Quiet:
    """An endpoint whose connections do not cost two lines of the log each."""

    def __init__(self, inner: IStreamClientEndpoint) -> None:
        self._inner = inner

    def __repr__(self) -> str:
        return repr(self._inner)

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[IProtocol]:
        if isinstance(protocolFactory, Factory):
            protocolFactory.noisy = False
        return self._inner.connect(protocolFactory)


def tls_for(access: ClusterAccess, pair: ClientPair | None) -> IOpenSSLClientConnectionCreator:
    """TLS towards the API server; a host that is an IP address is verified as one and sends no SNI."""
    name = access.server_name or access.host
    try:
        authorities = None if access.ca is None else _certificates(access.ca)
        own = None if pair is None else _certificates(pair.certificate)
        key = None if pair is None else KeyPair.load(pair.key, crypto.FILETYPE_PEM)
    except (ValueError, crypto.Error):
        # The library's words may quote what it was given.
        raise CredentialsError("the CA, client certificate or client key is not valid PEM") from None
    client: PrivateCertificate | None = None
    more: dict[str, Any] = {}
    try:
        if own is not None and key is not None:
            client = PrivateCertificate.fromCertificateAndKeyPair(own[0], key)
            if own[1:]:
                more = {"extraCertChain": [link.original for link in own[1:]]}
        if not access.verify:
            return _Unverified(name, client, more)
        trust = platformTrust() if authorities is None else trustRootFromCertificates(authorities)
        return optionsForClientTLS(name, trust, client, extraCertificateOptions=more)
    except (SSL.Error, VerifyError, ValueError):
        raise CredentialsError("the client certificate and the client key do not belong together") from None


def _certificates(pem: bytes) -> list[Certificate]:
    return [
        Certificate(crypto.X509.from_cryptography(found)) for found in x509.load_pem_x509_certificates(pem)
    ]


@implementer(IOpenSSLClientConnectionCreator)
class _Unverified:
    """TLS for ``insecure-skip-tls-verify``: encrypted, to nobody in particular."""

    def __init__(self, name: str, client: PrivateCertificate | None, more: dict[str, Any]) -> None:
        mine: dict[str, Any] = {}
        if client is not None:
            mine = {"privateKey": client.privateKey.original, "certificate": client.original}
        self._context = CertificateOptions(**mine, **more).getContext()
        self._context.set_verify(SSL.VERIFY_NONE)
        self._name = name

    def clientConnectionForTLS(self, tlsProtocol: TLSMemoryBIOProtocol) -> SSL.Connection:
        connection = SSL.Connection(self._context, None)
        connection.set_app_data(tlsProtocol)
        if not _is_address(self._name):
            connection.set_tlsext_host_name(self._name.encode("idna"))
        return connection


def _is_address(host: str) -> bool:
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            socket.inet_pton(family, host)
        except OSError:
            continue
        return True
    return False


#: Options of a connection that may be silent for long; those this system lacks are left out.
_PATIENCE = {"TCP_KEEPIDLE": 30, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3, "TCP_USER_TIMEOUT": 60_000}


@implementer(IStreamClientEndpoint)
class _Watchful:
    """A TCP endpoint whose connections end within a minute of their peer's silent death."""

    def __init__(self, inner: IStreamClientEndpoint) -> None:
        self._inner = inner

    def __repr__(self) -> str:
        return repr(self._inner)

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[IProtocol]:
        return self._inner.connect(protocolFactory).addCallback(_keep_alive)


def _keep_alive(protocol: IProtocol) -> IProtocol:
    transport = getattr(protocol, "transport", None)
    handle = getattr(transport, "getHandle", lambda: None)()
    if isinstance(handle, socket.socket):
        handle.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in _PATIENCE.items():
            if hasattr(socket, name):
                handle.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return protocol


# ---- through a proxy ---------------------------------------------------------


@implementer(IStreamClientEndpoint)
class _Tunnel:
    """A connection through an HTTP proxy's ``CONNECT``."""

    def __init__(self, proxy: IStreamClientEndpoint, host: str, port: int) -> None:
        self._proxy = proxy
        self._target = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[IProtocol]:
        ready: Deferred[IProtocol] = Deferred(lambda _: connecting.cancel())
        factory = Factory.forProtocol(lambda: _Connect(self._target, protocolFactory, ready))
        connecting = _Quiet(self._proxy).connect(factory)

        def failed(failure: Failure) -> None:
            if not ready.called:
                ready.errback(failure)

        connecting.addErrback(failed)
        return ready


class _Connect(Protocol):
    """Asks the proxy, then steps aside for the protocol that wanted the connection."""

    _LIMIT = 16 * 1024

    def __init__(self, target: str, factory: IProtocolFactory, ready: Deferred[IProtocol]) -> None:
        self._target = target
        self._factory = factory
        self._ready = ready
        self._head = b""
        self._inner: IProtocol | None = None

    def connectionMade(self) -> None:
        target = self._target.encode("idna") if self._target.isascii() is False else self._target.encode()
        assert self.transport is not None
        self.transport.write(b"CONNECT %b HTTP/1.1\r\nHost: %b\r\n\r\n" % (target, target))

    def dataReceived(self, data: bytes) -> None:
        if self._inner is not None:
            self._inner.dataReceived(data)
            return
        self._head += data
        head, end, rest = self._head.partition(b"\r\n\r\n")
        if not end:
            if len(self._head) > self._LIMIT:
                self._refuse("its answer makes no sense")
            return
        words = head.split(b"\r\n")[0].split(b" ", 2)
        if len(words) < 2 or words[1] != b"200":
            code = words[1][:3].decode("ascii", "replace") if len(words) > 1 else "nothing"
            self._refuse(f"it answered {code}")
            return
        assert self.transport is not None
        inner = self._factory.buildProtocol(self.transport.getPeer())
        if inner is None or self._ready.called:
            self.transport.loseConnection()
            return
        self._inner = inner
        inner.makeConnection(self.transport)
        self._ready.callback(inner)
        if rest:
            inner.dataReceived(rest)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self._inner is not None:
            self._inner.connectionLost(reason)
        elif not self._ready.called:
            self._ready.errback(Failure(Unreachable("the proxy closed the connection")))

    def _refuse(self, why: str) -> None:
        if not self._ready.called:
            self._ready.errback(Failure(Unreachable(f"the proxy does not connect to the API server: {why}")))
        assert self.transport is not None
        self.transport.loseConnection()
