"""``arhat.builtin.commands`` and ``options``: what is replaced, and that the replacement runs anywhere."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from twisted.trial.unittest import SkipTest, SynchronousTestCase

from arhat.builtin.commands import builtins
from arhat.builtin.options import Create, Extract, NotUnderstood, understood


def nothing(command: bytes) -> bool:
    """A device without any command."""
    return False


class UnderstoodTests(SynchronousTestCase):
    """Which command lines of ``tar`` are understood."""

    def test_packing(self) -> None:
        """Kubectl's and people's ways to pack."""
        for line in (
            "cf - /a b",
            "-cf - /a b",
            "-c -f - /a b",
            "-cf- /a b",
            "c -f - /a -- b",
            "--create --file=- /a b",
        ):
            self.assertEqual(understood(line.split()), Create((("", "/a"), ("", "b"))), line)
        self.assertEqual(understood(["chf", "-", "x"]), Create((("", "x"),), dereference=True))
        self.assertEqual(
            understood(["cf", "-", "-C", "/a", "x", "-C", "b", "--", "-y"]),
            Create((("/a", "x"), ("/a/b", "-y"))),
        )

    def test_unpacking(self) -> None:
        """Kubectl's and people's ways to unpack."""
        for line in (
            "-xmf - -C /d",
            "xmf - -C /d",
            "-x -m -f - -C/d",
            "xmfC - /d",
            "--extract -mf - --directory=/d",
        ):
            self.assertEqual(understood(line.split()), Extract("/d", touch=True), line)
        self.assertEqual(
            understood(["--no-same-permissions", "--no-same-owner", "-xmf", "-", "-C", "/d"]),
            Extract("/d", touch=True, same_permissions=False, same_owner=False),
        )
        self.assertEqual(understood(["-xpf", "-"]), Extract(".", same_permissions=True))

    def test_others(self) -> None:
        """What only a real ``tar`` knows is left to one."""
        for line in (
            "--version", "", "cf", "cf file x", "cf -", "xf - member", "xzf -", "tf -", "cxf - a", "x",
            "-xf - -C", "cf - --exclude=a b", "xf - --touch=yes", "cmf - a",
        ):  # fmt: skip
            self.assertRaises(NotUnderstood, understood, line.split())


class ReplacedTests(SynchronousTestCase):
    """What runs instead of what."""

    def words(self, *argv: str, present: Callable[[bytes], bool] = nothing) -> list[str] | None:
        """What follows the Python part of the replacement."""
        replaced = builtins(tuple(map(os.fsencode, argv)), present)
        if replaced is None:
            return None
        self.assertEqual(replaced[0], os.fsencode(sys.executable))
        return [os.fsdecode(word) for word in replaced[7:]]

    def test_only_what_is_missing(self) -> None:
        """A command that the device has is left alone."""
        resumed = ("sh", "-c", "tar cf - a | tail -c+1")
        for argv in (("tar", "cf", "-", "a"), ("test", "-d", "a"), resumed):
            self.assertIsNotNone(self.words(*argv), argv)
            self.assertIsNone(self.words(*argv, present=lambda command: True), argv)
        self.assertIsNotNone(self.words(*resumed, present=lambda command: command != b"tar"))

    def test_resumed_downloads(self) -> None:
        """Kubectl's pipe is understood where a shell would take its path as plain words."""
        self.assertEqual(
            self.words("sh", "-c", "tar cf - /a/ü.b-c_d | tail -c+12"),
            ["tar-from", "12", "cf", "-", "/a/ü.b-c_d"],
        )
        for script in (
            "tar cf - $HOME | tail -c+1",
            "tar cf - a; rm b | tail -c+1",
            "tar cf - 'a b' | tail -c+1",
            "tar cf - a\nb | tail -c+1",
            "tar cf - -v | tail -c+1",
            "tar cf -  | tail -c+1",
            "tar cf - a | tail -n+1",
        ):
            self.assertIsNone(self.words("sh", "-c", script), script)

    def test_others(self) -> None:
        """Everything else is as missing as it was."""
        for argv in (
            ("tar", "--version"),
            ("test", "-f", "x"),
            ("ls",),
            ("sh", "-c", "true"),
            ("/bin/tar", "cf", "-", "a"),
        ):
            self.assertIsNone(self.words(*argv), argv)


class RunningTests(SynchronousTestCase):
    """The replacement as a process."""

    def run_it(self, *argv: str, **options: object) -> subprocess.CompletedProcess[bytes]:
        """Run the replacement with an empty environment in a foreign folder."""
        replaced = builtins(tuple(map(os.fsencode, argv)), nothing)
        assert replaced is not None
        return subprocess.run(replaced, env={}, cwd="/", capture_output=True, timeout=60, **options)  # type: ignore[call-overload,no-any-return]

    def test_test(self) -> None:
        """``test -d`` tells folders from the rest."""
        self.assertEqual(self.run_it("test", "-d", "/").returncode, 0)
        for path in ("/etc/passwd", "/nonexistent", ""):
            self.assertEqual(self.run_it("test", "-d", path).returncode, 1)

    def test_from_a_byte_on(self) -> None:
        """A resumed download is the same archive without its beginning."""
        folder = Path(self.mktemp()).absolute()
        folder.mkdir()
        (folder / "file").write_bytes(os.urandom(100_000))
        whole = self.run_it("tar", "cf", "-", str(folder))
        self.assertEqual(whole.returncode, 0)
        for first in (0, 1, 2, 513, 90_000, 10**9):
            resumed = self.run_it("sh", "-c", f"tar cf - {folder} | tail -c+{first}")
            self.assertEqual(resumed.stdout, whole.stdout[max(0, first - 1) :])
            self.assertEqual(resumed.returncode, 0)

    def test_nothing_hides_the_library(self) -> None:
        """Neither the working folder nor the agent's own decides what is imported."""
        folder = Path(self.mktemp()).absolute()
        folder.mkdir()
        (folder / "tarfile.py").write_text("raise SystemExit(9)")
        replaced = builtins((b"test", b"-d", b"/"), nothing)
        assert replaced is not None
        environment = {"PYTHONPATH": str(folder)}
        self.assertEqual(subprocess.run(replaced, cwd=folder, env=environment, timeout=60).returncode, 0)

    def test_another_account(self) -> None:
        """What the account may not read is not packed."""
        if os.geteuid() != 0:
            raise SkipTest("only root can act as someone else")
        try:
            packed = self.run_it("tar", "cf", "-", "/etc/shadow", user=65534, group=65534, extra_groups=[])
        except PermissionError:
            raise SkipTest("others may not run this Python") from None
        if b"No module" in packed.stderr:
            raise SkipTest("others may not read this checkout")
        self.assertEqual(packed.returncode, 2)
        self.assertIn(b"tar: /etc/shadow: Cannot open: Permission denied\n", packed.stderr)
