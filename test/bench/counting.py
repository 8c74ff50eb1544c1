"""A counter that a command on the device prints, and when its numbers came out of the client."""

from __future__ import annotations

import contextlib
import itertools
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

from test.bench.child import DIES_WITH_US
from test.bench.contenders import Contender

#: Seconds between two numbers.
TICK = 0.005
#: A number, and when it was printed: one clock serves the whole machine.
_COUNTER = f"""\
import itertools, time
for number in itertools.count():
    print(number, time.monotonic(), flush=True)
    time.sleep({TICK})
"""
_PATIENCE = 30.0
#: What came so long before a cut is of no interest to it.
_BEFORE = 0.2


class Counting:
    """One client whose command counts; made by ``counting``."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self._news = threading.Condition()
        #: When what was printed when came, the lately arrived ones.
        self._came: list[tuple[float, float]] = []
        self._trouble = ""
        self._reading = threading.Thread(target=self._read, daemon=True)
        self._reading.start()

    def begun(self, seconds: float) -> None:
        """Wait for the first number."""
        with self._news:
            self._wait_for(lambda: True, seconds)

    def gap(self, cut: float, seconds: float) -> float:
        """
        The longest time without a number about the moment ``cut``.

        It is over when one has come that was printed after it, which must be within so many seconds.
        """
        with self._news:
            self._wait_for(lambda: self._came[-1][1] > cut, seconds)
            arrivals = [arrival for arrival, _ in self._came if arrival > cut - _BEFORE]
            first = next(arrival for arrival, printed in self._came if printed > cut)
            self._came.clear()
        pairs = itertools.pairwise(arrivals)
        return max(later - earlier for earlier, later in pairs if later <= first)

    def _wait_for(self, condition: Callable[[], bool], seconds: float) -> None:
        if not self._news.wait_for(lambda: self._trouble or (self._came and condition()), seconds):
            raise RuntimeError(f"no number came within {seconds:.0f} s")
        if self._trouble:
            raise RuntimeError(self._trouble)

    def _read(self) -> None:
        pipe = self._process.stdout
        assert pipe is not None
        for expected in itertools.count():
            line = pipe.readline()
            arrival = time.monotonic()
            with self._news:
                try:
                    number, printed = line.split()
                    self._came.append((arrival, float(printed)))
                    if int(number) != expected:
                        self._trouble = f"number {int(number)} came, {expected} was expected"
                except ValueError:
                    self._trouble = f"the counter ended with {line!r}"
                self._news.notify_all()
                if self._trouble:
                    return


@contextlib.contextmanager
def counting(contender: Contender) -> Iterator[Counting]:
    """Let the device count until the end of the block; numbers come when this returns."""
    process = subprocess.Popen(
        [*DIES_WITH_US, *contender.command([sys.executable, "-c", _COUNTER])],
        env=dict(contender.environment),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        session = Counting(process)
        session.begun(_PATIENCE)
        yield session
    finally:
        process.kill()
        process.communicate()
