"""Exec without a terminal, with real processes."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from functools import partial

from twisted.internet import reactor
from twisted.internet.defer import ensureDeferred, gatherResults
from twisted.logger import capturedLogs
from twisted.trial.unittest import TestCase

from arhat.executor import process
from arhat.executor.environment import launch
from arhat.executor.execution import Execution
from arhat.executor.hangup import Hangups
from arhat.executor.process import start_with_pipes
from test.arhat.running import EndingChannel, alive, gone, own_account, pause, zombies
from tether.errors import Reason, ResetCode
from tether.link.interfaces import Lane, Receiver
from tether.verbs.requests import Exec, Exited, Killed

#: The quiet time of these tests; the shipped one would only take longer.
QUIET = 0.8

LOST = Reason(ResetCode.LOST, "the link is gone")


class ProcessCase(TestCase):
    """Starts commands with a short grace and leaves nothing behind."""

    timeout = 20

    def setUp(self) -> None:
        self.patch(process, "QUIET_SECONDS", QUIET)
        self.hangups = Hangups(reactor, 0.3)
        self.execution = Execution(reactor, own_account(), self.hangups)
        self.addCleanup(lambda: self.assertEqual(zombies(), []))

    def start(self, *argv: str | bytes, **asked: bool) -> tuple[EndingChannel, Receiver]:
        channel = EndingChannel()
        encoded = tuple(part.encode() if isinstance(part, str) else part for part in argv)
        return channel, self.execution(Exec(encoded, **asked), channel)  # type: ignore[arg-type]

    async def run_through(self, *argv: str | bytes, stdin: bytes | None = None) -> EndingChannel:
        channel, receiver = self.start(*argv, stdin=stdin is not None)
        if stdin is not None:
            receiver.data_received(Lane.MAIN, stdin)
            receiver.data_received(Lane.STDIN_END, b"\0")
        return await channel.ended


class ResultTests(ProcessCase):
    """What comes out, and the exit code."""

    async def test_output_and_code(self) -> None:
        """Stdout and stderr arrive apart, then the exit code, then the finish."""
        channel = await self.run_through("sh", "-c", "echo out; echo err >&2; exit 42")
        self.assertEqual(channel.lane(Lane.MAIN), b"out\n")
        self.assertEqual(channel.lane(Lane.ERROR), b"err\n")
        self.assertEqual(channel.result, Exited(42))
        self.assertIsNone(channel.producer)

    async def test_killed(self) -> None:
        """A command ended by a signal is told as that signal."""
        channel = await self.run_through("sh", "-c", "kill -KILL $$")
        self.assertEqual(channel.result, Killed(signal.SIGKILL))

    async def test_success_without_output(self) -> None:
        """A silent success is exit code 0 and nothing else."""
        channel = await self.run_through("true")
        self.assertEqual(channel.result, Exited(0))
        self.assertEqual(len(channel.sent), 1)

    async def test_unknown_command(self) -> None:
        """A command that does not exist is 127 and one line on stderr."""
        channel = await self.run_through("no-such-command-here")
        self.assertEqual(channel.lane(Lane.ERROR), b"arhat: no-such-command-here: not found\n")
        self.assertEqual(channel.result, Exited(127))

    async def test_unknown_path(self) -> None:
        """A path that does not exist is 127 too."""
        channel = await self.run_through("/no/such/thing")
        self.assertEqual(channel.result, Exited(127))

    async def test_directory(self) -> None:
        """A directory is 126 and one line on stderr."""
        channel = await self.run_through("/etc")
        self.assertEqual(channel.lane(Lane.ERROR), b"arhat: /etc: is a directory\n")
        self.assertEqual(channel.result, Exited(126))

    async def test_not_executable(self) -> None:
        """A file without the right to be executed is 126."""
        channel = await self.run_through("/etc/passwd")
        self.assertEqual(channel.lane(Lane.ERROR), b"arhat: /etc/passwd: permission denied\n")
        self.assertEqual(channel.result, Exited(126))

    async def test_lost_interpreter(self) -> None:
        """A script whose interpreter is missing is 127 in one line, not a traceback."""
        path = self.mktemp()
        with open(path, "w", opener=lambda name, flags: os.open(name, flags, 0o755)) as script:
            script.write("#!/no/such/interpreter\n")
        channel = await self.run_through(os.path.abspath(path))
        self.assertEqual(channel.result, Exited(127))
        self.assertEqual(channel.lane(Lane.ERROR).count(b"\n"), 1)

    async def test_unicode_arguments(self) -> None:
        """Arguments arrive byte for byte, also those that are not text."""
        words = ("grüße", "日本", "a b", "", "*", "$HOME", b"\xff\xfe")
        channel = await self.run_through("printf", "%s\\n", *words)
        expected = b"".join((w.encode() if isinstance(w, str) else w) + b"\n" for w in words)
        self.assertEqual(channel.lane(Lane.MAIN), expected)

    async def test_long_argument(self) -> None:
        """An argument of 100 KB is no problem."""
        channel = await self.run_through("sh", "-c", 'printf %s "$1" | wc -c', "sh", "x" * 100_000)
        self.assertEqual(channel.lane(Lane.MAIN).strip(), b"100000")

    async def test_too_long_argument(self) -> None:
        """An argument that the kernel refuses is 126 and one line."""
        channel = await self.run_through("echo", "x" * 131_072)
        self.assertEqual(channel.lane(Lane.ERROR), b"arhat: echo: argument list too long\n")
        self.assertEqual(channel.result, Exited(126))

    async def test_environment(self) -> None:
        """A child sees the account's variables and nothing of the agent's."""
        os.environ["HTTPS_PROXY"] = "http://user:secret@proxy"
        self.addCleanup(os.environ.pop, "HTTPS_PROXY")
        channel = await self.run_through("env")
        names = {line.partition(b"=")[0] for line in channel.lane(Lane.MAIN).splitlines()}
        self.assertEqual(names, {b"HOME", b"USER", b"LOGNAME", b"SHELL", b"PATH", b"LANG"})

    async def test_starts_at_home(self) -> None:
        """A child starts in the account's home."""
        channel = await self.run_through("pwd")
        self.assertEqual(channel.lane(Lane.MAIN).strip().decode(), os.path.realpath(own_account().folder))

    async def test_agent_stays_where_it_is(self) -> None:
        """Starting a child elsewhere does not move the agent, nor does a folder that is gone."""
        before = os.getcwd()
        await self.run_through("true")
        self.assertEqual(os.getcwd(), before)
        plan = replace(launch(own_account(), Exec((b"true",))), folder="/no/such/folder")
        channel = EndingChannel()
        start = partial(start_with_pipes, reactor, self.hangups, plan, Exec((b"true",)), channel)
        self.assertRaises(FileNotFoundError, start)
        self.assertEqual(os.getcwd(), before)

    async def test_sigpipe_works(self) -> None:
        """The agent's ignored signals are not ignored by children."""
        channel = await self.run_through("grep", "-E", "SigIgn|SigBlk", "/proc/self/status")
        masks = [int(line.split()[1], 16) for line in channel.lane(Lane.MAIN).splitlines()]
        # glibc's posix_spawn leaves its two internal signals, 32 and 33, ignored.
        self.assertEqual([mask & ~(0b11 << 31) for mask in masks], [0, 0])

    async def test_only_what_was_asked(self) -> None:
        """Streams that were not asked for lead to nothing."""
        channel, _ = self.start("sh", "-c", "echo out; echo err >&2", stderr=False)
        await channel.ended
        self.assertEqual(channel.lane(Lane.MAIN), b"out\n")
        self.assertEqual(channel.lane(Lane.ERROR), b"")

    async def test_thirty_at_once(self) -> None:
        """Thirty commands at once each get their own output and code."""
        running = [self.run_through("sh", "-c", f"cat; exit {n}", stdin=b"%d" % n) for n in range(30)]
        channels = await gatherResults([ensureDeferred(one) for one in running])
        for number, channel in enumerate(channels):
            self.assertEqual(channel.lane(Lane.MAIN), b"%d" % number)
            self.assertEqual(channel.result, Exited(number))


class InputTests(ProcessCase):
    """Stdin, its end, and its pauses."""

    async def test_binary_round_trip(self) -> None:
        """Every byte goes through unchanged."""
        content = bytes(range(256)) * 40
        channel = await self.run_through("cat", stdin=content)
        self.assertEqual(channel.lane(Lane.MAIN), content)

    async def test_empty_stdin(self) -> None:
        """An end of stdin before anything else ends the reader."""
        channel = await self.run_through("cat", stdin=b"")
        self.assertEqual(channel.result, Exited(0))

    async def test_half_close_is_end_of_stdin(self) -> None:
        """The client's finish ends stdin and the output still arrives."""
        channel, receiver = self.start("sh", "-c", "cat; echo end", stdin=True)
        receiver.data_received(Lane.MAIN, b"x")
        receiver.finished()
        await channel.ended
        self.assertEqual(channel.lane(Lane.MAIN), b"xend\n")

    async def test_no_stdin(self) -> None:
        """Without a stdin the command reads from /dev/null."""
        channel = await self.run_through("readlink", "/proc/self/fd/0")
        self.assertEqual(channel.lane(Lane.MAIN), b"/dev/null\n")

    async def test_big_copy_with_pauses(self) -> None:
        """20 MB through cat arrive exactly, with both sides paused on the way."""
        channel, receiver = self.start("cat", stdin=True)
        chunk = os.urandom(1 << 20)
        total, pauses = 20, 0
        for number in range(total):
            while channel.paused:
                pauses += 1
                await pause(reactor, 0.001)
            receiver.data_received(Lane.MAIN, chunk)
            if number == 5:
                channel.block()
                await pause(reactor, 0.05)
                held = len(channel.sent)
                await pause(reactor, 0.05)
                self.assertEqual(len(channel.sent), held)
                self.assertTrue(channel.paused)
                channel.unblock()
        receiver.data_received(Lane.STDIN_END, b"\0")
        await channel.ended
        self.assertGreater(pauses, 0)
        self.assertTrue(channel.lane(Lane.MAIN) == chunk * total)
        self.assertEqual(channel.result, Exited(0))

    async def test_end_while_paused(self) -> None:
        """An end of stdin that follows a full pipe is not lost."""
        channel, receiver = self.start("sh", "-c", "sleep 0.3; wc -c", stdin=True)
        receiver.data_received(Lane.MAIN, b"x" * 1_000_000)
        self.assertTrue(channel.paused)
        receiver.data_received(Lane.STDIN_END, b"\0")
        self.assertFalse(channel.paused)
        await channel.ended
        self.assertEqual(channel.lane(Lane.MAIN).strip(), b"1000000")

    async def test_child_stops_reading(self) -> None:
        """A child that closes its stdin early neither fails nor holds the client back."""
        channel, receiver = self.start("sh", "-c", "exec <&-; sleep 0.3; echo fine", stdin=True)
        for _ in range(30):
            receiver.data_received(Lane.MAIN, b"x" * 100_000)
            await pause(reactor, 0.01)
        self.assertFalse(channel.paused)
        await channel.ended
        self.assertEqual(channel.lane(Lane.MAIN), b"fine\n")
        self.assertEqual(channel.result, Exited(0))

    async def test_exit_while_input_waits(self) -> None:
        """A command that exits without reading its input ends at once."""
        channel, receiver = self.start("sh", "-c", "sleep 0.1; exit 3", stdin=True)
        receiver.data_received(Lane.MAIN, b"x" * 1_000_000)
        await channel.ended
        self.assertEqual(channel.result, Exited(3))
        self.assertFalse(channel.paused)


class EndTests(ProcessCase):
    """Who ends whom."""

    async def test_output_before_result_while_blocked(self) -> None:
        """A client that reads nothing for longer than the quiet time loses no output."""
        channel, _ = self.start("sh", "-c", "seq 1 3000; sleep 30 & echo $! >&2")
        channel.block()
        await pause(reactor, QUIET + 0.4)
        self.assertFalse(channel.is_finished)
        channel.unblock()
        await channel.ended
        self.assertEqual(len(channel.lane(Lane.MAIN).splitlines()), 3000)
        self.assertEqual(channel.result, Exited(0))
        os.kill(int(channel.lane(Lane.ERROR)), signal.SIGKILL)

    async def test_background_child(self) -> None:
        """A background child that holds the pipes does not hold the exec, and lives on."""
        channel, receiver = self.start("sh", "-c", "nohup sleep 30 & echo $!")
        await channel.ended
        pid = int(channel.lane(Lane.MAIN))
        self.assertEqual(channel.result, Exited(0))
        receiver.closed()
        await pause(reactor, 0.5)
        self.assertTrue(alive(pid))
        os.kill(pid, signal.SIGKILL)
        await gone(reactor, pid)

    async def test_late_output(self) -> None:
        """What a background child says soon after its leader's end still arrives."""
        channel = await self.run_through("sh", "-c", "(sleep 0.4; echo late) & exit 7")
        self.assertEqual(channel.lane(Lane.MAIN), b"late\n")
        self.assertEqual(channel.result, Exited(7))

    async def test_client_gone(self) -> None:
        """When the client goes, the whole group is hung up."""
        channel, receiver = self.start("sh", "-c", "sleep 60 & echo $$ $!; wait")
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
        """A leader that only catches SIGHUP is killed after the grace."""
        channel, receiver = self.start("sh", "-c", "trap : HUP; echo $$; while :; do sleep 1; done")
        await channel.until(b"\n")
        receiver.closed()
        pid = int(channel.lane(Lane.MAIN))
        await gone(reactor, pid)

    async def test_nohup(self) -> None:
        """A leader that ignores SIGHUP stays, and may still write."""
        path = os.path.abspath(self.mktemp())
        script = f"trap '' HUP; echo $$; sleep 0.8; echo x; echo y && echo done > {path}; sleep 60"
        channel, receiver = self.start("sh", "-c", script)
        await channel.until(b"\n")
        pid = int(channel.lane(Lane.MAIN))
        receiver.reset(LOST)
        await self.hangups.idle()
        await pause(reactor, 1)
        self.assertTrue(alive(pid))
        self.assertTrue(os.path.exists(path))
        os.killpg(pid, signal.SIGKILL)
        await gone(reactor, pid)

    async def test_grace_spares_nohup_children(self) -> None:
        """The kill after the grace spares those of the group who ignore SIGHUP."""
        script = "trap : HUP; (trap '' HUP; exec sleep 60) & echo $$ $!; while :; do sleep 1; done"
        channel, receiver = self.start("sh", "-c", script)
        await channel.until(b"\n")
        leader, child = map(int, channel.lane(Lane.MAIN).split())
        await pause(reactor, 0.1)
        receiver.reset(LOST)
        await gone(reactor, leader)
        self.assertTrue(alive(child))
        os.kill(child, signal.SIGKILL)
        await gone(reactor, child)

    async def test_goodbye_of_the_command(self) -> None:
        """A command may still clean up and write when it is hung up."""
        path = os.path.abspath(self.mktemp())
        script = f"trap 'echo bye; echo bye > {path}; exit' HUP; sleep 30 & echo up; wait"
        channel, receiver = self.start("sh", "-c", script)
        await channel.until(b"up\n")
        receiver.reset(LOST)
        await self.hangups.idle()
        self.assertTrue(os.path.exists(path))
        self.assertEqual(channel.lane(Lane.MAIN), b"up\n")

    async def test_no_descriptor_leaks(self) -> None:
        """Commands leave no descriptor open in the agent."""
        await self.run_through("true")
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(10):
            await self.run_through("cat", stdin=b"x")
        self.assertEqual(len(os.listdir("/proc/self/fd")), before)
