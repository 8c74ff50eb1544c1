"""Keys are reconciled once each, one at a time per key, and again after failures."""

from __future__ import annotations

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from aranya.kube.errors import Conflict, TooManyRequests, Unreachable
from aranya.kube.queue import ReconcileQueue


class Work:
    """A reconcile whose runs a test ends by hand."""

    def __init__(self) -> None:
        self.began: list[str] = []
        self.open: dict[str, Deferred[float | None]] = {}

    async def reconcile(self, key: str) -> float | None:
        assert key not in self.open, "two workers on one key"
        self.began.append(key)
        waiting = self.open[key] = Deferred()
        try:
            return await waiting
        finally:
            del self.open[key]


class ReconcileQueueTests(SynchronousTestCase):
    """The queue on a clock."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.work = Work()
        self.queue: ReconcileQueue[str] = ReconcileQueue(
            self.clock, self.work.reconcile, concurrency=2, jitter=lambda: 1.0
        )
        self.queue.startService()

    def end(self, key: str, again: float | None = None) -> None:
        self.work.open[key].callback(again)

    def break_off(self, key: str, error: Exception) -> None:
        self.work.open[key].errback(error)

    def test_one_worker_per_key(self) -> None:
        """Additions during a run, however many, are one more run after it."""
        self.queue.add("a")
        self.queue.add("a")
        self.queue.add("a", 0.0)
        self.assertEqual(self.work.began, ["a"])
        self.end("a")
        self.assertEqual(self.work.began, ["a", "a"])
        self.end("a")
        self.clock.advance(100)
        self.assertEqual(self.work.began, ["a", "a"])

    def test_some_at_a_time(self) -> None:
        """No more keys run than there are workers; the rest wait in order."""
        for key in "abcd":
            self.queue.add(key)
        self.assertEqual((self.work.began, len(self.queue), self.queue.busy), (["a", "b"], 2, 2))
        self.end("b")
        self.end("a")
        self.assertEqual(self.work.began, ["a", "b", "c", "d"])

    def test_later(self) -> None:
        """A key comes at the soonest moment that was wished."""
        self.queue.add("a", 10)
        self.queue.add("a", 5)
        self.queue.add("a", 7)
        self.clock.advance(4.9)
        self.assertEqual(self.work.began, [])
        self.clock.advance(0.2)
        self.assertEqual(self.work.began, ["a"])

    def test_come_again(self) -> None:
        """A reconcile that gives seconds is called again after them."""
        self.queue.add("a")
        self.end("a", 30.0)
        self.clock.advance(29)
        self.assertEqual(len(self.work.began), 1)
        self.clock.advance(1.1)
        self.assertEqual(len(self.work.began), 2)

    def test_backoff(self) -> None:
        """Failures double the wait up to the cap; a success forgets them."""
        self.queue.add("a")
        waits = []
        for _ in range(12):
            self.break_off("a", Unreachable("away"))
            [call] = self.clock.getDelayedCalls()
            waits.append(round(call.getTime() - self.clock.seconds(), 3))
            self.clock.advance(waits[-1] + 0.001)
        self.assertEqual(waits[:4], [0.2, 0.4, 0.8, 1.6])
        self.assertEqual(waits[-2:], [60.0, 60.0])
        self.assertEqual(self.queue.failing, 1)
        self.end("a")
        self.assertEqual(self.queue.failing, 0)

    def test_additions_do_not_defeat_the_backoff(self) -> None:
        """A failing key that is added comes soon, but not at once."""
        self.queue.add("a")
        self.queue.add("a")
        self.break_off("a", Conflict(409))
        self.queue.add("a")
        self.assertEqual(len(self.work.began), 1)
        self.clock.advance(0.21)
        self.assertEqual(len(self.work.began), 2)

    def test_additions_wait_longer_with_each_failure(self) -> None:
        """A key that fails for long is not tried at each addition, but within some seconds."""
        self.queue.add("a")
        waits = []
        for _ in range(30):
            self.queue.add("a")
            self.break_off("a", Unreachable("away"))
            self.queue.add("a")
            [call] = self.clock.getDelayedCalls()
            waits.append(round(call.getTime() - self.clock.seconds(), 3))
            self.clock.advance(waits[-1] + 0.001)
        self.assertEqual([0.2, 0.4, 0.6], waits[:3])
        self.assertEqual(5.0, waits[-1])

    def test_retry_after(self) -> None:
        """A server that says when to come again is obeyed."""
        self.queue.add("a")
        self.break_off("a", TooManyRequests(429, retry_after=9.0))
        self.clock.advance(8.9)
        self.assertEqual(len(self.work.began), 1)
        self.clock.advance(0.2)
        self.assertEqual(len(self.work.began), 2)

    def test_bug(self) -> None:
        """A reconcile that breaks is logged with its failure and tried again."""
        self.queue.add("a")
        self.break_off("a", ZeroDivisionError())
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.clock.advance(1)
        self.assertEqual(len(self.work.began), 2)

    def test_many_that_end_at_once(self) -> None:
        """A thousand keys whose work is done at once do not exhaust the stack."""
        done: list[int] = []

        async def reconcile(key: int) -> None:
            done.append(key)

        queue = ReconcileQueue(self.clock, reconcile)
        for key in range(1000):
            queue.add(key)
        self.assertEqual(done, [])
        queue.startService()
        self.assertEqual(done, list(range(1000)))

    def test_stop(self) -> None:
        """Stopping cancels what runs, waits for its end, and starts nothing more."""
        for key in "abc":
            self.queue.add(key)
        self.queue.add("d", 5)
        stopped = self.queue.stopService()
        self.successResultOf(stopped)
        self.assertEqual(self.work.open, {})
        self.clock.advance(100)
        self.assertEqual(self.work.began, ["a", "b"])
        self.assertEqual(self.clock.getDelayedCalls(), [])
