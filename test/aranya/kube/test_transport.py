"""TLS as it happens: real sockets on loopback, certificates good and bad."""

from __future__ import annotations

from collections.abc import Coroutine
from datetime import timedelta
from typing import Any

from OpenSSL import SSL, crypto
from twisted.internet import reactor as global_reactor
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.protocol import ClientFactory, Factory, Protocol
from twisted.internet.ssl import ContextFactory
from twisted.logger import capturedLogs
from twisted.trial.unittest import TestCase
from twisted.web.resource import Resource
from twisted.web.server import Request, Site

from aranya.kube.client import ApiClient
from aranya.kube.credentials import ClientPair, ClusterAccess, Proof, StaticProof
from aranya.kube.errors import KubeError, NotFound, Unreachable
from aranya.kube.objects import CONFIGMAPS
from test.aranya.kube.identities import Authority

reactor: Any = global_reactor
CA = Authority()


class ServerContext(ContextFactory):
    """Shows a certificate, takes any client's, and remembers what name it was called by."""

    def __init__(self, pair: ClientPair) -> None:
        self.names: list[bytes | None] = []
        self._context = SSL.Context(SSL.TLS_SERVER_METHOD)
        self._context.use_certificate(crypto.load_certificate(crypto.FILETYPE_PEM, pair.certificate))
        self._context.use_privatekey(crypto.load_privatekey(crypto.FILETYPE_PEM, pair.key))
        self._context.set_verify(SSL.VERIFY_PEER, lambda *_: True)
        self._context.set_tlsext_servername_callback(lambda c: self.names.append(c.get_servername()))

    def getContext(self) -> SSL.Context:
        return self._context


class Answers(Resource):
    """Says who calls and over which connection."""

    isLeaf = True

    def __init__(self) -> None:
        super().__init__()
        self.callers: list[str] = []
        self.connections: list[Any] = []

    def render(self, request: Request) -> bytes:
        transport: Any = request.transport
        if request.isSecure():
            certificate = transport.getPeerCertificate()
            self.callers.append("" if certificate is None else certificate.get_subject().CN)
        self.connections.append(transport)
        if request.uri.endswith(b"absent"):
            request.setResponseCode(404)
            return b'{"kind":"Status","reason":"NotFound","message":"no"}'
        return b'{"kind":"ConfigMap","metadata":{"name":"x"}}'


class TransportTests(TestCase):
    """One server, one client."""

    timeout = 20

    def setUp(self) -> None:
        self.answers = Answers()
        self.site = Site(self.answers)

    def serve(self, pair: ClientPair) -> int:
        self.context = ServerContext(pair)
        port = reactor.listenSSL(0, self.site, self.context, interface="127.0.0.1")
        self.addCleanup(port.stopListening)
        return int(port.getHost().port)

    def client(self, port: int, host: str = "127.0.0.1", **options: Any) -> ApiClient:
        options.setdefault("ca", CA.pem)
        client = ApiClient(reactor, ClusterAccess(f"https://{host}:{port}", **options))
        self.addCleanup(lambda: Deferred.fromCoroutine(client.close()))
        return client

    async def get(self, client: ApiClient, name: str = "x") -> str:
        return str((await client.get(CONFIGMAPS, "ns", name))["metadata"]["name"])

    def trying(self, work: Coroutine[Any, Any, Any], *words: str) -> Deferred[None]:
        """The work ends with one line that has these words."""

        async def trial() -> None:
            error = await self.assertFailure(Deferred.fromCoroutine(work), KubeError)
            for word in words:
                self.assertIn(word, str(error))
            self.assertNotIn("\n", str(error))

        return Deferred.fromCoroutine(trial())

    async def test_address_in_the_certificate(self) -> None:
        """A server known by its address is verified by it, is sent no name, and keeps its connection."""
        client = self.client(self.serve(CA.issue("api", "127.0.0.1")))
        self.assertEqual(await self.get(client), "x")
        await self.assertFailure(Deferred.fromCoroutine(self.get(client, "absent")), NotFound)
        self.assertEqual(await self.get(client), "x")
        self.assertEqual(self.context.names, [None])
        self.assertEqual(len(set(map(id, self.answers.connections))), 1)

    async def test_name(self) -> None:
        """A server known by its name is called and verified by it."""
        client = self.client(self.serve(CA.issue("api", "localhost")), "localhost")
        self.assertEqual(await self.get(client), "x")
        self.assertEqual(self.context.names, [b"localhost"])

    async def test_quiet(self) -> None:
        """A connection is not worth a line in the log."""
        with capturedLogs() as events:
            await self.get(self.client(self.serve(CA.issue("api", "127.0.0.1"))))
        self.assertEqual([event for event in events if "HTTP11Client" in str(event.get("factory"))], [])

    def test_other_address(self) -> Deferred[None]:
        """A certificate for another address is refused."""
        client = self.client(self.serve(CA.issue("api", "127.0.0.2", "localhost")))
        return self.trying(self.get(client), "its certificate is for another name")

    def test_other_authority(self) -> Deferred[None]:
        """A certificate of another CA is refused."""
        client = self.client(self.serve(Authority().issue("api", "127.0.0.1")))
        return self.trying(self.get(client), "not trusted", "not signed by the given CA")

    def test_expired(self) -> Deferred[None]:
        """A certificate that expired is refused, and the line names the clock."""
        pair = CA.issue("api", "127.0.0.1", life=timedelta(hours=-1))
        return self.trying(self.get(self.client(self.serve(pair))), "not trusted", "expired", "clock")

    async def test_server_name(self) -> None:
        """``tls-server-name`` is expected instead of the host."""
        port = self.serve(CA.issue("api", "kubernetes"))
        self.assertEqual(await self.get(self.client(port, server_name="kubernetes")), "x")
        self.assertEqual(self.context.names, [b"kubernetes"])

    async def test_unverified(self) -> None:
        """``insecure-skip-tls-verify`` takes any certificate, and still shows ours."""
        port = self.serve(Authority().issue("api", "elsewhere"))
        proofs = StaticProof(Proof("", CA.issue("me")))
        self.assertEqual(await self.get(self.client(port, verify=False, proofs=proofs)), "x")
        self.assertEqual(self.answers.callers, ["me"])

    async def test_client_certificate(self) -> None:
        """The server sees the client's certificate; a renewed one is shown on a new connection."""

        class Renewed:
            pair = CA.issue("first")

            async def proof(self, now: float, in_thread: object) -> Proof:
                return Proof("", self.pair)

            def refused(self) -> None:
                pass

        proofs = Renewed()
        client = self.client(self.serve(CA.issue("api", "127.0.0.1")), proofs=proofs)
        await self.get(client)
        await self.get(client)
        proofs.pair = CA.issue("second")
        await self.get(client)
        self.assertEqual(self.answers.callers, ["first", "first", "second"])

    def test_bad_client_key(self) -> Deferred[None]:
        """A key that is not the certificate's is one plain line."""
        pair = ClientPair(CA.issue("a").certificate, CA.issue("b").key)
        client = self.client(1, proofs=StaticProof(Proof("", pair)))
        return self.trying(self.get(client), "do not belong together")

    def test_nobody_listens(self) -> Deferred[None]:
        """A closed port is a refused connection."""
        port = reactor.listenTCP(0, Factory(), interface="127.0.0.1")
        number = port.getHost().port

        async def trial() -> None:
            await port.stopListening()
            await self.get(self.client(number))

        return self.trying(trial(), f"https://127.0.0.1:{number}: connection refused")

    def test_no_tls_there(self) -> Deferred[None]:
        """A server that does not speak TLS is one plain line."""

        class Plain(Protocol):
            def dataReceived(self, data: bytes) -> None:
                assert self.transport is not None
                self.transport.write(b"HTTP/1.0 400 Bad Request\r\n\r\n")
                self.transport.loseConnection()

        port = reactor.listenTCP(0, Factory.forProtocol(Plain), interface="127.0.0.1")
        self.addCleanup(port.stopListening)
        return self.trying(self.get(self.client(port.getHost().port)), "TLS failed")

    async def test_connection_that_died_in_the_pool(self) -> None:
        """A kept connection that the server dropped costs nothing but a new one."""
        client = self.client(self.serve(CA.issue("api", "127.0.0.1")))
        await self.get(client)
        # The server drops it just as we use it again.
        self.answers.connections[0].abortConnection()
        made = await client.replace(CONFIGMAPS, "ns", "x", {"metadata": {"name": "x"}})
        self.assertEqual(made["metadata"]["name"], "x")
        self.assertEqual(len(set(map(id, self.answers.connections))), 2)

    async def test_many_that_died_in_the_pool(self) -> None:
        """Connections that died together are not tried one after the other."""
        client = self.client(self.serve(CA.issue("api", "127.0.0.1")))
        await gatherResults([Deferred.fromCoroutine(self.get(client)) for _ in range(3)])
        for connection in set(self.answers.connections):
            connection.abortConnection()
        made = await client.replace(CONFIGMAPS, "ns", "x", {"metadata": {"name": "x"}})
        self.assertEqual(made["metadata"]["name"], "x")

    async def test_proxy(self) -> None:
        """With a proxy the connection goes through its ``CONNECT``, TLS inside."""
        port = self.serve(CA.issue("api", "127.0.0.1"))
        proxy = Proxy(port)
        listening = reactor.listenTCP(0, proxy, interface="127.0.0.1")
        self.addCleanup(listening.stopListening)
        url = f"http://127.0.0.1:{listening.getHost().port}"
        self.assertEqual(await self.get(self.client(port, proxy_url=url)), "x")
        self.assertEqual(proxy.targets, [f"127.0.0.1:{port}".encode()])
        proxy.refuse = True
        error = await self.assertFailure(
            Deferred.fromCoroutine(self.get(self.client(port, proxy_url=url))), Unreachable
        )
        self.assertIn("it answered 403", str(error))


class Proxy(Factory):
    """An HTTP proxy that knows one way."""

    noisy = False

    def __init__(self, port: int) -> None:
        self.port = port
        self.targets: list[bytes] = []
        self.refuse = False

    def buildProtocol(self, addr: object) -> Protocol:
        return ProxyConnection(self)


class ProxyConnection(Protocol):
    """One client of the proxy."""

    def __init__(self, proxy: Proxy) -> None:
        self._proxy = proxy
        self._head = b""
        self._far: Any = None

    def dataReceived(self, data: bytes) -> None:
        assert self.transport is not None
        if self._far is not None:
            self._far.write(data)
            return
        self._head += data
        if b"\r\n\r\n" not in self._head:
            return
        self._proxy.targets.append(self._head.split()[1])
        if self._proxy.refuse:
            self.transport.write(b"HTTP/1.1 403 Forbidden\r\n\r\n")
            self.transport.loseConnection()
            return
        near = self

        class Far(Protocol):
            def connectionMade(self) -> None:
                assert near.transport is not None
                near._far = self.transport
                near.transport.write(b"HTTP/1.1 200 Connection established\r\n\r\n")

            def dataReceived(self, data: bytes) -> None:
                assert near.transport is not None
                near.transport.write(data)

            def connectionLost(self, reason: object = None) -> None:
                assert near.transport is not None
                near.transport.loseConnection()

        factory = ClientFactory.forProtocol(Far)
        factory.noisy = False
        reactor.connectTCP("127.0.0.1", self._proxy.port, factory)

    def connectionLost(self, reason: object = None) -> None:
        if self._far is not None:
            self._far.loseConnection()
