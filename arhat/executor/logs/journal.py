"""The journal, read by ``journalctl``: one boot, all of it or one unit, from its wanted end on.

``journalctl`` counts entries, but what is asked for is lines and bytes. So where
a number of either is wanted, a first pass reads backwards until there are
enough, and the second begins at the entry where the first one ended. Neither
keeps more than an entry in memory.

A follower whose ``journalctl`` ends by itself starts another one after the last
entry it saw, some times; then it says that the log cannot be read.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import deferLater
from twisted.logger import Logger

from arhat.executor.environment import PATH, Account
from arhat.executor.logs import stamps
from arhat.executor.logs.child import LineChild, start_child
from arhat.executor.logs.entries import FIELDS, Backwards, Entry
from arhat.executor.logs.reading import Reading
from arhat.executor.logs.selection import Selection
from arhat.interfaces import ProcessHost
from tether.errors import Reason, ResetCode
from tether.tasks import spawn

#: How often ``journalctl`` may end by itself without an entry in between.
ATTEMPTS = 5
RESTART_SECONDS = 1.0

_UNIT = re.compile(r"[A-Za-z0-9:_.\\@-]{1,255}")


def journalctl(folder: str = "") -> tuple[str, ...] | None:
    """How to call ``journalctl``, if there is one, for the host's journal or the one in ``folder``."""
    program = shutil.which("journalctl", path=PATH)
    if program is None:
        return None
    return (program, f"--directory={folder}") if folder else (program,)


def is_unit(name: str) -> bool:
    """Whether ``name`` can be a unit's."""
    return _UNIT.fullmatch(name) is not None


@dataclass(frozen=True, slots=True)
class Excerpt:
    """What of the journal is read: one unit's entries or (empty) all, of this boot or the one before."""

    unit: str = ""
    previous: bool = False

    @property
    def arguments(self) -> tuple[str, ...]:
        """The options of ``journalctl``."""
        boot = "--boot=-1" if self.previous else "--boot=0"
        return (boot, f"--unit={self.unit}") if self.unit else (boot,)


class JournalLog:
    """The ``Source`` that reads the journal; ``otherwise`` is called if there is nothing to read at all."""

    _log = Logger()

    def __init__(
        self,
        host: ProcessHost,
        account: Account,
        command: Sequence[str],
        excerpt: Excerpt,
        selection: Selection,
        reading: Reading,
        otherwise: Callable[[str], None],
    ) -> None:
        self._host = host
        self._account = account
        self._command = (
            *command,
            "--quiet",
            "--no-pager",
            "--output=json",
            "--all",
            f"--output-fields={','.join(FIELDS)}",
        )
        self._excerpt = excerpt
        self._selection = selection
        self._reading = reading
        self._otherwise = otherwise
        self._child: LineChild | None = None
        self._delay: Deferred[None] | None = None
        self._paused = False
        self._stopped = False
        self._last: str | None = None
        self._skip = 0
        self._skip_at: str | None = None

    def start(self) -> None:
        """Look whether there is a journal, then read it."""
        spawn(self._read(), self._log, "Cannot read the journal")

    def pause(self) -> None:
        """Hold ``journalctl`` back."""
        self._paused = True
        if self._child is not None:
            self._child.pause()

    def resume(self) -> None:
        """Let it go on."""
        self._paused = False
        if self._child is not None:
            self._child.resume()

    def stop(self) -> None:
        """Kill ``journalctl``."""
        self._stopped = True
        if self._child is not None:
            self._child.stop()
        if self._delay is not None:
            self._delay.cancel()

    async def _read(self) -> None:
        try:
            # Whether the boot is known at all: a unit may well be silent.
            whole = Excerpt(previous=self._excerpt.previous)
            entries: list[bytes] = []
            wrong = await self._run((*whole.arguments, "--lines=1"), entries.extend)
            if self._stopped:
                return
            if wrong is not None or not entries:
                self._otherwise(wrong or "it is empty")
                return
            first = await self._beginning()
            if self._stopped:
                return
            await self._tell(first)
        except Exception as why:
            self._reading.internal_error(why)

    async def _tell(self, first: tuple[str, ...]) -> None:
        mode = ("--follow", "--no-tail") if self._selection.follow else ()
        attempts = 0
        while True:
            seen = self._last
            after = first if seen is None else (f"--after-cursor={seen}",)
            wrong = await self._run((*self._excerpt.arguments, *mode, *after), self._heard)
            if self._stopped:
                return
            if not self._selection.follow:
                if wrong is None:
                    self._reading.done()
                else:
                    self._fail(wrong)
                return
            attempts = 1 if self._last != seen else attempts + 1
            if attempts >= ATTEMPTS:
                self._fail(wrong or "it ends at once")
                return
            try:
                self._delay = deferLater(self._host, RESTART_SECONDS)
                await self._delay
            except CancelledError:
                return
            self._delay = None

    def _fail(self, wrong: str) -> None:
        self._reading.failed(Reason(ResetCode.INTERNAL, f"journalctl: {wrong}"))

    async def _beginning(self) -> tuple[str, ...]:
        """The options that say where to begin."""
        if self._selection.tail is None and self._selection.most is None:
            if self._selection.since is None:
                return ()
            # A little earlier: the journal's times are not exactly those of the entries' origin.
            return (f"--since=@{max(0, self._selection.since // stamps.NANOS - 5)}",)
        search = Backwards(self._selection.tail, self._selection.most)

        def count(lines: list[bytes]) -> None:
            for entry in _entries(lines):
                if search.add(entry, len(self._shown(entry))):
                    if self._child is not None:
                        self._child.stop()
                    return

        await self._run((*self._excerpt.arguments, "--reverse"), count)
        if search.cursor is None:
            return ()
        self._skip, self._skip_at = search.skip, search.cursor
        return (f"--cursor={search.cursor}",)

    def _heard(self, lines: list[bytes]) -> None:
        since = self._selection.since
        shown = []
        for entry in _entries(lines):
            self._last = entry.cursor
            if since is None or entry.time >= since:
                skip = self._skip if entry.cursor == self._skip_at else 0
                shown.append(self._shown(entry, skip))
        self._reading.write(b"".join(shown))

    def _shown(self, entry: Entry, skip: int = 0) -> bytes:
        return entry.shown(self._selection.timestamps, bool(self._excerpt.unit), skip)

    async def _run(self, arguments: Sequence[str], heard: Callable[[list[bytes]], None]) -> str | None:
        """Run ``journalctl`` to its end; what went wrong, if anything."""
        child = start_child(self._host, self._account, (*self._command, *arguments), heard)
        self._child = child
        if self._paused:
            child.pause()
        try:
            return await child.ended
        finally:
            self._child = None


def _entries(lines: list[bytes]) -> Iterator[Entry]:
    for line in lines:
        try:
            yield Entry.of(line)
        except (ValueError, RecursionError):
            continue
