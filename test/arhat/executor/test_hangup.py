"""How processes end whose client went away, where no client is needed to see it."""

from __future__ import annotations

import os
import signal
import subprocess

from twisted.internet.task import Clock
from twisted.logger import capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase

from arhat.executor import hangup
from arhat.executor.hangup import Hangups, Leader, ignores_hangup
from test.arhat.running import no_descriptors


class HangupsTests(SynchronousTestCase):
    """The grace, on a clock of our own and processes of our own."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.hangups = Hangups(self.clock, 5)
        self.events = self.enterContext(capturedLogs())

    def told(self) -> list[tuple[object, int, str]]:
        """Of which session, which process, what came of it: as the log tells."""
        return [(event.get("stream"), event["pid"], event["fate"]) for event in self.events]

    def sleeper(self, before: str = "") -> subprocess.Popen[bytes]:
        script = f"{before} echo up; while :; do sleep 0.05; done"
        process = subprocess.Popen(["sh", "-c", script], start_new_session=True, stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        self.addCleanup(process.stdout.close)
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        return process

    def test_obedient(self) -> None:
        """A process that goes at once is not waited for any longer."""
        process = self.sleeper()
        leader = Leader(process.pid, 4)
        self.hangups.hang_up(leader)
        idle = self.hangups.idle()
        self.assertNoResult(idle)
        self.assertEqual(process.wait(5), -signal.SIGHUP)
        self.hangups.reaped(leader)
        self.successResultOf(idle)
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.assertEqual(self.told(), [(4, process.pid, "ended after SIGHUP")])

    def test_stubborn(self) -> None:
        """A process that only catches SIGHUP is killed when the grace is over, not before."""
        process = self.sleeper("trap : HUP;")
        leader = Leader(process.pid, 4)
        self.hangups.hang_up(leader)
        idle = self.hangups.idle()
        self.clock.advance(4.9)
        self.assertIsNone(process.poll())
        self.clock.advance(0.1)
        self.assertEqual(process.wait(5), -signal.SIGKILL)
        self.successResultOf(idle)
        self.hangups.reaped(leader)
        self.assertEqual(self.told(), [(4, process.pid, "killed after 5 s")])

    def test_hurry(self) -> None:
        """An agent that stops gives less grace, also to who was told to go before; never more."""
        before, after = self.sleeper("trap : HUP;"), self.sleeper("trap : HUP;")
        self.hangups.hang_up(Leader(before.pid))
        self.clock.advance(1)
        self.hangups.hurry(2)
        self.hangups.hurry(60)
        self.hangups.hang_up(Leader(after.pid))
        idle = self.hangups.idle()
        self.clock.advance(1.9)
        self.assertNoResult(idle)
        self.clock.advance(0.2)
        self.successResultOf(idle)
        self.assertEqual([before.wait(5), after.wait(5)], [-signal.SIGKILL] * 2)

    def test_stopped(self) -> None:
        """A stopped process is woken to hear that it should go."""
        process = self.sleeper()
        os.kill(process.pid, signal.SIGSTOP)
        self.hangups.hang_up(Leader(process.pid))
        self.assertEqual(process.wait(5), -signal.SIGHUP)

    def test_ignoring(self) -> None:
        """A process that ignores SIGHUP is let be."""
        process = self.sleeper("trap '' HUP;")
        self.assertTrue(ignores_hangup(process.pid))
        self.hangups.hang_up(Leader(process.pid))
        self.successResultOf(self.hangups.idle())
        self.clock.advance(6)
        self.assertRaises(subprocess.TimeoutExpired, process.wait, 0.1)
        self.assertEqual(self.told(), [(None, process.pid, "ignores SIGHUP and was left running")])

    def test_changes_its_mind(self) -> None:
        """A process that begins to ignore SIGHUP when it hears one is let be when the grace is over."""
        process = self.sleeper("trap 'trap \"\" HUP; echo stays' HUP;")
        self.hangups.hang_up(Leader(process.pid, 4))
        assert process.stdout is not None
        self.assertEqual(process.stdout.readline(), b"stays\n")
        self.clock.advance(5)
        self.successResultOf(self.hangups.idle())
        self.assertRaises(subprocess.TimeoutExpired, process.wait, 0.1)
        self.assertEqual(self.told(), [(4, process.pid, "ignores SIGHUP and was left running")])

    def test_no_descriptor_at_first(self) -> None:
        """Where nobody can tell whether a process ignores SIGHUP, that is asked again after the grace."""
        stays, goes = self.sleeper("trap '' HUP;"), self.sleeper("trap : HUP;")
        with no_descriptors():
            self.assertIsNone(ignores_hangup(stays.pid))
            for process in (stays, goes):
                self.hangups.hang_up(Leader(process.pid, 4))
        self.clock.advance(5)
        self.successResultOf(self.hangups.idle())
        self.assertEqual(goes.wait(5), -signal.SIGKILL)
        self.assertIsNone(stays.poll())
        fates = [(4, stays.pid, "ignores SIGHUP and was left running"), (4, goes.pid, "killed after 5 s")]
        self.assertEqual(self.told(), fates)

    def test_no_descriptor_at_last(self) -> None:
        """Where that cannot be told after the grace either, the process is let be."""
        process = self.sleeper("trap '' HUP;")
        with no_descriptors():
            self.hangups.hang_up(Leader(process.pid, 4))
            idle = self.hangups.idle()
            self.clock.advance(5)
        self.successResultOf(idle)
        self.assertIsNone(process.poll())
        self.assertEqual(self.told(), [(4, process.pid, "may ignore SIGHUP and was left running")])

    def test_no_such_process(self) -> None:
        """A process that is gone ignores nothing."""
        process = self.sleeper()
        process.kill()
        process.wait()
        self.assertIs(ignores_hangup(process.pid), False)

    def test_group_cannot_be_listed(self) -> None:
        """A leader is killed although nobody can tell who else is of its group."""
        process = self.sleeper("trap : HUP;")
        self.hangups.hang_up(Leader(process.pid, 4))
        idle = self.hangups.idle()
        self.patch(hangup, "ignores_hangup", lambda pid: False)
        with no_descriptors():
            self.clock.advance(5)
        self.successResultOf(idle)
        self.assertEqual(process.wait(5), -signal.SIGKILL)
        self.assertEqual(self.told(), [(4, process.pid, "killed after 5 s")])

    def test_kill_fails(self) -> None:
        """Nobody waits for ever for a process that could not be killed."""
        process = self.sleeper("trap : HUP;")
        self.hangups.hang_up(Leader(process.pid, 4))
        idle = self.hangups.idle()

        def fail(pid: int) -> set[int]:
            raise RuntimeError("a mistake")

        self.patch(hangup, "_group", fail)
        self.assertRaises(RuntimeError, self.clock.advance, 5)
        self.successResultOf(idle)

    def test_not_waited_for_yet(self) -> None:
        """A process that ended within the grace is not told as killed, though nobody waited for it yet."""
        process = self.sleeper()
        leader = Leader(process.pid, 4)
        self.hangups.hang_up(leader)
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        self.clock.advance(5)
        self.hangups.reaped(leader)
        self.assertEqual(self.told(), [(4, process.pid, "ended after SIGHUP")])

    def test_foreign(self) -> None:
        """A process that may not be signalled any more is let be, at either signal."""
        ours, theirs = self.sleeper("trap : HUP;"), self.sleeper()
        self.hangups.hang_up(Leader(ours.pid, 4))

        def refuse(pid: int, number: int) -> None:
            raise PermissionError()

        self.patch(os, "kill", refuse)
        self.patch(os, "killpg", refuse)
        self.hangups.hang_up(Leader(theirs.pid, 6))
        self.clock.advance(5)
        self.successResultOf(self.hangups.idle())
        fate = "belongs to another user by now and was left running"
        self.assertEqual(self.told(), [(6, theirs.pid, fate), (4, ours.pid, fate)])

    def test_shared_shell(self) -> None:
        """The shared shell belongs to no session, and is told by its name."""
        process = self.sleeper()
        leader = Leader(process.pid)
        self.hangups.hang_up(leader)
        self.hangups.reaped(leader)
        [event] = self.events
        self.assertEqual(formatEvent(event), f"the shared shell: process {process.pid} ended after SIGHUP")

    def test_finished(self) -> None:
        """A leader that has ended is not signalled, nor is what it left."""
        script = "sleep 20 & echo $!; exit"
        process = subprocess.Popen(["sh", "-c", script], start_new_session=True, stdout=subprocess.PIPE)
        assert process.stdout is not None
        left = int(process.stdout.readline())
        self.addCleanup(os.kill, left, signal.SIGKILL)
        self.addCleanup(process.wait)
        self.addCleanup(process.stdout.close)
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        leader = Leader(process.pid)
        self.assertFalse(leader.lives)
        self.hangups.hang_up(leader)
        self.clock.advance(6)
        os.kill(left, 0)
        self.assertEqual(self.told(), [(None, process.pid, "had ended")])

    def test_nobody(self) -> None:
        """With nobody to wait for, idle fires at once, and it may be cancelled."""
        self.successResultOf(self.hangups.idle())
        process = self.sleeper("trap : HUP;")
        self.hangups.hang_up(Leader(process.pid))
        idle = self.hangups.idle()
        idle.addErrback(lambda _: None)
        idle.cancel()
        self.clock.advance(6)
