"""A terminal with a program on it, as a person sits before one: type, read, resize."""

from __future__ import annotations

import fcntl
import os
import select
import struct
import subprocess
import termios
import time
from collections.abc import Mapping, Sequence


class Terminal:
    """A program on a pseudo-terminal of our own; ``screen`` is all it has written."""

    def __init__(
        self, words: Sequence[str], env: Mapping[str, str], width: int = 80, height: int = 24
    ) -> None:
        self._master, slave = os.openpty()
        self.resize(width, height)
        self.screen = b""
        self.process = subprocess.Popen(
            ["setsid", "--ctty", "--wait", *words],
            env={**env, "TERM": "xterm"},
            stdin=slave,
            stdout=slave,
            stderr=slave,
            close_fds=True,
        )
        os.close(slave)

    def resize(self, width: int, height: int) -> None:
        """Change the window, as dragging its corner does."""
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))

    def type(self, keys: bytes) -> None:
        """Type."""
        os.write(self._master, keys)

    def read(self, seconds: float) -> bool:
        """Wait for more output; False at the end or when none came in time."""
        ready, _, _ = select.select([self._master], [], [], seconds)
        if not ready:
            return False
        try:
            data = os.read(self._master, 65536)
        except OSError:  # EIO: the last program on it ended
            return False
        self.screen += data
        return bool(data)

    def expect(self, text: bytes, seconds: float = 15) -> bytes:
        """Read until the text appears; give what was written up to it and take it off the screen."""
        deadline = time.monotonic() + seconds
        while text not in self.screen:
            left = deadline - time.monotonic()
            if left <= 0 or not self.read(left):
                raise AssertionError(f"{text!r} did not appear; the screen has {self.screen[-2000:]!r}")
        before, _, self.screen = self.screen.partition(text)
        return before

    def wait(self, seconds: float = 15) -> int:
        """Read to the end and give the program's exit code."""
        deadline = time.monotonic() + seconds
        while self.process.poll() is None and time.monotonic() < deadline:
            self.read(0.1)
        while self.read(0):
            pass
        return self.process.wait(max(0.1, deadline - time.monotonic()))

    def close(self) -> None:
        """Pull the plug: the program's terminal is gone."""
        if self._master >= 0:
            os.close(self._master)
            self._master = -1
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
