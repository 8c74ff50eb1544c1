"""Two muxes under random sends, deliveries, cuts and returns: nothing lost, nothing twice."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

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
from test.tether.wire.ends import End, Half, World
from tether.wire.frames import Duty

#: More than ever waits.
ALL = 1 << 30

SIDES = st.integers(0, 1)
WHICH = st.integers(0, 7)
LANES = st.sampled_from((0, 0, 1, 2, 3))
#: Small windows bring every border near.
WINDOWS = st.sampled_from(((64, 64), (64, 1000), (1000, 64)))
#: The window for streams that leave room for others.
LARGE = (600_000, 600_000)
#: In bytes, or in sixteenths of the window.
SIZES = st.one_of(st.integers(1, 40), st.integers(-20, -1), st.integers(-8, -3))
LIMITS = st.one_of(st.integers(1, 70), st.just(65536))
COUNTS = st.integers(1, 6)
ARRIVING = st.tuples(st.integers(0, 3), st.integers(0, 3))
#: Whether an end forgets the other, and how. Mostly not, or nothing else would be tried.
LOSSES = st.sampled_from((*[None] * 10, "abandon", "restart", "forget", "abandon late", "another", "another"))
ACTS = st.sampled_from(("open", "hand_on", "hand_on", "hand_on", "finish", "reset"))


#: The course of a stream: what is done, and whether by who opened it (0) or by the other (1).
COURSE = (
    ("say", 0),
    ("finish", 0),
    ("go", 0),
    ("hear", 1),
    ("say", 1),
    ("finish", 1),
    ("go", 1),
    ("hear", 0),
    ("go", 0),
    ("hear", 1),
    ("go", 1),
    ("hear", 0),
    ("go", 0),
)


@dataclass(frozen=True)
class Script:
    """Which part of the course a stream takes at once."""

    which: int
    request: int
    sizes: tuple[int, int]
    until: int
    without: frozenset[int]


SCRIPTS = st.builds(
    Script,
    which=WHICH,
    request=st.sampled_from((0, 0, 0, 70_000)),
    sizes=st.tuples(SIZES, SIZES),
    until=st.integers(0, len(COURSE)),
    without=st.frozensets(st.integers(0, len(COURSE) - 1), max_size=3),
)


class Theme(Enum):
    """What a run is about: what is rare among everything is looked for by itself."""

    EVERYTHING = auto()
    HELLOS = auto()  # lines that come and go, and what is done meanwhile
    BULK = auto()  # streams that hold each other back


def during(*themes: Theme, when: Callable[[Flaps], object] = lambda run: True) -> Callable[[Any], Any]:
    """A rule of these themes and of ``EVERYTHING``, for when there is something to do."""
    return precondition(lambda run: run.theme in (Theme.EVERYTHING, *themes) and bool(when(run)))


class Flaps(RuleBasedStateMachine):
    """Everything that may happen to two ends, in any order."""

    world: World
    theme: Theme

    @initialize(
        theme=st.sampled_from(Theme),
        windows=WINDOWS,
        hellos=st.sampled_from((3, 3, 3, 2, 1)),
        first=SIDES,
        scripts=st.lists(SCRIPTS, max_size=3),
    )
    def begin(
        self, theme: Theme, windows: tuple[int, int], hellos: int, first: int, scripts: list[Script]
    ) -> None:
        self.theme = theme
        self.world = World(LARGE if theme is Theme.BULK else windows)
        self.join()
        for side in (first, 1 - first)[:hellos]:
            self.world.ends[side].pull(1)
            self.world.ends[1 - side].take()
        if hellos == 3:
            self.world.exchange(65536)
        for script in scripts:
            self.talk(script)

    def join(self) -> None:
        """Both take a new line."""
        line = self.world.connect()
        for end in self.world.ends:
            end.attach(line)

    def ends(self, fits: Callable[[End], object]) -> list[End]:
        """The ends that are as asked for."""
        return [end for end in self.world.ends if fits(end)]

    def halves(self, fits: Callable[[Half], object] = lambda half: True) -> list[tuple[End, int]]:
        """The live streams of either end that are as asked for."""
        return [
            (end, stream)
            for end in self.world.ends
            for stream in end.live()
            if fits(end.talks[stream].halves[end])
        ]

    def act(self, act: str, which: int) -> None:
        """Something that needs no line, if it is possible."""
        if act == "open":
            if ends := self.ends(lambda end: end.may_open):
                ends[which % len(ends)].open()
            return
        halves = self.halves(
            lambda half: half.backlog if act == "hand_on" else not (act == "finish" and half.finished)
        )
        if halves:
            end, stream = halves[which % len(halves)]
            match act:
                case "hand_on":
                    end.hand_on(stream, ALL)
                case "finish":
                    end.finish(stream)
                case _:
                    end.reset(stream)

    # ---- lines

    @during()
    @rule(arriving=ARRIVING)
    def cut(self, arriving: tuple[int, int]) -> None:
        """The lines are cut; what is on its way may still be heard."""
        for line in {end.line for end in self.world.ends if end.line is not None}:
            line.cut(arriving)

    @during(when=lambda run: run.ends(lambda end: end.line is not None))
    @rule(which=WHICH)
    def notice(self, which: int) -> None:
        """One end finds its line gone."""
        ends = self.ends(lambda end: end.line is not None)
        ends[which % len(ends)].detach()

    @during(Theme.HELLOS)
    @rule()
    def dial(self) -> None:
        """The agent takes a new line of which the controller hears later, or never."""
        agent = self.world.ends[1]
        agent.attach(self.world.connect())
        agent.pull(1)

    @during(Theme.HELLOS, when=lambda run: run.world.free_lines(run.world.ends[0]))
    @rule(which=WHICH)
    def accept(self, which: int) -> None:
        """The controller takes a line, not always the newest."""
        controller = self.world.ends[0]
        lines = self.world.free_lines(controller)
        controller.attach(lines[which % len(lines)])
        controller.take()

    @during(Theme.HELLOS, Theme.BULK)
    @rule(
        side=SIDES,
        loss=LOSSES,
        order=st.permutations(range(7)),
        acts=st.lists(st.tuples(st.integers(0, 6), ACTS, WHICH), max_size=4),
    )
    def meet(self, side: int, loss: str | None, order: list[int], acts: list[tuple[int, str, int]]) -> None:
        """A new line, Hellos in any order or not at all, and what else is done meanwhile."""
        if loss == "abandon":
            self.world.ends[side].abandon()
        elif loss == "restart":
            self.world.restart(side)
        elif loss == "forget":
            # As a controller does whose grace is over: the next link to the same agent is a new mux.
            self.world.restart(0, self.world.ends[0].mux.instance)
        elif loss == "another":
            self.world.hand_over()
        line = self.world.connect()
        for place, beat in enumerate(order):
            for when, act, which in acts:
                if when == place:
                    self.act(act, which)
            end = self.world.ends[beat % 2]
            if beat < 2:
                if end.may_attach(line):
                    end.attach(line)
            elif beat < 4:
                end.pull(1)
            elif beat < 6:
                end.take()
            elif loss == "abandon late":
                self.world.ends[side].abandon()

    # ---- messages

    @during(Theme.HELLOS, Theme.BULK, when=lambda run: run.ends(lambda end: end.line is not None))
    @rule(which=WHICH, limit=LIMITS, count=COUNTS)
    def pull(self, which: int, limit: int, count: int) -> None:
        ends = self.ends(lambda end: end.line is not None)
        for _ in range(count):
            ends[which % len(ends)].pull(limit)

    @during(Theme.HELLOS, Theme.BULK, when=lambda run: run.ends(lambda end: end.may_take))
    @rule(which=WHICH, count=COUNTS)
    def take(self, which: int, count: int) -> None:
        ends = self.ends(lambda end: end.may_take)
        for _ in range(count):
            ends[which % len(ends)].take()

    @during(Theme.HELLOS, Theme.BULK, when=lambda run: run.world.joined)
    @rule(limit=LIMITS)
    def exchange(self, limit: int) -> None:
        """All there is goes and comes, and nothing is handed on."""
        self.world.exchange(max(limit, 16, self.world.windows[0] // 8))

    @during(Theme.HELLOS, when=lambda run: run.world.joined)
    @rule(limit=LIMITS)
    def settle(self, limit: int) -> None:
        """All there is goes and comes, and is handed on."""
        self.world.settle(max(limit, 16, self.world.windows[0] // 8))

    # ---- streams

    @during(Theme.HELLOS, Theme.BULK, when=lambda run: run.ends(lambda end: end.may_open))
    @rule(script=SCRIPTS)
    def talk(self, script: Script) -> None:
        """A stream that comes as far as its script."""
        if not (ends := self.ends(lambda end: end.may_open)):
            return
        opener = ends[script.which % len(ends)]
        stream = opener.open(script.request)
        for number, (act, role) in enumerate(COURSE[: script.until]):
            end = self.world.ends[opener.side ^ role]
            if number in script.without:
                continue
            if act == "go":
                while end.pull(65536):
                    pass
                while self.world.ends[1 - end.side].take():
                    pass
            elif stream not in end.live():
                continue
            elif act == "say":
                end.say(stream, 0, script.sizes[role])
            elif act == "finish":
                end.finish(stream)
            else:
                end.hand_on(stream, ALL)

    @during(Theme.HELLOS, Theme.BULK, when=lambda run: run.halves(lambda half: not half.finished))
    @rule(which=WHICH, lane=LANES, size=SIZES)
    def say(self, which: int, lane: int, size: int) -> None:
        halves = self.halves(lambda half: not half.finished)
        end, stream = halves[which % len(halves)]
        end.say(stream, lane, size)

    @during(Theme.BULK, when=lambda run: run.halves(lambda half: half.backlog))
    @rule(which=WHICH, count=st.integers(1, 40))
    def hand_on(self, which: int, count: int) -> None:
        halves = self.halves(lambda half: half.backlog)
        end, stream = halves[which % len(halves)]
        end.hand_on(stream, count)

    @during(Theme.HELLOS, Theme.BULK, when=lambda run: run.halves())
    @rule(act=ACTS, which=WHICH)
    def do(self, act: str, which: int) -> None:
        self.act(act, which)

    @during(Theme.HELLOS, when=lambda run: run.ends(lambda end: end.line is not None))
    @rule(which=WHICH, token=st.integers(1, 99), duty=st.sampled_from(Duty))
    def ping(self, which: int, token: int, duty: Duty) -> None:
        ends = self.ends(lambda end: end.line is not None)
        ends[which % len(ends)].ping(token)
        ends[which % len(ends)].tell_duty(duty)

    # ---- what must hold

    @invariant()
    def bounds(self) -> None:
        self.world.check()

    def teardown(self) -> None:
        """All that was said is heard; and when all have finished, nothing is left."""
        if not hasattr(self, "world"):
            return
        if not self.world.joined:
            self.join()
        self.world.settle(65536)
        for end in self.world.ends:
            for stream in end.live():
                end.finish(stream)
        self.world.settle(65536)
        for end in self.world.ends:
            assert not len(end.mux) and not end.live()


class ResumeTests(SynchronousTestCase):
    """Links come and go, streams do not notice."""

    def test_nothing_is_lost(self) -> None:
        """Whatever happens, all that was said is heard in order and once, and all ends alike at both ends."""
        run_state_machine_as_test(Flaps, settings=thorough(1800, steps=20))
