"""Events are told, counted, and never in the way."""

from __future__ import annotations

from typing import Any

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from aranya.kube.events import REMEMBERED, Recorder
from aranya.kube.memory import MemoryApiServer
from aranya.kube.objects import EDGEDEVICES, EVENTS, NODES, new_object


class RecorderTests(SynchronousTestCase):
    """A recorder with an API server in memory."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.server = MemoryApiServer(self.clock)
        self.recorder = Recorder(self.server.client(), self.clock, instance="pod-1")
        self.device = new_object(EDGEDEVICES, {"name": "d", "namespace": "edge", "uid": "u-1"})

    def written(self) -> list[dict[str, Any]]:
        return self.server.all_stored(EVENTS)

    def test_one_event(self) -> None:
        """An Event names the object, the reason and who says it, in the object's namespace."""
        self.recorder.record(self.device, "Connected", "the device is here")
        [event] = self.written()
        self.assertEqual(event["metadata"]["namespace"], "edge")
        self.assertEqual(
            event["involvedObject"],
            {
                "apiVersion": "aranya.arhat.dev/v1alpha1",
                "kind": "EdgeDevice",
                "namespace": "edge",
                "name": "d",
                "uid": "u-1",
            },
        )
        told = {name: event[name] for name in ("reason", "message", "type", "count", "source")}
        self.assertEqual(
            told,
            {
                "reason": "Connected",
                "message": "the device is here",
                "type": "Normal",
                "count": 1,
                "source": {"component": "aranya", "host": "pod-1"},
            },
        )

    def test_cluster_wide_objects(self) -> None:
        """What has no namespace is told about in ``default``."""
        self.recorder.record(new_object(NODES, {"name": "n"}), "Lost", "gone", warning=True)
        [event] = self.written()
        self.assertEqual((event["metadata"]["namespace"], event["type"]), ("default", "Warning"))

    def test_the_same_again_is_counted(self) -> None:
        """The same within ten minutes raises the count; another message, or later, is a new Event."""
        for _ in range(3):
            self.recorder.record(self.device, "Flap", "again")
            self.clock.advance(500)
        self.recorder.record(self.device, "Flap", "another")
        self.assertEqual(sorted(event["count"] for event in self.written()), [1, 3])
        self.clock.advance(700)
        self.recorder.record(self.device, "Flap", "again")
        self.assertEqual(sorted(event["count"] for event in self.written()), [1, 1, 3])

    def test_an_event_that_expired(self) -> None:
        """An Event that the server has dropped is written anew."""
        self.recorder.record(self.device, "Flap", "again")
        [event] = self.written()
        from twisted.internet.defer import Deferred

        name = event["metadata"]["name"]
        self.successResultOf(Deferred.fromCoroutine(self.server.client().delete(EVENTS, "edge", name)))
        self.recorder.record(self.device, "Flap", "again")
        self.recorder.record(self.device, "Flap", "again")
        [event] = self.written()
        self.assertEqual(event["count"], 3)

    def test_failures_stay_here(self) -> None:
        """A server that refuses, or is away, costs the Event and nothing else."""
        self.server.fail_next(1, 403, "Forbidden")
        self.recorder.record(self.device, "A", "")
        self.server.go_away()
        self.recorder.record(self.device, "B", "")
        self.server.come_back()
        self.recorder.record(self.device, "C", "")
        self.assertEqual([event["reason"] for event in self.written()], ["C"])

    def test_memory_is_bounded(self) -> None:
        """A flood of different messages is not all remembered."""
        for number in range(REMEMBERED + 50):
            self.recorder.record(self.device, "Flood", str(number))
        self.assertEqual(len(self.recorder._told), REMEMBERED)
