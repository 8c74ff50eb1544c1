"""Both ends for real: a gateway and an agent over TLS on the loopback; the API server is in memory."""

from __future__ import annotations

import base64
import fcntl
import os
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any, TypeVar, cast

from cryptography.hazmat.primitives.serialization import load_pem_private_key
from twisted.internet import reactor as global_reactor
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP4ServerEndpoint
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.task import deferLater
from twisted.logger import LogEvent, capturedLogs, formatEvent
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase, TestCase

import arhat.dial
import arhat.gateway
from aranya.certs.authority import Authority, new_authority
from aranya.certs.contexts import ServerContext
from aranya.certs.keys import KeyPair, key_hash, key_to_pem, new_key
from aranya.device.admission import Admission
from aranya.device.gateway import Gateway, LinkTerms, device_settings
from aranya.device.joining import Joins, Welcome
from aranya.device.records import Records
from aranya.device.registry import Registry
from aranya.interfaces import Object
from aranya.kube.memory import MemoryApiServer
from aranya.kube.objects import EDGEDEVICES, SECRETS, new_object, uid_of
from aranya.names import JOIN_ANNOTATION, DeviceIdentity, DeviceKey
from arhat.dial import SESSIONS_WAIT, Dial, failures_after, seconds_to_wait
from arhat.gateway import GatewayTrust, gateway_endpoint
from arhat.identity import Identity, State, StateError
from arhat.joining import JoinFailed, join
from tether.errors import Reason
from tether.join import Token
from tether.link.interfaces import Channel, Lane, Receiver
from tether.link.link import RESUME, TAKEOVER, PeerIntroduction
from tether.link.transport import MessageTransport
from tether.link.websocket import TETHER, ClientFactory
from tether.verbs.codec import encode_result
from tether.verbs.requests import AskFacts, DeviceFacts, Exec, Exited, Request
from tether.wire.frames import alias_of

KEY = DeviceKey("edge", "pump")
_T = TypeVar("_T")
reactor = cast(Any, global_reactor)


def now() -> datetime:
    """The time."""
    return datetime.now(UTC)


class Answering:
    """An acceptor that answers every request with exit code 7."""

    def __init__(self) -> None:
        self.requests: list[Request] = []

    def stream_opened(self, request: Request, channel: Channel) -> Receiver:
        """Answer at once."""
        self.requests.append(request)
        channel.write(encode_result(Exited(7)), Lane.RESULT)
        channel.finish()
        return Listening()


class Holding(Answering):
    """An acceptor that keeps each stream open until it is told to answer."""

    def __init__(self) -> None:
        super().__init__()
        self.channels: list[Channel] = []
        self.receivers: list[Listening] = []

    def stream_opened(self, request: Request, channel: Channel) -> Receiver:
        """Keep it."""
        self.requests.append(request)
        self.channels.append(channel)
        self.receivers.append(Listening())
        return self.receivers[-1]

    def answer(self) -> None:
        """Answer the newest."""
        self.channels[-1].write(b"late")
        self.channels[-1].write(encode_result(Exited(7)), Lane.RESULT)
        self.channels[-1].finish()


class Listening:
    """A receiver that keeps what it hears."""

    def __init__(self) -> None:
        self.heard: list[tuple[Lane, bytes]] = []
        self.over: Deferred[None] = Deferred()
        self.reason: Reason | None = None

    def data_received(self, lane: Lane, data: bytes) -> None:
        """Keep it."""
        self.heard.append((lane, data))

    def finished(self) -> None:
        """Nothing more comes."""
        if not self.over.called:
            self.over.callback(None)

    def reset(self, reason: Reason) -> None:
        """It ended before its time."""
        self.reason = reason
        if not self.over.called:
            self.over.callback(None)

    def closed(self) -> None:
        """Over."""


class Ear:
    """Hears one raw connection."""

    def __init__(self) -> None:
        self.lost: Deferred[str] = Deferred()
        self.was_connected = False

    def connected(self, transport: MessageTransport) -> None:
        """Let in."""
        self.was_connected = True

    def message_received(self, message: bytes) -> None:
        """Nobody asked."""

    def connection_lost(self, reason: str) -> None:
        """Over."""
        self.lost.callback(reason)


class LoopbackCase(TestCase):
    """A gateway on 127.0.0.1 and one EdgeDevice."""

    timeout = 20

    async def setUp(self) -> None:
        self.server = MemoryApiServer(reactor)
        self.kubernetes = self.server.client()
        self.authority = new_authority(now())
        self.clones: list[str] = []
        self.comment = b""
        self.registry = Registry(reactor, lambda key, line: self.clones.append(line), proof_of_life=1.0)
        self.records = Records(self.kubernetes, "system")
        self.joins = Joins(
            self.kubernetes,
            self.authority,
            self.records,
            self.welcome,
            lambda key: self.lookup(key),
            reactor,
            lambda key: self.registry.disconnect(key, "another machine joined"),
        )
        key = new_key()
        chain = self.authority.sign_server(key.public_key(), ["127.0.0.1"], now())
        self.context = ServerContext(KeyPair(chain, key_to_pem(key)))
        self.gateway = self.new_gateway(0)
        await self.gateway.listen()
        self.port = cast(IPv4Address, self.gateway.address).port
        self.url = f"wss://127.0.0.1:{self.port}"
        self.addCleanup(lambda: Deferred.fromCoroutine(self.gateway.close("the test is over")))
        body = new_object(EDGEDEVICES, {"name": KEY.name, "namespace": KEY.namespace}, spec={})
        await self.kubernetes.create(EDGEDEVICES, KEY.namespace, body)
        self.state = self.new_state()

    def new_gateway(self, port: int) -> Gateway:
        """A gateway over the same records."""
        return Gateway(
            TCP4ServerEndpoint(reactor, port, interface="127.0.0.1"),
            self.context,
            self.authority.bundle,
            Admission(lambda key: self.lookup(key), self.joins.recorded_keys),
            self.joins,
            self.registry,
            self.welcome,
            lambda key: device_settings(key, self.lookup(key), self.welcome(), 60),
            LinkTerms("aranya/test", b"c" * 16),
            reactor,
        )

    def welcome(self) -> Welcome:
        """What a device is told about the gateway."""
        return Welcome((self.url,), self.comment + self.authority.bundle)

    def new_state(self) -> State:
        """An empty state folder."""
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        return State(Path(folder.name) / "state")

    def lookup(self, key: DeviceKey) -> Object | None:
        """What the watch would know."""
        return self.server.stored(EDGEDEVICES, key.namespace, key.name)

    async def change(self, body: Object) -> None:
        """Merge into the EdgeDevice."""
        await self.kubernetes.patch(EDGEDEVICES, KEY.namespace, KEY.name, body)

    async def token(self, nonce: str = "n") -> Token:
        """Ask for a token."""
        await self.change({"metadata": {"annotations": {JOIN_ANNOTATION: nonce}}})
        await self.joins.reconcile(cast(Object, self.lookup(KEY)))
        secret = self.server.stored(SECRETS, KEY.namespace, "pump-join")
        assert secret is not None
        return Token.decode(base64.b64decode(secret["data"]["token"]).decode())

    async def join(self, token: Token | None = None, state: State | None = None) -> Identity:
        """Join as the agent does."""
        state = state or self.state
        state.prepare()
        return await join(token or await self.token(), state, reactor, now, {}, "arhat/test")

    async def refusal(self, work: Awaitable[object]) -> str:
        """The line with which a join fails."""
        try:
            await work
        except JoinFailed as failed:
            return str(failed)
        raise AssertionError("it did not fail")

    def dial(
        self,
        identity: Identity,
        state: State | None = None,
        boot: str = "boot-1",
        instance: bytes = b"a" * 16,
        started: int = 0,
        companions: frozenset[bytes] = frozenset(),
        acceptor: Answering | None = None,
    ) -> tuple[Dial, Answering]:
        """A running agent; the identity is what its folder holds."""
        acceptor = acceptor or Answering()
        (state or self.state).save(identity)

        def introduce() -> PeerIntroduction:
            return PeerIntroduction(
                "arhat/test",
                frozenset({RESUME, TAKEOVER}),
                instance,
                boot,
                DeviceFacts(os="linux", allow=frozenset({"exec"})),
                started=started,
                companions=frozenset(map(alias_of, companions)),
            )

        dial = Dial(reactor, state or self.state, identity, acceptor, introduce, {}, now, random=Random(1))
        dial.startService()
        self.addCleanup(lambda: dial.stopService() if dial.running else None)
        return dial, acceptor

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait for something to become true; the test's timeout is the deadline."""
        while not condition():
            await deferLater(reactor, 0.02, lambda: None)

    async def knock(self, certificate: bytes = b"", key: bytes = b"") -> tuple[bool, str]:
        """Ask for a tether with this certificate: let in, and why it ended."""
        trust = GatewayTrust("127.0.0.1", self.authority.bundle, now, certificate, key)
        ear = Ear()
        factory = ClientFactory(self.url, TETHER, lambda: ear, reactor, "test")
        await gateway_endpoint(reactor, self.url, trust, {}).connect(factory)
        return ear.was_connected, await ear.lost

    def certificate(self, authority: Authority, uid: str, moment: datetime) -> tuple[bytes, bytes]:
        """A device certificate and its key."""
        key = new_key()
        chain = authority.sign_device(key.public_key(), DeviceIdentity(KEY, uid), moment)
        return chain, key_to_pem(key)


class JoinTests(LoopbackCase):
    """A token becomes an identity, once."""

    async def test_joined(self) -> None:
        """The identity is kept and its certificate is for the key made here."""
        identity = await self.join()
        self.assertEqual((identity.namespace, identity.name), ("edge", "pump"))
        self.assertEqual(identity.urls, (self.url,))
        self.assertEqual(self.state.load(), identity)
        self.assertEqual(identity.trouble(now()), "")

    async def test_used(self) -> None:
        """A used token is refused to another machine."""
        token = await self.token()
        await self.join(token)
        line = await self.refusal(self.join(token, self.new_state()))
        self.assertIn("used already", line)

    async def test_again_after_a_lost_answer(self) -> None:
        """A machine that lost the answer may use its token again."""
        token = await self.token()
        first = await self.join(token)
        state = self.new_state()
        state.folder.mkdir()
        (state.folder / "next-key.pem").write_bytes(first.key)
        identity = await self.join(token, state)
        self.assertEqual(identity.key, first.key)

    async def test_expired(self) -> None:
        """An expired token is refused with the command that makes a new one."""
        token = await self.token()
        await self.records.update(
            KEY,
            uid_of(cast(Object, self.lookup(KEY))),
            lambda record: replace(record, join=replace(cast(Any, record.join), expires=1.0)),
        )
        line = await self.refusal(self.join(token))
        self.assertIn("kubectl aranya join pump -n edge", line)

    async def test_foreign_authority(self) -> None:
        """A gateway that the token's authority did not certify is not told the secret."""
        token = replace(await self.token(), ca_bundle=new_authority(now()).bundle)
        line = await self.refusal(self.join(token))
        self.assertIn("not the gateway this device trusts", line)
        self.assertIsNone(self.records.get(KEY, uid_of(cast(Object, self.lookup(KEY)))).keys or None)

    async def test_wrong_host(self) -> None:
        """A gateway whose certificate is for another host is not trusted."""
        token = replace(await self.token(), urls=(f"wss://localhost:{self.port}",))
        line = await self.refusal(self.join(token))
        self.assertIn("not for localhost", line)

    async def test_wrong_clock(self) -> None:
        """A gateway's certificate that is expired is told with the time that the clock says."""
        key = new_key()
        chain = self.authority.sign_server(key.public_key(), ["127.0.0.1"], now() - timedelta(days=200))
        self.context.swap(KeyPair(chain, key_to_pem(key)))
        line = await self.refusal(self.join())
        self.assertIn("expired on", line)
        self.assertIn("the clock here says", line)

    async def test_next_url(self) -> None:
        """A URL where nobody listens is passed over."""
        token = await self.token()
        token = replace(token, urls=("wss://127.0.0.1:1", *token.urls))
        self.assertEqual((await self.join(token)).name, "pump")

    async def test_unreachable(self) -> None:
        """If no URL answers the line names each."""
        token = replace(await self.token(), urls=("wss://127.0.0.1:1",))
        self.assertIn("wss://127.0.0.1:1", await self.refusal(self.join(token)))

    async def test_banned(self) -> None:
        """A banned device hears so."""
        token = await self.token()
        await self.change({"spec": {"banned": True}})
        self.assertIn("banned", await self.refusal(self.join(token)))


class KnockTests(LoopbackCase):
    """Without a certificate that counts there is nothing but joining."""

    async def test_nobody(self) -> None:
        """Without a certificate no tether is opened, and the answer says what to do."""
        let_in, reason = await self.knock()
        self.assertFalse(let_in)
        self.assertIn("join first", reason)

    async def test_foreign(self) -> None:
        """A certificate of another authority is refused in words."""
        uid = uid_of(cast(Object, self.lookup(KEY)))
        let_in, reason = await self.knock(*self.certificate(new_authority(now()), uid, now()))
        self.assertFalse(let_in)
        self.assertIn("not signed by an authority", reason)

    async def test_expired(self) -> None:
        """An expired certificate is refused with its date."""
        uid = uid_of(cast(Object, self.lookup(KEY)))
        long_ago = now() - timedelta(days=100)
        let_in, reason = await self.knock(*self.certificate(self.authority, uid, long_ago))
        self.assertFalse(let_in)
        self.assertIn("expired on", reason)

    async def test_unrecorded_key(self) -> None:
        """A valid certificate with a key that is not recorded is refused."""
        await self.join()
        uid = uid_of(cast(Object, self.lookup(KEY)))
        let_in, reason = await self.knock(*self.certificate(self.authority, uid, now()))
        self.assertFalse(let_in)
        self.assertIn("another machine has joined", reason)

    async def test_other_uid(self) -> None:
        """A certificate of an EdgeDevice that was deleted is not good for its namesake."""
        let_in, reason = await self.knock(*self.certificate(self.authority, "older", now()))
        self.assertFalse(let_in)
        self.assertIn("another one", reason)

    async def test_replaced(self) -> None:
        """After another machine joined, the first one's certificate is refused."""
        first = await self.join()
        await self.join(await self.token("m"), self.new_state())
        let_in, reason = await self.knock(first.certificate, first.key)
        self.assertFalse(let_in)
        self.assertIn("another machine has joined", reason)


class Proxy(Protocol):
    """A small HTTP proxy: CONNECT, then bytes both ways."""

    def __init__(self, asked: list[bytes]) -> None:
        self.asked = asked
        self.head = b""
        self.onward: Protocol | None = None

    def dataReceived(self, data: bytes) -> None:
        """The head of CONNECT, or bytes to pass on."""
        if self.onward is not None:
            cast(Any, self.onward.transport).write(data)
            return
        self.head += data
        if b"\r\n\r\n" in self.head:
            self.asked.append(self.head.split(b"\r\n")[0])
            host, port = self.head.split()[1].decode().split(":")
            connecting = TCP4ClientEndpoint(reactor, host, int(port)).connect(
                Factory.forProtocol(lambda: Onward(self))
            )
            connecting.addCallback(self.connected_onward)

    def connected_onward(self, onward: Protocol) -> None:
        """The target is there."""
        self.onward = onward
        cast(Any, self.transport).write(b"HTTP/1.1 200 OK\r\n\r\n")

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Hang up on the other side, too."""
        if self.onward is not None:
            cast(Any, self.onward.transport).loseConnection()


class Onward(Protocol):
    """The proxy's other side."""

    def __init__(self, back: Proxy) -> None:
        self.back = back

    def dataReceived(self, data: bytes) -> None:
        """Bytes to pass back."""
        cast(Any, self.back.transport).write(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Hang up on the other side, too."""
        cast(Any, self.back.transport).loseConnection()


class WaitTests(SynchronousTestCase):
    """The law of waiting."""

    def test_growing(self) -> None:
        """The bound doubles from half a second to fifteen, and the whole range below it is used."""
        for failures, bound in ((0, 0.5), (1, 1.0), (3, 4.0), (6, 15.0), (1000, 15.0)):
            random = Random(failures)
            waits = [seconds_to_wait(failures, False, random) for _ in range(200)]
            self.assertLessEqual(max(waits), bound)
            self.assertGreater(max(waits), 0.9 * bound)
            self.assertLess(min(waits), 0.1 * bound)

    def test_sessions_wait(self) -> None:
        """While sessions wait for a link the bound stays low, and the range is still used."""
        random = Random(1)
        waits = [seconds_to_wait(50, False, random, SESSIONS_WAIT) for _ in range(200)]
        self.assertLessEqual(max(waits), SESSIONS_WAIT)
        self.assertLess(min(waits), 0.1 * SESSIONS_WAIT)

    def test_short_links(self) -> None:
        """A link that lived briefly counts for little: the controller is there and will stay."""
        self.assertEqual(failures_after(7, 0.0), 8)
        self.assertEqual(failures_after(7, 0.5), 2)
        self.assertEqual(failures_after(0, 0.5), 1)
        self.assertEqual(failures_after(7, 3600.0), 0)

    def test_refused(self) -> None:
        """Who was refused comes again after one to two minutes, not sooner."""
        random = Random(1)
        waits = [seconds_to_wait(0, True, random) for _ in range(200)]
        self.assertGreaterEqual(min(waits), 60.0)
        self.assertLessEqual(max(waits), 120.0)


class FailingOnce(State):
    """A state folder that cannot be written the first time."""

    has_failed = False

    def next_key(self) -> bytes:
        """Fail, or do as asked."""
        if not self.has_failed:
            self.has_failed = True
            raise StateError("the disk is full")
        return super().next_key()


class Busy(State):
    """A state folder that another agent locks as soon as a key to renew with was made."""

    lock: int | None = None

    def next_key(self) -> bytes:
        """Do as asked, then be locked."""
        key = super().next_key()
        self.lock = os.open(self.folder / "lock", os.O_RDWR | os.O_CLOEXEC)
        fcntl.flock(self.lock, fcntl.LOCK_EX)
        return key

    def release(self) -> None:
        """The other agent has written."""
        if self.lock is not None:
            os.close(self.lock)
            self.lock = None


class Overtaken(State):
    """A state folder in which another process joins anew while a renewal is asked for."""

    anew: Identity

    def next_key(self) -> bytes:
        """Do as asked, then hold another join."""
        key = super().next_key()
        self.save(self.anew)
        return key


class Unreadable(State):
    """A state folder whose disk is gone."""

    def load(self) -> Identity | None:
        """Fail."""
        raise StateError("the disk is gone")


class DialTests(LoopbackCase):
    """The link of a device that has joined."""

    async def test_linked(self) -> None:
        """A joined device connects, is found by its certificate's name, and answers."""
        dial, acceptor = self.dial(await self.join())
        await self.until(lambda: self.registry.get(KEY) is not None)
        device = self.registry.get(KEY)
        assert device is not None
        self.assertTrue(device.allows("exec"))
        listening = Listening()
        device.open(Exec((b"true",)), listening)
        await listening.over
        self.assertEqual(listening.heard, [(Lane.RESULT, encode_result(Exited(7)))])
        self.assertEqual(acceptor.requests, [Exec((b"true",))])
        self.assertTrue(dial.is_up)

    async def test_proxy(self) -> None:
        """Through a proxy the device joins and connects, with TLS from end to end."""
        asked: list[bytes] = []
        proxy = TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1")
        port = await proxy.listen(Factory.forProtocol(lambda: Proxy(asked)))
        self.addCleanup(port.stopListening)
        # The loopback is spared otherwise.
        address = f"http://127.0.0.1:{port.getHost().port}"
        self.patch(arhat.gateway, "proxy_for", lambda *_: address)
        self.dial(await self.join())
        await self.until(lambda: self.registry.get(KEY) is not None)
        self.assertEqual(asked, [b"CONNECT 127.0.0.1:%d HTTP/1.1" % self.port] * 2)

    async def test_stopping(self) -> None:
        """An agent that stops is gone at once, with its reason."""
        dial, _ = self.dial(await self.join())
        await self.until(lambda: self.registry.get(KEY) is not None)
        await cast(Deferred[None], dial.stopService())
        await self.until(lambda: self.registry.get(KEY) is None)

    async def test_coming_back(self) -> None:
        """After the controller's restart the device comes back by itself."""
        self.dial(await self.join())
        await self.until(lambda: self.registry.get(KEY) is not None)
        await self.gateway.close("restart")
        await self.until(lambda: self.registry.get(KEY) is None)
        self.gateway = self.new_gateway(self.port)
        await self.gateway.listen()
        await self.until(lambda: self.registry.get(KEY) is not None)

    async def test_banned(self) -> None:
        """A banned device is cut off at once and is told not to hurry back."""
        dial, _ = self.dial(await self.join())
        await self.until(lambda: self.registry.get(KEY) is not None)
        await self.change({"spec": {"banned": True}})
        self.registry.disconnect(KEY, "the device is banned", retry=False)
        self.assertIsNone(self.registry.get(KEY))
        await self.until(lambda: "banned" in dial.trouble)
        self.assertFalse(dial.is_up)

    async def overdue(self) -> Identity:
        """A device whose certificate is past two thirds of its life."""
        identity = await self.join()
        uid = uid_of(cast(Object, self.lookup(KEY)))
        certificate, key = self.certificate(self.authority, uid, now() - timedelta(days=70))
        keys = (key_hash(cast(Any, load_pem_private_key(key, None)).public_key()),)
        await self.records.update(KEY, uid, lambda record: replace(record, keys=keys))
        return replace(identity, certificate=certificate, key=key)

    async def test_renewed(self) -> None:
        """At two thirds of its life the certificate is renewed over the link and used from then on."""
        old = await self.overdue()
        uid = uid_of(cast(Object, self.lookup(KEY)))
        dial, _ = self.dial(old)
        await self.until(lambda: dial.identity.certificate != old.certificate)
        self.assertGreater(dial.identity.renewal_time(), now() + timedelta(days=50))
        self.assertEqual(self.state.load(), dial.identity)
        self.registry.disconnect(KEY, "try the new one")
        await self.until(lambda: self.registry.get(KEY) is not None)
        await self.until(lambda: len(self.records.get(KEY, uid).keys) == 1)

    async def test_settings_are_kept(self) -> None:
        """URLs that the controller tells are kept; if they lead nowhere, the one that worked still does."""
        identity = await self.join()
        self.dial(identity)
        self.url = self.url.replace("127.0.0.1", "localhost") + "/"
        told = (self.url, *identity.urls)
        await self.until(lambda: cast(Identity, self.state.load()).urls == told)
        self.registry.disconnect(KEY, "try the new one")
        await self.until(lambda: self.registry.get(KEY) is not None)

    async def test_renewal_fails_at_once(self) -> None:
        """A renewal that cannot even begin is tried again at the next look."""
        old = await self.overdue()
        failing = FailingOnce(self.state.folder)
        dial, _ = self.dial(old, failing)
        await self.until(lambda: failing.has_failed)
        self.registry.disconnect(KEY, "look again")
        await self.until(lambda: dial.identity.certificate != old.certificate)

    async def reconnect(self) -> None:
        """Cut the link, and wait for the next one."""
        self.patch(arhat.dial, "FIRST_WAIT", 0.05)
        before = self.registry.get(KEY)
        self.registry.disconnect(KEY, "try again")
        await self.until(lambda: self.registry.get(KEY) not in (before, None))

    def lines(self, events: Sequence[LogEvent], text: str) -> int:
        """How many lines of the log say this."""
        return sum(text in (formatEvent(event) or "") for event in events)

    async def unsaved(self, events: Sequence[LogEvent]) -> tuple[Dial, Identity, Busy]:
        """A device whose renewed certificate cannot be saved, and what it was before."""
        old = await self.overdue()
        state = Busy(self.state.folder)
        self.addCleanup(state.release)
        dial, _ = self.dial(old, state)
        await self.until(lambda: self.lines(events, "another arhat writes") > 0)
        return dial, old, state

    async def test_unsaved_renewal(self) -> None:
        """A renewed key is not used before it is on disk; with each attempt it is saved again, told once."""
        uid = uid_of(cast(Object, self.lookup(KEY)))
        with capturedLogs() as events:
            dial, old, state = await self.unsaved(events)
            for _ in range(2):
                await self.reconnect()
            self.assertEqual((dial.identity, self.state.load()), (old, old))
            self.assertEqual(len(self.records.get(KEY, uid).keys), 2)
            self.assertEqual(self.lines(events, "another arhat writes"), 1)
            self.assertEqual(self.lines(events, "certificate renewed"), 0)
            state.release()
            await self.reconnect()
        kept = cast(Identity, self.state.load())
        self.assertNotEqual(kept.key, old.key)
        self.assertEqual(kept, dial.identity)
        public_key = cast(Any, load_pem_private_key(kept.key, None)).public_key()
        await self.until(lambda: self.records.get(KEY, uid).keys == (key_hash(public_key),))
        self.assertEqual(self.lines(events, "certificate renewed"), 1)
        self.assertEqual(self.lines(events, "certificate of edge/pump renewed"), 1)

    async def test_saved_later(self) -> None:
        """A renewed key that could not be saved is saved at the next look, without another renewal."""
        self.patch(arhat.dial, "RENEWAL_LOOK", 0.05)
        with capturedLogs() as events:
            dial, old, state = await self.unsaved(events)
            state.release()
            await self.until(lambda: cast(Identity, self.state.load()).key != old.key)
        self.assertEqual(self.state.load(), dial.identity)
        self.assertEqual(self.lines(events, "another arhat writes"), 1)
        self.assertEqual(self.lines(events, "certificate of edge/pump renewed"), 1)

    async def test_unsaved_settings(self) -> None:
        """URLs that cannot be saved are used all the same, and saved when they can be."""
        with capturedLogs() as events:
            dial, old, state = await self.unsaved(events)
        self.url = self.url.replace("127.0.0.1", "localhost") + "/"
        await self.reconnect()
        await self.until(lambda: dial.identity.urls == (self.url, *old.urls))
        self.assertEqual(self.state.load(), old)
        state.release()
        await self.reconnect()
        kept = cast(Identity, self.state.load())
        self.assertEqual((kept.urls[0], kept), (self.url, dial.identity))
        self.assertNotEqual(kept.key, old.key)

    async def test_overtaken_renewal(self) -> None:
        """A renewal that is answered after another process joined anew is of no use, and changes nothing."""
        old = await self.overdue()
        state = Overtaken(self.state.folder)
        state.anew = replace(old, certificate=self.older(old), token="another")
        with capturedLogs() as events:
            dial, _ = self.dial(old, state)
            await self.until(lambda: self.lines(events, "certificate of edge/pump renewed") > 0)
            await self.until(lambda: dial.identity != old)
        self.assertEqual((dial.identity, self.state.load()), (state.anew, state.anew))

    async def test_settings_beside_a_renewal(self) -> None:
        """Settings go beside the certificate that another agent has renewed, not with the one from before."""
        first = await self.join()
        dial, _ = self.dial(replace(first, certificate=self.older(first)))
        self.state.save(first)
        self.url = self.url.replace("127.0.0.1", "localhost") + "/"
        await self.until(lambda: cast(Identity, self.state.load()).urls != first.urls)
        self.assertEqual(self.state.load(), replace(first, urls=(self.url, *first.urls)))
        self.assertEqual(self.state.load(), dial.identity)

    async def test_settings_after_a_new_join(self) -> None:
        """What a gateway tells is nothing to a device that has joined anew meanwhile."""
        first = await self.join()
        anew = replace(first, token="another")
        dial, _ = self.dial(replace(first, certificate=self.older(first)))
        self.state.save(anew)
        self.url = self.url.replace("127.0.0.1", "localhost") + "/"
        await self.until(lambda: dial.is_up)
        self.assertEqual((dial.identity, self.state.load()), (anew, anew))

    async def test_commented_authorities(self) -> None:
        """A bundle may have comments in any encoding."""
        identity = await self.join()
        self.comment = b"# Z\xfcrich\n"
        dial, _ = self.dial(identity)
        await self.until(lambda: dial.is_up)
        self.assertEqual(cast(Identity, self.state.load()).ca_bundle, self.comment + self.authority.bundle)
        await self.reconnect()

    async def test_newer_identity(self) -> None:
        """With each attempt the newer identity is taken that another process has left in the folder."""
        first = await self.join()
        dial, _ = self.dial(replace(first, certificate=self.older(first)))
        await self.until(lambda: self.registry.get(KEY) is not None)
        before = self.registry.get(KEY)
        await self.join(await self.token("again"), self.state)
        await self.until(lambda: self.registry.get(KEY) not in (before, None))
        self.assertEqual(dial.identity, self.state.load())

    async def test_renewed_by_another(self) -> None:
        """A certificate that another process of this folder has renewed is not renewed again."""
        first = await self.join()
        half = now() - timedelta(days=70)
        old = replace(first, certificate=self.older(first, half))
        dial, _ = self.dial(old)
        self.state.save(first)
        await self.until(lambda: self.registry.get(KEY) is not None)
        await self.until(lambda: dial.identity == first)

    async def test_unreadable_folder(self) -> None:
        """A folder that cannot be read any more is told once, and the identity that was read counts on."""
        identity = await self.join()
        failing = Unreadable(self.state.folder)
        with capturedLogs() as events:
            self.dial(identity, failing)
            await self.until(lambda: self.registry.get(KEY) is not None)
            await self.gateway.close("restart")
            self.gateway = self.new_gateway(self.port)
            await self.gateway.listen()
            await self.until(lambda: self.registry.get(KEY) is not None)
        told = [event for event in events if "the disk is gone" in str(event.get("reason"))]
        self.assertEqual(len(told), 1)

    async def held(self) -> tuple[Dial, Holding, Listening]:
        """A device with a session that is not answered yet, and who waits for the answer."""
        holding, listening = Holding(), Listening()
        dial, _ = self.dial(await self.join(), acceptor=holding)
        await self.until(lambda: self.registry.get(KEY) is not None)
        device = self.registry.get(KEY)
        assert device is not None
        device.open(Exec((b"true",)), listening)
        await self.until(lambda: bool(holding.channels))
        return dial, holding, listening

    async def test_resume(self) -> None:
        """A session outlives a broken connection; its answer arrives on the next one."""
        dial, holding, listening = await self.held()
        for wait in range(3):
            before = self.registry.get(KEY)
            assert dial._tether.transport is not None
            dial._tether.transport.abort()
            if wait == 2:
                await self.until(lambda: not dial.is_up)
                holding.answer()
            await self.until(lambda before=before: self.registry.get(KEY) not in (before, None))  # type: ignore[misc]  # each its own
        await listening.over
        self.assertIsNone(listening.reason)
        self.assertEqual(listening.heard, [(Lane.MAIN, b"late"), (Lane.RESULT, encode_result(Exited(7)))])

    async def test_cut_as_it_begins(self) -> None:
        """What was opened on a first link of which the agent heard nothing arrives on the next one."""
        listening, opened = Listening(), list[object]()

        def changed(key: DeviceKey) -> None:
            device = self.registry.get(key)
            if device is not None and not opened:
                opened.append(device.open(Exec((b"true",)), listening))
                cast(Any, device).link.transport.abort()

        self.registry.subscribe(changed)
        _, answering = self.dial(await self.join())
        await listening.over
        self.assertIsNone(listening.reason)
        self.assertEqual(answering.requests, [Exec((b"true",))])

    async def test_stop_ends_sessions(self) -> None:
        """An agent that stops leaves nobody to be waited for: what it served is lost at once."""
        dial, _, listening = await self.held()
        await cast(Deferred[None], dial.stopService())
        await listening.over
        assert listening.reason is not None
        self.assertIn("the agent stops", listening.reason.text)

    async def test_standby(self) -> None:
        """A second agent stands by and says so; when the first drains, it is active and says so."""
        identity = await self.join()
        first, _ = self.dial(identity, started=1)
        await self.until(lambda: self.registry.get(KEY) is not None)
        active = self.registry.get(KEY)
        with capturedLogs() as events:
            second, answering = self.dial(
                identity, instance=b"b" * 16, started=2, companions=frozenset({b"a" * 16})
            )
            await self.until(lambda: any("standing by" in event["log_format"] for event in events))
            self.assertIs(self.registry.get(KEY), active)
            await first.drain()
            await self.until(lambda: any("active: new" in event["log_format"] for event in events))
        device, listening = self.registry.get(KEY), Listening()
        assert device is not None
        device.open(Exec((b"true",)), listening)
        await listening.over
        self.assertEqual(answering.requests, [Exec((b"true",))])
        self.assertTrue(first.is_up and second.is_up)

    async def test_drain_alone(self) -> None:
        """A session that was sent before the controller heard of the drain arrives; none is lost between."""
        dial, answering = self.dial(await self.join())
        await self.until(lambda: self.registry.get(KEY) is not None)
        device, draining = self.registry.get(KEY), dial.drain()
        assert device is not None
        device.open(Exec((b"true",)), Listening())
        await draining
        self.assertEqual(answering.requests, [Exec((b"true",))])

    async def test_drain_over_a_cut(self) -> None:
        """What was opened here and lost on its way comes by the next link, before the drain is heard."""
        dial, answering = self.dial(await self.join())
        await self.until(lambda: self.registry.get(KEY) is not None)
        device, transport = self.registry.get(KEY), dial._tether.transport
        assert device is not None and transport is not None
        device.open(Exec((b"true",)), Listening())
        draining = dial.drain()
        transport.abort()
        await self.until(lambda: not dial.is_up)
        self.assertFalse(draining.called)
        await draining
        self.assertEqual(answering.requests, [Exec((b"true",))])
        self.assertTrue(dial.is_up)

    async def test_drain_before_hello(self) -> None:
        """Also if the link is cut before the agent has heard anything of the controller."""
        drained: list[Deferred[None]] = []
        listening, too_early = Listening(), list[bool]()

        class Noting(Answering):
            def stream_opened(self, request: Request, channel: Channel) -> Receiver:
                too_early.append(drained[0].called)
                return super().stream_opened(request, channel)

        def changed(key: DeviceKey) -> None:
            device = self.registry.get(key)
            if device is not None and not drained:
                device.open(Exec((b"true",)), listening)
                drained.append(dial.drain())
                cast(Any, device).link.transport.abort()

        identity = await self.join()
        self.registry.subscribe(changed)
        dial, _ = self.dial(identity, acceptor=Noting())
        await listening.over
        self.assertIsNone(listening.reason)
        self.assertEqual(too_early, [False])
        await drained[0]

    async def test_drain_is_lost(self) -> None:
        """If its word is lost with the link, the agent says so as it comes back, and is never active."""
        identity = await self.join()
        first, _ = self.dial(identity, started=1)
        self.dial(identity, instance=b"b" * 16, started=2, companions=frozenset({b"a" * 16}))
        await self.until(lambda: len(self.registry.standbys(KEY)) == 1)
        elder, active = self.registry.get(KEY), list[object]()
        transport = first._tether.transport
        assert elder is not None and transport is not None
        listening = Listening()
        elder.open(AskFacts(), listening)
        await listening.over
        transport.abort()
        draining = first.drain()
        await self.until(lambda: self.registry.get(KEY) not in (elder, None))
        newer = self.registry.get(KEY)
        self.registry.subscribe(lambda key: active.append(self.registry.get(key)))
        await draining
        await self.until(lambda: first.is_up)
        self.assertEqual({newer}, set(active))

    async def test_drain_while_away(self) -> None:
        """While sessions wait for the next link, the drain is heard on that."""
        dial, holding, listening = await self.held()
        assert dial._tether.transport is not None
        dial._tether.transport.abort()
        await self.until(lambda: not dial.is_up)
        draining = dial.drain()
        self.assertFalse(draining.called)
        await draining
        self.assertTrue(dial.is_up)
        holding.answer()
        await listening.over
        self.assertIsNone(listening.reason)

    async def test_drain_offline(self) -> None:
        """Without a link, and without sessions that wait for one, there is nobody to wait for."""
        identity = await self.join()
        await self.gateway.close("away")
        dial, _ = self.dial(identity)
        await dial.drain()

    async def test_drain_until_over(self) -> None:
        """When the sessions that waited are lost, so is what may have been on its way."""
        dial, _, _ = await self.held()
        assert dial._tether.transport is not None
        dial._tether.transport.abort()
        await self.until(lambda: not dial.is_up)
        draining = dial.drain()
        self.assertFalse(draining.called)
        dial._tether.close("given up")
        await draining

    async def test_drains_on(self) -> None:
        """An agent that drains says so on the next link, too."""
        identity = await self.join()
        first, _ = self.dial(identity, started=1)
        self.dial(identity, instance=b"b" * 16, started=2, companions=frozenset({b"a" * 16}))
        await self.until(lambda: len(self.registry.standbys(KEY)) == 1)
        await first.drain()
        self.assertEqual(self.registry.standbys(KEY), [])
        newer = self.registry.get(KEY)
        transport = first._tether.transport
        assert transport is not None
        transport.abort()
        await self.until(lambda: first._tether.transport not in (transport, None) and first.is_up)
        await self.until(lambda: self.registry.get(KEY) is newer and not self.registry.standbys(KEY))

    def older(self, identity: Identity, when: datetime | None = None) -> bytes:
        """A certificate for the same key that was made a day earlier, or then."""
        key = cast(Any, load_pem_private_key(identity.key, None)).public_key()
        uid = uid_of(cast(Object, self.lookup(KEY)))
        return self.authority.sign_device(key, DeviceIdentity(KEY, uid), when or now() - timedelta(days=1))

    async def test_server_error(self) -> None:
        """A gateway in trouble is asked again soon, one that refuses is not."""
        identity = await self.join()
        self.lookup = lambda key: 1 / 0  # type: ignore[assignment,method-assign,return-value]  # a bug
        self.assertLess(await self.wait(identity, "(500)"), 1.1)
        self.flushLoggedErrors(ZeroDivisionError)
        del self.lookup
        await self.change({"spec": {"banned": True}})
        self.assertGreater(await self.wait(identity, "(403)"), 59)

    async def test_refused_by_one_url(self) -> None:
        """Who is refused does not hurry because the URLs behind that one lead nowhere."""
        identity = await self.join()
        await self.change({"spec": {"banned": True}})
        several = replace(identity, urls=(self.url, "wss://127.0.0.1:1"))
        self.assertGreater(await self.wait(several, "(403)"), 59)

    async def wait(self, identity: Identity, status: str) -> float:
        """For how long a new agent waits after this answer."""
        with capturedLogs() as events:
            dial, _ = self.dial(identity)
            await self.until(lambda: bool(dial.trouble))
            await cast(Deferred[None], dial.stopService())
        self.assertIn(status, dial.trouble)
        return next(cast(float, event["wait"]) for event in events if "wait" in event)

    async def test_second_process(self) -> None:
        """A second process that does not know of the first finds it alive and active, and is no clone."""
        identity = await self.join()
        self.dial(identity)
        await self.until(lambda: self.registry.get(KEY) is not None)
        first = self.registry.get(KEY)
        self.dial(identity, instance=b"b" * 16, started=1)
        await self.until(lambda: len(self.registry.standbys(KEY)) == 1)
        self.assertIs(self.registry.get(KEY), first)
        self.assertEqual(self.clones, [])

    async def test_clone(self) -> None:
        """Another host with the same key is refused while the first lives, and is reported."""
        identity = await self.join()
        self.dial(identity)
        await self.until(lambda: self.registry.get(KEY) is not None)
        first = self.registry.get(KEY)
        dial, _ = self.dial(identity, boot="boot-2", instance=b"b" * 16)
        await self.until(lambda: bool(self.clones))
        self.assertIs(self.registry.get(KEY), first)
        await self.until(lambda: "another host" in dial.trouble)
