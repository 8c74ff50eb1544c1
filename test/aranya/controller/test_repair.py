"""What others change or take away comes back, and what is theirs is left alone."""

from __future__ import annotations

from aranya.kube.memory_requests import Request
from aranya.kube.objects import EDGEDEVICES, LEASES, NODES, PODS, SECRETS
from test.aranya.controller.harness import KEY, NOT_OURS, Case, World
from test.support.devices import FakeDevice


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
