"""Exec with a terminal, with real processes."""

from __future__ import annotations

import errno
import os
import signal

from twisted.internet import reactor
from twisted.logger import capturedLogs
from twisted.trial.unittest import TestCase

from arhat.executor.execution import Execution
from arhat.executor.hangup import Hangups
from test.arhat.running import EndingChannel, alive, gone, own_account, pause, zombies
from tether.errors import Reason, ResetCode
from tether.link.interfaces import Lane, Receiver
from tether.verbs.codec import encode_size
from tether.verbs.requests import Exec, Exited, Killed, Size

LOST = Reason(ResetCode.LOST, "the link is gone")


class TerminalCase(TestCase):
    """Starts commands on terminals and leaves nothing behind."""

    timeout = 20

    def setUp(self) -> None:
        self.hangups = Hangups(reactor, 0.3)
        self.execution = Execution(reactor, own_account(), self.hangups)
        self.addCleanup(lambda: self.assertEqual(zombies(), []))

    def start(self, script: str, size: Size | None = None) -> tuple[EndingChannel, Receiver]:
        channel = EndingChannel()
        request = Exec((b"sh", b"-c", script.encode()), stdin=True, stderr=False, tty=True, size=size)
        return channel, self.execution(request, channel)

    async def descriptors(self) -> int:
        """How many are open when nothing runs; the reactor opens some of its own for the first process."""
        channel, _ = self.start("true")
        await channel.ended
        await pause(reactor, 0)
        return len(os.listdir("/proc/self/fd"))


class ResultTests(TerminalCase):
    """What appears, and the exit code."""

    async def test_output_and_code(self) -> None:
        """Both streams appear on the one terminal, then the exit code."""
        channel, _ = self.start("echo out; echo err >&2; exit 9")
        await channel.ended
        self.assertEqual(channel.lane(Lane.MAIN), b"out\r\nerr\r\n")
        self.assertEqual(channel.result, Exited(9))
        self.assertIsNone(channel.producer)

    async def test_killed(self) -> None:
        """A command ended by a signal is told as that signal."""
        channel, _ = self.start("kill -KILL $$")
        await channel.ended
        self.assertEqual(channel.result, Killed(signal.SIGKILL))

    async def test_unknown_command(self) -> None:
        """A command that does not exist is one line on the terminal and 127."""
        channel = EndingChannel()
        self.execution(Exec((b"no-such-command",), tty=True), channel)
        await channel.ended
        self.assertEqual(channel.lane(Lane.MAIN), b"arhat: no-such-command: not found\r\n")
        self.assertEqual(channel.result, Exited(127))

    async def test_lost_interpreter(self) -> None:
        """A script whose interpreter is missing is 127 in one line, not a traceback."""
        path = os.path.abspath(self.mktemp())
        with open(path, "w", opener=lambda name, flags: os.open(name, flags, 0o755)) as script:
            script.write("#!/no/such/interpreter\n")
        channel = EndingChannel()
        self.execution(Exec((path.encode(),), tty=True), channel)
        await channel.ended
        self.assertEqual(channel.result, Exited(127))
        self.assertEqual(channel.lane(Lane.MAIN).count(b"\n"), 1)

    async def test_terminal(self) -> None:
        """The command has a terminal, as its own, and TERM says which kind."""
        channel, _ = self.start("test -t 0 && test -t 1 && test -t 2 && echo $TERM > /dev/tty")
        await channel.ended
        self.assertEqual(channel.lane(Lane.MAIN), b"xterm\r\n")

    async def test_all_output_before_the_result(self) -> None:
        """Output that a slow client has not read yet is not lost at the exit."""
        channel, _ = self.start("seq 1 20000")
        channel.block()
        await pause(reactor, 0.3)
        self.assertFalse(channel.is_finished)
        channel.unblock()
        await channel.ended
        self.assertEqual(channel.lane(Lane.MAIN).splitlines()[-1], b"20000")
        self.assertEqual(len(channel.lane(Lane.MAIN).splitlines()), 20000)

    async def test_background_child(self) -> None:
        """A background child that holds the terminal does not hold the exec."""
        channel, _ = self.start("trap '' HUP; sleep 30 & echo $!")
        await channel.ended
        pid = int(channel.lane(Lane.MAIN))
        self.assertEqual(channel.result, Exited(0))
        self.assertTrue(alive(pid))
        os.kill(pid, signal.SIGKILL)
        await gone(reactor, pid)


class GivenUpTests(TerminalCase):
    """A command that gives up its terminal and goes on."""

    def setUp(self) -> None:
        super().setUp()
        self.log = os.path.abspath(self.mktemp())

    async def give_up(self, script: str, before: str = "") -> tuple[EndingChannel, Receiver]:
        """Run ``script`` after it has given up its terminal, and the agent has noticed."""
        channel, receiver = self.start(f"{before} exec </dev/null >{self.log} 2>&1; echo up; {script}")
        for _ in range(200):
            await pause(reactor, 0.01)
            if os.path.exists(self.log) and os.path.getsize(self.log):
                break
        # Reading on the terminal met its end meanwhile.
        await pause(reactor, 0)
        return channel, receiver

    async def test_lives_on(self) -> None:
        """It is not hung up; what it wrote before is shown, and its own exit code is told."""
        go = os.path.abspath(self.mktemp())
        os.mkfifo(go)
        pipe = os.open(go, os.O_RDWR)
        self.addCleanup(os.close, pipe)
        channel, _ = await self.give_up(f"read word <{go}; exit 7", "seq 1 300;")
        os.write(pipe, b"go\n")
        await channel.ended
        self.assertEqual(channel.result, Exited(7))
        self.assertEqual(channel.lane(Lane.MAIN), b"".join(b"%d\r\n" % n for n in range(1, 301)))

    async def test_interrupt(self) -> None:
        """Ctrl-C still interrupts it."""
        channel, receiver = await self.give_up("exec sleep 60")
        receiver.data_received(Lane.MAIN, b"\x03")
        await channel.ended
        self.assertEqual(channel.result, Killed(signal.SIGINT))

    async def test_resize(self) -> None:
        """It is still told of a new size."""
        channel, receiver = await self.give_up("while :; do sleep 0.05; done", "trap 'exit 6' WINCH;")
        receiver.data_received(Lane.RESIZE, encode_size(Size(100, 30)))
        await channel.ended
        self.assertEqual(channel.result, Exited(6))

    async def test_client_gone(self) -> None:
        """It is hung up when the client goes."""
        before = await self.descriptors()
        _, receiver = await self.give_up("trap 'echo hung up; exit' HUP; while :; do sleep 0.05; done")
        self.assertNotIn("hung", self.read())
        receiver.reset(LOST)
        await self.hangups.idle()
        self.assertIn("hung up", self.read())
        self.assertEqual(len(os.listdir("/proc/self/fd")), before)

    def read(self) -> str:
        with open(self.log, encoding="ascii") as log:
            return log.read()


class SizeTests(TerminalCase):
    """The window."""

    async def test_size_from_the_start(self) -> None:
        """The terminal has the asked size before the command looks."""
        channel, _ = self.start("stty size", Size(132, 43))
        await channel.ended
        self.assertEqual(channel.lane(Lane.MAIN), b"43 132\r\n")

    async def test_no_size(self) -> None:
        """A client that does not know its size gets the usual one."""
        for size in (None, Size(0, 0), Size(80, 0)):
            channel, _ = self.start("stty size", size)
            await channel.ended
            self.assertEqual(channel.lane(Lane.MAIN), b"24 80\r\n")

    async def test_resize(self) -> None:
        """A new size reaches the foreground as SIGWINCH."""
        channel, receiver = self.start("trap 'stty size; exit' WINCH; echo up; while :; do sleep 0.05; done")
        await channel.until(b"up")
        receiver.data_received(Lane.RESIZE, encode_size(Size(0, 0)))
        receiver.data_received(Lane.RESIZE, encode_size(Size(100, 30)))
        await channel.ended
        self.assertEqual(channel.lane(Lane.MAIN), b"up\r\n30 100\r\n")

    async def test_bad_size(self) -> None:
        """A size that is none ends the session as the client's mistake."""
        channel, receiver = self.start("echo $$; exec sleep 30")
        await channel.until(b"\n")
        receiver.data_received(Lane.RESIZE, b"\xff\xff\xff")
        assert channel.reset_with is not None
        self.assertEqual(channel.reset_with.code, ResetCode.PROTOCOL)
        await gone(reactor, int(channel.lane(Lane.MAIN)))


class InputTests(TerminalCase):
    """Keys."""

    async def test_interrupt(self) -> None:
        """Ctrl-C interrupts what is in the foreground."""
        channel, receiver = self.start(
            "trap 'echo caught; exit 5' INT; echo up; while :; do sleep 0.05; done"
        )
        await channel.until(b"up")
        receiver.data_received(Lane.MAIN, b"\x03")
        await channel.ended
        self.assertIn(b"caught", channel.lane(Lane.MAIN))
        self.assertEqual(channel.result, Exited(5))

    async def test_end_after_a_line(self) -> None:
        """The end of stdin ends a reader of lines."""
        channel, receiver = self.start("stty -echo; echo up; cat; echo end")
        await channel.until(b"up")
        receiver.data_received(Lane.MAIN, b"line\n")
        receiver.data_received(Lane.STDIN_END, b"\0")
        await channel.ended
        self.assertEqual(channel.lane(Lane.MAIN), b"up\r\nline\r\nend\r\n")

    async def test_end_within_a_line(self) -> None:
        """The end of stdin in the middle of a line hands that line over first."""
        channel, receiver = self.start("stty -echo; echo up; cat; echo end")
        await channel.until(b"up")
        receiver.data_received(Lane.MAIN, b"half")
        receiver.finished()
        await channel.ended
        self.assertEqual(channel.lane(Lane.MAIN), b"up\r\nhalfend\r\n")

    async def test_end_in_raw_mode(self) -> None:
        """A program that reads key by key is not given a key that nobody pressed."""
        channel, receiver = self.start("stty raw -echo; echo up; timeout 0.5 od -c; stty sane; echo end")
        await channel.until(b"up")
        await pause(reactor, 0.1)
        receiver.data_received(Lane.STDIN_END, b"\0")
        await channel.ended
        self.assertNotIn(b"004", channel.lane(Lane.MAIN))

    async def test_much_input_waits(self) -> None:
        """A program that reads slowly holds the client back, and nothing is lost."""
        channel, receiver = self.start("stty raw -echo; echo up; sleep 0.3; head -c 200000 | wc -c")
        await channel.until(b"up")
        receiver.data_received(Lane.MAIN, b"k" * 200_000)
        self.assertTrue(channel.paused)
        await channel.ended
        self.assertIn(b"200000", channel.lane(Lane.MAIN))

    async def test_output_while_keys_wait(self) -> None:
        """What a command wrote last arrives though keys wait for it and the client is slow."""
        channel, receiver = self.start("stty raw -echo; echo $$; read word; seq 1 300")
        await channel.until(b"\n")
        channel.block()
        receiver.data_received(Lane.MAIN, b"word\n" + b"k" * 500_000)
        await gone(reactor, int(channel.lane(Lane.MAIN)))
        channel.unblock()
        await channel.ended
        self.assertEqual(channel.lane(Lane.MAIN).split()[1:], [b"%d" % n for n in range(1, 301)])


class HangUpTests(TerminalCase):
    """The client goes first."""

    async def test_client_gone(self) -> None:
        """The command and what it started are hung up."""
        channel, receiver = self.start("sleep 60 & echo $$ $!; wait")
        await channel.until(b"\n")
        leader, child = map(int, channel.lane(Lane.MAIN).split())
        with capturedLogs() as events:
            receiver.reset(LOST)
            receiver.closed()
            await gone(reactor, leader)
            await gone(reactor, child)
            await self.hangups.idle()
        told = [(event["stream"], event["pid"]) for event in events if "fate" in event]
        self.assertEqual(told, [(channel.stream, leader)])

    async def test_stubborn(self) -> None:
        """A command that only catches SIGHUP is killed after the grace."""
        channel, receiver = self.start("trap : HUP; echo $$; while :; do sleep 0.2; done")
        await channel.until(b"\n")
        receiver.closed()
        await gone(reactor, int(channel.lane(Lane.MAIN)))

    async def test_gone_while_input_waits(self) -> None:
        """A command that reads nothing is hung up although keys still wait for it."""
        channel, receiver = self.start("stty raw; echo $$; exec sleep 60")
        await channel.until(b"\n")
        receiver.data_received(Lane.MAIN, b"k" * 500_000)
        receiver.reset(LOST)
        await gone(reactor, int(channel.lane(Lane.MAIN).split()[0]))
        self.assertFalse(channel.paused)

    async def test_closed_though_keys_wait(self) -> None:
        """A terminal whose client is gone is closed although who stays reads nothing."""
        before = await self.descriptors()
        channel, receiver = self.start("stty raw; trap '' HUP; echo $$; exec sleep 60")
        await channel.until(b"\n")
        pid = int(channel.lane(Lane.MAIN).split()[0])
        receiver.data_received(Lane.MAIN, b"k" * 500_000)
        receiver.reset(LOST)
        await pause(reactor, 0)
        self.assertEqual(len(os.listdir("/proc/self/fd")), before)
        os.kill(pid, signal.SIGKILL)
        await gone(reactor, pid)

    async def test_closed_though_a_job_reads_no_keys(self) -> None:
        """A terminal whose command ended is closed although keys wait for who still has it open."""
        before = await self.descriptors()
        channel, receiver = self.start("stty raw; trap '' HUP; sleep 60 & echo $! $$; exec sleep 60")
        await channel.until(b"\n")
        pid, leader = map(int, channel.lane(Lane.MAIN).split())
        receiver.data_received(Lane.MAIN, b"k" * 500_000)
        os.kill(leader, signal.SIGKILL)
        await channel.ended
        await pause(reactor, 0)
        self.assertEqual(len(os.listdir("/proc/self/fd")), before)
        os.kill(pid, signal.SIGKILL)
        await gone(reactor, pid)

    async def test_no_descriptor_leaks_at_the_start(self) -> None:
        """A terminal whose process cannot start is closed."""

        def refuse() -> int:
            raise BlockingIOError(errno.EAGAIN, "no more processes")

        before = await self.descriptors()
        self.patch(os, "fork", refuse)
        channel, _ = self.start("true")
        await channel.ended
        self.assertEqual(channel.result, Exited(126))
        self.assertEqual(len(os.listdir("/proc/self/fd")), before)

    async def test_no_descriptor_leaks(self) -> None:
        """Terminals are closed, whoever ended first."""
        before = await self.descriptors()
        for _ in range(5):
            channel, receiver = self.start("echo up; sleep 30")
            await channel.until(b"up")
            receiver.reset(LOST)
            await self.hangups.idle()
            channel, _ = self.start("true")
            await channel.ended
        await pause(reactor, 0.05)
        self.assertEqual(len(os.listdir("/proc/self/fd")), before)
