"""How long one command takes, from the return key to the prompt."""

from __future__ import annotations

import functools
import subprocess
import time
from collections.abc import Mapping, Sequence

from test.bench.cluster import DEVICE, Ground
from test.bench.contenders import TRUE, Contender
from test.bench.report import ARANYA, FLOOR, SPDY, SSH, Goal, Report, Row, in_turns, median

STAGE = "One command"


def measure(ground: Ground, report: Report, rounds: int) -> None:
    """``exec … true`` by everyone, and what kubectl needs for less."""
    everyone = {
        name: functools.partial(seconds_of, contender.command(TRUE), contender.environment)
        for name, contender in ground.contenders.items()
    }
    for each in everyone.values():
        each()  # the first one finds files and caches cold
    found = in_turns(everyone, rounds, median)
    goals = (
        Goal(ARANYA, at_most=1.3, against=FLOOR),
        Goal(SPDY, at_most=1.3, against=FLOOR),
        Goal(ARANYA, at_most=0.5, against=SSH),
    )
    report.add(STAGE, Row("exec true", "ms", _in_ms(found), goals, "ssh connects anew each time"))
    kubectl = ground.site.edge
    less = {
        what: functools.partial(seconds_of, kubectl.command(*words), kubectl.environment())
        for what, words in {
            "kubectl version --client": ("version", "--client"),
            "kubectl get pod": ("get", "pod", DEVICE),
        }.items()
    }
    for what, seconds in in_turns(less, rounds, median).items():
        report.add(STAGE, Row(what, "ms", {FLOOR: seconds * 1000}))


def typical(contender: Contender, rounds: int = 5) -> float:
    """Seconds that one ``true`` takes."""
    return median(seconds_of(contender.command(TRUE), contender.environment) for _ in range(rounds))


def seconds_of(words: Sequence[str], environment: Mapping[str, str]) -> float:
    """How long a command takes that ends well."""
    began = time.perf_counter()
    done = subprocess.run(
        words, env=environment, stdin=subprocess.DEVNULL, capture_output=True, timeout=60, check=False
    )
    took = time.perf_counter() - began
    if done.returncode:
        raise RuntimeError(f"{' '.join(words[:3])} …: {done.returncode} {done.stderr.decode()[-300:]}")
    return took


def _in_ms(seconds: Mapping[str, float]) -> dict[str, float]:
    return {name: value * 1000 for name, value in seconds.items()}
