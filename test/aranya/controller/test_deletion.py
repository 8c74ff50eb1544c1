"""Whatever belongs to an EdgeDevice goes with it."""

from __future__ import annotations

from aranya.kube.memory_requests import Refusal, Request
from aranya.kube.objects import EDGEDEVICES, LEASES, NODES, PODS, SECRETS
from test.aranya.controller.harness import KEY, Case, World


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
