"""Exec with a terminal: a process on a pseudo-terminal of its own, and a channel.

The terminal has its size before the process starts. The result follows all
output. When the client goes away first, the terminal is hung up and closed, as
when a window closes.
"""

from __future__ import annotations

from arhat.executor.ending import Valve, conclude
from arhat.executor.environment import Launch
from arhat.executor.hangup import Hangups
from arhat.executor.terminal import Terminal, known
from arhat.interfaces import ProcessHost
from tether.errors import Reason, RemoteViolation, ResetCode
from tether.link.interfaces import Channel, Lane, Receiver
from tether.verbs.codec import decode_size
from tether.verbs.requests import Exec, Result


def start_with_terminal(
    host: ProcessHost, hangups: Hangups, plan: Launch, request: Exec, channel: Channel
) -> Receiver:
    """Start ``plan`` on a new terminal and join the terminal to ``channel``."""
    return TerminalSession(host, hangups, plan, request, channel)


class TerminalSession:
    """One running command: its terminal on one side, its channel on the other."""

    def __init__(
        self, host: ProcessHost, hangups: Hangups, plan: Launch, request: Exec, channel: Channel
    ) -> None:
        self._channel = channel
        self._takes_input = request.stdin
        self._gives_output = request.stdout
        self._client_here = True
        self._line_is_empty = True
        self._terminal = Terminal.start(host, hangups, plan, request.size, self, channel.stream)
        channel.registerProducer(Valve(self._terminal.pause, self._terminal.resume), True)

    # -- the terminal's side

    def terminal_output(self, data: bytes) -> None:
        """What appears."""
        if self._gives_output:
            self._channel.write(data)

    def terminal_ended(self, result: Result) -> None:
        """The command ended and all output has been written."""
        self._client_here = False
        self._takes_input = False
        conclude(self._channel, result)

    def hold_input(self) -> None:
        """The command reads nothing for now."""
        self._channel.pauseProducing()

    def take_input(self) -> None:
        """It does again."""
        self._channel.resumeProducing()

    # -- the client's side

    def data_received(self, lane: Lane, data: bytes) -> None:
        """Keys, their end, or a new size."""
        if lane is Lane.MAIN:
            if self._takes_input:
                self._line_is_empty = data.endswith((b"\n", b"\r"))
                self._terminal.type(data)
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
        if known(size):
            self._terminal.resize(size)

    def _end_input(self) -> None:
        if self._takes_input:
            self._takes_input = False
            self._terminal.type_end(self._line_is_empty)

    def _abandon(self) -> None:
        if self._client_here:
            self._client_here = False
            self._takes_input = False
            self._channel.unregisterProducer()
            self._terminal.hang_up()
            self._channel.resumeProducing()
