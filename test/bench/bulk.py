"""How fast many bytes go, and what the daemons burn for them."""

from __future__ import annotations

import contextlib
import functools
import socket
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

from test.bench.child import DIES_WITH_US
from test.bench.cluster import Ground
from test.bench.contenders import READ, WRITE, Contender
from test.bench.machine import Processors
from test.bench.report import ARANYA, FLOOR, SPDY, SSH, Goal, Report, Row, in_turns, median
from test.bench.target import LENGTH

STAGE = "Bytes"
Whom = TypeVar("Whom", Contender, int)
_MB = 1e6
_GB = 1e9
_CHUNK = 256 * 1024
_LIMIT = 300.0


def measure(ground: Ground, report: Report, size: int, rounds: int) -> None:
    """Down and up through exec and port-forward; rates of bytes on their way, connecting left out."""
    big = ground.folder / "big"
    size = fill(big, size)
    exec_goals = (Goal(SPDY, at_least=0.6, against=FLOOR), Goal(SPDY, at_least=0.7, against=SSH))
    for what, way in (("exec down", functools.partial(down, str(big))), ("exec up", up)):
        burnt: dict[str, list[float]] = {}
        measures = {
            name: functools.partial(counted, way, contender, size, burnt.setdefault(name, []), ground.daemons)
            for name, contender in ground.contenders.items()
        }
        report.add(STAGE, Row(what, "MB/s", in_turns(measures, rounds, median), exec_goals))
        _add_burnt(report, what, burnt)
    big.unlink()

    names = (ARANYA, SPDY, SSH, FLOOR)
    with contextlib.ExitStack() as opened:
        ports = {
            name: opened.enter_context(contender.forward(ground.target))
            for name, contender in ground.only(*names).items()
        }
        for what, carry in (("port-forward down", _carry_down), ("port-forward up", _carry_up)):
            burnt = {}
            measures = {
                name: functools.partial(
                    counted, carry, port, size, burnt.setdefault(name, []), ground.daemons
                )
                for name, port in ports.items()
            }
            goals = (Goal(SPDY, at_least=0.6, against=FLOOR), Goal(SPDY, at_least=0.7, against=SSH))
            report.add(STAGE, Row(what, "MB/s", in_turns(measures, rounds, median), goals))
            _add_burnt(report, what, burnt)


def fill(path: Path, size: int) -> int:
    """Make a file of about so many random bytes; how many there are."""
    with open("/dev/urandom", "rb") as source, open(path, "wb") as file:
        for _ in range(size // _CHUNK):
            file.write(source.read(_CHUNK))
    return path.stat().st_size


def _add_burnt(report: Report, what: str, burnt: dict[str, list[float]]) -> None:
    values = {name: median(found) for name, found in burnt.items() if name in (ARANYA, SPDY)}
    goals = [Goal(name, at_most=4) for name in values]
    report.add(STAGE, Row(f"{what}: CPU of aranya + arhat", "s per GB", values, goals))


def counted(
    way: Callable[[Whom, int], float], whom: Whom, size: int, burnt: list[float], daemons: Iterable[int]
) -> float:
    """The rate of a transfer; what these processes used for each GB is added to ``burnt``."""
    processors = Processors(daemons)
    rate = way(whom, size)
    burnt.append(processors.used() / (size / _GB))
    return rate


@contextlib.contextmanager
def _started(contender: Contender, words: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        [*DIES_WITH_US, *words],
        env=dict(contender.environment),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        bufsize=0,
    )
    try:
        yield process
        if process.wait(30):
            raise RuntimeError(f"{' '.join(words[:3])} … ended with {process.returncode}")
    finally:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()


def down(path: str, contender: Contender, size: int) -> float:
    """From the first bytes to the last, on our end of the pipe."""
    with _started(contender, contender.command([READ, path])) as process:
        assert process.stdout is not None
        first = len(process.stdout.read(_CHUNK) or b"")
        began, got = time.perf_counter(), first
        while data := process.stdout.read(_CHUNK):
            got += len(data)
        took = time.perf_counter() - began
        if got != size:
            raise RuntimeError(f"{got} bytes of {size} came")
        return (got - first) / took / _MB


def up(contender: Contender, size: int) -> float:
    """From our first byte until the device says that it has read the last."""
    zeros = memoryview(bytes(_CHUNK))
    with _started(contender, contender.command(WRITE, stdin=True)) as process:
        assert process.stdin is not None and process.stdout is not None
        if b"ready" not in (process.stdout.read(64) or b""):
            raise RuntimeError("the command did not start")
        began = time.perf_counter()
        left = size
        while left:
            left -= process.stdin.write(zeros[:left]) or 0
        process.stdin.close()
        said = b""
        while b"done" not in said:
            data = process.stdout.read(64)
            if not data:
                raise RuntimeError("the command ended too early")
            said += data
        return size / (time.perf_counter() - began) / _MB


def _carry_down(port: int, size: int) -> float:
    with socket.create_connection(("127.0.0.1", port), _LIMIT) as wire:
        wire.sendall(b"D" + LENGTH.pack(size))
        buffer = bytearray(_CHUNK)
        first = wire.recv_into(buffer)
        began, got = time.perf_counter(), first
        while got < size:
            count = wire.recv_into(buffer)
            if not count:
                raise RuntimeError(f"{got} bytes of {size} came")
            got += count
        return (got - first) / (time.perf_counter() - began) / _MB


def _carry_up(port: int, size: int) -> float:
    zeros = memoryview(bytes(_CHUNK))
    with socket.create_connection(("127.0.0.1", port), _LIMIT) as wire:
        wire.sendall(b"U" + LENGTH.pack(size))
        began, left = time.perf_counter(), size
        while left:
            left -= wire.send(zeros[:left])
        if wire.recv(1) != b"k":
            raise RuntimeError("the connection ended before all bytes were taken")
        return size / (time.perf_counter() - began) / _MB


@contextlib.contextmanager
def copying(contender: Contender, path: str) -> Iterator[subprocess.Popen[bytes]]:
    """A copy from the device that goes on until the end of the block."""
    process = subprocess.Popen(
        [*DIES_WITH_US, *contender.command([READ, path])],
        env=dict(contender.environment),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
