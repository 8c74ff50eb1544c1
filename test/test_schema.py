"""The generated schema is what ``proto/`` says."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

ROOT = Path(__file__).resolve().parent.parent


class SchemaTests(SynchronousTestCase):
    """``proto/generate`` and what is committed."""

    if importlib.util.find_spec("grpc_tools") is None:
        skip = "grpc_tools is not installed"

    def test_generated(self) -> None:
        """Generating anew changes nothing."""
        fresh = Path(self.mktemp())
        fresh.mkdir()
        subprocess.run(
            [ROOT / "proto" / "generate", fresh.resolve()],
            env={**os.environ, "PYTHON": sys.executable},
            check=True,
            timeout=60,
        )
        for name in ("tether_pb2.py", "tether_pb2.pyi"):
            committed = (ROOT / "tether" / "schema" / name).read_text()
            self.assertEqual((fresh / name).read_text(), committed, f"run proto/generate: {name} is stale")
