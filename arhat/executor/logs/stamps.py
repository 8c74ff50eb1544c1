"""The time at the head of a log's line: written as Kubernetes writes it, read as daemons write it.

Read are RFC 3339 and its relatives (``2024-05-06T07:08:09.123Z``, ``2024/05/06 07:08:09``),
syslog's (``May  6 07:08:09``) and that of web servers' access logs
(``[06/May/2024:07:08:09 +0200]``, anywhere near the head). What has no zone is
local time. What has no year is of the latest year that does not put the line
more than a day after its file was last written.
"""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime, timedelta, timezone
from functools import lru_cache

NANOS = 1_000_000_000

_MONTHS = (b"Jan", b"Feb", b"Mar", b"Apr", b"May", b"Jun", b"Jul", b"Aug", b"Sep", b"Oct", b"Nov", b"Dec")
_MONTH = b"|".join(_MONTHS)
_DAY = 86400

_ISO = re.compile(
    rb"(?:<\d{1,3}>(?:1 )?)?[\[(]?"
    rb"(\d{4})[-/](\d\d)[-/](\d\d)[T ](\d\d):(\d\d):(\d\d)(?:[.,](\d{1,9})\d*)?(?: ?(Z|[+-]\d\d:?\d\d)\b)?"
)
_SYSLOG = re.compile(
    rb"(?:<\d{1,3}>)?(" + _MONTH + rb") {1,2}(\d{1,2}) (\d\d):(\d\d):(\d\d)(?:\.(\d{1,9})\d*)?\b"
)
_ACCESS = re.compile(rb"\[(\d\d)/(" + _MONTH + rb")/(\d{4}):(\d\d):(\d\d):(\d\d) ([+-]\d{4})\]")

#: How far into a line the time of an access log is looked for.
_HEAD = 512


def written(nanos: int) -> bytes:
    """``YYYY-MM-DDTHH:MM:SS.nnnnnnnnnZ`` and a space, as ``kubectl logs --timestamps`` shows it."""
    seconds, fraction = divmod(nanos, NANOS)
    return b"%s.%09dZ " % (_written_second(seconds), fraction)


def written_short(nanos: int) -> bytes:
    """``Mon DD HH:MM:SS`` in local time, as syslog writes it."""
    return _written_short_second(nanos // NANOS)


def read(line: bytes, newest: int) -> int | None:
    """The time at the head of ``line`` in nanoseconds; ``newest`` (seconds) is its file's."""
    if found := _ISO.match(line):
        *moment, fraction, zone = found.groups()
        second = _second(*moment, zone)
    elif found := _SYSLOG.match(line):
        month, day, *clock, fraction = found.groups()
        second = _second_of_some_year(month, day, *clock, newest // _DAY)
    elif found := _ACCESS.search(line, 0, _HEAD):
        day, month, year, *clock, zone = found.groups()
        second, fraction = _second(year, _number(month), day, *clock, zone), None
    else:
        return None
    if second is None:
        return None
    return second * NANOS + (int(fraction.ljust(9, b"0")) if fraction else 0)


def _number(month: bytes) -> bytes:
    return b"%02d" % (_MONTHS.index(month) + 1)


@lru_cache(maxsize=256)
def _second(
    year: bytes, month: bytes, day: bytes, hour: bytes, minute: bytes, second: bytes, zone: bytes | None
) -> int | None:
    try:
        # A leap second is the last one of its minute, for which datetime has no room.
        moment = datetime(int(year), int(month), int(day), int(hour), int(minute), min(int(second), 59))
        if zone is None:
            return int(time.mktime(moment.timetuple()))
        return int(moment.replace(tzinfo=_zone(zone)).timestamp())
    except (ValueError, OverflowError):
        return None


@lru_cache(maxsize=256)
def _second_of_some_year(
    month: bytes, day: bytes, hour: bytes, minute: bytes, second: bytes, newest_day: int
) -> int | None:
    year = time.gmtime(newest_day * _DAY).tm_year
    # Back to a leap year, for the 29th of February; one on for New Year's Eve east of Greenwich.
    for candidate in range(year + 1, year - 8, -1):
        found = _second(b"%d" % candidate, _number(month), day, hour, minute, second, None)
        if found is not None and found <= (newest_day + 2) * _DAY:
            return found
    return None


def _zone(text: bytes) -> timezone:
    if text == b"Z":
        return UTC
    hours, minutes = int(text[1:3]), int(text[-2:])
    return timezone((1 if text[:1] == b"+" else -1) * timedelta(hours=hours, minutes=minutes))


@lru_cache(maxsize=64)
def _written_second(seconds: int) -> bytes:
    try:
        return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)).encode().rjust(19, b"0")
    except (OverflowError, ValueError, OSError):
        return b"0001-01-01T00:00:00"


@lru_cache(maxsize=64)
def _written_short_second(seconds: int) -> bytes:
    try:
        local = time.localtime(seconds)
    except (OverflowError, ValueError, OSError):
        local = time.gmtime(0)
    # By hand: the names of months do not follow the agent's language.
    clock = b"%02d:%02d:%02d" % (local.tm_hour, local.tm_min, local.tm_sec)
    return b"%s %02d %s" % (_MONTHS[local.tm_mon - 1], local.tm_mday, clock)
