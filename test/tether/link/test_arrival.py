"""Tests for ``tether.link.arrival``."""

from __future__ import annotations

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from test.tether.link.test_link import Acceptance
from tether.link.arrival import Arrival, Dismissal
from tether.link.link import PeerIntroduction, Tether
from tether.link.memory import MemoryTransport, Watch, Wire
from tether.wire import frames
from tether.wire.mux import Role


class ArrivalTests(SynchronousTestCase):
    """An agent dials; the controller chooses by its Hello."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.watch = Watch()
        self.agent_watch = Watch()
        self.agent = Tether(
            Role.AGENT,
            self.clock,
            PeerIntroduction("arhat", instance=b"a" * 16, host_boot_id="boot"),
            Acceptance(),
            self.agent_watch,
        )
        self.controller = Tether(
            Role.CONTROLLER,
            self.clock,
            PeerIntroduction("aranya", instance=b"c" * 16),
            Acceptance(),
            self.watch,
        )
        self.seen: list[PeerIntroduction] = []
        self.answer: Tether | Dismissal | None = self.controller

    def choose(self, introduction: PeerIntroduction, transport: object) -> Tether | Dismissal:
        self.seen.append(introduction)
        assert self.answer is not None, "no answer"
        return self.answer

    def dial(self) -> Wire:
        """A connection between the agent and an arrival, moved until quiet."""
        wire = Wire(
            MemoryTransport(self.clock),
            MemoryTransport(self.clock),
            Arrival(self.clock, self.choose),
            self.agent.receiver(),
        )
        wire.connect()
        while wire.step():
            pass
        return wire

    def test_chosen(self) -> None:
        """The chosen tether gets the connection, Hello and all."""
        wire = self.dial()
        self.assertEqual([each.host_boot_id for each in self.seen], ["boot"])
        self.assertEqual((self.watch.ups, self.agent_watch.ups), ([False], [False]))
        self.assertTrue(self.controller.is_up)
        wire.cut("snapped")
        self.assertEqual(self.watch.downs, [("snapped", True)])

    def test_dismissed(self) -> None:
        """A clone is told why, and not to come back."""
        self.answer = Dismissal("another device has this certificate", False)
        self.dial()
        self.assertEqual(self.agent_watch.ups, [])
        self.assertEqual(self.agent_watch.downs, [("another device has this certificate", False)])

    def test_failing_choice(self) -> None:
        """A failing choice is an internal error to the peer, and logged."""
        self.answer = None
        self.dial()
        self.assertEqual(self.agent_watch.downs, [("internal error", True)])
        self.assertEqual(len(self.flushLoggedErrors(AssertionError)), 1)

    def test_silent(self) -> None:
        """A connection without a Hello is dismissed in time."""
        transport = MemoryTransport(self.clock)
        Arrival(self.clock, self.choose).connected(transport)
        self.clock.advance(10)
        self.assertEqual(transport.closed_with, (1008, "no Hello within 10 s"))

    def test_wait(self) -> None:
        """It is told once that an arrival waits no more: it said Hello, was dismissed, or is gone."""
        hello = frames.encode([self.agent._introduction.hello()])
        for answer, said in (
            (self.controller, hello),
            (Dismissal("no", True), hello),
            (None, b""),
            (None, None),
        ):
            self.answer = answer
            told: list[bool] = []
            arrival = Arrival(self.clock, self.choose, lambda told=told: told.append(True))
            arrival.connected(MemoryTransport(self.clock))
            self.assertEqual(told, [])
            if said is not None:
                arrival.message_received(said)
                self.assertEqual(told, [True])
            arrival.connection_lost("over")
            self.assertEqual(told, [True])
        arrival = Arrival(self.clock, self.choose, lambda: told.append(True))
        arrival.connected(MemoryTransport(self.clock))
        self.clock.advance(10)
        self.assertEqual(told, [True, True])

    def test_garbage(self) -> None:
        """A connection that starts with anything else is dismissed."""
        for first in (b"\xff\xff", b"", frames.encode([frames.Ping(1)])):
            transport = MemoryTransport(self.clock)
            arrival = Arrival(self.clock, self.choose)
            arrival.connected(transport)
            arrival.message_received(first)
            self.assertEqual(transport.closed_with[0], 1008)
            arrival.connection_lost("over")
        self.assertEqual(self.clock.getDelayedCalls(), [])
