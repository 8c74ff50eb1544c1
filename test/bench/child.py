"""A Python module of this package as a process that tells a port and lives as long as it is needed."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from test.cluster.daemons import ROOT

DIES_WITH_US = ("setpriv", "--pdeathsig", "KILL", "--")


@contextlib.contextmanager
def running(module: str, words: Sequence[str], log: Path) -> Iterator[tuple[Any, subprocess.Popen[bytes]]]:
    """Run the module; gives what it printed as its first line (JSON) and the process, killed at the end."""
    with open(log, "ab") as errors:
        process = subprocess.Popen(
            [*DIES_WITH_US, sys.executable, "-m", module, *words],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            env={"PATH": os.environ.get("PATH", os.defpath), "HOME": "/nonexistent"},
            start_new_session=True,
        )
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        if not line:
            raise RuntimeError(f"{module} ended: {log.read_text()[-2000:]}")
        yield json.loads(line), process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
