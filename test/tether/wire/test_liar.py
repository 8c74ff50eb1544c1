"""One mux before a peer that says anything: legal events or a violation, nothing else, and bounded memory."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from twisted.trial.unittest import SynchronousTestCase

from test.tether.wire.effort import thorough
from test.tether.wire.ends import check_mux
from tether.errors import Reason, RemoteViolation, ResetCode
from tether.wire import frames
from tether.wire.events import (
    DataArrived,
    Event,
    Introduced,
    StreamBroken,
    StreamClosed,
    StreamFinished,
    StreamOpened,
)
from tether.wire.frames import (
    WINDOW_LIMIT,
    Credit,
    Data,
    Duty,
    Finish,
    Frame,
    Goodbye,
    Hello,
    OnDuty,
    Open,
    Ping,
    Pong,
    Reset,
    StreamState,
)
from tether.wire.mux import Mux, Role

WINDOW = 1000
US, LIAR, STRANGER = b"u" * 16, b"l" * 16, b"s" * 16
ENOUGH = Reason(ResetCode.CANCELLED, "enough")

WHICH = st.integers(0, 9)
#: How far a number is from what an honest peer would say.
OFF = st.sampled_from((0, 0, 0, 0, 0, 1, -1, 2, 70, -70, WINDOW, 1 << 40, 1 << 61))
SIZE = st.sampled_from((1, 2, 50, 400, WINDOW + 1))
LANE = st.sampled_from((0, 0, 1, 2, 3, 9))
KIND = st.sampled_from(("data", "data", "credit", "credit", "finish", "reset", "open", "other"))
#: Nearly always the one that goes on.
EPOCH = st.sampled_from((0, 0, 0, 0, 1))
#: Of each stream that the mux holds: whether it is listed, and how far off.
HELD = st.lists(st.tuples(st.booleans(), OFF, OFF), max_size=6)


@dataclass
class Heard:
    """What the user of the mux knows of a stream."""

    backlog: int = 0
    finished: bool = False
    finish_arrived: bool = False
    over: bool = False


class Lies(RuleBasedStateMachine):
    """Frames near the truth and far from it, on any number of links."""

    @initialize(role=st.sampled_from(Role))
    def begin(self, role: Role) -> None:
        self.mux = Mux(role, US, WINDOW)
        self.streams: dict[int, Heard] = {}
        self.said = 0  # bytes
        self.mux.attach(Hello())
        self.tell(Hello(instance=LIAR, window=WINDOW))
        self.open()
        self.tell(Open(3 - role.value, WINDOW, b""))

    # ---- the liar

    def held(self, which: int) -> int:
        """A stream that the mux holds."""
        held = list(self.mux._streams)
        return held[which % len(held)] if held else which

    def frame(self, kind: str, stream_id: int, off: int, more: int, size: int, lane: int) -> Frame:
        """A frame that is right if nothing is ``off``."""
        stream = self.mux._streams.get(stream_id)
        received = stream.ledger.received if stream else 0
        acknowledged = stream.outbound.acknowledged if stream else 0
        sent = stream.outbound.sent if stream else 0
        limit = stream.outbound.limit if stream else 0
        match kind:
            case "data":
                return Data(stream_id, max(0, received + off), lane, b"x" * size)
            case "credit":
                delivered = (sent if lane else acknowledged) + off
                return Credit(stream_id, max(0, delivered), max(0, limit + more))
            case "finish":
                return Finish(stream_id, max(0, received + off))
            case "reset":
                return Reset(stream_id, max(0, received + off), ENOUGH)
            case "open":
                # The next of its own ids, which differ by two.
                newest = self.mux._highest_of_peer or 1 - self.mux.role.value
                return Open(max(0, newest + 2 + off), max(0, size + more), b"")
            case _:
                return (Ping(size), Pong(size), Goodbye("x", True), OnDuty(Duty(lane % 3 + 1)))[size % 4]

    def tell(self, *said: Frame) -> None:
        try:
            events = self.mux.receive(frames.encode(said))
        except RemoteViolation:
            self.hang_up()
            return
        for event in events:
            self.occurred(event)

    @precondition(lambda self: self.mux.introduced)
    @rule(kind=KIND, which=WHICH, more=st.integers(0, 2000), size=SIZE, lane=LANE)
    def behave(self, kind: str, which: int, more: int, size: int, lane: int) -> None:
        """Nearly always what an honest peer might say."""
        stream_id = self.held(which)
        stream = self.mux._streams.get(stream_id)
        if kind == "data" and stream is not None:
            size = min(size, stream.ledger.limit - stream.ledger.received)
        if size:
            self.tell(self.frame(kind, stream_id, 0, more, size, lane))

    @precondition(lambda self: self.mux.introduced)
    @rule(
        lies=st.lists(
            st.tuples(KIND, st.one_of(st.just(-1), st.just(-1), WHICH), OFF, OFF, SIZE, LANE),
            min_size=1,
            max_size=4,
        ),
        which=WHICH,
    )
    def lie(self, lies: list[tuple[str, int, int, int, int, int]], which: int) -> None:
        """Something that need not make sense, perhaps about a stream that is history or never was."""
        self.tell(*(self.frame(kind, self.held(which) if at < 0 else at, *off) for kind, at, *off in lies))

    @rule(
        fresh=st.booleans(),
        held=HELD,
        more=HELD,
        window=st.sampled_from((WINDOW, WINDOW, 0, 1 << 60)),
        epoch=EPOCH,
        knows=EPOCH,
    )
    def come_back(
        self,
        fresh: bool,
        held: list[tuple[bool, int, int]],
        more: list[tuple[bool, int, int]],
        window: int,
        epoch: int,
        knows: int,
    ) -> None:
        """The next link, or a second Hello on this one; what it says of streams is more or less true."""
        if fresh or not self.mux.introduced:
            self.mux.attach(Hello())
        states = [(number, off, further) for number, (_, off, further) in enumerate(more)]
        for stream, (listed, off, further) in zip(self.mux._streams.values(), held, strict=False):
            if listed:
                outbound = stream.outbound
                states.append((stream.id, outbound.acknowledged + off, outbound.limit + further))
        said = tuple(StreamState(number, max(0, off), max(0, limit)) for number, off, limit in states)
        self.tell(
            Hello(
                instance=LIAR,
                epoch=epoch,
                peer_instance=US,
                peer_epoch=self.mux._epoch + knows,
                window=window,
                streams=said,
            )
        )

    @rule(instance=st.sampled_from((LIAR, STRANGER, US)), claimed=st.sampled_from((US, b"", LIAR)))
    def be_another(self, instance: bytes, claimed: bytes) -> None:
        """The next link, as somebody else, or claiming to speak to somebody else."""
        self.mux.attach(Hello())
        self.tell(Hello(instance=instance, peer_instance=claimed, window=WINDOW))

    # ---- the user

    def hang_up(self) -> None:
        """What is done after a violation."""
        self.mux.say_goodbye("no", True)
        for _ in range(2):
            if (message := self.mux.next_message(0)) is not None:
                frames.decode(message)
        self.give_up()

    def give_up(self) -> None:
        for event in self.mux.abandon(ENOUGH):
            # Of a stream that was opened in the very message that broke the law nobody has heard.
            if event.stream in self.streams and not self.streams[event.stream].over:
                self.occurred(event)
        assert not len(self.mux)
        assert not self.live(), "nobody will ever hear that these ended"
        self.mux.attach(Hello())

    def live(self) -> list[int]:
        return [stream for stream, heard in self.streams.items() if not heard.over]

    def occurred(self, event: Event) -> None:
        match event:
            case StreamOpened(stream):
                assert stream not in self.live() and stream % 2 != self.mux.role.value % 2
                self.streams[stream] = Heard()
            case DataArrived(stream, _, data):
                heard = self.listening(stream)
                assert not heard.finish_arrived
                heard.backlog += len(data)
            case StreamFinished(stream):
                heard = self.listening(stream)
                assert not heard.finish_arrived
                heard.finish_arrived = True
                heard.backlog += 1
            case StreamBroken(stream):
                self.listening(stream).over = True
            case StreamClosed(stream):
                heard = self.listening(stream)
                assert heard.finished and heard.finish_arrived and not heard.backlog
                heard.over = True
            case Introduced():
                pass

    def listening(self, stream: int) -> Heard:
        heard = self.streams[stream]
        assert not heard.over, f"{stream}: something came after the end"
        return heard

    @precondition(lambda self: self.mux._peer[0] and len(self.mux) < 9)
    @rule()
    def open(self) -> None:
        stream = self.mux.open(b"")
        assert stream not in self.live()
        self.streams[stream] = Heard()

    @precondition(lambda self: self.live())
    @rule(which=WHICH, lane=LANE, size=SIZE, finish=st.booleans())
    def say(self, which: int, lane: int, size: int, finish: bool) -> None:
        stream = self.live()[which % len(self.live())]
        self.said += size
        self.mux.send(stream, lane, b"y" * size)
        if finish:
            self.mux.finish(stream)
            self.streams[stream].finished = True

    @precondition(lambda self: self.live())
    @rule(which=WHICH)
    def reset(self, which: int) -> None:
        stream = self.live()[which % len(self.live())]
        self.mux.reset(stream, ENOUGH)
        self.streams[stream].over = True

    @precondition(lambda self: self.live())
    @rule(which=WHICH, count=st.sampled_from((1, 100, 1 << 30)))
    def hand_on(self, which: int, count: int) -> None:
        stream = self.live()[which % len(self.live())]
        heard = self.streams[stream]
        count = min(count, heard.backlog)
        heard.backlog -= count
        if count and self.mux.delivered(stream, count):
            self.occurred(StreamClosed(stream))

    @rule(limit=st.sampled_from((1, 100, 65536)), count=st.integers(1, 4))
    def pull(self, limit: int, count: int) -> None:
        for _ in range(count):
            if (message := self.mux.next_message(limit)) is not None:
                frames.decode(message)

    @rule(token=WHICH, duty=st.sampled_from(Duty))
    def ping(self, token: int, duty: Duty) -> None:
        self.mux.ping(token)
        self.mux.tell_duty(duty)

    @rule(give_up=st.booleans())
    def lose(self, give_up: bool) -> None:
        self.mux.detach()
        if give_up:
            self.give_up()

    # ---- what must hold

    @invariant()
    def bounds(self) -> None:
        check_mux(self.mux)
        buffered = 0
        for stream in self.mux._streams.values():
            if not stream.was_reset:
                heard = self.listening(stream.id)
                assert stream.ledger.received - stream.ledger.delivered == heard.backlog <= WINDOW + 1
            # However much a peer permits, this bounds what must be kept until it acknowledges.
            assert stream.outbound.limit <= stream.outbound.acknowledged + WINDOW_LIMIT
            buffered += stream.outbound.kept + stream.outbound.queued
        assert buffered <= self.said + 2 * len(self.mux), "more is kept than was said"
        tombstones = {stream.id for stream in self.mux._streams.values() if stream.was_reset}
        assert self.mux._streams.keys() - tombstones == set(self.live())

    def teardown(self) -> None:
        """Whatever was said, the next honest peer meets a mux that works."""
        if not hasattr(self, "mux"):
            return
        self.give_up()
        other = Mux(Role.AGENT if self.mux.role is Role.CONTROLLER else Role.CONTROLLER, STRANGER[:15] + b"x")
        self.mux.attach(Hello())
        other.attach(Hello())
        for _ in range(3):
            for one, another in ((self.mux, other), (other, self.mux)):
                while (message := one.next_message()) is not None:
                    another.receive(message)
        stream = self.mux.open(b"")
        self.mux.send(stream, 0, b"all is well")
        while (message := self.mux.next_message()) is not None:
            events = other.receive(message)
        assert events[-2:] == [StreamOpened(stream, b""), DataArrived(stream, 0, b"all is well")]


class LiarTests(SynchronousTestCase):
    """A peer that has a certificate and no honour."""

    def test_any_lies(self) -> None:
        """Whatever a peer says is events or a violation, every stream ends, and memory stays bounded."""
        run_state_machine_as_test(Lies, settings=thorough(800, steps=30))
