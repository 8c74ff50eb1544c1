"""
What it costs that sessions outlive a link: in speed while links last, in memory while there is none.

The tether keeps what it sent until it is acknowledged whether or not anybody waits for a lost link, for its
turn-taking rests on acknowledgements; a grace of 0 only makes it forget all that at the end of the link.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import selectors
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence

from test.bench.bulk import counted, down, fill, up
from test.bench.child import DIES_WITH_US
from test.bench.cluster import Ground
from test.bench.contenders import ByKubectl, Contender
from test.bench.report import ARANYA, BRIEF, Goal, Report, Row, in_turns, median
from test.cluster.daemons import Twistd
from test.cluster.proxy import Road

STAGE = "What resuming costs"
_LASTING, _BRIEF, _FULL = "lasting", "brief", "full"
_GRACE = 300
_PATIENCE = 60.0
_PIECE = bytes(64 * 1024)
#: Nothing moves any more when nothing, or hardly anything, did for so long.
_STILL_SECONDS = 2.0
_STILL_KIB = 256
#: What a session may hold at one end: a window each way.
_WINDOWS_KIB = 2 * 1024


def measure_speed(ground: Ground, report: Report, size: int, rounds: int) -> None:
    """Bytes through exec, to a device whose sessions outlive a link and to one whose do not."""
    big = ground.folder / "big"
    size = fill(big, size)
    with contextlib.ExitStack() as opened:
        agents = {
            name: opened.enter_context(ground.device(device, {"connectivity": {"graceSeconds": seconds}}))
            for name, device, seconds in ((ARANYA, _LASTING, _GRACE), (BRIEF, _BRIEF, 0))
        }
        contenders = {name: ByKubectl(ground.site.edge, agent.name, {}) for name, agent in agents.items()}
        for what, way in (("exec down", functools.partial(down, str(big))), ("exec up", up)):
            burnt: dict[str, list[float]] = {name: [] for name in agents}
            measures = {
                name: functools.partial(
                    counted, way, contender, size, burnt[name], (ground.site.controller.pid, agents[name].pid)
                )
                for name, contender in contenders.items()
            }
            goal = Goal(ARANYA, at_least=0.95, against=BRIEF)
            report.add(STAGE, Row(what, "MB/s", in_turns(measures, rounds, median), [goal]))
            values = {name: median(found) for name, found in burnt.items()}
            goal = Goal(ARANYA, at_most=1.05, against=BRIEF)
            report.add(STAGE, Row(f"{what}: CPU of aranya + arhat", "s per GB", values, [goal]))
    big.unlink()


def measure_memory(ground: Ground, report: Report, count: int) -> None:
    """What each session holds that waits for the next link: full in both directions, for nobody reads."""
    site = ground.site
    with ground.detour() as port, contextlib.ExitStack() as opened:
        road = opened.enter_context(Road(port, site.gateway_port))
        daemons = {"aranya": site.controller, "arhat": opened.enter_context(ground.device(_FULL))}
        before = _settled(daemons)
        go = opened.enter_context(open(ground.folder / "go", "wb"))
        fcntl.flock(go, fcntl.LOCK_EX)
        sessions = opened.enter_context(_sessions(ByKubectl(site.edge, _FULL, {}), go.name, count))
        idle = _settled(daemons)
        fcntl.flock(go, fcntl.LOCK_UN)
        _fill(sessions)
        full = _settled(daemons)
        road.close()
        waiting = _settled(daemons)
        opened.enter_context(Road(port, site.gateway_port))
        site.wait_online(_FULL, _PATIENCE)
        if any(session.poll() is not None for session in sessions):
            raise RuntimeError("a session did not outlive the outage")
    # The intake of ``aranya.streaming``, not the tether.
    remark = "up to 1 MiB of it is input that aranya takes of a client before it stops reading, link or not"
    for name in daemons:
        what = f"{name}, each of {count} sessions"
        bound = [Goal(ARANYA, at_most=_WINDOWS_KIB)]
        for state, held, goals in (
            (f"{what} that are idle", idle, []),
            ("… full, while there is a link", full, []),
            ("… full, while there is none", waiting, bound),
        ):
            values = {ARANYA: (held[name] - before[name]) / count}
            report.add(
                STAGE, Row(state, "KiB RSS", values, goals, remark if goals and name == "aranya" else "")
            )


def _settled(daemons: Mapping[str, Twistd]) -> dict[str, int]:
    """What they hold when that does not change any more, in KiB."""
    deadline = time.monotonic() + _PATIENCE
    last: dict[str, int] = {}
    while True:
        held = {name: daemon.resident_kib() for name, daemon in daemons.items()}
        if last and all(abs(held[name] - last[name]) < _STILL_KIB for name in held):
            return held
        if time.monotonic() > deadline:
            raise RuntimeError(f"memory moves on and on: {last}, {held}")
        last = held
        time.sleep(_STILL_SECONDS)


@contextlib.contextmanager
def _sessions(contender: Contender, go: str, count: int) -> Iterator[list[subprocess.Popen[bytes]]]:
    """So many commands under way, which write without end when nobody else locks the file ``go``."""
    words = contender.command(["sh", "-c", f"echo ready; exec flock -s '{go}' cat /dev/zero"], stdin=True)
    sessions: list[subprocess.Popen[bytes]] = []
    try:
        for _ in range(count):
            session = subprocess.Popen(
                [*DIES_WITH_US, *words],
                env=dict(contender.environment),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                bufsize=0,
            )
            sessions.append(session)
        for session in sessions:
            assert session.stdout is not None
            if session.stdout.read(6) != b"ready\n":
                raise RuntimeError("a session did not start")
        yield sessions
    finally:
        for session in sessions:
            session.kill()
        for session in sessions:
            session.wait()
            for pipe in (session.stdin, session.stdout):
                assert pipe is not None
                pipe.close()


def _fill(sessions: Sequence[subprocess.Popen[bytes]]) -> None:
    """Give each as much input as all between here and the command takes."""
    with selectors.DefaultSelector() as waiting:
        for session in sessions:
            assert session.stdin is not None
            os.set_blocking(session.stdin.fileno(), False)
            waiting.register(session.stdin, selectors.EVENT_WRITE)
        deadline = time.monotonic() + _PATIENCE
        while ready := waiting.select(_STILL_SECONDS):
            if time.monotonic() > deadline:
                raise RuntimeError("somebody reads what nobody should")
            for key, _ in ready:
                with contextlib.suppress(BlockingIOError):
                    os.write(key.fd, _PIECE)
