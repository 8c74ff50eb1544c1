"""Foreign pods on our Nodes: finalised or failed, and nobody else's pods touched."""

from __future__ import annotations

from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from aranya.interfaces import Object
from aranya.kube.memory_requests import Refusal, Request
from aranya.kube.objects import EDGEDEVICES, PODS
from test.aranya.controller.harness import World


def stray(namespace: str, name: str = "stray", node: str = "dev", **metadata: Any) -> Object:
    spec = {"nodeName": node, "containers": [{"name": "a", "image": "b"}]}
    return {"metadata": {"name": name, "namespace": namespace, **metadata}, "spec": spec}


class SweepTests(SynchronousTestCase):
    """The sweep, within a whole controller."""

    def setUp(self) -> None:
        self.world = World()
        self.world.create_device()
        self.world.start()

    def phase(self, namespace: str, name: str = "stray") -> tuple[str, str]:
        pod = self.world.stored(PODS, name, namespace)
        if pod is None:
            return "gone", ""
        return pod.get("status", {}).get("phase", ""), pod.get("status", {}).get("reason", "")

    def test_reported(self) -> None:
        """A pod bound to a device is reported Failed: at once where we watch, elsewhere in a minute."""
        self.world.create(PODS, stray("edge"))
        self.world.create(PODS, stray("default"))
        self.world.create(PODS, stray("default", "dev"))
        self.world.settle(2)
        self.assertEqual(("Failed", "DeviceRunsNoPods"), self.phase("edge"))
        self.world.settle(61)
        self.assertEqual(("Failed", "DeviceRunsNoPods"), self.phase("default"))
        self.assertEqual(("Failed", "DeviceRunsNoPods"), self.phase("default", "dev"))
        self.assertEqual("Running", self.world.pod["status"]["phase"])

    def test_finalised(self) -> None:
        """A pod on its way out is finalised."""
        for namespace in ("edge", "default"):
            self.world.create(PODS, stray(namespace))
            self.world.wait(self.world.kube.delete(PODS, namespace, "stray", grace_seconds=30))
            self.assertNotEqual("gone", self.phase(namespace)[0])
        self.world.settle(62)
        self.assertEqual(["gone", "gone"], [self.phase(namespace)[0] for namespace in ("edge", "default")])

    def test_others(self) -> None:
        """Pods on other Nodes are not touched."""
        pod = self.world.create(PODS, stray("edge", node="worker"))
        self.world.settle(65)
        self.assertEqual(pod, self.world.stored(PODS, "stray"))

    def test_forbidden(self) -> None:
        """What RBAC does not allow is told once, and the rest goes on."""

        def refuse(request: Request) -> None:
            if request.namespace == "default":
                raise Refusal(403, "Forbidden", "no")

        self.world.create(PODS, stray("default"))
        self.world.create(PODS, stray("third"))
        self.world.server.before = refuse
        self.world.settle(190)
        self.assertEqual(("Failed", "DeviceRunsNoPods"), self.phase("third"))
        self.assertNotEqual("Failed", self.phase("default")[0])

    def test_spread(self) -> None:
        """Each Node is asked for once in a minute, answered from the API server's cache."""
        for number in range(9):
            self.world.create_device(f"more{number}")
        self.world.settle(60)
        before = len(self.world.server.requests)
        self.world.settle(60)
        asked = [
            request
            for request in self.world.server.requests[before:]
            if request.method == "GET" and request.path == "/api/v1/pods"
        ]
        self.assertTrue(9 <= len(asked) <= 11, len(asked))
        self.assertEqual({"0"}, {request.query["resourceVersion"] for request in asked})

    def test_deleted_device(self) -> None:
        """The pods of a device that is gone are nobody's business any more."""
        self.world.delete(EDGEDEVICES, "dev")
        self.world.settle(2)
        self.world.create(PODS, stray("edge"))
        self.world.settle(65)
        self.assertNotEqual("Failed", self.phase("edge")[0])
