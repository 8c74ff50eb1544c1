"""Logs from the journal: real ones, read by the real ``journalctl``."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import ClassVar

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase, TestCase

from arhat.config import Config
from arhat.executor.logs import journal
from arhat.executor.logs.entries import Backwards, Entry
from arhat.executor.logs.journal import journalctl
from arhat.executor.logs.selection import DEFAULT_BYTES
from arhat.executor.logs.starting import LogReading, Places
from test.arhat.journals import EARLIER_BOOT, entry, write_journal
from test.arhat.running import EndingChannel, own_account, pause
from tether.errors import Reason, ResetCode
from tether.link.interfaces import Lane
from tether.verbs.requests import Failed, Logs, Succeeded

START = 1_700_000_000_000_000


class EntryTests(SynchronousTestCase):
    """What an entry shows as."""

    def shown(self, timestamps: bool = False, bare: bool = False, skip: int = 0, **fields: object) -> bytes:
        """How an entry with these fields is shown."""
        whole = {"__CURSOR": "c", "__REALTIME_TIMESTAMP": str(START), "_HOSTNAME": "device", **fields}
        return Entry.of(json.dumps(whole).encode()).shown(timestamps, bare, skip)

    def test_heads(self) -> None:
        """The source is the identifier or the command, and the process if known."""
        for fields, source in (
            ({"SYSLOG_IDENTIFIER": "app", "_COMM": "x", "_PID": "7"}, b"app[7]"),
            ({"_COMM": "comm", "SYSLOG_PID": "8"}, b"comm[8]"),
            ({"SYSLOG_IDENTIFIER": "kernel"}, b"kernel"),
            ({}, b"unknown"),
        ):
            line = self.shown(MESSAGE="hello", **fields)
            self.assertTrue(line.endswith(b" device " + source + b": hello\n"), line)
            self.assertRegex(line, rb"^[A-Z][a-z]{2} \d\d \d\d:\d\d:\d\d device ")
            self.assertEqual(
                self.shown(True, MESSAGE="hello", **fields),
                b"2023-11-14T22:13:20.000000000Z " + source + b": hello\n",
            )

    def test_bare(self) -> None:
        """A unit's log is messages alone, with a time if asked for."""
        self.assertEqual(self.shown(False, True, MESSAGE="hello"), b"hello\n")
        self.assertEqual(self.shown(True, True, MESSAGE="hello"), b"2023-11-14T22:13:20.000000000Z hello\n")

    def test_messages(self) -> None:
        """Lines are shown one by one, bytes as they are, a repeated field once, a missing one not."""
        for message, shown in (
            ("a\nb\n", b"a\nb\n"),
            ([0, 255, 10, 98], b"\x00\xff\nb\n"),
            (["first", "second"], b"first\n"),
            ([[104, 105], "second"], b"hi\n"),
            ("é\ud800", "é?\n".encode()),
            (None, b"\n"),
            ("", b"\n"),
        ):
            self.assertEqual(self.shown(False, True, MESSAGE=message), shown)
        self.assertEqual(self.shown(False, True), b"")
        self.assertEqual(self.shown(False, True, 1, MESSAGE="a\nb"), b"b\n")

    def test_time_of_the_source(self) -> None:
        """The time is the source's, where it told one."""
        shown = self.shown(True, True, MESSAGE="x", _SOURCE_REALTIME_TIMESTAMP=str(START + 1))
        self.assertEqual(shown, b"2023-11-14T22:13:20.000001000Z x\n")

    @settings(max_examples=100, deadline=None)
    @given(st.lists(st.integers(0, 3), max_size=9), st.integers(0, 12))
    def test_backwards(self, sizes: list[int], wanted: int) -> None:
        """Begun where the search ended, exactly the wanted number of lines follows, or all there are."""
        entries = [
            Entry(str(number), 0, b"", b"", tuple(b"%d.%d" % (number, line) for line in range(size)))
            for number, size in enumerate(sizes)
        ]
        search = Backwards(wanted, None)
        for one in reversed(entries):
            if search.add(one, 0):
                break
        lines = [line for one in entries for line in one.lines]
        begin = len(entries) if search.cursor is None else int(search.cursor)
        followed = [
            line
            for number, one in enumerate(entries[begin:])
            for line in one.lines[0 if number else search.skip :]
        ]
        self.assertEqual(followed, lines[-wanted:] if wanted else [])


class JournalCase(TestCase):
    """A journal in a folder of its own."""

    timeout = 60

    def make(self, entries: Iterable[Mapping[str, bytes]]) -> None:
        """Have a journal of these entries."""
        self.folder = Path(self.mktemp()).absolute()
        self.folder.mkdir()
        write_journal(self.folder / "first.journal", entries)
        self.command = journalctl(str(self.folder))

    def start(self, request: Logs, on_write: object = None) -> EndingChannel:
        """Ask for a log."""
        places = Places(self.command, syslog=(), kernel="/nonexistent")
        starter = LogReading(reactor, own_account(), Config(), places)  # type: ignore[arg-type]
        channel = EndingChannel()
        self.receiver = starter(request, channel)
        self.addCleanup(pause, reactor, 0.05)
        self.addCleanup(self.receiver.closed)
        return channel

    async def read(self, request: Logs) -> bytes:
        """The whole of an answer that succeeds."""
        channel = self.start(request)
        await channel.ended
        self.assertIsNone(channel.reset_with)
        self.assertEqual(channel.result, Succeeded())
        return channel.lane(Lane.MAIN)


class JournalTests(JournalCase):
    """What of a small journal is sent."""

    def setUp(self) -> None:
        """Have two boots, a unit, and a message of three lines."""
        self.make(
            [
                entry(START - 10**9, b"before", EARLIER_BOOT),
                entry(START, b"one"),
                entry(START + 1_000_000, b"of ssh", _SYSTEMD_UNIT="ssh.service", SYSLOG_IDENTIFIER="sshd"),
                entry(START + 2_000_000, b"two\nthree\nfour"),
                entry(START + 3_000_000, b"f\xffve"),
            ]
        )

    def line(self, seconds: int, text: bytes, source: bytes = b"app[7]") -> bytes:
        """A line as ``journalctl -o short`` shows it."""
        local = time.strftime("%b %d %H:%M:%S", time.localtime(START // 10**6 + seconds)).encode()
        return local + b" device " + source + b": " + text + b"\n"

    async def test_this_boot(self) -> None:
        """The system's log is all of this boot."""
        self.assertEqual(
            await self.read(Logs()),
            self.line(0, b"one")
            + self.line(1, b"of ssh", b"sshd[7]")
            + self.line(2, b"two")
            + self.line(2, b"three")
            + self.line(2, b"four")
            + self.line(3, b"f\xffve"),
        )

    async def test_previous(self) -> None:
        """The previous log is that of the boot before."""
        self.assertEqual(await self.read(Logs(previous=True)), self.line(-1000, b"before"))

    async def test_unit(self) -> None:
        """A unit's log is its messages; a silent unit has an empty one."""
        self.assertEqual(await self.read(Logs(unit="ssh.service")), b"of ssh\n")
        self.assertEqual(
            await self.read(Logs(unit="ssh.service", timestamps=True)),
            b"2023-11-14T22:13:21.000000000Z of ssh\n",
        )
        self.assertEqual(await self.read(Logs(unit="silent.service")), b"")

    async def test_tail(self) -> None:
        """The tail counts lines, not entries."""
        whole = (await self.read(Logs())).splitlines(keepends=True)
        for wanted in (0, 1, 2, 3, 4, 6, 7, 10**12):
            shown = await self.read(Logs(tail_lines=wanted))
            self.assertEqual(shown, b"".join(whole[-wanted:] if wanted else []), wanted)

    async def test_since(self) -> None:
        """What is older is left out, the moment itself is not."""
        shown = await self.read(Logs(since_unix_nanos=(START + 2_000_000) * 1000, timestamps=True))
        self.assertEqual(shown.count(b"\n"), 4)
        shown = await self.read(Logs(since_unix_nanos=(START + 2_000_000) * 1000 + 1, timestamps=True))
        self.assertEqual(shown, b"2023-11-14T22:13:23.000000000Z app[7]: f\xffve\n")

    async def test_limit(self) -> None:
        """The limit counts from the start, or from the tail."""
        self.assertEqual(await self.read(Logs(limit_bytes=30)), (await self.read(Logs()))[:30])
        shown = await self.read(Logs(limit_bytes=3, tail_lines=1, timestamps=True))
        self.assertEqual(shown, b"202")

    async def test_follow(self) -> None:
        """A follower gets what is written later, in a new file too, and its program goes with it."""
        channel = self.start(Logs(follow=True, tail_lines=1))
        await channel.until(self.line(3, b"f\xffve"))
        write_journal(self.folder / "second.journal", [entry(START + 9_000_000, b"later")])
        await channel.until(self.line(9, b"later"))
        self.assertEqual(channel.lane(Lane.MAIN), self.line(3, b"f\xffve") + self.line(9, b"later"))
        self.assertFalse(channel.is_finished)
        self.receiver.reset(Reason(ResetCode.CANCELLED, "gone"))
        for _ in range(100):
            if not children("journalctl"):
                return
            await pause(reactor, 0.05)  # type: ignore[arg-type]
        self.fail("journalctl is still there")

    async def test_no_earlier_boot(self) -> None:
        """A boot that the journal does not hold is refused with a line."""
        self.make([entry(START, b"only")])
        channel = self.start(Logs(previous=True))
        await channel.ended
        assert channel.reset_with is not None
        self.assertTrue(channel.reset_with.text.startswith("no previous log: "), channel.reset_with)
        self.assertIs(channel.reset_with.code, ResetCode.INVALID)

    async def test_no_journal(self) -> None:
        """A unit's log is refused with a line where the journal is empty."""
        self.folder = Path(self.mktemp()).absolute()
        self.folder.mkdir()
        self.command = journalctl(str(self.folder))
        channel = self.start(Logs(unit="ssh.service"))
        await channel.ended
        assert channel.reset_with is not None
        self.assertIn("no log of unit ssh.service: the journal cannot be read", channel.reset_with.text)


class LargeJournalTests(JournalCase):
    """A journal of more than is sent by default."""

    def setUp(self) -> None:
        """Have a journal of some 12 MiB of messages."""
        text = b"x" * 30000
        self.make(entry(START + number, b"%06d " % number + text) for number in range(400))

    async def test_default_amount(self) -> None:
        """The last megabytes come, whole entries, and held back when the client does not read."""
        channel = self.start(Logs(timestamps=True))

        def blocked() -> None:
            channel.block()
            reactor.callLater(0.001, channel.unblock)  # type: ignore[attr-defined]

        channel.on_write = blocked
        await channel.ended
        shown = channel.lane(Lane.MAIN)
        lines = shown.splitlines()
        self.assertEqual(lines[-1][39:46], b"000399 ")
        self.assertTrue(DEFAULT_BYTES - 32768 < len(shown) <= DEFAULT_BYTES, len(shown))
        self.assertEqual({len(line) for line in lines}, {len(lines[0])})


class BrokenJournalctlTests(JournalCase):
    """A ``journalctl`` that does not do what it should."""

    #: What the stand-in does; ``$probe`` is set when it is asked for one line.
    script: ClassVar[str] = '#!/bin/sh\nfor a; do [ "$a" = --lines=1 ] && probe=1; done\n'
    found = '{"__CURSOR":"c1","__REALTIME_TIMESTAMP":"1700000000000000","MESSAGE":"hello"}'

    def stand_in(self, script: str) -> None:
        """Have ``script`` for ``journalctl``."""
        program = Path(self.mktemp()).absolute()
        program.write_text(self.script + script)
        program.chmod(0o755)
        self.command = (str(program),)

    async def test_fails_at_once(self) -> None:
        """Its last complaint tells why there is no log."""
        self.stand_in("echo first >&2; echo 'it is broken' >&2; exit 3\n")
        channel = self.start(Logs())
        await channel.ended
        assert channel.reset_with is not None
        self.assertIn("it is broken", channel.reset_with.text)
        self.assertNotIn("\n", channel.reset_with.text)

    async def test_fails_midway(self) -> None:
        """After data has been sent, failing is the result."""
        self.stand_in(f"echo '{self.found}'; [ $probe ] || {{ echo broken >&2; exit 3; }}\n")
        channel = self.start(Logs(unit="x", limit_bytes=100))
        await channel.ended
        self.assertEqual(channel.lane(Lane.MAIN), b"hello\n")
        self.assertEqual(channel.result, Failed(ResetCode.INTERNAL, "journalctl: broken"))

    async def test_a_follower_goes_on(self) -> None:
        """Ended while it should follow, it is started again after the last entry."""
        self.patch(journal, "RESTART_SECONDS", 0.01)
        second = self.found.replace("c1", "c2").replace("hello", "again")
        self.stand_in(
            'for a; do [ "$a" = --after-cursor=c1 ] && after=1; done\n'
            f"if [ $after ]; then echo '{second}'; else echo '{self.found}'; fi\n"
        )
        channel = self.start(Logs(unit="x", follow=True, limit_bytes=12))
        await channel.ended
        self.assertEqual(channel.lane(Lane.MAIN), b"hello\nagain\n")
        self.assertEqual(channel.result, Succeeded())

    async def test_a_follower_gives_up(self) -> None:
        """Ended again and again without an entry, it is given up with its complaint."""
        self.patch(journal, "RESTART_SECONDS", 0.01)
        self.stand_in(f"if [ $probe ]; then echo '{self.found}'; else echo 'no luck' >&2; exit 1; fi\n")
        channel = self.start(Logs(unit="x", follow=True, limit_bytes=12))
        await channel.ended
        self.assertEqual(channel.reset_with, Reason(ResetCode.INTERNAL, "journalctl: no luck"))

    async def test_nonsense(self) -> None:
        """Lines that are no entries are passed over."""
        self.stand_in(f"echo nonsense; echo '[]'; echo '{self.found}'; echo '{{\"MESSAGE\"'\n")
        self.assertEqual(await self.read(Logs(unit="x", limit_bytes=100)), b"hello\n")

    async def test_leaving_at_any_time(self) -> None:
        """Whenever the client goes, the program goes."""
        self.stand_in(f"echo $$; [ $probe ] && echo '{self.found}'; exec sleep 60\n")
        self.start(Logs(unit="x", follow=True))
        self.receiver.reset(Reason(ResetCode.CANCELLED, "gone"))
        waited: Deferred[None] = pause(reactor, 0.1)  # type: ignore[arg-type]
        await waited
        self.assertEqual(children("sleep"), [])


def children(name: str) -> list[int]:
    """Our living children that run ``name``."""
    found = []
    for process in os.listdir("/proc"):
        try:
            text = Path("/proc", process, "stat").read_text("ascii", "replace")
        except OSError:
            continue
        state, parent = text.rpartition(")")[2].split()[:2]
        if int(parent) == os.getpid() and state != "Z" and f"({name})" in text:
            found.append(int(process))
    return found
