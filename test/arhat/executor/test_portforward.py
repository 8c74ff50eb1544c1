"""Port-forward over real loopback sockets, and its rules without any."""

from __future__ import annotations

import os

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IHalfCloseableProtocol, IListeningPort
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.testing import MemoryReactorClock
from twisted.logger import capturedLogs
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase, TestCase
from zope.interface import implementer

from arhat.config import LOOPBACK, forward_rules
from arhat.executor.portforward import CONNECT_SECONDS, PortForward, allows_address, allows_name
from test.arhat.running import EndingChannel, pause
from tether.errors import Reason, ResetCode
from tether.link.interfaces import Lane, Receiver
from tether.verbs.requests import Forward, ForwardRule

LOST = Reason(ResetCode.LOST, "the link is gone")


@implementer(IHalfCloseableProtocol)
class Target(Protocol):
    """A server that a test plays by hand."""

    def __init__(self) -> None:
        self.heard = bytearray()
        self.peer_finished: Deferred[bytes] = Deferred()
        self.lost: Deferred[None] = Deferred()

    def dataReceived(self, data: bytes) -> None:
        self.heard += data

    def readConnectionLost(self) -> None:
        self.peer_finished.callback(bytes(self.heard))

    def writeConnectionLost(self) -> None:
        pass

    def connectionLost(self, reason: Failure | None = None) -> None:
        self.lost.callback(None)


class ConnectionTests(TestCase):
    """Bytes and ends, both ways."""

    timeout = 15

    def listen(self, host: str = "127.0.0.1") -> tuple[int, Deferred[Target]]:
        accepted: Deferred[Target] = Deferred()

        class Targets(Factory):
            noisy = False

            def buildProtocol(self, address: object) -> Target:
                target = Target()
                accepted.callback(target)
                return target

        port: IListeningPort = reactor.listenTCP(0, Targets(), interface=host)  # type: ignore[attr-defined]
        self.addCleanup(port.stopListening)
        return port.getHost().port, accepted

    def forward(self, port: int, host: str = "") -> tuple[EndingChannel, Receiver]:
        channel = EndingChannel()
        return channel, PortForward(reactor, LOOPBACK)(Forward(port, host), channel)  # type: ignore[arg-type]

    async def connected(self, host: str = "127.0.0.1") -> tuple[EndingChannel, Receiver, Target]:
        port, accepted = self.listen(host)
        channel, receiver = self.forward(port)
        self.assertTrue(channel.paused)
        target = await accepted
        while channel.paused:
            await pause(reactor, 0.001)
        return channel, receiver, target

    async def finish(self, receiver: Receiver, target: Target) -> None:
        receiver.finished()
        target.transport.loseConnection()
        await target.lost
        await pause(reactor, 0.01)
        receiver.closed()

    async def test_bytes_both_ways(self) -> None:
        """Bytes go both ways, and ends too, one direction at a time."""
        channel, receiver, target = await self.connected()
        receiver.data_received(Lane.MAIN, b"question")
        receiver.finished()
        self.assertEqual(await target.peer_finished, b"question")
        self.assertFalse(channel.is_finished)
        target.transport.write(b"answer")
        target.transport.loseConnection()
        await channel.ended
        self.assertEqual(channel.lane(Lane.MAIN), b"answer")
        self.assertIsNone(channel.reset_with)
        receiver.closed()
        await target.lost

    async def test_target_ends_first(self) -> None:
        """A target that half-closes still hears the rest."""
        channel, receiver, target = await self.connected()
        target.transport.write(b"bye")
        target.transport.loseWriteConnection()
        await channel.ended
        receiver.data_received(Lane.MAIN, b"x" * 3_000_000)
        receiver.finished()
        # The channel is over on both sides while most of it is still on its way.
        receiver.closed()
        self.assertEqual(len(await target.peer_finished), 3_000_000)
        target.transport.loseConnection()
        await target.lost
        await pause(reactor, 0.01)

    async def test_ipv6_loopback(self) -> None:
        """A target that listens on ::1 alone is found too."""
        channel, receiver, target = await self.connected("::1")
        target.transport.write(b"six")
        await channel.until(b"six")
        await self.finish(receiver, target)

    async def test_quiet(self) -> None:
        """A connection is not worth a line in the log."""
        with capturedLogs() as events:
            _, receiver, target = await self.connected()
            await self.finish(receiver, target)
        self.assertEqual([event["factory"] for event in events if "factory" in event], [])

    async def test_early_bytes(self) -> None:
        """Bytes and an end that come before the target answered are not lost."""
        port, accepted = self.listen()
        _, receiver = self.forward(port)
        receiver.data_received(Lane.MAIN, b"early")
        receiver.finished()
        target = await accepted
        self.assertEqual(await target.peer_finished, b"early")
        target.transport.loseConnection()
        await target.lost
        receiver.closed()

    async def test_refused(self) -> None:
        """A port where nobody listens resets the channel with a kubelet's words."""
        port, _ = self.listen()
        await self.cleanup_now()
        channel, _ = self.forward(port)
        await channel.ended
        self.assertEqual(
            channel.reset_with,
            Reason(
                ResetCode.UNREACHABLE,
                f"failed to connect to localhost:{port}: "
                f"IPv4: dial tcp4 127.0.0.1:{port}: connect: connection refused "
                f"IPv6: dial tcp6 [::1]:{port}: connect: connection refused",
            ),
        )

    async def cleanup_now(self) -> None:
        for function, args, kwargs in reversed(self._cleanups):
            await function(*args, **kwargs)
        self._cleanups.clear()

    async def test_not_allowed(self) -> None:
        """A target outside the rules is refused without a connection."""
        channel, _ = self.forward(80, "192.0.2.1")
        await channel.ended
        assert channel.reset_with is not None
        self.assertEqual(channel.reset_with.code, ResetCode.REFUSED)
        self.assertIn("192.0.2.1:80", channel.reset_with.text)

    async def test_broken_connection_is_an_end(self) -> None:
        """A target that breaks off after it answered is an ordinary end."""
        channel, receiver, target = await self.connected()
        target.transport.write(b"some")
        await channel.until(b"some")
        target.transport.abortConnection()
        await channel.ended
        self.assertIsNone(channel.reset_with)
        self.assertFalse(channel.paused)
        receiver.data_received(Lane.MAIN, b"into nothing")
        receiver.finished()
        receiver.closed()

    async def test_client_gone(self) -> None:
        """When the client goes, so does the connection."""
        channel, receiver, target = await self.connected()
        receiver.reset(LOST)
        await target.lost
        self.assertIsNone(channel.producer)

    async def test_client_gone_while_connecting(self) -> None:
        """A client that leaves before the target answered leaves nothing behind."""
        port, _ = self.listen()
        channel, receiver = self.forward(port)
        receiver.reset(LOST)
        receiver.closed()
        await pause(reactor, 0.05)
        self.assertIsNone(channel.reset_with)
        self.assertFalse(channel.is_finished)
        self.assertEqual(self.flushLoggedErrors(), [])

    async def test_pressure(self) -> None:
        """Who reads nothing stops who writes, in both directions, and no byte is lost."""
        channel, receiver, target = await self.connected()
        content = os.urandom(1 << 20)
        target.transport.pauseProducing()
        sent = 0
        while not channel.paused:
            receiver.data_received(Lane.MAIN, content)
            sent += 1
            await pause(reactor, 0.001)
        receiver.finished()
        target.transport.resumeProducing()
        self.assertTrue(await target.peer_finished == content * sent)
        channel.block()
        for _ in range(10):
            target.transport.write(content)
        await pause(reactor, 0.05)
        held = len(channel.sent)
        await pause(reactor, 0.05)
        self.assertEqual(len(channel.sent), held)
        channel.unblock()
        target.transport.loseConnection()
        await channel.ended
        self.assertTrue(channel.lane(Lane.MAIN) == content * 10)
        await self.finish_quietly(receiver, target)

    async def finish_quietly(self, receiver: Receiver, target: Target) -> None:
        receiver.closed()
        await target.lost


class DeadlineTests(SynchronousTestCase):
    """Targets that never answer."""

    def test_connect_deadline(self) -> None:
        """Nobody waits longer than the deadline for a connection."""
        host = MemoryReactorClock()
        channel = EndingChannel()
        rules = forward_rules("10.0.0.0/8:*")
        PortForward(host, rules)(Forward(502, "10.1.2.3"), channel)  # type: ignore[arg-type]
        ((address, port, factory, timeout, _),) = host.tcpClients
        self.assertEqual((address, port), ("10.1.2.3", 502))
        self.assertLessEqual(timeout, CONNECT_SECONDS)
        from twisted.internet.error import TimeoutError as ConnectTimeout

        factory.clientConnectionFailed(host.connectors[0], Failure(ConnectTimeout()))
        assert channel.reset_with is not None
        self.assertEqual(channel.reset_with.code, ResetCode.UNREACHABLE)
        self.assertIn("dial tcp4 10.1.2.3:502: i/o timeout", channel.reset_with.text)


class RuleTests(SynchronousTestCase):
    """Who may be reached."""

    def test_loopback(self) -> None:
        """The default rules are the loopback, any port, and nothing else."""
        for address in ("127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1"):
            self.assertTrue(allows_address(LOOPBACK, address, 65535), address)
        for address in ("10.0.0.1", "0.0.0.0", "::", "fe80::1", "::ffff:10.0.0.1"):
            self.assertFalse(allows_address(LOOPBACK, address, 80), address)

    def test_mapped_address(self) -> None:
        """An IPv4 address in IPv6 dress is held against the IPv4 rules."""
        rules = forward_rules("10.0.0.0/8:80")
        self.assertTrue(allows_address(rules, "::ffff:10.1.1.1", 80))

    def test_ports(self) -> None:
        """A rule holds for its ports alone."""
        rules = forward_rules("10.0.0.1:100-200")
        self.assertEqual(
            [allows_address(rules, "10.0.0.1", port) for port in (99, 100, 200, 201)], [0, 1, 1, 0]
        )

    def test_names(self) -> None:
        """A rule that is a name allows that name, however it is written."""
        rules = (ForwardRule("plc.lan", 502, 502),)
        self.assertTrue(allows_name(rules, "PLC.lan.", 502))
        self.assertFalse(allows_name(rules, "plc.lan", 503))
        self.assertFalse(allows_name(rules, "other.lan", 502))
        self.assertFalse(allows_name(LOOPBACK, "127.0.0.0/8", 80))

    def test_resolved_address_is_dialled(self) -> None:
        """A name is resolved once, judged by its addresses, and an address is dialled."""
        for rule, expected in (("plc.lan:502", True), ("10.0.0.0/8:502", True), ("10.1.1.2:502", False)):
            host = MemoryReactorClock()
            host.installNameResolver(_Answering("10.1.1.1"))
            channel = EndingChannel()
            PortForward(host, forward_rules(rule))(Forward(502, "plc.lan"), channel)  # type: ignore[arg-type]
            self.assertEqual([client[0] for client in host.tcpClients], ["10.1.1.1"] if expected else [])
            self.assertEqual(channel.reset_with is None, expected)

    def test_unknown_name(self) -> None:
        """A name without an address is said to be unknown."""
        host = MemoryReactorClock()
        host.installNameResolver(_Answering())
        channel = EndingChannel()
        PortForward(host, forward_rules("plc.lan:502"))(Forward(502, "plc.lan"), channel)  # type: ignore[arg-type]
        self.assertEqual(
            channel.reset_with, Reason(ResetCode.UNREACHABLE, "dial tcp: lookup plc.lan: no such host")
        )


class _Answering:
    """A resolver that always gives the same addresses."""

    def __init__(self, *addresses: str) -> None:
        self._addresses = addresses

    def resolveHostName(self, receiver, name, port=0, *rest, **more):  # type: ignore[no-untyped-def]
        from twisted.internet.address import IPv4Address

        receiver.resolutionBegan(None)
        for address in self._addresses:
            receiver.addressResolved(IPv4Address("TCP", address, port))
        receiver.resolutionComplete()
