"""How a process ends whose client went away.

As a closed terminal would: SIGHUP and SIGCONT to its group. After the grace,
SIGKILL, but only while the leader lives and does not ignore SIGHUP: whoever
ignores it (``nohup``) asked to stay, and so may one of whom that cannot be told.
What a finished leader left behind is never signalled; that is what ``nohup ... &``
through ``kubectl exec`` relies on.

What came of each is one line of the log.
"""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from enum import Enum
from pathlib import Path

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

_PROC = Path("/proc")


class Answer(Enum):
    """What a leader makes of a signal that tells it to go; the words are for the log."""

    GOES = "goes"
    OVER = "had ended"
    STAYS = "ignores SIGHUP and was left running"
    DOUBTFUL = "may ignore SIGHUP and was left running"
    FOREIGN = "belongs to another user by now and was left running"


class Leader:
    """A process that leads its own group and is a child of the agent.

    It works for the session of ``stream``; ``None`` is the shared shell, which has none.
    """

    def __init__(self, pid: int, stream: int | None = None) -> None:
        self.pid = pid
        self.stream = stream
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

    def hang_up(self) -> Answer:
        """SIGHUP and SIGCONT to the group; gives back whether the leader should go now."""
        if not self.lives:
            return Answer.OVER
        stays = ignores_hangup(self.pid)
        for number in (signal.SIGHUP, signal.SIGCONT):
            try:
                os.killpg(self.pid, number)
            except ProcessLookupError:
                # It is about to become the leader: setsid has not run yet.
                _send(self.pid, number)
            except PermissionError:
                # Someone else's by now, as with sudo; what may be signalled was.
                return Answer.FOREIGN
        # Where that cannot be told now it is asked again after the grace.
        return Answer.STAYS if stays else Answer.GOES

    def kill(self) -> Answer:
        """SIGKILL to those of the group that do not ignore SIGHUP, if the leader is one of them."""
        if not self.lives:
            return Answer.OVER
        stays = ignores_hangup(self.pid)
        if stays is not False:
            return Answer.STAYS if stays else Answer.DOUBTFUL
        for pid in _group(self.pid) - {self.pid}:
            if ignores_hangup(pid) is False:
                _send(pid, signal.SIGKILL)
        return Answer.GOES if _send(self.pid, signal.SIGKILL) else Answer.FOREIGN


class Hangups:
    """All processes that were told to go and have not gone yet."""

    _log = Logger()

    def __init__(self, clock: IReactorTime, grace: float) -> None:
        self._clock = clock
        self._grace = grace
        self._pending: dict[Leader, tuple[float, IDelayedCall]] = {}  # told when, killed when
        self._waiting: list[Deferred[None]] = []

    def hang_up(self, leader: Leader) -> None:
        """Tell ``leader`` and its group that their client is gone."""
        if leader in self._pending:
            return
        answer = leader.hang_up()
        if answer is Answer.GOES:
            end = self._clock.callLater(self._grace, self._grace_over, leader)
            self._pending[leader] = self._clock.seconds(), end
        else:
            self._tell(leader, answer.value)

    def hurry(self, grace: float) -> None:
        """From now on nobody has more grace than this, whoever was told to go before included."""
        self._grace = min(self._grace, grace)
        for _, call in self._pending.values():
            if call.getTime() > self._clock.seconds() + grace:
                call.reset(grace)

    def reaped(self, leader: Leader) -> None:
        """``leader`` ended and was waited for."""
        leader.reaped()
        if leader in self._pending:
            _, call = self._pending.pop(leader)
            call.cancel()
            self._tell(leader, "ended after SIGHUP")
        self._notify()

    def idle(self) -> Deferred[None]:
        """Fires when every process that was told to go has gone or used up its grace."""
        waiting: Deferred[None] = Deferred(self._waiting.remove)
        self._waiting.append(waiting)
        self._notify()
        return waiting

    def _grace_over(self, leader: Leader) -> None:
        told, _ = self._pending.pop(leader)
        try:
            answer = leader.kill()
            if answer is Answer.GOES:
                self._tell(leader, f"killed after {round(self._clock.seconds() - told, 1):g} s")
            elif answer is Answer.OVER:
                self._tell(leader, "ended after SIGHUP")
            else:
                self._tell(leader, answer.value)
        finally:
            # Whatever went wrong: who stops the agent waits for this.
            self._notify()

    def _tell(self, leader: Leader, fate: str) -> None:
        if leader.stream is None:
            self._log.info("the shared shell: process {pid} {fate}", pid=leader.pid, fate=fate)
        else:
            self._log.info(
                "stream {stream}: process {pid} {fate}", stream=leader.stream, pid=leader.pid, fate=fate
            )

    def _notify(self) -> None:
        if not self._pending:
            waiting, self._waiting = self._waiting, []
            for deferred in waiting:
                deferred.callback(None)


def ignores_hangup(pid: int) -> bool | None:
    """Whether a process has chosen to ignore SIGHUP; one that is gone has not.

    ``None`` where that cannot be told, as when the agent has no descriptor left.
    """
    try:
        for line in (_PROC / str(pid) / "status").read_text("ascii", "replace").splitlines():
            if line.startswith("SigIgn:"):
                return bool(int(line.split()[1], 16) & (1 << (signal.SIGHUP - 1)))
    except (FileNotFoundError, ProcessLookupError):
        return False
    except (OSError, ValueError, IndexError):
        pass
    return None


def _group(leader: int) -> set[int]:
    """The members of a group; nobody where they cannot be listed."""
    members: set[int] = set()
    try:
        names = os.listdir(_PROC)
    except OSError:
        return members
    for name in names:
        if name.isdigit():
            with suppress(ProcessLookupError, PermissionError):
                if os.getpgid(int(name)) == leader:
                    members.add(int(name))
    return members


def _send(pid: int, number: int) -> bool:
    """Signal one process if it is there; false when it may not be signalled."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass
    except PermissionError:
        return False
    return True
