"""Tests of ``aranya.device.gateway`` on a clock; over real TLS it is asked in ``test.arhat.test_dial``."""

from __future__ import annotations

from datetime import timedelta

from cryptography import x509
from twisted.internet.defer import Deferred

from aranya.certs.keys import new_key
from aranya.certs.requests import signing_request
from aranya.device.gateway import (
    JOIN_PATIENCE,
    JOINS_AT_ONCE,
    device_settings,
)
from aranya.device.joining import Welcome
from test.aranya.device.cluster import KEY, URLS
from test.aranya.device.gateways import GatewayCase
from tether.join import Joined, JoinRefused, JoinRequest, pack_request, unpack_answer
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

    def test_settings(self) -> None:
        """An EdgeDevice may set its keep-alive, within bounds."""
        welcome = Welcome(URLS, b"")
        for told, wanted in ((30, 30), (0, 15), ("x", 15), (99999, 15), (None, 15)):
            device = {"spec": {"connectivity": {"keepaliveSeconds": told}}}
            self.assertEqual(device_settings(KEY, device, welcome, 60).keepalive_seconds, wanted)
        self.assertEqual(device_settings(KEY, None, welcome, 60).keepalive_seconds, 15)


class JoinTests(GatewayCase):
    """One question, one answer."""

    def conversation(self) -> tuple[MessageReceiver, MemoryTransport]:
        """A ``join.v1`` connection."""
        transport = self.transport()
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
        self.clock.advance(JOIN_PATIENCE)
        self.assertIsNotNone(transport.closed_with)

    def test_closed_door(self) -> None:
        """Once the door is closed a newcomer is sent away without a refusal; so is who was asking."""
        _, asking = self.conversation()
        self.successResultOf(Deferred.fromCoroutine(self.gateway.stop_listening()))
        self.assertIsNotNone(asking.closed_with)
        _, transport = self.conversation()
        self.assertEqual((1001, "the controller is stopping"), transport.closed_with)

    def test_crowd(self) -> None:
        """Only so many join at once; whoever leaves makes room."""
        ears = [self.conversation()[0] for _ in range(JOINS_AT_ONCE)]
        decided = self.gateway.decide(JOIN, self.transport())
        assert isinstance(decided, Refusal)
        self.assertEqual(decided.status, 503)
        ears[0].connection_lost("gone")
        self.assertNotIsInstance(self.gateway.decide(JOIN, self.transport()), Refusal)
