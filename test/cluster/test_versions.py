"""Either side may be upgraded first: daemons of two versions, and kubectl, which must not notice."""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import sys
import threading
from collections.abc import Iterator
from functools import partial

from test.cluster.daemons import Twistd, wait_until
from test.cluster.kubectl import Kubectl
from test.cluster.otherversion import SPEAKS
from test.cluster.session import SOON
from test.cluster.test_flapping import FlappingCase, counted, counter, is_gone
from test.cluster.test_forward import echo, received, server

#: An agent's child knows which agent serves it.
WHO = ("sh", "-c", "echo $PPID")
#: What a daemon logs when the other one said what it may not say.
VIOLATION = "broke the protocol"

NEWER = "newer"
#: Knows no capability at all.
OLDER = "older"
OLDER_THAT_RESUMES = "older resume"


class OtherVersion(Twistd):
    """A daemon in the place of another, with its command line, that speaks as one of another version."""

    def __init__(self, daemon: Twistd, speaks: str) -> None:
        super().__init__(daemon.name, daemon.words, daemon.folder, {SPEAKS: speaks})
        self.program = (sys.executable, "-m", "test.cluster.otherversion")


class VersionCase(FlappingCase):
    """Has a device whose agent, or whose controller, is put in the place of this version's."""

    device = "of-ages"

    def setUp(self) -> None:
        """Have the device online, both sides of this version."""
        super().setUp()
        self.client = self.clients[-1]

    def put(self, speaks: str) -> None:
        """Put an agent in the place of the one that runs."""
        before = self.agent
        self.addCleanup(self.site.devices.__setitem__, self.device, before)
        before.kill()
        other = self.site.devices[self.device] = OtherVersion(before, speaks)
        self.addCleanup(other.kill)
        other.start()
        self.site.wait_online(self.device)

    def put_controller(self, speaks: str) -> None:
        """Put a controller in the place of the one that runs."""
        self.addCleanup(self.restore, self.site.controller)
        # A fresh agent is impatient.
        self.agent.kill()
        self.assertEqual(self.site.controller.terminate(), 0)
        self.site.controller = OtherVersion(self.site.controller, speaks)
        self.site.controller.start()
        self.site.wait_ready()
        self.agent.start()
        self.site.wait_online(self.device)

    def restore(self, controller: Twistd) -> None:
        """Have this version's controller again."""
        self.site.controller.terminate()
        self.site.controller = controller
        controller.start()
        self.site.wait_ready()

    # ---- what must work

    def assert_works(self) -> None:
        """All that kubectl does with a device, with an old kubectl and a new one."""
        for client in self.clients:
            self.assert_executes(client)
            self.assert_reads_logs(client)
            self.assert_copies(client)
            self.assert_forwards(client)
        for daemon in (self.agent, self.site.controller):
            self.assertNotIn("Traceback", daemon.text())
            self.assertNotIn(VIOLATION, daemon.text())

    def assert_executes(self, client: Kubectl) -> None:
        """Exit codes, both outputs, input, and a terminal that is resized."""
        script = "read line; echo out $line; echo err >&2; exit 7"
        done = client.run("exec", "-i", self.device, "--", "sh", "-c", script, input=b"in\n")
        self.assert_code(done, 7)
        self.assertEqual(done.out, b"out in\n")
        self.assertIn(b"err\n", done.err)
        terminal = self.shell(client, "exec", "-it", self.device, "--", "sh")
        terminal.resize(111, 33)
        terminal.type(b"until [ \"$(stty size)\" = '33 111' ]; do :; done; echo resi''zed; exit 5\n")
        terminal.expect(b"resized", SOON)
        self.assertEqual(terminal.wait(), 5)

    def assert_reads_logs(self, client: Kubectl) -> None:
        """A log, and one that grows."""
        self.log.write_text("begin\n")
        done = client.run("logs", self.device, "-c", "app")
        self.assert_code(done, 0)
        self.assertEqual(done.out, b"begin\n")
        following = self.start(client, "logs", "-f", self.device, "-c", "app")
        self.assertEqual(following.line(), b"begin\n")
        with self.log.open("a") as log:
            log.write("end\n")
        self.assertEqual(following.line(), b"end\n")
        following.kill()

    def assert_copies(self, client: Kubectl) -> None:
        """A file there and back."""
        path, digest = self.data_file(2)
        there, back = self.folder / "there", self.folder / "back"
        self.assert_code(client.run("cp", str(path), f"{self.device}:{there}"), 0)
        self.assert_code(client.run("cp", f"{self.device}:{there}", str(back)), 0)
        for copied in (there, back):
            self.assertEqual(hashlib.sha256(copied.read_bytes()).hexdigest(), digest)
            copied.unlink()

    def assert_forwards(self, client: Kubectl) -> None:
        """Bytes both ways, and a half close."""
        data = os.urandom(300_000)
        with server(echo) as port, self.forwarded(client, port) as local:
            connection = socket.create_connection(("127.0.0.1", local), SOON)
            self.addCleanup(connection.close)
            sending = threading.Thread(target=self.send, args=(connection, data))
            sending.start()
            self.assertTrue(received(connection) == data)
            sending.join()

    def send(self, connection: socket.socket, data: bytes) -> None:
        """All of it, then the end."""
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)

    @contextlib.contextmanager
    def forwarded(self, client: Kubectl, port: int) -> Iterator[int]:
        """A local port that kubectl forwards to this one of the device."""
        session = self.start(client, "port-forward", self.device, f":{port}")
        try:
            yield int(session.line().partition(b"127.0.0.1:")[2].split()[0])
        finally:
            session.kill()

    # ---- what a cut does

    def assert_goes_on(self) -> None:
        """Sessions outlive the link."""
        running = [self.begun(client, counter(150, code=3)) for client in self.clients]
        links = self.links()
        self.road.cut()
        for process in running:
            self.assert_ends(process, 3, counted(150))
        self.assertEqual(self.links(), links + 1, self.site.explain())

    def assert_ends_with_link(self, mark: str) -> None:
        """Sessions end with the link, on both sides, with 1 and a reason; then the device is back."""
        running = [self.begun(client, f"sleep {mark}; true") for client in self.clients]
        self.road.cut()
        for process in running:
            self.assertIn("went offline", self.assert_given_up(process, 5))
        wait_until("nothing is left", partial(is_gone, mark), 10, self.site.explain)
        self.site.wait_online(self.device)


class AgentTests(VersionCase):
    """An agent of another version, and this version's controller."""

    def test_older(self) -> None:
        """With one that knows no capability all works; sessions end with the link."""
        self.put(OLDER)
        self.assert_works()
        self.assert_ends_with_link("460")

    def test_older_that_resumes(self) -> None:
        """With one that knows one of two capabilities, that one is used."""
        self.put(OLDER_THAT_RESUMES)
        self.assert_works()
        self.assert_goes_on()

    def test_newer(self) -> None:
        """With one that says more than this version knows all works, and all goes on."""
        self.put(NEWER)
        self.assert_works()
        self.assert_goes_on()


class ControllerTests(VersionCase):
    """A controller of another version, and this version's agent."""

    def test_older(self) -> None:
        """With one that knows no capability all works; sessions end with the link."""
        self.put_controller(OLDER)
        self.assert_works()
        self.assert_ends_with_link("461")

    def test_newer(self) -> None:
        """With one that says more than this version knows all works, and all goes on."""
        self.put_controller(NEWER)
        self.assert_works()
        self.assert_goes_on()
        self.assert_joins("joined-by-newer")

    def test_newer_agent_joins(self) -> None:
        """A device with a newer agent joins."""
        self.assert_joins("joined-as-newer", NEWER)

    def assert_joins(self, name: str, speaks: str = "") -> None:
        """A device joins, by an agent of this version or another."""
        self.site.create_device(name)
        agent = self.site.agent(name)
        if speaks:
            agent = OtherVersion(agent, speaks)
        self.addCleanup(self.site.devices.__delitem__, name)
        self.addCleanup(agent.kill)
        self.site.devices[name] = agent
        agent.start("--join", self.site.join_token(name))
        self.site.wait_online(name)
        self.assertIn(f"joined as edge/{name}", agent.text())


class TogetherTests(VersionCase):
    """Agents of two versions at once, as in the middle of an upgrade."""

    def setUp(self) -> None:
        """Have a second one of the same state folder, not yet started."""
        super().setUp()
        self.second = Twistd("second", self.agent.words, self.folder)
        self.site.devices["second"] = self.second
        self.addCleanup(self.second.kill)
        self.addCleanup(self.site.devices.__delitem__, "second")

    def serving(self) -> int:
        """The process that serves a new session."""
        done = self.client.run("exec", self.device, "--", *WHO)
        self.assert_code(done, 0)
        return int(done.out)

    def standbys(self) -> int:
        """How many stand by, as the EdgeDevice tells."""
        status = (self.site.get("edgedevice", self.device) or {}).get("status", {})
        return len(status.get("standbys", []))

    def test_upgrade(self) -> None:
        """A newer agent stands by, the older's sessions go on; when that one ends, the newer takes over."""
        self.put(OLDER)
        running = self.begun(self.client, counter(400, code=6))
        self.second.start()
        wait_until("one stands by", self.standbys, SOON, self.site.explain)
        self.assertEqual(self.serving(), self.agent.pid)
        self.assert_ends(running, 6, counted(400))
        self.assertEqual(self.agent.terminate(), 0)
        wait_until("the newer one serves", lambda: self.serving() == self.second.pid, 5, self.site.explain)
        self.assertEqual(self.standbys(), 0)

    def test_upgrade_on_a_long_road(self) -> None:
        """The same where an answer takes longer than a companion would be given for it."""
        self.put(OLDER)
        running = self.begun(self.client, counter(400, code=6))
        self.road.delay(0.6)
        self.second.start()
        wait_until("one stands by", self.standbys, SOON, self.site.explain)
        self.assert_ends(running, 6, counted(400))

    def test_downgrade(self) -> None:
        """An older agent does not tell its age and counts as the elder, whoever came first."""
        self.second = self.site.devices["second"] = OtherVersion(self.second, OLDER)
        self.addCleanup(self.second.kill)
        running = self.begun(self.client, counter(400, code=6))
        self.second.start()
        wait_until("the older one serves", lambda: self.serving() == self.second.pid, SOON, self.site.explain)
        self.assertEqual(self.standbys(), 1)
        self.assert_ends(running, 6, counted(400))
        self.assertEqual(self.agent.terminate(), 0)
        self.assertEqual(self.serving(), self.second.pid)
        self.assertNotIn(VIOLATION, self.second.text() + self.site.controller.text())
