"""How a process ends whose client went away.

As a closed terminal would: SIGHUP and SIGCONT to its group. After the grace,
SIGKILL, but only while the leader lives and does not ignore SIGHUP: whoever
ignores it (``nohup``) asked to stay. What a finished leader left behind is never
signalled; that is what ``nohup ... &`` through ``kubectl exec`` relies on.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

_PROC = Path("/proc")


class Leader:
    """A process that leads its own group and is a child of the agent."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._reaped = False

    def reaped(self) -> None:
        """The kernel may now give the pid to another process."""
        self._reaped = True

    @property
    def lives(self) -> bool:
        """Whether it still runs; a zombie does not."""
        if self._reaped:
            return False
        try:
            return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
        except ChildProcessError:
            return False

    def hang_up(self) -> bool:
        """SIGHUP and SIGCONT to the group; gives back whether the leader should go now."""
        if not self.lives:
            return False
        stays = ignores_hangup(self.pid)
        for number in (signal.SIGHUP, signal.SIGCONT):
            try:
                os.killpg(self.pid, number)
            except ProcessLookupError:
                # It is about to become the leader: setsid has not run yet.
                _send(self.pid, number)
            except PermissionError:
                # Someone else's by now, as with sudo; what may be signalled was.
                return False
        return not stays

    def kill(self) -> None:
        """SIGKILL to those of the group that do not ignore SIGHUP, if the leader is one of them."""
        if not self.lives or ignores_hangup(self.pid):
            return
        for pid in {self.pid, *_group(self.pid)}:
            if not ignores_hangup(pid):
                _send(pid, signal.SIGKILL)


class Hangups:
    """All processes that were told to go and have not gone yet."""

    _log = Logger()

    def __init__(self, clock: IReactorTime, grace: float) -> None:
        self._clock = clock
        self._grace = grace
        self._pending: dict[Leader, IDelayedCall] = {}
        self._waiting: list[Deferred[None]] = []

    def hang_up(self, leader: Leader) -> None:
        """Tell ``leader`` and its group that their client is gone."""
        if leader not in self._pending and leader.hang_up():
            self._pending[leader] = self._clock.callLater(self._grace, self._grace_over, leader)

    def hurry(self, grace: float) -> None:
        """From now on nobody has more grace than this, whoever was told to go before included."""
        self._grace = min(self._grace, grace)
        for call in self._pending.values():
            if call.getTime() > self._clock.seconds() + grace:
                call.reset(grace)

    def reaped(self, leader: Leader) -> None:
        """``leader`` ended and was waited for."""
        leader.reaped()
        call = self._pending.pop(leader, None)
        if call is not None and call.active():
            call.cancel()
        self._notify()

    def idle(self) -> Deferred[None]:
        """Fires when every process that was told to go has gone or used up its grace."""
        waiting: Deferred[None] = Deferred(self._waiting.remove)
        self._waiting.append(waiting)
        self._notify()
        return waiting

    def _grace_over(self, leader: Leader) -> None:
        del self._pending[leader]
        self._log.debug("process {pid} outlived its grace", pid=leader.pid)
        leader.kill()
        self._notify()

    def _notify(self) -> None:
        if not self._pending:
            waiting, self._waiting = self._waiting, []
            for deferred in waiting:
                deferred.callback(None)


def ignores_hangup(pid: int) -> bool:
    """Whether a process has chosen to ignore SIGHUP; one that is gone has not."""
    try:
        for line in (_PROC / str(pid) / "status").read_text("ascii", "replace").splitlines():
            if line.startswith("SigIgn:"):
                return bool(int(line.split()[1], 16) & (1 << (signal.SIGHUP - 1)))
    except (OSError, ValueError, IndexError):
        pass
    return False


def _group(leader: int) -> Iterator[int]:
    for entry in _PROC.iterdir():
        if entry.name.isdigit():
            try:
                if os.getpgid(int(entry.name)) == leader:
                    yield int(entry.name)
            except (ProcessLookupError, PermissionError):
                continue


def _send(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except (ProcessLookupError, PermissionError):
        pass
