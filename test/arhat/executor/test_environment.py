"""Whose a child is, where it starts, what it sees, and what cannot start."""

from __future__ import annotations

import os
import pwd
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from twisted.internet import reactor
from twisted.trial.unittest import SkipTest, SynchronousTestCase, TestCase

from arhat.config import Config, ConfigError
from arhat.executor.environment import Account, CannotRun, language, launch, login_shell
from arhat.executor.execution import Execution
from arhat.executor.hangup import Hangups
from test.arhat.running import EndingChannel, own_account
from tether.link.interfaces import Lane
from tether.verbs.requests import Exec, Exited, Size


class AccountTests(SynchronousTestCase):
    """Whose processes."""

    def test_own(self) -> None:
        """Without a user it is the agent's own, and nothing is switched."""
        account = Account.of(Config())
        self.assertEqual((account.uid, account.switch), (os.geteuid(), False))
        self.assertEqual(account.name, pwd.getpwuid(os.geteuid()).pw_name)

    def test_unknown_user(self) -> None:
        """A user that does not exist is one line."""
        why = self.assertRaises(ConfigError, Account.of, Config(user="no-such-user"))
        self.assertEqual(str(why), "user: there is no user 'no-such-user' on this device")

    def test_chosen_shell(self) -> None:
        """The owner's shell wins over the user's."""
        self.assertEqual(Account.of(Config(shell="/bin/dash")).shell, "/bin/dash")

    def test_missing_home(self) -> None:
        """Children start in / when HOME is missing or is no folder."""
        for home in ("/no/such/home", "/etc/passwd"):
            account = replace(own_account(), home=home)
            self.assertEqual(account.folder, "/")
            self.assertEqual(account.environment(False)[b"HOME"], home.encode())

    def test_language(self) -> None:
        """LANG is what the system was set to, else C.UTF-8."""
        root = Path(self.mktemp())
        (root / "etc/default").mkdir(parents=True)
        self.assertEqual(language(root), "C.UTF-8")
        (root / "etc/locale.conf").write_text("LANG=sv_SE.UTF-8\n")
        self.assertEqual(language(root), "sv_SE.UTF-8")
        (root / "etc/default/locale").write_text('# set\nLANGUAGE=x\nLANG="de_DE.UTF-8"\n')
        self.assertEqual(language(root), "de_DE.UTF-8")


class LaunchTests(SynchronousTestCase):
    """What is known before a process starts."""

    def refusal(self, *argv: bytes, tty: bool = False) -> tuple[int, str]:
        why = self.assertRaises(CannotRun, launch, own_account(), Exec(argv, tty=tty))
        return why.code, why.text

    def test_nothing(self) -> None:
        """No command, or an empty one, is 127."""
        self.assertEqual(self.refusal(), (127, "arhat: no command given"))
        self.assertEqual(self.refusal(b""), (127, "arhat: no command given"))

    def test_nul(self) -> None:
        """A NUL byte cannot be passed to a command."""
        self.assertEqual(self.refusal(b"echo", b"a\0b"), (126, "arhat: echo: an argument holds a NUL byte"))

    def test_not_text(self) -> None:
        """A name that is not text is still told in one printable line."""
        self.assertEqual(self.refusal(b"n\xff"), (127, "arhat: n\N{REPLACEMENT CHARACTER}: not found"))

    def test_under_a_file(self) -> None:
        """A path that leads through a file is told as such."""
        self.assertEqual(self.refusal(b"/etc/passwd/x")[0], 127)

    def test_argv_is_kept(self) -> None:
        """The command gets the argv it was given."""
        for tty in (False, True):
            plan = launch(own_account(), Exec((b"ls", b"-l", b"--"), tty=tty))
            self.assertEqual(plan.argv[-3:], (b"ls", b"-l", b"--"))

    def test_no_setsid(self) -> None:
        """Where a device has neither setsid nor env, Python stands in for them."""
        self.patch(sys.modules["arhat.executor.environment"].shutil, "which", lambda *_, **__: None)
        plan = launch(own_account(), Exec((b"true",)))
        self.assertEqual(plan.executable, os.fsencode(sys.executable))

    def test_builtins(self) -> None:
        """A builtin is asked with what the device has, and its argv is run instead."""
        asked: list[tuple[tuple[bytes, ...], bool, bool]] = []

        def builtins(argv: tuple[bytes, ...], present: Callable[[bytes], bool]) -> tuple[bytes, ...] | None:
            asked.append((argv, present(b"sh"), present(b"no-such-command")))
            return (b"/bin/sh", b"-c", b"true") if argv[0] == b"no-such-command" else None

        plan = launch(own_account(), Exec((b"no-such-command", b"x")), builtins)
        self.assertEqual(plan.argv[-3:], (b"/bin/sh", b"-c", b"true"))
        self.assertEqual(asked, [((b"no-such-command", b"x"), True, False)])
        self.assertEqual(launch(own_account(), Exec((b"true",)), builtins).argv[-1], b"true")

    def test_login_shell(self) -> None:
        """A login shell is told so by a dash before its name."""
        plan = login_shell(replace(own_account(), shell="/bin/sh"))
        self.assertEqual((plan.executable, plan.argv), (b"/bin/sh", (b"-sh",)))
        self.assertEqual(plan.environment[b"TERM"], b"xterm")


class RunningTests(TestCase):
    """What only running shows."""

    timeout = 15

    async def run_as(self, account: Account, request: Exec) -> EndingChannel:
        channel = EndingChannel()
        Execution(reactor, account, Hangups(reactor, 0.3))(request, channel)  # type: ignore[arg-type]
        return await channel.ended

    async def test_other_user(self) -> None:
        """Root's agent runs everything as the chosen user, with that user's groups and nothing else."""
        if os.geteuid() != 0:
            raise SkipTest("only root may run processes as another user")
        account = Account.of(Config(user="nobody", shell="/bin/sh"))
        script = b"id -u; id -g; id -G; echo $HOME $USER $LOGNAME $SHELL; pwd"
        groups = sorted(os.getgrouplist(account.name, account.gid))
        for tty in (False, True):
            channel = await self.run_as(account, Exec((b"sh", b"-c", script), tty=tty, size=Size(80, 24)))
            self.assertEqual(channel.result, Exited(0), channel.sent)
            uid, gid, told, variables, folder = channel.lane(Lane.MAIN).decode().split("\n")[:5]
            self.assertEqual((int(uid), int(gid)), (account.uid, account.gid))
            self.assertEqual(sorted(map(int, told.split())), groups)
            self.assertEqual(variables.strip(), f"{account.home} nobody nobody /bin/sh")
            self.assertEqual(folder.strip(), account.folder)

    async def test_other_user_owns_the_terminal(self) -> None:
        """A terminal belongs to the user who works on it."""
        if os.geteuid() != 0:
            raise SkipTest("only root may run processes as another user")
        account = Account.of(Config(user="nobody", shell="/bin/sh"))
        channel = await self.run_as(account, Exec((b"sh", b"-c", b"echo ok > $(tty)"), tty=True))
        self.assertEqual(channel.lane(Lane.MAIN), b"ok\r\n")

    async def test_stand_in(self) -> None:
        """The stand-in for setsid and env starts a session and tells what fails like them."""
        self.patch(sys.modules["arhat.executor.environment"].shutil, "which", lambda *_, **__: None)
        script = b'test "$(ps -o sid= -p $$ | tr -d " ")" = $$ && echo leader'
        channel = await self.run_as(own_account(), Exec((b"sh", b"-c", script)))
        self.assertEqual(channel.lane(Lane.MAIN), b"leader\n")
        channel = await self.run_as(own_account(), Exec((b"sh", b"-c", b"tty"), tty=True))
        self.assertTrue(channel.lane(Lane.MAIN).startswith(b"/dev/pts/"))
        path = os.path.abspath(self.mktemp())
        with open(path, "w", opener=lambda name, flags: os.open(name, flags, 0o755)) as made:
            made.write("#!/no/such/interpreter\n")
        for tty in (False, True):
            channel = await self.run_as(own_account(), Exec((path.encode(),), tty=tty))
            self.assertEqual(channel.result, Exited(127))
            self.assertIn(f"arhat: {path}: No such file or directory".encode(), channel.sent[0][1])

    async def test_equals_sign(self) -> None:
        """A command whose name holds an equals sign is run, not taken for a variable."""
        path = os.path.abspath(self.mktemp()) + "=x"
        with open(path, "w", opener=lambda name, flags: os.open(name, flags, 0o755)) as made:
            made.write("#!/bin/sh\necho ran\n")
        channel = await self.run_as(own_account(), Exec((path.encode(),), tty=True))
        self.assertEqual(channel.lane(Lane.MAIN), b"ran\r\n")
