"""A pseudo-terminal: made with its size, resized, and asked how it ends its input."""

from __future__ import annotations

import fcntl
import grp
import os
import pty
import struct
import termios

from tether.verbs.requests import Size

#: What a terminal is taken to be until someone says.
DEFAULT_SIZE = Size(80, 24)

#: From Linux's termbits.h; Python does not name it.
_IUTF8 = 0o040000


def known(size: Size | None) -> bool:
    """Whether ``size`` says anything: a zero means that the client does not know."""
    return size is not None and size.width > 0 and size.height > 0


def open_terminal(size: Size | None, owner: int | None) -> tuple[int, int, str]:
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
