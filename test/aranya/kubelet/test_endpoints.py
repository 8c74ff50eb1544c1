"""Tests of ``aranya.kubelet.endpoints``, over real TLS on the loopback."""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime, timedelta

from cryptography.x509.oid import ExtendedKeyUsageOID
from OpenSSL import SSL
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IOpenSSLClientConnectionCreator
from twisted.internet.protocol import ClientFactory, Protocol
from twisted.internet.testing import StringTransport
from twisted.protocols.tls import TLSMemoryBIOFactory, TLSMemoryBIOProtocol
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase, TestCase
from zope.interface import implementer

from aranya.certs.contexts import ServerContext
from aranya.certs.keys import KeyPair
from aranya.kubelet import endpoints as module
from aranya.kubelet.auth import Authentication, Authorization, ClientCA
from aranya.kubelet.endpoints import BoundedTLS, CannotServe, DoorChannel, DoorSite, KubeletEndpoints
from aranya.kubelet.root import Door, Root
from aranya.names import DeviceKey
from aranya.streaming.upgrade import Lobby
from test.support.door import Answer, House, parsed
from test.support.identities import TestAuthority, client_context

HEALTHZ = b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
KEY = DeviceKey("edge", "dev")


@implementer(IOpenSSLClientConnectionCreator)
class Dialer:
    """TLS of a client, with a certificate or without."""

    def __init__(self, pair: KeyPair | None, protocols: tuple[bytes, ...] = ()) -> None:
        self._context = client_context(pair, protocols)

    def clientConnectionForTLS(self, tlsProtocol: TLSMemoryBIOProtocol) -> SSL.Connection:
        return SSL.Connection(self._context, None)


class Client(Protocol):
    """One connection: writes, and keeps what comes until the end."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.received = b""
        self.common_name = ""
        self.chosen = b""
        self.over: Deferred[bytes] = Deferred()
        self.first: Deferred[None] = Deferred()

    def connectionMade(self) -> None:
        self.transport.write(self._data)

    def dataReceived(self, data: bytes) -> None:
        connection = self.transport.getHandle()
        certificate = connection.get_peer_certificate()
        self.common_name = certificate.get_subject().CN
        self.chosen = connection.get_alpn_proto_negotiated()
        self.received += data
        if not self.first.called:
            self.first.callback(None)

    def connectionLost(self, reason: Failure = None) -> None:
        self.over.callback(self.received)


class Pipe(StringTransport):
    """The socket beneath TLS."""

    def setTcpKeepAlive(self, enabled: bool) -> None:
        """Nothing to keep."""

    def setTcpNoDelay(self, enabled: bool) -> None:
        """Nothing delays."""


class TlsTests(SynchronousTestCase):
    """What lies between a door and the network."""

    def test_records(self) -> None:
        """Each write goes out at once and whole, in a record of its own."""
        house = House()
        pair = TestAuthority().issue("server", usage=ExtendedKeyUsageOID.SERVER_AUTH, hosts=["127.0.0.1"])
        site = DoorSite(Root(house.door, house.served), house.clock)
        tls = BoundedTLS(ServerContext(pair), False, site, house.clock).buildProtocol(None)
        pipe = Pipe()
        tls.makeConnection(pipe)
        client = SSL.Connection(client_context(None), None)
        client.set_connect_state()
        for _ in range(3):
            with contextlib.suppress(SSL.WantReadError):
                client.do_handshake()
            with contextlib.suppress(SSL.WantReadError):
                tls.dataReceived(client.bio_read(65536))
            if pipe.value():
                client.bio_write(pipe.value())
                pipe.clear()
        for size in (16_380, 20):
            tls.wrappedProtocol.transport.write(bytes(size))
        client.bio_write(pipe.value())
        self.assertEqual([len(client.recv(65536)) for _ in range(2)], [16_380, 20])


class EndpointTests(TestCase):
    """What a client meets at a device's port."""

    timeout = 10

    async def open_house(self) -> None:
        """Listen for one device whose door only the right user may pass."""
        self.house = House()
        self.ours = TestAuthority()
        self.kubernetes = self.house.kubernetes
        self.kubernetes.allowed.add(("kube-apiserver-kubelet-client", "get", "proxy"))
        authority = ClientCA(self.kubernetes, reactor, self.ours.pem)
        self.door = Door(
            Authentication(self.kubernetes, authority, reactor, lambda: datetime.now(UTC)),
            Authorization(self.kubernetes, reactor),
            self.house.devices,
            reactor,
        )
        self.endpoints = self.make()
        self.endpoints.set_pod(self.house.pod)
        self.port = await self.endpoints.serve(KEY, *self.certificate("first"))

    def make(self, ports: tuple[int, int] | None = None, lobby: Lobby | None = None) -> KubeletEndpoints:
        endpoints = KubeletEndpoints(
            reactor, reactor, self.door, interface="127.0.0.1", ports=ports, lobby=lobby
        )
        self.addCleanup(lambda: Deferred.fromCoroutine(endpoints.stop_all("the test is over")))
        return endpoints

    def certificate(self, name: str) -> tuple[bytes, bytes]:
        pair = self.ours.issue(name, usage=ExtendedKeyUsageOID.SERVER_AUTH, hosts=["127.0.0.1"])
        return pair.chain, pair.private_key

    def dial(
        self, pair: KeyPair | None = None, data: bytes = HEALTHZ, protocols: tuple[bytes, ...] = ()
    ) -> Client:
        client = Client(data)
        factory = ClientFactory.forProtocol(lambda: client)
        factory.noisy = False
        reactor.connectTCP(
            "127.0.0.1", self.port, TLSMemoryBIOFactory(Dialer(pair, protocols), True, factory)
        )
        return client

    async def ask(self, pair: KeyPair | None = None) -> Answer:
        return parsed(await self.dial(pair).over)

    def apiserver(self) -> KeyPair:
        return self.ours.issue("kube-apiserver-kubelet-client")

    async def test_who_calls(self) -> None:
        """No certificate, or one that does not count, is 401; one without rights 403; the right one 200."""
        await self.open_house()
        foreign = TestAuthority("foreign")
        for pair, code in (
            (None, 401),
            (foreign.issue("kube-apiserver-kubelet-client"), 401),
            (self.ours.issue("late", ends=timedelta(minutes=-5)), 401),
            (self.ours.issue("server", usage=ExtendedKeyUsageOID.SERVER_AUTH), 401),
            (self.ours.issue("nobody", ["some-group"]), 403),
            (self.apiserver(), 200),
        ):
            answer = await self.ask(pair)
            self.assertEqual(answer.code, code, answer)
        self.assertEqual(answer.body, b"ok")
        self.assertEqual(
            [
                review["spec"]["groups"]
                for review in self.kubernetes.asked
                if review["spec"]["user"] == "nobody"
            ],
            [["some-group", "system:authenticated"]] * 2,
        )

    async def test_no_delay(self) -> None:
        """The kernel holds no small write back: an echoed keystroke goes out as it comes."""
        channels: list[DoorChannel] = []

        class Remembered(DoorChannel):
            def handshakeCompleted(self) -> None:
                super().handshakeCompleted()
                channels.append(self)

        self.patch(DoorSite, "protocol", Remembered)
        await self.open_house()
        client = self.dial(self.apiserver(), data=HEALTHZ.replace(b"Connection: close\r\n", b""))
        await client.first
        self.assertTrue(channels[0].transport.getTcpNoDelay())
        client.transport.loseConnection()
        await client.over

    async def test_token(self) -> None:
        """A token opens the door without a certificate."""
        await self.open_house()
        request = HEALTHZ.replace(b"Host: x", b"Host: x\r\nAuthorization: Bearer t")
        self.assertEqual(parsed(await self.dial(data=request).over).code, 200)

    async def test_no_http2(self) -> None:
        """A client that would take HTTP/2 is never given it."""
        await self.open_house()
        client = self.dial(self.apiserver(), protocols=(b"h2", b"http/1.1"))
        self.assertEqual(parsed(await client.over).code, 200)
        self.assertIn(client.chosen, (b"", b"http/1.1"))

    async def test_new_certificate(self) -> None:
        """A new certificate is shown to new clients; what runs, runs on, at the same port."""
        await self.open_house()
        target = b"GET /containerLogs/edge/dev/host?follow=1 HTTP/1.1\r\n"
        follow = target + b"Host: x\r\nAuthorization: Bearer t\r\n\r\n"
        running = self.dial(data=follow)
        while not self.house.device.sessions:
            await self.turn()
        self.house.device.session.tell(b"one\n")
        await running.first
        self.assertEqual(await self.endpoints.serve(KEY, *self.certificate("second")), self.port)
        client = self.dial(self.apiserver())
        await client.over
        self.assertEqual((running.common_name, client.common_name), ("first", "second"))
        self.house.device.session.tell(b"two\n")
        await self.endpoints.stop(KEY, "the device was deleted")
        text = await running.over
        self.assertIn(b"two\n", text)
        self.assertIn(b"aranya: log stream cut: the device was deleted\n", text)

    async def test_tls_ends_while_output_waits(self) -> None:
        """A client that ends TLS while it does not read is heard all the same."""
        await self.open_house()
        target = b"GET /containerLogs/edge/dev/host?follow=1 HTTP/1.1\r\n"
        client = self.dial(data=target + b"Host: x\r\nAuthorization: Bearer t\r\n\r\n")
        while not self.house.device.sessions:
            await self.turn()
        session = self.house.device.session
        session.tell(b"one\n")
        await client.first
        client.transport.pauseProducing()
        while not session.channel.paused:
            session.tell(b"more\n" * 100_000)
            await self.turn()
        client.transport.loseConnection()
        await self.turn()
        client.transport.resumeProducing()
        await client.over
        while session.channel.reset_with is None:
            await self.turn()
        self.assertEqual(self.endpoints.sessions(), 0)

    async def turn(self) -> None:
        """Let the reactor do one thing."""
        turned: Deferred[None] = Deferred()
        reactor.callLater(0.001, turned.callback, None)
        await turned

    async def test_stop(self) -> None:
        """A stopped endpoint listens no more and its idle connections close; it can start again."""
        await self.open_house()
        idle = self.dial(data=b"")
        asked = self.dial(self.apiserver(), data=HEALTHZ.replace(b"Connection: close\r\n", b""))
        await asked.first
        await self.endpoints.stop_all("aranya is stopping")
        self.assertEqual(parsed(await asked.over).code, 200)
        await idle.over
        self.assertEqual(self.endpoints.port(KEY), 0)
        self.assertEqual(
            await self.endpoints.serve(KEY, *self.certificate("again"), port=self.port), self.port
        )
        self.assertEqual(self.endpoints.port(KEY), self.port)

    async def test_ports(self) -> None:
        """A port is kept if it is free and in the range, else another is taken; at last there is none."""
        await self.open_house()
        taken = self.port
        other = DeviceKey("edge", "other")
        port = await self.endpoints.serve(other, *self.certificate("other"), port=taken)
        self.assertNotEqual(port, taken)
        await self.endpoints.stop(other, "the test goes on")
        ranged = self.make((port, port))
        self.assertEqual(await ranged.serve(other, *self.certificate("other"), port=taken), port)
        with self.assertRaises(CannotServe):
            await ranged.serve(DeviceKey("edge", "third"), *self.certificate("third"))

    async def test_too_many(self) -> None:
        """An endpoint takes only so many connections."""
        self.patch(module, "CONNECTION_LIMIT", 1)
        await self.open_house()
        first = self.dial(self.apiserver(), data=HEALTHZ.replace(b"Connection: close\r\n", b""))
        await first.first
        self.assertEqual(await self.dial(self.apiserver()).over, b"")
        first.transport.loseConnection()
        await first.over

    async def test_one_lobby(self) -> None:
        """Strangers at the port of one device fill what all have, and no more; honest clients are served."""
        await self.open_house()
        lobby = Lobby(room=100_000)
        self.endpoints = self.make(lobby=lobby)
        other = await self.endpoints.serve(DeviceKey("edge", "other"), *self.certificate("other"))
        self.port = await self.endpoints.serve(KEY, *self.certificate("first"))
        head = b"GET /" + b"x" * 110_000
        waiting = self.dial(data=head)
        while lobby.taken < 90_000:
            await self.turn()
        ours, self.port = self.port, other
        self.assertEqual(parsed(await self.dial(data=head).over).code, 503)
        self.assertEqual((await self.ask(self.apiserver())).code, 200)
        self.port = ours
        waiting.transport.loseConnection()
        await waiting.over
        while lobby.guests:
            await self.turn()
        self.assertEqual(lobby.taken, 0)

    async def test_no_handshake(self) -> None:
        """A connection that does not finish its handshake is dropped; one that did is not."""
        self.patch(module, "HANDSHAKE_SECONDS", 0.3)
        await self.open_house()
        good = self.dial(self.apiserver(), data=HEALTHZ.replace(b"Connection: close\r\n", b""))
        await good.first
        mute = Client(b"")
        factory = ClientFactory.forProtocol(lambda: mute)
        factory.noisy = False
        reactor.connectTCP("127.0.0.1", self.port, factory)
        self.assertEqual(await mute.over, b"")
        self.assertFalse(good.over.called)
        good.transport.loseConnection()
        await good.over
