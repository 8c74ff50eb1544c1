"""
Runs a real kubectl, away from the home folder and the proxies of whoever runs the tests.

The kubeconfig travels in ``KUBECONFIG``, not as a flag: kubectl allows no flag before the name of a
plugin. For a plugin in another namespace use a kubeconfig whose context names it.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_STRANGERS = ("http_proxy", "https_proxy", "all_proxy", "no_proxy", "kubectl_", "kuberc")


@dataclass(frozen=True, slots=True)
class Completed:
    """How a command ended and what it said."""

    code: int
    out: bytes
    err: bytes


@dataclass(frozen=True, slots=True)
class Kubectl:
    """
    One kubectl program and one identity to use it with.

    All calls block: where the daemon under test lives on the same reactor, call them from a thread.
    """

    binary: Path
    kubeconfig: Path
    namespace: str | None = None

    def command(self, *arguments: str) -> list[str]:
        """Give the words to run, for those who spawn it themselves (on a terminal, say)."""
        namespace = [] if self.namespace is None else [f"--namespace={self.namespace}"]
        return [str(self.binary), *namespace, *arguments]

    def environment(self, extra: Mapping[str, str] | None = None) -> dict[str, str]:
        """Give the environment that belongs to `command`."""
        kept = {k: v for k, v in os.environ.items() if not k.lower().startswith(_STRANGERS)}
        # Its discovery cache is keyed by host and port, and ports come again with another cluster.
        home = self.kubeconfig.parent / "kubectl-home"
        home.mkdir(exist_ok=True)
        own = {"KUBECONFIG": str(self.kubeconfig), "HOME": str(home)}
        return {**kept, **own, **(extra or {})}

    def run(
        self,
        *arguments: str,
        input: bytes | None = None,
        timeout: float = 60,
        env: Mapping[str, str] | None = None,
    ) -> Completed:
        """Run to the end; ``subprocess.TimeoutExpired``, with what it had said, past the timeout."""
        done = subprocess.run(
            self.command(*arguments),
            env=self.environment(env),
            stdin=subprocess.DEVNULL if input is None else None,
            input=input,
            capture_output=True,
            timeout=timeout,
            check=False,
        )
        return Completed(done.returncode, done.stdout, done.stderr)

    def start(self, *arguments: str, env: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
        """Start it with three pipes; it dies with the thread that started it, at the latest."""
        return subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", "--", *self.command(*arguments)],
            env=self.environment(env),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
