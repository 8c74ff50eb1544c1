"""A process on a pseudo-terminal: started, typed to, resized, read until it is over."""

from __future__ import annotations

import fcntl
import grp
import os
import pty
import struct
import termios
from contextlib import suppress
from typing import Protocol, cast

from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.internet.process import PTYProcess
from twisted.internet.protocol import ProcessProtocol
from twisted.python.failure import Failure

from arhat.executor.ending import Valve, result_of, with_more
from arhat.executor.environment import Launch
from arhat.executor.hangup import Hangups, Leader
from arhat.interfaces import ProcessHost
from tether.verbs.requests import Result, Size

#: What a terminal is taken to be until someone says.
DEFAULT_SIZE = Size(80, 24)

#: Seconds without output after which a terminal whose leader ended is empty.
DRAIN_SECONDS = 0.2

#: Seconds after which it counts as empty although others go on writing.
DRAIN_LIMIT = 2.0

#: Reads of 8 KiB that empty whatever the kernel holds of a terminal's output.
_LAST_READS, _LAST_READ = 32, 8192

#: From Linux's termbits.h; Python does not name it.
_IUTF8 = 0o040000


def known(size: Size | None) -> bool:
    """Whether ``size`` says anything: a zero means that the client does not know."""
    return size is not None and size.width > 0 and size.height > 0


class TerminalUser(Protocol):
    """Who a terminal works for; calls never raise."""

    def terminal_output(self, data: bytes) -> None:
        """This appeared."""

    def terminal_ended(self, result: Result) -> None:
        """The process ended like this and the terminal is empty; the last call."""

    def hold_input(self) -> None:
        """The terminal is full of keys that nobody read; type no more for now."""

    def take_input(self) -> None:
        """It takes keys again."""


class Terminal(ProcessProtocol):
    """A process that leads a session on a terminal of its own.

    Its end is told when its leader ended and the terminal has been read empty.
    A background process may keep the terminal open for ever, so "empty" is also
    ``DRAIN_SECONDS`` without output, or ``DRAIN_LIMIT`` of reading after the
    leader's end; time during which reading is paused does not count.

    A leader may also give up the terminal and go on, with its streams in files. Twisted
    then closes the master, and the kernel hangs a leader up whose master is closed
    for good. So a second descriptor of the master is kept until the end.
    """

    transport: PTYProcess

    def __init__(self, clock: IReactorTime, hangups: Hangups, user: TerminalUser, stream: int | None) -> None:
        self._clock = clock
        self._hangups = hangups
        self._user = user
        self._stream = stream
        self._master: int | None = None
        self._paused = False
        self._over = False
        self._result: Result | None = None
        self._drained: IDelayedCall | None = None
        self._latest = 0.0

    @classmethod
    def start(
        cls,
        host: ProcessHost,
        hangups: Hangups,
        plan: Launch,
        size: Size | None,
        user: TerminalUser,
        stream: int | None = None,
    ) -> Terminal:
        """Start ``plan`` on a new terminal of this size, for the session of ``stream`` if it is for one."""
        terminal = cls(host, hangups, user, stream)
        master, slave, name = _open_terminal(size, plan.uid)
        try:
            # Before the process is there: one that cannot be kept is not started.
            terminal._master = os.dup(master)
            host.spawnProcess(
                terminal,
                plan.executable,
                list(plan.argv),
                env=plan.environment,
                path=plan.folder,
                uid=plan.uid,
                gid=plan.gid,
                usePTY=(master, slave, name),  # type: ignore[arg-type]  # declared as bool, documented as either
            )
        except BaseException:
            terminal._let_go()
            os.close(master)
            os.close(slave)
            raise
        return terminal

    # -- from its user

    def type(self, keys: bytes) -> None:
        """Type ``keys``."""
        if self.transport.connected:
            self.transport.write(keys)
        elif self._master is not None:
            # Nobody has it open to read, but Ctrl-C still interrupts. What does not fit is lost.
            with suppress(OSError):
                os.write(self._master, keys)

    def type_end(self, line_is_empty: bool) -> None:
        """Type what a reader takes for the end, unless it reads key by key."""
        if self.transport.connected:
            self.transport.write(end_of_input(self.transport.fileno(), line_is_empty))

    def resize(self, size: Size) -> None:
        """Change its size."""
        if self._master is not None:
            set_size(self._master, size)

    def pause(self) -> None:
        """Read no more, so that whoever writes to it waits."""
        self._paused = True
        self.transport.pauseProducing()

    def resume(self) -> None:
        """Read on."""
        if self._paused:
            self._paused = False
            self._latest = self._clock.seconds() + DRAIN_LIMIT
            self.transport.resumeProducing()
            self._restart_drain()

    def hang_up(self) -> None:
        """Its user is gone: hang it up and close it; nothing more is told."""
        self._over = True
        self._stop_drain()
        self._hangups.hang_up(self._leader)
        self._close()

    # -- from the process

    def connectionMade(self) -> None:
        """The process runs."""
        self._leader = Leader(cast(int, self.transport.pid), self._stream)
        self.transport.registerProducer(Valve(self._user.hold_input, self._user.take_input), True)

    def childDataReceived(self, childFD: int, data: bytes) -> None:
        """Something appeared."""
        if not self._over:
            self._user.terminal_output(with_more(data, self.transport.fileno()))
            self._restart_drain()

    def processExited(self, reason: Failure) -> None:
        """The leader ended; the terminal may still hold output."""
        self._hangups.reaped(self._leader)
        if not self._over:
            self._result = result_of(reason)
            self._latest = self._clock.seconds() + DRAIN_LIMIT
            self._drained = self._clock.callLater(DRAIN_SECONDS, self._is_drained)

    def processEnded(self, reason: Failure) -> None:
        """The leader ended and nobody has the terminal open."""
        self._ended()

    def _restart_drain(self) -> None:
        if self._drained is not None and self._clock.seconds() < self._latest:
            self._drained.reset(DRAIN_SECONDS)

    def _is_drained(self) -> None:
        if self._paused:
            self._drained = self._clock.callLater(DRAIN_SECONDS, self._is_drained)
        else:
            self._drained = None
            self._ended()

    def _read_rest(self) -> None:
        # After a standstill of the whole agent the timer runs before the reads that are due. And
        # Twisted closes a terminal unread if it only waits to write to it when the others let go.
        for _ in range(_LAST_READS):
            if self._master is None:
                return
            try:
                data = os.read(self._master, _LAST_READ)
            except OSError:
                return
            if not data:
                return
            self._user.terminal_output(with_more(data, self._master))

    def _stop_drain(self) -> None:
        drained, self._drained = self._drained, None
        if drained is not None:
            drained.cancel()

    def _ended(self) -> None:
        self._stop_drain()
        if not self._over and self._result is not None:
            self._read_rest()
        self._close()
        # Who is shown the rest may have left.
        if not self._over and self._result is not None:
            self._over = True
            self._user.terminal_ended(self._result)

    def _close(self) -> None:
        self._let_go()
        if self.transport.connected:
            # Not ``loseConnection``: it waits until somebody has read what was typed.
            self.transport.unregisterProducer()
            self.transport.stopReading()
            self.transport.stopWriting()
            # Not from within a read of it: Twisted may write to it after that.
            self._clock.callLater(0, self._shut)

    def _shut(self) -> None:
        if self.transport.connected:
            self.transport.connectionLost(Failure(ConnectionDone()))

    def _let_go(self) -> None:
        master, self._master = self._master, None
        if master is not None:
            os.close(master)


def _open_terminal(size: Size | None, owner: int | None) -> tuple[int, int, str]:
    """A new terminal as ``spawnProcess`` takes it; ``owner`` is the user who will use it."""
    master, slave = pty.openpty()
    try:
        set_size(slave, size if size is not None and known(size) else DEFAULT_SIZE)
        # So that the line editor of the kernel erases a whole character.
        modes = termios.tcgetattr(slave)
        modes[0] |= _IUTF8
        termios.tcsetattr(slave, termios.TCSANOW, modes)
        if owner is not None:
            os.fchown(slave, owner, _terminal_group())
            os.fchmod(slave, 0o620)
        return master, slave, os.ttyname(slave)
    except BaseException:
        os.close(master)
        os.close(slave)
        raise


def set_size(terminal: int, size: Size) -> None:
    """Tell the terminal its size; whoever is in its foreground gets SIGWINCH if it changed."""
    packed = struct.pack("HHHH", min(size.height, 65535), min(size.width, 65535), 0, 0)
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, packed)


def end_of_input(terminal: int, line_is_empty: bool) -> bytes:
    """What to type so that a reader sees the end; nothing when it reads key by key.

    In the middle of a line the first one only hands over that line.
    """
    modes = termios.tcgetattr(terminal)
    if not modes[3] & termios.ICANON:
        return b""
    key: bytes = modes[6][termios.VEOF]
    return key if line_is_empty else key * 2


def _terminal_group() -> int:
    try:
        return grp.getgrnam("tty").gr_gid
    except KeyError:
        return -1
