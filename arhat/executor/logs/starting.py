"""Logs: which source answers a request, and the line that says why none does.

A file must be one the device's owner lists. The system's log is the journal of
this boot; where there is none it is the first readable file of syslog, from this
boot on where its lines tell; and where there is none either it is the kernel's
ring. A unit's log, and the log of the boot before, only a journal has.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from twisted.logger import Logger

from arhat.config import Config
from arhat.executor.ending import Deaf
from arhat.executor.environment import Account
from arhat.executor.logs import stamps
from arhat.executor.logs.file import FileLog
from arhat.executor.logs.journal import Excerpt, JournalLog, is_unit, journalctl
from arhat.executor.logs.kernel import KernelLog, open_ring
from arhat.executor.logs.opening import AllowedFiles, CannotRead, open_as
from arhat.executor.logs.reading import Reading, Source
from arhat.executor.logs.selection import Selection
from arhat.interfaces import ProcessHost
from tether.errors import ResetCode
from tether.link.interfaces import Channel, Receiver
from tether.verbs.requests import Logs


@dataclass(frozen=True, slots=True)
class Places:
    """Where this host's system log may be; the first that can be read is."""

    journalctl: tuple[str, ...] | None
    syslog: tuple[str, ...] = ("/var/log/syslog", "/var/log/messages")
    kernel: str = "/dev/kmsg"
    statistics: Path = Path("/proc/stat")

    @classmethod
    def of_host(cls, journal: str = "") -> Places:
        """The usual places; ``journal`` is the folder of another journal than the host's."""
        return cls(journalctl(journal))

    def booted(self) -> int:
        """When this boot began, in nanoseconds; 0 if nothing tells."""
        try:
            for line in self.statistics.read_text("ascii", "replace").splitlines():
                if line.startswith("btime "):
                    return int(line.split()[1]) * stamps.NANOS
        except (OSError, ValueError, IndexError):
            pass
        return 0


class LogReading:
    """Reads logs; the ``Starter`` of ``Logs``."""

    _log = Logger()

    def __init__(
        self,
        host: ProcessHost,
        account: Account,
        config: Config,
        places: Places | None = None,
        now: Callable[[], int] = time.time_ns,
    ) -> None:
        self._host = host
        self._account = account
        self._files = AllowedFiles(config.log_files, account)
        self._places = Places.of_host(config.journal) if places is None else places
        self._now = now

    def __call__(self, request: Logs, channel: Channel) -> Receiver:
        """Send on ``channel`` what ``request`` selects."""
        try:
            if request.unit and not is_unit(request.unit):
                raise CannotRead(ResetCode.INVALID, f"{request.unit!r} is not the name of a unit")
            reading = Reading(channel, request.limit_bytes)
            reading.begin(self._source(request, Selection.of(request, self._now()), reading))
        except CannotRead as why:
            channel.unregisterProducer()
            channel.reset(why.reason)
            return Deaf()
        return reading

    def _source(self, request: Logs, selection: Selection, reading: Reading) -> Source:
        if request.file:
            path = self._files.previous(request.file) if request.previous else request.file
            return FileLog(self._host, reading, path, self._files.open, selection, self._now)
        if self._places.journalctl is None:
            return self._without_journal(request, selection, reading, "there is no journalctl")

        def otherwise(why: str) -> None:
            try:
                reading.begin(self._without_journal(request, selection, reading, why))
            except CannotRead as cannot:
                reading.failed(cannot.reason)

        excerpt = Excerpt(request.unit, request.previous)
        command = self._places.journalctl
        return JournalLog(self._host, self._account, command, excerpt, selection, reading, otherwise)

    def _without_journal(self, request: Logs, selection: Selection, reading: Reading, why: str) -> Source:
        if request.previous:
            raise CannotRead(
                ResetCode.INVALID, f"no previous log: no journal of the boot before this one ({why})"
            )
        if request.unit:
            raise CannotRead(
                ResetCode.INVALID, f"no log of unit {request.unit}: the journal cannot be read ({why})"
            )
        self._log.debug("No journal ({why}); looking for another log", why=why)
        this_boot = replace(selection, since=max(selection.since or 0, self._places.booted()))
        reasons = [f"journal: {why}"]
        for path in self._places.syslog:
            try:
                return FileLog(self._host, reading, path, self._open, this_boot, self._now)
            except CannotRead as cannot:
                reasons.append(str(cannot))
        try:
            ring = open_ring(self._account, self._places.kernel)
        except CannotRead as cannot:
            raise CannotRead(
                ResetCode.INVALID, "; ".join(["this device has no log to read", *reasons, str(cannot)])
            ) from None
        return KernelLog(self._host, reading, ring, selection, self._now)

    def _open(self, path: str) -> int:
        return open_as(self._account, path)
