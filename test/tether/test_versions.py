"""Either side may be upgraded first: a tether between two versions of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import product
from typing import Any, get_args

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.unknown_fields import UnknownFieldSet
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from test.support.channels import RecordingReceiver
from test.support.versions import (
    NEWER_LANE,
    NEWER_VALUE,
    Rewrite,
    embellished,
    newer,
    older,
    unknown_fields,
    unknown_frames,
    with_newer_values,
)
from test.tether.link.test_link import Acceptance
from tether.errors import Reason, RemoteViolation, ResetCode, StreamReset
from tether.join import (
    Joined,
    JoinRefused,
    JoinRequest,
    pack_answer,
    pack_request,
    unpack_answer,
    unpack_request,
)
from tether.link.arrival import Arrival
from tether.link.call import ask
from tether.link.interfaces import Channel, Lane
from tether.link.link import RESUME, TAKEOVER, PeerIntroduction, Tether
from tether.link.memory import CAPACITY, MemoryPair, MemoryTransport, Watch, Wire
from tether.schema import tether_pb2 as schema
from tether.verbs.codec import (
    decode_facts,
    decode_request,
    decode_result,
    decode_settings,
    decode_size,
    encode_facts,
    encode_request,
    encode_result,
    encode_settings,
    encode_size,
)
from tether.verbs.requests import (
    AskFacts,
    Attach,
    DeviceFacts,
    Exec,
    Exited,
    Failed,
    Forward,
    ForwardRule,
    Issued,
    Killed,
    Logs,
    Renew,
    Request,
    Result,
    Settings,
    Size,
    Succeeded,
)
from tether.wire import frames
from tether.wire.frames import Duty
from tether.wire.mux import Role

NONE: frozenset[str] = frozenset()
BOTH = frozenset({RESUME, TAKEOVER})
#: Every version that there may be, as far as capabilities go.
KNOWLEDGE = (NONE, frozenset({RESUME}), frozenset({TAKEOVER}), BOTH)
GRACE = 60
WINDOW = 64 * 1024

FACTS = DeviceFacts(
    "linux", "arm64", "6.1", "Debian", "pump-7", "m", "b", 4, 1 << 32, 1 << 36,
    frozenset({"exec", "logs"}), (ForwardRule("127.0.0.1", 1, 65535),), {"site": "north"}, 1_700_000_000,
)  # fmt: skip
SETTINGS = Settings("edge", "pump-7", 20, ("wss://here:1",), b"bundle", GRACE)
CONTROLLER = PeerIntroduction("aranya/test", BOTH, b"c" * 16, settings=SETTINGS)
AGENT = PeerIntroduction(
    "arhat/test", BOTH, b"a" * 16, "boot", FACTS, started=7, companions=frozenset({b"x" * 16}), draining=True
)

REQUESTS: tuple[Request, ...] = (
    Exec((b"sh", b"-c", b"\xff"), stdin=True, tty=True, size=Size(80, 24)),
    Attach(stdin=True, size=Size(0, 0)),
    Logs(file="/var/log/a", follow=True, tail_lines=0, since_seconds=9, limit_bytes=1),
    Logs(unit="ssh", previous=True, timestamps=True, since_unix_nanos=-1),
    Forward(22, "localhost"),
    Renew(b"csr"),
    AskFacts(),
)
RESULTS: tuple[Result, ...] = (
    Exited(3),
    Killed(9),
    Failed(ResetCode.REFUSED, "no"),
    Succeeded(),
    Issued(b"chain"),
    FACTS,
)


class Voice(MemoryTransport):
    """One end of a connection, whose messages are rewritten on their way out."""

    def __init__(self, clock: Clock, address: str, rewrite: Rewrite, said: list[bytes]) -> None:
        super().__init__(clock, CAPACITY, address)
        self._rewrite = rewrite
        self._said = said

    def send(self, message: bytes) -> None:
        """Send what a peer of the other version would."""
        for one in self._rewrite(message):
            self._said.append(one)
            super().send(one)


class VersionPair(MemoryPair):
    """Two tethers, each of which may speak as another version; the controller's end is an ``Arrival``."""

    def __init__(
        self, clock: Clock, controller: Tether, agent: Tether, controller_says: Rewrite, agent_says: Rewrite
    ) -> None:
        self._said: tuple[list[bytes], list[bytes]] = ([], [])
        self._voices = (
            lambda: Voice(clock, "agent", controller_says, self._said[0]),
            lambda: Voice(clock, "controller", agent_says, self._said[1]),
        )
        super().__init__(clock, controller, agent, CAPACITY)

    def _wire(self) -> Wire:
        arrival = Arrival(self._clock, lambda said, transport: self.controller)
        return Wire(self._voices[0](), self._voices[1](), arrival, self.agent.receiver())

    def said(self) -> list[frames.Frame]:
        """All frames that either side said, on any connection."""
        return [frame for said in self._said for message in said for frame in frames.decode(message)]


def verbatim(message: bytes) -> list[bytes]:
    """What a peer of this version says."""
    return [message]


class VersionCase(SynchronousTestCase):
    """Joins two tethers, and has sessions on them."""

    def meet(
        self,
        controller_knows: frozenset[str] = BOTH,
        agent_knows: frozenset[str] = BOTH,
        controller_says: Rewrite = verbatim,
        agent_says: Rewrite = verbatim,
    ) -> VersionPair:
        """Both have said Hello, or tried to; on a clock of their own."""
        self.clock = Clock()
        self.watches = (Watch(), Watch())
        self.acceptors = (Acceptance(), Acceptance())
        controller, agent = (
            Tether(role, self.clock, replace(one, capabilities=knows), acceptor, watch, window=WINDOW)
            for role, one, knows, acceptor, watch in zip(
                (Role.CONTROLLER, Role.AGENT),
                (CONTROLLER, AGENT),
                (controller_knows, agent_knows),
                self.acceptors,
                self.watches,
                strict=True,
            )
        )
        self.pair = VersionPair(self.clock, controller, agent, controller_says, agent_says)
        self.pair.flush()
        return self.pair

    def opened(self, request: Request) -> tuple[Channel, RecordingReceiver, Channel, RecordingReceiver]:
        """A session that the controller asked for: its end, and the agent's."""
        heard = RecordingReceiver()
        asked = self.pair.controller.open(request, heard)
        self.pair.flush()
        said, there, agent_heard = self.acceptors[1].opened[-1]
        self.assertEqual(said, request)
        return asked, heard, there, agent_heard

    def assert_all_works(self) -> None:
        """All verbs pass, in either direction, with more on them than a window takes."""
        pair = self.pair
        for request, result in product(REQUESTS, RESULTS):
            asked, heard, there, agent_heard = self.opened(request)
            asked.write(b"typed")
            asked.write(encode_size(Size(132, 43)), Lane.RESIZE)
            asked.write(b"\0", Lane.STDIN_END)
            there.write(b"o" * 3 * WINDOW)
            there.write(b"err", Lane.ERROR)
            there.write(encode_result(result), Lane.RESULT)
            there.finish()
            pair.flush()
            asked.finish()
            pair.flush()
            self.assertEqual(heard.lane(Lane.MAIN), b"o" * 3 * WINDOW)
            self.assertEqual(heard.lane(Lane.ERROR), b"err")
            self.assertEqual(decode_result(heard.lane(Lane.RESULT)), result)
            self.assertEqual(agent_heard.lane(Lane.MAIN), b"typed")
            self.assertEqual(decode_size(agent_heard.lane(Lane.RESIZE)), Size(132, 43))
            self.assertEqual(heard.ended, ["finished", "closed"])
            self.assertEqual(agent_heard.ended, ["finished", "closed"])
        self.assert_renews()
        self.assert_resets()
        self.assertEqual((len(pair.controller.mux), len(pair.agent.mux)), (0, 0))

    def assert_renews(self) -> None:
        """The agent asks, the controller answers."""
        asking = Deferred.fromCoroutine(ask(self.pair.agent, Renew(b"csr"), self.clock, 5))
        self.pair.flush()
        request, channel, _ = self.acceptors[0].opened[-1]
        self.assertEqual(request, Renew(b"csr"))
        channel.write(encode_result(Issued(b"chain")), Lane.RESULT)
        channel.finish()
        self.pair.flush()
        self.assertEqual(self.successResultOf(asking), Issued(b"chain"))

    def assert_resets(self) -> None:
        """Either side ends a session, and the other hears why."""
        asked, _, _, agent_heard = self.opened(AskFacts())
        asked.reset(Reason(ResetCode.CANCELLED, "gone"))
        _, heard, there, _ = self.opened(AskFacts())
        there.reset(Reason(ResetCode.REFUSED, "no"))
        self.pair.flush()
        self.assertEqual(agent_heard.reason, Reason(ResetCode.CANCELLED, "gone"))
        self.assertEqual(heard.reason, Reason(ResetCode.REFUSED, "no"))

    def assert_lives(self) -> None:
        """Signs of life are asked for, and given."""
        for _ in range(10):
            self.clock.advance(10)
            self.pair.flush()
        self.assertTrue(self.pair.controller.is_up and self.pair.agent.is_up)
        self.assertIn(frames.Pong(0), self.pair.said())

    def assert_goes_on(self) -> None:
        """A session outlives a cut, with what was on its way."""
        asked, heard, there, agent_heard = self.opened(REQUESTS[0])
        asked.write(b"in ")
        there.write(b"one ")
        self.pair.flush()
        there.write(b"two ")
        asked.write(b"put")
        self.pair.step()
        self.pair.cut()
        self.assertTrue(self.pair.controller.waits and self.pair.agent.waits)
        there.write(b"three")
        there.finish()
        self.clock.advance(GRACE - 1)
        self.pair.rejoin()
        asked.finish()
        self.pair.flush()
        self.assertEqual(heard.lane(Lane.MAIN), b"one two three")
        self.assertEqual(agent_heard.lane(Lane.MAIN), b"in put")
        self.assertEqual((heard.ended, agent_heard.ended), (["finished", "closed"],) * 2)

    def assert_ends(self) -> None:
        """A session ends with the link, at once and on both sides; the next link has sessions of its own."""
        _, heard, _, agent_heard = self.opened(REQUESTS[0])
        self.pair.cut("snapped")
        for receiver in (heard, agent_heard):
            self.assertEqual(receiver.ended, ["reset", "closed"])
            self.assertEqual(receiver.reason, Reason(ResetCode.LOST, "snapped"))
        self.assertFalse(self.pair.controller.waits or self.pair.agent.waits)
        self.assertEqual([watch.overs for watch in self.watches], [1, 1])
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.pair.rejoin()
        self.assertEqual([watch.ups for watch in self.watches], [[False, False]] * 2)
        self.assert_renews()


class OlderTests(VersionCase):
    """Capabilities are used only where both sides list them."""

    def of_all(self) -> Iterator[tuple[frozenset[str], str]]:
        """Meet in each way two versions may; gives what both know, and the case in words."""
        for controller, agent in product(KNOWLEDGE, KNOWLEDGE):
            self.meet(controller, agent, older(controller), older(agent))
            yield controller & agent, f"controller {sorted(controller)}, agent {sorted(agent)}"

    def test_sessions(self) -> None:
        """Sessions need no capability."""
        for _ in self.of_all():
            self.assert_all_works()
            self.assert_lives()

    def test_cut(self) -> None:
        """Sessions outlive a link if both sides list that, else they end on both sides."""
        for shared, case in self.of_all():
            try:
                if RESUME in shared:
                    self.assert_goes_on()
                else:
                    self.assert_ends()
            except self.failureException as failure:
                raise self.failureException(f"{case}: {failure}") from failure

    def test_half_open(self) -> None:
        """A newer connection takes the place of one that looks well, also where sessions end with it."""
        for shared, case in self.of_all():
            _, heard, there, agent_heard = self.opened(REQUESTS[0])
            # Only the agent has lost it.
            before = self.pair.wire
            before.agent.is_over = True
            before.agent_receiver.connection_lost("snapped")
            self.pair.rejoin()
            resumed = RESUME in shared
            self.assertEqual([watch.ups for watch in self.watches], [[False, resumed]] * 2, case)
            self.assertEqual(heard.ended, [] if resumed else ["reset", "closed"], case)
            self.assertEqual(agent_heard.ended, [] if resumed else ["reset", "closed"], case)
            there.write(b"still here")
            self.pair.flush()
            self.assertEqual(heard.lane(Lane.MAIN), b"still here" if resumed else b"", case)

    def test_duty(self) -> None:
        """No word of duty passes unless both sides list that."""
        for shared, case in self.of_all():
            told = [
                self.pair.controller.tell_duty(Duty.STANDBY),
                self.pair.agent.tell_duty(Duty.DRAINING),
            ]
            self.pair.flush()
            self.assertEqual(told, [TAKEOVER in shared] * 2, case)
            expected = [[Duty.DRAINING], [Duty.STANDBY]] if TAKEOVER in shared else [[], []]
            self.assertEqual([watch.duties for watch in self.watches], expected, case)
            passed = [frame for frame in self.pair.said() if isinstance(frame, frames.OnDuty)]
            self.assertEqual(len(passed), 2 * (TAKEOVER in shared), case)

    def test_successor(self) -> None:
        """A controller of another version that takes over during the grace ends the sessions by its Hello."""
        for knows in KNOWLEDGE:
            self.meet(agent_says=verbatim)
            _, heard, _, agent_heard = self.opened(REQUESTS[0])
            self.pair.cut("snapped")
            self.assertEqual(agent_heard.ended, [])
            introduction = replace(CONTROLLER, capabilities=knows, instance=b"n" * 16)
            self.pair.controller = Tether(
                Role.CONTROLLER, self.clock, introduction, self.acceptors[0], Watch(), window=WINDOW
            )
            self.pair.rejoin()
            self.assertEqual(agent_heard.reason, Reason(ResetCode.LOST, "the other side was restarted"))
            self.assertEqual(heard.ended, [])
            self.assert_renews()

    def test_introduction(self) -> None:
        """What an older peer does not say has its default."""
        self.meet(NONE, NONE, older(NONE), older(NONE))
        said = self.pair.controller.peer
        unsaid = replace(AGENT, capabilities=NONE, started=0, companions=frozenset(), draining=False)
        self.assertEqual(said, unsaid)
        self.assertEqual(self.pair.agent.peer.settings, replace(SETTINGS, grace_seconds=0))


class NewerTests(VersionCase):
    """What a newer peer says beyond this version is passed over."""

    def of_all(self) -> Iterator[None]:
        """Meet with a newer agent, with a newer controller, and as two newer ones."""
        for sides in ((verbatim, newer), (newer, verbatim), (newer, newer)):
            self.meet(BOTH | {"teleport"}, BOTH | {"telepathy"}, *sides)
            yield

    def test_introduction(self) -> None:
        """What is known of a Hello arrives, and capabilities that are not known do no harm."""
        for _ in self.of_all():
            self.assertEqual(self.pair.controller.peer, replace(AGENT, capabilities=BOTH | {"telepathy"}))
            self.assertEqual(self.pair.agent.peer, replace(CONTROLLER, capabilities=BOTH | {"teleport"}))

    def test_sessions(self) -> None:
        """All verbs work, in all that they say."""
        for _ in self.of_all():
            self.assert_all_works()
            self.assert_lives()

    def test_cut(self) -> None:
        """Sessions outlive a cut."""
        for _ in self.of_all():
            self.assert_goes_on()

    def test_cut_of_older(self) -> None:
        """A newer peer that does not keep sessions is not waited for."""
        self.meet(BOTH, frozenset({"telepathy"}), agent_says=newer)
        self.assert_ends()
        self.meet(frozenset({"teleport"}), BOTH, controller_says=newer)
        self.assert_ends()

    def test_duty_and_goodbye(self) -> None:
        """Words of duty are understood, and a goodbye."""
        for _ in self.of_all():
            self.assertTrue(self.pair.controller.tell_duty(Duty.STANDBY))
            self.assertTrue(self.pair.agent.tell_duty(Duty.DRAINING))
            self.pair.flush()
            self.assertEqual([watch.duties for watch in self.watches], [[Duty.DRAINING], [Duty.STANDBY]])
            self.pair.controller.close("banned", retry=False)
            self.pair.flush()
            self.assertEqual(self.watches[1].downs, [("banned", False)])

    def test_every_frame(self) -> None:
        """The tests of this class cover every kind of frame."""
        self.meet(controller_says=newer, agent_says=newer)
        self.assert_all_works()
        self.assert_lives()
        self.pair.controller.tell_duty(Duty.ACTIVE)
        self.pair.agent.close("gone")
        self.pair.flush()
        self.assertEqual({type(frame) for frame in self.pair.said()}, set(get_args(frames.Frame)))
        self.assertEqual({type(request) for request in REQUESTS}, set(get_args(Request)))
        self.assertEqual({type(result) for result in RESULTS}, set(get_args(Result)))

    def test_values(self) -> None:
        """A code of a newer peer is a reason without one; a duty of a newer peer is none."""

        def says(message: bytes) -> list[bytes]:
            return newer(with_newer_values(message, schema.Message.DESCRIPTOR))

        for sides in ((verbatim, says), (says, verbatim)):
            self.meet(BOTH, BOTH, *sides)
            asked, heard, there, agent_heard = self.opened(AskFacts())
            ends, receiver = ((there, heard), (asked, agent_heard))[sides[0] is says]
            ends.reset(Reason(ResetCode.REFUSED, "because"))
            self.pair.controller.tell_duty(Duty.STANDBY)
            self.pair.agent.tell_duty(Duty.DRAINING)
            self.pair.flush()
            self.assertEqual(receiver.reason, Reason(ResetCode.UNSPECIFIED, "because"))
            duties = [[Duty.DRAINING], [Duty.STANDBY]]
            duties[sides[0] is says] = []
            self.assertEqual([watch.duties for watch in self.watches], duties)
            self.assertTrue(self.pair.controller.is_up and self.pair.agent.is_up)

    def test_verb(self) -> None:
        """A verb of a newer peer is refused as unsupported, whatever follows at once; all else goes on."""
        for role in Role:
            sides = (verbatim, asks_more) if role is Role.AGENT else (asks_more, verbatim)
            self.meet(BOTH, BOTH, *sides)
            asking = self.pair.agent if role is Role.AGENT else self.pair.controller
            heard = RecordingReceiver()
            channel = asking.open(AskFacts(), heard)
            channel.write(b"x" * 2 * WINDOW)
            asking.mux.send(channel.stream, NEWER_LANE, b"new")
            channel.finish()
            self.pair.flush()
            self.assertEqual(heard.reason.code, ResetCode.UNSUPPORTED)
            self.assertEqual(heard.ended, ["reset", "closed"])
            self.assertEqual([acceptor.opened for acceptor in self.acceptors], [[], []])
            self.assertEqual((len(self.pair.controller.mux), len(self.pair.agent.mux)), (0, 0))
            self.assertTrue(asking.is_up)

    def test_verb_asked(self) -> None:
        """Who asks a question that the other side does not know hears that."""
        self.meet(agent_says=asks_more)
        asking = Deferred.fromCoroutine(ask(self.pair.agent, Renew(b"csr"), self.clock, 5))
        self.pair.flush()
        reset = self.failureResultOf(asking, StreamReset).value
        self.assertEqual(reset.reason.code, ResetCode.UNSUPPORTED)

    def test_lane(self) -> None:
        """What comes on a lane that is not known is dropped, and credited; its neighbours are not touched."""
        for _ in self.of_all():
            asked, heard, there, agent_heard = self.opened(REQUESTS[0])
            for tether, channel, receiver in (
                (self.pair.controller, asked, agent_heard),
                (self.pair.agent, there, heard),
            ):
                for number in range(40):
                    channel.write(b"%d " % number)
                    tether.mux.send(channel.stream, NEWER_LANE, b"n" * 10_000)
                    channel.write(b"e", Lane.ERROR)
                self.pair.flush()
                self.assertEqual(receiver.lane(Lane.MAIN), b"".join(b"%d " % number for number in range(40)))
                self.assertEqual(receiver.lane(Lane.ERROR), b"e" * 40)
                self.assertEqual({lane for lane, _ in receiver.heard}, {Lane.MAIN, Lane.ERROR})
                self.assertEqual(tether.mux.queued(channel.stream), 0)

    def test_lane_while_paused(self) -> None:
        """A paused channel pauses unknown lanes, too: they take its window and not more."""
        self.meet(agent_says=newer)
        asked, heard, there, _ = self.opened(REQUESTS[0])
        asked.pauseProducing()
        there.write(b"first")
        self.pair.agent.mux.send(there.stream, NEWER_LANE, b"n" * 2 * WINDOW)
        there.write(b"last")
        self.pair.flush()
        self.assertGreater(self.pair.agent.mux.queued(there.stream), WINDOW // 2)
        asked.resumeProducing()
        self.pair.flush()
        self.assertEqual(heard.lane(Lane.MAIN), b"firstlast")

    def test_outcome(self) -> None:
        """A result that is not known is a violation of who told it, and ends one question."""
        self.meet(agent_says=newer)
        asking = Deferred.fromCoroutine(ask(self.pair.controller, AskFacts(), self.clock, 5))
        self.pair.flush()
        channel = self.acceptors[1].channel
        channel.write(unknown_fields(schema.Result.DESCRIPTOR), Lane.RESULT)
        channel.finish()
        self.pair.flush()
        reset = self.failureResultOf(asking, StreamReset).value
        self.assertEqual(reset.reason.code, ResetCode.PROTOCOL)
        self.assert_renews()

    def test_frames_before_sessions(self) -> None:
        """Unknown frames may come alone, and first after Hello."""
        self.meet(controller_says=newer, agent_says=newer)
        for transport in (self.pair.wire.controller, self.pair.wire.agent):
            MemoryTransport.send(transport, unknown_frames())
        self.pair.flush()
        self.assertEqual([watch.downs for watch in self.watches], [[], []])
        self.assert_renews()


class ProtocolTests(VersionCase):
    """Another protocol is refused, so that both sides can tell why."""

    def assert_refused(self) -> None:
        """Both sides have heard that the one speaks 1 and the other 2; who heard it says so in its log."""
        for watch in self.watches:
            self.assertEqual(watch.ups, [])
        self.assertFalse(self.pair.controller.is_up or self.pair.agent.is_up)

    def test_agent(self) -> None:
        """A controller refuses an agent of a newer protocol."""
        logged = self.logged()
        self.meet(agent_says=of_protocol(2))
        self.assert_refused()
        ((reason, retry),) = self.watches[1].downs
        self.assertIn("protocol 2", reason)
        self.assertTrue(retry)
        self.assertTrue(any(reason in line for line in logged()), logged())

    def test_controller(self) -> None:
        """An agent refuses a controller of a newer protocol."""
        self.meet(controller_says=of_protocol(2))
        self.assertEqual(self.watches[1].ups, [])
        ((reason, _),) = self.watches[1].downs
        self.assertIn("protocol 2", reason)
        self.assertEqual(self.watches[0].downs, [(reason, True)])

    def logged(self) -> Callable[[], list[str]]:
        """What is logged from here on."""
        from twisted.logger import formatEvent, globalLogPublisher

        events: list[Any] = []
        globalLogPublisher.addObserver(events.append)
        self.addCleanup(globalLogPublisher.removeObserver, events.append)
        return lambda: [formatEvent(event) for event in events]


class SchemaTests(SynchronousTestCase):
    """Every message there is may have more in it than is known."""

    def test_every_message(self) -> None:
        """What is known of an embellished message is what it was; nothing in it was left plain."""
        for kind in schema.DESCRIPTOR.message_types_by_name.values():
            for message in samples(kind):
                parsed = type(message).FromString(embellished(message.SerializeToString(), kind))
                self.assertEqual(plain(parsed), [], message)
                parsed.DiscardUnknownFields()
                self.assertEqual(parsed, message)

    def test_verbs(self) -> None:
        """Requests, results and what peers tell of themselves are read as they were."""

        def more(encoded: bytes, kind: str) -> bytes:
            return embellished(encoded, schema.DESCRIPTOR.message_types_by_name[kind])

        for request in REQUESTS:
            self.assertEqual(decode_request(more(encode_request(request), "Request")), request)
        for result in RESULTS:
            self.assertEqual(decode_result(more(encode_result(result), "Result")), result)
        self.assertEqual(decode_facts(more(encode_facts(FACTS), "DeviceFacts")), FACTS)
        self.assertEqual(decode_settings(more(encode_settings(SETTINGS), "Settings")), SETTINGS)
        self.assertEqual(decode_size(more(encode_size(Size(1, 0)), "Size")), Size(1, 0))

    def test_values(self) -> None:
        """A failure of a code that is not known is a failure."""
        encoded = with_newer_values(encode_result(Failed(ResetCode.LIMIT, "busy")), schema.Result.DESCRIPTOR)
        self.assertIn(NEWER_VALUE, encoded)
        self.assertEqual(decode_result(encoded), Failed(ResetCode.UNSPECIFIED, "busy"))

    def test_joining(self) -> None:
        """A join between two versions succeeds, or fails, as between two of one."""
        request = JoinRequest("edge", "pump-7", b"secret", b"csr", "arhat/9")
        kind = schema.JoinRequest.DESCRIPTOR
        self.assertEqual(unpack_request(embellished(pack_request(request), kind)), request)
        kind = schema.JoinAnswer.DESCRIPTOR
        for answer in (Joined(b"chain", b"bundle", ("wss://here",)), JoinRefused("no")):
            self.assertEqual(unpack_answer(embellished(pack_answer(answer), kind)), answer)
        with self.assertRaises(RemoteViolation):
            unpack_answer(unknown_fields(kind))


def asks_more(message: bytes) -> list[bytes]:
    """What a peer says whose every request is of a verb that is not known."""
    said = []
    for one in newer(message):
        parsed = schema.Message.FromString(one)
        for frame in parsed.frames:
            if frame.HasField("open"):
                frame.open.request.ParseFromString(unknown_fields(schema.Request.DESCRIPTOR))
        said.append(parsed.SerializeToString())
    return said


def of_protocol(number: int) -> Rewrite:
    """What a peer of another protocol says."""

    def rewrite(message: bytes) -> list[bytes]:
        parsed = schema.Message.FromString(message)
        for frame in parsed.frames:
            if frame.HasField("hello"):
                frame.hello.protocol = number
        return [parsed.SerializeToString()]

    return rewrite


def samples(kind: Descriptor) -> Iterator[Message]:
    """Messages of a kind with something in every field, one for each choice of a oneof."""
    chosen = [field for field in kind.fields if field.containing_oneof is not None]
    for choice in chosen or [None]:
        message: Any = getattr(schema, kind.name)()
        for field in kind.fields:
            if field.containing_oneof is None or field is choice:
                fill(message, field)
        yield message


def fill(message: Any, field: FieldDescriptor) -> None:
    """Put something in this field."""
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        getattr(message, field.name)["key"] = "value"
    elif field.message_type is not None:
        inner = getattr(message, field.name)
        (inner.add() if field.is_repeated else inner).CopyFrom(next(samples(field.message_type)))
    else:
        value: Any = {
            FieldDescriptor.CPPTYPE_STRING: b"x" if field.type == FieldDescriptor.TYPE_BYTES else "x",
            FieldDescriptor.CPPTYPE_BOOL: True,
        }.get(field.cpp_type, 1)
        if field.is_repeated:
            getattr(message, field.name).append(value)
        else:
            setattr(message, field.name, value)


def plain(message: Message) -> list[str]:
    """The kinds of messages in it, itself included, that have no unknown field."""
    found = [] if len(UnknownFieldSet(message)) else [message.DESCRIPTOR.name]
    for field, value in message.ListFields():
        if field.message_type is not None and not field.message_type.GetOptions().map_entry:
            for inner in value if field.is_repeated else (value,):
                found += plain(inner)
    return found
