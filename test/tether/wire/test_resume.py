"""Two muxes under random sends, deliveries, cuts and returns: nothing lost, nothing twice."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tether.errors import Reason, ResetCode
from tether.wire.events import (
    DataArrived,
    Event,
    Introduced,
    StreamBroken,
    StreamClosed,
    StreamFinished,
    StreamOpened,
)
from tether.wire.frames import Hello
from tether.wire.mux import Mux, Role

WINDOW = 64
RECORD = 3


@dataclass
class Heard:
    """What one end heard of one stream, and what it was told to say on it."""

    said: list[tuple[int, bytes]] = field(default_factory=list)
    heard: list[tuple[int, bytes]] = field(default_factory=list)
    waiting: deque[tuple[int, bytes] | None] = field(default_factory=deque)
    finished: bool = False  # said so
    finish_heard: bool = False
    reset: bool = False  # said so
    broken: Reason | None = None
    closed: bool = False


def flat(pieces: list[tuple[int, bytes]]) -> list[tuple[int, bytes]]:
    """Neighbours on a bytes lane joined, records left alone."""
    joined: list[tuple[int, bytes]] = []
    for lane, data in pieces:
        if lane != RECORD and joined and joined[-1][0] == lane:
            joined[-1] = (lane, joined[-1][1] + data)
        else:
            joined.append((lane, data))
    return joined


def is_prefix(heard: list[tuple[int, bytes]], said: list[tuple[int, bytes]]) -> bool:
    """Whether what was heard is how far what was said has come: no gap, no double, in order."""
    heard, said = flat(heard), flat(said)
    if not heard:
        return True
    last_lane, last = heard[-1]
    position = len(heard) - 1
    return (
        heard[:-1] == said[:position]
        and position < len(said)
        and said[position][0] == last_lane
        and (said[position][1].startswith(last) if last_lane != RECORD else said[position][1] == last)
    )


class End:
    """A mux with a memory, whose receiver hands on only when told to."""

    def __init__(self, role: Role) -> None:
        self.mux = Mux(role, role.name[:1].encode() * 16, WINDOW)
        self.streams: dict[int, Heard] = {}
        self.queue: deque[bytes] = deque()  # on its way to the other end
        self.resumed: list[bool] = []

    def attach(self) -> None:
        self.queue.clear()
        self.mux.attach(Hello("x"))

    def detach(self) -> None:
        self.queue.clear()
        self.mux.detach()

    def pull(self, limit: int) -> None:
        message = self.mux.next_message(limit)
        if message is not None:
            self.queue.append(message)

    def take(self, other: End) -> bool:
        """Hear one message of the other end."""
        if not other.queue:
            return False
        for event in self.mux.receive(other.queue.popleft()):
            self.occurred(event)
        return True

    def occurred(self, event: Event) -> None:
        if isinstance(event, Introduced):
            self.resumed.append(event.resumed)
            return
        assert not isinstance(event, StreamOpened) or event.stream not in self.streams, "opened twice"
        stream = self.streams.setdefault(event.stream, Heard())  # type: ignore[union-attr]
        assert not stream.closed and not stream.reset and stream.broken is None, f"{event} after the end"
        match event:
            case DataArrived(_, lane, data):
                stream.waiting.append((lane, data))
            case StreamFinished():
                stream.waiting.append(None)
            case StreamBroken(_, reason):
                stream.broken = reason
            case StreamClosed():
                stream.closed = True

    def hand_on(self, stream_id: int) -> bool:
        stream = self.streams[stream_id]
        if not stream.waiting or stream.broken or stream.reset:
            return False
        piece = stream.waiting.popleft()
        assert not stream.finish_heard, "data after the end"
        if piece is None:
            stream.finish_heard = True
            count = 1
        else:
            stream.heard.append(piece)
            count = len(piece[1])
        if self.mux.delivered(stream_id, count):
            stream.closed = True
        return True

    def open(self) -> None:
        if self.mux.introduced:
            self.streams[self.mux.open(b"")] = Heard()

    def say(self, stream_id: int, lane: int, data: bytes) -> None:
        stream = self.streams[stream_id]
        self.mux.send(stream_id, lane, data)
        if not (stream.finished or stream.reset or stream.broken or stream.closed):
            stream.said.append((lane, data))

    def finish(self, stream_id: int) -> None:
        self.streams[stream_id].finished = True
        self.mux.finish(stream_id)

    def reset(self, stream_id: int) -> None:
        stream = self.streams[stream_id]
        if not (stream.closed or stream.broken):
            stream.reset = True
            self.mux.reset(stream_id, Reason(ResetCode.CANCELLED, "enough"))


SIDES = st.sampled_from((0, 1))
WHICH = st.integers(0, 3)
STEP = st.one_of(
    st.tuples(st.just("open"), SIDES),
    st.tuples(
        st.just("say"),
        SIDES,
        WHICH,
        st.one_of(
            st.tuples(st.sampled_from((0, 1)), st.binary(min_size=1, max_size=100)),
            st.tuples(st.just(RECORD), st.binary(min_size=1, max_size=WINDOW // 2)),
        ),
    ),
    st.tuples(st.just("finish"), SIDES, WHICH),
    st.tuples(st.just("reset"), SIDES, WHICH),
    st.tuples(st.just("pull"), SIDES, st.integers(1, 70), st.integers(1, 4)),
    st.tuples(st.just("take"), SIDES, st.integers(1, 4)),
    st.tuples(st.just("move"), SIDES, st.integers(1, 70), st.integers(1, 6)),
    st.tuples(st.just("hand on"), SIDES, WHICH, st.integers(1, 4)),
    st.tuples(st.just("cut")),
    st.tuples(st.just("return"), st.sampled_from((0, 1, 2, 2, 2, 2))),
)


class ResumeTests(SynchronousTestCase):
    """Links come and go, streams do not notice."""

    def check(self, ends: tuple[End, End]) -> None:
        for end, other in (ends, ends[::-1]):
            for stream_id, stream in end.streams.items():
                self.assertLessEqual(end.mux.kept(stream_id), WINDOW + 2)
                peer = other.streams.get(stream_id)
                if peer is not None:
                    self.assertTrue(is_prefix(stream.heard, peer.said), (stream.heard, peer.said))
                else:
                    self.assertEqual(stream.heard, [])

    def run_steps(self, steps: list[tuple]) -> tuple[End, End]:
        ends = (End(Role.CONTROLLER), End(Role.AGENT))
        for end in ends:
            end.attach()
            end.pull(1)
        ends[0].take(ends[1])
        ends[1].take(ends[0])
        linked = True
        for end in ends:
            end.open()
        for step in steps:
            match step:
                case ("cut",) if linked:
                    linked = False
                    for end in ends:
                        end.detach()
                case ("return", hellos) if not linked:
                    linked = True
                    for end in ends:
                        end.attach()
                    for end, other in (ends, ends[::-1])[:hellos]:
                        end.pull(1)
                        other.take(end)
                case ("open", side):
                    ends[side].open()
                case ("pull", side, limit, count):
                    for _ in range(count):
                        ends[side].pull(limit)
                case ("take", side, count):
                    for _ in range(count):
                        ends[side].take(ends[1 - side])
                case ("move", side, limit, count):
                    for _ in range(count):
                        ends[side].pull(limit)
                        ends[1 - side].take(ends[side])
                case (verb, side, which, *rest):
                    end = ends[side]
                    if end.streams:
                        stream_id = list(end.streams)[which % len(end.streams)]
                        match verb:
                            case "say":
                                end.say(stream_id, *rest[0])
                            case "finish":
                                end.finish(stream_id)
                            case "reset":
                                end.reset(stream_id)
                            case "hand on":
                                for _ in range(rest[0]):
                                    end.hand_on(stream_id)
            self.check(ends)
        if not linked:
            for end in ends:
                end.attach()
        self.settle(ends)
        return ends

    def settle(self, ends: tuple[End, End]) -> None:
        """Move and hand on until nothing moves."""
        for _ in range(10_000):
            for end in ends:
                end.pull(64)
            moved = [end.take(other) for end, other in (ends, ends[::-1])]
            moved += [end.hand_on(stream) for end in ends for stream in list(end.streams)]
            if not any(moved):
                return
        self.fail("never quiet")

    @settings(max_examples=250, deadline=None)
    @given(st.lists(STEP, min_size=25, max_size=60))
    def test_nothing_is_lost(self, steps: list[tuple]) -> None:
        """Whatever happens, all that was said is heard in order, and everything ends."""
        ends = self.run_steps(steps)
        self.check(ends)
        for end in ends:
            self.assertTrue(all(end.resumed[1:]))
        for end, other in (ends, ends[::-1]):
            for stream_id, stream in end.streams.items():
                peer = other.streams.get(stream_id)
                if stream.broken is not None:
                    self.assertTrue(peer is not None and peer.reset, stream.broken)
                if peer is not None and not (stream.reset or stream.broken or peer.reset or peer.broken):
                    self.assertEqual(flat(stream.heard), flat(peer.said))
                    self.assertEqual(stream.finish_heard, peer.finished)
        for end in ends:
            for stream_id in list(end.streams):
                end.finish(stream_id)
        self.settle(ends)
        for end, other in (ends, ends[::-1]):
            self.assertEqual(len(end.mux), 0)
            for stream_id, stream in end.streams.items():
                ended = stream.closed or stream.reset or stream.broken is not None
                self.assertTrue(ended, (stream_id, stream, other.streams.get(stream_id)))
