"""What the kernel says of the machine and of processes."""

from __future__ import annotations

import os
import platform
import re
import time
from collections.abc import Iterable
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")


def describe() -> str:
    """The machine in one line: processors, memory, kernel, Python, and how busy it was before."""
    model = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    return (
        f"{os.cpu_count()} x {model[1] if model else platform.machine()}, {memory:.0f} GiB, "
        f"Linux {platform.release()}, Python {platform.python_version()}; "
        f"load {os.getloadavg()[0]:.1f} at the start; {time.strftime('%Y-%m-%d %H:%M')}"
    )


def cpu_seconds(pid: int) -> float:
    """What a process has used of processors until now, its children left out."""
    # The name, in brackets, may hold anything.
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def resident_kib(pid: int) -> int:
    """What a process holds of memory now."""
    found = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1])


class Processors:
    """How much some processes use between two moments."""

    def __init__(self, pids: Iterable[int]) -> None:
        self._before = {pid: cpu_seconds(pid) for pid in pids}

    def used(self) -> float:
        """CPU seconds since it was made, of all of them."""
        return sum(cpu_seconds(pid) - before for pid, before in self._before.items())
