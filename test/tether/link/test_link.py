"""Tests for ``tether.link.link`` and ``tether.link.channel``, over ``tether.link.memory``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from twisted.internet.interfaces import IPushProducer
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer
from zope.interface.verify import verifyObject

from test.support.channels import RecordingReceiver
from tether.errors import LinkLost, LocalMisuse, Reason, RemoteViolation, ResetCode
from tether.link.interfaces import HIGH_WATER, LOW_WATER, Channel, Lane, Link, Receiver
from tether.link.link import RESUME, PeerIntroduction, Tether
from tether.link.memory import MemoryPair, MemoryTransport, Watch, joined
from tether.verbs.codec import encode_request
from tether.verbs.requests import AskFacts, DeviceFacts, Exec, Forward, Request, Settings
from tether.wire import frames
from tether.wire.frames import KEPT_LIMIT, Data, Goodbye, Hello
from tether.wire.mux import WINDOW, Role


@dataclass
class Acceptance:
    """An acceptor that keeps what was opened, and hands out recording receivers."""

    opened: list[tuple[Request, Channel, RecordingReceiver]] = field(default_factory=list)
    make: Callable[[Channel], Receiver] | None = None

    def stream_opened(self, request: Request, channel: Channel) -> Receiver:
        receiver = RecordingReceiver()
        self.opened.append((request, channel, receiver))
        return receiver if self.make is None else self.make(channel)

    @property
    def channel(self) -> Channel:
        return self.opened[-1][1]

    @property
    def receiver(self) -> RecordingReceiver:
        return self.opened[-1][2]


@implementer(IPushProducer)
class Faucet:
    """A producer that writes whenever it is not paused, ``steps`` times at most."""

    def __init__(self, channel: Channel, piece: bytes, steps: int) -> None:
        self.channel = channel
        self.piece = piece
        self.steps = steps
        self.paused = False

    def run(self) -> None:
        while not self.paused and self.steps:
            self.steps -= 1
            self.channel.write(self.piece)

    def pauseProducing(self) -> None:
        self.paused = True

    def resumeProducing(self) -> None:
        self.paused = False
        self.run()

    def stopProducing(self) -> None:
        self.steps = 0


class PairCase(SynchronousTestCase):
    """A pair of links on a clock."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.agent_side = Acceptance()
        self.controller_side = Acceptance()
        self.pair = self.join()

    def join(self, **options: object) -> MemoryPair:
        self.controller_watch = Watch()
        self.agent_watch = Watch()
        return joined(
            self.clock,
            self.controller_side,
            self.agent_side,
            controller_watcher=self.controller_watch,
            agent_watcher=self.agent_watch,
            **options,  # type: ignore[arg-type]  # a test's shorthand
        )

    def opened(self, request: Request | None = None) -> tuple[Channel, RecordingReceiver]:
        """A stream that the controller opened and the agent accepted."""
        receiver = RecordingReceiver()
        channel = self.pair.controller.open(request or Exec((b"true",)), receiver)
        self.pair.flush()
        return channel, receiver


class IntroductionTests(PairCase):
    """Hello, both ways."""

    def test_peers(self) -> None:
        """Each end knows what the other said of itself."""
        facts = DeviceFacts(os="linux", cpus=2, labels={"a": "b"}, allow=frozenset({"exec"}))
        settings = Settings("edge", "dev-1", 20, ("wss://here",), b"pem")
        pair = joined(
            self.clock,
            self.controller_side,
            self.agent_side,
            controller=PeerIntroduction("aranya/1", instance=b"C" * 16, settings=settings),
            agent=PeerIntroduction("arhat/1", frozenset({"x"}), b"A" * 16, "boot-1", facts),
        )
        self.assertEqual(pair.agent.peer.settings, settings)
        self.assertEqual(pair.agent.peer.software, "aranya/1")
        self.assertEqual(pair.controller.peer.facts, facts)
        self.assertEqual(pair.controller.peer.capabilities, {"x"})
        self.assertEqual(pair.controller.peer.host_boot_id, "boot-1")

    def test_interface(self) -> None:
        """A tether is a link, and what it opens are channels."""
        self.assertTrue(verifyObject(Link, self.pair.controller))
        channel, _ = self.opened()
        self.assertTrue(verifyObject(Channel, channel))

    def test_watchers_hear(self) -> None:
        """Each end's watcher hears that the link is up, and why it went down."""
        self.assertEqual((self.controller_watch.ups, self.agent_watch.ups), ([False], [False]))
        self.pair.cut("snapped")
        self.assertEqual(self.controller_watch.downs, [("snapped", True)])
        self.assertEqual(self.agent_watch.downs, [("snapped", True)])

    def test_silence_before_hello(self) -> None:
        """A peer that says no Hello in time is dropped."""
        watch = Watch()
        tether = Tether(
            Role.AGENT, self.clock, PeerIntroduction("x", instance=b"i" * 16), Acceptance(), watch
        )
        transport = MemoryTransport(self.clock)
        tether.receiver().connected(transport)
        self.clock.advance(9.9)
        self.assertIsNone(transport.closed_with)
        self.clock.advance(0.2)
        self.assertIsNotNone(transport.closed_with)
        self.assertEqual(watch.downs, [("the other side did not say Hello within 10 s", True)])
        self.assertEqual(watch.ups, [])

    def test_open_without_link(self) -> None:
        """Opening a stream without a link fails at once."""
        self.pair.cut()
        with self.assertRaises(LinkLost):
            self.pair.controller.open(AskFacts(), RecordingReceiver())


class ConversationTests(PairCase):
    """One stream, from open to closed."""

    def test_request_arrives(self) -> None:
        """The acceptor is given what was asked."""
        request = Exec((b"sh", b"-c", b"echo \xff"), stdin=True, tty=True)
        self.opened(request)
        self.assertEqual(self.agent_side.opened[0][0], request)

    def test_whole_exec(self) -> None:
        """Bytes go both ways on their lanes, both ends finish, both are closed last."""
        channel, receiver = self.opened()
        channel.write(b"in")
        channel.write(b"\x08\x50", Lane.RESIZE)
        channel.finish()
        self.pair.flush()
        self.assertEqual(self.agent_side.receiver.heard, [(Lane.MAIN, b"in"), (Lane.RESIZE, b"\x08\x50")])
        self.assertEqual(self.agent_side.receiver.ended, ["finished"])
        self.agent_side.channel.write(b"out")
        self.agent_side.channel.write(b"err", Lane.ERROR)
        self.agent_side.channel.write(b"r", Lane.RESULT)
        self.agent_side.channel.finish()
        self.pair.flush()
        self.assertEqual(receiver.heard, [(Lane.MAIN, b"out"), (Lane.ERROR, b"err"), (Lane.RESULT, b"r")])
        self.assertEqual(receiver.ended, ["finished", "closed"])
        self.assertEqual(self.agent_side.receiver.ended, ["finished", "closed"])
        self.assertEqual((len(self.pair.controller.mux), len(self.pair.agent.mux)), (0, 0))

    def test_write_after_finish(self) -> None:
        """What is written after finish is ignored."""
        channel, _ = self.opened()
        channel.finish()
        channel.write(b"late")
        channel.finish()
        self.pair.flush()
        self.assertEqual(self.agent_side.receiver.heard, [])

    def test_oversized_record(self) -> None:
        """A record that is too long is the writer's bug."""
        channel, _ = self.opened()
        with self.assertRaises(LocalMisuse):
            channel.write(b"x" * (32 * 1024 + 1), Lane.RESIZE)

    def test_reset(self) -> None:
        """Whoever resets hears closed only; the other hears the reason, then closed."""
        channel, receiver = self.opened()
        channel.reset(Reason(ResetCode.CANCELLED, "enough"))
        self.assertEqual(receiver.ended, ["closed"])
        self.pair.flush()
        self.assertEqual(self.agent_side.receiver.ended, ["reset", "closed"])
        self.assertEqual(self.agent_side.receiver.reason, Reason(ResetCode.CANCELLED, "enough"))
        self.assertEqual((len(self.pair.controller.mux), len(self.pair.agent.mux)), (0, 0))

    def test_data_before_reset(self) -> None:
        """What arrived together with a reset, but before it, is handed on before it."""
        _, receiver = self.opened()
        self.agent_side.channel.write(b"last words")
        self.agent_side.channel.reset(Reason(ResetCode.INTERNAL, "died"))
        self.pair.flush()
        self.assertEqual(receiver.ended, ["reset", "closed"])
        self.assertEqual(receiver.lane(Lane.MAIN), b"last words")

    def test_refused_by_acceptor(self) -> None:
        """An acceptor that resets the channel refuses with its reason."""

        def refuse(channel: Channel) -> Receiver:
            channel.reset(Reason(ResetCode.REFUSED, "not here"))
            return RecordingReceiver()

        self.agent_side.make = refuse
        _, receiver = self.opened()
        self.assertEqual(receiver.reason, Reason(ResetCode.REFUSED, "not here"))
        self.assertEqual(receiver.ended, ["reset", "closed"])

    def test_failing_acceptor(self) -> None:
        """A failing acceptor ends its stream, is logged, and the link goes on."""

        def fail(channel: Channel) -> Receiver:
            raise RuntimeError("oops")

        self.agent_side.make = fail
        _, receiver = self.opened()
        self.assertEqual(receiver.reason.code, ResetCode.INTERNAL)
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)
        self.assertTrue(self.pair.controller.is_up)

    def test_failing_receiver(self) -> None:
        """A failing receiver ends its own stream only."""

        class Failing(RecordingReceiver):
            def data_received(self, lane: Lane, data: bytes) -> None:
                raise RuntimeError("oops")

        failing = Failing()
        self.agent_side.make = lambda channel: failing
        channel, receiver = self.opened()
        channel.write(b"x")
        self.pair.flush()
        self.assertEqual(receiver.reason.code, ResetCode.INTERNAL)
        self.assertEqual(failing.ended, ["closed"])
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)

    def test_unknown_verb(self) -> None:
        """A verb of a newer peer is refused as unsupported."""
        events = self.pair.agent.mux.open(b"\xfa\x07\x00")
        self.pair.agent.settle()
        self.pair.flush()
        self.assertFalse(self.pair.agent.mux.holds(events))
        self.assertEqual(self.controller_side.opened, [])

    def test_bad_request(self) -> None:
        """Bad parameters reset the stream and leave the link."""
        _, receiver = self.opened(Forward(port=0))
        self.assertEqual(receiver.reason.code, ResetCode.INVALID)
        self.assertTrue(self.pair.agent.is_up)


class ReentrancyTests(PairCase):
    """Receivers may do anything from within their calls."""

    def test_reset_in_data(self) -> None:
        """A receiver that resets in ``data_received`` hears nothing but ``closed`` afterwards."""

        class Resetting(RecordingReceiver):
            def data_received(self, lane: Lane, data: bytes) -> None:
                super().data_received(lane, data)
                channel.reset(Reason(ResetCode.CANCELLED, "enough"))
                self.ended.append("returned")

        receiver = Resetting()
        channel = self.pair.controller.open(AskFacts(), receiver)
        self.pair.flush()
        for _ in range(3):
            self.agent_side.channel.write(b"x")
        self.agent_side.channel.finish()
        self.pair.flush()
        self.assertEqual(len(receiver.heard), 1)
        self.assertEqual(receiver.ended, ["returned", "closed"])

    def test_finish_in_finished(self) -> None:
        """A receiver that finishes when the peer did closes both ends."""

        class Answering(RecordingReceiver):
            def finished(self) -> None:
                super().finished()
                channels[0].finish()

        channels: list[Channel] = []
        answering = Answering()

        def accept(channel: Channel) -> Receiver:
            channels.append(channel)
            return answering

        self.agent_side.make = accept
        channel, receiver = self.opened()
        channel.finish()
        self.pair.flush()
        self.assertEqual(answering.ended, ["finished", "closed"])
        self.assertEqual(receiver.ended, ["finished", "closed"])

    def test_open_in_closed(self) -> None:
        """A receiver that opens another stream when its own is closed may do so."""

        class Following(RecordingReceiver):
            def closed(self) -> None:
                super().closed()
                followers.append(link.open(AskFacts(), RecordingReceiver()))

        followers: list[Channel] = []
        link = self.pair.controller
        link.open(AskFacts(), Following()).reset(Reason(ResetCode.CANCELLED, "enough"))
        self.pair.flush()
        self.assertEqual(len(followers), 1)
        self.assertEqual(self.agent_side.receiver.ended, [])

    def test_write_and_finish_while_accepting(self) -> None:
        """An acceptor may answer at once."""

        def answer(channel: Channel) -> Receiver:
            channel.write(b"r", Lane.RESULT)
            channel.finish()
            return RecordingReceiver()

        self.agent_side.make = answer
        channel, receiver = self.opened()
        channel.finish()
        self.pair.flush()
        self.assertEqual(receiver.heard, [(Lane.RESULT, b"r")])
        self.assertEqual(receiver.ended, ["finished", "closed"])


class PressureTests(PairCase):
    """Who is paused, when, and who is not."""

    def test_paused_reader_stalls_its_stream_only(self) -> None:
        """A paused reader gets nothing, its peer stops at the window, others go on."""
        slow, slow_receiver = self.opened()
        slow_agent = self.agent_side.channel
        slow.pauseProducing()
        faucet = Faucet(slow_agent, b"x" * 65536, 1000)
        slow_agent.registerProducer(faucet, True)
        faucet.run()
        self.pair.flush()
        self.assertTrue(faucet.paused)
        self.assertEqual(slow_receiver.heard, [])
        written = (1000 - faucet.steps) * 65536
        self.assertLessEqual(written, WINDOW + HIGH_WATER + 65536)
        _, quick_receiver = self.opened()
        quick_agent = self.agent_side.channel
        quick_agent.write(b"y" * 3_000_000)
        self.pair.flush()
        self.assertEqual(len(quick_receiver.lane(Lane.MAIN)), 3_000_000)
        slow.resumeProducing()
        self.pair.flush()
        self.assertEqual(len(slow_receiver.lane(Lane.MAIN)), 65_536_000)
        self.assertEqual(faucet.steps, 0)

    def test_pause_in_data(self) -> None:
        """A receiver that pauses itself gets exactly one more piece each time it resumes."""

        class Sipping(RecordingReceiver):
            def data_received(self, lane: Lane, data: bytes) -> None:
                super().data_received(lane, data)
                channel.pauseProducing()

        receiver = Sipping()
        channel = self.pair.controller.open(AskFacts(), receiver)
        self.pair.flush()
        self.agent_side.channel.write(b"a" * 150_000)
        self.agent_side.channel.finish()
        self.pair.flush()
        self.assertEqual(len(receiver.heard), 1)
        self.assertEqual(receiver.ended, [])
        for _ in range(9):
            channel.resumeProducing()
            self.pair.flush()
        self.assertEqual(receiver.lane(Lane.MAIN), b"a" * 150_000)
        self.assertEqual(receiver.ended, ["finished"])

    def test_many_pieces_while_paused(self) -> None:
        """Pieces that cannot be joined are not kept without end: no honest peer sends as many unanswered."""
        channel, _ = self.opened()
        channel.pauseProducing()
        for number in range(KEPT_LIMIT):
            channel.data_arrived(number % 2, b"x")
        with self.assertRaises(RemoteViolation):
            channel.data_arrived(0, b"x")

    def test_small_pieces_are_joined_while_paused(self) -> None:
        """Tiny pieces that wait for a paused reader are joined, records are not."""
        channel, receiver = self.opened()
        channel.pauseProducing()
        for _ in range(100):
            self.agent_side.channel.write(b"z")
            self.pair.flush()
        self.agent_side.channel.write(b"1", Lane.RESULT)
        self.agent_side.channel.write(b"2", Lane.RESULT)
        self.pair.flush()
        channel.resumeProducing()
        self.assertEqual(receiver.heard, [(Lane.MAIN, b"z" * 100), (Lane.RESULT, b"1"), (Lane.RESULT, b"2")])

    def test_producer_resumes_below_low_water(self) -> None:
        """A producer is paused at the high water mark and resumed below the low one."""
        self.opened()
        channel = self.agent_side.channel
        faucet = Faucet(channel, b"x" * 1024, 100_000)
        channel.registerProducer(faucet, True)
        self.pair.controller.mux.window = 0
        faucet.run()
        self.assertTrue(faucet.paused)
        queued = self.pair.agent.mux.queued(channel.stream)
        self.assertGreaterEqual(queued, HIGH_WATER)
        while faucet.paused:
            self.assertGreaterEqual(self.pair.agent.mux.queued(channel.stream), LOW_WATER)
            self.assertTrue(self.pair.step())

    def test_pull_producer(self) -> None:
        """Only push producers may be registered, and one at a time."""
        channel, _ = self.opened()
        with self.assertRaises(LocalMisuse):
            channel.registerProducer(Faucet(channel, b"", 0), False)
        channel.registerProducer(Faucet(channel, b"", 0), True)
        with self.assertRaises(LocalMisuse):
            channel.registerProducer(Faucet(channel, b"", 0), True)

    def test_keystroke_beside_bulk(self) -> None:
        """A keystroke waits for what the transport holds already, and for no more."""
        _, bulk_receiver = self.opened()
        bulk = self.agent_side.channel
        _, shell_receiver = self.opened()
        shell = self.agent_side.channel
        bulk.write(b"b" * 10_000_000)
        for _ in range(20):
            self.pair.step()
            shell.write(b"k")
            before = len(shell_receiver.heard)
            waited = 0
            while len(shell_receiver.heard) == before:
                self.assertTrue(self.pair.step())
                waited += 1
            self.assertLessEqual(waited, 3)
        self.pair.flush()
        self.assertEqual(len(bulk_receiver.lane(Lane.MAIN)), 10_000_000)

    def test_slow_transport_gets_small_messages(self) -> None:
        """When the transport drains slowly, messages get smaller."""
        self.opened()
        self.agent_side.channel.write(b"b" * 1_000_000)
        sizes = []
        while True:
            sizes += [len(message) for message in self.pair.wire.agent.sent]
            self.clock.advance(1)
            if not self.pair.step():
                break
        self.assertGreater(max(sizes), 60_000)
        self.assertLess(sizes[-2], 17_000)


class EndTests(PairCase):
    """Links that end, and what becomes of their streams."""

    def test_cut(self) -> None:
        """When the link is lost all streams end as lost, and then are closed."""
        channel, receiver = self.opened()
        self.pair.cut("snapped")
        for each in (receiver, self.agent_side.receiver):
            self.assertEqual(each.ended, ["reset", "closed"])
            self.assertEqual(each.reason, Reason(ResetCode.LOST, "snapped"))
        channel.write(b"ignored")
        channel.finish()
        channel.reset(Reason(ResetCode.CANCELLED, "ignored"))
        self.assertEqual(receiver.ended, ["reset", "closed"])

    def test_link_after_cut(self) -> None:
        """After a cut a new link starts afresh."""
        self.opened()
        self.pair.cut()
        self.pair.rejoin()
        self.assertEqual(self.controller_watch.ups, [False, False])
        _, receiver = self.opened()
        self.agent_side.channel.write(b"hello again")
        self.pair.flush()
        self.assertEqual(receiver.lane(Lane.MAIN), b"hello again")

    def test_newer_connection(self) -> None:
        """Without a grace a newer connection ends the streams of the older, but the link is not over."""
        _, receiver = self.opened()
        older = self.pair.wire
        self.pair.rejoin()
        self.assertEqual(receiver.ended, ["reset", "closed"])
        self.assertEqual(receiver.reason, Reason(ResetCode.LOST, "a newer link took its place"))
        older.cut()
        watch = self.controller_watch
        self.assertEqual((watch.ups, len(watch.downs), watch.overs), ([False, False], 1, 0))
        self.opened()
        self.pair.cut()
        self.assertEqual((len(watch.downs), watch.overs), (2, 1))

    def test_newer_connection_without_hello(self) -> None:
        """A newer connection on which nothing is said before it ends, ends the link."""
        self.pair.wire = self.pair._wire()
        self.pair.wire.connect()
        self.assertEqual(self.controller_watch.overs, 0)
        self.pair.cut()
        self.assertEqual(self.controller_watch.overs, 1)

    def test_stream_of_the_same_id(self) -> None:
        """A peer that starts afresh may open a stream of an id that is ending in the same message."""
        tether = Tether(
            Role.AGENT,
            self.clock,
            PeerIntroduction("arhat", frozenset({RESUME}), b"a" * 16),
            self.agent_side,
            Watch(),
        )
        settings = Settings("", "", keepalive_seconds=0, grace_seconds=60)
        controller = PeerIntroduction("aranya", frozenset({RESUME}), b"c" * 16, settings=settings)
        receivers = []
        for epoch in (1, 2):
            ear = tether.receiver()
            ear.connected(MemoryTransport(self.clock))
            hello = replace(controller.hello(), epoch=epoch, number=epoch)
            ear.message_received(
                frames.encode([hello, frames.Open(2, WINDOW, encode_request(Exec((b"cat",))))])
            )
            receivers.append(self.agent_side.receiver)
        ear.message_received(frames.encode([Data(2, 0, 0, b"in")]))
        self.assertEqual([receiver.ended for receiver in receivers], [["reset", "closed"], []])
        self.assertEqual([receiver.heard for receiver in receivers], [[], [(Lane.MAIN, b"in")]])

    def test_goodbye(self) -> None:
        """A link that is closed tells the peer why, and whether to come back."""
        _, receiver = self.opened()
        self.pair.controller.close("banned", retry=False)
        self.assertEqual(receiver.ended, ["reset", "closed"])
        self.assertEqual(self.controller_watch.downs, [("banned", False)])
        self.pair.flush()
        self.assertEqual(self.agent_watch.downs, [("banned", False)])
        self.assertEqual(self.agent_side.receiver.reason, Reason(ResetCode.LOST, "banned"))

    def test_silence(self) -> None:
        """A link on which nothing is heard, not even the answer to a ping, is dropped."""
        _, receiver = self.opened()
        self.clock.advance(15)
        self.assertEqual(receiver.ended, [])
        self.clock.advance(15)
        self.assertEqual(receiver.ended, ["reset", "closed"])
        self.assertEqual(self.controller_watch.downs, [("nothing was heard for 30 s", True)])

    def test_ping_keeps_alive(self) -> None:
        """An idle link whose peer answers stays up."""
        for _ in range(20):
            self.clock.advance(7)
            self.pair.flush()
        self.assertEqual(self.controller_watch.downs, [])

    def test_keepalive_of_settings(self) -> None:
        """Both ends keep in touch as often as the controller says."""
        settings = Settings("edge", "dev", keepalive_seconds=5)
        pair = self.join(controller=PeerIntroduction("aranya", instance=b"c" * 16, settings=settings))
        self.clock.advance(5)
        self.assertEqual(len(pair.wire.agent.sent), 1)
        self.assertEqual(len(pair.wire.controller.sent), 1)

    def test_violation(self) -> None:
        """A peer that breaks the protocol is told so and dropped."""
        self.opened()
        self.pair.wire.agent.send(frames.encode([Data(2, 99, 0, b"gap")]))
        self.pair.flush()
        reason = "stream 2: data at 99, expected 0"
        self.assertEqual(self.controller_watch.downs, [(reason, True)])
        self.assertEqual(self.agent_watch.downs, [(reason, True)])

    def test_bad_hello(self) -> None:
        """A Hello of another protocol is answered with a goodbye that says so."""
        watch = Watch()
        introduction = PeerIntroduction("x", instance=b"i" * 16)
        tether = Tether(Role.AGENT, self.clock, introduction, Acceptance(), watch)
        transport = MemoryTransport(self.clock)
        ear = tether.receiver()
        ear.connected(transport)
        ear.message_received(frames.encode([Hello(instance=b"j" * 16, protocol=2)]))
        sent = [frame for message in transport.sent for frame in frames.decode(message)]
        self.assertIsInstance(sent[0], Hello)
        self.assertEqual(sent[1], Goodbye("the peer speaks protocol 2, this side 1", True))
        self.assertEqual(watch.ups, [])
        self.assertEqual(watch.downs, [("the peer speaks protocol 2, this side 1", True)])


class GraceTests(PairCase):
    """Streams outlive a connection."""

    def setUp(self) -> None:
        super().setUp()
        self.pair.cut()
        self.pair = self.join(grace=60)

    def test_resume(self) -> None:
        """Within the grace a stream goes on, byte-exact, whatever was on its way."""
        channel, receiver = self.opened()
        agent = self.agent_side.channel
        agent.write(b"one ")
        self.pair.flush()
        agent.write(b"two ")
        channel.write(b"in")
        self.pair.cut()
        agent.write(b"three")
        self.clock.advance(59)
        self.pair.rejoin()
        agent.finish()
        channel.finish()
        self.pair.flush()
        self.assertEqual(receiver.lane(Lane.MAIN), b"one two three")
        self.assertEqual(self.agent_side.receiver.lane(Lane.MAIN), b"in")
        self.assertEqual(receiver.ended, ["finished", "closed"])
        self.assertEqual(self.agent_side.receiver.ended, ["finished", "closed"])
        self.assertEqual(self.controller_watch.ups, [False, True])

    def test_grace_over(self) -> None:
        """After the grace the streams end as lost."""
        _, receiver = self.opened()
        self.pair.cut("snapped")
        self.clock.advance(59.9)
        self.assertEqual(receiver.ended, [])
        self.clock.advance(0.2)
        self.assertEqual(receiver.ended, ["reset", "closed"])
        self.assertEqual(receiver.reason, Reason(ResetCode.LOST, "snapped"))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_grace_over_before_hello(self) -> None:
        """A grace that ends on a new connection, before the peer's Hello, ends the streams on both sides."""
        _, receiver = self.opened()
        before = self.pair.wire
        before.agent.is_over = True
        before.agent_receiver.connection_lost("snapped")
        self.clock.advance(10)
        before.cut("snapped")
        self.clock.advance(49)
        self.pair.wire = self.pair._wire()
        self.pair.wire.connect()
        # The agent has said that it holds the stream; its grace ends before it hears whether it goes on.
        self.clock.advance(2)
        self.pair.flush()
        self.assertEqual(self.agent_side.receiver.reason, Reason(ResetCode.LOST, "snapped"))
        if self.pair.wire.agent.is_over:
            self.pair.rejoin()
        self.assertEqual(receiver.ended, ["reset", "closed"])
        self.assertTrue(self.pair.controller.is_up)

    def test_restarted_peer(self) -> None:
        """A peer that was restarted ends the streams at once."""
        _, receiver = self.opened()
        self.pair.cut()
        self.pair.agent = Tether(
            Role.AGENT, self.clock, PeerIntroduction("arhat", instance=b"n" * 16), Acceptance(), Watch()
        )
        self.pair.rejoin()
        self.assertEqual(receiver.reason, Reason(ResetCode.LOST, "the other side was restarted"))
        self.assertEqual(receiver.ended, ["reset", "closed"])

    def test_restarted_peer_of_no_sense(self) -> None:
        """Streams end with a restarted peer also when the rest of what it says makes no sense."""
        _, receiver = self.opened()
        self.pair.cut()
        introduction = PeerIntroduction("arhat", instance=b"n" * 16, facts=DeviceFacts(hostname="x" * 5000))
        self.pair.agent = Tether(Role.AGENT, self.clock, introduction, Acceptance(), Watch())
        self.pair.rejoin()
        self.assertEqual(receiver.ended, ["reset", "closed"])

    def test_newer_connection_takes_over(self) -> None:
        """A new connection takes the place of one that is still up, with its streams."""
        _, receiver = self.opened()
        older = self.pair.wire
        self.pair.rejoin()
        self.assertTrue(older.controller.closed_with)
        older.cut()
        self.agent_side.channel.write(b"still here")
        self.pair.flush()
        self.assertEqual(receiver.lane(Lane.MAIN), b"still here")

    def test_no_new_streams_meanwhile(self) -> None:
        """Without a connection no stream is opened, grace or not."""
        self.pair.cut()
        with self.assertRaises(LinkLost):
            self.pair.controller.open(AskFacts(), RecordingReceiver())

    def test_goodbye_ends_the_grace(self) -> None:
        """A peer that says goodbye takes its streams with it."""
        _, receiver = self.opened()
        self.pair.agent.close("shutting down")
        self.pair.flush()
        self.assertEqual(receiver.reason, Reason(ResetCode.LOST, "shutting down"))
