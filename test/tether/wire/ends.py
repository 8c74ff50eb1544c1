"""Two ends of a tether that remember what they said and heard, and what must hold between them.

Theory of operation

Lines
    A ``Line`` is one connection. An end takes each line at most once and when it
    likes, so that at times both believe in different ones. When a line is cut,
    what is on the way arrives up to some message and not beyond; what is sent later is lost.
    Either end notices at its own time.

Talks
    A ``Talk`` is one stream as both ends see it. Whatever arrives must be the next of
    what the other end said: no gap, no double, no piece of a record.

Loss
    An end that gives up what it has, starts anew, or meets another end than the one before begins
    another life, and all talks that there are may be lost with the former one; so may those that the
    other begins before it has heard of the new one. No other talk is lost, over any number of lines,
    and they all end at both ends in the same way.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from random import Random

from tether.errors import Reason, ResetCode
from tether.verbs.codec import encode_request
from tether.verbs.requests import Exec
from tether.wire import frames
from tether.wire.events import (
    DataArrived,
    DutyTold,
    Event,
    Introduced,
    PongArrived,
    StreamBroken,
    StreamClosed,
    StreamFinished,
    StreamOpened,
)
from tether.wire.frames import KEPT_LIMIT, Duty, Hello
from tether.wire.lanes import RECORD_LANES, RECORD_LIMIT
from tether.wire.mux import Mux, Role

_ROLES = (Role.CONTROLLER, Role.AGENT)
#: What is said is cut from this, so that no two pieces are alike.
_NOISE = Random(1).randbytes(1 << 20)


@dataclass
class Half:
    """One end of a talk."""

    unheard: deque[tuple[int, bytes]] = field(default_factory=deque)  # said, and not arrived yet
    backlog: int = 0  # offsets that arrived and were not handed on
    finished: bool = False  # said so
    finish_arrived: bool = False
    reset: Reason | None = None  # said so
    broken: Reason | None = None
    closed: bool = False

    @property
    def live(self) -> bool:
        """False once this end may hear nothing more."""
        return not self.closed and self.reset is None and self.broken is None

    @property
    def finish_heard(self) -> bool:
        """True when the other's finish was handed on, and all before it."""
        return self.finish_arrived and not self.backlog


@dataclass(eq=False)
class Talk:
    """One stream as both ends see it."""

    stream: int
    request: bytes
    halves: dict[End, Half]
    lost: bool = False  # either end may have forgotten it

    def other(self, end: End) -> Half | None:
        """The half of whoever is not ``end``; ``None``: the stream never arrived there."""
        return next((half for held_by, half in self.halves.items() if held_by is not end), None)

    @property
    def over(self) -> bool:
        """True when no end will hear of it any more."""
        return len(self.halves) == 2 and not any(half.live for half in self.halves.values())


class Line:
    """One connection between the two sides."""

    def __init__(self, place: int) -> None:
        self.place = place
        self.whole = True
        self.ends: list[End | None] = [None, None]
        self.lives = [0, 0]  # which life each end took it in
        self.towards: tuple[deque[bytes], deque[bytes]] = (deque(), deque())
        self.pings: tuple[deque[int], deque[int]] = (deque(), deque())  # by who asked
        self.told: tuple[list[Duty], list[Duty]] = ([], [])  # by who told
        self.heard: list[Duty | None] = [None, None]  # the last duty, by who told it

    def cut(self, arriving: tuple[int, int]) -> None:
        """Cut it; so many messages still arrive at either side."""
        self.whole = False
        for messages, count in zip(self.towards, arriving, strict=True):
            while len(messages) > count:
                messages.pop()


class End:
    """A mux and whoever uses it, who hands on only when told to."""

    def __init__(self, world: World, side: int, instance: bytes, window: int) -> None:
        self.world = world
        self.side = side
        self.window = window
        self.mux = Mux(_ROLES[side], instance, window)
        self.talks: dict[int, Talk] = {}
        self.line: Line | None = None
        self.reached = 0  # the place of the newest line it took
        self.life = world.new_life()
        self.former = 0  # the life before, if this one began by meeting another end
        self.met = 0  # which life of the other it heard last of, in this life of its own

    # ---- lines

    def may_attach(self, line: Line) -> bool:
        """Whether this end may take the line.

        Lines may come to the controller in another order than the agent dialled them; an older
        one is taken only if the Hello on it is newer than any that was heard.
        """
        dialler = line.ends[1]
        if line.ends[self.side] is not None or dialler in self.world.gone:
            return False
        if self.side == 1 or dialler is None:
            return line.place > self.reached
        if not line.towards[0]:
            return False
        [hello] = frames.decode(line.towards[0][0])
        assert isinstance(hello, Hello)
        return not self.mux.is_late(hello)

    def attach(self, line: Line) -> None:
        """Take this line, whatever became of the last."""
        self.line = line
        self.reached = max(self.reached, line.place)
        line.ends[self.side] = self
        line.lives[self.side] = self.life
        self.mux.attach(Hello("test"))

    def detach(self) -> None:
        """Notice that the line is gone."""
        self.line = None
        self.mux.detach()

    def pull(self, limit: int) -> bool:
        """Put the next message on the line."""
        if self.line is None:
            return False
        message = self.mux.next_message(limit)
        assert message is not None or self.mux.next_message(limit) is None, "there was something to say"
        if message is not None and self.line.whole:
            self.line.towards[1 - self.side].append(message)
        return message is not None

    def take(self) -> bool:
        """Hear the next message of the line."""
        if self.line is None or not self.line.towards[self.side]:
            return False
        message = self.line.towards[self.side].popleft()
        sender = self.line.ends[1 - self.side]
        assert sender is not None
        for event in self.mux.receive(message):
            self._occurred(sender, self.line, event)
        return True

    @property
    def may_take(self) -> bool:
        """True when something is on its way."""
        return self.line is not None and bool(self.line.towards[self.side])

    def abandon(self) -> None:
        """Give up all talks."""
        self.detach()
        if self.met:
            # Else there is nothing to give up.
            self.world.lose()
            self.life, self.former, self.met = self.world.new_life(), 0, 0
        reason = Reason(ResetCode.LOST, "given up")
        for event in self.mux.abandon(reason):
            self._ended(event)
        assert not len(self.mux) and not self.live()

    def ping(self, token: int) -> None:
        """Ask on this line whether the other is there."""
        assert self.line is not None
        self.mux.ping(token)
        self.line.pings[self.side].append(token)

    def tell_duty(self, duty: Duty) -> None:
        """Say on this line who takes new sessions."""
        assert self.line is not None
        self.mux.tell_duty(duty)
        self.line.told[self.side].append(duty)

    # ---- talks

    @property
    def may_open(self) -> bool:
        """True when another stream may be opened."""
        return bool(self.met) and len(self.live()) < 6

    def live(self) -> list[int]:
        """The streams that this end may still hear of."""
        return [stream for stream, talk in self.talks.items() if talk.halves[self].live]

    def open(self, size: int = 0) -> int:
        """Open a stream with a request of about that size."""
        request = encode_request(Exec((self.world.noise(size),)))
        stream = self.mux.open(request)
        assert stream not in self.talks, f"{stream} was used already"
        facing = self.world.ends[1 - self.side]
        self.talks[stream] = Talk(stream, request, {self: Half()}, lost=self.met != facing.life)
        return stream

    def say(self, stream: int, lane: int, size: int) -> None:
        """Send that much (negative: in sixteenths of the other's window), or a record that fits it."""
        half = self.talks[stream].halves[self]
        if size < 0:
            size = -size * self.world.ends[1 - self.side].window // 16
        if lane in RECORD_LANES:
            size = min(size, self.world.ends[1 - self.side].window // 2, RECORD_LIMIT)
        data = self.world.noise(size)
        self.mux.send(stream, lane, data)
        if half.live and not half.finished:
            half.unheard.append((lane, data))

    def finish(self, stream: int) -> None:
        """Half-close."""
        self.mux.finish(stream)
        self.talks[stream].halves[self].finished = True

    def reset(self, stream: int) -> None:
        """End both directions."""
        half = self.talks[stream].halves[self]
        reason = Reason(ResetCode.CANCELLED, f"enough of {stream}, says {_ROLES[self.side].name}")
        self.mux.reset(stream, reason)
        if half.live:
            half.reset = reason
            half.backlog = 0

    def hand_on(self, stream: int, count: int) -> bool:
        """Hand on up to ``count`` of the offsets that arrived."""
        half = self.talks[stream].halves[self]
        count = min(count, half.backlog)
        if not half.live or not count:
            return False
        half.backlog -= count
        if self.mux.delivered(stream, count):
            self._ended(StreamClosed(stream))
        return True

    def _occurred(self, sender: End, line: Line, event: Event) -> None:
        match event:
            case Introduced(_, resumed):
                self._introduced(line, resumed)
            case StreamOpened(stream, request):
                self._opened(sender, stream, request)
            case DataArrived(stream, lane, data):
                self._arrived(sender, stream, lane, data)
            case StreamFinished(stream):
                half = self._listening(stream)
                assert not half.finish_arrived, f"{stream} finished twice"
                half.finish_arrived = True
                half.backlog += 1
                said = self.talks[stream].halves[sender]
                assert said.finished and not said.unheard, f"{stream}: finished without the last {said}"
            case StreamBroken() | StreamClosed():
                self._ended(event)
            case PongArrived(token):
                assert line.pings[self.side].popleft() == token
            case DutyTold(duty):
                assert duty in line.told[sender.side], f"{duty.name} was not said on this line"
                line.heard[sender.side] = duty
            case _:
                raise AssertionError(f"{event} out of nothing")

    def _introduced(self, line: Line, resumed: bool) -> None:
        other = line.ends[1 - self.side]
        assert other is not None
        life = line.lives[1 - self.side]
        if life == other.former and other.met == self.life:
            # Since it said so it has met this end, for which it had no talks in that life.
            life = other.life
        assert resumed == (self.met == life), f"resumed: {resumed}, but it met {self.met}, and now {life}"
        if self.met and self.met != life:
            self.former, self.life = self.life, self.world.new_life()
            line.lives[self.side] = self.life
            self.world.lose()
            if other.met == self.former:
                other.met = self.life
        self.met = life

    def _opened(self, sender: End, stream: int, request: bytes) -> None:
        older = self.talks.get(stream)
        assert older is None or not older.halves[self].live, f"{stream} opened while it lives"
        talk = sender.talks[stream]
        assert self not in talk.halves, f"{stream} opened twice"
        assert talk.request == request
        talk.halves[self] = Half()
        self.talks[stream] = talk

    def _listening(self, stream: int) -> Half:
        half = self.talks[stream].halves[self]
        assert half.live, f"{stream}: something came after the end: {half}"
        return half

    def _arrived(self, sender: End, stream: int, lane: int, data: bytes) -> None:
        half = self._listening(stream)
        assert not half.finish_arrived, "data after the end"
        half.backlog += len(data)
        unheard = self.talks[stream].halves[sender].unheard
        while data:
            assert unheard, "more came than was said"
            said_on, said = unheard.popleft()
            assert said_on == lane, f"lane {lane} instead of {said_on}"
            if lane in RECORD_LANES:
                assert data == said, "a record came in another shape"
                return
            if len(data) < len(said):
                unheard.appendleft((lane, said[len(data) :]))
                said = said[: len(data)]
            assert data.startswith(said), f"{len(data)} bytes are not those that were said"
            data = data[len(said) :]

    def _ended(self, event: StreamBroken | StreamClosed) -> None:
        talk = self.talks[event.stream]
        half, other = self._listening(event.stream), talk.other(self)
        if isinstance(event, StreamBroken):
            half.broken = event.reason
            half.backlog = 0
            assert talk.lost or (other is not None and other.reset == event.reason), f"{event}, but {other}"
            return
        half.closed = True
        assert half.finished and half.finish_heard, f"closed before both ends were heard: {half}"
        if not talk.lost:
            assert other is not None and other.finish_heard, f"closed, but not all was heard: {other}"


class World:
    """Both ends, and the lines between them."""

    def __init__(self, windows: tuple[int, int]) -> None:
        self.windows = windows
        self.births = 0
        self._lives = 0
        self.lines: list[Line] = []
        self.gone: list[End] = []
        self.away: list[End] = []  # controllers that live, and are not the one at present
        self._said = 0
        self.ends = [self._born(0), self._born(1)]

    def _born(self, side: int, instance: bytes = b"") -> End:
        self.births += 1
        return End(self, side, instance or self.births.to_bytes(16, "big"), self.windows[side])

    def new_life(self) -> int:
        """Another life of some end."""
        self._lives += 1
        return self._lives

    def noise(self, size: int) -> bytes:
        """Bytes that were not said before."""
        start = self._said % (len(_NOISE) // 2)
        self._said += size + 1
        return _NOISE[start : start + size]

    def lose(self) -> None:
        """From here on the talks that are not over may end as lost."""
        for end in (*self.ends, *self.away):
            for talk in end.talks.values():
                talk.lost = talk.lost or not talk.over

    def restart(self, side: int, instance: bytes = b"") -> None:
        """An end is replaced by a fresh one: another process, or the same that has forgotten all."""
        self.lose()
        self.gone.append(self.ends[side])
        self.ends[side] = self._born(side, instance)

    def hand_over(self) -> None:
        """Another controller takes the place of the present one, which lives on and may come back."""
        self.ends[0].detach()
        self.away.append(self.ends[0])
        self.ends[0] = self.away.pop(0) if len(self.away) > 1 else self._born(0)

    def connect(self) -> Line:
        """A new line, which nobody has taken yet."""
        self.lines.append(Line(len(self.lines) + 1))
        return self.lines[-1]

    def free_lines(self, end: End) -> list[Line]:
        """The newest of the lines that this end may take."""
        return [line for line in self.lines[-3:] if end.may_attach(line)]

    @property
    def joined(self) -> bool:
        """True when both ends are on one line that is whole."""
        line = self.ends[0].line
        return line is not None and line.whole and line is self.ends[1].line

    def exchange(self, limit: int) -> None:
        """Exchange all there is, and hand nothing on."""
        while any([end.pull(limit) | self.ends[1 - end.side].take() for end in self.ends]):
            pass
        for end in self.ends:
            check_idle(end.mux)

    def settle(self, limit: int) -> None:
        """Exchange all there is and hand it on, until nothing moves."""
        for _ in range(100_000):
            moved = False
            for end in self.ends:
                moved |= end.pull(limit)
                moved |= self.ends[1 - end.side].take()
                for stream in end.live():
                    moved |= end.hand_on(stream, 1 << 30)
            if not moved:
                break
        else:
            raise AssertionError("never quiet")
        self.check()
        self._check_quiet()

    # ---- what must hold

    def check(self) -> None:
        """What holds at any time."""
        for end in self.ends:
            check_mux(end.mux)
            other = self.ends[1 - end.side]
            for stream in end.mux._streams.values():
                talk = end.talks[stream.id]
                half = talk.halves[end]
                ledger, outbound = stream.ledger, stream.outbound
                if half.live:
                    assert ledger.received - ledger.delivered == half.backlog
                assert outbound.kept <= other.window + 2, f"{outbound.kept} kept"
                facing = other.mux._streams.get(stream.id)
                if facing is not None and talk.halves.get(other) and not talk.lost:
                    assert outbound.limit <= facing.ledger.limit, "more credit than was granted"
                    assert outbound.acknowledged <= facing.ledger.delivered, "acknowledged too early"
                    assert facing.was_reset or facing.ledger.received <= outbound.sent

    def _check_quiet(self) -> None:
        """What holds when all was exchanged and handed on."""
        for end in self.ends:
            line, other = end.line, self.ends[1 - end.side]
            assert line is not None and not line.pings[end.side], "a ping without an answer"
            told = line.told[end.side]
            assert line.heard[end.side] == (told[-1] if told else None), "the newest duty was not heard"
            assert sorted(end.live()) == sorted(end.mux._streams), "live streams are not those that are held"
            assert sorted(end.live()) == sorted(other.live()), "the ends hold different streams"
            check_idle(end.mux)
            for stream in end.live():
                half = end.talks[stream].halves[end]
                assert not half.unheard, f"{stream}: stuck with {half}"
                assert not end.mux.queued(stream)
                assert end.talks[stream].halves[other].finish_heard == half.finished


def check_mux(mux: Mux) -> None:
    """The bounds of one mux, whoever its peer is."""
    streams = mux._streams
    for queue in (mux._credits, mux._opens, mux._resets, mux._turns._little, mux._turns._bulk):
        assert queue.keys() <= streams.keys(), "a stream that is history waits for its turn"
    assert mux._turns._bulk_until.keys() <= streams.keys()
    assert mux._own == sum(stream % 2 == mux.role.value % 2 for stream in streams)
    assert not mux._turns._little.keys() & mux._turns._bulk.keys()
    for stream in streams.values():
        ledger, outbound = stream.ledger, stream.outbound
        assert 0 <= ledger.delivered <= ledger.received <= ledger.limit + stream.inbound_finished
        assert ledger.limit - ledger.delivered <= mux.window, "granted more than the window"
        assert 0 <= outbound.acknowledged <= outbound.sent
        ends = 2 if stream.was_reset else outbound.end is not None
        assert outbound.sent <= outbound.limit + ends, "sent more than was granted"
        assert outbound.queued == sum(len(data) for _, data in outbound._waiting) - outbound._taken_of_first
        assert len(outbound._kept) <= KEPT_LIMIT + stream.was_reset
        kept = list(outbound._kept)
        assert all(frame.end > outbound.acknowledged for frame in kept), "kept for nothing"
        in_part = outbound.acknowledged - kept[0].offset if kept and not stream.was_reset else 0
        if not stream.was_reset:
            size = sum(frame.end - frame.offset for frame in kept)
            assert size == outbound.kept + in_part, "not all is kept, or more than that"
        assert outbound._again_size == sum(frame.end - frame.offset for frame in outbound._again)
        assert set(map(id, outbound._again)) <= set(map(id, kept)), "to be sent again, but not kept"
        assert outbound.on_the_way + in_part >= 0


def check_idle(mux: Mux) -> None:
    """Nothing waits to be sent."""
    assert mux.next_message() is None
    assert not (mux._answers or mux._pings or mux._credits or mux._opens or mux._resets)
    assert not (mux._turns._little or mux._turns._bulk)
    assert mux._introduction is None and mux._duty is None and mux._goodbye is None
    assert not any(stream.was_reset for stream in mux._streams.values()), "a tombstone stays for ever"
