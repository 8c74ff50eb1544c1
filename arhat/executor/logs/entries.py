"""Entries of the journal: JSON lines of ``journalctl`` in, lines of a log out; without I/O.

The system's log looks as ``journalctl -o short`` shows it, a unit's as a
container's would: the messages alone. A message of several lines has its head
on each, so that each line can be counted, found and sorted by itself.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from arhat.executor.logs import stamps

#: What ``shown`` needs of an entry beside its cursor and time.
FIELDS = (
    "MESSAGE",
    "SYSLOG_IDENTIFIER",
    "SYSLOG_PID",
    "_PID",
    "_COMM",
    "_HOSTNAME",
    "_SOURCE_REALTIME_TIMESTAMP",
)


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry; ``time`` in nanoseconds, ``source`` is ``ident[pid]``."""

    cursor: str
    time: int
    host: bytes
    source: bytes
    lines: tuple[bytes, ...]

    @classmethod
    def of(cls, line: bytes) -> Entry:
        """The entry that a line of JSON tells. Raises ``ValueError``."""
        fields = json.loads(line)
        if not isinstance(fields, dict):
            raise ValueError("an entry is a JSON object")
        time = fields.get("_SOURCE_REALTIME_TIMESTAMP") or fields.get("__REALTIME_TIMESTAMP") or "0"
        return cls(
            cursor=str(fields.get("__CURSOR", "")),
            time=int(_text(time) or b"0") * 1000,
            host=_text(fields.get("_HOSTNAME")) or b"localhost",
            source=_source(fields),
            lines=tuple(_text(fields["MESSAGE"]).rstrip(b"\n").split(b"\n")) if "MESSAGE" in fields else (),
        )

    def shown(self, timestamps: bool, bare: bool, skip: int = 0) -> bytes:
        """The lines of the log but the first ``skip``; ``bare`` leaves out host and source."""
        if timestamps:
            head = stamps.written(self.time) + (b"" if bare else self.source + b": ")
        else:
            head = b"" if bare else b"%s %s %s: " % (stamps.written_short(self.time), self.host, self.source)
        return b"".join([head + line + b"\n" for line in self.lines[skip:]])


class Backwards:
    """Where to begin so that so many lines, or so many bytes, follow; told of entries newest first."""

    def __init__(self, lines: int | None, size: int | None) -> None:
        self._lines = lines
        self._size = size
        #: The entry to begin with, and how many of its lines are too many.
        self.cursor: str | None = None
        self.skip = 0

    def add(self, entry: Entry, size: int) -> bool:
        """Count an entry that shows as ``size`` bytes; whether that is enough."""
        if self._size is not None:
            self._size -= size
            if self._size < 0 and self.cursor is not None:
                return True
        self.cursor = entry.cursor
        if self._lines is not None:
            self.skip = max(0, len(entry.lines) - self._lines)
            self._lines -= len(entry.lines)
            return self._lines <= 0
        return False


def _source(fields: dict[str, Any]) -> bytes:
    name = _text(fields.get("SYSLOG_IDENTIFIER")) or _text(fields.get("_COMM")) or b"unknown"
    pid = _text(fields.get("_PID")) or _text(fields.get("SYSLOG_PID"))
    return b"%s[%s]" % (name, pid) if pid else name


def _text(value: object) -> bytes:
    """A field: text, or bytes as a list of numbers, or a list of either when it came more than once."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace")
    if isinstance(value, list) and value:
        if all(isinstance(item, int) for item in value):
            return bytes(item & 0xFF for item in value)
        return _text(value[0])
    return b""
