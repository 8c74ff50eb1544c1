"""A kubectl under way: its output is collected as it comes, and may be asked for line by line."""

from __future__ import annotations

import contextlib
import subprocess
import threading
from typing import IO

from test.cluster.kubectl import Completed

#: What is expected comes by then, also on a machine that has much else to do.
SOON = 15.0


class Session:
    """
    A process with three pipes, which are read all the time; nothing here waits for ever.

    ``AssertionError`` when something does not come, with all that was said.
    """

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self._said: dict[str, bytearray] = {"out": bytearray(), "err": bytearray()}
        self._open = 2
        self._saying: threading.Thread | None = None
        self._news = threading.Condition()
        for name, pipe in (("out", process.stdout), ("err", process.stderr)):
            threading.Thread(target=self._read, args=(name, pipe), daemon=True).start()

    def _read(self, name: str, pipe: IO[bytes]) -> None:
        with pipe:
            while piece := pipe.read1(65536):  # type: ignore[attr-defined]
                with self._news:
                    self._said[name] += piece
                    self._news.notify_all()
        with self._news:
            self._open -= 1
            self._news.notify_all()

    def __str__(self) -> str:
        said = ", ".join(f"{name}: {bytes(data[-2000:])!r}" for name, data in self._said.items())
        return f"{self.process.args!r}, code {self.process.poll()}, the rest of what it said: {said}"

    @property
    def runs(self) -> bool:
        """Whether it has not ended."""
        return self.process.poll() is None

    def line(self, seconds: float = SOON, pipe: str = "out") -> bytes:
        """Take the next line of its output."""
        said = self._said[pipe]
        with self._news:
            if not self._news.wait_for(lambda: b"\n" in said or not self._open, seconds):
                raise AssertionError(f"no line within {seconds} s: {self}")
            end = said.find(b"\n") + 1 or len(said)
            line = bytes(said[:end])
            del said[:end]
        return line

    def say(self, data: bytes) -> None:
        """Give it input, once it has taken what it was given before."""
        self._wait_until_taken(SOON)
        self._saying = threading.Thread(target=self._write, args=(data,), daemon=True)
        self._saying.start()

    def end(self, seconds: float = SOON) -> Completed:
        """End its input, wait for its end, and take the rest of its output."""
        self._wait_until_taken(seconds)
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        with self._news:
            if not self._news.wait_for(lambda: not self._open, seconds):
                raise AssertionError(f"goes on after {seconds} s: {self}")
        code = self.process.wait(SOON)
        return Completed(code, bytes(self._said["out"]), bytes(self._said["err"]))

    def _write(self, data: bytes) -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(data)
            self.process.stdin.flush()

    def _wait_until_taken(self, seconds: float) -> None:
        if self._saying is not None:
            self._saying.join(seconds)
            if self._saying.is_alive():
                raise AssertionError(f"does not take its input within {seconds} s: {self}")

    def kill(self) -> None:
        """Kill it, if it has not ended."""
        self.process.kill()
        self.process.wait()
