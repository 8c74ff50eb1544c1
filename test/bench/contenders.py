"""
Who is measured: ways to run a command on "the device" and to reach a port of it.

- ``aranya``: the newest kubectl of the machine as it is, through a real API server, aranya and arhat;
- ``aranya, SPDY``: the same kubectl told not to use WebSocket;
- ``floor``: kubectl and API server as before, and behind them a process that answers at once: nothing of
  ours can be faster;
- ``ssh``: OpenSSH on loopback.
"""

from __future__ import annotations

import contextlib
import re
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from test.bench.child import DIES_WITH_US
from test.bench.openssh import OpenSSH
from test.cluster.daemons import free_port, wait_until
from test.cluster.kubectl import Kubectl

#: Commands that the floor knows, too.
TRUE = ("true",)
READ = "cat"
WRITE = ("sh", "-c", "echo ready; cat >/dev/null; echo done")
ECHO = ("sh", "-c", "stty raw -echo; echo ready; exec cat")

NO_WEBSOCKET = {"KUBECTL_REMOTE_COMMAND_WEBSOCKETS": "false", "KUBECTL_PORT_FORWARD_WEBSOCKETS": "false"}


class Contender(Protocol):
    """One way to the device."""

    @property
    def environment(self) -> Mapping[str, str]:
        """The environment of what is started."""
        ...

    def command(self, argv: Sequence[str], *, stdin: bool = False, tty: bool = False) -> list[str]:
        """The words that run ``argv`` on the device."""
        ...

    def forward(self, port: int) -> contextlib.AbstractContextManager[int]:
        """A local port that leads to ``port`` of the device."""
        ...


@dataclass(frozen=True, slots=True)
class ByKubectl:
    """A pod, reached by kubectl."""

    kubectl: Kubectl
    pod: str
    more: Mapping[str, str]

    @property
    def environment(self) -> Mapping[str, str]:
        """kubectl's."""
        return self.kubectl.environment(self.more)

    def command(self, argv: Sequence[str], *, stdin: bool = False, tty: bool = False) -> list[str]:
        """``kubectl exec``."""
        flags = ["-it"] if tty else ["-i"] if stdin else []
        return self.kubectl.command("exec", *flags, self.pod, "--", *argv)

    @contextlib.contextmanager
    def forward(self, port: int) -> Iterator[int]:
        """``kubectl port-forward``."""
        process = self.kubectl.start("port-forward", self.pod, f":{port}", env=self.more)
        assert process.stdout is not None and process.stderr is not None
        try:
            line = process.stdout.readline().decode()
            found = re.search(r":(\d+) ->", line)
            if found is None:
                raise RuntimeError(f"kubectl port-forward: {line}{process.stderr.read().decode()}")
            # It tells of each connection, and stands still when nobody reads that.
            reader = threading.Thread(target=process.stdout.readlines, daemon=True)
            reader.start()
            yield int(found[1])
        finally:
            process.kill()
            process.wait()


@dataclass(frozen=True, slots=True)
class BySsh:
    """This machine, reached by ssh."""

    openssh: OpenSSH

    @property
    def environment(self) -> Mapping[str, str]:
        """Nearly nothing."""
        return self.openssh.environment

    def command(self, argv: Sequence[str], *, stdin: bool = False, tty: bool = False) -> list[str]:
        """``ssh``, connecting anew."""
        # ssh joins its words with spaces and hands them to a shell.
        words = list(argv) if argv[0] != "sh" else [f"sh -c '{argv[2]}'"]
        return self.openssh.client(*(["-tt"] if tty else []), words=words, stdin=stdin or tty)

    @contextlib.contextmanager
    def forward(self, port: int) -> Iterator[int]:
        """``ssh -L``."""
        local = free_port()
        words = self.openssh.client("-N", "-L", f"127.0.0.1:{local}:127.0.0.1:{port}")
        process = subprocess.Popen([*DIES_WITH_US, *words], env=dict(self.environment))
        try:
            wait_until("ssh -L listens", lambda: _listens(local), 15)
            yield local
        finally:
            process.kill()
            process.wait()


def _listens(port: int) -> bool:
    # Not by connecting: that would be one connection through the tunnel.
    mark = f" 0100007F:{port:04X} 00000000:0000 0A "
    with open("/proc/net/tcp") as sockets:
        return mark in sockets.read()
