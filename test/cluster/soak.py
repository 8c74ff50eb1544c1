"""
The long ones, whole: a gigabyte through every door, and ten thousand execs.

Not found by ``make test``; run by ``make soak``. Each prints what it measured.
"""

from __future__ import annotations

import concurrent.futures
import hashlib
import os
import subprocess
import time
from pathlib import Path
from typing import IO

from test.cluster.test_exec import DEVICE, MIB, ExecCase

GIB = 1024 * MIB
EXECS = int(os.environ.get("SOAK_EXECS", "10000"))


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
