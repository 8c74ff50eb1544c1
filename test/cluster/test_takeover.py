"""Two agents of one device: one is active, the other takes over, and who goes leaves in order."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from test.cluster.daemons import PROGRAMS, Twistd, wait_until
from test.cluster.kubectl import Completed, Kubectl
from test.cluster.proxy import Road
from test.cluster.session import SOON, Session
from test.cluster.test_exec import processes_with
from test.cluster.test_flapping import FlappingCase, counted, counter

#: An agent's child knows which agent serves it.
WHO = ("sh", "-c", "echo $PPID")
STANDING_BY = "standing by: another agent of this host is active"
ACTIVE = "active: new sessions come to this agent"


class TakeoverCase(FlappingCase):
    """Has a second agent, not yet started, with the state folder of the first."""

    device = "doubled"

    def setUp(self) -> None:
        """Have the first one online."""
        super().setUp()
        self.younger = Twistd("younger", self.agent.words, self.folder)
        self.site.devices["younger"] = self.younger
        self.addCleanup(self.end_agents)

    def end_agents(self) -> None:
        """Leave no agent of this device, whoever started it."""
        del self.site.devices["younger"]
        self.kill_all("\0".join(self.agent.words))
        self.younger.kill()
        self.agent.kill()

    def kill_all(self, mark: str) -> None:
        """Leave no process with this in its command line."""
        for pid in processes_with(mark):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def stand_by(self) -> None:
        """Start the second agent."""
        self.younger.start()
        wait_until("it stands by", lambda: STANDING_BY in self.younger.text(), SOON, self.site.explain)

    def stand_by_on_another_road(self) -> None:
        """Let the younger come by a road of its own; nobody else may take that one."""
        other = Road(self.site.detours[1], self.site.gateway_port).open()
        self.addCleanup(other.close)
        self.road.refuse()
        self.stand_by()
        self.assertEqual(other.begun, 1)
        other.refuse()
        self.road.admit()

    def standbys(self) -> list[dict[str, str]]:
        """Those that the EdgeDevice names."""
        status = (self.site.get("edgedevice", self.device) or {}).get("status", {})
        found: list[dict[str, str]] = status.get("standbys", [])
        return found

    def ask(self, client: Kubectl, *words: str) -> Completed:
        """Run a command on the device."""
        return client.run("exec", *self.host, "--", *words)

    def serving(self, client: Kubectl) -> int:
        """The process that serves a new session."""
        done = self.ask(client, *WHO)
        self.assert_code(done, 0)
        return int(done.out)

    def sleeper(self, client: Kubectl, mark: str) -> Session:
        """A session that does not end by itself; what may be left of it is killed in the end."""
        self.addCleanup(self.kill_all, f"sleep\0{mark}")
        return self.begun(client, f"exec sleep {mark}")

    def followed(self, client: Kubectl) -> Session:
        """Follow a log that has a line."""
        self.log.write_text("begin\n")
        process = self.start(client, "logs", "-f", self.device, "-c", "app")
        self.assertEqual(process.line(), b"begin\n")
        return process

    def assert_log_cut(self, process: Session, seconds: float) -> None:
        """It ends in time with the line that says why; kubectl takes any end of a log for a good one."""
        done = self.ended(process, seconds)
        self.assertRegex(done.out, rb"\Aaranya: log stream cut: device %s .*\n\Z" % self.device.encode())
        self.assertEqual(done.code, 0, done)


class StandbyTests(TakeoverCase):
    """While both are there."""

    def test_stands_by(self) -> None:
        """The younger stands by, says so, and the status tells of it; sessions go to the elder."""
        self.assertEqual(self.standbys(), [])
        self.stand_by()
        [told] = wait_until("the status tells of it", self.standbys, 5, self.site.explain)
        self.assertRegex(told["version"], r"\Aarhat/\d")
        self.assertRegex(told["address"], r"\A127\.0\.0\.1:\d+\Z")
        for client in self.clients:
            self.assertEqual(self.serving(client), self.agent.pid)
        self.assertEqual(self.younger.terminate(), 0)
        wait_until("the status tells of it no more", lambda: not self.standbys(), 5, self.site.explain)
        self.assertEqual(self.serving(self.clients[-1]), self.agent.pid)
        self.assertNotIn("Traceback", self.younger.text() + self.agent.text())

    def test_controller_restarted(self) -> None:
        """A new controller decides as the one before: the elder is active, with the shell that was there."""
        self.stand_by()
        before = self.shell(self.clients[-1], "attach", "-it", self.device)
        before.type(b"KEPT=4712; echo ke''pt\n")
        before.expect(b"kept")
        links = self.links(), self.younger_links()
        self.assertEqual(self.site.controller.terminate(), 0)
        self.assertNotEqual(before.wait(), 0)
        self.site.controller.start()
        self.site.wait_ready()
        wait_until("the elder is back", lambda: self.links() > links[0], 40, self.site.explain)
        wait_until("the younger is back", lambda: self.younger_links() > links[1], 40, self.site.explain)
        wait_until("one stands by", self.standbys, 5, self.site.explain)
        for client in self.clients:
            self.assertEqual(self.serving(client), self.agent.pid)
            after = self.shell(client, "attach", "-it", self.device)
            after.type(b"echo st''ill $KEPT.\n")
            after.expect(b"still 4712.")
            after.type(b"\x10\x11")
            self.assertEqual(after.wait(), 0)

    def younger_links(self) -> int:
        """How often the younger has connected."""
        return self.younger.text().count("connected to ")

    def test_cut(self) -> None:
        """A cut of the elder's link makes the younger active until it is back; its sessions go on."""
        self.stand_by_on_another_road()
        client = self.clients[-1]
        running = [self.begun(each, counter(600, code=6)) for each in self.clients]
        with self.outage():
            # The younger knows that the elder lives, so nobody ends its sessions meanwhile.
            for each in self.clients * 2:
                self.assertEqual(self.serving(each), self.younger.pid)
            wait_until("nobody stands by", lambda: not self.standbys(), 5, self.site.explain)
            other = self.begun(client, "read line; exit 8", "-i")
        wait_until("the elder is active", lambda: self.serving(client) == self.agent.pid, SOON)
        for process in running:
            self.assert_ends(process, 6, counted(600))
        other.say(b"\n")
        self.assert_ends(other, 8, b"")
        self.assertEqual(self.younger.text().count(ACTIVE), 1)
        self.assertEqual(self.younger.text().count(STANDING_BY), 2)

    def test_killed_in_an_outage(self) -> None:
        """An elder that dies while its link is cut has no sessions any more: the younger tells."""
        self.stand_by_on_another_road()
        running = [self.sleeper(client, f"46{number}") for number, client in enumerate(self.clients)]
        with self.outage():
            self.assertEqual(self.serving(self.clients[0]), self.younger.pid)
            self.agent.kill()
            for process in running:
                self.assert_given_up(process, 8)


class Questions:
    """Asks without a pause which agent serves, inside a ``with``, and keeps what was answered."""

    def __init__(self, client: Kubectl, device: str, at_once: int = 3) -> None:
        self._client = client
        self._words = ("exec", device, "--", *WHO)
        #: When each was asked, and what came of it.
        self._told: list[tuple[float, Completed]] = []
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._ask, daemon=True) for _ in range(at_once)]

    def __enter__(self) -> Questions:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(SOON)

    def _ask(self) -> None:
        while not self._over.is_set():
            began = time.monotonic()
            self._told.append((began, self._client.run(*self._words)))

    def failed(self) -> list[Completed]:
        """Those without an answer."""
        return [done for _, done in self._told if done.code]

    def answered(self, since: float = 0.0) -> list[int]:
        """Who answered those that were asked since then."""
        return [int(done.out) for began, done in list(self._told) if began >= since and not done.code]


class UpgradeTests(TakeoverCase):
    """As an operator does it: start the new one beside the old one, then tell the old one to go."""

    def start_by_kubectl(self, client: Kubectl) -> int:
        """Start another agent through kubectl; give its pid once it stands by."""
        log = self.folder / f"by-{client.binary.name}.log"
        line = shlex.join([str(PROGRAMS / "twistd"), "-n", "--pidfile=", *self.agent.words])
        done = self.ask(client, "sh", "-c", f"nohup {line} >{log} 2>&1 & echo $!")
        self.assert_code(done, 0)
        wait_until(
            "it stands by", lambda: log.exists() and STANDING_BY in log.read_text(), SOON, self.site.explain
        )
        return int(done.out)

    def test_recipe(self) -> None:
        """No session fails while one agent takes over from the other."""
        for client in self.clients:
            old = self.serving(client)
            new = self.start_by_kubectl(client)
            self.assertEqual(self.serving(client), old)
            with Questions(client, self.device) as questions:
                wait_until("the old one is busy", lambda: len(questions.answered()) > 6, SOON)
                self.assert_code(self.ask(client, "kill", str(old)), 0)
                told = time.monotonic()
                wait_until("the new one is", lambda new=new: questions.answered()[-6:] == [new] * 6, SOON)
            self.assertEqual(questions.failed(), [], self.site.explain())
            self.assertLessEqual(set(questions.answered()), {old, new})
            self.assertEqual(set(questions.answered(told)), {new})
            wait_until("the old one has left", partial(self.is_gone, old), SOON, self.site.explain)
        self.assertEqual(self.agent.wait(), 0)

    def is_gone(self, pid: int) -> bool:
        """Whether this agent has ended."""
        if pid == self.agent.pid:
            return not self.agent.is_alive()
        return not os.path.exists(f"/proc/{pid}")

    def test_sessions_go_on(self) -> None:
        """Whoever tells its agent to go has its own code, and so has who was there before, however late."""
        self.stand_by()
        running = [self.begun(client, "read line; echo $line; exit 9", "-i") for client in self.clients]
        client = self.clients[-1]
        attached = self.shell(client, "attach", "-it", self.device)
        done = self.ask(client, "sh", "-c", f"kill {self.agent.pid}; exit 7")
        self.assert_code(done, 7)
        for each in self.clients:
            self.assertEqual(self.serving(each), self.younger.pid)
        wait_until("nobody stands by", lambda: not self.standbys(), 5, self.site.explain)
        self.assertTrue(self.agent.is_alive())
        attached.type(b"echo go''es on $PPID.\n")
        attached.expect(b"goes on %d." % self.agent.pid)
        for process in running:
            process.say(b"here\n")
            self.assert_ends(process, 9, b"here\n")
        attached.type(b"exit\n")
        self.assertEqual(attached.wait(), 0)
        self.assertEqual(self.agent.wait(), 0)
        self.assertIn(ACTIVE, self.younger.text())

    def test_cut_while_it_drains(self) -> None:
        """A draining agent whose link is cut keeps its last session, and gets no new one by coming back."""
        self.assert_drains_over_a_cut()

    def test_cut_before_it_is_heard(self) -> None:
        """The same if its word of draining is lost with the link."""
        self.assert_drains_over_a_cut(partial(self.road.silence, newcomers=False))

    def assert_drains_over_a_cut(self, as_it_is_told: Callable[[], object] = lambda: None) -> None:
        """It has its last session, and every new one is the other's."""
        self.stand_by_on_another_road()
        client = self.clients[-1]
        process = self.begun(client, counter(600, code=5))
        as_it_is_told()
        os.kill(self.agent.pid, signal.SIGTERM)
        wait_until("it drains", lambda: "a second SIGTERM" in self.agent.text(), 5, self.site.explain)
        # Whatever it says when it comes back takes its time.
        self.road.delay(0.2)
        links = self.links()
        with Questions(client, self.device) as questions:
            with self.outage():
                wait_until("the new one serves", lambda: len(questions.answered()) > 2, SOON)
            wait_until("the old one is back", lambda: self.links() > links, SOON, self.site.explain)
            self.assert_ends(process, 5, counted(600), 30)
        self.assertEqual(questions.failed(), [], self.site.explain())
        self.assertEqual(set(questions.answered()), {self.younger.pid})
        self.assertEqual(self.agent.wait(), 0)

    def test_killed(self) -> None:
        """SIGKILL from within: all its sessions end with a reason, and the standby serves within a second."""
        self.stand_by()
        running = [self.sleeper(client, f"47{number}") for number, client in enumerate(self.clients)]
        followed = self.followed(self.clients[-1])
        began = time.monotonic()
        words = ("sh", "-c", f"kill -9 {self.agent.pid}")
        killer = self.start(self.clients[0], "exec", *self.host, "--", *words)
        wait_until("it is dead", lambda: not self.agent.is_alive(), SOON)
        died = time.monotonic()
        self.assertEqual(self.serving(self.clients[-1]), self.younger.pid)
        self.assertLess(time.monotonic() - died, 1.5)
        for process in (killer, *running):
            self.assert_given_up(process, 3)
        self.assert_log_cut(followed, 1)
        self.assertLess(time.monotonic() - began, 8)

    def test_killed_while_it_drains(self) -> None:
        """An agent that dies before its last session has ended takes that with it."""
        self.stand_by()
        running = [self.sleeper(client, f"48{number}") for number, client in enumerate(self.clients)]
        os.kill(self.agent.pid, signal.SIGTERM)
        wait_until("it drains", lambda: "a second SIGTERM" in self.agent.text(), 5, self.site.explain)
        self.agent.kill()
        for process in running:
            self.assert_given_up(process, 3)
        self.assertEqual(self.serving(self.clients[-1]), self.younger.pid)


class RestartTests(TakeoverCase):
    """One agent, killed and started anew: the sessions of the dead one end when the new one is there."""

    def test_without_a_cut(self) -> None:
        """Its connection ended with it."""
        self.assert_sessions_end(lambda: None)

    def test_behind_silence(self) -> None:
        """Its connection still looks well to the controller."""
        self.assert_sessions_end(lambda: self.road.silence(newcomers=False))

    def assert_sessions_end(self, before: Callable[[], object]) -> None:
        """Within about a second of the new one's link."""
        for number, client in enumerate(self.clients):
            process = self.sleeper(client, f"49{number}")
            followed = self.followed(client)
            links = self.links()
            before()
            self.agent.kill()
            self.agent.start()
            wait_until("it is back", lambda links=links: self.links() > links, SOON, self.site.explain)
            self.assertIn("restarted", self.assert_given_up(process, 2))
            self.assert_log_cut(followed, 1)
            self.assertEqual(self.serving(client), self.agent.pid)


class DrainTests(TakeoverCase):
    """The owner does not let sessions run on for long."""

    device = "hasty"

    def add_device(self, *, config: str = "", **spec: Any) -> None:
        """Say so."""
        super().add_device(config=f"drain: 2\n{config}", **spec)

    def test_limit(self) -> None:
        """At the limit what still runs ends with a reason, whether or not there is another agent."""
        self.stand_by()
        for agent, next_one in ((self.agent, self.younger), (self.younger, None)):
            running = [self.sleeper(client, f"50{number}") for number, client in enumerate(self.clients)]
            began = time.monotonic()
            self.assert_code(self.ask(self.clients[0], "kill", str(agent.pid)), 0)
            if next_one is not None:
                self.assertEqual(self.serving(self.clients[-1]), next_one.pid)
            else:
                done = self.ask(self.clients[-1], "true")
                self.assert_code(done, 1)
                self.assertIn(b"arhat is stopping", done.err)
            for process in running:
                self.assertIn("arhat is stopping", self.assert_given_up(process, 5))
            self.assertGreater(time.monotonic() - began, 2)
            self.assertEqual(agent.wait(), 0)
