"""The whole controller on a clock: what a cluster and a device do to it."""

from __future__ import annotations

from dataclasses import replace

from aranya.controller.devices.conditions import timestamp
from aranya.controller.leases import DURATION
from aranya.interfaces import Object
from aranya.kube.errors import NotFound
from aranya.kube.memory_requests import Refusal, Request
from aranya.kube.objects import EDGEDEVICES, LEASES, NODES, PODS, SERVICEACCOUNTS
from aranya.names import DeviceKey
from test.aranya.controller.harness import CONFIG, KEY, NOT_OURS, Case, World
from test.support.devices import FakeDevice


class CreationTests(Case):
    """From an EdgeDevice to all that belongs to it."""

    def test_order(self) -> None:
        """The certificate precedes the Node, which precedes the pod; the finaliser precedes all."""
        world = self.lead(connected=False)
        posts = [write.rpartition("/")[2] for write in world.writes() if write.startswith("POST")]
        self.assertEqual(["serviceaccounts", "edgedevices", "secrets", "nodes", "pods", "leases"], posts)
        self.assertTrue(world.writes()[2].startswith("PATCH"))

    def test_node_of_a_device_never_seen(self) -> None:
        """A device that never connected has a Node that is not Ready, and a running pod that is not."""
        world = self.lead(connected=False)
        self.assertEqual(("False", "DeviceOffline"), world.condition(world.node, "Ready"))
        self.assertEqual(("False", "NeverConnected"), world.condition(world.device, "Connected"))
        self.assertEqual("Running", world.pod["status"]["phase"])
        self.assertEqual(("False", "DeviceOffline"), world.condition(world.pod, "Ready"))

    def test_connected(self) -> None:
        """A device that connects makes Node and pod Ready, and its facts are told."""
        world = self.lead()
        self.assertEqual(("True", "KubeletReady"), world.condition(world.node, "Ready"))
        self.assertEqual(("True", ""), world.condition(world.pod, "Ready"))
        self.assertEqual("8Gi", world.node["status"]["capacity"]["memory"])
        self.assertEqual("arm64", world.device["status"]["agent"]["arch"])
        self.assertEqual("worker-1", world.device["status"]["hostNode"])
        self.assertEqual(world.endpoints.port(KEY), world.device["status"]["kubeletPort"])
        self.assertEqual(["CertificateIssued", "DeviceConnected"], world.journal.reasons)

    def test_endpoint_knows_the_pod(self) -> None:
        """The endpoint answers for the live UID, with containers and forwards of the spec."""
        world = self.lead(
            pod={
                "containers": [{"name": "ssh", "log": {"unit": "ssh"}}],
                "forward": [{"port": 5, "target": "h:6"}],
            }
        )
        told = world.endpoints.pods[KEY]
        self.assertEqual(world.pod["metadata"]["uid"], told.uid)
        self.assertEqual(["host", "ssh"], [container.name for container in told.containers])
        self.assertEqual([(5, "h", 6)], [(one.port, one.host, one.target_port) for one in told.forward])

    def test_lease(self) -> None:
        """The Node's Lease is owned by it and renewed every ten seconds."""
        world = self.lead()
        lease = world.stored(LEASES, namespace="kube-node-lease")
        assert lease is not None
        self.assertEqual(world.node["metadata"]["uid"], lease["metadata"]["ownerReferences"][0]["uid"])
        self.assertEqual(
            ("dev", DURATION), (lease["spec"]["holderIdentity"], lease["spec"]["leaseDurationSeconds"])
        )
        before = len([write for write in world.writes() if write.startswith("PUT")])
        world.settle(100)
        renewals = len([write for write in world.writes() if write.startswith("PUT")]) - before
        self.assertTrue(9 <= renewals <= 11, renewals)

    def test_quiet(self) -> None:
        """Where nothing changes nothing is written but Leases and, once a minute, the last contact."""
        world = self.lead()
        world.settle(10)
        before = len(world.writes())
        world.settle(100)
        others = [write for write in world.writes()[before:] if "leases" not in write]
        self.assertTrue(1 <= len(others) <= 2, others)
        self.assertTrue(all(write.endswith("edgedevices/dev/status") for write in others))

    def test_waits_for_the_service_account(self) -> None:
        """The pod is made only when its namespace has the default ServiceAccount."""
        world = World()
        world.delete(SERVICEACCOUNTS, "default")
        world.create_device()
        world.start()
        self.assertIsNone(world.stored(PODS))
        world.create(SERVICEACCOUNTS, {"metadata": {"name": "default"}})
        world.settle(5)
        self.assertIsNotNone(world.stored(PODS))

    def test_namespace_ending(self) -> None:
        """A namespace that is being deleted refuses the pod, and is not asked again and again."""
        world = World()

        def refuse(request: Request) -> None:
            if request.method == "POST" and request.plural == "pods":
                message = "namespaces edge is forbidden because it is being terminated"
                raise Refusal(403, "Forbidden", message, {"causes": [{"reason": "NamespaceTerminating"}]})

        world.server.before = refuse
        world.create_device()
        world.start()
        world.settle(30)
        self.assertEqual(1, world.writes().count("POST /api/v1/namespaces/edge/pods"))

    def test_pod_refused(self) -> None:
        """A quota that refuses the pod is told as a conflict, and tried again after a while."""
        world = World()
        quota = True

        def refuse(request: Request) -> None:
            if quota and request.method == "POST" and request.plural == "pods":
                raise Refusal(403, "Forbidden", "exceeded quota: pods")

        world.server.before = refuse
        world.create_device()
        world.start()
        self.assertEqual(("True", "PodRefused"), world.condition(world.device, "Conflict"))
        quota = False
        world.settle(70)
        self.assertIsNotNone(world.stored(PODS))
        self.assertEqual(("False", "NoConflict"), world.condition(world.device, "Conflict"))

    def test_bad_spec(self) -> None:
        """A bad value is told, and the rest of the spec works."""
        world = self.lead(node={"labels": {"kubernetes.io/os": "linux", "tier": "edge"}})
        self.assertEqual(("True", "InvalidSpec"), world.condition(world.device, "Conflict"))
        self.assertEqual("edge", world.node["metadata"]["labels"]["tier"])
        self.assertNotIn("kubernetes.io/os", world.node["metadata"]["labels"])
        self.assertIn("InvalidSpec", world.journal.reasons)

    def test_join(self) -> None:
        """A join is looked after at each run, again when it asks for it."""
        world = World()
        world.joins.again = 20.0
        world.create_device()
        world.start()
        world.settle(10)
        before = len(world.joins.reconciled)
        world.settle(25)
        self.assertGreater(len(world.joins.reconciled), before)


class PresenceTests(Case):
    """Devices that go and come."""

    def test_offline(self) -> None:
        """A device that went is offline after the grace, with the moment it was seen last."""
        world = self.lead()
        went = world.clock.seconds()
        world.devices.go(KEY)
        world.settle(4)
        self.assertEqual(("True", "KubeletReady"), world.condition(world.node, "Ready"))
        world.settle(2)
        self.assertEqual(("False", "DeviceOffline"), world.condition(world.node, "Ready"))
        self.assertEqual(("False", "DeviceOffline"), world.condition(world.pod, "Ready"))
        self.assertEqual(("False", "DeviceOffline"), world.condition(world.device, "Connected"))
        self.assertEqual("DeviceOffline", world.journal.reasons[-1])
        self.assertEqual("Running", world.pod["status"]["phase"])
        self.assertEqual(timestamp(went), world.device["status"]["agent"]["lastSeen"])

    def test_blink(self) -> None:
        """A link lost and found again within the grace changes nothing."""
        world = self.lead()
        before = [write for write in world.writes() if "leases" not in write]
        world.devices.go(KEY)
        world.settle(3)
        world.devices.come(FakeDevice(KEY))
        world.settle(8)
        self.assertEqual(before, [write for write in world.writes() if "leases" not in write])

    def test_facts_outlive_the_link(self) -> None:
        """What a device told stays on its Node while it is away, through a restart of aranya."""
        world = self.lead()
        world.devices.go(KEY)
        world.settle(10)
        world.restart()
        world.settle(20)
        self.assertEqual("8Gi", world.node["status"]["capacity"]["memory"])
        self.assertEqual("harbour", world.node["metadata"]["labels"]["site"])
        self.assertEqual("arm64", world.node["metadata"]["labels"]["arhat.dev/arch"])

    def test_restart_gives_time(self) -> None:
        """After a restart a connected device has time to come back before it counts as away."""
        world = self.lead()
        world.restart()
        world.settle(5)
        self.assertEqual(("True", "KubeletReady"), world.condition(world.node, "Ready"))
        world.devices.come(FakeDevice(KEY))
        world.settle(30)
        self.assertEqual(("True", "KubeletReady"), world.condition(world.node, "Ready"))
        self.assertNotIn("DeviceOffline", world.journal.reasons)

    def test_restart_without_the_device(self) -> None:
        """After a restart a device that does not come back counts as away at last."""
        world = self.lead()
        world.restart()
        world.settle(20)
        self.assertEqual(("False", "DeviceOffline"), world.condition(world.node, "Ready"))

    def test_conditions_are_asserted_again(self) -> None:
        """What the lifecycle controller writes over our conditions is written back."""
        world = self.lead()
        for resource in (NODES, PODS):
            conditions = [dict(entry) for entry in (world.stored(resource) or {})["status"]["conditions"]]
            for entry in conditions:
                if entry["type"] == "Ready":
                    entry.update(status="Unknown", reason="NodeStatusUnknown")
            world.patch(resource, "dev", {"status": {"conditions": conditions}}, sub="status")
        world.settle()
        self.assertEqual(("True", "KubeletReady"), world.condition(world.node, "Ready"))
        self.assertEqual(("True", ""), world.condition(world.pod, "Ready"))

    def test_ban(self) -> None:
        """A banned device is cut off at once, and told to be banned."""
        world = self.lead()
        world.patch(EDGEDEVICES, "dev", {"spec": {"banned": True}})
        world.settle(1)
        self.assertEqual([(KEY, "this device is banned")], world.devices.disconnected)
        self.assertEqual(("False", "Banned"), world.condition(world.device, "Connected"))
        self.assertEqual(("False", "DeviceOffline"), world.condition(world.node, "Ready"))

    def test_waiting_sessions_are_left_alone(self) -> None:
        """While a device is away nobody ends the sessions that wait for it, however long."""
        world = self.lead()
        world.devices.go(KEY)
        world.settle(60)
        self.assertEqual(("False", "DeviceOffline"), world.condition(world.device, "Connected"))
        self.assertEqual(([], []), (world.devices.disconnected, world.endpoints.stopped))

    def test_ban_while_away(self) -> None:
        """A ban ends the sessions that wait for a device which is away, once and before it is told."""
        world = self.lead()
        world.devices.go(KEY)
        world.settle(60)
        world.patch(EDGEDEVICES, "dev", {"spec": {"banned": True}})
        world.settle(1)
        self.assertEqual([(KEY, "this device is banned")], world.devices.disconnected)
        self.assertEqual(("False", "Banned"), world.condition(world.device, "Connected"))
        world.settle(120)
        self.assertEqual(1, len(world.devices.disconnected))


class MemoryTests(Case):
    """What is kept of devices."""

    def test_recent_writes_are_not_kept(self) -> None:
        """The answers to writes are dropped after some seconds, those about the deleted too."""
        world = World()
        for name in ("dev", "other"):
            world.create_device(name)
        world.start()
        world.delete(EDGEDEVICES, "other")
        world.settle(310)
        self.assertLess(len(world.controller._recent), 6)


class TermTests(Case):
    """The controller as a service."""

    def test_lookup(self) -> None:
        """The gateway finds EdgeDevices of the watched namespace once they are known."""
        world = World()
        world.create_device()
        self.assertIsNone(world.controller.lookup(KEY))
        world.controller.startService()
        known: list[Object | None] = []
        world.controller.synced.addCallback(lambda _: known.append(world.controller.lookup(KEY)))
        world.settle(1)
        self.assertEqual(world.device["metadata"]["uid"], (known[0] or {})["metadata"]["uid"])
        self.assertIsNone(world.controller.lookup(DeviceKey("other", "dev")))

    def test_stop(self) -> None:
        """A controller that stops leaves all as it is, asks nothing more and leaves no timer."""
        world = self.lead()
        self.successResultOf(world.controller.stopService())
        before = len(world.server.requests)
        world.settle(100)
        self.assertEqual(before, len(world.server.requests))
        self.assertIsNotNone(world.stored(NODES))
        self.assertEqual(0, world.server.watching)

    def test_second_term(self) -> None:
        """The same controller leads again."""
        world = self.lead()
        self.successResultOf(world.controller.stopService())
        world.delete(NODES, "dev")
        world.start()
        self.assertIsNotNone(world.stored(NODES))

    def test_stop_before_synced(self) -> None:
        """A term that ends before the first listing cancels what waits for it."""
        world = World()
        world.server.go_away()
        world.controller.startService()
        synced = world.controller.synced
        world.settle(1)
        self.successResultOf(world.controller.stopService())
        self.assertTrue(synced.called)

    def test_many(self) -> None:
        """Devices do not hinder one another: one whose Node is foreign, many that are well."""
        world = World(config=CONFIG)
        world.create(NODES, NOT_OURS)
        for number in range(20):
            world.create_device("dev" if number == 0 else f"dev{number}")
        world.start()
        self.assertEqual(20, len(world.server.all_stored(NODES)))
        self.assertEqual(19, len(world.server.all_stored(PODS)))

    def test_gone_object(self) -> None:
        """Asking the harness for what is not there is an error, so the tests above mean something."""
        world = World()
        self.assertRaises(NotFound, world.delete, EDGEDEVICES, "nobody")

    def test_host_node_is_taken_away(self) -> None:
        """A leader that does not know its own Node takes the former leader's from the status, once."""
        world = World()
        world.create_device()
        world.start()
        self.assertEqual("worker-1", world.device["status"]["hostNode"])
        world.config = replace(CONFIG, host_node="")
        world.restart()
        self.assertNotIn("hostNode", world.device["status"])
        before = len([write for write in world.writes() if "edgedevices" in write])
        world.settle(20)
        self.assertEqual(before, len([write for write in world.writes() if "edgedevices" in write]))
