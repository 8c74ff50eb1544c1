"""The road from the device to a gateway: its URL, a proxy if there is one, TLS with a pinned authority.

A ``GatewayTrust`` remembers in words why it did not trust a gateway: what TLS
reports by itself is of no use to the person at the device, and a wrong clock is the
commonest cause.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from datetime import datetime
from ipaddress import ip_address, ip_network
from typing import Any
from urllib.parse import unquote, urlsplit

from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from OpenSSL import SSL, crypto
from service_identity import CertificateError, VerificationError
from service_identity.cryptography import (
    verify_certificate_hostname,
    verify_certificate_ip_address,
)
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.endpoints import HostnameEndpoint, wrapClientTLS
from twisted.internet.interfaces import (
    IAddress,
    IOpenSSLClientConnectionCreator,
    IProtocol,
    IProtocolFactory,
    IReactorPluggableNameResolver,
    IReactorTCP,
    IReactorTime,
    IStreamClientEndpoint,
)
from twisted.internet.protocol import Protocol, connectionDone
from twisted.internet.ssl import optionsForClientTLS
from twisted.logger import Logger
from twisted.protocols.tls import TLSMemoryBIOProtocol
from twisted.python.failure import Failure
from zope.interface import implementer

from tether.join import SYSTEM_TRUST, printable

CIPHERS = b"ECDHE+AESGCM:ECDHE+CHACHA20"
#: Seconds for a TCP connection, and for a proxy to answer.
CONNECT_TIMEOUT = 10.0

_PROXY_HEAD_LIMIT = 16 * 1024
_NOT_YET_VALID, _EXPIRED = 9, 10  # X509_V_ERR_CERT_NOT_YET_VALID, _HAS_EXPIRED


class NetworkReactor(IReactorTCP, IReactorTime, IReactorPluggableNameResolver):
    """What dialling needs of the reactor."""


class ProxyRefused(Exception):
    """A proxy does not let us through; one line of why."""


@implementer(IOpenSSLClientConnectionCreator)
class GatewayTrust:
    """TLS towards one gateway: the host must be certified by ``ca_bundle``.

    ``certificate`` and ``key`` (PEM) are presented when given. ``doubt`` says
    afterwards why the gateway was not trusted; empty if it was.
    """

    _log = Logger()

    def __init__(
        self,
        host: str,
        ca_bundle: bytes,
        now: Callable[[], datetime],
        certificate: bytes = b"",
        key: bytes = b"",
    ) -> None:
        self._host = host
        self._now = now
        self.doubt = ""
        self._is_address = _is_address(host)
        # The published stubs lag behind the library.
        context: Any = SSL.Context(SSL.TLS_METHOD)
        context.set_min_proto_version(SSL.TLS1_2_VERSION)
        context.set_cipher_list(CIPHERS)
        context.set_options(SSL.OP_NO_COMPRESSION)
        if ca_bundle == SYSTEM_TRUST:
            context.set_default_verify_paths()
        else:
            store = context.get_cert_store()
            for anchor in x509.load_pem_x509_certificates(ca_bundle):
                store.add_cert(crypto.X509.from_cryptography(anchor))
        if certificate:
            chain = x509.load_pem_x509_certificates(certificate)
            context.use_certificate(chain[0])
            for other in chain[1:]:
                context.add_extra_chain_cert(other)
            context.use_privatekey(load_pem_private_key(key, None))
        context.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT, self._verify)
        self._context: Any = context

    def clientConnectionForTLS(self, tlsProtocol: TLSMemoryBIOProtocol) -> SSL.Connection:
        """Framework hook: the OpenSSL connection of one socket."""
        connection = SSL.Connection(self._context, None)
        if not self._is_address:
            connection.set_tlsext_host_name(self._host.encode("idna"))
        return connection

    def _verify(
        self, connection: SSL.Connection, certificate: crypto.X509, error: int, depth: int, ok: int
    ) -> bool:
        try:
            leaf = certificate.to_cryptography()
            if not ok:
                self.doubt = self._explain(leaf, error)
            elif depth == 0:
                self._verify_host(leaf)
        except Exception:
            # OpenSSL would swallow it; what cannot be judged is not trusted.
            self._log.failure("cannot judge the gateway's certificate")
            self.doubt = "the gateway's certificate cannot be judged"
        return not self.doubt

    def _verify_host(self, leaf: x509.Certificate) -> None:
        try:
            if self._is_address:
                verify_certificate_ip_address(leaf, self._host)
            else:
                verify_certificate_hostname(leaf, self._host)
        except (VerificationError, CertificateError):
            self.doubt = f"the gateway's certificate is not for {self._host}; see aranya's --gateway-url"

    def _explain(self, certificate: x509.Certificate, error: int) -> str:
        clock = f"the clock here says {self._now().astimezone():%Y-%m-%d %H:%M %Z}; is it right?"
        if error == _NOT_YET_VALID:
            start = certificate.not_valid_before_utc
            return f"the gateway's certificate is valid only from {start:%Y-%m-%d %H:%M} UTC, and {clock}"
        if error == _EXPIRED:
            end = certificate.not_valid_after_utc
            return f"the gateway's certificate expired on {end:%Y-%m-%d %H:%M} UTC, and {clock}"
        return (
            f"{self._host} is not the gateway this device trusts: its certificate is signed by "
            "somebody else (a proxy that opens TLS, or aranya's authority was replaced)"
        )


def gateway_endpoint(
    reactor: NetworkReactor, url: str, trust: GatewayTrust, environment: Mapping[str, str]
) -> IStreamClientEndpoint:
    """Where to connect for ``url``: through the environment's proxy if it names one, with TLS.

    Raises ``ProxyRefused`` when the proxy's own URL cannot be used.
    """
    host, port = host_and_port(url)
    proxy = proxy_for(host, port, environment)
    if not proxy:
        direct = HostnameEndpoint(reactor, host, port, CONNECT_TIMEOUT)
        return wrapClientTLS(trust, direct)
    return wrapClientTLS(trust, _through(reactor, proxy, host, port))


def host_and_port(url: str) -> tuple[str, int]:
    """The host and port that a ``wss://`` URL names."""
    parts = urlsplit(url)
    return parts.hostname or "", parts.port or 443


def proxy_for(host: str, port: int, environment: Mapping[str, str]) -> str:
    """The proxy's URL for this target by ``HTTPS_PROXY`` and ``NO_PROXY``; empty for none."""

    def variable(name: str) -> str:
        return (environment.get(name) or environment.get(name.upper()) or "").strip()

    proxy = variable("https_proxy")
    if not proxy or host.lower() == "localhost" or (_is_address(host) and ip_address(host).is_loopback):
        return ""
    for pattern in variable("no_proxy").split(","):
        if _spared(pattern.strip().lower(), host.lower(), port):
            return ""
    return proxy if "://" in proxy else f"http://{proxy}"


def _spared(pattern: str, host: str, port: int) -> bool:
    if not pattern:
        return False
    if pattern == "*":
        return True
    if _is_address(host):
        try:
            return ip_address(host) in ip_network(pattern.strip("[]"), strict=False)
        except ValueError:
            return pattern in (f"{host}:{port}", f"[{host}]:{port}")
    name, colon, only = pattern.partition(":")
    if colon and only != str(port):
        return False
    name = name.lstrip("*").lstrip(".")
    return host == name or host.endswith(f".{name}")


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


# ---- through a proxy ----------------------------------------------------------------


def _through(reactor: NetworkReactor, proxy: str, host: str, port: int) -> IStreamClientEndpoint:
    try:
        parts = urlsplit(proxy)
        proxy_host, proxy_port = parts.hostname, parts.port
    except ValueError:
        proxy_host, proxy_port = None, None
        parts = urlsplit("")
    if parts.scheme not in ("http", "https") or not proxy_host:
        raise ProxyRefused("HTTPS_PROXY is not http://HOST:PORT or https://HOST:PORT")
    secure = parts.scheme == "https"
    to_proxy: IStreamClientEndpoint = HostnameEndpoint(
        reactor, proxy_host, proxy_port or (443 if secure else 80), CONNECT_TIMEOUT
    )
    if secure:
        to_proxy = wrapClientTLS(optionsForClientTLS(proxy_host), to_proxy)
    credentials = ""
    if parts.username is not None:
        plain = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        credentials = base64.b64encode(plain.encode("utf-8")).decode("ascii")
    return ConnectEndpoint(to_proxy, reactor, host, port, credentials)


@implementer(IStreamClientEndpoint)
class ConnectEndpoint:
    """Reaches ``host:port`` by asking an HTTP proxy for it with ``CONNECT``."""

    def __init__(
        self, to_proxy: IStreamClientEndpoint, clock: IReactorTime, host: str, port: int, credentials: str
    ) -> None:
        self._to_proxy = to_proxy
        self._clock = clock
        self._credentials = credentials
        self._target = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[IProtocol]:
        """Connect; fires with the factory's protocol once the proxy has let us through."""
        request = f"CONNECT {self._target} HTTP/1.1\r\nHost: {self._target}\r\n"
        if self._credentials:
            request += f"Proxy-Authorization: Basic {self._credentials}\r\n"
        tunnels = _Tunnels(protocolFactory, f"{request}\r\n".encode("ascii"), self._clock)
        return self._to_proxy.connect(tunnels).addCallback(_opened)


def _opened(tunnel: Any) -> Deferred[IProtocol]:
    opened: Deferred[IProtocol] = tunnel.opened
    return opened


@implementer(IProtocolFactory)
class _Tunnels:
    def __init__(self, inner: IProtocolFactory, request: bytes, clock: IReactorTime) -> None:
        self._inner = inner
        self._request = request
        self._clock = clock

    def doStart(self) -> None:
        self._inner.doStart()

    def doStop(self) -> None:
        self._inner.doStop()

    def buildProtocol(self, addr: IAddress | None) -> IProtocol:
        return _Tunnel(self._inner, self._request, self._clock)


class _Tunnel(Protocol):
    """Says CONNECT, reads the answer's head, then passes everything to the inner protocol."""

    def __init__(self, inner: IProtocolFactory, request: bytes, clock: IReactorTime) -> None:
        self._factory = inner
        self._request = request
        self._clock = clock
        self._head = b""
        self._inner: IProtocol | None = None
        self.opened: Deferred[IProtocol] = Deferred(lambda _: self._give_up(CancelledError()))
        self._done = False

    def connectionMade(self) -> None:
        self._timer = self._clock.callLater(
            CONNECT_TIMEOUT, lambda: self._give_up(ProxyRefused("the proxy did not answer in time"))
        )
        assert self.transport is not None
        self.transport.write(self._request)

    def dataReceived(self, data: bytes) -> None:
        if self._inner is not None:
            self._inner.dataReceived(data)
            return
        if self._done:
            return
        self._head += data
        head, end, rest = self._head.partition(b"\r\n\r\n")
        if not end:
            if len(self._head) > _PROXY_HEAD_LIMIT:
                self._give_up(ProxyRefused("the proxy's answer is not HTTP"))
            return
        self._head = b""
        status = head.split(b"\r\n", 1)[0].decode("latin-1")
        version, _, told = status.partition(" ")
        if not version.startswith("HTTP/1.") or not told.startswith("2"):
            self._give_up(ProxyRefused(f"the proxy refused: {printable(told or status, 120)}"))
            return
        self._pass(rest)

    def _pass(self, rest: bytes) -> None:
        self._settle()
        assert self.transport is not None
        inner = self._factory.buildProtocol(self.transport.getPeer())
        if inner is None:
            self.transport.loseConnection()
            self.opened.errback(CancelledError())
            return
        self._inner = inner
        inner.makeConnection(self.transport)
        self.opened.callback(inner)
        if rest:
            inner.dataReceived(rest)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self._inner is not None:
            self._inner.connectionLost(reason)
        else:
            self._give_up(ProxyRefused("the proxy closed the connection"))

    def _settle(self) -> None:
        self._done = True
        if self._timer.active():
            self._timer.cancel()

    def _give_up(self, error: Exception) -> None:
        if self._done:
            return
        self._settle()
        if self.transport is not None:
            self.transport.loseConnection()
        if not self.opened.called:
            self.opened.errback(error)
