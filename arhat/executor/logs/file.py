"""A log file: its wanted end found from behind, read in short turns, followed through rotation.

A regular file cannot be waited for, only read; so each turn of the reactor reads
one bounded block, and a follower looks again every ``POLL_SECONDS``. Looking
finds both ways of rotation: the path names another file (renamed and made
anew), or the file is shorter than what was read of it (copied and truncated).
A renamed file is read to its end once more a poll later, since its writer may
not have noticed yet.

``since`` trusts that a file's times ascend: from behind, the first block that
begins with an older line is where the wanted part begins. A file without times
is wanted whole if it was written after ``since``, else not at all.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator

from twisted.internet.interfaces import IReactorTime

from arhat.executor.logs import stamps
from arhat.executor.logs.opening import CannotRead, NotThere
from arhat.executor.logs.reading import Reading
from arhat.executor.logs.selection import DEFAULT_BYTES, LONGEST_PIECE, Lines, Selection
from arhat.executor.logs.turns import Turns

BLOCK = 64 * 1024
POLL_SECONDS = 0.5

#: Looking for line ends is much cheaper than sending lines.
_SEARCHED = 4 * BLOCK
#: How many lines at the head of a block are asked for their time.
_ASKED = 50


class FileLog:
    """The ``Source`` that reads a file; ``open_file`` opens it, the first time and after each rotation."""

    def __init__(
        self,
        clock: IReactorTime,
        reading: Reading,
        path: str,
        open_file: Callable[[str], int],
        selection: Selection,
        now: Callable[[], int],
    ) -> None:
        """Open the file. Raises ``CannotRead``."""
        self._reading = reading
        self._path = path
        self._open_file = open_file
        self._selection = selection
        self._now = now
        self._file = open_file(path)
        self._is_open = True
        self._turns = Turns(clock, self._steps(), reading.internal_error)
        self.start = self._turns.start
        self.pause = self._turns.pause
        self.resume = self._turns.resume

    def stop(self) -> None:
        """Close the file."""
        self._turns.stop()
        if self._is_open:
            self._is_open = False
            os.close(self._file)

    def _steps(self) -> Iterator[float]:
        status = os.fstat(self._file)
        end, changed = status.st_size, status.st_mtime_ns
        start = yield from self._beginning(end, changed)
        lines = Lines(self._selection, self._selection.tail is None and start > 0)
        offset = start
        while True:
            wanted = BLOCK if self._selection.follow else min(BLOCK, end - offset)
            data = os.pread(self._file, wanted, offset)
            if data:
                offset += len(data)
                self._reading.write(lines.feed(data, changed if offset <= end else self._now()))
                if self._reading.is_over:
                    return
                yield 0.0
            elif not self._selection.follow:
                self._reading.write(lines.rest(changed))
                self._reading.done()
                return
            else:
                break
        yield from self._following(lines, offset)

    def _following(self, lines: Lines, offset: int) -> Iterator[float]:
        successor = False
        while True:
            yield POLL_SECONDS
            if self._reading.is_over:
                return
            if os.fstat(self._file).st_size < offset:
                self._reading.write(_ended(lines.rest(self._now())))
                offset = 0
            read = False
            while data := os.pread(self._file, BLOCK, offset):
                read = True
                offset += len(data)
                self._reading.write(lines.feed(data, self._now()))
                if self._reading.is_over:
                    return
                yield 0.0
            if successor and not read:
                try:
                    opened = self._open_file(self._path)
                except NotThere:
                    continue
                except CannotRead as why:
                    self._reading.failed(why.reason)
                    return
                os.close(self._file)
                self._file, offset, successor = opened, 0, False
                self._reading.write(_ended(lines.rest(self._now())))
            else:
                successor = self._is_another()

    def _is_another(self) -> bool:
        try:
            there = os.stat(self._path)
        except OSError:
            return False
        return not os.path.samestat(there, os.fstat(self._file))

    # -- where to begin

    def _beginning(self, end: int, changed: int) -> Generator[float, None, int]:
        """The offset of the first byte to read."""
        selection = self._selection
        if selection.tail is not None:
            return (yield from self._last_lines(end, selection.tail))
        start = 0 if selection.most is None else self._last_bytes(end, selection.most)
        if selection.since is not None:
            start = max(start, (yield from self._since(start, end, changed, selection.since)))
        return start

    def _last_lines(self, end: int, wanted: int) -> Generator[float, None, int]:
        if wanted == 0:
            return end
        # The line end that ends the file begins no line.
        position = end - 1
        while position > 0:
            size = min(_SEARCHED, position)
            block = os.pread(self._file, size, position - size)
            found = block.count(b"\n")
            if found >= wanted:
                at = len(block)
                for _ in range(wanted):
                    at = block.rindex(b"\n", 0, at)
                return position - size + at + 1
            wanted -= found
            position -= size
            yield 0.0
        return 0

    def _last_bytes(self, end: int, most: int) -> int:
        if end <= most:
            return 0
        start = end - most
        # One byte back: the cut may fall just before a line.
        line = os.pread(self._file, LONGEST_PIECE, start - 1).find(b"\n")
        return start + max(line, 0)

    def _since(self, start: int, end: int, changed: int, since: int) -> Generator[float, None, int]:
        if changed < since:
            return end
        position = end
        while position > start:
            position = max(position - BLOCK, start)
            block = os.pread(self._file, BLOCK, position)
            begin = block.find(b"\n") + 1 if position else 0
            first = self._first_time(block[begin:], changed)
            if first is None and position and position + BLOCK >= end and not self._has_times(changed):
                return max(start, self._last_bytes(end, DEFAULT_BYTES))
            if first is not None and first < since:
                return position + begin
            yield 0.0
        return start

    def _has_times(self, changed: int) -> bool:
        return self._first_time(os.pread(self._file, BLOCK, 0), changed) is not None

    def _first_time(self, block: bytes, changed: int) -> int | None:
        newest = changed // stamps.NANOS
        for line in block.split(b"\n", _ASKED)[:_ASKED]:
            if (time := stamps.read(line, newest)) is not None:
                return time
        return None


def _ended(line: bytes) -> bytes:
    """The last line of a file that was cut off in the middle, so that the next begins on its own."""
    return line + b"\n" if line and not line.endswith(b"\n") else line
