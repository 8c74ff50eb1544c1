"""What tests with real processes share: a channel that tells when it ended, and an account."""

from __future__ import annotations

import os
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime

from arhat.config import Config
from arhat.executor.environment import Account
from test.support.channels import RecordingChannel
from tether.errors import Reason
from tether.link.interfaces import Lane
from tether.verbs.codec import decode_result
from tether.verbs.requests import Result


class EndingChannel(RecordingChannel):
    """A recording channel whose ``ended`` fires at ``finish`` or ``reset``."""

    def __init__(self, stream: int = 2) -> None:
        super().__init__(stream)
        self.ended: Deferred[EndingChannel] = Deferred()
        self.on_write: Callable[[], None] = lambda: None

    def write(self, data: bytes, lane: Lane = Lane.MAIN) -> None:
        super().write(data, lane)
        self.on_write()

    def finish(self) -> None:
        super().finish()
        if not self.ended.called:
            self.ended.callback(self)

    def reset(self, reason: Reason) -> None:
        super().reset(reason)
        if not self.ended.called:
            self.ended.callback(self)

    @property
    def result(self) -> Result:
        """The one result, which must be the last that was written."""
        results = [data for lane, data in self.sent if lane is Lane.RESULT]
        assert len(results) == 1, f"{len(results)} results"
        assert self.sent[-1][0] is Lane.RESULT, "something follows the result"
        return decode_result(results[0])

    def until(self, text: bytes, lane: Lane = Lane.MAIN) -> Deferred[None]:
        """Fires when ``text`` has been written to ``lane``."""
        seen: Deferred[None] = Deferred()

        def look() -> None:
            if not seen.called and text in self.lane(lane):
                seen.callback(None)

        self.on_write = look
        look()
        return seen


def own_account() -> Account:
    """Whoever runs the tests."""
    return Account.of(Config())


async def gone(clock: IReactorTime, pid: int) -> None:
    """Wait, a few seconds at most, until there is no process ``pid``."""
    for _ in range(100):
        if not alive(pid):
            return
        await pause(clock, 0.05)
    raise AssertionError(f"process {pid} is still there")


def alive(pid: int) -> bool:
    """Whether a process runs; a zombie does only until we, its parent, have waited for it."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as stat:
            state, parent = stat.read().rpartition(")")[2].split()[:2]
            return state != "Z" or int(parent) == os.getpid()
    except OSError:
        return False


def zombies() -> list[str]:
    """Our children that ended and were not waited for."""
    found = []
    for entry in os.listdir("/proc"):
        try:
            with open(f"/proc/{entry}/stat", encoding="ascii", errors="replace") as stat:
                state, parent = stat.read().rpartition(")")[2].split()[:2]
        except (OSError, ValueError):
            continue
        if state == "Z" and int(parent) == os.getpid():
            found.append(entry)
    return found


@contextmanager
def no_descriptors() -> Iterator[None]:
    """A time in which this process can open nothing."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def pause(clock: IReactorTime, seconds: float) -> Deferred[None]:
    """A little time of the real reactor."""
    waiting: Deferred[None] = Deferred()
    clock.callLater(seconds, waiting.callback, None)
    return waiting
