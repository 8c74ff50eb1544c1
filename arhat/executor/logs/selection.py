"""What of a log is wanted: the law of tail, since, timestamps and limit, without I/O.

As the kubelet applies them: start so many lines before the end, drop what is
older than asked, put the time before each line, cut at the limit. The limit
counts what is sent, prefixes too, and cuts in mid-line. Without tail, since and
limit the last ``DEFAULT_BYTES`` are meant: who asks for no more than "the log"
of a device that ran for a year does not want all of it.
"""

from __future__ import annotations

from dataclasses import dataclass

from arhat.executor.logs import stamps
from tether.verbs.requests import Logs

DEFAULT_BYTES = 10 * 1024 * 1024

#: A line may be longer, but then it comes in pieces: no line fills the memory.
LONGEST_PIECE = 64 * 1024


@dataclass(frozen=True, slots=True)
class Selection:
    """A request's options, its times as nanoseconds since 1970."""

    follow: bool = False
    timestamps: bool = False
    tail: int | None = None
    since: int | None = None
    limit: int | None = None
    #: No more than so many of the last bytes.
    most: int | None = None

    @classmethod
    def of(cls, request: Logs, now: int) -> Selection:
        """What ``request`` selects, if asked ``now``."""
        since, tail, limit = request.since_unix_nanos, request.tail_lines, request.limit_bytes
        if request.since_seconds is not None:
            since = now - request.since_seconds * stamps.NANOS
        return cls(
            # Nobody writes any more what is already over.
            follow=request.follow and not request.previous,
            timestamps=request.timestamps,
            tail=tail,
            since=since,
            limit=limit,
            most=DEFAULT_BYTES if tail is None and since is None and limit is None else None,
        )


class Limit:
    """How much may still be sent."""

    def __init__(self, limit: int | None) -> None:
        self._left = limit

    @property
    def is_reached(self) -> bool:
        """Whether nothing more may be sent."""
        return self._left is not None and self._left <= 0

    def cut(self, data: bytes) -> bytes:
        """As much of ``data`` as may be sent; it counts as sent."""
        if self._left is None:
            return data
        cut = data[: self._left]
        self._left -= len(cut)
        return cut


class Lines:
    """A file's bytes in, the wanted lines out; incomplete lines are held back.

    A line without a time of its own has that of the line before it (so does the
    rest of a stack trace); at the start of a file it has the time that ``feed``
    was told. ``begins_before`` says that the lines before the first that has a
    time are too old.
    """

    def __init__(self, selection: Selection, begins_before: bool = False) -> None:
        self._since = selection.since
        self._timestamps = selection.timestamps
        self._pending = b""
        self._time: int | None = -1 if begins_before else None
        self._in_mid_line = False
        self._wanted = True

    def feed(self, data: bytes, read_at: int) -> bytes:
        """What of ``data`` is wanted; ``read_at`` (nanoseconds) is when it was written at the latest."""
        data = self._pending + data
        whole = data.rfind(b"\n") + 1
        if len(data) - whole > LONGEST_PIECE:
            whole = len(data)
        self._pending = data[whole:]
        return self._selected(data[:whole], read_at)

    def rest(self, read_at: int) -> bytes:
        """What of the last, incomplete line is wanted: there will be no more."""
        data, self._pending = self._pending, b""
        return self._selected(data, read_at)

    def _selected(self, data: bytes, read_at: int) -> bytes:
        if self._since is None and not self._timestamps:
            return data
        return b"".join([self._line(line, read_at) for line in _lines(data)])

    def _line(self, line: bytes, read_at: int) -> bytes:
        prefix = b""
        if not self._in_mid_line:
            own = stamps.read(line, read_at // stamps.NANOS)
            if own is not None:
                self._time = own
            time = read_at if self._time is None else self._time
            self._wanted = self._since is None or time >= self._since
            if self._timestamps:
                prefix = stamps.written(time)
        self._in_mid_line = not line.endswith(b"\n")
        return prefix + line if self._wanted else b""


def _lines(data: bytes) -> list[bytes]:
    """The lines with their ends; only a line feed ends one."""
    lines = [line + b"\n" for line in data.split(b"\n")]
    last = lines.pop()[:-1]
    return [*lines, last] if last else lines
