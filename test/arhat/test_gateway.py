"""Tests of ``arhat.gateway``: proxies, and the tunnel through one."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred, fail
from twisted.internet.error import ConnectionDone, ConnectionRefusedError
from twisted.internet.interfaces import IAddress, IProtocol, IProtocolFactory, IStreamClientEndpoint
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.task import Clock
from twisted.internet.testing import MemoryReactorClock, StringTransport
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from aranya.certs.authority import new_authority
from aranya.certs.verification import moment
from arhat.gateway import (
    CONNECT_TIMEOUT,
    ConnectEndpoint,
    GatewayTrust,
    ProxyRefused,
    gateway_endpoint,
    host_and_port,
    proxy_for,
)


class ProxyTests(SynchronousTestCase):
    """Which proxy is used for which target."""

    def test_none(self) -> None:
        """Without ``HTTPS_PROXY`` the device dials by itself."""
        self.assertEqual(proxy_for("gw", 443, {"HTTP_PROXY": "http://p:1"}), "")

    def test_either_case(self) -> None:
        """Both spellings of the variable count; a bare host is an HTTP proxy."""
        self.assertEqual(proxy_for("gw", 443, {"HTTPS_PROXY": "http://p:1"}), "http://p:1")
        self.assertEqual(proxy_for("gw", 443, {"https_proxy": "p:1"}), "http://p:1")

    def test_loopback(self) -> None:
        """The loopback is never asked for through a proxy."""
        for host in ("localhost", "127.0.0.1", "::1"):
            self.assertEqual(proxy_for(host, 443, {"HTTPS_PROXY": "http://p:1"}), "", host)

    def test_spared(self) -> None:
        """``NO_PROXY`` takes names, domains, addresses, networks, ports and the star."""
        table = [
            ("gw.example", "gw.example", True),
            ("gw.example", "example", True),
            ("gw.example", ".example", True),
            ("gw.example", "*.example", True),
            ("gw.example", "w.example", False),
            ("gw.example", "other, gw.example", True),
            ("gw.example", "gw.example:8443", True),
            ("gw.example", "gw.example:1", False),
            ("gw.example", "*", True),
            ("10.1.2.3", "10.0.0.0/8", True),
            ("10.1.2.3", "10.1.2.3", True),
            ("10.1.2.3", "10.1.2.3:8443", True),
            ("10.1.2.3", "11.0.0.0/8", False),
            ("fd00::1", "fd00::/8", True),
            ("gw.example", "", False),
        ]
        for host, pattern, spared in table:
            environment = {"HTTPS_PROXY": "http://p:1", "NO_PROXY": pattern}
            self.assertEqual(proxy_for(host, 8443, environment) == "", spared, (host, pattern))

    def test_host_and_port(self) -> None:
        """The port of a URL without one is that of HTTPS."""
        self.assertEqual(host_and_port("wss://gw"), ("gw", 443))
        self.assertEqual(host_and_port("wss://[::1]:8443/x"), ("::1", 8443))

    def test_bad_proxy(self) -> None:
        """A proxy that cannot be used is one line, which does not show its password."""
        trust = GatewayTrust("gw", new_authority(moment(0)).bundle, lambda: moment(0))
        for proxy in ("socks5://user:hush@p:1", "http://", "http://p:99999"):
            error = self.assertRaises(
                ProxyRefused,
                gateway_endpoint,
                MemoryReactorClock(),
                "wss://gw",
                trust,
                {"HTTPS_PROXY": proxy},
            )
            self.assertNotIn("hush", str(error))


class Recorder(Protocol):
    """What runs through the tunnel."""

    def __init__(self) -> None:
        self.data = b""
        self.lost: Failure | None = None

    def dataReceived(self, data: bytes) -> None:
        """Keep it."""
        self.data += data

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Over."""
        self.lost = reason


class Recorders(Factory):
    """Makes them."""

    noisy = False

    def buildProtocol(self, addr: IAddress | None) -> Recorder:  # type: ignore[override]
        """One."""
        return Recorder()


@implementer(IStreamClientEndpoint)
class ToProxy:
    """An endpoint whose connection stands at once, in memory."""

    def __init__(self) -> None:
        self.transport = StringTransport()
        self.tunnel: IProtocol | None = None

    def connect(self, factory: IProtocolFactory) -> Deferred[IProtocol]:
        """Connect."""
        self.tunnel = factory.buildProtocol(None)
        assert self.tunnel is not None
        self.tunnel.makeConnection(self.transport)
        connected: Deferred[IProtocol] = Deferred()
        connected.callback(self.tunnel)
        return connected


@implementer(IStreamClientEndpoint)
class Refusing:
    """An endpoint where nobody listens."""

    def connect(self, factory: IProtocolFactory) -> Deferred[IProtocol]:
        """Fail."""
        return fail(ConnectionRefusedError())


class TunnelTests(SynchronousTestCase):
    """``CONNECT`` through a proxy."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.proxy = ToProxy()

    def connect(self, host: str = "gw.example", credentials: str = "") -> Deferred[IProtocol]:
        """Ask the proxy."""
        endpoint = ConnectEndpoint(self.proxy, self.clock, host, 8443, credentials)
        return endpoint.connect(Recorders())

    def answer(self, data: bytes) -> None:
        """Be the proxy."""
        assert self.proxy.tunnel is not None
        self.proxy.tunnel.dataReceived(data)

    def test_request(self) -> None:
        """The target is asked for by name, with credentials if there are any."""
        self.connect(credentials="dTpw")
        sent = self.proxy.transport.value().split(b"\r\n")
        self.assertEqual(sent[0], b"CONNECT gw.example:8443 HTTP/1.1")
        self.assertIn(b"Proxy-Authorization: Basic dTpw", sent)
        self.assertEqual(sent[-2:], [b"", b""])

    def test_ipv6(self) -> None:
        """An IPv6 target stands in brackets."""
        self.connect("::1")
        self.assertTrue(self.proxy.transport.value().startswith(b"CONNECT [::1]:8443 "))

    @given(st.lists(st.integers(1, 60), max_size=6))
    @settings(max_examples=40, deadline=None)
    def test_let_through(self, cuts: list[int]) -> None:
        """However the answer is split, what comes after its head is the tunnel's."""
        self.setUp()
        connecting = self.connect()
        rest = b"HTTP/1.1 200 Connection established\r\nVia: p\r\n\r\nhello"
        for cut in cuts:
            self.answer(rest[:cut])
            rest = rest[cut:]
        self.answer(rest)
        inner = self.successResultOf(connecting)
        assert isinstance(inner, Recorder)
        self.assertEqual(inner.data, b"hello")
        self.assertEqual(self.clock.getDelayedCalls(), [])
        assert self.proxy.tunnel is not None
        self.proxy.tunnel.connectionLost(Failure(ConnectionDone()))
        self.assertIsNotNone(inner.lost)

    def refusal(self, act: Callable[[], object]) -> str:
        """Why the proxy did not let us through."""
        connecting = self.connect()
        act()
        self.assertTrue(self.proxy.transport.disconnecting)
        return str(self.failureResultOf(connecting, ProxyRefused).value)

    def test_refused(self) -> None:
        """A proxy's refusal is told with its status."""
        answer = b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n"
        self.assertIn("407 Proxy Authentication Required", self.refusal(lambda: self.answer(answer)))

    def test_not_http(self) -> None:
        """Something that is no HTTP proxy is told apart, and endless answers are cut."""
        self.assertIn("refused", self.refusal(lambda: self.answer(b"SSH-2.0-x\r\n\r\n")))
        self.proxy = ToProxy()
        self.assertIn("not HTTP", self.refusal(lambda: self.answer(b"x" * 20000)))

    def test_silent(self) -> None:
        """A proxy that does not answer is given up."""
        self.assertIn("in time", self.refusal(lambda: self.clock.advance(CONNECT_TIMEOUT)))

    def test_closed(self) -> None:
        """A proxy that closes is told."""
        connecting = self.connect()
        assert self.proxy.tunnel is not None
        self.proxy.tunnel.connectionLost(Failure(ConnectionDone()))
        self.assertIn("closed", str(self.failureResultOf(connecting, ProxyRefused).value))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_cancelled(self) -> None:
        """Who gives up hangs up."""
        connecting = self.connect()
        connecting.cancel()
        self.failureResultOf(connecting)
        self.assertTrue(self.proxy.transport.disconnecting)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_no_proxy_there(self) -> None:
        """A proxy that is not there is the endpoint's own failure."""
        endpoint = ConnectEndpoint(Refusing(), self.clock, "gw", 1, "")
        self.failureResultOf(endpoint.connect(Recorders()), ConnectionRefusedError)
