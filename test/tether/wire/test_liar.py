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
OFF = st.sampled_from((0, 0, 0, 0, 0, 0, 1, -1, 2, 70, -70, WINDOW, 1 << 40, 1 << 61))
SIZE = st.sampled_from((1, 1, 2, 50, 400, 1100))
LANE = st.sampled_from((0, 0, 1, 2, 3, 9))
#: A lie before it is known what the truth would be: its kind, which stream, and how far off.
LIE = st.tuples(
    st.sampled_from(
        ("data", "data", "credit", "credit", "finish", "reset", "open", "open", "other", "hello")
    ),
    WHICH,
    OFF,
    OFF,
    SIZE,
    LANE,
)
HELD = st.lists(st.tuples(WHICH, OFF, OFF), max_size=6)


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

    # ---- the liar

    def stream_id(self, which: int) -> int:
        """One that lives, or a small number, or a huge one."""
        held = list(self.mux._streams)
        if which < len(held):
            return held[which]
        return which if which < 9 else (1 << 64) - which

    def frame(self, kind: str, which: int, off: int, more: int, size: int, lane: int) -> Frame:
        stream_id = self.stream_id(which)
        stream = self.mux._streams.get(stream_id)
        received = stream.ledger.received if stream else 0
        sent = stream.outbound.sent if stream else 0
        acknowledged = stream.outbound.acknowledged if stream else 0
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
                return Open(
                    self.mux._highest_of_peer + which % 4 + 1 if lane else stream_id, max(0, more), b""
                )
            case "hello":
                return self.hello(LIAR, US, [(which, off, more)], size, 0)
            case _:
                return (Ping(size), Pong(size), Goodbye("x", True), OnDuty(Duty(lane % 3 + 1)))[size % 4]

    def hello(
        self, instance: bytes, claimed: bytes, held: list[tuple[int, int, int]], window: int, number: int
    ) -> Hello:
        states = []
        for which, off, more in held:
            stream_id = self.stream_id(which)
            stream = self.mux._streams.get(stream_id)
            delivered = stream.outbound.acknowledged if stream else 0
            limit = stream.outbound.limit if stream else 0
            states.append(StreamState(stream_id, max(0, delivered + off), max(0, limit + more)))
        return Hello(
            instance=instance,
            peer_instance=claimed,
            window=window,
            streams=tuple(states),
            number=number,
        )

    def tell(self, said: list[Frame]) -> None:
        try:
            events = self.mux.receive(frames.encode(said))
        except RemoteViolation:
            self.hang_up()
            return
        for event in events:
            self.occurred(event)

    @rule(
        instance=st.sampled_from((LIAR, LIAR, LIAR, STRANGER, US)),
        claimed=st.sampled_from((US, US, US, b"", LIAR)),
        held=HELD,
        window=st.sampled_from((WINDOW, WINDOW, 0, 1 << 60)),
        number=st.integers(0, 3),
        fresh=st.booleans(),
    )
    def greet(
        self,
        instance: bytes,
        claimed: bytes,
        held: list[tuple[int, int, int]],
        window: int,
        number: int,
        fresh: bool,
    ) -> None:
        if fresh or self.mux.introduced:
            self.mux.attach(Hello())
        self.tell([self.hello(instance, claimed, held, window, number)])

    @precondition(lambda self: self.mux.introduced)
    @rule(lies=st.lists(LIE, min_size=1, max_size=6))
    def lie(self, lies: list[tuple[str, int, int, int, int, int]]) -> None:
        self.tell([self.frame(*lie) for lie in lies])

    @precondition(lambda self: self.mux.introduced)
    @rule(kind=st.sampled_from(("data", "credit", "open", "finish")), which=WHICH, size=SIZE, lane=LANE)
    def behave(self, kind: str, which: int, size: int, lane: int) -> None:
        self.tell([self.frame(kind, which, 0, 500, size, lane)])

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

    @precondition(lambda self: self.mux._peer_instance and len(self.mux) < 9)
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

    @rule()
    def lose(self) -> None:
        self.mux.detach()

    @rule()
    def abandon(self) -> None:
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
            assert stream.outbound.kept <= WINDOW_LIMIT + 2
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
        run_state_machine_as_test(Lies, settings=thorough(250))
