"""Exec with a terminal: a process on a pseudo-terminal of its own, and a channel.

The terminal has its size before the process starts. The result follows all
output: the terminal is read until it is empty after its leader ended. When the
client goes away first, the terminal is hung up and closed, as when a window closes.
"""

from __future__ import annotations

import os
from typing import cast

from twisted.internet.process import PTYProcess
from twisted.internet.protocol import ProcessProtocol
from twisted.python.failure import Failure

from arhat.executor.ending import Valve, conclude, result_of
from arhat.executor.environment import Launch
from arhat.executor.hangup import Hangups, Leader
from arhat.executor.terminal import end_of_input, known, open_terminal, set_size
from arhat.interfaces import ProcessHost
from tether.errors import Reason, RemoteViolation, ResetCode
from tether.link.interfaces import Channel, Lane, Receiver
from tether.verbs.codec import decode_size
from tether.verbs.requests import Exec, Size


def start_with_terminal(
    host: ProcessHost, hangups: Hangups, plan: Launch, request: Exec, channel: Channel
) -> Receiver:
    """Start ``plan`` on a new terminal and join the terminal to ``channel``."""
    process = TerminalProcess(hangups, channel, request.stdin, request.stdout)
    spawn_on_terminal(host, process, plan, request.size)
    return process


def spawn_on_terminal(host: ProcessHost, protocol: ProcessProtocol, plan: Launch, size: Size | None) -> None:
    """Start ``plan`` on a new terminal of this size."""
    master, slave, name = open_terminal(size, plan.uid)
    try:
        host.spawnProcess(
            protocol,
            plan.executable,
            list(plan.argv),
            env=plan.environment,
            path=plan.folder,
            uid=plan.uid,
            gid=plan.gid,
            usePTY=(master, slave, name),  # type: ignore[arg-type]  # declared as bool, documented as either
        )
    except BaseException:
        os.close(master)
        os.close(slave)
        raise


class TerminalProcess(ProcessProtocol):
    """One running command: its terminal on one side, its channel on the other."""

    transport: PTYProcess

    def __init__(self, hangups: Hangups, channel: Channel, stdin: bool, stdout: bool) -> None:
        self._hangups = hangups
        self._channel = channel
        self._takes_input = stdin
        self._gives_output = stdout
        self._client_here = True
        self._line_is_empty = True

    # -- the process's side

    def connectionMade(self) -> None:
        """The process runs: let each side hold the other back."""
        self._leader = Leader(cast(int, self.transport.pid))
        self._channel.registerProducer(
            Valve(self.transport.pauseProducing, self.transport.resumeProducing), True
        )
        self.transport.registerProducer(
            Valve(self._channel.pauseProducing, self._channel.resumeProducing), True
        )

    def childDataReceived(self, childFD: int, data: bytes) -> None:
        """What appears on the terminal."""
        if self._client_here and self._gives_output:
            self._channel.write(data)

    def processExited(self, reason: Failure) -> None:
        """The leader ended; the terminal may still hold output."""
        self._takes_input = False
        self._hangups.reaped(self._leader)

    def processEnded(self, reason: Failure) -> None:
        """The leader ended and the terminal is empty."""
        if self._client_here:
            self._client_here = False
            conclude(self._channel, result_of(reason))

    # -- the client's side

    def data_received(self, lane: Lane, data: bytes) -> None:
        """Keys, their end, or a new size."""
        if lane is Lane.MAIN:
            if self._takes_input:
                self._line_is_empty = data.endswith((b"\n", b"\r"))
                self.transport.write(data)
        elif lane is Lane.STDIN_END:
            self._end_input()
        elif lane is Lane.RESIZE:
            self._resize(data)

    def finished(self) -> None:
        """The client will send nothing more."""
        self._end_input()

    def reset(self, reason: Reason) -> None:
        """The client went away."""
        self._abandon()

    def closed(self) -> None:
        """The channel is over; unless the result was said, the client went away."""
        self._abandon()

    # -- between them

    def _resize(self, data: bytes) -> None:
        try:
            size = decode_size(data)
        except RemoteViolation as why:
            self._channel.reset(Reason(ResetCode.PROTOCOL, str(why)))
            self._abandon()
            return
        if known(size) and self.transport.connected:
            set_size(self.transport.fileno(), size)

    def _end_input(self) -> None:
        if self._takes_input and self.transport.connected:
            self._takes_input = False
            self.transport.write(end_of_input(self.transport.fileno(), self._line_is_empty))

    def _abandon(self) -> None:
        if not self._client_here:
            return
        self._client_here = False
        self._takes_input = False
        self._channel.unregisterProducer()
        self._hangups.hang_up(self._leader)
        if self.transport.connected:
            # A paused producer would keep the terminal open for ever.
            self.transport.unregisterProducer()
            self.transport.loseConnection()
