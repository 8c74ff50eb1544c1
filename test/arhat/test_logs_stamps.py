"""``arhat.executor.logs.stamps``: times at the head of lines."""

from __future__ import annotations

import os
import time
from datetime import UTC, datetime, timedelta

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from arhat.executor.logs import stamps

NEWEST = int(datetime(2024, 5, 6, tzinfo=UTC).timestamp())


def nanos(*moment: int, fraction: int = 0) -> int:
    """A moment of UTC in nanoseconds."""
    return int(datetime(*moment, tzinfo=UTC).timestamp()) * stamps.NANOS + fraction  # type: ignore[misc,arg-type]


class ReadTests(SynchronousTestCase):
    """What is taken for a time."""

    def setUp(self) -> None:
        """Live in a zone that is not UTC."""
        before = os.environ.get("TZ")
        self.addCleanup(self._set_zone, before)
        self._set_zone("XYZ-2")

    def _set_zone(self, zone: str | None) -> None:
        if zone is None:
            os.environ.pop("TZ", None)
        else:
            os.environ["TZ"] = zone
        time.tzset()
        stamps._second.cache_clear()
        stamps._second_of_some_year.cache_clear()

    def test_known_shapes(self) -> None:
        """Daemons' ways to write a time are read, with their zones and fractions."""
        expected = nanos(2024, 5, 6, 7, 8, 9)
        for line, fraction in (
            (b"2024-05-06T07:08:09Z hello", 0),
            (b"2024-05-06T07:08:09.5Z hello", 500_000_000),
            (b"2024-05-06T07:08:09.123456789Z", 123_456_789),
            (b"2024-05-06T09:08:09+02:00 host app: x", 0),
            (b"2024-05-06 09:08:09,250 +0200 INFO", 250_000_000),
            (b"2024-05-06 09:08:09 local time", 0),
            (b"[2024-05-06 09:08:09] local.ERROR", 0),
            (b"2024/05/06 09:08:09 [error] 12#12", 0),
            (b"<34>1 2024-05-06T07:08:09.000003Z host", 3000),
            (b'::1 - - [06/May/2024:06:08:09 -0100] "GET / HTTP/1.1" 200', 0),
        ):
            self.assertEqual(stamps.read(line, NEWEST), expected + fraction, line)

    def test_syslog_has_no_year(self) -> None:
        """The year is the latest that is not after the file was written."""
        self.assertEqual(stamps.read(b"May  6 09:08:09 host x", NEWEST), nanos(2024, 5, 6, 7, 8, 9))
        self.assertEqual(stamps.read(b"May 20 09:08:09 host x", NEWEST), nanos(2023, 5, 20, 7, 8, 9))
        self.assertEqual(stamps.read(b"<30>Feb 29 09:08:09 x", NEWEST), nanos(2024, 2, 29, 7, 8, 9))

    def test_no_time(self) -> None:
        """Other lines, and times that do not exist, have none."""
        for line in (
            b"",
            b"hello 2024-05-06T07:08:09Z",
            b"\tat Foo.java",
            b"2024-13-06T07:08:09Z",
            b"1.2.3.4 - -",
        ):
            self.assertIsNone(stamps.read(line, NEWEST), line)

    @settings(max_examples=200, deadline=None)
    @given(st.binary(max_size=60), st.integers(0, 2**33))
    def test_any_bytes(self, line: bytes, newest: int) -> None:
        """No line breaks the reader."""
        stamps.read(line, newest)
        stamps.read(b"May  6 09:08:09 " + line, newest)


class WrittenTests(SynchronousTestCase):
    """How times are written."""

    def test_nine_digits(self) -> None:
        """The fraction has nine digits, the zone is Z, a space follows."""
        self.assertEqual(
            stamps.written(nanos(2024, 5, 6, 7, 8, 9, fraction=5)), b"2024-05-06T07:08:09.000000005Z "
        )

    @settings(max_examples=100, deadline=None)
    @given(st.datetimes(datetime(1971, 1, 1), datetime(2200, 1, 1), timezones=st.just(UTC)))
    def test_there_and_back(self, moment: datetime) -> None:
        """What is written is read as the same."""
        since = moment - datetime(1970, 1, 1, tzinfo=UTC)
        time_nanos = since // timedelta(microseconds=1) * 1000
        self.assertEqual(stamps.read(stamps.written(time_nanos), NEWEST), time_nanos)
