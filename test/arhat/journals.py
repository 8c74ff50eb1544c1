"""Real journals for tests, made by ``systemd-journal-remote`` and read by ``journalctl``."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path

from twisted.trial.unittest import SkipTest

#: Two boots, in the order in which they happened.
EARLIER_BOOT = "0" * 31 + "1"
LATER_BOOT = "0" * 31 + "2"


def journal_maker() -> str:
    """The program that makes journals; without it tests are skipped, but not on a build machine."""
    for found in (
        shutil.which("systemd-journal-remote"),
        "/lib/systemd/systemd-journal-remote",
        "/usr/lib/systemd/systemd-journal-remote",
    ):
        if found and os.path.exists(found) and shutil.which("journalctl"):
            return found
    if os.environ.get("CI"):
        raise AssertionError("journalctl and systemd-journal-remote must be there on a build machine")
    raise SkipTest("no journalctl or systemd-journal-remote (Debian: systemd, systemd-journal-remote)")


def entry(time: int, message: bytes, boot: str = LATER_BOOT, **fields: str) -> dict[str, bytes]:
    """An entry at ``time`` (microseconds) of a program ``app[7]`` on ``device``."""
    named = {
        "__REALTIME_TIMESTAMP": str(time),
        "__MONOTONIC_TIMESTAMP": str(time % 10**9),
        "_BOOT_ID": boot,
        "_HOSTNAME": "device",
        "SYSLOG_IDENTIFIER": "app",
        "_PID": "7",
        "_TRANSPORT": "journal",
        "PRIORITY": "6",
        **fields,
    }
    return {**{name: value.encode() for name, value in named.items()}, "MESSAGE": message}


def write_journal(file: Path, entries: Iterable[Mapping[str, bytes]]) -> None:
    """Make the journal ``file`` of these entries."""
    exported = b"".join(_exported(fields) for fields in entries)
    subprocess.run(
        [journal_maker(), f"--output={file}", "-"],
        input=exported,
        check=True,
        capture_output=True,
        timeout=60,
    )


def _exported(fields: Mapping[str, bytes]) -> bytes:
    return b"".join(_field(name.encode(), value) for name, value in fields.items()) + b"\n"


def _field(name: bytes, value: bytes) -> bytes:
    if b"\n" in value or not value.isascii():
        return name + b"\n" + struct.pack("<Q", len(value)) + value + b"\n"
    return name + b"=" + value + b"\n"
