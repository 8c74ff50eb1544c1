"""Two candidates, one Lease: never two leaders, and soon again one."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from aranya.election import Decision, Election, Record, Timing, decide
from aranya.kube.memory import MemoryApiServer
from aranya.kube.memory_requests import Refusal, Request
from aranya.kube.objects import LEASES

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


class DecideTests(SynchronousTestCase):
    """The rule, as a table."""

    def test_table(self) -> None:
        """Free is taken, mine is renewed, another's is waited for until it was silent for its time."""
        theirs = Record("other", 15, NOON, NOON, 1)
        for record, now, expected in (
            (None, 0.0, Decision.TAKE),
            (Record("", 1), 0.0, Decision.TAKE),
            (Record("me", 15), 99.0, Decision.RENEW),
            (theirs, 114.9, Decision.WAIT),
            (theirs, 115.0, Decision.TAKE),
        ):
            self.assertIs(decide(record, 100.0, now, "me"), expected)

    def test_record_round_trip(self) -> None:
        """What is written into a Lease is what is read from it."""
        record = Record("me", 15, NOON, NOON + timedelta(microseconds=5), 3)
        self.assertEqual(Record.of({"spec": record.spec()}), record)
        self.assertEqual(Record.of({}), Record())

    def test_timing_must_be_safe(self) -> None:
        """Times with which two could lead at once are refused."""
        with self.assertRaises(ValueError):
            Timing(lease=10, renew=10, retry=2)


class Candidate:
    """One replica and what it was told."""

    def __init__(self, world: World, name: str) -> None:
        self.told: list[str] = []
        self.stopping: Deferred[None] | None = None
        self.world = world
        self.name = name
        self.election = Election(
            world.server.client(user_agent=name),
            world.clock,
            "aranya",
            "aranya",
            name,
            self.started,
            self.stopped,
            now=lambda: NOON + timedelta(seconds=world.clock.seconds()),
            jitter=lambda: 0.5,
        )

    def started(self) -> None:
        self.told.append("started")
        self.world.leaders.append(self.name)
        assert len(self.world.leaders) == 1, "two leaders"

    def stopped(self, reason: str) -> Deferred[None] | None:
        self.told.append(f"stopped: {reason}")
        self.world.leaders.remove(self.name)
        return self.stopping


class World:
    """The server and its clock."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.server = MemoryApiServer(self.clock)
        self.leaders: list[str] = []
        self.deaf: set[str] = set()
        self.server.before = self.refuse_the_deaf

    def refuse_the_deaf(self, request: Request) -> None:
        if request.headers.get("user-agent") in self.deaf:
            raise Refusal(500, "InternalError", "etcd has no leader")

    def candidate(self, name: str) -> Candidate:
        return Candidate(self, name)

    def wait(self, seconds: float) -> None:
        for _ in range(int(seconds * 2)):
            self.clock.advance(0.5)

    def lease(self) -> Record:
        lease = self.server.stored(LEASES, "aranya", "aranya")
        assert lease is not None
        return Record.of(lease)


class ElectionTests(SynchronousTestCase):
    """The service on a clock, with the API server in memory."""

    def setUp(self) -> None:
        self.world = World()
        self.one = self.world.candidate("one")
        self.two = self.world.candidate("two")

    def test_first_comes_first(self) -> None:
        """The first candidate leads at once and writes client-go's fields; the second waits."""
        self.one.election.startService()
        self.two.election.startService()
        self.world.wait(60)
        self.assertEqual((self.one.told, self.two.told), (["started"], []))
        self.assertEqual(self.two.election.leader, "one")
        record = self.world.lease()
        self.assertEqual((record.holder, record.duration, record.transitions), ("one", 15, 0))
        self.assertEqual(record.acquired, NOON)
        assert record.renewed is not None
        self.assertGreater(record.renewed, NOON + timedelta(seconds=55))

    def test_clean_stop_hands_over(self) -> None:
        """A leader that stops gives the lease away, and the next leads within a retry period."""
        self.one.election.startService()
        self.two.election.startService()
        self.world.wait(5)
        self.successResultOf(self.one.election.stopService())
        self.assertEqual(self.one.told, ["started", "stopped: stopping"])
        self.assertEqual((self.world.lease().holder, self.world.lease().duration), ("", 1))
        self.world.wait(3)
        self.assertEqual(self.two.told, ["started"])
        self.assertEqual(self.world.lease().transitions, 1)

    def test_released_only_after_the_work_ended(self) -> None:
        """While a stopping leader's work goes on, the lease is still its own."""
        self.one.election.startService()
        self.one.stopping = Deferred()
        stopped = self.one.election.stopService()
        self.assertNoResult(stopped)
        self.assertEqual(self.world.lease().holder, "one")
        self.one.stopping.callback(None)
        self.successResultOf(stopped)
        self.assertEqual(self.world.lease().holder, "")

    def test_silent_leader_is_replaced(self) -> None:
        """A leader cut off from the server stops after the deadline, before the other starts."""
        self.one.election.startService()
        self.two.election.startService()
        self.world.wait(5)
        self.world.deaf = {"one"}
        self.world.wait(8)
        self.assertEqual((self.one.told, self.two.told), (["started"], []))
        self.world.wait(2.5)
        self.assertEqual(len(self.one.told), 2)
        self.assertIn("not renewed in time", self.one.told[1])
        self.assertEqual(self.two.told, [])
        self.world.wait(8)
        self.assertEqual(self.two.told, ["started"])
        self.world.deaf = set()
        self.world.wait(60)
        self.assertEqual(len(self.one.told), 2)

    def test_short_outage(self) -> None:
        """A server that is away for less than the deadline costs nobody the leadership."""
        self.one.election.startService()
        self.two.election.startService()
        self.world.wait(5)
        self.world.server.go_away()
        self.world.wait(6)
        self.world.server.come_back()
        self.world.wait(30)
        self.assertEqual((self.one.told, self.two.told), (["started"], []))

    def test_usurped(self) -> None:
        """A leader that finds another's name in the lease stops at once."""
        self.one.election.startService()
        self.world.wait(5)
        kube = self.world.server.client()
        patch = {"spec": {"holderIdentity": "somebody"}}
        self.successResultOf(Deferred.fromCoroutine(kube.patch(LEASES, "aranya", "aranya", patch)))
        self.world.wait(2.5)
        self.assertEqual(self.one.told, ["started", "stopped: somebody holds the lease"])

    def test_lease_deleted(self) -> None:
        """A leader whose lease somebody deleted writes it again and goes on."""
        self.one.election.startService()
        self.world.wait(5)
        kube = self.world.server.client()
        self.successResultOf(Deferred.fromCoroutine(kube.delete(LEASES, "aranya", "aranya")))
        self.world.wait(5)
        self.assertEqual((self.one.told, self.world.lease().holder), (["started"], "one"))

    def test_does_not_lead_again_before_the_work_ended(self) -> None:
        """After a loss a candidate asks for the lease only when its own work has ended."""
        self.one.election.startService()
        self.world.wait(1)
        self.one.stopping = Deferred()
        self.world.server.go_away()
        self.world.wait(20)
        self.world.server.come_back()
        self.world.wait(30)
        self.assertEqual(len(self.one.told), 2)
        self.one.stopping.callback(None)
        self.world.wait(3)
        self.assertEqual(self.one.told[2:], ["started"])

    def test_stop_while_the_work_ends(self) -> None:
        """Stopping after a loss waits for the work that ends, without cutting it short."""
        self.one.election.startService()
        self.world.wait(1)
        cancelled: list[bool] = []
        self.one.stopping = Deferred(lambda _: cancelled.append(True))
        self.world.server.go_away()
        self.world.wait(20)
        stopped = self.one.election.stopService()
        self.assertNoResult(stopped)
        self.one.stopping.callback(None)
        self.successResultOf(stopped)
        self.assertEqual(cancelled, [])

    def test_stop_while_standing_by(self) -> None:
        """A candidate that does not lead leaves the lease alone and no timer behind."""
        self.one.election.startService()
        self.two.election.startService()
        self.world.wait(3)
        self.successResultOf(self.two.election.stopService())
        self.assertEqual((self.two.told, self.world.lease().holder), ([], "one"))
        self.successResultOf(self.one.election.stopService())
        self.assertEqual(self.world.clock.getDelayedCalls(), [])

    def test_cannot_start(self) -> None:
        """A leader whose work cannot start lets another try."""
        self.one.election._started_leading = lambda: 1 // 0  # type: ignore[assignment,return-value]
        self.one.election._stopped_leading = lambda reason: None
        self.one.election.startService()
        self.two.election.startService()
        self.world.wait(5)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.assertEqual(self.two.told, ["started"])

    def test_broken_attempts(self) -> None:
        """A bug in an attempt is logged, and counts as an attempt that failed: never a leader for ever."""
        self.one.election.startService()
        self.world.wait(5)
        kube = self.one.election._kube
        get = kube.get
        kube.get = lambda *_: 1 // 0  # type: ignore[method-assign,assignment,return-value]
        self.world.wait(12)
        self.assertEqual(2, len(self.one.told))
        self.assertGreater(len(self.flushLoggedErrors(ZeroDivisionError)), 3)
        kube.get = get  # type: ignore[method-assign]
        self.world.wait(12)
        self.assertEqual(self.one.told[2:], ["started"])

    @settings(max_examples=25, deadline=None)
    @given(
        st.lists(
            st.tuples(
                st.sampled_from(["deaf one", "deaf two", "deaf both", "hear", "away", "back"]),
                st.integers(1, 25),
            ),
            max_size=8,
        )
    )
    def test_never_two(self, weather: list[tuple[str, int]]) -> None:
        """Whoever is cut off when, there are never two leaders, and afterwards there is one."""
        world = World()
        one, two = world.candidate("one"), world.candidate("two")
        one.election.startService()
        two.election.startService()
        for what, seconds in weather:
            if what == "away":
                world.server.go_away()
            elif what == "back":
                world.server.come_back()
            elif what == "hear":
                world.deaf = set()
            else:
                who = what.removeprefix("deaf ")
                world.deaf = {"one", "two"} if who == "both" else {who}
            world.wait(seconds)
        world.deaf = set()
        world.server.come_back()
        world.wait(20)
        self.assertEqual(len(world.leaders), 1)
