"""Killed anywhere, whatever happened meanwhile, a fresh controller converges."""

from __future__ import annotations

from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from aranya.interfaces import Resource
from aranya.kube.errors import NotFound
from aranya.kube.memory_requests import Refusal, Request
from aranya.kube.objects import EDGEDEVICES, LEASES, NODES, PODS, SECRETS
from test.aranya.controller.harness import KEY, World
from test.support.devices import FakeDevice

#: What may happen to one EdgeDevice; each word is a method of ``Story``.
EVENTS = (
    "make",
    "delete",
    "connect",
    "leave",
    "ban",
    "unban",
    "other_containers",
    "other_labels",
    "delete_node",
    "delete_pod",
    "retire_pod",
    "delete_secret",
    "strip_node",
    "strip_pod",
    "wait",
)


class Story:
    """One EdgeDevice, and a process that dies whenever it is told to."""

    def __init__(self, kills: list[int]) -> None:
        self.world = World()
        self.kills = list(kills)
        self.left = self.kills.pop(0) if self.kills else None
        self.dying = False
        self.connected = False
        self.ours = 0
        self.world.server.before = self.count
        self.world.controller.startService()

    def count(self, request: Request) -> None:
        """Each request of the controller may be its last; it is not answered then."""
        if self.ours or self.left is None:
            return
        if self.dying or self.left == 0:
            self.dying = True
            raise Refusal(500, "InternalError", "the process is dead")
        if request.method != "GET":
            self.left -= 1

    def pass_time(self, seconds: float) -> None:
        for _ in range(int(seconds * 5)):
            self.world.clock.advance(0.2)
            if self.dying:
                self.die()

    def die(self) -> None:
        self.world.controller.stopService()
        self.dying = False
        self.left = self.kills.pop(0) if self.kills else None
        self.world.new_process()
        self.world.controller.startService()
        if self.connected:
            self.connect()

    def outside(self, resource: Resource, verb: str, patch: Any = None) -> None:
        """Somebody else does something, whether it is there or not."""
        self.ours += 1
        try:
            if verb == "delete":
                self.world.delete(resource, "dev")
            else:
                self.world.patch(resource, "dev", patch)
        except NotFound:
            pass
        finally:
            self.ours -= 1

    def make(self) -> None:
        if self.world.stored(EDGEDEVICES) is None:
            self.ours += 1
            self.world.create_device(node={"labels": {"tier": "edge"}})
            self.ours -= 1

    def delete(self) -> None:
        self.outside(EDGEDEVICES, "delete")

    def connect(self) -> None:
        self.connected = True
        device = self.world.stored(EDGEDEVICES) or {}
        # Admission refuses the others.
        if device and not device.get("spec", {}).get("banned"):
            self.world.devices.come(FakeDevice(KEY))

    def leave(self) -> None:
        self.connected = False
        self.world.devices.go(KEY)

    def ban(self) -> None:
        self.outside(EDGEDEVICES, "patch", {"spec": {"banned": True}})

    def unban(self) -> None:
        self.outside(EDGEDEVICES, "patch", {"spec": {"banned": None}})

    def other_containers(self) -> None:
        containers = [{"name": "a", "log": {"file": "/a"}}]
        self.outside(EDGEDEVICES, "patch", {"spec": {"pod": {"containers": containers}}})

    def other_labels(self) -> None:
        self.outside(EDGEDEVICES, "patch", {"spec": {"node": {"labels": {"tier": None, "new": "yes"}}}})

    def delete_node(self) -> None:
        self.outside(NODES, "delete")

    def delete_pod(self) -> None:
        self.outside(PODS, "delete")

    def retire_pod(self) -> None:
        self.ours += 1
        try:
            self.world.delete(PODS, "dev", grace=30)
        except NotFound:
            pass
        self.ours -= 1

    def delete_secret(self) -> None:
        self.ours += 1
        try:
            self.world.wait(self.world.kube.delete(SECRETS, "aranya", "kubelet-tls.dev"))
        except NotFound:
            pass
        self.ours -= 1

    def strip_node(self) -> None:
        self.outside(NODES, "patch", {"metadata": {"labels": None, "annotations": None}})

    def strip_pod(self) -> None:
        self.outside(PODS, "patch", {"metadata": {"labels": None}})

    def wait(self) -> None:
        self.pass_time(8)


class ConvergenceTests(SynchronousTestCase):
    """The end is the same wherever a process was killed on the way."""

    def check(self, story: Story) -> None:
        world = story.world
        device = world.stored(EDGEDEVICES)
        if device is None:
            for resource in (NODES, PODS, LEASES, SECRETS):
                self.assertEqual([], world.server.all_stored(resource), resource.plural)
            self.assertEqual({}, world.endpoints.ports)
            return
        spec = device["spec"]
        online = world.devices.get(KEY) is not None
        truth = str(online)
        containers = ["host", *(entry["name"] for entry in spec.get("pod", {}).get("containers", []))]
        self.assertEqual(KEY.provider_id, world.node["spec"]["providerID"])
        self.assertEqual("Node", world.node["metadata"]["labels"]["arhat.dev/role"])
        for key in ("tier", "new"):
            wished = spec.get("node", {}).get("labels", {}).get(key)
            self.assertEqual(wished, world.node["metadata"]["labels"].get(key))
        self.assertEqual(containers, [entry["name"] for entry in world.pod["spec"]["containers"]])
        self.assertEqual("Pod", world.pod["metadata"]["labels"]["arhat.dev/role"])
        self.assertNotIn("deletionTimestamp", world.pod["metadata"])
        for found, kind in ((world.node, "Ready"), (world.pod, "Ready"), (device, "Connected")):
            self.assertEqual(truth, world.condition(found, kind)[0], kind)
        self.assertEqual(truth, world.condition(device, "NodeReady")[0])
        port = world.endpoints.port(KEY)
        self.assertTrue(port)
        self.assertEqual(port, world.node["status"]["daemonEndpoints"]["kubeletEndpoint"]["Port"])
        self.assertEqual(port, device["status"]["kubeletPort"])
        self.assertEqual(world.pod["metadata"]["uid"], world.endpoints.pods[KEY].uid)
        self.assertIsNotNone(world.stored(SECRETS, "kubelet-tls.dev", "aranya"))
        lease = world.stored(LEASES, namespace="kube-node-lease")
        assert lease is not None
        self.assertEqual(world.node["metadata"]["uid"], lease["metadata"]["ownerReferences"][0]["uid"])

    def tell(self, events: list[tuple[str, int]], kills: list[int]) -> None:
        story = Story(kills)
        story.pass_time(1)
        for event, fifths in events:
            getattr(story, event)()
            story.pass_time(fifths / 5)
        story.left, story.kills = None, []
        if story.dying:
            story.die()
        story.pass_time(40)
        self.check(story)
        story.world.controller.stopService()

    def test_every_prefix(self) -> None:
        """A life from making to deleting, with a death after each of its writes."""
        life = [("make", 10), ("connect", 10), ("other_containers", 10)]
        for last in range(24):
            self.tell(life, [last])
            self.tell([*life, ("delete", 10)], [last])

    @settings(max_examples=40, deadline=None)
    @given(
        events=st.lists(st.tuples(st.sampled_from(EVENTS), st.integers(0, 15)), max_size=10),
        kills=st.lists(st.integers(0, 12), max_size=5),
    )
    @example(events=[("make", 5), ("delete", 0), ("make", 0)], kills=[])
    @example(events=[("make", 10), ("strip_node", 0), ("delete_pod", 0), ("delete", 3)], kills=[1, 0, 0])
    def test_any_story(self, events: list[tuple[str, int]], kills: list[int]) -> None:
        """Any events in any order at any pace, with deaths in between, end as the EdgeDevice wishes."""
        self.tell([("make", 3), *events], kills)
