"""``arhat.executor.logs.kernel``: the ring as the log of hosts that keep no other."""

from __future__ import annotations

import os
import socket

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from arhat.executor.logs.file import POLL_SECONDS
from arhat.executor.logs.kernel import KernelLog, open_ring, record
from arhat.executor.logs.opening import CannotRead
from arhat.executor.logs.reading import Reading
from arhat.executor.logs.selection import Selection
from test.arhat.running import EndingChannel, own_account
from tether.errors import Reason, ResetCode
from tether.link.interfaces import Lane

NOW = 1_710_000_000_000_000_000
UPTIME = 100_000_000_000


class KernelTests(SynchronousTestCase):
    """A socket that keeps its datagrams apart stands in for the ring."""

    def setUp(self) -> None:
        """Have a ring of three records, one of them nonsense."""
        self.clock = Clock()
        self.ring, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        other.setblocking(False)
        self.descriptor = os.dup(other.fileno())
        other.close()
        self.addCleanup(self.ring.close)
        self.ring.send(b"6,1,2000000,-;first\n SUBSYSTEM=x\n")
        self.ring.send(b"nonsense")
        self.ring.send(b"4,2,3000000,-,caller=T1;second; with more\n")

    def read(self, **selection: object) -> EndingChannel:
        """Read the ring two minutes after the boot."""
        channel = EndingChannel()
        self.reading = Reading(channel, selection.get("limit"))  # type: ignore[arg-type]
        asked = Selection(**{"timestamps": True, **selection})  # type: ignore[arg-type]
        self.reading.begin(
            KernelLog(self.clock, self.reading, self.descriptor, asked, lambda: NOW, lambda: UPTIME)
        )
        self.clock.advance(0)
        return channel

    def test_whole(self) -> None:
        """Each record is a line at its time."""
        channel = self.read()
        self.assertEqual(
            channel.lane(Lane.MAIN),
            b"2024-03-09T15:58:22.000000000Z kernel: first\n"
            b"2024-03-09T15:58:23.000000000Z kernel: second; with more\n",
        )
        self.assertTrue(channel.is_finished)
        self.assertRaises(OSError, os.fstat, self.descriptor)

    def test_short(self) -> None:
        """Without timestamps it looks as syslog does."""
        host = os.uname().nodename.encode()
        self.assertRegex(
            self.read(timestamps=False).lane(Lane.MAIN).splitlines()[0],
            rb"^Mar 09 \d\d:58:22 " + host + rb" kernel: first$",
        )

    def test_options(self) -> None:
        """Tail counts from the end; since leaves out what is older."""
        self.assertEqual(self.read(tail=1).lane(Lane.MAIN).count(b"\n"), 1)

    def test_since(self) -> None:
        """What is older is left out."""
        shown = self.read(since=NOW - UPTIME + 3_000_000_000).lane(Lane.MAIN)
        self.assertTrue(shown.endswith(b"second; with more\n") and shown.count(b"\n") == 1, shown)

    def test_most(self) -> None:
        """No more than so many of the last bytes come."""
        self.assertEqual(self.read(most=80).lane(Lane.MAIN).count(b"\n"), 1)

    def test_follow(self) -> None:
        """A follower gets new records until it goes."""
        channel = self.read(follow=True, tail=0)
        self.ring.send(b"6,3,4000000,-;third\n")
        self.clock.advance(POLL_SECONDS)
        self.assertEqual(channel.lane(Lane.MAIN), b"2024-03-09T15:58:24.000000000Z kernel: third\n")
        self.reading.reset(Reason(ResetCode.CANCELLED, "gone"))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_not_there(self) -> None:
        """A ring that cannot be opened is one line."""
        why = self.assertRaises(CannotRead, open_ring, own_account(), "/nonexistent")
        self.assertEqual(str(why), "cannot read the kernel's log: no such file or directory")

    def test_records(self) -> None:
        """What is no record is none."""
        for data in (b"", b";", b"1,2;x", b"1,2,x;y"):
            self.assertIsNone(record(data))
