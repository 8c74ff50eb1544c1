"""
How soon all goes on: after a cut of the device's connection, and after the active one of two agents went.

A cut is felt by a running command that counts: the gap is the longest time without a number. What other
ways offer is a new command, so that is what they are timed with.
"""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from arhat.dial import GOOD_LIFE
from test.bench.child import DIES_WITH_US
from test.bench.cluster import Ground
from test.bench.contenders import NO_WEBSOCKET, TRUE, ByKubectl, BySsh, Contender
from test.bench.counting import Counting, counting
from test.bench.report import ARANYA, FLOOR, SPDY, SSH, Goal, Report, Row, median
from test.bench.roundtrips import seconds_of, typical
from test.cluster.daemons import Twistd, free_port, wait_until
from test.cluster.proxy import Road

STAGE = "Recovery"
_CUT, _FOLLOWED = "cut", "followed"
_PATIENCE = 20.0
#: An agent whose link lived for less than ``GOOD_LIFE`` is in less of a hurry.
_SHORT_LIFE = 2.0
_PARENT = ("sh", "-c", "echo $PPID")
#: What a gap may be beyond a new connection: the dice of an agent, which must not all come at once.
_BEYOND = 1000.0


def measure(ground: Ground, report: Report, cuts: int) -> None:
    """Cuts, of links that lived for long and of young ones; an agent told to stop, and one killed."""
    bare = typical(ground.contenders[FLOOR])
    with ground.detour() as port, Road(port, ground.site.gateway_port) as road, ground.device(_CUT):
        contenders = {
            ARANYA: ByKubectl(ground.site.edge, _CUT, {}),
            SPDY: ByKubectl(ground.site.edge, _CUT, NO_WEBSOCKET),
        }
        _measure_cuts(ground, report, road, contenders, cuts, bare)
    _measure_takeover(ground, report, (cuts + 1) // 2, bare)


# ---- cuts


@dataclass(frozen=True, slots=True)
class _Felt:
    """What all cuts of one kind did, in seconds."""

    gaps: Mapping[str, list[float]]
    #: From dialling until numbers came again.
    dialled: list[float] = field(default_factory=list)


def _measure_cuts(
    ground: Ground,
    report: Report,
    road: Road,
    contenders: Mapping[str, Contender],
    cuts: int,
    bare: float,
) -> None:
    anew: list[float] = []
    with contextlib.ExitStack() as opened:
        running = {name: opened.enter_context(counting(contender)) for name, contender in contenders.items()}
        young = _Felt({name: [] for name in running})
        for _ in range(cuts):
            time.sleep(_SHORT_LIFE)
            _cut(road, running, young)
        old = _Felt({name: [] for name in running})
        for _ in range(cuts):
            good = time.monotonic() + GOOD_LIFE
            anew += _ssh_anew(ground)
            time.sleep(max(good - time.monotonic(), 0) + 0.5)
            _cut(road, running, old)
    others = {SSH: anew} if anew else {}
    compared = {**others, FLOOR: [bare]}
    bounds = [Goal(ARANYA, at_most=_BEYOND, against=name, beyond=True) for name in compared]
    ratios = [Goal(ARANYA, against=name) for name in compared]
    remark = (
        "ssh's session dies with its connection; its figure is how long a new `ssh host true` takes, begun "
        "at once; that of floor is one `kubectl exec true`"
    )
    values = _ms({**old.gaps, **compared})
    report.add(STAGE, Row("bytes again after a cut", "ms", values, [*bounds, *ratios], remark))
    report.add(STAGE, Row(f"… worst of {cuts}", "ms", _ms({**old.gaps, **others}, max)))
    remark = "the rest is a wait of random length, up to 0.5 s, lest all devices come at once"
    report.add(STAGE, Row("… of it, since the agent dialled", "ms", _ms({ARANYA: old.dialled}), (), remark))
    what, remark = "bytes again, the link cut when it is 2 s old", "the random wait is up to 1 s"
    report.add(STAGE, Row(what, "ms", _ms({**young.gaps, **compared}), bounds, remark))
    report.add(STAGE, Row(f"… worst of {cuts}", "ms", _ms(young.gaps, max)))
    report.add(STAGE, Row("… of it, since the agent dialled", "ms", _ms({ARANYA: young.dialled})))


def _cut(road: Road, running: Mapping[str, Counting], felt: _Felt) -> None:
    begun = road.begun
    road.cut()
    moment = time.monotonic()
    while road.begun == begun:
        if time.monotonic() > moment + _PATIENCE:
            raise RuntimeError("the agent did not dial again")
        time.sleep(0.001)
    dialled = time.monotonic()
    for name, session in running.items():
        felt.gaps[name].append(session.gap(moment, _PATIENCE))
        if name == ARANYA:
            felt.dialled.append(felt.gaps[name][-1] - (dialled - moment))


def _ssh_anew(ground: Ground) -> list[float]:
    """How long after a cut a new ssh has done something; nothing if there is no ssh."""
    contender = ground.contenders.get(SSH)
    if not isinstance(contender, BySsh):
        return []
    port = free_port()
    with Road(port, contender.openssh.port) as road:
        through = BySsh(contender.openssh.by(port))
        words = through.command(["sh", "-c", "echo up; exec cat"], stdin=True)
        session = subprocess.Popen(
            [*DIES_WITH_US, *words],
            env=dict(through.environment),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        try:
            assert session.stdout is not None
            if session.stdout.readline() != b"up\n":
                raise RuntimeError("ssh did not start")
            road.cut()
            took = seconds_of(through.command(TRUE), through.environment)
            if session.wait(_PATIENCE) != 255:
                raise RuntimeError("the session of ssh did not die of the cut")
        finally:
            session.kill()
            session.communicate()
    return [took]


# ---- two agents


def _measure_takeover(ground: Ground, report: Report, rounds: int, bare: float) -> None:
    contender = ByKubectl(ground.site.edge, _FOLLOWED, {})
    goal = Goal(ARANYA, at_most=_BEYOND, against=FLOOR, beyond=True)
    with ground.device(_FOLLOWED) as active, contextlib.ExitStack() as started:
        agents = 0
        for name in ("SIGTERM", "SIGKILL"):
            taken: list[float] = []
            failed = 0
            for _ in range(rounds):
                agents += 1
                standby = Twistd(f"{_FOLLOWED}-{agents}", active.words, active.folder)
                standby.start()
                started.callback(standby.kill)
                wait_until(
                    "the standby stands by", functools.partial(_stands_by, standby), _PATIENCE, standby.tail
                )
                began = time.monotonic()
                os.kill(active.pid, signal.Signals[name])
                failed += _until_served_by(contender, standby)
                taken.append(time.monotonic() - began)
                active = standby
            remark = f"{failed} commands failed in {rounds} such moments; floor is a command when nobody goes"
            what = f"from {name} of the active agent to a command on the standby"
            row = Row(what, "ms", _ms({ARANYA: taken, FLOOR: [bare]}), [goal], remark)
            report.add(STAGE, row)
            report.add(STAGE, Row(f"… worst of {rounds}", "ms", _ms({ARANYA: taken}, max)))


def _stands_by(agent: Twistd) -> bool:
    return "standing by" in agent.text()


def _until_served_by(contender: Contender, agent: Twistd) -> int:
    """Run commands until one ran on this agent; how many failed."""
    failed = 0
    deadline = time.monotonic() + _PATIENCE
    while time.monotonic() < deadline:
        done = subprocess.run(
            contender.command(_PARENT),
            env=dict(contender.environment),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=60,
            check=False,
        )
        if done.returncode:
            failed += 1
        elif int(done.stdout) == agent.pid:
            return failed
    raise RuntimeError(f"the standby did not take over within {_PATIENCE:.0f} s")


def _ms(
    seconds: Mapping[str, list[float]], summary: Callable[[list[float]], float] = median
) -> dict[str, float]:
    return {name: summary(found) * 1000 for name, found in seconds.items()}
