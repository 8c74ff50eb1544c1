"""A program whose output is read line by line, held back when asked, and killed when not needed."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from twisted.internet.defer import Deferred
from twisted.internet.error import ProcessExitedAlready
from twisted.internet.process import Process
from twisted.internet.protocol import ProcessProtocol
from twisted.python.failure import Failure

from arhat.executor.ending import result_of
from arhat.executor.environment import PATH, Account
from arhat.interfaces import ProcessHost
from tether.verbs.requests import Exited

#: Longer lines are left out: no line fills the memory.
LONGEST_LINE = 8 * 1024 * 1024
_LONGEST_COMPLAINT = 4096


class LineChild(ProcessProtocol):
    """One running program."""

    transport: Process

    def __init__(self, heard: Callable[[list[bytes]], None]) -> None:
        self._heard = heard
        self._pieces: list[bytes] = []  # of a line whose end is still to come
        self._length = 0
        self._too_long = False
        self._complaint = b""
        self._stopped = False
        #: Fires with ``None`` for success, else with what went wrong; cancelling kills.
        self.ended: Deferred[str | None] = Deferred(lambda _: self.stop())

    def pause(self) -> None:
        """Read no more for now."""
        self.transport.pauseProducing()

    def resume(self) -> None:
        """Read on."""
        self.transport.resumeProducing()

    def stop(self) -> None:
        """Kill it and hear nothing more; ``ended`` fires at once."""
        if self._stopped:
            return
        self._stopped = True
        try:
            self.transport.signalProcess("KILL")
        except ProcessExitedAlready:
            pass
        self.transport.loseConnection()
        if not self.ended.called:
            self.ended.callback("it was stopped")

    def outReceived(self, data: bytes) -> None:
        """Stdout: cut into lines."""
        if self._stopped:
            return
        *lines, rest = data.split(b"\n")
        if lines:
            lines[0] = b"".join((*self._pieces, lines[0]))
            self._pieces, self._length = [], 0
            if self._too_long:
                self._too_long = False
                del lines[0]
        if not self._too_long:
            self._keep(rest)
        if lines:
            self._heard(lines)

    def _keep(self, piece: bytes) -> None:
        # Pieces, for to join them as they come takes the square of a long line's length.
        self._pieces.append(piece)
        self._length += len(piece)
        if self._length > LONGEST_LINE:
            self._pieces, self._length, self._too_long = [], 0, True

    def errReceived(self, data: bytes) -> None:
        """Stderr: the last line may tell what is wrong."""
        self._complaint = (self._complaint + data)[-_LONGEST_COMPLAINT:]

    def processEnded(self, reason: Failure) -> None:
        """It ended and all was heard."""
        if self.ended.called:
            return
        self._stopped = True
        result = result_of(reason)
        if result == Exited(0):
            self.ended.callback(None)
            return
        complaints = self._complaint.decode("utf-8", "replace").strip().splitlines()
        self.ended.callback(complaints[-1] if complaints else f"it ended with {result}")


def start_child(
    host: ProcessHost, account: Account, argv: Sequence[str], heard: Callable[[list[bytes]], None]
) -> LineChild:
    """Run ``argv`` (an absolute path first) as ``account``; ``heard`` gets lines without ends."""
    child = LineChild(heard)
    null = os.open(os.devnull, os.O_RDONLY)
    try:
        host.spawnProcess(
            child,
            argv[0],
            list(argv),
            env={"PATH": PATH, "LC_ALL": "C.UTF-8", "SYSTEMD_COLORS": "0"},
            path="/",
            uid=account.uid if account.switch else None,
            gid=account.gid if account.switch else None,
            childFDs={0: null, 1: "r", 2: "r"},
        )
    finally:
        os.close(null)
    return child
