"""The kernel's ring, the log of hosts that keep no other: records of ``/dev/kmsg``."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterator

from twisted.internet.interfaces import IReactorTime

from arhat.executor.environment import Account
from arhat.executor.logs import stamps
from arhat.executor.logs.file import POLL_SECONDS
from arhat.executor.logs.opening import CannotRead, acting_as
from arhat.executor.logs.reading import Reading
from arhat.executor.logs.selection import Selection
from arhat.executor.logs.turns import Turns
from tether.errors import ResetCode

#: The kernel refuses to give a record to a smaller buffer.
_RECORD = 8192
_RECORDS_A_TURN = 100


def open_ring(account: Account, path: str = "/dev/kmsg") -> int:
    """A descriptor of the ring. Raises ``CannotRead``."""
    try:
        with acting_as(account):
            return os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as why:
        text = f"cannot read the kernel's log: {(why.strerror or 'error').lower()}"
        raise CannotRead(ResetCode.INTERNAL, text) from None


def record(data: bytes) -> tuple[int, bytes] | None:
    """The nanoseconds since boot and the message of one record."""
    head, semicolon, text = data.partition(b";")
    fields = head.split(b",")
    if not semicolon or len(fields) < 3 or not fields[2].isdigit():
        return None
    return int(fields[2]) * 1000, text.partition(b"\n")[0]


class KernelLog:
    """The ``Source`` that reads the ring from ``descriptor``, which it closes."""

    def __init__(
        self,
        clock: IReactorTime,
        reading: Reading,
        descriptor: int,
        selection: Selection,
        now: Callable[[], int],
        since_boot: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._reading = reading
        self._ring = descriptor
        self._is_open = True
        self._selection = selection
        self._booted = now() - since_boot()
        self._host = os.fsencode(os.uname().nodename)
        self._turns = Turns(clock, self._steps(), reading.internal_error)
        self.start = self._turns.start
        self.pause = self._turns.pause
        self.resume = self._turns.resume

    def stop(self) -> None:
        """Close the ring."""
        self._turns.stop()
        if self._is_open:
            self._is_open = False
            os.close(self._ring)

    def _steps(self) -> Iterator[float]:
        # The ring itself is bounded, and no larger than a log may be.
        kept: deque[bytes] = deque(maxlen=self._selection.tail)
        size = 0
        while (lines := self._lines()) is not None:
            kept.extend(lines)
            size += sum(map(len, lines))
            while self._selection.most is not None and size > self._selection.most:
                size -= len(kept.popleft())
            yield 0.0
        while kept and not self._reading.is_over:
            self._reading.write(b"".join(kept.popleft() for _ in range(min(len(kept), _RECORDS_A_TURN))))
            yield 0.0
        while self._selection.follow and not self._reading.is_over:
            lines = self._lines()
            if lines:
                self._reading.write(b"".join(lines))
            yield POLL_SECONDS if lines is None else 0.0
        self._reading.done()

    def _lines(self) -> list[bytes] | None:
        """Some records as lines; ``None`` at the end."""
        lines: list[bytes] = []
        for _ in range(_RECORDS_A_TURN):
            try:
                data = os.read(self._ring, _RECORD)
            except BlockingIOError:
                return lines or None
            except BrokenPipeError:
                # Overwritten before it was read; the next read goes on behind the gap.
                continue
            if not data:
                return lines or None
            if (found := record(data)) is not None and (line := self._line(*found)):
                lines.append(line)
        return lines

    def _line(self, since_boot: int, text: bytes) -> bytes:
        at = self._booted + since_boot
        if self._selection.since is not None and at < self._selection.since:
            return b""
        if self._selection.timestamps:
            return b"%skernel: %s\n" % (stamps.written(at), text)
        return b"%s %s kernel: %s\n" % (stamps.written_short(at), self._host, text)
