"""
Sessions outlive their link: kubectl notices a pause and nothing else, however often the road breaks.

What fails tells the seed of its storm; with it in ``CHAOS_SEED`` the same storm comes again.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import random
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from test.cluster.daemons import wait_until
from test.cluster.kubectl import Completed, Kubectl
from test.cluster.proxy import Storm
from test.cluster.session import SOON, Session
from test.cluster.terminal import Terminal
from test.cluster.test_exec import MIB, processes_with
from test.cluster.test_forward import echo, server
from test.cluster.test_slowlink import KEEPALIVE, PATIENCE, RoadCase

#: A patch of an EdgeDevice.
BAN = '{"spec": {"banned": %s}}'


class FlappingCase(RoadCase):
    """Has a device whose sessions outlive the link, and breaks that."""

    device = "flapping"
    grace = 300

    def setUp(self) -> None:
        """Choose kubectls, a folder on both sides, and the dice."""
        super().setUp()
        self.clients = list(dict.fromkeys((self.clients[0], self.clients[-1])))
        self.folder = Path(self.mktemp()).absolute()
        self.folder.mkdir()
        self.seed = int(os.environ.get("CHAOS_SEED") or random.randrange(1 << 32))

    @property
    def host(self) -> tuple[str, ...]:
        """Its container; an old kubectl that is not told says what it chose."""
        return self.device, "-c", "host"

    @property
    def log(self) -> Path:
        """The log of the device's container ``app``."""
        return self.site.folder / f"{self.device}-log" / "app.log"

    def add_device(self, *, config: str = "", **spec: Any) -> None:
        """Give it a log."""
        self.log.parent.mkdir(exist_ok=True)
        self.log.touch()
        pod = {"containers": [{"name": "app", "log": {"file": str(self.log)}}]}
        config += f"logs: {{files: ['{self.log.parent}/**']}}\n"
        super().add_device(config=config, pod=pod, **spec)

    def storm(self, least: float, most: float, *, outage: tuple[float, float] = (0, 0)) -> Storm:
        """Break the road after so many seconds, again and again."""
        return Storm(self.road, self.seed, every=(least, most), outage=outage)

    def storm_by_size(self, least: int, most: int) -> Storm:
        """Break the road after so many bytes, again and again."""
        return Storm(self.road, self.seed, each=(least, most))

    def data_file(self, mib: int) -> tuple[Path, str]:
        """A file in which no two blocks are alike, and its SHA-256."""
        path = self.folder / f"{mib}-mib"
        block, digest = os.urandom(MIB - 8), hashlib.sha256()
        with open(path, "wb") as file:
            for number in range(mib):
                piece = number.to_bytes(8, "big") + block
                digest.update(piece)
                file.write(piece)
        return path, digest.hexdigest()

    def start(self, client: Kubectl, *words: str) -> Session:
        """Start a kubectl, to be killed at the end of the test."""
        session = Session(client.start(*words))
        self.addCleanup(session.kill)
        return session

    def exec(self, client: Kubectl, script: str, *flags: str) -> Session:
        """Start a shell script on the device."""
        return self.start(client, "exec", *flags, *self.host, "--", "sh", "-c", f"echo up; {script}")

    def begun(self, client: Kubectl, script: str, *flags: str) -> Session:
        """Start one and wait until it runs."""
        session = self.exec(client, script, *flags)
        self.assertEqual(session.line(), b"up\n", f"{session}\n{self.site.explain()}")
        return session

    def ended(self, session: Session, seconds: float = SOON) -> Completed:
        """How it ended, which it must do in time."""
        try:
            return session.end(seconds)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.site.explain()}") from None

    def assert_ends(self, session: Session, code: int, out: bytes, seconds: float = SOON) -> Completed:
        """It ends in time, with this code and output."""
        done = self.ended(session, seconds)
        self.assertEqual((done.code, done.out), (code, out), f"{done.err!r}\n{self.site.explain()}")
        return done

    def assert_given_up(self, session: Session, seconds: float) -> str:
        """It ends with 1 and one line that names the device."""
        done = self.assert_ends(session, 1, b"", seconds)
        told = done.err.decode()
        self.assertEqual(told.count("\n"), 1, told)
        self.assertIn(self.device, told)
        return told

    def nap(self, seconds: str) -> str:
        """An argument of ``sleep``, begun with ``seconds``, that no other run of the tests has."""
        seconds += str(os.getpid())
        self.addCleanup(kill_all, seconds)
        return seconds

    def at_work(self) -> int:
        """How many processes the agent has."""
        return len(Path(f"/proc/{self.agent.pid}/task/{self.agent.pid}/children").read_text().split())

    def assert_many(self, count: int, cuts: int) -> None:
        """So many sessions over one link, which breaks so often: each has its own output and code."""
        script = "while read line; do echo $line of {0}; done; exit {0}"
        running = [self.exec(self.clients[-1], script.format(number), "-i") for number in range(count)]
        for session in running:
            self.assertEqual(session.line(60), b"up\n", self.site.explain())
        with self.storm(0.1, 1.0) as storm:
            self.through(storm, cuts, partial(self.assert_each_answers, running))
            for number, session in enumerate(running):
                self.assert_ends(session, number, b"")

    def assert_each_answers(self, running: list[Session], round: int) -> None:
        """Each has its own answer."""
        for session in running:
            session.say(b"%d\n" % round)
        for number, session in enumerate(running):
            self.assertEqual(session.line(), b"%d of %d\n" % (round, number))

    @contextlib.contextmanager
    def outage(self) -> Iterator[None]:
        """No road meanwhile; afterwards the link comes back."""
        self.road.refuse()
        self.road.cut()
        try:
            yield
        finally:
            self.road.admit()

    def has_more_links(self, links: int) -> bool:
        """Whether the device has connected more often."""
        return self.links() > links

    def shell(self, client: Kubectl, *words: str) -> Terminal:
        """Sit down before a shell that answers."""
        terminal = Terminal(client.command(*words), client.environment())
        self.addCleanup(terminal.close)
        terminal.type(b"PS1=; echo rea''dy\n")
        terminal.expect(b"ready")
        return terminal

    def assert_answers(self, shells: list[Terminal], number: int) -> None:
        """A question to one of them is answered, once."""
        terminal = shells[number % len(shells)]
        terminal.type(b"echo an''swer $((%d+1)).\n" % number)
        before = terminal.expect(b"answer %d." % (number + 1), SOON)
        self.assertNotIn(b"answer ", before)

    def assert_exit(self, shells: list[Terminal]) -> None:
        """Each ends with its own code."""
        for number, terminal in enumerate(shells, 5):
            terminal.type(b"exit %d\n" % number)
            self.assertEqual(terminal.wait(), number)

    def through(self, storm: Storm, cuts: int, work: Callable[[int], object]) -> None:
        """Do this again and again, until the storm has broken the road so often."""
        deadline = time.monotonic() + SOON * cuts
        for round in itertools.count():
            work(round)
            if storm.cuts >= cuts:
                return
            self.assertLess(time.monotonic(), deadline, "a storm that cuts nothing")


def counter(count: int, pause: float = 0.01, code: int = 0) -> str:
    """A script that counts up, a line each, and ends with this code."""
    program = (
        "import sys, time\n"
        f"for number in range({count}):\n"
        "    print(number, flush=True)\n"
        f"    time.sleep({pause})\n"
        f"sys.exit({code})"
    )
    return f"exec {sys.executable} -c '{program}'"


def counted(count: int) -> bytes:
    """What it prints."""
    return b"".join(b"%d\n" % number for number in range(count))


def is_gone(seconds: str) -> bool:
    """Whether no ``sleep`` of so many seconds runs."""
    return not processes_with(f"sleep\x00{seconds}")


def kill_all(mark: str) -> None:
    """End what a session left, or an agent that was killed."""
    for pid in processes_with(mark):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


class BulkTests(FlappingCase):
    """Much of it, byte for byte, with the right exit code."""

    def test_alone(self) -> None:
        """One stream that has the link for itself, first down, then up."""
        file, expected = self.data_file(12)
        process = self.begun(self.clients[-1], f"cat {file}; exit 9")
        with self.storm_by_size(10_000, 3 * MIB) as storm:
            done = self.ended(process, 90)
            self.assertEqual((done.code, hashlib.sha256(done.out).hexdigest()), (9, expected), done.err)
            self.assertGreater(storm.cuts, 2)
        self.site.wait_online(self.device)
        process = self.begun(self.clients[-1], "sha256sum; exit 8", "-i")
        with self.storm_by_size(10_000, 3 * MIB) as storm:
            process.say(file.read_bytes())
            done = self.ended(process, 90)
            self.assertEqual((done.code, done.out.split()[:1]), (8, [expected.encode()]), done.err)
            self.assertGreater(storm.cuts, 2)

    def test_together(self) -> None:
        """Copies and pipes, up and down, of an old kubectl and a new one, share the link."""
        file, expected = self.data_file(12)
        data = file.read_bytes()

        def up(client: Kubectl) -> str:
            there = self.folder / f"up-{client.binary.name}"
            self.assert_code(client.run("cp", str(file), f"{self.device}:{there}", timeout=150), 0)
            return hashlib.sha256(there.read_bytes()).hexdigest()

        def down(client: Kubectl) -> str:
            here = self.folder / f"down-{client.binary.name}"
            self.assert_code(client.run("cp", f"{self.device}:{file}", str(here), timeout=150), 0)
            return hashlib.sha256(here.read_bytes()).hexdigest()

        def cat(client: Kubectl) -> str:
            done = client.run("exec", self.device, "--", "sh", "-c", f"cat {file}; exit 9", timeout=150)
            self.assertEqual(done.code, 9, done.err)
            return hashlib.sha256(done.out).hexdigest()

        def pipe(client: Kubectl) -> str:
            done = client.run("exec", "-i", self.device, "--", "sha256sum", input=data, timeout=150)
            self.assertEqual(done.code, 0, done.err)
            return done.out.split()[0].decode()

        ways = [partial(way, client) for client in self.clients for way in (up, down, cat, pipe)]
        # None shall end before the last has begun: who begins while the road is broken is refused.
        self.road.slow(20_000_000)
        with ThreadPoolExecutor(len(ways)) as pool:
            running = [pool.submit(way) for way in ways]
            wait_until("all are under way", lambda: self.at_work() == len(ways), 30, self.site.explain)
            self.road.slow(None)
            with self.storm_by_size(100_000, 6 * MIB) as storm:
                results = [one.result() for one in running]
                self.assertEqual(results, [expected] * len(ways))
                self.assertGreater(storm.cuts, 5)


class GoingOnTests(FlappingCase):
    """What is small and long goes on."""

    def test_counter(self) -> None:
        """A counter printed every 10 ms arrives without a gap and without a double."""
        running = [self.begun(client, counter(700, code=3)) for client in self.clients]
        with self.storm(0.1, 1.0) as storm:
            for process in running:
                self.assert_ends(process, 3, counted(700), 40)
            self.assertGreater(storm.cuts, 1)

    def test_shell(self) -> None:
        """A shell answers, and its window still follows, on a road that is long and closed at times."""
        self.road.delay(0.03, 0.05)
        shells = [self.shell(client, "exec", "-it", *self.host, "--", "sh") for client in self.clients]
        with self.storm(0.3, 1.5, outage=(0, 1.0)) as storm:
            self.through(storm, 5, partial(self.assert_answers, shells))
            shells[-1].resize(111, 33)
            wait_until("the size has arrived", lambda: self.size_of(shells[-1]) == (33, 111), SOON)
            self.assert_exit(shells)

    def size_of(self, terminal: Terminal) -> tuple[int, int]:
        """The size of the terminal on the device."""
        terminal.type(b"echo si''ze $(stty size).\n")
        terminal.expect(b"size ", SOON)
        rows, columns = terminal.expect(b".", SOON).split()
        return int(rows), int(columns)

    def test_attach(self) -> None:
        """Who is attached stays attached, to the same shell."""
        shells = [self.shell(client, "attach", "-it", *self.host) for client in self.clients]
        shells[0].type(b"KEPT=4711; echo ke''pt\n")
        for terminal in shells:
            terminal.expect(b"kept")
        with self.storm(0.3, 1.0) as storm:
            self.through(storm, 5, lambda round: self.assert_all_see(shells, round))
        for terminal in shells:
            terminal.type(b"\x10\x11")
            self.assertEqual(terminal.wait(), 0)

    def assert_all_see(self, shells: list[Terminal], round: int) -> None:
        """What one types, all see the answer of."""
        shells[round % len(shells)].type(b"echo $KEPT ro''und %d.\n" % round)
        for terminal in shells:
            terminal.expect(b"4711 round %d." % round, SOON)

    def test_many(self) -> None:
        """Fifty sessions over one link each have their own output and their own code."""
        self.assert_many(50, cuts=8)

    def test_logs(self) -> None:
        """``logs -f`` has every line once."""
        count = 500
        self.log.write_text("begin\n")
        running = [self.start(client, "logs", "-f", self.device, "-c", "app") for client in self.clients]
        for process in running:
            self.assertEqual(process.line(), b"begin\n")

        def write() -> None:
            with open(self.log, "a") as log:
                for number in range(count):
                    log.write(f"{number}\n")
                    log.flush()
                    time.sleep(0.01)

        writing = threading.Thread(target=write)
        with self.storm(0.1, 1.0) as storm:
            writing.start()
            for process in running:
                for number in range(count):
                    self.assertEqual(process.line(), b"%d\n" % number)
            self.assertGreater(storm.cuts, 1)
        writing.join()

    def test_port_forward(self) -> None:
        """A TCP connection through ``port-forward`` goes on: an idle one, and one that is full both ways."""
        data = os.urandom(MIB) * 8
        for client in self.clients:
            with server(echo) as port, self.forwarded(client, port) as local:
                idle, busy = (socket.create_connection(("127.0.0.1", local), SOON) for _ in range(2))
                for connection in (idle, busy):
                    self.addCleanup(connection.close)
                    connection.sendall(b"first")
                    self.assertEqual(connection.recv(5), b"first")
                sender = threading.Thread(target=self.send, args=(busy, data))
                with self.storm_by_size(10_000, 2 * MIB) as storm:
                    sender.start()
                    self.assertTrue(self.received(busy) == data)
                    self.assertGreater(storm.cuts, 1)
                sender.join()
                idle.sendall(b"again")
                self.assertEqual(idle.recv(5), b"again")

    @contextlib.contextmanager
    def forwarded(self, client: Kubectl, port: int) -> Iterator[int]:
        """A local port that kubectl forwards to this one of the device."""
        session = self.start(client, "port-forward", self.device, f":{port}")
        try:
            found = re.search(rb"127\.0\.0\.1:(\d+) ->", session.line())
            assert found is not None
            yield int(found.group(1))
        finally:
            session.kill()

    def send(self, connection: socket.socket, data: bytes) -> None:
        """All of it, then the end."""
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)

    def received(self, connection: socket.socket) -> bytes:
        """All that comes until the end."""
        pieces = []
        while piece := connection.recv(65536):
            pieces.append(piece)
        return b"".join(pieces)


class SilenceTests(FlappingCase):
    """The link is gone, and nobody says so."""

    def test_half_open(self) -> None:
        """Silence is found within the keep-alive at both ends; what counts meanwhile is told afterwards."""
        process = self.begun(self.clients[-1], counter(100, 0.2, code=4))
        links, begun = self.links(), self.road.begun
        self.road.silence()
        # The Node says so after a while more.
        self.site.wait_offline(self.device, KEEPALIVE + PATIENCE + 10)
        wait_until("the agent tries anew", lambda: self.road.begun > begun, 5, self.site.explain)
        self.assertTrue(process.runs)
        self.road.resume()
        self.assert_ends(process, 4, counted(100), 30)
        self.assertTrue(self.has_more_links(links))

    def test_rebinding(self) -> None:
        """A NAT that forgets: within the keep-alive the device comes by a new connection, and all goes on."""
        process = self.begun(self.clients[0], counter(100, 0.2, code=5))
        links = self.links()
        self.road.rebind()
        # What was asked before anybody noticed is asked again.
        asked = self.exec(self.clients[-1], "read line; echo $line; exit 6", "-i")
        asked.say(b"heard\n")
        wait_until(
            "there is a new link",
            partial(self.has_more_links, links),
            KEEPALIVE + PATIENCE + 5,
            self.site.explain,
        )
        self.assert_ends(asked, 6, b"up\nheard\n")
        self.assert_ends(process, 5, counted(100), 30)

    def test_stale_link(self) -> None:
        """The same agent comes back while its old link still looks well: it takes its place at once."""
        process = self.begun(self.clients[-1], counter(300, code=6))
        links = self.links()
        began = time.monotonic()
        self.road.rebind(told=True)
        wait_until("there is a new link", partial(self.has_more_links, links), 5, self.site.explain)
        self.assertEqual(self.clients[-1].run("exec", self.device, "--", "true").code, 0)
        self.assert_ends(process, 6, counted(300))
        self.assertLess(time.monotonic() - began, KEEPALIVE + 5)
        # What the old one still had on the way harms nobody.
        process = self.begun(self.clients[-1], counter(100, code=7))
        self.road.deliver_late()
        self.assert_ends(process, 7, counted(100))
        self.assertEqual(self.links(), links + 1)


class OutageTests(FlappingCase):
    """While there is no link."""

    def test_new_sessions(self) -> None:
        """Who comes now is refused at once; who was there waits."""
        process = self.begun(self.clients[-1], "read line; echo $line; exit 8", "-i")
        with self.outage():
            for client in self.clients:
                began = time.monotonic()
                done = client.run("exec", self.device, "--", "true")
                # Of which kubectl itself takes the half.
                self.assertLess(time.monotonic() - began, 2)
                self.assert_code(done, 1)
                self.assertIn(b"offline", done.err)
        process.say(b"here\n")
        self.assert_ends(process, 8, b"here\n")

    def test_end(self) -> None:
        """A command ends meanwhile: its last words and its code arrive afterwards."""
        for number, client in enumerate(self.clients):
            nap = self.nap(f"1.{number}")
            process = self.begun(client, f"sleep {nap}; echo last; echo words >&2; exit 7")
            with self.outage():
                wait_until("it has ended", partial(is_gone, nap), 10)
                self.assertTrue(process.runs)
            done = self.assert_ends(process, 7, b"last\n")
            self.assertTrue(done.err.startswith(b"words\n"), done.err)
            self.site.wait_online(self.device)

    def test_kubectl_killed(self) -> None:
        """kubectl dies meanwhile: its command is hung up when the link is back, not before."""
        for number, client in enumerate(self.clients):
            nap = self.nap(f"30{number}.")
            process = self.begun(client, f"sleep {nap}; true", "-i")
            with self.outage():
                process.kill()
                done = client.run("exec", self.device, "--", "true")
                self.assert_code(done, 1)
                self.assertFalse(is_gone(nap))
            wait_until("it is hung up", partial(is_gone, nap), 10, self.site.explain)
            self.site.wait_online(self.device)

    def test_ban(self) -> None:
        """A device that is banned meanwhile will not come back: its sessions end at once."""
        running = [
            self.begun(client, f"sleep 42{number}; true") for number, client in enumerate(self.clients)
        ]
        self.addCleanup(self.site.edge.run, "patch", "ed", self.device, "--type=merge", "-p", BAN % "false")
        with self.outage():
            done = self.site.edge.run("patch", "ed", self.device, "--type=merge", "-p", BAN % "true")
            self.assert_code(done, 0)
            for process in running:
                self.assertIn("banned", self.assert_given_up(process, 5))

    def test_agent_killed(self) -> None:
        """An agent that died during the outage and came back says so: its sessions end with a reason."""
        for client in self.clients:
            process = self.begun(client, f"sleep {self.nap('320.')}")
            links = self.links()
            with self.outage():
                self.agent.kill()
                self.agent.start()
                self.assertTrue(process.runs)
            self.assert_ends_after_return(process, links)

    def test_agent_killed_without_outage(self) -> None:
        """The same where only the agent went."""
        for client in self.clients:
            process = self.begun(client, f"sleep {self.nap('330.')}")
            links = self.links()
            self.agent.kill()
            self.agent.start()
            self.assert_ends_after_return(process, links)

    def assert_ends_after_return(self, process: Session, links: int) -> None:
        """Within about a second of the new process's link."""
        wait_until("it is back", partial(self.has_more_links, links), SOON, self.site.explain)
        self.assert_given_up(process, 2)
        self.site.wait_online(self.device)


class GraceTests(FlappingCase):
    """The grace ends before the outage does."""

    device = "impatient"
    #: Longer than the agent waits between attempts.
    grace = 4

    def test_over(self) -> None:
        """kubectl ends with 1 and one line; the command is hung up, then killed, unless it ignores that."""
        client = self.clients[-1]
        naps = [self.nap(begin) for begin in ("340.", "341.", "0.34", "342.")]
        running = [
            self.begun(self.clients[0], f"exec sleep {naps[0]}"),
            self.begun(client, f"exec sleep {naps[1]}"),
            self.begun(client, f"trap : HUP; while :; do sleep {naps[2]}; done"),
            self.begun(client, f"trap '' HUP; exec sleep {naps[3]}"),
        ]
        began = time.monotonic()
        with self.outage():
            for session in running:
                self.assert_given_up(session, self.grace + 5)
            self.assertGreater(time.monotonic() - began, self.grace - 0.5)
            for nap in naps[:3]:
                wait_until("it is gone", partial(is_gone, nap), 15, self.site.explain)
            self.assertFalse(is_gone(naps[3]))
        self.site.wait_online(self.device)
        self.assertFalse(is_gone(naps[3]))

    def test_not_over(self) -> None:
        """Short outages do not add up."""
        process = self.begun(self.clients[-1], "read line; echo $line; exit 9", "-i")
        began = time.monotonic()
        while time.monotonic() - began < 2 * self.grace:
            links = self.links()
            self.road.cut()
            wait_until("it is back", partial(self.has_more_links, links), self.grace, self.site.explain)
        process.say(b"here\n")
        self.assert_ends(process, 9, b"here\n")

    def test_connections(self) -> None:
        """A forwarded connection ends, and kubectl says why."""
        client = self.clients[-1]
        with server(echo) as port:
            process = self.start(client, "port-forward", self.device, f":{port}")
            found = re.search(rb"127\.0\.0\.1:(\d+) ->", process.line())
            assert found is not None
            with socket.create_connection(("127.0.0.1", int(found.group(1))), SOON) as connection:
                connection.sendall(b"here")
                self.assertEqual(connection.recv(4), b"here")
                with self.outage():
                    with contextlib.suppress(ConnectionError):
                        self.assertEqual(connection.recv(1), b"")
                    self.assertIn(self.device.encode(), process.line(pipe="err"))

    def test_log(self) -> None:
        """A log that is followed ends with a line that says why."""
        self.log.write_text("begin\n")
        process = self.start(self.clients[-1], "logs", "-f", self.device, "-c", "app")
        self.assertEqual(process.line(), b"begin\n")
        with self.outage():
            done = self.ended(process)
        self.assertTrue(done.out.startswith(b"aranya: log stream cut: "), done)
