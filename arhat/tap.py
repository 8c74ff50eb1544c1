"""``twistd arhat``: the options, and the only import of the reactor."""

from __future__ import annotations

import os
import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

from twisted.application.service import IService
from twisted.python import usage

from arhat.config import Config, ConfigError
from arhat.executor.environment import Account
from arhat.identity import without_join
from arhat.service import Start, build
from tether.daemon import Daemon, DaemonReactor, leave_soon, refuse

#: Descriptors that starting a child takes, those of its pipes included; generously.
_START_DESCRIPTORS = 64


class Options(usage.Options):
    """The command line."""

    synopsis = "[options]"
    longdesc = "The agent: dials out to aranya and lets kubectl reach this device."
    optParameters = [
        ["join", None, None, "first start: the token of kubectl aranya join, or @FILE that holds it"],
        ["state", None, None, "folder for key and certificate [/var/lib/arhat, or ~/.local/state/arhat]"],
        ["config", None, None, "YAML file: what this device allows [everything]"],
        ["log-format", None, "text", "text or json"],
    ]

    def parseOptions(self, options: Any = None) -> None:
        """Parse; a wrong option is one line and exit code 1, not a page of help."""
        try:
            super().parseOptions(options)
        except usage.UsageError as why:
            refuse("arhat", f"{why}; see twistd arhat --help")

    def parseArgs(self, *rest: str) -> None:
        """There are no arguments."""
        if rest:
            raise usage.UsageError(f"unexpected argument {rest[0]!r}")

    def postOptions(self) -> None:
        """Check what depends on nothing else."""
        if self["log-format"] not in ("text", "json"):
            raise usage.UsageError(f"--log-format: expected text or json, not {self['log-format']!r}")


def default_state() -> Path:
    """Where an agent keeps its identity: the system's place for root, else the user's."""
    if os.geteuid() == 0:
        return Path("/var/lib/arhat")
    try:
        return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state") / "arhat"
    except RuntimeError:
        refuse("arhat", "this user has no home folder; give --state")


def wait_steadily(reactor: Any) -> None:
    """Let the reactor wait by a clock that nobody sets; to be called before anything waits.

    Twisted waits by the wall clock. A device's may be hours ahead until the network sets it
    back, and for those hours nobody would dial, or notice that the link is dead.
    """
    reactor.seconds = lambda: time.clock_gettime(time.CLOCK_BOOTTIME)


def open_more(reactor: Any) -> Callable[[], None]:
    """Let this process have open what it may at most; gives back what undoes that before an exec.

    Children start with the limit that this process started with: some programs cannot cope with
    a higher one. Only while the agent has about as much open itself they start with its own.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    spawn = reactor.spawnProcess

    def lower() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    def spawn_lower(*arguments: Any, **more: Any) -> Any:
        with _lowered(soft):
            return spawn(*arguments, **more)

    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (OSError, ValueError):
        # More than the kernel allows by now. It goes without.
        return lambda: None
    reactor.spawnProcess = spawn_lower
    return lower


@contextmanager
def _lowered(soft: int) -> Iterator[None]:
    now, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        highest = max(map(int, os.listdir("/proc/self/fd")))
    except (OSError, ValueError):
        highest = now
    if highest + _START_DESCRIPTORS >= soft:
        # What is opened now would be above it.
        yield
        return
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (now, hard))


def makeService(options: Options) -> IService:
    """Check what can be checked before the reactor runs, then hand over to the service."""
    from twisted.internet import reactor

    try:
        config = Config.read(Path(options["config"]) if options["config"] else None)
        account = Account.of(config)
    except ConfigError as why:
        refuse("arhat", str(why))
    # Absolute: a daemon leaves the folder it was started in.
    state = Path(options["state"]).absolute() if options["state"] else default_state()
    start = Start(config, account, state, options["join"] or "")

    async def run(daemon: Daemon) -> IService:
        wait_steadily(reactor)
        lower = open_more(reactor)

        def again() -> None:
            lower()
            sys.stdout.flush()
            sys.stderr.flush()
            os.execv(sys.executable, [sys.executable, *without_join(sys.argv)])

        return await build(start, os.environ, reactor, lambda: datetime.now(UTC), again)

    json_log = sys.stdout if options["log-format"] == "json" else None
    return cast(IService, Daemon("arhat", cast(DaemonReactor, reactor), run, json_log, leave_soon))
