"""Two replicas of aranya: one leads, the other takes over when it dies or leaves."""

from __future__ import annotations

import json
import socket
import time

from twisted.trial.unittest import SynchronousTestCase

from test.cluster.daemons import (
    OWN_NAMESPACE,
    Site,
    Twistd,
    free_port,
    kubectls,
    spare_plane,
    spare_site,
    wait_until,
)
from test.cluster.proxy import Road
from test.cluster.test_exec import processes_with

DEVICE = "followed"


class ReplicaTests(SynchronousTestCase):
    """A leader with a session under way, and a standby."""

    def setUp(self) -> None:
        """Have both; the leader is the site's own aranya."""
        self.site: Site = spare_site()
        self.client = kubectls(plane=spare_plane())[-1]
        self.road = Road(self.site.detours[0], self.site.gateway_port).open()
        self.addCleanup(self.road.close)
        if DEVICE not in self.site.devices:
            self.site.add_device(DEVICE)
        # A fresh agent is impatient; one that lost several links of late would wait long.
        self.site.devices[DEVICE].kill()
        self.site.devices[DEVICE].start()
        self.site.wait_online(DEVICE)
        self.health = free_port()
        self.standby = Twistd("standby", [], self.site.folder / "standby")
        self.standby.words = self.site.controller_words(self.site.detours[1], self.health)
        self.standby.start()
        self.addCleanup(self.restore)
        wait_until("the standby waits", lambda: b" 503 " in self.ask("/readyz"), 20, self.standby.tail)

    def restore(self) -> None:
        """Let the site's own aranya lead again."""
        if self.standby.is_alive():
            self.standby.terminate()
        if not self.site.controller.is_alive():
            self.site.controller.start()
        self.site.wait_ready()

    def ask(self, path: str) -> bytes:
        """What the standby's health endpoint answers."""
        try:
            with socket.create_connection(("127.0.0.1", self.health), 2) as asked:
                asked.sendall(f"GET {path} HTTP/1.0\r\n\r\n".encode())
                return asked.recv(1000)
        except OSError:
            return b""

    def lease(self) -> dict[str, object]:
        """What the Lease says."""
        done = self.site.admin.run("get", "lease", "aranya", "-n", OWN_NAMESPACE, "-o", "json")
        spec: dict[str, object] = json.loads(done.out)["spec"]
        return spec

    def certificate(self) -> bytes:
        """The device's Node certificate."""
        done = self.site.admin.run(
            *("get", "secret", f"kubelet-tls.{DEVICE}", "-n", OWN_NAMESPACE, "-o", "jsonpath={.data}")
        )
        assert done.out
        return done.out

    def works(self) -> bool:
        """Whether kubectl reaches the device."""
        return self.client.run("exec", DEVICE, "--", "true").code == 0

    def test_leader_killed(self) -> None:
        """SIGKILL of the leader ends its sessions non-zero; the standby leads after the Lease.

        When the device comes back is for its own dice: by then it waits up to half a minute.
        """
        before, certificate = self.lease(), self.certificate()
        self.assertIn(b" 200 ", self.ask("/healthz"))
        process = self.client.start("exec", "-i", DEVICE, "--", "sh", "-c", "echo up; sleep 350; true")
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        assert process.stdout is not None
        self.assertEqual(process.stdout.readline(), b"up\n")
        self.site.controller.kill()
        began = time.monotonic()
        _, err = process.communicate(timeout=10)
        self.assertNotEqual(process.returncode, 0, err)
        wait_until("the standby leads", lambda: b" 200 " in self.ask("/readyz"), 25, self.standby.tail)
        self.assertLess(time.monotonic() - began, 25)
        wait_until("exec works again", self.works, 40, self.site.explain)
        after = self.lease()
        self.assertNotEqual(after["holderIdentity"], before["holderIdentity"])
        self.assertEqual(after["leaseTransitions"], int(str(before["leaseTransitions"])) + 1)
        self.assertEqual(self.certificate(), certificate)
        wait_until("nothing is left", lambda: not processes_with("sleep\x00350"), 10)
        # The old leader comes back and stands by: the new one's device stays where it is.
        self.site.controller.start()
        wait_until("it answers", lambda: "standing by" in self.site.controller.tail(), 15)
        self.assertFalse(self.site.ready())
        self.assertTrue(self.works())

    def test_leader_leaves(self) -> None:
        """A leader that is asked to end hands over within seconds."""
        self.assertEqual(self.site.controller.terminate(), 0)
        wait_until("the standby leads", lambda: b" 200 " in self.ask("/readyz"), 8, self.standby.tail)
        wait_until("exec works again", self.works, 20, self.standby.tail)
        self.assertNotIn("Traceback", self.standby.text() + self.site.controller.text())

    def test_standby_refuses_devices(self) -> None:
        """A standby does not listen for devices."""
        with self.assertRaises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", self.site.detours[1]), 5).close()
