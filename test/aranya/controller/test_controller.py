"""The whole controller on a clock: what a cluster and a device do to it."""

from __future__ import annotations

from dataclasses import replace

from aranya.controller.controller import ControllerConfig
from aranya.controller.devices.conditions import timestamp
from aranya.controller.leases import DURATION
from aranya.interfaces import Object
from aranya.kube.errors import NotFound
from aranya.kube.memory import Refusal, Request
from aranya.kube.objects import EDGEDEVICES, LEASES, NODES, PODS, SECRETS, SERVICEACCOUNTS
from aranya.names import DeviceKey
from test.aranya.controller.harness import CONFIG, KEY, Case, World
from test.support.devices import FakeDevice

NOT_OURS: Object = {"metadata": {"name": "dev"}, "spec": {"providerID": "aws:///i-1"}}


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


class RepairTests(Case):
    """What other people do to our objects."""

    def test_node_deleted(self) -> None:
        """A Node that somebody deletes is made again, at the same port, with a Lease of its own."""
        world = self.lead()
        uid, port = world.node["metadata"]["uid"], world.endpoints.port(KEY)
        world.delete(NODES, "dev")
        world.settle(12)
        self.assertNotEqual(uid, world.node["metadata"]["uid"])
        self.assertEqual(port, world.node["status"]["daemonEndpoints"]["kubeletEndpoint"]["Port"])
        lease = world.stored(LEASES, namespace="kube-node-lease")
        assert lease is not None
        self.assertEqual(world.node["metadata"]["uid"], lease["metadata"]["ownerReferences"][0]["uid"])

    def test_pod_deleted(self) -> None:
        """A pod that somebody deletes is made again, and the endpoint answers for the new one."""
        for grace in (0, 30):
            world = self.lead()
            uid = world.pod["metadata"]["uid"]
            world.delete(PODS, "dev", grace=grace)
            world.settle()
            self.assertNotEqual(uid, world.pod["metadata"]["uid"])
            self.assertEqual(world.pod["metadata"]["uid"], world.endpoints.pods[KEY].uid)
            self.assertEqual(("True", ""), world.condition(world.pod, "Ready"))

    def test_containers_changed(self) -> None:
        """Other containers make another pod; the endpoint goes on meanwhile."""
        world = self.lead()
        uid = world.pod["metadata"]["uid"]
        world.patch(
            EDGEDEVICES, "dev", {"spec": {"pod": {"containers": [{"name": "a", "log": {"file": "/a"}}]}}}
        )
        world.settle()
        self.assertNotEqual(uid, world.pod["metadata"]["uid"])
        self.assertEqual(["host", "a"], [entry["name"] for entry in world.pod["spec"]["containers"]])
        self.assertEqual(world.pod["metadata"]["uid"], world.endpoints.pods[KEY].uid)
        self.assertEqual([], world.endpoints.stopped)
        self.assertNotIn("", [told.uid for told in world.endpoints.told[1:]])

    def test_log_source_changed(self) -> None:
        """Another log source in the same container is told to the endpoint; the pod stays."""
        world = self.lead(pod={"containers": [{"name": "a", "log": {"file": "/a"}}]})
        uid = world.pod["metadata"]["uid"]
        world.patch(
            EDGEDEVICES, "dev", {"spec": {"pod": {"containers": [{"name": "a", "log": {"file": "/b"}}]}}}
        )
        world.settle()
        self.assertEqual(uid, world.pod["metadata"]["uid"])
        self.assertEqual("/b", world.endpoints.pods[KEY].containers[1].file)

    def test_labels_of_the_node(self) -> None:
        """Our labels, taints and the wished ones are put back; those of others stay; old wishes go."""
        world = self.lead(node={"labels": {"tier": "edge"}, "taints": [{"key": "x", "effect": "NoExecute"}]})
        taint = {"key": "node.kubernetes.io/unreachable", "effect": "NoSchedule"}
        labels = {"arhat.dev/role": None, "tier": "other", "mine": "yes"}
        world.patch(NODES, "dev", {"metadata": {"labels": labels}, "spec": {"taints": [taint]}})
        world.settle()
        node = world.node
        self.assertEqual("Node", node["metadata"]["labels"]["arhat.dev/role"])
        self.assertEqual(
            ("edge", "yes"), (node["metadata"]["labels"]["tier"], node["metadata"]["labels"]["mine"])
        )
        keys = {entry["key"] for entry in node["spec"]["taints"]}
        self.assertEqual({"node.kubernetes.io/unreachable", "arhat.dev/namespace", "x"}, keys)
        world.patch(EDGEDEVICES, "dev", {"spec": {"node": None}})
        world.settle()
        node = world.node
        self.assertNotIn("tier", node["metadata"]["labels"])
        self.assertEqual("yes", node["metadata"]["labels"]["mine"])
        keys = {entry["key"] for entry in node["spec"]["taints"]}
        self.assertEqual({"node.kubernetes.io/unreachable", "arhat.dev/namespace"}, keys)

    def test_ephemeral_container(self) -> None:
        """A debug container on the virtual pod is told to be unsupported."""
        world = self.lead()
        world.patch(PODS, "dev", {"spec": {"ephemeralContainers": [{"name": "debug", "image": "busybox"}]}})
        world.settle()
        (status,) = world.pod["status"]["ephemeralContainerStatuses"]
        self.assertEqual("Unsupported", status["state"]["terminated"]["reason"])

    def test_owner_stripped(self) -> None:
        """A pod that lost its owner or its labels is still ours, and gets them back."""
        for patch in ({"ownerReferences": None}, {"labels": None}):
            world = self.lead()
            uid = world.pod["metadata"]["uid"]
            world.patch(PODS, "dev", {"metadata": patch})
            world.settle()
            self.assertEqual(uid, world.pod["metadata"]["uid"])
            self.assertEqual("dev", world.pod["metadata"]["ownerReferences"][0]["name"])
            self.assertEqual("Pod", world.pod["metadata"]["labels"]["arhat.dev/role"])

    def test_secret_deleted(self) -> None:
        """A certificate whose Secret was deleted is asked for anew, without stopping the endpoint."""
        world = self.lead()
        world.wait(world.kube.delete(SECRETS, "aranya", "kubelet-tls.dev"))
        world.settle()
        self.assertIsNotNone(world.stored(SECRETS, "kubelet-tls.dev", "aranya"))
        self.assertEqual(2, len(world.signer.asked))
        self.assertEqual([], world.endpoints.stopped)

    def test_api_server_away(self) -> None:
        """An outage of the API server is sat out."""
        world = World()
        world.create_device()
        world.server.go_away()
        world.start()
        world.settle(20)
        world.server.come_back()
        world.settle(60)
        self.assertEqual("Running", world.pod["status"]["phase"])


class ConflictTests(Case):
    """Objects of our names that are not ours."""

    def test_foreign_node(self) -> None:
        """A Node that is somebody else's is not touched, and the EdgeDevice says so."""
        world = World()
        before = world.create(NODES, NOT_OURS)
        world.create_device()
        world.start()
        world.devices.come(FakeDevice(KEY))
        world.settle(70)
        self.assertEqual(before, world.node)
        self.assertEqual(("True", "NodeNotOurs"), world.condition(world.device, "Conflict"))
        self.assertEqual((None, 0), (world.stored(PODS), world.endpoints.port(KEY)))
        self.assertIsNone(world.stored(LEASES, namespace="kube-node-lease"))
        self.assertEqual(1, world.journal.reasons.count("NodeNotOurs"))

    def test_foreign_node_goes(self) -> None:
        """When the foreign Node is gone, ours is made within a minute or so."""
        world = World()
        world.create(NODES, NOT_OURS)
        world.create_device()
        world.start()
        world.delete(NODES, "dev")
        world.settle(70)
        self.assertEqual(KEY.provider_id, world.node["spec"]["providerID"])
        self.assertEqual(("False", "NoConflict"), world.condition(world.device, "Conflict"))

    def test_foreign_node_survives_deletion(self) -> None:
        """Deleting the EdgeDevice leaves a foreign Node and pod alone."""
        world = World()
        world.create(NODES, NOT_OURS)
        pod = world.create(PODS, {"metadata": {"name": "dev"}, "spec": {"containers": [{"name": "a"}]}})
        world.create_device()
        world.start()
        world.delete(EDGEDEVICES, "dev")
        world.settle()
        self.assertIsNone(world.stored(EDGEDEVICES))
        self.assertEqual("aws:///i-1", world.node["spec"]["providerID"])
        self.assertEqual(pod["metadata"]["uid"], world.pod["metadata"]["uid"])

    def test_foreign_pod(self) -> None:
        """A pod of our name that is somebody else's is not touched; the Node is there all the same."""
        world = World()
        spec = {"containers": [{"name": "a", "image": "b"}]}
        pod = world.create(PODS, {"metadata": {"name": "dev"}, "spec": spec})
        world.create_device()
        world.start()
        self.assertEqual(pod, world.pod)
        self.assertEqual(("True", "PodNotOurs"), world.condition(world.device, "Conflict"))
        self.assertEqual(KEY.provider_id, world.node["spec"]["providerID"])
        self.assertEqual("", world.endpoints.pods[KEY].uid)
        world.delete(PODS, "dev", grace=0)
        world.settle()
        self.assertEqual(["host"], [entry["name"] for entry in world.pod["spec"]["containers"]])

    def test_port_taken(self) -> None:
        """When the former port is taken the endpoint gets another one, and all are told."""
        world = self.lead()
        world.endpoints.taken = {world.endpoints.port(KEY)}
        taken = world.endpoints.taken
        world.controller.stopService()
        world.new_process()
        world.endpoints.taken = taken
        world.endpoints._next = 50000
        world.start()
        port = world.endpoints.port(KEY)
        self.assertNotIn(port, taken)
        self.assertEqual(port, world.node["status"]["daemonEndpoints"]["kubeletEndpoint"]["Port"])
        self.assertEqual(port, world.device["status"]["kubeletPort"])

    def test_cannot_listen(self) -> None:
        """An endpoint that cannot listen is told, and tried again after a while."""
        world = World()
        world.endpoints.refuse = OSError(13, "Permission denied")
        world.create_device()
        world.start()
        self.assertEqual(("True", "EndpointFailed"), world.condition(world.device, "Conflict"))
        self.assertIsNone(world.stored(NODES))
        world.endpoints.refuse = None
        world.settle(70)
        self.assertIsNotNone(world.stored(NODES))

    def test_foreign_node_in_our_place(self) -> None:
        """When another Node takes the place of ours, nothing of ours stays on it."""
        world = World()
        world.create_device()
        world.start()
        world.delete(NODES, "dev")
        world.create(NODES, NOT_OURS)
        world.settle(20)
        self.assertEqual((None, 0), (world.stored(PODS), world.endpoints.port(KEY)))
        self.assertIsNone(world.stored(LEASES, namespace="kube-node-lease"))
        self.assertEqual("aws:///i-1", world.node["spec"]["providerID"])

    def test_fight(self) -> None:
        """Against somebody who undoes each write at once, there are not many writes."""
        world = World()
        world.create_device()
        world.start()
        world.devices.come(FakeDevice(KEY))
        world.settle()

        def undo(request: Request) -> None:
            if request.method == "PATCH" and request.plural == "pods" and not request.sub:
                request.body["metadata"]["labels"] = {"arhat.dev/name": "theirs"}

        world.server.before = undo
        world.patch(PODS, "dev", {"metadata": {"labels": {"arhat.dev/name": "theirs"}}})
        world.settle(60)
        before = len(world.writes())
        world.settle(60)
        patches = [write for write in world.writes()[before:] if write.endswith("/pods/dev")]
        self.assertLess(len(patches), 60 * 16 / 4)


class CertificateTests(Case):
    """Serving certificates in their Secrets."""

    def test_kept(self) -> None:
        """A restart uses the certificate that is there, at the same port if it can."""
        world = self.lead()
        port = world.endpoints.port(KEY)
        world.restart()
        self.assertEqual(1, len(world.signer.asked))
        self.assertEqual(port, world.endpoints.port(KEY))

    def test_covers_all_replicas(self) -> None:
        """A certificate covers every replica, so a failover needs none."""
        world = self.lead()
        self.assertEqual(("10.0.0.1", "10.0.0.2"), world.signer.asked[0][1])
        world.config = ControllerConfig("aranya", "edge", "10.0.0.2", ("10.0.0.1",))
        world.restart()
        self.assertEqual(1, len(world.signer.asked))
        self.assertEqual("10.0.0.2", world.node["status"]["addresses"][0]["address"])

    def test_other_address(self) -> None:
        """An address that the certificate lacks is published only with a new certificate."""
        world = self.lead()
        world.config = ControllerConfig("aranya", "edge", "10.0.0.9")
        world.signer.held = []
        world.restart()
        self.assertEqual("10.0.0.1", world.node["status"]["addresses"][0]["address"])
        self.assertEqual(0, world.endpoints.port(KEY))
        world.signer.held[0].callback(None)
        world.settle()
        self.assertEqual("10.0.0.9", world.node["status"]["addresses"][0]["address"])

    def test_renewal(self) -> None:
        """At two thirds of its life a certificate is renewed and swapped, the endpoint going on."""
        world = self.lead()
        first = world.endpoints.certificates[KEY]
        world.clock.advance(20 * 86400 + 1)
        world.settle()
        self.assertEqual(2, len(world.signer.asked))
        self.assertNotEqual(first, world.endpoints.certificates[KEY])
        self.assertEqual([], world.endpoints.stopped)

    def test_subject_changed(self) -> None:
        """Another subject in the spec makes another certificate."""
        world = self.lead()
        world.patch(EDGEDEVICES, "dev", {"spec": {"node": {"cert": {"orgUnit": "harbour"}}}})
        world.settle()
        self.assertEqual("harbour", world.signer.asked[-1][2].org_unit)
        world.settle(30)
        self.assertEqual(2, len(world.signer.asked))

    def test_refused(self) -> None:
        """A refused certificate is told, and asked for again later; no Node is there before."""
        world = World()
        world.signer.error = "the request was denied: policy"
        world.create_device()
        world.start()
        self.assertEqual(("False", "IssueFailed"), world.condition(world.device, "CertificateReady"))
        self.assertIsNone(world.stored(NODES))
        world.signer.error = ""
        world.settle(8)
        self.assertEqual(("True", "Issued"), world.condition(world.device, "CertificateReady"))
        self.assertIsNotNone(world.stored(NODES))

    def test_deleted_while_asking(self) -> None:
        """An EdgeDevice goes at once though the signer does not answer."""
        world = World()
        world.signer.held = []
        world.create_device()
        world.start()
        world.delete(EDGEDEVICES, "dev")
        world.settle(2)
        self.assertIsNone(world.stored(EDGEDEVICES))
        self.assertIsNone(world.stored(SECRETS, "kubelet-tls.dev", "aranya"))


class DeletionTests(Case):
    """From an EdgeDevice that is deleted to nothing at all."""

    def nothing_left(self, world: World) -> None:
        self.assertIsNone(world.stored(EDGEDEVICES))
        for resource in (NODES, PODS, LEASES, SECRETS):
            self.assertEqual([], world.server.all_stored(resource), resource.plural)
        self.assertEqual(({}, {}), (world.endpoints.ports, world.devices.here))

    def test_all_goes(self) -> None:
        """Deleting the EdgeDevice takes all that was made of it within two seconds."""
        world = self.lead()
        world.delete(EDGEDEVICES, "dev")
        world.settle(2)
        self.nothing_left(world)
        self.assertEqual([(KEY, "the EdgeDevice was deleted")], world.devices.disconnected)
        self.assertEqual(KEY, world.joins.forgotten[0][0])
        before = len(world.server.requests)
        world.settle(120)
        self.assertEqual(before, len(world.server.requests))

    def test_deleted_while_away(self) -> None:
        """An EdgeDevice deleted while nobody leads goes when somebody does."""
        world = self.lead()
        world.controller.stopService()
        world.delete(EDGEDEVICES, "dev")
        world.new_process()
        world.start()
        self.nothing_left(world)

    def test_deleted_while_the_device_is_away(self) -> None:
        """Sessions that wait for the device end with its EdgeDevice."""
        world = self.lead()
        world.devices.go(KEY)
        world.settle(60)
        world.delete(EDGEDEVICES, "dev")
        world.settle(2)
        self.nothing_left(world)
        self.assertEqual([(KEY, "the EdgeDevice was deleted")], world.devices.disconnected)

    def test_finaliser_stripped(self) -> None:
        """What an EdgeDevice leaves whose finaliser was stripped while nobody led is swept up."""
        world = self.lead()
        world.controller.stopService()
        world.patch(EDGEDEVICES, "dev", {"metadata": {"finalizers": None}})
        world.delete(EDGEDEVICES, "dev")
        world.new_process()
        world.start()
        self.nothing_left(world)

    def test_made_again(self) -> None:
        """An EdgeDevice made again under the same name starts anew."""
        world = self.lead()
        world.delete(EDGEDEVICES, "dev")
        world.settle(2)
        world.create_device()
        world.settle(5)
        owner = world.pod["metadata"]["ownerReferences"][0]
        self.assertEqual(world.device["metadata"]["uid"], owner["uid"])
        self.assertEqual(("False", "NeverConnected"), world.condition(world.device, "Connected"))

    def test_rights_gone(self) -> None:
        """A namespace that took our rights in it first does not wait for us."""
        world = self.lead()

        def refuse(request: Request) -> None:
            if request.namespace == "edge" and request.plural in ("pods", "secrets"):
                raise Refusal(403, "Forbidden", "the Role is gone already")

        world.server.before = refuse
        world.delete(EDGEDEVICES, "dev")
        world.settle(2)
        self.assertIsNone(world.stored(EDGEDEVICES))
        self.assertIsNone(world.stored(NODES))

    def test_rights_gone_before_the_device(self) -> None:
        """While a namespace goes, its EdgeDevices last, the missing rights are not asked for in a loop."""
        world = self.lead()

        def refuse(request: Request) -> None:
            if request.namespace == "edge" and request.plural in ("pods", "serviceaccounts"):
                raise Refusal(403, "Forbidden", "the Role is gone already")

        world.delete(PODS, "dev")
        world.server.before = refuse
        before = len(world.server.requests)
        world.settle(20)
        asked = [one.plural for one in world.server.requests[before:] if one.method == "POST"]
        self.assertLessEqual(asked.count("pods"), 1)
        world.delete(EDGEDEVICES, "dev")
        world.settle(2)
        self.assertIsNone(world.stored(EDGEDEVICES))
        self.assertIsNone(world.stored(NODES))

    def test_rights_gone_before_the_start(self) -> None:
        """Nor does it when we begin to lead only then, and never see its pods."""
        world = self.lead()
        world.controller.stopService()
        world.delete(EDGEDEVICES, "dev")

        def refuse(request: Request) -> None:
            if request.namespace == "edge" and request.plural == "pods":
                raise Refusal(403, "Forbidden", "the Role is gone already")

        world.server.before = refuse
        world.new_process()
        world.start()
        self.assertIsNone(world.stored(EDGEDEVICES))
        self.assertIsNone(world.stored(NODES))

    def test_others_finaliser(self) -> None:
        """A finaliser of somebody else keeps the EdgeDevice, not what we made of it."""
        world = self.lead()
        finalizers = [*world.device["metadata"]["finalizers"], "example.com/hold"]
        world.patch(EDGEDEVICES, "dev", {"metadata": {"finalizers": finalizers}})
        world.delete(EDGEDEVICES, "dev")
        world.settle(10)
        self.assertEqual(["example.com/hold"], world.device["metadata"]["finalizers"])
        self.assertEqual([], world.server.all_stored(NODES))


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
