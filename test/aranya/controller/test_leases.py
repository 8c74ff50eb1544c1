"""Leases of Nodes: spread, renewed, never backwards."""

from __future__ import annotations

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from aranya.controller.leases import RENEW_EVERY, NodeLeases
from aranya.interfaces import Object
from aranya.kube.memory import MemoryApiServer
from aranya.kube.objects import LEASES, parse_time

NAMESPACE = "kube-node-lease"


class LeaseTests(SynchronousTestCase):
    """``NodeLeases`` on a clock."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.advance(1_790_000_000)
        self.server = MemoryApiServer(self.clock)
        self.random = [number / 17 % 1 for number in range(1, 18)] * 200
        self.leases = self.make()

    def make(self) -> NodeLeases:
        leases = NodeLeases(self.server.client(), self.clock, "edge", jitter=self.random.pop)
        leases.startService()
        self.addCleanup(leases.stopService)
        return leases

    def pass_time(self, seconds: float) -> None:
        for _ in range(int(seconds * 10)):
            self.clock.advance(0.1)

    def stored(self, name: str = "a") -> Object:
        found = self.server.stored(LEASES, NAMESPACE, name)
        assert found is not None
        return found

    def puts(self) -> int:
        return sum(request.method == "PUT" for request in self.server.requests)

    def test_made_and_renewed(self) -> None:
        """A Lease is made at once and renewed every ten seconds, later each time."""
        self.leases.keep("a", "uid-a")
        self.pass_time(1)
        first = parse_time(self.stored()["spec"]["renewTime"])
        self.pass_time(RENEW_EVERY * 10)
        self.assertTrue(9 <= self.puts() <= 11)
        second = parse_time(self.stored()["spec"]["renewTime"])
        assert first is not None and second is not None
        self.assertGreater(second, first)

    def test_never_backwards(self) -> None:
        """A Lease whose time is ahead of our clock is moved on all the same."""
        self.leases.keep("a", "uid-a")
        self.pass_time(1)
        ahead = self.stored()
        ahead["spec"]["renewTime"] = "2099-01-01T00:00:00.000000Z"
        self.successResultOf(self.ensure(ahead))
        self.pass_time(RENEW_EVERY * 2 + 2)
        self.assertTrue(self.stored()["spec"]["renewTime"].startswith("2099-01-01T00:00:00.00000"))
        self.assertNotEqual("2099-01-01T00:00:00.000000Z", self.stored()["spec"]["renewTime"])

    def ensure(self, lease: Object) -> object:
        return self.server.client().replace(LEASES, NAMESPACE, lease["metadata"]["name"], lease)

    def test_deleted(self) -> None:
        """A Lease that somebody deletes is made again."""
        self.leases.keep("a", "uid-a")
        self.pass_time(1)
        self.successResultOf(self.server.client().delete(LEASES, NAMESPACE, "a"))
        self.pass_time(RENEW_EVERY + 1)
        self.assertEqual("uid-a", self.stored()["metadata"]["ownerReferences"][0]["uid"])

    def test_new_node(self) -> None:
        """A Node made anew gets its Lease at once, owned by it."""
        self.leases.keep("a", "uid-a")
        self.pass_time(1)
        self.leases.keep("a", "uid-b")
        self.pass_time(1)
        self.assertEqual("uid-b", self.stored()["metadata"]["ownerReferences"][0]["uid"])

    def test_spread_after_a_restart(self) -> None:
        """What a former leader renewed lately is renewed in turn, not all at once."""
        for number in range(40):
            self.leases.keep(f"n{number}", "uid")
        self.pass_time(1)
        self.successResultOf(self.leases.stopService())
        leases = self.make()
        for number in range(40):
            leases.keep(f"n{number}", "uid")
        before = self.puts()
        self.pass_time(1)
        self.assertLess(self.puts() - before, 15)
        self.pass_time(RENEW_EVERY)
        self.assertGreaterEqual(self.puts() - before, 40)

    def test_outage(self) -> None:
        """After an outage all Leases are renewed within seconds."""
        self.leases.keep("a", "uid-a")
        self.pass_time(1)
        self.server.go_away()
        self.pass_time(25)
        self.server.come_back()
        before = self.stored()["spec"]["renewTime"]
        self.pass_time(4)
        self.assertNotEqual(before, self.stored()["spec"]["renewTime"])

    def test_drop(self) -> None:
        """A dropped Lease is deleted and not renewed; one of somebody else stays."""
        self.leases.keep("a", "uid-a")
        self.pass_time(1)
        self.successResultOf(self.leases.drop("a"))
        self.assertIsNone(self.server.stored(LEASES, NAMESPACE, "a"))
        body: Object = {"metadata": {"name": "b", "namespace": NAMESPACE}, "spec": {"holderIdentity": "b"}}
        self.successResultOf(self.server.client().create(LEASES, NAMESPACE, body))
        self.successResultOf(self.leases.drop("b"))
        self.assertIsNotNone(self.server.stored(LEASES, NAMESPACE, "b"))
        self.successResultOf(self.leases.drop("never"))
        self.pass_time(20)
        self.assertIsNone(self.server.stored(LEASES, NAMESPACE, "a"))
