"""How long a key takes to appear: one byte there and back through an interactive session."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping

from test.bench.bulk import copying
from test.bench.cluster import Ground
from test.bench.contenders import ECHO, Contender
from test.bench.report import ARANYA, FLOOR, SPDY, SSH, Goal, Report, Row, percentile
from test.cluster.terminal import Terminal

STAGE = "Keystrokes"
_PATIENCE = 20.0
#: Between keys, so that everything between goes to sleep as it does before a person.
_THINK = 0.01
#: What is copied beside the keys. Not a file: whoever reads it first would also measure how fast the
#: machine finds memory for its cache, which on a small virtual one stops everything for 20 ms at times.
_ENDLESS = "/dev/zero"


def measure(ground: Ground, report: Report, keys: int) -> None:
    """Keys alone, and beside a copy from the same device."""
    taken = _in_turns(ground.contenders, keys)
    alone = {50: 2.0, 99: 10.0}
    for percent, more in alone.items():
        goals = [Goal(name, at_most=more, against=FLOOR, beyond=True) for name in (ARANYA, SPDY)]
        values = {name: percentile(found, percent) * 1000 for name, found in taken.items()}
        report.add(STAGE, Row(f"one key there and back, p{percent}", "ms", values, goals))

    beside: dict[str, list[float]] = {}
    for name, contender in ground.only(ARANYA, SPDY, SSH).items():
        with copying(contender, _ENDLESS) as copy:
            beside |= _in_turns({name: contender}, keys)
            if copy.poll() is not None:
                raise RuntimeError(f"{name}: the copy ended before the last key")
    for percent in (50, 99):
        goals = [Goal(name, at_most=20) for name in (ARANYA, SPDY)] if percent == 99 else []
        values = {name: percentile(found, percent) * 1000 for name, found in beside.items()}
        remark = "ssh has a connection, a process and so a processor for the copy alone" if goals else ""
        report.add(STAGE, Row(f"… beside a copy, p{percent}", "ms", values, goals, remark))


def _in_turns(contenders: Mapping[str, Contender], keys: int) -> dict[str, list[float]]:
    with contextlib.ExitStack() as opened:
        terminals: dict[str, Terminal] = {}
        for name, contender in contenders.items():
            terminal = Terminal(contender.command(ECHO, tty=True), contender.environment)
            opened.callback(terminal.close)
            terminal.expect(b"ready", _PATIENCE)
            # The end of that line, however a terminal writes it.
            while terminal.read(0.3):
                pass
            terminal.screen = b""
            terminals[name] = terminal
        taken: dict[str, list[float]] = {name: [] for name in terminals}
        for _ in range(keys):
            for name, terminal in terminals.items():
                time.sleep(_THINK)
                began = time.perf_counter()
                terminal.type(b"x")
                terminal.expect(b"x", _PATIENCE)
                taken[name].append(time.perf_counter() - began)
        return taken
