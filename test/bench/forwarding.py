"""Small requests through forwarded connections: how many, how fast, and how fast new ones are made."""

from __future__ import annotations

import contextlib
import functools
import selectors
import socket
import time

from test.bench.cluster import Ground
from test.bench.report import ARANYA, FLOOR, SPDY, SSH, Goal, Report, Row, in_turns, median, percentile

STAGE = "Small requests through a forwarded port"
_REQUEST = b"E" + bytes(127)
_PATIENCE = 20.0


def measure(ground: Ground, report: Report, seconds: float, rounds: int) -> None:
    """Echo with 1, 16 and 64 connections, then a new connection for each echo."""
    names = (ARANYA, SPDY, SSH, FLOOR)
    with contextlib.ExitStack() as opened:
        ports = {
            name: opened.enter_context(contender.forward(ground.target))
            for name, contender in ground.only(*names).items()
        }
        for count in (1, 16, 64):
            latencies: dict[str, list[float]] = {name: [] for name in ports}
            measures = {
                name: functools.partial(_echo_rate, port, count, seconds, latencies[name])
                for name, port in ports.items()
            }
            found = in_turns(measures, rounds, median)
            goals = [Goal(SPDY, at_least=0.6, against=FLOOR)] if count < 64 else []
            what = f"echo of 128 bytes, {count} connection{'s' if count > 1 else ''}"
            report.add(STAGE, Row(what, "/s", found, goals))
            for percent in (50, 99):
                values = {name: percentile(taken, percent) * 1000 for name, taken in latencies.items()}
                report.add(STAGE, Row(f"… p{percent}", "ms", values))
        measures = {name: functools.partial(_new_rate, port, seconds) for name, port in ports.items()}
        found = in_turns(measures, rounds, median)
        goal = Goal(SPDY, at_least=0.6, against=FLOOR)
        report.add(STAGE, Row("new connection and one echo", "/s", found, [goal]))


def _echo_rate(port: int, count: int, seconds: float, latencies: list[float]) -> float:
    """Echoes a second, each connection asking again as soon as it was answered."""
    with contextlib.ExitStack() as opened:
        waiting = opened.enter_context(selectors.DefaultSelector())
        wires = [
            opened.enter_context(socket.create_connection(("127.0.0.1", port), _PATIENCE))
            for _ in range(count)
        ]
        for wire in wires:
            wire.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            wire.sendall(_REQUEST)
            _receive(wire)
            waiting.register(wire, selectors.EVENT_READ, wire)
        asked = dict.fromkeys(wires, 0.0)
        parts = dict.fromkeys(wires, 0)
        began = time.perf_counter()
        for wire in wires:
            asked[wire] = time.perf_counter()
            wire.sendall(_REQUEST)
        done = 0
        end = began + seconds
        while (now := time.perf_counter()) < end:
            ready = waiting.select(_PATIENCE)
            if not ready:
                raise RuntimeError(f"no answer within {_PATIENCE:.0f} s")
            for key, _ in ready:
                wire = key.data
                data = wire.recv(4096)
                if not data:
                    raise RuntimeError("a forwarded connection ended")
                parts[wire] += len(data)
                if parts[wire] < len(_REQUEST):
                    continue
                now = time.perf_counter()
                latencies.append(now - asked[wire])
                done += 1
                parts[wire] = 0
                asked[wire] = now
                wire.sendall(_REQUEST)
        return done / (now - began)


def _new_rate(port: int, seconds: float) -> float:
    """Connections a second, one after another."""
    began = time.perf_counter()
    done = 0
    while (now := time.perf_counter()) < began + seconds:
        with socket.create_connection(("127.0.0.1", port), _PATIENCE) as wire:
            wire.sendall(_REQUEST)
            _receive(wire)
        done += 1
    return done / (now - began)


def _receive(wire: socket.socket) -> None:
    got = 0
    while got < len(_REQUEST):
        data = wire.recv(4096)
        if not data:
            raise RuntimeError("a forwarded connection ended")
        got += len(data)
