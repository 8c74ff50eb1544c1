"""Logs that are files: which may be read, from where on, and through rotation."""

from __future__ import annotations

import os
import pwd
import time
from dataclasses import replace
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.task import Clock
from twisted.trial.unittest import SkipTest, SynchronousTestCase

from arhat.config import Config
from arhat.executor.environment import Account
from arhat.executor.logs import stamps
from arhat.executor.logs.file import BLOCK, POLL_SECONDS
from arhat.executor.logs.opening import AllowedFiles, CannotRead
from arhat.executor.logs.selection import DEFAULT_BYTES
from arhat.executor.logs.starting import LogReading, Places
from test.arhat.running import EndingChannel, own_account
from tether.errors import Reason, ResetCode
from tether.link.interfaces import Lane
from tether.verbs.codec import decode_result
from tether.verbs.requests import Logs, Succeeded

NOWHERE = Places(None, syslog=(), kernel="/nonexistent/kmsg")
LINES = b"".join(b"line %d\n" % number for number in range(10))


class FileCase(SynchronousTestCase):
    """A folder whose files may be read as logs."""

    def setUp(self) -> None:
        """Have a log of ten lines."""
        self.folder = Path(self.mktemp()).absolute()
        self.folder.mkdir()
        self.file = self.folder / "app.log"
        self.file.write_bytes(LINES)
        self.clock = Clock()
        self.now = 1_710_000_000_000_000_000

    def ask(self, request: Logs, patterns: tuple[str, ...] | None = None) -> EndingChannel:
        """Ask for a log."""
        config = Config(log_files=(f"{self.folder}/**",) if patterns is None else patterns)
        starter = LogReading(self.clock, own_account(), config, NOWHERE, lambda: self.now)  # type: ignore[arg-type]
        channel = EndingChannel()
        self.receiver = starter(request, channel)
        self.addCleanup(self.receiver.closed)
        return channel

    def turns(self, number: int = 50) -> None:
        """Let work go on that does not wait for time."""
        for _ in range(number):
            self.clock.advance(0)

    def poll(self, number: int = 1) -> None:
        """Let a follower look again."""
        for _ in range(number):
            self.clock.advance(POLL_SECONDS)
            self.turns()

    def read(self, request: Logs) -> bytes:
        """The whole of an answer that succeeds."""
        channel = self.ask(request)
        for _ in range(5000):
            if channel.is_finished or channel.reset_with:
                break
            self.clock.advance(0)
        self.assertIsNone(channel.reset_with)
        self.assertTrue(channel.is_finished)
        self.assertEqual(decode_result(channel.lane(Lane.RESULT)), Succeeded())
        self.assertEqual(self.clock.getDelayedCalls(), [])
        return channel.lane(Lane.MAIN)


class SelectedTests(FileCase):
    """What of a file is sent."""

    def test_whole(self) -> None:
        """Without options a small file comes whole, its incomplete last line too."""
        self.file.write_bytes(LINES + b"no end")
        self.assertEqual(self.read(Logs(file=str(self.file))), LINES + b"no end")

    def test_empty(self) -> None:
        """An empty file is an empty log."""
        self.file.write_bytes(b"")
        for tail in (None, 0, 3):
            self.assertEqual(self.read(Logs(file=str(self.file), tail_lines=tail)), b"")

    @settings(max_examples=60, deadline=None)
    @given(st.text("a\n", max_size=12), st.integers(0, 8), st.sampled_from([0, 1, BLOCK * 4, BLOCK * 4 + 1]))
    def test_tail(self, text: str, wanted: int, padding: int) -> None:
        """As many of the last lines come as were asked for."""
        data = b"x" * padding + text.encode()
        self.file.write_bytes(data)
        lines = data.splitlines(keepends=True)
        self.assertEqual(
            self.read(Logs(file=str(self.file), tail_lines=wanted)),
            b"".join(lines[-wanted:] if wanted else []),
        )

    def test_tail_of_a_huge_file(self) -> None:
        """The end of a file of gigabytes comes at once."""
        with open(self.file, "r+b") as log:
            log.truncate(8 * 1024**3)
            log.seek(0, os.SEEK_END)
            log.write(b"\n" + LINES)
        self.assertEqual(self.read(Logs(file=str(self.file), tail_lines=2)), b"line 8\nline 9\n")

    def test_limit(self) -> None:
        """The limit cuts in mid-line and counts prefixes."""
        self.assertEqual(self.read(Logs(file=str(self.file), limit_bytes=9)), LINES[:9])
        stamped = self.read(Logs(file=str(self.file), limit_bytes=33, timestamps=True))
        self.assertEqual(stamped[30:], b" li")
        self.assertEqual(len(stamped), 33)

    def test_default_amount(self) -> None:
        """Of a large file the last megabytes come, from the beginning of a line on."""
        line = b"0123456789abcde\n"
        self.file.write_bytes(line * (DEFAULT_BYTES // 16 + 100))
        self.assertEqual(len(self.read(Logs(file=str(self.file)))), DEFAULT_BYTES)
        self.file.write_bytes(b"xx" + line * (DEFAULT_BYTES // 16) + b"end\n")
        read = self.read(Logs(file=str(self.file)))
        self.assertEqual((read[:16], len(read)), (line, DEFAULT_BYTES - 12))

    def test_timestamps(self) -> None:
        """A line without a time has that of its file."""
        os.utime(self.file, ns=(0, 1_600_000_000_123_456_789))
        read = self.read(Logs(file=str(self.file), timestamps=True, tail_lines=1))
        self.assertEqual(read, b"2020-09-13T12:26:40.123456789Z line 9\n")

    def test_since_in_a_large_file(self) -> None:
        """Only lines since then come, and the others are not even read."""
        second = 1_700_000_000
        with open(self.file, "wb") as log:
            for number in range(100_000):
                moment = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(second + number))
                log.write(f"{moment} message number {number}\n    at Some.java:1\n".encode())
        wanted = 1234
        reads = self._count_reads()
        read = self.read(Logs(file=str(self.file), since_unix_nanos=(second + 100_000 - wanted) * 10**9))
        self.assertEqual(read.count(b"message"), wanted)
        self.assertTrue(read.startswith(b"2023-"))
        self.assertTrue(read.endswith(b"number 99999\n    at Some.java:1\n"))
        self.assertLess(len(reads), 12)

    def _count_reads(self) -> list[int]:
        reads: list[int] = []
        pread = os.pread

        def counted(descriptor: int, size: int, offset: int) -> bytes:
            reads.append(offset)
            return pread(descriptor, size, offset)

        self.patch(os, "pread", counted)
        return reads

    def test_since_without_times(self) -> None:
        """A file without times comes whole if it was written since, else not at all."""
        os.utime(self.file, ns=(0, 500))
        self.assertEqual(self.read(Logs(file=str(self.file), since_unix_nanos=500)), LINES)
        self.assertEqual(self.read(Logs(file=str(self.file), since_unix_nanos=501)), b"")

    def test_tail_then_since(self) -> None:
        """The tail is counted first, then what is older is dropped from it."""
        self.file.write_bytes(b"2024-01-01T00:00:00Z a\n2024-01-02T00:00:00Z b\n2024-01-03T00:00:00Z c\n")
        since = 1_704_240_000 * 10**9
        request = Logs(file=str(self.file), since_unix_nanos=since, tail_lines=2)
        self.assertEqual(self.read(request), b"2024-01-03T00:00:00Z c\n")

    def test_does_not_grow(self) -> None:
        """Without follow, what is written meanwhile does not come."""
        channel = self.ask(Logs(file=str(self.file), tail_lines=2))
        self.clock.advance(0)
        with open(self.file, "ab") as log:
            log.write(b"later\n")
        self.turns()
        self.assertEqual(channel.lane(Lane.MAIN), b"line 8\nline 9\n")

    def test_previous(self) -> None:
        """The previous log of a file is the one it was rotated to."""
        channel = self.ask(Logs(file=str(self.file), previous=True))
        self.assertEqual(
            channel.reset_with,
            Reason(ResetCode.INVALID, f"no previous log: {self.file}.1 does not exist"),
        )
        (self.folder / "app.log-20240101").write_bytes(b"older\n")
        (self.folder / "app.log-20240201").write_bytes(b"dated\n")
        (self.folder / "app.log-20240301.gz").write_bytes(b"packed\n")
        self.assertEqual(self.read(Logs(file=str(self.file), previous=True)), b"dated\n")
        (self.folder / "app.log.1").write_bytes(b"numbered\n")
        self.assertEqual(self.read(Logs(file=str(self.file), previous=True, follow=True)), b"numbered\n")


class FailingTests(FileCase):
    """A reading that fails has an end."""

    def test_bug(self) -> None:
        """What nobody foresaw ends the session with a reason, and stands in the agent's log."""

        def failing(line: bytes, newest: int) -> int:
            raise ZeroDivisionError

        self.patch(stamps, "read", failing)
        channel = self.ask(Logs(file=str(self.file), timestamps=True))
        self.turns()
        assert channel.reset_with is not None
        self.assertEqual(channel.reset_with.code, ResetCode.INTERNAL)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)


class FollowTests(FileCase):
    """What comes after the end."""

    def follow(self, **options: int) -> EndingChannel:
        """Follow the file from its end on."""
        channel = self.ask(Logs(file=str(self.file), follow=True, tail_lines=0, **options))  # type: ignore[arg-type]
        self.turns()
        return channel

    def append(self, data: bytes) -> None:
        """Write to the log."""
        with open(self.file, "ab") as log:
            log.write(data)

    def test_appended(self) -> None:
        """What is written comes, in whole lines."""
        channel = self.follow()
        self.append(b"one\ntw")
        self.poll()
        self.assertEqual(channel.lane(Lane.MAIN), b"one\n")
        self.append(b"o\n")
        self.poll()
        self.assertEqual(channel.lane(Lane.MAIN), b"one\ntwo\n")
        self.assertFalse(channel.is_finished)

    def test_time_of_reading(self) -> None:
        """A new line without a time has that of its reading."""
        channel = self.ask(Logs(file=str(self.file), follow=True, tail_lines=0, timestamps=True))
        self.turns()
        self.append(b"x\n")
        self.poll()
        self.assertEqual(channel.lane(Lane.MAIN), b"2024-03-09T16:00:00.000000000Z x\n")

    def test_renamed(self) -> None:
        """Renamed and made anew, first the rest of the old file comes, then the new one."""
        channel = self.follow()
        with open(self.file, "ab") as writer:
            os.rename(self.file, self.folder / "app.log.1")
            self.poll(3)
            self.file.write_bytes(b"new\n")
            self.poll()
            writer.write(b"last words\n")
        self.poll(3)
        self.append(b"newer\n")
        self.poll(2)
        self.assertEqual(channel.lane(Lane.MAIN), b"last words\nnew\nnewer\n")

    def test_copied_and_truncated(self) -> None:
        """Truncated, the file is read from its start."""
        channel = self.follow()
        self.append(b"cut o")
        self.poll()
        os.truncate(self.file, 0)
        self.append(b"new\n")
        self.poll(2)
        self.assertEqual(channel.lane(Lane.MAIN), b"cut o\nnew\n")

    def test_exchanged_for_a_secret(self) -> None:
        """A link put in the file's place leads nowhere that is not allowed."""
        secret = Path(self.mktemp()).absolute()
        secret.write_bytes(b"secret\n")
        channel = self.follow()
        self.file.unlink()
        self.file.symlink_to(secret)
        self.poll(3)
        self.assertEqual(channel.lane(Lane.MAIN), b"")
        assert channel.reset_with is not None
        self.assertIs(channel.reset_with.code, ResetCode.REFUSED)

    def test_limit(self) -> None:
        """The limit ends a follower too."""
        channel = self.follow(limit_bytes=5)
        self.append(b"one\ntwo\n")
        self.poll()
        self.assertEqual(channel.lane(Lane.MAIN), b"one\nt")
        self.assertTrue(channel.is_finished)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_client_leaves(self) -> None:
        """When the client goes, nothing is left: no timer, no open file."""
        before = set(os.listdir("/proc/self/fd"))
        self.follow()
        self.receiver.reset(Reason(ResetCode.CANCELLED, "gone"))
        self.receiver.closed()
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.assertEqual(set(os.listdir("/proc/self/fd")), before)

    def test_back_pressure(self) -> None:
        """Nothing is read while the client does not."""
        self.file.write_bytes(b"x" * 63 + b"\n")
        channel = self.ask(Logs(file=str(self.file), follow=True))
        channel.block()
        self.poll()
        self.assertEqual(channel.lane(Lane.MAIN), b"")
        self.append((b"y" * 63 + b"\n") * 4096)
        channel.on_write = channel.block
        for number in range(1, 5):
            channel.unblock()
            self.poll(3)
            self.assertEqual(len(channel.lane(Lane.MAIN)), number * BLOCK)
        channel.unblock()
        self.poll(3)
        self.assertEqual(channel.lane(Lane.MAIN), self.file.read_bytes())


class AllowedTests(FileCase):
    """Which files may be read."""

    def refused(self, path: object, *patterns: str) -> ResetCode | None:
        """The code with which ``path`` is refused."""
        files = AllowedFiles(patterns or (f"{self.folder}/**",), own_account())
        try:
            os.close(files.open(str(path)))
        except CannotRead as why:
            self.assertIn(str(path), str(why))
            self.assertNotIn("\n", str(why))
            return why.reason.code
        return None

    def test_patterns(self) -> None:
        """A star stays within a name, two do not, and the rest is literal."""
        deep = self.folder / "a" / "b" / "c.log"
        deep.parent.mkdir(parents=True)
        deep.write_bytes(b"")
        for pattern, allowed in (
            ("**", True),
            ("**/*.log", True),
            ("a/**/c.log", True),
            ("a/b/**/c.log", True),
            ("a/*/c.log", True),
            ("a/b/[a-c].lo?", True),
            ("a/b/[!a-c].log", False),
            ("*/c.log", False),
            ("a?b/c.log", False),
            ("*", False),
            ("a/b/cXlog", False),
            ("a/b", False),
        ):
            self.assertEqual(self.refused(deep, f"{self.folder}/{pattern}") is None, allowed, pattern)
        self.assertIs(self.refused(deep, "/nonexistent/**"), ResetCode.REFUSED)

    def test_links_out(self) -> None:
        """A link out of the allowed folders is refused, as are dots and a link among the folders."""
        outside = Path(self.mktemp()).absolute()
        outside.mkdir()
        (outside / "file").write_bytes(b"secret")
        (self.folder / "link").symlink_to(outside / "file")
        (self.folder / "folder").symlink_to(outside)
        self.assertIs(self.refused(self.folder / "link"), ResetCode.REFUSED)
        self.assertIs(self.refused(self.folder / "folder" / "file"), ResetCode.REFUSED)
        self.assertIs(
            self.refused(f"{self.folder}/{os.path.relpath(outside, self.folder)}/file"), ResetCode.REFUSED
        )
        self.assertIs(self.refused(outside / "absent"), ResetCode.REFUSED)

    def test_links_within(self) -> None:
        """A link from one allowed file to another is followed."""
        (self.folder / "current").symlink_to("app.log")
        self.assertIsNone(self.refused(self.folder / "current"))

    def test_the_owner_s_links(self) -> None:
        """Where a listed folder is itself a link, what it leads to is listed."""
        link = Path(self.mktemp()).absolute()
        link.symlink_to(self.folder)
        self.assertIsNone(self.refused(link / "app.log", f"{link}/**"))

    def test_not_files(self) -> None:
        """Folders, pipes and what is not there are told as such, at once."""
        os.mkfifo(self.folder / "pipe")
        (self.folder / "loop").symlink_to("loop")
        for path in (
            self.folder / "pipe",
            self.folder / "absent",
            self.folder / "app.log" / "x",
            "relative.log",
        ):
            self.assertIs(self.refused(path, "/**"), ResetCode.INVALID, path)
        self.assertIsNotNone(self.refused(self.folder / "loop", "/**"))

    def test_another_account(self) -> None:
        """The account's rights count, not the agent's, and the agent's come back."""
        if os.geteuid() != 0:
            raise SkipTest("only root can act as someone else")
        entry = pwd.getpwnam("nobody")
        account = Account(entry.pw_name, entry.pw_uid, entry.pw_gid, "/", "/bin/sh", switch=True)
        shared = Path("/tmp") / f"arhat-log-{os.getpid()}"
        shared.write_bytes(LINES)
        self.addCleanup(shared.unlink)
        files = AllowedFiles((f"{shared}*",), account)
        ids = os.getresuid(), os.getresgid(), os.getgroups()
        shared.chmod(0o600)
        refused = self.assertRaises(CannotRead, files.open, str(shared))
        self.assertEqual(
            refused.reason, Reason(ResetCode.REFUSED, f"user nobody may not read log file {shared}")
        )
        shared.chmod(0o644)
        os.close(files.open(str(shared)))
        self.assertEqual((os.getresuid(), os.getresgid(), os.getgroups()), ids)

    def test_refusal_on_the_channel(self) -> None:
        """A refusal resets the channel with one line, before any data."""
        channel = self.ask(Logs(file="/etc/shadow"))
        self.assertEqual(
            channel.reset_with,
            Reason(ResetCode.REFUSED, "logs.files of this device does not list /etc/shadow"),
        )
        self.assertEqual(channel.sent, [])
        self.assertIsNone(channel.producer)
        self.assertEqual(self.clock.getDelayedCalls(), [])


class OtherSystemLogTests(FileCase):
    """The system's log of hosts without a journal."""

    def places(self, **places: object) -> LogReading:
        """A host where logs are at ``places``."""
        return LogReading(
            self.clock,  # type: ignore[arg-type]
            own_account(),
            Config(log_files=()),
            replace(NOWHERE, **places),
            lambda: self.now,
        )

    def answer(self, starter: LogReading, request: Logs) -> EndingChannel:
        """What comes of a request."""
        channel = EndingChannel()
        self.addCleanup(starter(request, channel).closed)
        self.turns()
        return channel

    def test_syslog(self) -> None:
        """The first readable file of syslog is read from this boot on, whatever ``logs.files`` lists."""
        statistics = self.folder / "stat"
        statistics.write_text("cpu 1\nbtime 1704153600\n")
        self.file.write_bytes(b"2024-01-01T23:59:59Z h old\n2024-01-02T00:00:00Z h new\n")
        starter = self.places(syslog=(str(self.folder / "absent"), str(self.file)), statistics=statistics)
        channel = self.answer(starter, Logs())
        self.assertEqual(channel.lane(Lane.MAIN), b"2024-01-02T00:00:00Z h new\n")
        self.assertTrue(channel.is_finished)

    def test_nothing(self) -> None:
        """A host with no log at all says so in one line."""
        channel = self.answer(self.places(), Logs())
        assert channel.reset_with is not None
        self.assertIn("this device has no log to read", channel.reset_with.text)
        self.assertNotIn("\n", channel.reset_with.text)

    def test_what_needs_a_journal(self) -> None:
        """A unit's log and the boot before are refused without a journal."""
        starter = self.places(syslog=(str(self.file),))
        for request, text in (
            (Logs(unit="ssh.service"), "no log of unit ssh.service: "),
            (Logs(previous=True), "no previous log: "),
            (Logs(unit="--x y"), "'--x y' is not the name of a unit"),
        ):
            channel = self.answer(starter, request)
            assert channel.reset_with is not None
            self.assertTrue(channel.reset_with.text.startswith(text), channel.reset_with)
            self.assertIs(channel.reset_with.code, ResetCode.INVALID)
