"""A gateway on a clock, and the agents that come to it over links in memory."""

from __future__ import annotations

from cryptography import x509
from twisted.internet.endpoints import TCP4ServerEndpoint
from twisted.internet.testing import MemoryReactorClock

from aranya.certs.contexts import ServerContext
from aranya.certs.keys import KeyPair, key_to_pem, new_key
from aranya.certs.requests import signing_request
from aranya.device.admission import Admission
from aranya.device.gateway import (
    Gateway,
    LinkTerms,
    device_settings,
)
from aranya.device.joining import Welcome
from aranya.device.registry import Registry
from test.aranya.device.cluster import KEY, NOW, URLS, ClusterCase
from test.support.channels import RecordingReceiver
from tether.link.link import RESUME, TAKEOVER, PeerIntroduction, Tether
from tether.link.memory import MemoryTransport, Watch, Wire
from tether.link.websocket import TETHER, Refusal
from tether.verbs.requests import DeviceFacts, Request
from tether.wire.frames import alias_of
from tether.wire.mux import Role


class GatewayCase(ClusterCase):
    """A gateway that nobody listens for, and a device that has joined."""

    grace = 0

    def setUp(self) -> None:
        super().setUp()
        self.clones: list[str] = []
        self.registry = Registry(self.clock, lambda key, line: self.clones.append(line))
        key = new_key()
        pair = KeyPair(self.authority.sign_server(key.public_key(), ["gw"], NOW), key_to_pem(key))
        welcome = Welcome(URLS, self.authority.bundle)
        self.gateway = Gateway(
            TCP4ServerEndpoint(MemoryReactorClock(), 8443),
            ServerContext(pair),
            self.authority.bundle,
            Admission(self.lookup, self.joins.recorded_keys),
            self.joins,
            self.registry,
            lambda: welcome,
            lambda key: device_settings(key, self.lookup(key), welcome, self.grace),
            LinkTerms("aranya/1", b"c" * 16),
            self.clock,
        )
        token, self.key = self.token(), new_key()
        request = signing_request(self.key, "x")
        chain = self.done(self.joins.redeem(KEY, token.secret, request, "a"))
        self.certificate = x509.load_pem_x509_certificate(chain)

    def transport(self, certificate: x509.Certificate | None = None) -> MemoryTransport:
        """The controller's end of a connection."""
        transport = MemoryTransport(self.clock, address="10.0.0.9:4711")
        transport.certificate = certificate
        return transport

    def agent(
        self,
        instance: bytes = b"a" * 16,
        boot: str = "boot",
        *,
        started: int = 1,
        companions: frozenset[bytes] = frozenset(),
        capabilities: frozenset[str] = frozenset({RESUME, TAKEOVER}),
    ) -> tuple[Tether, Watch]:
        """A device's end of a link."""
        watch = Watch()
        introduction = PeerIntroduction(
            "arhat/1",
            capabilities,
            instance,
            boot,
            DeviceFacts(os="linux"),
            started=started,
            companions=frozenset(map(alias_of, companions)),
        )
        return Tether(Role.AGENT, self.clock, introduction, Silent(), watch), watch

    def connect(self, agent: Tether, certificate: x509.Certificate | None = None) -> Wire:
        """Connect, and let both talk."""
        transport = self.transport(certificate or self.certificate)
        ear = self.gateway.decide(TETHER, transport)
        assert not isinstance(ear, Refusal), ear
        wire = Wire(transport, MemoryTransport(self.clock), ear, agent.receiver())
        wire.connect()
        flush(wire)
        return wire


class Silent:
    """An acceptor that keeps streams open."""

    def stream_opened(self, request: Request, channel: object) -> RecordingReceiver:
        """Say nothing."""
        return RecordingReceiver()


def flush(wire: Wire) -> None:
    """Let both ends talk until they are quiet."""
    for _ in range(1000):
        if not wire.step():
            return
    raise AssertionError("they never are quiet")
