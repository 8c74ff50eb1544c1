"""
``make bench``: measure, print ratios, and keep them.

It needs no root, no network beyond loopback (but for fetching an OpenSSH server the first time, where there
is none), starts everything it measures and ends all of it. Figures of a busy machine are worth little: the
report says how busy it was.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from test.bench import bulk, forwarding, keystrokes, memory, recovery, resuming, roundtrips
from test.bench.cluster import Ground, ground
from test.bench.machine import describe
from test.bench.report import Report
from test.cluster.binaries import NoControlPlane
from test.cluster.child import PlaneError
from test.cluster.daemons import ROOT, TooLate

_MIB = 2**20
Stage = Callable[[Ground, Report], None]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--rounds", type=int, default=15, help="commands timed of each contender [15]")
    parser.add_argument("--size", type=int, default=256, help="MiB of a bulk transfer [256]")
    parser.add_argument("--repeats", type=int, default=5, help="transfers and rates of each contender [5]")
    parser.add_argument("--seconds", type=float, default=2.0, help="how long a rate is taken [2]")
    parser.add_argument("--keys", type=int, default=300, help="keys typed by each contender [300]")
    parser.add_argument("--execs", type=int, default=1000, help="commands after which memory is flat [1000]")
    parser.add_argument("--devices", type=int, default=200, help="idle devices [200]")
    parser.add_argument("--cuts", type=int, default=10, help="cuts of a connection, 20 s apart [10]")
    parser.add_argument("--sessions", type=int, default=50, help="sessions that wait for a link [50]")
    parser.add_argument("--only", action="append", default=[], choices=list(_stages(None)), help="repeatable")
    parser.add_argument("--output", type=Path, default=ROOT / "_bench" / "latest.md", help="where to keep it")
    return parser.parse_args()


def _stages(chosen: argparse.Namespace | None) -> Mapping[str, Stage]:
    """In the order in which they disturb each other least: what fills memory comes last."""
    given = chosen or argparse.Namespace()
    return {
        "idle": memory.measure_idle,
        "exec": lambda on, report: roundtrips.measure(on, report, given.rounds),
        "keys": lambda on, report: keystrokes.measure(on, report, given.keys),
        "forward": lambda on, report: forwarding.measure(on, report, given.seconds, given.repeats),
        "bytes": lambda on, report: bulk.measure(on, report, given.size * _MIB, given.repeats),
        "resuming": lambda on, report: resuming.measure_speed(on, report, given.size * _MIB, given.repeats),
        "recovery": lambda on, report: recovery.measure(on, report, given.cuts),
        "waiting": lambda on, report: resuming.measure_memory(on, report, given.sessions),
        "execs": lambda on, report: memory.measure_execs(on, report, given.execs),
        "devices": lambda on, report: memory.measure_devices(on, report, given.devices),
    }


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main() -> int:
    """Run the stages; 1 if one could not be measured. A missed goal is no failure: it is in the table."""
    chosen = _arguments()
    # Unwinds, so that what runs is ended and its folder removed.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    began = time.monotonic()
    report = Report(describe(), _say)
    try:
        with ground(_say, report.failures) as on:
            for name, stage in _stages(chosen).items():
                if chosen.only and name not in chosen.only:
                    continue
                _say(f"[{time.monotonic() - began:.0f} s] {name}")
                try:
                    stage(on, report)
                except (RuntimeError, OSError, TooLate, AssertionError, TimeoutError) as problem:
                    # The others can still be measured.
                    report.failures.append(f"{name}: {problem}".strip())
                    _say(f"  failed: {problem}")
    except (NoControlPlane, PlaneError, TooLate) as problem:
        _say(f"bench: {problem}")
        return 1
    except KeyboardInterrupt:
        return 130
    text = report.markdown()
    chosen.output.parent.mkdir(parents=True, exist_ok=True)
    chosen.output.write_text(text, "utf-8")
    print(text)
    _say(f"[{time.monotonic() - began:.0f} s] kept in {chosen.output}")
    return 1 if report.failures else 0


if __name__ == "__main__":
    sys.exit(main())
