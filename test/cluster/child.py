"""
One program of a control plane: a child process with a log, and the ports that such children listen on.

Every child asks the kernel to be killed with the thread that started it.
"""

from __future__ import annotations

import os
import random
import socket
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

_LOOPBACK = "127.0.0.1"


class PlaneError(Exception):
    """A part of the control plane did not do what it must; the text ends with its log."""


class Child:
    """One program of the plane: started, watched, killed; it may start again."""

    def __init__(self, name: str, words: Sequence[str], log: Path, folder: Path) -> None:
        self._name = name
        self._words = words
        self._log = log
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """Its process id; it has one once it was started."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start it, its output added to the log."""
        if self.is_alive():
            raise PlaneError(f"{self._name} runs already")
        with open(self._log, "ab") as log:
            self._process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", "--", *self._words],
                cwd=self._folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=_environment(),
                # Ctrl-C is for whoever started the plane, who then stops it in order.
                start_new_session=True,
            )

    def is_alive(self) -> bool:
        """Say whether it runs."""
        return self._process is not None and self._process.poll() is None

    def check(self) -> None:
        """Raise ``PlaneError`` if it has ended by itself."""
        if self._process is not None and self._process.poll() is not None:
            raise PlaneError(f"{self._name} ended with {self._process.returncode}\n{self.tail()}")

    def kill(self) -> None:
        """Kill it and wait until it is gone."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def tail(self, lines: int = 12) -> str:
        """Give the last lines of its log, under its name."""
        try:
            text = self._log.read_text("utf-8", "replace")
        except FileNotFoundError:
            text = ""
        return "\n".join([f"--- {self._name}", *text.splitlines()[-lines:]])


def _environment() -> dict[str, str]:
    """Give a child what it needs and no proxy, which Go would use for an address off loopback."""
    # GOGC: a boot is mostly garbage of generated schemas; memory for a second is cheap.
    return {"PATH": os.environ.get("PATH", os.defpath), "HOME": "/nonexistent", "TZ": "UTC", "GOGC": "400"}


def free_ports(count: int, address: str) -> list[int]:
    """
    Pick ports that nobody listens on.

    They lie below the range from which the kernel takes ports for outgoing connections: a port of
    that range may be gone before the child listens or when it comes back, and a client that dials it
    meanwhile can even connect to itself.
    """
    ports = list(_listenable(range(20000, 29000), {_LOOPBACK, address}, count))
    if len(ports) < count:
        raise PlaneError(f"no free ports on {address}: is it an address of this machine?")
    return ports


def _listenable(ports: range, addresses: Iterable[str], count: int) -> Iterator[int]:
    for port in random.sample(ports, 200):
        if count and all(_can_listen(address, port) for address in addresses):
            count -= 1
            yield port


def _can_listen(address: str, port: int) -> bool:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError:
            return False
    return True
