"""Agents that stand by, as the controller tells of them."""

from __future__ import annotations

from typing import Any

from aranya.kube.memory_requests import Request
from aranya.kube.objects import EDGEDEVICES
from test.aranya.controller.harness import KEY, Case, World
from test.support.devices import FakeDevice


class StandbyTests(Case):
    """Agents that stand by, in the EdgeDevice's status."""

    def told(self, world: World) -> tuple[Any, str]:
        """The standbys, ``None`` if there is no such field, and what ``Connected`` says."""
        status = world.device["status"]
        (message,) = (entry["message"] for entry in status["conditions"] if entry["type"] == "Connected")
        return status.get("standbys"), message

    def status_writes(self, world: World) -> int:
        return len([write for write in world.writes() if write.endswith("edgedevices/dev/status")])

    def test_come_and_go(self) -> None:
        """They are told as they come, each with version and address, and taken away as they go."""
        world = self.lead()
        self.assertEqual((None, "the device is connected"), self.told(world))
        world.devices.stand_by(KEY, FakeDevice(KEY, software="0.2.0", address="192.0.2.8:1"))
        world.settle(1)
        first = {"version": "0.2.0", "address": "192.0.2.8:1"}
        self.assertEqual(([first], "the device is connected; 1 agent stands by"), self.told(world))
        world.devices.stand_by(KEY, FakeDevice(KEY, software="0.2.0", address="192.0.2.8:1"), FakeDevice(KEY))
        world.settle(1)
        second = {"version": "0.1.0", "address": "192.0.2.7"}
        self.assertEqual(([first, second], "the device is connected; 2 agents stand by"), self.told(world))
        world.devices.stand_by(KEY)
        world.settle(1)
        self.assertEqual((None, "the device is connected"), self.told(world))
        self.assertEqual(["CertificateIssued", "DeviceConnected"], world.journal.reasons)

    def test_takeover(self) -> None:
        """One that takes over is the agent, and stands by no more."""
        world = self.lead()
        world.devices.stand_by(KEY, FakeDevice(KEY, software="0.2.0"))
        world.settle(1)
        world.devices.stand_by(KEY)
        world.devices.come(FakeDevice(KEY, software="0.2.0"))
        world.settle(1)
        self.assertEqual("0.2.0", world.device["status"]["agent"]["version"])
        self.assertEqual((None, "the device is connected"), self.told(world))

    def test_untrusted(self) -> None:
        """What they say is printable, and not without end."""
        world = self.lead()
        world.devices.stand_by(KEY, *[FakeDevice(KEY, software="a\x1b[31m" * 99) for _ in range(20)])
        world.settle(1)
        told, message = self.told(world)
        self.assertEqual((16, "the device is connected; 20 agents stand by"), (len(told), message))
        self.assertTrue(all(one["version"].isprintable() and len(one["version"]) <= 128 for one in told))

    def test_another_one(self) -> None:
        """One in the place of another is told with the next last contact, within a minute."""
        world = self.lead()
        world.devices.stand_by(KEY, FakeDevice(KEY, address="192.0.2.8:1"))
        world.settle(1)
        world.devices.stand_by(KEY, FakeDevice(KEY, address="192.0.2.8:2"))
        world.settle(65)
        self.assertEqual("192.0.2.8:2", self.told(world)[0][0]["address"])

    def test_all_away(self) -> None:
        """They count as here as long as the device does, and go with it."""
        world = self.lead()
        world.devices.stand_by(KEY, FakeDevice(KEY))
        world.settle(1)
        before = self.told(world)
        world.devices.go(KEY)
        world.devices.stand_by(KEY)
        world.settle(3)
        self.assertEqual(before, self.told(world))
        world.settle(4)
        self.assertEqual((None, "the device is not connected"), self.told(world))

    def test_new_leader(self) -> None:
        """A new leader gives them time to come back, too."""
        world = self.lead()
        world.devices.stand_by(KEY, FakeDevice(KEY))
        world.settle(1)
        before, written = self.told(world), self.status_writes(world)
        world.restart()
        world.settle(5)
        self.assertEqual((before, written), (self.told(world), self.status_writes(world)))
        world.devices.stand_by(KEY, FakeDevice(KEY))
        world.devices.come(FakeDevice(KEY))
        world.settle(5)
        self.assertEqual(before, self.told(world))

    def test_former_schema(self) -> None:
        """A server that drops the field is not told of it again and again."""
        world = self.lead()

        def drop(request: Request) -> None:
            if request.method == "PATCH" and request.sub == "status" and request.plural == "edgedevices":
                request.body["status"].pop("standbys", None)

        world.server.before = drop
        world.devices.stand_by(KEY, FakeDevice(KEY))
        world.settle(1)
        self.assertEqual((None, "the device is connected; 1 agent stands by"), self.told(world))
        before = self.status_writes(world)
        world.settle(100)
        self.assertLessEqual(self.status_writes(world) - before, 2)

    def test_ban(self) -> None:
        """A ban takes all agents' links and names none of them any more."""
        world = self.lead()
        world.devices.stand_by(KEY, FakeDevice(KEY))
        world.settle(1)
        world.patch(EDGEDEVICES, "dev", {"spec": {"banned": True}})
        world.settle(1)
        self.assertIsNone(self.told(world)[0])
        self.assertEqual(1, len(world.devices.disconnected))
