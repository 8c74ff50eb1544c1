"""Tests of ``aranya.device.link``: a device that was let in, until its sessions are over."""

from __future__ import annotations

from dataclasses import replace

from cryptography import x509
from twisted.internet.defer import Deferred

from aranya.certs.keys import key_hash, new_key
from aranya.certs.requests import signing_request
from aranya.device.admission import Admitted, NotAdmitted
from aranya.device.gateway import (
    PROCESSES_LIMIT,
    device_settings,
)
from aranya.device.joining import Welcome
from aranya.kube.objects import EDGEDEVICES
from aranya.names import DeviceIdentity
from test.aranya.device.cluster import KEY, URLS
from test.aranya.device.gateways import GatewayCase, flush
from test.support.channels import RecordingReceiver
from tether.errors import ResetCode
from tether.link.connection import HELLO_PATIENCE
from tether.link.interfaces import Lane
from tether.link.link import RESUME, TAKEOVER, Tether
from tether.link.memory import MemoryTransport, Wire
from tether.link.transport import MessageReceiver
from tether.link.websocket import TETHER, Refusal
from tether.verbs.codec import decode_result
from tether.verbs.requests import AskFacts, Failed, Issued, Logs, Renew
from tether.wire import frames
from tether.wire.frames import Duty


class LinkTests(GatewayCase):
    """A device that was let in."""

    def test_linked(self) -> None:
        """After both Hellos the device is registered by its certificate's name, with its facts."""
        agent, watch = self.agent()
        self.connect(agent)
        device = self.registry.get(KEY)
        assert device is not None
        self.assertEqual((device.facts.os, device.software), ("linux", "arhat/1"))
        self.assertEqual(device.address, "10.0.0.9:4711")
        self.assertEqual(watch.ups, [False])
        assert agent.peer is not None and agent.peer.settings is not None
        self.assertEqual(agent.peer.settings.urls, URLS)
        self.assertEqual((agent.peer.settings.namespace, agent.peer.settings.name), ("edge", "pump"))

    def test_no_hello(self) -> None:
        """Who says nothing is sent away in time."""
        transport = self.transport(self.certificate)
        ear = self.gateway.decide(TETHER, transport)
        assert not isinstance(ear, Refusal)
        ear.connected(transport)
        self.clock.advance(HELLO_PATIENCE)
        assert transport.closed_with is not None
        self.assertIn("Hello", transport.closed_with[1])

    def test_garbage(self) -> None:
        """Who begins with garbage, or with another frame, is sent away; later messages are not heard."""
        for first in (b"\xff\xff\xff", b""):
            transport = self.transport(self.certificate)
            ear = self.gateway.decide(TETHER, transport)
            assert not isinstance(ear, Refusal)
            ear.connected(transport)
            ear.message_received(first)
            ear.message_received(b"more")
            self.assertIsNotNone(transport.closed_with)
            ear.connection_lost("gone")
        self.assertIsNone(self.registry.get(KEY))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_banned_in_between(self) -> None:
        """A ban between handshake and Hello counts."""
        transport = self.transport(self.certificate)
        ear = self.gateway.decide(TETHER, transport)
        assert not isinstance(ear, Refusal)
        self.change({"spec": {"banned": True}})
        agent, watch = self.agent()
        wire = Wire(transport, MemoryTransport(self.clock), ear, agent.receiver())
        wire.connect()
        flush(wire)
        self.assertIsNone(self.registry.get(KEY))
        self.assertEqual([retry for _, retry in watch.downs], [False])

    def test_closed_in_between(self) -> None:
        """Who says Hello after the door was closed is told to come again, though nobody is known then."""
        transport = self.transport(self.certificate)
        ear = self.gateway.decide(TETHER, transport)
        assert not isinstance(ear, Refusal)
        self.successResultOf(Deferred.fromCoroutine(self.gateway.stop_listening()))
        self.done(self.kubernetes.delete(EDGEDEVICES, KEY.namespace, KEY.name))
        agent, watch = self.agent()
        wire = Wire(transport, MemoryTransport(self.clock), ear, agent.receiver())
        wire.connect()
        flush(wire)
        self.assertIsNone(self.registry.get(KEY))
        self.assertEqual([("the controller is stopping", True)], watch.downs)

    def test_lost(self) -> None:
        """A lost connection is a device that is gone."""
        wire = self.connect(self.agent()[0])
        wire.cut()
        self.assertIsNone(self.registry.get(KEY))

    def test_newer_connection(self) -> None:
        """Without a grace a newer connection takes the older's place, and the agent stays known."""
        agent, watch = self.agent()
        self.connect(agent)
        wire = self.connect(agent)
        self.assertIsNotNone(self.registry.get(KEY))
        self.assertEqual(self.gateway.agents, 1)
        self.done(self.gateway.close("failover"))
        flush(wire)
        self.assertEqual(watch.downs[-1], ("failover", True))
        self.assertEqual(self.gateway.agents, 0)

    def test_clone(self) -> None:
        """A clone is told why it must go, and may come again."""
        self.connect(self.agent()[0])
        clone, watch = self.agent(b"b" * 16, "other")
        self.connect(clone)
        [(reason, retry)] = watch.downs
        self.assertIn("another host", reason)
        self.assertTrue(retry)

    def test_closing(self) -> None:
        """When the gateway closes, devices hear the reason and may come again."""
        agent, watch = self.agent()
        wire = self.connect(agent)
        self.done(self.gateway.close("failover"))
        flush(wire)
        self.assertEqual(watch.downs, [("failover", True)])
        self.assertIsNone(self.registry.get(KEY))

    def renew(self, request: bytes) -> object:
        """The answer to a renewal."""
        agent, _ = self.agent()
        wire = self.connect(agent)
        receiver = RecordingReceiver()
        agent.open(Renew(request), receiver).finish()
        flush(wire)
        return decode_result(receiver.lane(Lane.RESULT))

    def test_renewal(self) -> None:
        """A certificate is renewed for the link's identity, whatever the request says."""
        key = new_key()
        answer = self.renew(signing_request(key, "somebody else"))
        assert isinstance(answer, Issued)
        certificate = x509.load_pem_x509_certificate(answer.certificate)
        self.assertEqual(key_hash(certificate.public_key()), key_hash(key.public_key()))
        self.connect(self.agent(b"b" * 16)[0], certificate)
        self.assertEqual(self.joins.recorded_keys(self.identity()), (key_hash(key.public_key()),))

    def test_use_cannot_be_recorded(self) -> None:
        """Without the API server the device is let in with its new key, and both count on."""
        key = new_key()
        answer = self.renew(signing_request(key, "x"))
        assert isinstance(answer, Issued)
        self.server.go_away()
        agent, _ = self.agent(b"b" * 16)
        self.connect(agent, x509.load_pem_x509_certificate(answer.certificate))
        self.assertTrue(agent.is_up)
        self.assertEqual(len(self.joins.recorded_keys(self.identity())), 2)

    def test_bad_renewal(self) -> None:
        """A request that cannot be signed is refused with a line."""
        answer = self.renew(b"rubbish")
        assert isinstance(answer, Failed)
        self.assertEqual(answer.code, ResetCode.REFUSED)

    def test_one_renewal_at_a_time(self) -> None:
        """While a renewal is under way another is refused; soon after it the same may be asked for again."""
        recording: Deferred[None] = Deferred()

        renew_now = self.joins.renew

        async def renew(identity: DeviceIdentity, present_key: str, request: bytes) -> bytes:
            await recording
            return await renew_now(identity, present_key, request)

        self.patch(self.joins, "renew", renew)
        agent, _ = self.agent()
        wire = self.connect(agent)
        request = signing_request(new_key(), "x")
        first, second, third = RecordingReceiver(), RecordingReceiver(), RecordingReceiver()
        agent.open(Renew(request), first).finish()
        agent.open(Renew(request), second).finish()
        flush(wire)
        assert second.reason is not None
        self.assertEqual(second.reason.code, ResetCode.LIMIT)
        recording.callback(None)
        flush(wire)
        self.clock.advance(5)
        agent.open(Renew(request), third).finish()
        flush(wire)
        for answered in (first, third):
            self.assertIsInstance(decode_result(answered.lane(Lane.RESULT)), Issued)

    def test_renewals_without_end(self) -> None:
        """A device that renews again and again is told to wait, on whichever link."""
        self.assertIsInstance(self.renew(signing_request(new_key(), "x")), Issued)
        agent, _ = self.agent(b"b" * 16)
        wire = self.connect(agent)
        receiver = RecordingReceiver()
        agent.open(Renew(signing_request(new_key(), "x")), receiver).finish()
        flush(wire)
        assert receiver.reason is not None
        self.assertEqual(receiver.reason.code, ResetCode.LIMIT)
        self.assertIn("in a minute", receiver.reason.text)

    def test_nothing_else(self) -> None:
        """A device can ask the controller for nothing but renewal."""
        agent, _ = self.agent()
        wire = self.connect(agent)
        for request in (Logs(), AskFacts()):
            receiver = RecordingReceiver()
            agent.open(request, receiver)
            flush(wire)
            assert receiver.reason is not None
            self.assertEqual(receiver.reason.code, ResetCode.UNSUPPORTED)


class GraceTests(GatewayCase):
    """With a grace, sessions outlive a connection."""

    grace = 60

    def open(
        self, capabilities: frozenset[str] = frozenset({RESUME, TAKEOVER})
    ) -> tuple[Tether, Wire, RecordingReceiver]:
        """A device with a session on it."""
        agent, _ = self.agent(capabilities=capabilities)
        wire = self.connect(agent)
        receiver = RecordingReceiver()
        device = self.registry.get(KEY)
        assert device is not None
        device.open(Logs(), receiver)
        flush(wire)
        return agent, wire, receiver

    def test_resumed(self) -> None:
        """The same process finds its sessions on the next connection."""
        agent, wire, receiver = self.open()
        wire.cut()
        self.assertIsNone(self.registry.get(KEY))
        self.connect(agent)
        self.assertIsNotNone(self.registry.get(KEY))
        self.assertIsNone(receiver.reason)

    def test_another_process(self) -> None:
        """A restarted agent ends the sessions of its former process at once."""
        _, wire, receiver = self.open()
        wire.cut()
        self.connect(self.agent(b"b" * 16)[0])
        assert receiver.reason is not None
        self.assertEqual(receiver.reason.code, ResetCode.LOST)
        self.assertIn("restarted", receiver.reason.text)

    def test_overtaken(self) -> None:
        """A connection that was overtaken on its way is sent away, and the later one stays."""
        agent, wire, receiver = self.open()
        wire.cut()
        slow = self.transport(self.certificate)
        ear = self.gateway.decide(TETHER, slow)
        assert not isinstance(ear, Refusal)
        delayed = Wire(slow, MemoryTransport(self.clock), ear, agent.receiver())
        delayed.connect()
        hello = list(delayed.agent.sent)
        self.connect(agent)
        for message in hello:
            ear.message_received(message)
        self.assertIsNotNone(slow.closed_with)
        self.assertIsNotNone(self.registry.get(KEY))
        self.assertIsNone(receiver.reason)

    def hello_on_its_way(self, agent: Tether) -> tuple[MessageReceiver, MemoryTransport, bytes]:
        """A connection of this agent whose Hello has not arrived yet."""
        transport = self.transport(self.certificate)
        ear = self.gateway.decide(TETHER, transport)
        assert not isinstance(ear, Refusal)
        wire = Wire(transport, MemoryTransport(self.clock), ear, agent.receiver())
        wire.connect()
        [hello] = wire.agent.sent
        return ear, transport, hello

    def renewed(self, agent: Tether, wire: Wire) -> x509.Certificate:
        """The certificate of another key of this agent."""
        answers = RecordingReceiver()
        agent.open(Renew(signing_request(new_key(), "x")), answers).finish()
        flush(wire)
        answer = decode_result(answers.lane(Lane.RESULT))
        assert isinstance(answer, Issued)
        return x509.load_pem_x509_certificate(answer.certificate)

    def test_overtaken_changes_nothing(self) -> None:
        """A Hello that comes late, by a key that was renewed since, leaves the link as it is."""
        agent, wire, receiver = self.open()
        certificate = self.renewed(agent, wire)
        wire.cut()
        ear, transport, hello = self.hello_on_its_way(agent)
        self.server.go_away()
        self.connect(agent, certificate)
        [link] = self.gateway._links[KEY]
        before = (link.admitted, link.tether._introduction)
        self.change_settings(7)
        ear.message_received(hello)
        assert transport.closed_with is not None
        self.assertIn("later connection", transport.closed_with[1])
        self.assertEqual(before, (link.admitted, link.tether._introduction))
        self.assertEqual(self.gateway._links[KEY], [link])
        self.assertIsNone(receiver.reason)

    def test_overtaken_tells_nothing(self) -> None:
        """A late Hello by the present key does not change what the link says next."""
        agent, wire, _ = self.open()
        wire.cut()
        ear, _, hello = self.hello_on_its_way(agent)
        self.connect(agent)
        [link] = self.gateway._links[KEY]
        said = link.tether._introduction
        self.change_settings(7)
        ear.message_received(hello)
        self.assertEqual(said, link.tether._introduction)

    def change_settings(self, grace: int) -> None:
        """What links are told from here on."""
        welcome = Welcome(URLS, b"")
        self.gateway._settings = lambda key: device_settings(key, None, welcome, grace)

    def test_another_key_of_no_sense(self) -> None:
        """Whoever takes an agent's name with another key, and is sent away, leaves the agent known."""
        agent, wire, receiver = self.open()
        other = self.certificate
        certificate = self.renewed(agent, wire)
        wire.cut()
        self.server.go_away()
        wire = self.connect(agent, certificate)
        thief, _ = self.agent()
        for extra in (frames.encode([frames.Data(2, 99, 0, b"gap")]), b""):
            self.certificate = other
            ear, transport, hello = self.hello_on_its_way(thief)
            if not extra:
                self.patch(self.gateway._admission, "check", self.fail_check)
            first = frames.decode(hello)[0]
            assert isinstance(first, frames.Hello)
            ear.message_received(frames.encode([replace(first, number=99)]) + extra)
            self.assertIsNotNone(transport.closed_with)
            self.assertEqual(self.gateway.agents, 1)
            self.assertIsNone(receiver.reason)
        self.assertIsNotNone(self.registry.get(KEY))
        self.done(self.gateway.close("failover"))
        flush(wire)
        assert receiver.reason is not None
        self.assertEqual(receiver.reason.text, "failover")

    def fail_check(self, admitted: Admitted) -> None:
        """Nobody is let in."""
        raise NotAdmitted("not any more")

    def test_a_living_companion(self) -> None:
        """Another agent that knows the former one to live leaves its sessions to wait for it."""
        agent, wire, receiver = self.open()
        wire.cut()
        self.connect(self.agent(b"b" * 16, started=2, companions=frozenset({b"a" * 16}))[0])
        self.assertIsNone(receiver.reason)
        self.connect(agent)
        self.assertIsNone(receiver.reason)
        self.clock.advance(61)
        self.assertIsNone(receiver.reason)

    def test_another_key(self) -> None:
        """Whoever has the same instance but another key gets none of its sessions."""
        agent, wire, receiver = self.open()
        wire.cut()
        token, key = self.token("n2"), new_key()
        chain = self.done(self.joins.redeem(KEY, token.secret, signing_request(key, "x"), "a"))
        self.connect(agent, x509.load_pem_x509_certificate(chain))
        assert receiver.reason is not None
        self.assertEqual(receiver.reason.code, ResetCode.LOST)

    def test_another_host(self) -> None:
        """Whoever has the same instance and the same key on another host gets nothing, and ends nothing."""
        agent, wire, receiver = self.open()
        for connected in (True, False):
            if not connected:
                wire.cut()
            thief, watch = self.agent(boot="other")
            self.connect(thief)
            [(reason, retry)] = watch.downs
            self.assertIn("another host", reason)
            self.assertTrue(retry)
            self.assertEqual(watch.ups, [])
        self.connect(agent)
        self.assertIsNone(receiver.reason)

    def test_renewed_key(self) -> None:
        """A key that was certified over the link counts as the one before it: the sessions go on."""
        agent, wire, receiver = self.open()
        answers, key = RecordingReceiver(), new_key()
        agent.open(Renew(signing_request(key, "x")), answers).finish()
        flush(wire)
        answer = decode_result(answers.lane(Lane.RESULT))
        assert isinstance(answer, Issued)
        wire.cut()
        self.connect(agent, x509.load_pem_x509_certificate(answer.certificate))
        self.assertIsNone(receiver.reason)
        self.assertIsNotNone(self.registry.get(KEY))

    def test_banned_meanwhile(self) -> None:
        """Who is banned while its link is down loses the sessions that wait."""
        _, wire, receiver = self.open()
        wire.cut()
        self.registry.disconnect(KEY, "banned", retry=False)
        assert receiver.reason is not None
        self.assertEqual((receiver.reason.code, receiver.reason.text), (ResetCode.LOST, "banned"))

    def test_too_late(self) -> None:
        """After the grace the sessions are over, and nothing is kept of the process."""
        agent, wire, receiver = self.open()
        wire.cut()
        self.clock.advance(59)
        self.assertIsNone(receiver.reason)
        self.clock.advance(1)
        assert receiver.reason is not None
        self.assertEqual(receiver.reason.code, ResetCode.LOST)
        self.assertEqual(self.gateway.agents, 0)
        self.connect(agent)
        self.assertIsNotNone(self.registry.get(KEY))

    def test_grace_of_the_edge_device(self) -> None:
        """An EdgeDevice may set its own grace, within bounds; 0 is none."""
        self.change({"spec": {"connectivity": {"graceSeconds": 7}}})
        _, wire, receiver = self.open()
        wire.cut()
        self.clock.advance(7)
        self.assertIsNotNone(receiver.reason)
        welcome = Welcome(URLS, b"")
        for told, wanted in ((0, 0), (3600, 3600), (3601, 60), (-1, 60), ("x", 60), (True, 60), (None, 60)):
            device = {"spec": {"connectivity": {"graceSeconds": told}}}
            self.assertEqual(device_settings(KEY, device, welcome, 60).grace_seconds, wanted)

    def test_an_agent_of_a_former_version(self) -> None:
        """An agent that does not resume is not waited for."""
        _, wire, receiver = self.open(frozenset())
        wire.cut()
        assert receiver.reason is not None
        self.assertEqual(receiver.reason.code, ResetCode.LOST)

    def test_two_agents(self) -> None:
        """The second stands by; when the first goes, or drains, it is active in the same turn."""
        first, first_watch = self.agent(started=1)
        first_wire = self.connect(first)
        second, second_watch = self.agent(b"b" * 16, started=2, companions=frozenset({b"a" * 16}))
        second_wire = self.connect(second)
        self.assertEqual((first_watch.duties, second_watch.duties), ([Duty.ACTIVE], [Duty.STANDBY]))
        self.assertEqual(len(self.registry.standbys(KEY)), 1)
        first.tell_duty(Duty.DRAINING)
        flush(first_wire)
        flush(second_wire)
        self.assertEqual(second_watch.duties, [Duty.STANDBY, Duty.ACTIVE])
        receiver = RecordingReceiver()
        device = self.registry.get(KEY)
        assert device is not None
        device.open(Logs(), receiver)
        first_wire.cut()
        self.clock.advance(61)
        self.assertIsNone(receiver.reason)
        self.assertEqual(self.registry.standbys(KEY), [])
        self.assertEqual(self.gateway.agents, 1)

    def test_too_many_agents(self) -> None:
        """A device cannot have the controller hold ever more agents of it."""
        names = [bytes([number]) * 16 for number in range(PROCESSES_LIMIT + 1)]
        watches = []
        for number, name in enumerate(names):
            agent, watch = self.agent(name, started=number, companions=frozenset(names))
            wire = self.connect(agent)
            watches.append(watch)
            if number % 2:
                wire.cut()
        self.assertEqual(self.gateway.agents, PROCESSES_LIMIT)
        self.assertIn("agents of this device", watches[-1].downs[-1][0])
        self.clock.advance(60)
        self.assertEqual(self.gateway.agents, PROCESSES_LIMIT // 2)

    def test_close(self) -> None:
        """A gateway that closes ends the sessions that wait, too."""
        _, wire, receiver = self.open()
        wire.cut()
        self.done(self.gateway.close("the controller is stopping"))
        assert receiver.reason is not None
        self.assertEqual(receiver.reason.text, "the controller is stopping")
        self.assertEqual(self.gateway.agents, 0)
