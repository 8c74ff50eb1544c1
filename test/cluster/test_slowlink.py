"""A bad road between device and gateway: slow, cut, silent, gone for long, and sessions that end with it."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from test.cluster.daemons import Site, Twistd, kubectls, spare_plane, spare_site, wait_until
from test.cluster.kubectl import Completed, Kubectl
from test.cluster.proxy import Road
from test.cluster.terminal import Terminal
from test.cluster.test_exec import MIB, processes_with
from test.cluster.test_forward import echo, server

MEGABIT = 1_000_000
#: Seconds that a link of this device may be silent before it counts as lost.
KEEPALIVE, PATIENCE = 5, 15


class RoadCase(SynchronousTestCase):
    """Has a site of its own and a device that comes by the bad road, alone."""

    device: str
    #: How long its sessions outlive a link.
    grace: int

    def setUp(self) -> None:
        """Have the device online, over the road."""
        self.site: Site = spare_site()
        for agent in self.site.devices.values():
            agent.kill()
        self.clients = kubectls(plane=spare_plane())
        self.road = Road(self.site.detours[0], self.site.gateway_port)
        self.road.__enter__()
        self.addCleanup(self.road.close)
        if self.device in self.site.devices:
            # What another test's agent logged must not be taken for what this one does.
            self.agent.log.unlink()
            self.agent.start()
            self.site.wait_online(self.device)
        else:
            self.add_device()
        self.assertGreater(self.road.up.carried, 0, self.site.explain())

    def add_device(self, *, config: str = "", **spec: Any) -> None:
        """Make the device."""
        spec["connectivity"] = {"keepaliveSeconds": KEEPALIVE, "graceSeconds": self.grace}
        self.site.add_device(self.device, spec, config=config)

    @property
    def agent(self) -> Twistd:
        """The device's agent."""
        return self.site.devices[self.device]

    def assert_code(self, done: Completed, code: int) -> None:
        """The exit code is this one; if not, show everything."""
        self.assertEqual(done.code, code, f"{done}\n{self.site.explain()}")

    def running(self, client: Kubectl, mark: str) -> subprocess.Popen[bytes]:
        """Start a long exec and wait until it runs."""
        process = client.start("exec", "-i", self.device, "--", "sh", "-c", f"echo up; sleep {mark}; true")
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        assert process.stdout is not None
        self.assertEqual(process.stdout.readline(), b"up\n", self.site.explain())
        return process

    def links(self) -> int:
        """How often the device has connected."""
        return self.agent.text().count("connected to ")


class BriefCase(RoadCase):
    """Of a device whose sessions end with the link."""

    device = "far-away"
    grace = 0


class SlowRoadTests(BriefCase):
    """1 Mbit/s each way."""

    def setUp(self) -> None:
        """Slow the road down."""
        super().setUp()
        self.folder = Path(self.mktemp()).absolute()
        self.folder.mkdir()
        self.road.slow(MEGABIT)

    def beside(self, bulk: subprocess.Popen[bytes]) -> list[float]:
        """Type into a shell on the device as long as the bulk copy runs; give each key's round trip."""
        client = self.clients[-1]
        terminal = Terminal(client.command("exec", "-it", self.device, "--", "sh"), client.environment())
        self.addCleanup(terminal.close)
        terminal.type(b"PS1=; echo rea''dy\n")
        terminal.expect(b"ready\r\n")
        taken: list[float] = []
        while bulk.poll() is None and len(taken) < 100:
            key = b"k%03d" % len(taken)
            began = time.monotonic()
            terminal.type(key)
            terminal.expect(key)
            taken.append(time.monotonic() - began)
            time.sleep(0.1)
        return taken

    def copy(self, *words: str) -> None:
        """Copy with ``kubectl cp`` and expect the link to stay and keys to stay quick."""
        client, links = self.clients[-1], self.links()
        before = self.road.up.carried + self.road.down.carried
        began = time.monotonic()
        bulk = subprocess.Popen(
            client.command("cp", *words),
            env=client.environment(),
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        self.addCleanup(bulk.wait)
        self.addCleanup(bulk.kill)
        wait_until(
            "the copy is under way",
            lambda: self.road.up.carried + self.road.down.carried - before > 100_000,
            10,
            self.site.explain,
        )
        taken = self.beside(bulk)
        _, err = bulk.communicate(timeout=30)
        self.assertEqual(bulk.returncode, 0, err)
        self.assertGreater(time.monotonic() - began, 7, "the road was not slow")
        self.assertGreater(len(taken), 4, taken)
        self.assertLess(max(taken), 2, taken)
        self.assertEqual(self.links(), links, self.site.explain())

    def test_copy_down(self) -> None:
        """A copy from the device keeps the link up and leaves keystrokes under 2 s."""
        data = os.urandom(MIB)
        (self.folder / "there").write_bytes(data)
        self.copy(f"{self.device}:{self.folder}/there", str(self.folder / "here"))
        self.assertTrue((self.folder / "here").read_bytes() == data)

    def test_copy_up(self) -> None:
        """A copy to the device keeps the link up and leaves keystrokes under 2 s."""
        data = os.urandom(MIB)
        (self.folder / "here").write_bytes(data)
        self.copy(str(self.folder / "here"), f"{self.device}:{self.folder}/there")
        self.assertTrue((self.folder / "there").read_bytes() == data)


class BrokenRoadTests(BriefCase):
    """The link ends in the middle of something."""

    def test_cut_in_mid_exec(self) -> None:
        """A broken connection ends kubectl with 1 and a reason within seconds, and the device is back."""
        for number, client in enumerate((self.clients[0], self.clients[-1])):
            mark = f"31{number}"
            process = self.running(client, mark)
            began = time.monotonic()
            self.road.cut()
            _, err = process.communicate(timeout=20)
            self.assertLess(time.monotonic() - began, 5)
            self.assertEqual(process.returncode, 1, err)
            self.assertIn(self.device.encode(), err)
            self.assertNotIn(b"Traceback", err)
            wait_until("nothing is left", lambda mark=mark: not processes_with(f"sleep\x00{mark}"), 10)
            self.site.wait_online(self.device, 10)

    def test_silence(self) -> None:
        """A road that swallows everything is noticed: sessions end, new ones are refused, all comes back."""
        client = self.clients[-1]
        process = self.running(client, "320")
        began = time.monotonic()
        self.road.silence()
        _, err = process.communicate(timeout=KEEPALIVE + PATIENCE + 8)
        self.assertGreater(time.monotonic() - began, 1)
        self.assertEqual(process.returncode, 1, err)
        self.assertIn(self.device.encode(), err)
        began = time.monotonic()
        done = client.run("exec", self.device, "--", "true")
        self.assert_code(done, 1)
        self.assertIn(b"offline", done.err)
        self.assertLess(time.monotonic() - began, 2)
        wait_until("nothing is left", lambda: not processes_with("sleep\x00320"), 20, self.site.explain)
        self.road.resume()
        self.site.wait_online(self.device)

    def test_port_forward(self) -> None:
        """A forwarded connection ends with the link, and kubectl says why; it never exits with 0.

        kubectl ends when a connection failed; one of 1.20 goes on, and works when the device is back.
        """
        for client in self.clients:
            with server(echo) as port:
                process = client.start("port-forward", self.device, f":{port}")
                self.addCleanup(process.wait)
                self.addCleanup(process.kill)
                assert process.stdout is not None and process.stderr is not None
                words = process.stdout.readline().decode()
                local = int(words.partition("127.0.0.1:")[2].split()[0])
                self.assert_echoes(local, and_then=self.road.cut)
                ready, _, _ = select.select([process.stderr], [], [], 10)
                self.assertTrue(ready, "kubectl said nothing")
                told = process.stderr.readline()
                self.assertIn(b"error forwarding port", told)
                self.assertIn(self.device.encode(), told)
                self.site.wait_online(self.device, 10)
                if process.poll() is None and client is self.clients[0]:
                    self.assert_echoes(local)
                else:
                    self.assertEqual(process.wait(10), 1)

    def assert_echoes(self, port: int, and_then: Callable[[], object] | None = None) -> None:
        """The forwarded port answers; if something is done then, its connection ends."""
        with socket.create_connection(("127.0.0.1", port), 10) as connection:
            connection.sendall(b"hello")
            self.assertEqual(connection.recv(5), b"hello")
            if and_then is not None:
                and_then()
                with contextlib.suppress(ConnectionError):
                    self.assertEqual(connection.recv(5), b"")


class LongAbsenceTests(BriefCase):
    """aranya is away for a while."""

    def test_back_after_many_failures(self) -> None:
        """A device that failed many times is back soon after aranya is."""
        self.assertEqual(self.site.controller.terminate(), 0)
        begun = self.road.begun
        wait_until("the device has tried again and again", lambda: self.road.begun >= begun + 4, 25)
        self.assertTrue(self.agent.is_alive())
        self.site.controller.start()
        self.site.wait_ready()
        self.site.wait_online(self.device)
        # It told of its trouble in one line, not at each try.
        told = [line for line in self.agent.text().splitlines() if "next try in" in line]
        self.assertLess(len(told), 30, told)
        self.assertNotIn("Traceback", self.agent.text())
