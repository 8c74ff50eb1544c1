"""An informer's cache follows the server through all weathers."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.logger import globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from aranya.interfaces import Object
from aranya.kube.informer import Informer
from aranya.kube.memory import MemoryApiServer
from aranya.kube.objects import CONFIGMAPS, ObjectKey, new_object


class World:
    """A server, a client that writes, and an informer that follows."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.server = MemoryApiServer(self.clock)
        self.kube = self.server.client()
        self.informer = Informer(self.server.client(), self.clock, CONFIGMAPS, "ns", jitter=lambda: 0.5)
        self.mirror: dict[ObjectKey, Object] = {}
        self.told: list[tuple[str, str]] = []
        self.informer.subscribe(self.heard)

    def heard(self, key: ObjectKey, old: Object | None, new: Object | None) -> None:
        assert self.mirror.get(key) == old, "an event that does not follow from the last"
        if new is None:
            del self.mirror[key]
        else:
            self.mirror[key] = new
        self.told.append((key.name, "-" if new is None else "+" if old is None else "*"))

    def do(self, work: Coroutine[Any, Any, Any]) -> None:
        Deferred.fromCoroutine(work).addErrback(lambda _: None)

    def make(self, name: str, **data: str) -> None:
        body = new_object(CONFIGMAPS, {"name": name}, data=data)
        self.do(self.kube.create(CONFIGMAPS, "ns", body))

    def change(self, name: str, value: str) -> None:
        self.do(self.kube.patch(CONFIGMAPS, "ns", name, {"data": {"value": value}}))

    def remove(self, name: str) -> None:
        self.do(self.kube.delete(CONFIGMAPS, "ns", name))

    def names(self) -> list[str]:
        return sorted(key.name for key in self.informer.cache)

    def agrees(self) -> bool:
        stored = {found["metadata"]["name"]: found for found in self.server.all_stored(CONFIGMAPS)}
        seen = {key.name: found for key, found in self.informer.cache.items()}
        return stored == seen == {key.name: found for key, found in self.mirror.items()}


class InformerTests(SynchronousTestCase):
    """List, watch, resume, list again."""

    def setUp(self) -> None:
        self.world = World()
        self.events: list[dict[str, Any]] = []
        globalLogPublisher.addObserver(self.events.append)
        self.addCleanup(globalLogPublisher.removeObserver, self.events.append)

    def logged(self, words: str) -> int:
        return sum(words in (event.get("log_format") or "") for event in self.events)

    def test_lists_then_watches(self) -> None:
        """What is there is listed; what comes after is watched; each is told once."""
        world = self.world
        world.make("a")
        synced = world.informer.when_synced()
        self.assertNoResult(synced)
        world.informer.startService()
        self.successResultOf(synced)
        self.assertEqual(world.names(), ["a"])
        world.make("b")
        world.change("b", "1")
        world.remove("a")
        world.clock.advance(0)
        self.assertEqual(world.told, [("a", "+"), ("b", "+"), ("b", "*"), ("a", "-")])
        self.assertTrue(world.agrees())

    def test_goes_on_after_a_quiet_end(self) -> None:
        """A watch that the server ends is resumed from where it was, without listing again."""
        world = self.world
        world.informer.startService()
        world.clock.advance(301)
        world.make("a")
        world.clock.pump([1] * 5)
        world.server.end_watches()
        world.make("b")
        world.clock.pump([1] * 5)
        self.assertEqual(world.names(), ["a", "b"])
        lists = [r for r in world.server.requests if r.method == "GET" and "watch" not in r.query]
        self.assertEqual(len(lists), 1)

    def test_gone(self) -> None:
        """After ``Gone`` a new listing tells what was missed, deletions included."""
        world = self.world
        world.make("a")
        world.make("b")
        world.informer.startService()
        world.clock.advance(0)
        world.server.go_away()
        world.clock.advance(0)
        world.server.come_back()
        world.remove("a")
        world.make("c")
        world.change("b", "2")
        world.server.compact()
        world.clock.pump([1] * 60)
        self.assertEqual(world.names(), ["b", "c"])
        self.assertTrue(world.agrees())
        self.assertEqual(world.told[2:], [("a", "-"), ("b", "*"), ("c", "+")])

    def test_made_anew_meanwhile(self) -> None:
        """An object deleted and made again unseen is told as a deletion and an addition."""
        world = self.world
        world.make("a")
        world.informer.startService()
        world.server.go_away()
        world.clock.advance(0)
        world.server.come_back()
        world.remove("a")
        world.make("a")
        world.server.compact()
        world.clock.pump([1] * 60)
        self.assertEqual(world.told, [("a", "+"), ("a", "-"), ("a", "+")])

    def test_outage_is_told_once(self) -> None:
        """A minute without the server is two lines in the log, and the cache stays meanwhile."""
        world = self.world
        world.make("a")
        world.informer.startService()
        world.clock.advance(5)
        world.server.go_away()
        world.clock.pump([1] * 60)
        attempts = len(world.server.requests)
        self.assertEqual(world.names(), ["a"])
        world.server.come_back()
        world.clock.pump([1] * 40)
        world.make("b")
        world.clock.advance(0)
        self.assertEqual(world.names(), ["a", "b"])
        self.assertEqual((self.logged("cannot watch"), self.logged("again")), (1, 2))
        self.assertGreater(len(world.server.requests), attempts)

    def test_backs_off(self) -> None:
        """A server that refuses for long is asked less and less often."""
        world = self.world
        world.server.fail_next(1000, 403, "Forbidden")
        world.informer.startService()
        for _ in range(600):
            world.clock.advance(1)
        self.assertLess(len(world.server.requests) + 1000, 1000 + 60)
        self.assertEqual(self.logged("cannot watch"), 1)

    def test_a_listener_that_breaks(self) -> None:
        """One listener's failure is logged and the others are told all the same."""
        world = self.world

        def broken(key: ObjectKey, old: Object | None, new: Object | None) -> None:
            raise ZeroDivisionError

        undo = world.informer.subscribe(broken)
        late: list[str] = []
        world.informer.startService()
        world.informer.subscribe(lambda key, old, new: late.append(key.name))
        world.make("a")
        world.clock.advance(0)
        self.assertEqual((len(self.flushLoggedErrors(ZeroDivisionError)), late), (1, ["a"]))
        undo()
        world.make("b")
        world.clock.advance(0)
        self.assertEqual(late, ["a", "b"])

    def test_late_subscriber(self) -> None:
        """Who subscribes late is told what is there already."""
        world = self.world
        world.make("a")
        world.informer.startService()
        heard: list[str] = []
        world.informer.subscribe(lambda key, old, new: heard.append(key.name))
        self.assertEqual(heard, ["a"])

    def test_stop(self) -> None:
        """Stopping ends the watch and every timer; starting again lists again."""
        world = self.world
        world.informer.startService()
        world.clock.advance(1)
        self.assertEqual(world.server.watching, 1)
        stopped = world.informer.stopService()
        assert stopped is not None
        self.successResultOf(stopped)
        world.clock.advance(0)
        self.assertEqual((world.server.watching, world.clock.getDelayedCalls()), (0, []))
        self.assertFalse(world.informer.synced)
        world.make("a")
        world.informer.startService()
        self.assertTrue(world.informer.synced)
        self.assertEqual(world.told, [("a", "+")])

    def test_stop_before_synced(self) -> None:
        """Who waits for the first listing is told that it will not come."""
        world = self.world
        world.server.go_away()
        world.informer.startService()
        waiting = world.informer.when_synced()
        heard: list[Any] = []
        waiting.addErrback(lambda failure: heard.append(failure.check(CancelledError)))
        world.informer.stopService()
        self.assertEqual(heard, [CancelledError])

    @settings(max_examples=60, deadline=None)
    @given(
        st.lists(
            st.one_of(
                st.tuples(st.sampled_from(["make", "change", "remove"]), st.sampled_from("abc")),
                st.sampled_from([("away", ""), ("back", ""), ("compact", ""), ("end", ""), ("bookmark", "")]),
                st.tuples(st.just("wait"), st.sampled_from(["0", "1", "40"])),
            ),
            max_size=30,
        )
    )
    def test_any_weather(self, steps: list[tuple[str, str]]) -> None:
        """Whatever happens in whatever order, once the server is back the cache equals it."""
        world = World()
        world.informer.startService()
        for number, (step, word) in enumerate(steps):
            if step == "make":
                world.make(word)
            elif step == "change":
                world.change(word, str(number))
            elif step == "remove":
                world.remove(word)
            elif step == "away":
                world.server.go_away()
            elif step == "back":
                world.server.come_back()
            elif step == "compact":
                world.server.compact()
            elif step == "end":
                world.server.end_watches()
            elif step == "bookmark":
                world.server.bookmark()
            else:
                world.clock.advance(float(word))
        world.server.come_back()
        world.clock.pump([1] * 70)
        self.assertTrue(world.agrees())
        world.informer.stopService()
