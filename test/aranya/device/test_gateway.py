"""Tests of ``aranya.device.gateway`` on a clock; over real TLS it is asked in ``test.arhat.test_dial``."""

from __future__ import annotations

from datetime import timedelta

from cryptography import x509
from twisted.internet.defer import Deferred

from aranya.certs.keys import new_key
from aranya.certs.requests import signing_request
from aranya.device.gateway import (
    ARRIVALS_LIMIT,
    JOIN_PATIENCE,
    JOIN_SILENCE,
    JOINS_AT_ONCE,
    SILENT_JOINS,
    SILENT_JOINS_OF_ADDRESS,
    device_settings,
)
from aranya.device.joining import Welcome
from aranya.kube.objects import EDGEDEVICES
from test.aranya.device.cluster import KEY, URLS
from test.aranya.device.gateways import GatewayCase
from tether.join import Joined, JoinRefused, JoinRequest, pack_request, unpack_answer
from tether.link.connection import HELLO_PATIENCE
from tether.link.memory import MemoryTransport
from tether.link.transport import MessageReceiver
from tether.link.websocket import JOIN, TETHER, Refusal


class DecisionTests(GatewayCase):
    """Who is let in within the handshake."""

    def refusal(self, certificate: x509.Certificate | None) -> Refusal:
        """The answer to who stays out."""
        decided = self.gateway.decide(TETHER, self.transport(certificate))
        assert isinstance(decided, Refusal), decided
        return decided

    def test_no_certificate(self) -> None:
        """Without a certificate there is only joining."""
        self.assertEqual(self.refusal(None).status, 403)
        self.assertNotIsInstance(self.gateway.decide(JOIN, self.transport()), Refusal)

    def test_expired(self) -> None:
        """The clock that counts is the controller's."""
        self.clock.advance(timedelta(days=91).total_seconds())
        self.assertIn("expired", self.refusal(self.certificate).line)

    def test_banned(self) -> None:
        """A ban counts at the next handshake."""
        self.change({"spec": {"banned": True}})
        self.assertIn("banned", self.refusal(self.certificate).line)

    def arrival(self) -> tuple[MessageReceiver, MemoryTransport]:
        """A connection of the device that has yet to say Hello."""
        transport = self.transport(self.certificate)
        ear = self.gateway.decide(TETHER, transport)
        assert not isinstance(ear, Refusal)
        ear.connected(transport)
        return ear, transport

    def test_silent_arrivals(self) -> None:
        """Of one device only so many may not have said Hello; who is gone or was sent away makes room."""
        ears = [self.arrival()[0] for _ in range(ARRIVALS_LIMIT)]
        refusal = self.refusal(self.certificate)
        self.assertEqual(refusal.status, 503)
        self.assertIn("Hello", refusal.line)
        ears[0].connection_lost("gone")
        self.arrival()
        ears[1].message_received(b"rubbish")
        self.arrival()
        self.assertEqual(self.refusal(self.certificate).status, 503)
        self.clock.advance(HELLO_PATIENCE)
        for number in range(2 * ARRIVALS_LIMIT):
            wire = self.connect(self.agent(bytes([number]) * 16)[0])
            wire.cut()

    def test_silent_arrivals_of_another(self) -> None:
        """The silence of one device is not counted against another."""
        for _ in range(ARRIVALS_LIMIT):
            self.arrival()
        self.done(self.kubernetes.delete(EDGEDEVICES, KEY.namespace, KEY.name))
        self.create_device()
        token, key = self.token("n2"), new_key()
        chain = self.done(self.joins.redeem(KEY, token.secret, signing_request(key, "x"), "a"))
        self.connect(self.agent()[0], x509.load_pem_x509_certificate(chain))
        self.assertIsNotNone(self.registry.get(KEY))

    def test_settings(self) -> None:
        """An EdgeDevice may set its keep-alive, within bounds."""
        welcome = Welcome(URLS, b"")
        for told, wanted in ((30, 30), (0, 15), ("x", 15), (99999, 15), (None, 15)):
            device = {"spec": {"connectivity": {"keepaliveSeconds": told}}}
            self.assertEqual(device_settings(KEY, device, welcome, 60).keepalive_seconds, wanted)
        self.assertEqual(device_settings(KEY, None, welcome, 60).keepalive_seconds, 15)


class JoinTests(GatewayCase):
    """One question, one answer."""

    def conversation(self, address: str = "10.0.0.9:4711") -> tuple[MessageReceiver, MemoryTransport]:
        """A ``join.v1`` connection."""
        transport = MemoryTransport(self.clock, address=address)
        ear = self.gateway.decide(JOIN, transport)
        assert not isinstance(ear, Refusal)
        ear.connected(transport)
        return ear, transport

    def ask(self, message: bytes) -> object:
        """The answer."""
        ear, transport = self.conversation()
        ear.message_received(message)
        answer = unpack_answer(transport.sent.popleft())
        self.assertEqual(transport.closed_with, (1000, ""))
        ear.connection_lost("done")
        return answer

    def test_joined(self) -> None:
        """The answer holds certificate, authority and URLs."""
        token = self.token("n2")
        request = JoinRequest("edge", "pump", token.secret, signing_request(new_key(), "x"))
        answer = self.ask(pack_request(request))
        assert isinstance(answer, Joined)
        self.assertEqual((answer.ca_bundle, answer.urls), (self.authority.bundle, URLS))

    def test_refused(self) -> None:
        """A wrong secret and garbage are answered with one line."""
        request = JoinRequest("edge", "pump", b"wrong", signing_request(new_key(), "x"))
        for message in (pack_request(request), b"\xff\xff"):
            answer = self.ask(message)
            assert isinstance(answer, JoinRefused)
            self.assertTrue(answer.reason)

    def test_hostile_names(self) -> None:
        """Names off the wire reach neither logs nor messages as they came."""
        request = JoinRequest("a\x1b[2J" * 50, "b\nc", b"x", signing_request(new_key(), "x"))
        answer = self.ask(pack_request(request))
        assert isinstance(answer, JoinRefused)
        self.assertTrue(answer.reason.isprintable())

    def test_server_trouble(self) -> None:
        """If the API server fails, the device hears that its token is still good."""
        token = self.token("n2")
        self.server.fail_next(10)
        request = JoinRequest("edge", "pump", token.secret, signing_request(new_key(), "x"))
        answer = self.ask(pack_request(request))
        assert isinstance(answer, JoinRefused)
        self.assertIn("same token", answer.reason)

    def test_silence(self) -> None:
        """Who does not ask in time is cut off."""
        _, transport = self.conversation()
        self.clock.advance(JOIN_SILENCE)
        self.assertIsNotNone(transport.closed_with)

    def asked(self, address: str = "10.0.0.9:4711") -> tuple[MessageReceiver, MemoryTransport]:
        """A conversation with a request that is under way."""
        ear, transport = self.conversation(address)
        ear.message_received(pack_request(JoinRequest("edge", "pump", b"x", signing_request(self.key, "x"))))
        return ear, transport

    def hold(self) -> list[Deferred[bytes]]:
        """Requests are not answered from here on; these are what they wait for."""
        held: list[Deferred[bytes]] = []

        async def redeem(*_: object) -> bytes:
            held.append(Deferred())
            return await held[-1]

        self.patch(self.joins, "redeem", redeem)
        return held

    def test_patience(self) -> None:
        """Who has asked may wait longer for the answer, but not for ever."""
        held = self.hold()
        _, transport = self.asked()
        self.clock.advance(JOIN_PATIENCE - 1)
        self.assertIsNone(transport.closed_with)
        self.clock.advance(1)
        self.assertIsNotNone(transport.closed_with)
        self.assertEqual(len(held), 1)

    def test_closed_door(self) -> None:
        """Once the door is closed a newcomer is sent away without a refusal; so is who was asking."""
        _, asking = self.conversation()
        self.successResultOf(Deferred.fromCoroutine(self.gateway.stop_listening()))
        self.assertIsNotNone(asking.closed_with)
        _, transport = self.conversation()
        self.assertEqual((1001, "the controller is stopping"), transport.closed_with)

    def test_crowd(self) -> None:
        """Only so many join at once; whoever leaves, or has been answered, makes room."""
        held = self.hold()
        slow, slow_transport = self.conversation()
        ears = [self.asked()[0] for _ in range(JOINS_AT_ONCE)]
        decided = self.gateway.decide(JOIN, self.transport())
        assert isinstance(decided, Refusal)
        self.assertEqual(decided.status, 503)
        slow.message_received(b"anything")
        assert slow_transport.closed_with is not None
        self.assertEqual(slow_transport.closed_with[0], 1001)
        self.assertIn("too many joins", slow_transport.closed_with[1])
        self.assertEqual(len(held), JOINS_AT_ONCE)
        ears[0].connection_lost("gone")
        self.assertNotIsInstance(self.gateway.decide(JOIN, self.transport()), Refusal)

    def test_answered(self) -> None:
        """Who was answered keeps nobody out, though the connection is not gone yet."""
        for _ in range(JOINS_AT_ONCE + 1):
            _, transport = self.asked()
            self.assertEqual((transport.closed_with, len(transport.sent)), ((1000, ""), 1))

    def test_the_silent(self) -> None:
        """Who says nothing keeps nobody of another address from joining, nor for long those of its own."""
        ears = [self.conversation()[0] for _ in range(SILENT_JOINS_OF_ADDRESS)]
        decided = self.gateway.decide(JOIN, self.transport())
        assert isinstance(decided, Refusal)
        self.assertEqual(decided.status, 503)
        self.asked("10.0.0.8:1")
        ears.pop().connection_lost("gone")
        self.asked()
        for number in range(SILENT_JOINS - len(ears)):
            ears.append(self.conversation(f"10.0.1.{number // 2}:{number}")[0])
        decided = self.gateway.decide(JOIN, MemoryTransport(self.clock, address="10.0.0.7:1"))
        assert isinstance(decided, Refusal)
        for ear in ears:
            ear.connection_lost("silence")
        self.assertNotIsInstance(self.gateway.decide(JOIN, self.transport()), Refusal)
