"""Tests for ``tether.link.websocket``: real sockets on the loopback, and links over them."""

from __future__ import annotations

import datetime
import hashlib
import os
import socket

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import (
    SSL4ServerEndpoint,
    TCP4ClientEndpoint,
    TCP4ServerEndpoint,
    wrapClientTLS,
)
from twisted.internet.error import ConnectionAborted
from twisted.internet.interfaces import IPushProducer
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.ssl import (
    Certificate,
    PrivateCertificate,
    optionsForClientTLS,
)
from twisted.internet.ssl import (
    trustRootFromCertificates as trustRoot,
)
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase, TestCase
from zope.interface import implementer

from tether.errors import Reason
from tether.link.interfaces import Channel, Lane, Link, Receiver
from tether.link.link import PeerIntroduction, Tether
from tether.link.transport import MessageReceiver, MessageTransport
from tether.link.websocket import JOIN, TETHER, ClientFactory, Refusal, ServerFactory, nvx_available
from tether.verbs.requests import AskFacts, Request
from tether.wire.frames import MESSAGE_LIMIT, Duty
from tether.wire.mux import Role


class Ear:
    """A ``MessageReceiver`` that keeps what it heard, and says when."""

    def __init__(self) -> None:
        self.transport: MessageTransport | None = None
        self.messages: list[bytes] = []
        self.up: Deferred[MessageTransport] = Deferred()
        self.down: Deferred[str] = Deferred()
        self.first: Deferred[bytes] = Deferred()

    def connected(self, transport: MessageTransport) -> None:
        self.transport = transport
        self.up.callback(transport)

    def message_received(self, message: bytes) -> None:
        self.messages.append(message)
        if not self.first.called:
            self.first.callback(message)

    def connection_lost(self, reason: str) -> None:
        self.down.callback(reason)


class SocketCase(TestCase):
    """A server and clients on the loopback."""

    timeout = 30

    def setUp(self) -> None:
        self.ears: list[Ear] = []
        self.asked: list[tuple[str, str]] = []
        self.refusal: Refusal | None = None

    def decide(self, sub_protocol: str, transport: MessageTransport) -> MessageReceiver | Refusal:
        self.asked.append((sub_protocol, transport.address.split(":")[0]))
        if self.refusal is not None:
            return self.refusal
        ear = Ear()
        self.ears.append(ear)
        return ear

    async def listening(self) -> int:
        """The port of a server that asks ``decide``."""
        endpoint = TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1")
        port = await endpoint.listen(ServerFactory(self.decide, reactor))
        self.addCleanup(port.stopListening)
        return port.getHost().port

    async def dialled(self, port: int, ear: Ear, sub_protocol: str = TETHER) -> None:
        factory = ClientFactory(f"ws://127.0.0.1:{port}", sub_protocol, lambda: ear, reactor)
        await TCP4ClientEndpoint(reactor, "127.0.0.1", port).connect(factory)

    async def both(self, sub_protocol: str = TETHER) -> tuple[Ear, Ear]:
        """A client's and a server's ear, connected."""
        client = Ear()
        await self.dialled(await self.listening(), client, sub_protocol)
        await client.up
        server = self.ears[0]
        await server.up
        return client, server

    async def gone(self, *ears: Ear) -> None:
        """Hang up, and wait until every socket is closed."""
        for ear in ears:
            if ear.transport is not None:
                ear.transport.abort()
        for ear in ears:
            await ear.down

    async def raw(self, port: int, sent: bytes) -> bytes:
        """What a server says to these bytes, until it hangs up."""
        heard = Deferred()

        class Raw(Protocol):
            def connectionMade(self) -> None:
                self.received = b""
                self.transport.write(sent)

            def dataReceived(self, data: bytes) -> None:
                self.received += data

            def connectionLost(self, reason: object) -> None:
                heard.callback(self.received)

        await TCP4ClientEndpoint(reactor, "127.0.0.1", port).connect(Factory.forProtocol(Raw))
        return await heard


class ConnectionTests(SocketCase):
    """Whole messages, both ways."""

    async def test_messages(self) -> None:
        """Binary messages of any size arrive whole, in both directions."""
        client, server = await self.both()
        large = os.urandom(MESSAGE_LIMIT)
        client.transport.send(large)
        self.assertEqual(await server.first, large)
        server.transport.send(b"\x00small")
        self.assertEqual(await client.first, b"\x00small")
        await self.gone(client, server)

    async def test_decided_by_sub_protocol(self) -> None:
        """The server is asked once, with the sub-protocol and who asks."""
        client, server = await self.both(JOIN)
        self.assertEqual(self.asked, [(JOIN, "127.0.0.1")])
        self.assertIsNone(server.transport.peer_certificate())
        await self.gone(client, server)

    async def test_close_with_reason(self) -> None:
        """A close carries its reason, and needs no timer to end."""
        client, server = await self.both()
        server.transport.close(1001, "going home")
        self.assertEqual(await client.down, "going home")
        self.assertEqual(await server.down, "going home")

    async def test_abort(self) -> None:
        """An abort ends both sides."""
        client, server = await self.both()
        client.transport.abort()
        self.assertIn("connection", await server.down)
        await client.down

    async def test_latency_options(self) -> None:
        """Nagle is off, and the kernel holds little that was not sent."""
        client, server = await self.both()
        handle = client.transport.transport.socket
        self.assertTrue(handle.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        self.assertEqual(handle.getsockopt(socket.IPPROTO_TCP, 25), 32768)
        await self.gone(client, server)

    def test_nvx(self) -> None:
        """Masking in C is there, or a client would crawl."""
        self.assertTrue(nvx_available())


class EncryptedTests(SocketCase):
    """The same over mutual TLS, as it is used."""

    async def test_certificates(self) -> None:
        """Each end knows what the other proved; the socket beneath TLS is tuned, too."""
        server_proof, client_proof = self_signed("gateway"), self_signed("dev-1")
        endpoint = SSL4ServerEndpoint(
            reactor,
            0,
            server_proof.options(Certificate(client_proof.original)),
            interface="127.0.0.1",
        )
        port = await endpoint.listen(ServerFactory(self.decide, reactor))
        self.addCleanup(port.stopListening)
        client = Ear()
        number = port.getHost().port
        await wrapClientTLS(
            optionsForClientTLS(
                "gateway", trustRoot([Certificate(server_proof.original)]), clientCertificate=client_proof
            ),
            TCP4ClientEndpoint(reactor, "127.0.0.1", number),
        ).connect(ClientFactory(f"wss://gateway:{number}", TETHER, lambda: client, reactor))
        await client.up
        server = self.ears[0]
        await server.up
        for ear, name in ((server, "CN=dev-1"), (client, "CN=gateway")):
            self.assertEqual(ear.transport.peer_certificate().subject.rfc4514_string(), name)
        large = os.urandom(MESSAGE_LIMIT)
        client.transport.send(large)
        self.assertEqual(await server.first, large)
        layer = client.transport.transport
        while not hasattr(layer, "socket") or not isinstance(layer.socket, socket.socket):
            layer = layer.transport
        self.assertEqual(layer.socket.getsockopt(socket.IPPROTO_TCP, 25), 32768)
        await self.gone(client, server)


def self_signed(name: str) -> PrivateCertificate:
    """A key with its own certificate, good for ten minutes."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=5))
        .not_valid_after(now + datetime.timedelta(minutes=5))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    plain = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return PrivateCertificate.loadPEM(plain + certificate.public_bytes(pem))


class RefusalTests(SocketCase):
    """Who is not let in, and hears why."""

    async def test_refused(self) -> None:
        """A refusal reaches the client with its line, before anything was connected."""
        self.refusal = Refusal(403, "device is banned")
        client = Ear()
        await self.dialled(await self.listening(), client)
        self.assertEqual(await client.down, "the gateway refused: device is banned (403)")
        self.assertIsNone(client.transport)

    async def test_unknown_sub_protocol(self) -> None:
        """A sub-protocol that is not spoken is refused with those that are."""
        client = Ear()
        await self.dialled(await self.listening(), client, "gossip.v9")
        self.assertIn("tether.v1, join.v1", await client.down)
        self.assertEqual(self.asked, [])

    async def test_failing_decision(self) -> None:
        """A failing decision is an internal error to the client, and logged."""
        self.decide = lambda *_: 1 / 0
        client = Ear()
        await self.dialled(await self.listening(), client)
        self.assertEqual(await client.down, "the gateway refused: internal error (500)")
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    async def test_plain_http(self) -> None:
        """A plain GET gets one line, and no banner."""
        answer = await self.raw(await self.listening(), b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        self.assertTrue(answer.startswith(b"HTTP/1.1 426 "), answer)
        self.assertNotIn(b"utobahn", answer)
        self.assertTrue(answer.endswith(b"\r\n\r\nonly WebSocket is spoken here\n"), answer)

    async def test_garbage(self) -> None:
        """What is no HTTP at all is refused."""
        answer = await self.raw(await self.listening(), b"\x16\x03\x01\x00garbage\r\n\r\n")
        self.assertTrue(answer.startswith(b"HTTP/1.1 4"), answer)

    async def test_endless_head(self) -> None:
        """A request without end is cut off."""
        answer = await self.raw(await self.listening(), b"GET / HTTP/1.1\r\nX: " + b"x" * 20_000)
        self.assertEqual(answer, b"")


HEAD = (
    b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Protocol: tether.v1\r\n"
)


class ViolationTests(SynchronousTestCase):
    """A server's protocol on a clock, fed byte by byte."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.ear = Ear()
        factory = ServerFactory(lambda *_: self.ear, self.clock)
        factory.doStart()
        self.protocol = factory.buildProtocol(None)
        self.transport = StringTransport()
        self.protocol.makeConnection(self.transport)

    def shake(self) -> None:
        self.protocol.dataReceived(HEAD + b"\r\n")
        self.assertIn(b"101 Switching", self.transport.value())
        self.transport.clear()

    def dropped(self) -> str:
        """The reason for which the connection was dropped."""
        self.assertTrue(self.transport.disconnected)
        self.protocol.connectionLost(Failure(ConnectionAborted()))
        self.assertEqual(self.clock.getDelayedCalls(), [])
        return self.successResultOf(self.ear.down)

    def test_handshake_in_time(self) -> None:
        """A peer that does not finish the handshake is dropped."""
        self.protocol.dataReceived(HEAD)
        self.clock.advance(9.9)
        self.assertFalse(self.transport.disconnected)
        self.clock.advance(0.2)
        self.assertTrue(self.transport.disconnected)

    def test_no_banner(self) -> None:
        """The handshake tells nothing of the software."""
        self.protocol.dataReceived(HEAD + b"\r\n")
        self.assertNotIn(b"Server", self.transport.value())

    def test_browsers(self) -> None:
        """A request with an Origin is refused."""
        self.protocol.dataReceived(HEAD + b"Origin: https://evil.example\r\n\r\n")
        self.assertIn(b"403 no browsers", self.transport.value())

    def test_text(self) -> None:
        """A text message drops the connection."""
        self.shake()
        self.protocol.dataReceived(b"\x81\x82\x00\x00\x00\x00hi")
        self.assertEqual(self.dropped(), "a text message, where only binary ones are spoken")

    def test_unmasked(self) -> None:
        """An unmasked frame of a client drops the connection."""
        self.shake()
        self.protocol.dataReceived(b"\x82\x02hi")
        self.assertIn("unmasked", self.dropped())

    def test_oversize(self) -> None:
        """A frame that announces too much drops the connection before it is buffered."""
        self.shake()
        length = (MESSAGE_LIMIT + 1).to_bytes(8, "big")
        self.protocol.dataReceived(b"\x82\xff" + length + b"\x00\x00\x00\x00")
        self.assertIn("exceeds", self.dropped())

    def test_endless_fragments(self) -> None:
        """A message of endlessly many empty frames drops the connection."""
        self.shake()
        self.protocol.dataReceived(b"\x02\x80\x00\x00\x00\x00")
        for _ in range(64):
            self.protocol.dataReceived(b"\x00\x80\x00\x00\x00\x00")
        self.assertIn("64 frames", self.dropped())

    def test_ping_flood(self) -> None:
        """Pings are answered, but not into a transport that nobody empties."""
        self.shake()
        ping = b"\x89\x80\x00\x00\x00\x00"
        self.protocol.dataReceived(ping)
        self.assertEqual(len(self.transport.value()), 2)
        self.transport.producer.pauseProducing()
        self.protocol.dataReceived(ping * 1000)
        self.assertEqual(len(self.transport.value()), 2)

    def test_close_without_answer(self) -> None:
        """A peer that does not answer a close is dropped."""
        self.shake()
        self.ear.transport.close(1001, "bye")
        self.assertIn(b"bye", self.transport.value())
        self.clock.advance(5)
        self.assertEqual(self.dropped(), "bye")


class Watching:
    """A watcher with Deferreds."""

    def __init__(self) -> None:
        self.up: Deferred[Link] = Deferred()
        self.down: Deferred[str] = Deferred()

    def link_up(self, link: Link, resumed: bool) -> None:
        self.up.callback(link)

    def link_down(self, link: Link, reason: str, retry: bool) -> None:
        self.down.callback(reason)

    def link_over(self, link: Link) -> None:
        pass

    def duty_told(self, link: Link, duty: Duty) -> None:
        pass


@implementer(IPushProducer)
class Source:
    """Writes ``left`` pieces into a channel as fast as that takes them, then finishes."""

    def __init__(self, channel: Channel, piece: bytes, left: int) -> None:
        self.channel = channel
        self.piece = piece
        self.left = left
        self.paused = False
        self.digest = hashlib.sha256()
        channel.registerProducer(self, True)

    def run(self) -> None:
        while self.left and not self.paused:
            self.left -= 1
            self.digest.update(self.piece)
            self.channel.write(self.piece)
        if not self.left:
            self.channel.finish()

    def pauseProducing(self) -> None:
        self.paused = True

    def resumeProducing(self) -> None:
        self.paused = False
        self.run()

    def stopProducing(self) -> None:
        self.left = 0


class Sink:
    """A receiver that counts, hashes, and says when it was closed."""

    def __init__(self) -> None:
        self.digest = hashlib.sha256()
        self.count = 0
        self.done: Deferred[None] = Deferred()

    def data_received(self, lane: Lane, data: bytes) -> None:
        self.count += len(data)
        self.digest.update(data)

    def finished(self) -> None:
        self.done.callback(None)

    def reset(self, reason: Reason) -> None:
        self.done.errback(AssertionError(reason.text))

    def closed(self) -> None:
        pass


class LinkTests(SocketCase):
    """A link over a real socket."""

    async def test_fifty_megabytes(self) -> None:
        """50 MB from the agent arrive byte-exact, with a bounded queue on the way."""
        sources: list[Source] = []

        class Pouring:
            def stream_opened(self, request: Request, channel: Channel) -> Receiver:
                sources.append(Source(channel, os.urandom(100_000), 500))
                reactor.callLater(0, sources[0].run)
                return Sink()

        watching = {role: Watching() for role in Role}
        tethers = {
            role: Tether(
                role,
                reactor,
                PeerIntroduction(role.name, instance=os.urandom(16)),
                Pouring(),
                watching[role],
            )
            for role in Role
        }
        self.decide = lambda *_: tethers[Role.CONTROLLER].receiver()
        port = await self.listening()
        factory = ClientFactory(
            f"ws://127.0.0.1:{port}", TETHER, tethers[Role.AGENT].receiver, reactor, "arhat"
        )
        await TCP4ClientEndpoint(reactor, "127.0.0.1", port).connect(factory)
        link = await watching[Role.CONTROLLER].up
        sink = Sink()
        channel = link.open(AskFacts(), sink)
        channel.finish()
        await sink.done
        self.assertEqual(sink.count, 50_000_000)
        self.assertEqual(sink.digest.hexdigest(), sources[0].digest.hexdigest())
        tethers[Role.AGENT].close("done")
        self.assertEqual(await watching[Role.CONTROLLER].down, "done")
        self.assertEqual(await watching[Role.AGENT].down, "done")
