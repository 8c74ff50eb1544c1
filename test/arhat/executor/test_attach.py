"""The shared login shell, with a real shell."""

from __future__ import annotations

import os
import signal
from dataclasses import replace

from twisted.internet import reactor
from twisted.logger import capturedLogs
from twisted.trial.unittest import TestCase

from arhat.executor.attach import BACKLOG, DETACH_PATIENCE, DROPPED, RESPAWNED, SharedShell
from arhat.executor.hangup import Hangups
from test.arhat.running import EndingChannel, gone, own_account, pause, zombies
from tether.errors import Reason, ResetCode
from tether.link.interfaces import Lane, Receiver
from tether.verbs.codec import encode_size
from tether.verbs.requests import Attach, Exited, Size, Succeeded

LOST = Reason(ResetCode.LOST, "the link is gone")


class SharedShellTests(TestCase):
    """Many attach to one shell."""

    timeout = 20

    def setUp(self) -> None:
        account = replace(own_account(), shell="/bin/sh", home=os.path.abspath(self.mktemp()))
        os.mkdir(account.home)
        self.hangups = Hangups(reactor, 0.3)
        self.account = account
        self.shell = SharedShell(reactor, account, self.hangups)
        self.addCleanup(self.end)

    async def end(self) -> None:
        self.shell.stop()
        await self.hangups.idle()
        await pause(reactor, 0.01)
        self.assertEqual(zombies(), [])

    def attach(self, **asked: object) -> tuple[EndingChannel, Receiver]:
        channel = EndingChannel()
        request = Attach(**{"stdin": True, "tty": True, **asked})  # type: ignore[arg-type]
        return channel, self.shell(request, channel)

    async def say(self, channel: EndingChannel, receiver: Receiver, command: bytes, answer: bytes) -> None:
        receiver.data_received(Lane.MAIN, command + b"\n")
        await channel.until(answer)

    async def test_login_shell(self) -> None:
        """It is a login shell on a terminal, at home."""
        channel, receiver = self.attach()
        await self.say(channel, receiver, b'echo "<$0> <$TERM> <$PWD>"', b"<-sh> <xterm> <")
        self.assertIn(os.path.realpath(self.account.home).encode(), channel.lane(Lane.MAIN))

    async def test_finds_the_same_shell(self) -> None:
        """After a lost link the next attach finds the same shell and sees what was before."""
        first, receiver = self.attach()
        await self.say(first, receiver, b"word=swordfish; echo set$((1))", b"set1")
        receiver.reset(LOST)
        receiver.closed()
        second, receiver = self.attach()
        self.assertIn(b"set1", second.lane(Lane.MAIN))
        await self.say(second, receiver, b'echo "<$word>"', b"<swordfish>")

    async def test_all_see_all_type(self) -> None:
        """Everyone attached sees everything and may type."""
        one, one_types = self.attach()
        two, two_types = self.attach()
        one_types.data_received(Lane.MAIN, b"echo a$((1))\n")
        await two.until(b"a1")
        two_types.data_received(Lane.MAIN, b"echo b$((2))\n")
        await one.until(b"b2")

    async def test_watch_only(self) -> None:
        """Who attached without stdin cannot type."""
        channel, receiver = self.attach(stdin=False)
        receiver.data_received(Lane.MAIN, b"echo never$((1))\n")
        other, types = self.attach()
        await self.say(other, types, b"echo later$((1))", b"later1")
        self.assertNotIn(b"never1", channel.lane(Lane.MAIN))

    async def test_exit_ends_all(self) -> None:
        """``exit`` ends everyone attached with success, whatever its code."""
        one, types = self.attach()
        two, _ = self.attach()
        types.data_received(Lane.MAIN, b"exit 3\n")
        await one.ended
        await two.ended
        self.assertEqual((one.result, two.result), (Succeeded(), Succeeded()))

    async def test_exit_with_a_job(self) -> None:
        """A background job that holds the terminal does not delay the end."""
        channel, types = self.attach()
        await self.say(channel, types, b"(trap '' HUP; exec sleep 2) & echo up$((1))", b"up1")
        types.data_received(Lane.MAIN, b"exit\n")
        await channel.ended
        self.assertEqual(channel.result, Succeeded())

    async def test_respawn(self) -> None:
        """The next attach after an exit gets a new shell and is told so."""
        channel, types = self.attach()
        await self.say(channel, types, b"word=old; echo set$((1))", b"set1")
        types.data_received(Lane.MAIN, b"exit\n")
        await channel.ended
        again, types = self.attach()
        self.assertTrue(again.lane(Lane.MAIN).startswith(RESPAWNED))
        self.assertNotIn(b"set1", again.lane(Lane.MAIN))
        await self.say(again, types, b'echo "<$word>"', b"<>")

    async def test_killed(self) -> None:
        """A shell that was killed is like one that exited: all end, and whoever comes later is told."""
        one, types = self.attach()
        two, _ = self.attach()
        types.data_received(Lane.MAIN, b"kill -KILL $$\n")
        await one.ended
        await two.ended
        self.assertEqual((one.result, two.result), (Succeeded(), Succeeded()))
        again, types = self.attach()
        await self.say(again, types, b"echo new$((1))", b"new1")
        later, _ = self.attach()
        for channel in (again, later):
            self.assertTrue(channel.lane(Lane.MAIN).startswith(RESPAWNED))

    async def test_exited_while_nobody_was_here(self) -> None:
        """A shell that ends with nobody attached is replaced at the next attach, which says so."""
        channel, types = self.attach()
        await self.say(channel, types, b'echo "<$$>"', b">\r\n")
        pid = int(channel.lane(Lane.MAIN).rpartition(b"<")[2].partition(b">")[0])
        types.reset(LOST)
        types.closed()
        os.kill(pid, signal.SIGKILL)
        await gone(reactor, pid)
        await pause(reactor, 0.01)
        again, _ = self.attach()
        self.assertTrue(again.lane(Lane.MAIN).startswith(RESPAWNED))

    async def test_detach(self) -> None:
        """Ctrl-P Ctrl-Q detaches with success; the shell lives on."""
        channel, types = self.attach()
        await self.say(channel, types, b"word=kept; echo set$((1))", b"set1")
        types.data_received(Lane.MAIN, b"\x10\x11")
        self.assertEqual(channel.result, Succeeded())
        self.assertTrue(channel.is_finished)
        other, types = self.attach()
        await self.say(other, types, b'echo "<$word>"', b"<kept>")

    async def test_detach_in_two_pieces(self) -> None:
        """Ctrl-P and Ctrl-Q may arrive apart, and after other keys."""
        channel, types = self.attach()
        types.data_received(Lane.MAIN, b"ls\x10")
        self.assertFalse(channel.is_finished)
        types.data_received(Lane.MAIN, b"\x11rest")
        self.assertEqual(channel.result, Succeeded())

    async def test_lonely_ctrl_p(self) -> None:
        """A Ctrl-P without its Ctrl-Q reaches the shell: at the next key, or after a while."""
        channel, types = self.attach()
        await self.say(
            channel, types, b"stty raw -echo; echo up$((1)); head -c 3 | od -An -c; stty sane", b"up1"
        )
        await pause(reactor, 0.2)
        types.data_received(Lane.MAIN, b"\x10")
        types.data_received(Lane.MAIN, b"k\x10")
        await pause(reactor, DETACH_PATIENCE + 0.1)
        await channel.until(b"020   k 020")

    async def test_no_detach_without_a_terminal(self) -> None:
        """Without a terminal the two keys are data."""
        channel, types = self.attach(tty=False)
        types.data_received(Lane.MAIN, b"\x10\x11")
        self.assertFalse(channel.is_finished)

    async def test_end_of_a_terminals_stdin(self) -> None:
        """The end of a terminal's stdin is a detach: it ends well, and the shell stays."""
        channel, types = self.attach()
        await self.say(channel, types, b"echo up$((1))", b"up1")
        types.data_received(Lane.STDIN_END, b"\0")
        self.assertTrue(channel.is_finished)
        other, types = self.attach()
        await self.say(other, types, b"echo still$((1))", b"still1")
        self.assertIn(b"up1", other.lane(Lane.MAIN))

    async def test_end_of_stdin(self) -> None:
        """The end of a pipe never reaches the shell, and the output goes on."""
        channel, types = self.attach(tty=False)
        await self.say(channel, types, b"echo up$((1))", b"up1")
        types.data_received(Lane.STDIN_END, b"\0")
        types.finished()
        types.data_received(Lane.MAIN, b"echo never$((1))\n")
        other, types = self.attach()
        await self.say(other, types, b"echo still$((1))", b"still1")
        self.assertIn(b"still1", channel.lane(Lane.MAIN))
        self.assertNotIn(b"never1", channel.lane(Lane.MAIN))

    async def test_smallest_window(self) -> None:
        """The smallest window wins; zeros and those without a terminal do not count."""
        one, one_types = self.attach(size=Size(120, 40))
        await self.say(one, one_types, b'echo "<$(stty size)>"', b"<40 120>")
        _, two_types = self.attach(size=Size(100, 50))
        self.attach(tty=False, size=Size(10, 10))
        self.attach(size=Size(0, 5))
        await self.say(one, one_types, b'echo "<$(stty size)>"', b"<40 100>")
        two_types.data_received(Lane.RESIZE, encode_size(Size(90, 30)))
        await self.say(one, one_types, b'echo "<$(stty size)>"', b"<30 90>")
        two_types.closed()
        await self.say(one, one_types, b'echo "[$(stty size)]"', b"[40 120]")

    async def test_size_of_who_comes_first(self) -> None:
        """The first window counts from the start, unless who is there has no terminal."""
        one, types = self.attach(tty=False, size=Size(10, 10))
        await self.say(one, types, b'echo "<$(stty size)>"', b"<24 80>")
        self.attach(size=Size(100, 30))
        await self.say(one, types, b'echo "[$(stty size)]"', b"[30 100]")

    async def test_slow_one_does_not_stall_others(self) -> None:
        """One who reads nothing loses a bounded backlog and is told; the other sees all."""
        slow, _ = self.attach()
        quick, types = self.attach()
        await self.say(quick, types, b"echo up$((1))", b"up1")
        slow.block()
        before = len(slow.lane(Lane.MAIN))
        await self.say(quick, types, b"seq 1 100000; echo done$((1))", b"done1")
        self.assertIn(b"\r\n99999\r\n100000\r\n", quick.lane(Lane.MAIN))
        self.assertEqual(len(slow.lane(Lane.MAIN)), before)
        slow.unblock()
        late = slow.lane(Lane.MAIN)[before:]
        self.assertTrue(late.startswith(DROPPED))
        self.assertLessEqual(len(late), BACKLOG + len(DROPPED))
        await self.say(quick, types, b"echo again$((1))", b"again1")
        self.assertIn(b"again1", slow.lane(Lane.MAIN))

    async def test_lonely_slow_one_loses_nothing(self) -> None:
        """The shell waits for its only reader."""
        channel, types = self.attach()
        await self.say(channel, types, b"echo up$((1))", b"up1")
        types.data_received(Lane.MAIN, b"echo; seq 1 100000; echo done$((1))\n")
        for _ in range(5):
            channel.block()
            await pause(reactor, 0.02)
            held = len(channel.lane(Lane.MAIN))
            await pause(reactor, 0.02)
            self.assertEqual(len(channel.lane(Lane.MAIN)), held)
            channel.unblock()
            await pause(reactor, 0.01)
        await channel.until(b"done1")
        numbers = [line for line in channel.lane(Lane.MAIN).split(b"\r\n") if line.isdigit()]
        self.assertEqual(len(numbers), 100_000)

    async def test_shell_runs_when_the_slow_one_leaves(self) -> None:
        """A shell that waited for its only reader goes on when that one is gone."""
        path = os.path.join(self.account.home, "done")
        channel, types = self.attach()
        await self.say(channel, types, b"echo up$((1))", b"up1")
        channel.block()
        types.data_received(Lane.MAIN, b"seq 1 100000; touch done\n")
        await pause(reactor, 0.2)
        self.assertFalse(os.path.exists(path))
        types.reset(LOST)
        for _ in range(100):
            if os.path.exists(path):
                break
            await pause(reactor, 0.05)
        self.assertTrue(os.path.exists(path))

    async def test_questions_are_not_replayed(self) -> None:
        """A replay does not ask the terminal what it was asked before."""
        channel, types = self.attach()
        await self.say(channel, types, b"printf '<\\033[6n\\033[c\\033[31mred>'; echo up$((1))", b"up1")
        self.assertIn(b"<\x1b[6n\x1b[c\x1b[31mred>", channel.lane(Lane.MAIN))
        again, _ = self.attach()
        self.assertIn(b"<\x1b[31mred>", again.lane(Lane.MAIN))

    async def test_missing_shell(self) -> None:
        """A shell that does not exist is a line and 127."""
        shell = SharedShell(reactor, replace(self.account, shell="/no/shell"), self.hangups)
        channel = EndingChannel()
        shell(Attach(), channel)
        self.assertEqual(channel.lane(Lane.MAIN), b"arhat: /no/shell: not found\r\n")
        self.assertEqual(channel.result, Exited(127))

    async def test_stop(self) -> None:
        """When the agent stops, so does the shell."""
        channel, types = self.attach()
        await self.say(channel, types, b'echo "<$$>"', b">\r\n")
        pid = int(channel.lane(Lane.MAIN).rpartition(b"<")[2].partition(b">")[0])
        with capturedLogs() as events:
            self.shell.stop()
            await gone(reactor, pid)
            await self.hangups.idle()
        self.assertEqual([event["pid"] for event in events if "fate" in event], [pid])
