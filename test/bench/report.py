"""
What a run found: rows of measured values, each with the ratios it was asked for, as one table.

Absolute figures move with the machine and with what else runs on it; a ratio of two figures that were
taken in turns moves little. So goals are ratios wherever there is something to compare with.
"""

from __future__ import annotations

import operator
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

ARANYA = "aranya"
SPDY = "aranya, SPDY"
SSH = "ssh"
FLOOR = "floor"
#: A device whose sessions end with its link.
BRIEF = "aranya, grace 0"

#: The columns, in this order; a row leaves out what it has no figure for.
CONTENDERS = (ARANYA, SPDY, BRIEF, SSH, FLOOR)


@dataclass(frozen=True, slots=True)
class Goal:
    """
    A bound: on the ratio of ``ours`` to ``against``, or on ``ours`` itself.

    Without a bound the figure is only shown.
    """

    ours: str
    at_most: float | None = None
    at_least: float | None = None
    against: str = ""
    #: Added to what it is measured against, for goals such as "at most 2 ms more".
    beyond: bool = False

    def figure(self, values: Mapping[str, float]) -> float | None:
        """What the bound is put on; ``None`` if it was not measured."""
        ours = values.get(self.ours)
        if ours is None or not self.against:
            return ours
        against = values.get(self.against)
        if not against:
            return None
        return ours - against if self.beyond else ours / against

    def text(self, values: Mapping[str, float]) -> str:
        """The figure, its bound, and whether it holds."""
        figure = self.figure(values)
        joint = "-" if self.beyond else "/"
        name = f"{self.ours} {joint} {self.against}" if self.against else self.ours
        shown = "?" if figure is None else number(figure)
        sign, bound = ("≤", self.at_most) if self.at_most is not None else ("≥", self.at_least)
        if bound is None:
            return f"{name}: {shown}"
        reached = figure is not None and (figure <= bound if sign == "≤" else figure >= bound)
        return f"{name}: {shown} ({sign} {bound:g}{'' if reached else ', missed'})"


@dataclass(frozen=True, slots=True)
class Row:
    """One measured thing, for each contender that can do it."""

    what: str
    unit: str
    values: Mapping[str, float]
    goals: Sequence[Goal] = ()
    #: What a reader must know to read the figures.
    remark: str = ""


@dataclass(slots=True)
class Report:
    """All rows of a run, by the stage that found them."""

    machine: str
    say: Callable[[str], None]
    stages: dict[str, list[Row]] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def add(self, stage: str, row: Row) -> None:
        """Keep a row, and say it at once: a run takes minutes."""
        self.stages.setdefault(stage, []).append(row)
        found = ", ".join(f"{name} {number(value)}" for name, value in row.values.items())
        self.say(f"  {row.what}: {found} {row.unit}".rstrip())

    def markdown(self) -> str:
        """The whole report."""
        lines = [self.machine, ""]
        for stage, rows in self.stages.items():
            # A figure without a goal of its own is context for its neighbours.
            lines += [f"### {stage}", "", *table(rows), ""]
            lines += [f"- {row.what}: {row.remark}" for row in rows if row.remark]
            lines.append("")
        if self.failures:
            lines += ["### Not measured", "", *(f"- {failure}" for failure in self.failures), ""]
        return "\n".join(lines).replace("\n\n\n", "\n\n")


def table(rows: Sequence[Row]) -> list[str]:
    """The lines of a Markdown table, padded so that it reads in a terminal too."""
    used = [name for name in CONTENDERS if any(name in row.values for row in rows)]
    cells = [["", "unit", *used, "ratios (goals)"]]
    for row in rows:
        values = [number(row.values[name]) if name in row.values else "" for name in used]
        goals = "; ".join(goal.text(row.values) for goal in row.goals)
        cells.append([row.what, row.unit, *values, goals])
    widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
    padded = ["| " + " | ".join(map(str.ljust, line, widths)) + " |" for line in cells]
    return [padded[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *padded[1:]]


def number(value: float) -> str:
    """Three digits that matter."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    if abs(value) >= 10:
        return f"{value:.1f}"
    return f"{value:.2f}"


def in_turns(
    measures: Mapping[str, Callable[[], float]], rounds: int, summary: Callable[[list[float]], float]
) -> dict[str, float]:
    """Take a figure of each in turns, A B C A B C, so that what disturbs disturbs all; one figure of each."""
    taken: dict[str, list[float]] = {name: [] for name in measures}
    for _ in range(rounds):
        for name, measure in measures.items():
            taken[name].append(measure())
    return {name: summary(figures) for name, figures in taken.items()}


median = statistics.median


def percentile(figures: Sequence[float], percent: float) -> float:
    """The figure below which so many percent lie."""
    ordered = sorted(figures)
    return ordered[min(len(ordered) - 1, operator.index(int(len(ordered) * percent / 100)))]
