"""A controller on a clock, with an API server in memory and doubles around it."""

from __future__ import annotations

import copy
from datetime import UTC, datetime
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from aranya.controller.controller import ControllerConfig, DeviceController
from aranya.interfaces import Object, Resource
from aranya.kube.memory import MemoryApiServer
from aranya.kube.objects import EDGEDEVICES, NODES, PODS, SERVICEACCOUNTS
from aranya.names import DeviceKey
from test.support.devices import (
    FakeDevice,
    MemoryDevices,
    MemoryEndpoints,
    MemoryJoins,
    MemoryJournal,
    MemorySigner,
)

START = 1_790_000_000.0
#: A Node that somebody else made.
NOT_OURS: Object = {"metadata": {"name": "dev"}, "spec": {"providerID": "aws:///i-1"}}
KEY = DeviceKey("edge", "dev")
CONFIG = ControllerConfig(
    namespace="aranya",
    watch_namespace="edge",
    node_address="10.0.0.1",
    replica_addresses=("10.0.0.2",),
    kubelet_version="v1.20.2",
    host_node="worker-1",
)


class World:
    """All that a controller stands in; the controller itself may be killed and replaced."""

    def __init__(self, config: ControllerConfig = CONFIG, clock: Clock | None = None) -> None:
        self.clock = clock or Clock()
        if not self.clock.seconds():
            self.clock.advance(START)
        self.config = config
        self.server = MemoryApiServer(
            self.clock, now=lambda: datetime.fromtimestamp(self.clock.seconds(), UTC)
        )
        self.kube = self.server.client()
        self.signer = MemorySigner(self.clock)
        self.journal = MemoryJournal()
        self.new_process()
        self.create(SERVICEACCOUNTS, {"metadata": {"name": "default"}})

    def new_process(self) -> None:
        """What lives and dies with a process."""
        self.devices = MemoryDevices()
        self.endpoints = MemoryEndpoints()
        self.joins = MemoryJoins()
        self.controller = DeviceController(
            self.clock,
            self.kube,
            self.devices,
            self.endpoints,
            self.joins,
            self.journal,
            self.config,
            self.signer.issue,
            jitter=lambda: 0.5,
        )

    def start(self) -> None:
        """Begin to lead, and let things settle."""
        self.controller.startService()
        self.settle()

    def restart(self) -> None:
        """The process dies and another one takes over."""
        self.controller.stopService()
        self.new_process()
        self.start()

    def settle(self, seconds: float = 3.0) -> None:
        """Let time pass in small steps."""
        for _ in range(int(seconds * 10)):
            self.clock.advance(0.1)

    # -- the API, from outside

    def wait(self, work: Any) -> Any:
        """The outcome of a call, which the double answers at once."""
        results: list[Any] = []
        Deferred.fromCoroutine(work).addBoth(results.append)
        for _ in range(50):
            if results:
                break
            self.clock.advance(0.01)
        (result,) = results
        if hasattr(result, "raiseException"):
            result.raiseException()
        return result

    def create(self, resource: Resource, body: Object) -> Object:
        body = {"apiVersion": "v1", "kind": resource.kind, **copy.deepcopy(body)}
        namespace = body["metadata"].get("namespace", "edge") if resource.namespaced else None
        return self.wait(self.kube.create(resource, namespace, body))

    def create_device(self, name: str = "dev", **spec: Any) -> Object:
        api_version = "aranya.arhat.dev/v1alpha1"
        return self.create(EDGEDEVICES, {"apiVersion": api_version, "metadata": {"name": name}, "spec": spec})

    def patch(self, resource: Resource, name: str, patch: Object, sub: str = "") -> Object:
        namespace = "edge" if resource.namespaced else None
        return self.wait(self.kube.patch(resource, namespace, name, patch, sub=sub))

    def delete(self, resource: Resource, name: str, grace: int | None = None) -> None:
        namespace = "edge" if resource.namespaced else None
        self.wait(self.kube.delete(resource, namespace, name, grace_seconds=grace))

    def stored(self, resource: Resource, name: str = "dev", namespace: str = "edge") -> Object | None:
        return self.server.stored(resource, namespace if resource.namespaced else None, name)

    @property
    def device(self) -> Object:
        found = self.stored(EDGEDEVICES)
        assert found is not None, "no EdgeDevice"
        return found

    @property
    def node(self) -> Object:
        found = self.stored(NODES)
        assert found is not None, "no Node"
        return found

    @property
    def pod(self) -> Object:
        found = self.stored(PODS)
        assert found is not None, "no Pod"
        return found

    def condition(self, found: Object, kind: str) -> tuple[str, str]:
        """Status and reason of a condition."""
        for entry in found.get("status", {}).get("conditions", []):
            if entry["type"] == kind:
                return entry["status"], entry.get("reason", "")
        return "", ""

    def writes(self) -> list[str]:
        """What was written by anybody, as METHOD path."""
        return [f"{ask.method} {ask.path}" for ask in self.server.requests if ask.method != "GET"]


class Case(SynchronousTestCase):
    """A world with one EdgeDevice and a controller that leads."""

    def lead(self, connected: bool = True, **spec: Any) -> World:
        world = World()
        world.create_device(**spec)
        world.start()
        if connected:
            world.devices.come(FakeDevice(KEY))
            world.settle()
        return world
