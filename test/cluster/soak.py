"""
The long ones, whole: a gigabyte through every door, also while the road breaks, and ten thousand execs.

Not found by ``make test``; run by ``make soak``. Each prints what it measured.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import hashlib
import itertools
import os
import subprocess
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import IO

from test.cluster.daemons import wait_until
from test.cluster.kubectl import Kubectl
from test.cluster.proxy import Storm
from test.cluster.test_exec import DEVICE, MIB, ExecCase
from test.cluster.test_flapping import FlappingCase, counted, counter
from test.cluster.test_slowlink import KEEPALIVE, PATIENCE

GIB = 1024 * MIB
EXECS = int(os.environ.get("SOAK_EXECS", "10000"))
MINUTES = float(os.environ.get("SOAK_MINUTES", "10"))


def digest_of(stream: IO[bytes]) -> tuple[str, int]:
    """The SHA-256 and the length of all that comes."""
    digest, length = hashlib.sha256(), 0
    while data := stream.read(MIB):
        digest.update(data)
        length += len(data)
    return digest.hexdigest(), length


class GigabyteTests(ExecCase):
    """1 GiB arrives byte for byte, with the right exit code."""

    def setUp(self) -> None:
        """Have a file of 1 GiB in which no two blocks are alike."""
        super().setUp()
        self.file = Path(self.mktemp()).absolute()
        block = os.urandom(MIB - 8)
        with open(self.file, "wb") as file:
            for number in range(GIB // MIB):
                file.write(number.to_bytes(8, "big") + block)
        self.addCleanup(self.file.unlink)
        with open(self.file, "rb") as file:
            self.expected = digest_of(file)

    def told(self, what: str, client: str, seconds: float) -> None:
        """Print the speed."""
        print(f"{what} ({client}): {GIB / seconds / 1e6:.0f} MB/s", flush=True)

    def test_exec_down(self) -> None:
        """``exec -- cat`` of it."""
        for client in self.clients:
            began = time.monotonic()
            process = client.start("exec", DEVICE, "--", "sh", "-c", f"cat {self.file}; exit 9")
            assert process.stdout is not None
            self.assertEqual(digest_of(process.stdout), self.expected)
            self.assertEqual(process.wait(30), 9)
            self.told("exec down", client.binary.name, time.monotonic() - began)

    def test_exec_up(self) -> None:
        """``exec -i`` with it on stdin."""
        for client in self.clients:
            began = time.monotonic()
            with open(self.file, "rb") as file:
                done = subprocess.run(
                    client.command("exec", "-i", DEVICE, "--", "sha256sum"),
                    env=client.environment(),
                    stdin=file,
                    capture_output=True,
                    timeout=300,
                    check=False,
                )
            self.assertEqual((done.returncode, done.stdout.split()[0].decode()), (0, self.expected[0]))
            self.told("exec up", client.binary.name, time.monotonic() - began)

    def test_cp(self) -> None:
        """``cp`` up and down again."""
        for client in self.clients:
            there, back = Path(self.mktemp()).absolute(), Path(self.mktemp()).absolute()
            began = time.monotonic()
            self.assert_code(client.run("cp", str(self.file), f"{DEVICE}:{there}", timeout=300), 0)
            self.told("cp up", client.binary.name, time.monotonic() - began)
            began = time.monotonic()
            self.assert_code(client.run("cp", f"{DEVICE}:{there}", str(back), timeout=300), 0)
            self.told("cp down", client.binary.name, time.monotonic() - began)
            for path in (there, back):
                with open(path, "rb") as file:
                    self.assertEqual(digest_of(file), self.expected)
                path.unlink()


class ManyExecsTests(ExecCase):
    """The daemons do not grow."""

    def test_memory_stays_flat(self) -> None:
        """After a warm-up of a tenth, the rest of the execs adds less than 8 MiB to either daemon."""
        client = self.clients[-1]
        daemons = self.site.controller, self.site.devices[DEVICE]

        def one(number: int) -> bool:
            return client.run("exec", DEVICE, "--", "sh", "-c", f"exit {number % 256}").code == number % 256

        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            self.assertTrue(all(pool.map(one, range(EXECS // 10))))
            before = [daemon.resident_kib() for daemon in daemons]
            self.assertTrue(all(pool.map(one, range(EXECS - EXECS // 10))))
        after = [daemon.resident_kib() for daemon in daemons]
        print(
            f"RSS of aranya and arhat in KiB after {EXECS // 10}: {before}, after {EXECS}: {after}",
            flush=True,
        )
        for old, new in zip(before, after, strict=True):
            self.assertLess(new - old, 8 * 1024)


class StormyGigabyteTests(FlappingCase):
    """1 GiB arrives byte for byte through a hundred cuts, with the right exit code."""

    CUTS = 100

    def setUp(self) -> None:
        """Have the file."""
        super().setUp()
        self.file, self.expected = self.data_file(GIB // MIB)
        self.addCleanup(self.file.unlink)

    @contextlib.contextmanager
    def hundred_cuts(self, what: str, client: Kubectl) -> Iterator[None]:
        """Break the road so often, spread over the whole, and print how long it took."""
        began = time.monotonic()
        # The last cut comes shortly before the end.
        with Storm(self.road, self.seed, each=(1000, 18 * MIB), cuts=self.CUTS) as storm:
            yield
            seconds = time.monotonic() - began
            print(f"{what} ({client.binary.name}): {seconds:.0f} s, {storm.cuts} cuts", flush=True)
            self.assertEqual(storm.cuts, self.CUTS)

    def test_exec_down(self) -> None:
        """``exec -- cat`` of it."""
        for client in self.clients:
            self.site.wait_online(self.device)
            process = client.start("exec", *self.host, "--", "sh", "-c", f"echo up; cat {self.file}; exit 9")
            self.addCleanup(process.wait)
            self.addCleanup(process.kill)
            assert process.stdout is not None
            self.assertEqual(process.stdout.read(3), b"up\n")
            with self.hundred_cuts("exec down", client):
                self.assertEqual(digest_of(process.stdout), (self.expected, GIB))
                self.assertEqual(process.wait(30), 9)

    def test_exec_up(self) -> None:
        """``exec -i`` with it on stdin."""
        for client in self.clients:
            self.site.wait_online(self.device)
            session = self.begun(client, "sha256sum; exit 8", "-i")
            with self.hundred_cuts("exec up", client), open(self.file, "rb") as file:
                while piece := file.read(MIB):
                    session.say(piece)
                done = session.end(60)
                self.assertEqual((done.code, done.out.split()[0].decode()), (8, self.expected), done.err)

    def test_cp(self) -> None:
        """``cp`` up and down."""
        for client in self.clients:
            there, back = self.folder / "there", self.folder / "back"
            for what, words in (
                ("cp up", (str(self.file), f"{self.device}:{there}")),
                ("cp down", (f"{self.device}:{there}", str(back))),
            ):
                self.site.wait_online(self.device)
                begun = self.road.up.carried + self.road.down.carried
                session = self.start(client, "cp", *words)
                wait_until("it is under way", partial(self.has_carried, begun + MIB), 20, self.site.explain)
                with self.hundred_cuts(what, client):
                    done = session.end(900)
                    self.assertEqual(done.code, 0, done.err)
            for path in (there, back):
                with open(path, "rb") as file:
                    self.assertEqual(digest_of(file), (self.expected, GIB))
                path.unlink()

    def has_carried(self, size: int) -> bool:
        """Whether the road has carried so much."""
        return self.road.up.carried + self.road.down.carried > size


class LongStormTests(FlappingCase):
    """Small sessions, and many of them."""

    def test_ten_minutes(self) -> None:
        """An interactive shell, a shared one and a counter survive ten minutes of flapping."""
        self.road.delay(0.02, 0.04)
        shells = [self.shell(client, "exec", "-it", *self.host, "--", "sh") for client in self.clients]
        attached = self.shell(self.clients[-1], "attach", "-it", *self.host)
        count = int(MINUTES * 60 / 0.0101)
        counting = [self.begun(client, counter(count, code=3)) for client in self.clients]
        deadline = time.monotonic() + MINUTES * 60
        with self.storm(0.2, 8.0, outage=(0, 4.0)) as storm:
            for round in itertools.count():
                self.assert_answers([*shells, attached], round)
                if time.monotonic() > deadline:
                    break
            for session in counting:
                self.assert_ends(session, 3, counted(count), 120)
            self.assert_exit(shells)
            print(f"{round} questions answered in {MINUTES:g} min through {storm.cuts} cuts", flush=True)

    def test_many(self) -> None:
        """200 sessions through 50 cuts."""
        self.assert_many(200, cuts=50)


class OneWaySilenceTests(FlappingCase):
    """Only one end hears nothing any more; it tells the other by leaving."""

    def assert_goes_on(self, *, up: bool, down: bool) -> None:
        """Within the keep-alive there is a new link, and what counts goes on."""
        session = self.begun(self.clients[-1], counter(150, 0.2, code=4))
        links = self.links()
        self.road.silence(up=up, down=down, newcomers=False)
        found = KEEPALIVE + PATIENCE + 10
        wait_until("there is a new link", partial(self.has_more_links, links), found, self.site.explain)
        self.assert_ends(session, 4, counted(150), 60)

    def test_up(self) -> None:
        """The controller hears nothing of the device."""
        self.assert_goes_on(up=True, down=False)

    def test_down(self) -> None:
        """The device hears nothing of the controller."""
        self.assert_goes_on(up=False, down=True)
