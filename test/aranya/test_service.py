"""One aranya, or two, from start to stop: what is open while it leads, and that nothing is afterwards."""

from __future__ import annotations

import base64
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred, fail
from twisted.internet.endpoints import serverFromString
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IStreamServerEndpoint
from twisted.internet.testing import MemoryReactorClock
from twisted.logger import LogEvent, formatEvent, globalLogPublisher
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from aranya.certs.authority import AUTHORITY_SECRET, new_authority, tls_secret
from aranya.certs.gateway import LOOK_AGAIN
from aranya.certs.keys import KeyPair, key_to_pem
from aranya.config import Config
from aranya.controller.devices.steps import ROLE_CERTIFICATE
from aranya.interfaces import Object, Resource
from aranya.kube.memory import MemoryApiServer
from aranya.kube.memory_requests import Refusal, Request
from aranya.kube.objects import EDGEDEVICES, LEASES, SECRETS, SERVICEACCOUNTS, new_object
from aranya.names import JOIN_ANNOTATION, LABEL_NAME, LABEL_NAMESPACE, LABEL_ROLE
from aranya.service import LEASE, Aranya, Settings, build
from test.support.identities import TestAuthority
from tether.daemon import Fatal
from tether.join import Token

GATEWAY, HEALTH = 8443, 8080


class Port:
    """A listening port that knows whether it still does."""

    def __init__(self, reactor: PortReactor, number: int) -> None:
        self._reactor = reactor
        self.port = number

    def getHost(self) -> Port:
        """Its address."""
        return self

    def stopListening(self) -> None:
        """Free the number."""
        self._reactor.ports.discard(self.port)


class PortReactor(MemoryReactorClock):
    """A reactor whose ports are taken and freed, and whose threads are none."""

    def __init__(self) -> None:
        super().__init__()
        self.ports: set[int] = set()
        self._next = 40000
        self.advance(time.time())

    def listenTCP(self, port: int, factory: Any, backlog: int = 50, interface: str = "") -> Port:
        """Listen, unless somebody does."""
        if port in self.ports:
            raise CannotListenError(interface, port, OSError(98, "Address already in use"))
        if not port:
            self._next += 1
        number = port or self._next
        self.ports.add(number)
        return Port(self, number)

    def getThreadPool(self) -> PortReactor:
        """Itself: work is done at once."""
        return self

    def callInThreadWithCallback(self, told: Callable[[bool, object], None], work: Callable[[], Any]) -> None:
        """Do it now."""
        try:
            result = work()
        except Exception:
            told(False, Failure())
        else:
            told(True, result)

    def callFromThread(self, work: Callable[..., Any], *arguments: Any) -> None:
        """We are in the reactor's thread already."""
        work(*arguments)


class FailingEndpoint:
    """An endpoint that fails once, then listens like another."""

    def __init__(self, error: Exception, inner: IStreamServerEndpoint) -> None:
        self._errors = [error]
        self._inner = inner

    def listen(self, factory: Any) -> Deferred[Any]:
        """Fail, or listen."""
        if self._errors:
            return fail(self._errors.pop())
        listening: Deferred[Any] = self._inner.listen(factory)
        return listening


class ServiceCase(SynchronousTestCase):
    """A cluster in memory with one EdgeDevice, whose serving certificate is there already."""

    def setUp(self) -> None:
        self.reactor = PortReactor()
        self.server = MemoryApiServer(
            self.reactor, now=lambda: datetime.fromtimestamp(self.reactor.seconds(), UTC)
        )
        self.failures: list[str] = []
        self.create(SERVICEACCOUNTS, "edge", new_object(SERVICEACCOUNTS, {"name": "default"}))
        self.create(EDGEDEVICES, "edge", new_object(EDGEDEVICES, {"name": "dev"}, spec={}))
        pair = TestAuthority().issue("system:node:dev", hosts=["10.0.0.1", "10.0.0.2"])
        body = tls_secret("kubelet-tls.dev", "aranya", pair)
        body["metadata"]["labels"] = {
            LABEL_ROLE: ROLE_CERTIFICATE,
            LABEL_NAME: "dev",
            LABEL_NAMESPACE: "edge",
        }
        self.create(SECRETS, "aranya", body)

    def create(self, resource: Resource, namespace: str, body: Object) -> Object:
        work = self.server.client().create(resource, namespace, body)
        return self.successResultOf(Deferred.fromCoroutine(work))

    def aranya(
        self,
        identity: str = "one",
        config: Config | None = None,
        gateway: IStreamServerEndpoint | None = None,
        offset: int = 0,
    ) -> Aranya:
        """A replica; its ports are ``offset`` above the usual ones."""
        settings = Settings(
            config=config or Config(),
            namespace="aranya",
            watch_namespace="edge",
            address=f"10.0.0.{1 + offset}",
            urls=("wss://gateway.example:8443",),
            client_ca=TestAuthority().pem,
            identity=identity,
            host_node="",
        )
        return Aranya(
            settings,
            self.server.client(user_agent=identity),
            gateway or serverFromString(self.reactor, f"tcp:{GATEWAY + offset}"),
            serverFromString(self.reactor, f"tcp:{HEALTH + offset}"),
            self.reactor,
            self.failures.append,
        )

    def wait(self, seconds: float = 5.0) -> None:
        """Let time pass in small steps."""
        for _ in range(int(seconds * 10)):
            self.reactor.advance(0.1)

    def stop(self, aranya: Aranya) -> None:
        """Stop it, and see that it does."""
        stopped = aranya.stopService()
        self.wait(6)
        self.successResultOf(stopped)

    def holder(self) -> str:
        """Who has the lease."""
        lease = self.server.stored(LEASES, "aranya", LEASE)
        assert lease is not None
        return str(lease["spec"].get("holderIdentity") or "")

    def readings(self, aranya: Aranya) -> tuple[str, float]:
        """What probes and Prometheus see: what is missing, and whether it leads."""
        return aranya.missing(), aranya.readings()["aranya_leading"]


class TermTests(ServiceCase):
    """One replica."""

    def test_leads(self) -> None:
        """Who leads has the gateway, the health page and one endpoint per device open."""
        aranya = self.aranya()
        self.assertEqual(("not leading", 0.0), self.readings(aranya))
        aranya.startService()
        self.wait()
        self.assertEqual(("", 1.0), self.readings(aranya))
        self.assertEqual({GATEWAY, HEALTH, 40001}, self.reactor.ports)
        self.stop(aranya)

    def test_stop_leaves_nothing(self) -> None:
        """After a stop no port, no timer and no watch is left, and the lease is free."""
        aranya = self.aranya()
        aranya.startService()
        self.wait()
        self.stop(aranya)
        self.assertEqual(set(), self.reactor.ports)
        self.assertEqual([], self.reactor.getDelayedCalls())
        self.assertEqual((0, ""), (self.server.watching, self.holder()))

    def test_stop_while_beginning(self) -> None:
        """A stop before the EdgeDevices are known leaves nothing either."""

        def refuse(request: Request) -> None:
            if request.plural == "edgedevices":
                raise Refusal(403, "Forbidden", "not yet")

        self.server.before = refuse
        aranya = self.aranya()
        aranya.startService()
        self.wait()
        self.assertEqual(("starting", 1.0), self.readings(aranya))
        self.assertNotIn(GATEWAY, self.reactor.ports)
        self.stop(aranya)
        self.assertEqual((set(), []), (self.reactor.ports, self.reactor.getDelayedCalls()))

    def test_begins_in_the_end(self) -> None:
        """A term that cannot begin, because the API server has trouble, is tried again."""
        trouble = [True]

        def refuse(request: Request) -> None:
            if trouble and request.plural == "secrets":
                raise Refusal(500, "InternalError", "etcd is away")

        self.server.before = refuse
        aranya = self.aranya()
        aranya.startService()
        self.wait(8)
        self.assertEqual(("not leading", 0.0), self.readings(aranya))
        trouble.clear()
        self.wait(8)
        self.assertEqual(("", 1.0), self.readings(aranya))
        self.stop(aranya)

    def test_broken_beginning(self) -> None:
        """A term that breaks half-way is ended whole, and another one begun."""
        inner = serverFromString(self.reactor, f"tcp:{GATEWAY}")
        aranya = self.aranya(gateway=FailingEndpoint(ZeroDivisionError(), inner))
        aranya.startService()
        self.wait(0.5)
        self.assertEqual(1, len(self.flushLoggedErrors(ZeroDivisionError)))
        self.wait(10)
        self.assertEqual(("", 1.0), self.readings(aranya))
        self.assertEqual(3, len(self.reactor.ports))
        self.stop(aranya)
        self.assertEqual(set(), self.reactor.ports)

    def test_port_taken(self) -> None:
        """A gateway port that somebody has is one line, and the end."""
        self.reactor.ports.add(GATEWAY)
        aranya = self.aranya()
        aranya.startService()
        self.wait()
        self.assertEqual(["cannot listen on --gateway tcp:8443: Address already in use"], self.failures)
        self.stop(aranya)
        self.assertEqual({GATEWAY}, self.reactor.ports)

    def test_health_port_taken(self) -> None:
        """So is a health port."""
        self.reactor.ports.add(HEALTH)
        aranya = self.aranya()
        aranya.startService()
        [line] = self.failures
        self.assertIn("cannot listen on --health", line)
        self.stop(aranya)

    def test_unusable_authority(self) -> None:
        """An authority that cannot sign is one line that says what to do."""
        self.create(SECRETS, "aranya", tls_secret(AUTHORITY_SECRET, "aranya", KeyPair(b"?", b"?")))
        aranya = self.aranya()
        aranya.startService()
        self.wait()
        [line] = self.failures
        self.assertIn("Secret aranya-ca: the certificate is not PEM; repair it, or delete it", line)
        self.stop(aranya)

    def test_ending_authority(self) -> None:
        """In the last year of the authority each leader says what is to be done."""
        began = datetime.fromtimestamp(self.reactor.seconds(), UTC) - timedelta(days=3600)
        authority = new_authority(began)
        pair = KeyPair(authority.bundle, key_to_pem(authority.key))
        self.create(SECRETS, "aranya", tls_secret(AUTHORITY_SECRET, "aranya", pair))
        told: list[str] = []

        def hear(event: LogEvent) -> None:
            told.append(formatEvent(event))

        globalLogPublisher.addObserver(hear)
        self.addCleanup(globalLogPublisher.removeObserver, hear)
        aranya = self.aranya()
        aranya.startService()
        self.wait()
        self.assertEqual(1, sum("the authority of all devices ends on" in line for line in told))
        self.stop(aranya)

    def test_brought_certificate_renewed(self) -> None:
        """A token made after the brought certificate was renewed trusts the new one."""
        folder = Path(self.mktemp())
        folder.mkdir()
        files = [folder / "tls.crt", folder / "tls.key"]

        def bring() -> bytes:
            authority = TestAuthority()
            pair = authority.issue("gateway", hosts=["gateway.example"])
            files[0].write_bytes(pair.chain + authority.pem)
            files[1].write_bytes(pair.private_key)
            return authority.pem

        former = bring()
        aranya = self.aranya(config=Config(gateway_cert=str(files[0]), gateway_key=str(files[1])))
        aranya.startService()
        self.wait()
        self.assertIn(former, self.token("first").ca_bundle)
        latter = bring()
        self.wait(LOOK_AGAIN + 1)
        bundle = self.token("second").ca_bundle
        self.assertIn(latter, bundle)
        self.assertNotIn(former, bundle)
        self.stop(aranya)

    def token(self, nonce: str) -> Token:
        """Ask for a join token."""
        patch = {"metadata": {"annotations": {JOIN_ANNOTATION: nonce}}}
        work = self.server.client().patch(EDGEDEVICES, "edge", "dev", patch)
        self.successResultOf(Deferred.fromCoroutine(work))
        self.wait(2)
        secret = self.server.stored(SECRETS, "edge", "dev-join")
        assert secret is not None
        return Token.decode(base64.b64decode(secret["data"]["token"]).decode())


class SuccessionTests(ServiceCase):
    """Leadership comes and goes."""

    def test_outage(self) -> None:
        """Without the API server everything closes after the deadline, and opens again with it."""
        aranya = self.aranya()
        aranya.startService()
        self.wait()
        self.server.go_away()
        self.wait(8)
        self.assertIn(GATEWAY, self.reactor.ports)
        self.wait(10)
        self.assertEqual(({HEALTH}, ("not leading", 0.0)), (self.reactor.ports, self.readings(aranya)))
        self.server.come_back()
        self.wait(10)
        self.assertEqual(("", 1.0), self.readings(aranya))
        self.assertIn(GATEWAY, self.reactor.ports)
        self.stop(aranya)
        self.assertEqual((set(), []), (self.reactor.ports, self.reactor.getDelayedCalls()))

    def test_standby(self) -> None:
        """A second replica waits with nothing but its health page open, and follows the first."""
        first, second = self.aranya("one"), self.aranya("two", offset=1)
        first.startService()
        self.wait()
        second.startService()
        self.wait()
        self.assertEqual(("not leading", 0.0), self.readings(second))
        self.assertNotIn(GATEWAY + 1, self.reactor.ports)
        self.stop(first)
        self.wait()
        self.assertEqual("two", self.holder())
        self.assertEqual({GATEWAY + 1, HEALTH + 1}, self.reactor.ports & {8443, 8444, 8080, 8081})
        self.stop(second)
        self.assertEqual((set(), []), (self.reactor.ports, self.reactor.getDelayedCalls()))

    def test_usurped(self) -> None:
        """Who finds another's name in the lease closes everything, and leads again when it may."""
        aranya = self.aranya()
        aranya.startService()
        self.wait()
        patch = {"spec": {"holderIdentity": "other"}}
        work = self.server.client().patch(LEASES, "aranya", LEASE, patch)
        self.successResultOf(Deferred.fromCoroutine(work))
        self.wait(4)
        self.assertEqual({HEALTH}, self.reactor.ports)
        self.wait(30)
        self.assertEqual(("one", ("", 1.0)), (self.holder(), self.readings(aranya)))
        self.stop(aranya)


class BuildTests(SynchronousTestCase):
    """What is checked before anything starts."""

    def setUp(self) -> None:
        self.reactor = PortReactor()
        self.kubeconfig = Path(self.mktemp())
        self.kubeconfig.write_text(
            "{current-context: c, contexts: [{name: c, context: {cluster: c, namespace: here}}],"
            " clusters: [{name: c, cluster: {server: 'http://127.0.0.1:1'}}], users: []}"
        )
        self.config = Config(kubeconfig=str(self.kubeconfig))

    def built(self, **options: Any) -> Any:
        work = build(replace(self.config, **options), {}, self.reactor, lambda line: None)
        return self.successResultOf(Deferred.fromCoroutine(work))

    def refused(self, **options: Any) -> str:
        """The one line."""
        work = build(replace(self.config, **options), {}, self.reactor, lambda line: None)
        line = str(self.failureResultOf(Deferred.fromCoroutine(work), Fatal).value)
        self.assertEqual(1, len(line.splitlines()))
        return line

    def test_defaults(self) -> None:
        """The address is the one routed to the API server, the namespace the context's."""
        settings = self.built()._settings
        self.assertEqual(("127.0.0.1", ("wss://127.0.0.1:8443",)), (settings.address, settings.urls))
        self.assertEqual(("here", "here"), (settings.namespace, settings.watch_namespace))

    def test_namespaces(self) -> None:
        """``--namespace`` wins over the context's; ``--watch-namespace`` is for the EdgeDevices."""
        settings = self.built(namespace="own", watch_namespace="edge")._settings
        self.assertEqual(("own", "edge"), (settings.namespace, settings.watch_namespace))

    def test_refusals(self) -> None:
        """What cannot work is one line that names the option."""
        folder = Path(self.mktemp())
        folder.mkdir()
        (folder / "empty").write_bytes(b"")
        for options, said in (
            ({"gateway": "tcp"}, "--gateway"),
            ({"gateway": "tcp:x"}, "--gateway"),
            ({"gateway": "unix:/tmp/x"}, "--gateway-url"),
            ({"health": "smoke:1"}, "--health"),
            ({"health": "systemd:domain=INET:index=9"}, "--health"),
            ({"client_ca": str(folder / "absent")}, "--client-ca"),
            ({"client_ca": str(folder / "empty")}, "holds no certificate"),
            ({"gateway_cert": str(folder / "absent"), "gateway_key": "k"}, "cannot read"),
            ({"kubeconfig": str(folder / "absent")}, "not found"),
        ):
            self.assertIn(said, self.refused(**options))
