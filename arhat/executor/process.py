"""Exec without a terminal: a process with three pipes, and a channel.

The law of its end
    The result follows all output. The output is over when both pipes are
    closed, or when the leader has exited and nothing was read for
    ``QUIET_SECONDS``: a command left running in the background may hold the
    pipes for ever, and nobody who typed ``nohup job &`` waits for that. Time
    during which the client's side reads nothing does not count as quiet.

When the client goes away first, its process is hung up (see
``arhat.executor.hangup``), and what it still writes is read and dropped, so that
it may end in its own way instead of by SIGPIPE.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import cast

from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.internet.process import Process, ProcessReader
from twisted.internet.protocol import ProcessProtocol
from twisted.python.failure import Failure

from arhat.executor.ending import Valve, conclude, readable, result_of, with_more
from arhat.executor.environment import Launch
from arhat.executor.hangup import Hangups, Leader
from arhat.interfaces import ProcessHost
from tether.errors import Reason
from tether.link.interfaces import Channel, Lane, Receiver
from tether.verbs.requests import Exec, Result

#: How long the pipes of a finished leader must be silent to count as over.
QUIET_SECONDS = 2.0


def start_with_pipes(
    host: ProcessHost, hangups: Hangups, plan: Launch, request: Exec, channel: Channel
) -> Receiver:
    """Start ``plan`` with its streams on ``channel``; a stream not asked for is ``/dev/null``."""
    piped = PipedProcess(host, hangups, channel)
    null = os.open(os.devnull, os.O_RDWR)
    # With a folder or a user of its own a child is forked, in Python, from the whole
    # agent; without, it is a posix_spawn, three times as fast. So the agent goes there.
    stays = plan.uid is not None
    try:
        with nullcontext() if stays else _standing_in(plan.folder):
            host.spawnProcess(
                piped,
                plan.executable,
                list(plan.argv),
                env=plan.environment,
                path=plan.folder if stays else None,
                uid=plan.uid,
                gid=plan.gid,
                childFDs={
                    0: "w" if request.stdin else null,
                    1: "r" if request.stdout else null,
                    2: "r" if request.stderr else null,
                },
            )
    finally:
        os.close(null)
    return piped


@contextmanager
def _standing_in(folder: str) -> Iterator[None]:
    """Be in ``folder`` for the moment; nothing in the agent relies on where it is."""
    before = os.open(".", os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.chdir(folder)
        yield
    finally:
        os.fchdir(before)
        os.close(before)


class PipedProcess(ProcessProtocol):
    """One running command: its pipes on one side, its channel on the other."""

    transport: Process

    def __init__(self, clock: IReactorTime, hangups: Hangups, channel: Channel) -> None:
        self._clock = clock
        self._hangups = hangups
        self._channel = channel
        self._client_here = True
        self._stdin_open = False
        self._output_paused = False
        self._result: Result | None = None
        self._quiet: IDelayedCall | None = None

    # -- the process's side

    def connectionMade(self) -> None:
        """The process runs: let each side hold the other back."""
        self._leader = Leader(cast(int, self.transport.pid), self._channel.stream)
        self._stdin_open = 0 in self.transport.pipes
        self._channel.registerProducer(Valve(self._pause_output, self._resume_output), True)
        if self._stdin_open:
            self.transport.registerProducer(
                Valve(self._channel.pauseProducing, self._channel.resumeProducing), True
            )

    def childDataReceived(self, childFD: int, data: bytes) -> None:
        """Stdout or stderr."""
        if self._client_here:
            data = with_more(data, self.transport.pipes[childFD].fileno())
            self._channel.write(data, Lane.ERROR if childFD == 2 else Lane.MAIN)
            self._restart_quiet()

    def inConnectionLost(self) -> None:
        """The child reads no more; what the client still types goes nowhere."""
        self._stdin_open = False
        self._channel.resumeProducing()

    def processExited(self, reason: Failure) -> None:
        """The leader ended; others may still hold its pipes."""
        self._hangups.reaped(self._leader)
        self._result = result_of(reason)
        self._end_stdin()
        if self._client_here:
            self._quiet = self._clock.callLater(QUIET_SECONDS, self._was_quiet)
        else:
            self.transport.loseConnection()

    def processEnded(self, reason: Failure) -> None:
        """The leader ended and all pipes are closed."""
        self._conclude()

    # -- the client's side

    def data_received(self, lane: Lane, data: bytes) -> None:
        """Stdin, or its end."""
        if lane is Lane.MAIN and self._stdin_open:
            self.transport.write(data)
        elif lane is Lane.STDIN_END:
            self._end_stdin()

    def finished(self) -> None:
        """The client will send nothing more: stdin ends, output goes on."""
        self._end_stdin()

    def reset(self, reason: Reason) -> None:
        """The client went away."""
        self._abandon()

    def closed(self) -> None:
        """The channel is over; unless the result was said, the client went away."""
        self._abandon()

    # -- between them

    def _pause_output(self) -> None:
        self._output_paused = True
        self.transport.pauseProducing()

    def _resume_output(self) -> None:
        self._output_paused = False
        self.transport.resumeProducing()
        self._restart_quiet()

    def _restart_quiet(self) -> None:
        if self._quiet is not None and self._quiet.active():
            self._quiet.reset(QUIET_SECONDS)

    def _was_quiet(self) -> None:
        # After a standstill of the whole agent this timer runs before the reads that are due.
        if self._output_paused or any(readable(pipe.fileno()) for pipe in self._readers()):
            self._quiet = self._clock.callLater(QUIET_SECONDS, self._was_quiet)
        else:
            self._conclude()
            self.transport.loseConnection()

    def _readers(self) -> list[ProcessReader]:
        return [pipe for pipe in self.transport.pipes.values() if isinstance(pipe, ProcessReader)]

    def _end_stdin(self) -> None:
        if self._stdin_open:
            self._stdin_open = False
            # A paused producer would keep the pipe open for ever.
            self.transport.unregisterProducer()
            self.transport.closeStdin()
            self._channel.resumeProducing()

    def _conclude(self) -> None:
        self._stop_quiet()
        if self._client_here and self._result is not None:
            self._client_here = False
            conclude(self._channel, self._result)

    def _abandon(self) -> None:
        if not self._client_here:
            return
        self._client_here = False
        self._stop_quiet()
        self._channel.unregisterProducer()
        self._end_stdin()
        if self._result is None:
            self._hangups.hang_up(self._leader)
            self._resume_output()
        else:
            self.transport.loseConnection()

    def _stop_quiet(self) -> None:
        if self._quiet is not None and self._quiet.active():
            self._quiet.cancel()
        self._quiet = None
