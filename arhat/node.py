"""What the device says about itself: facts for people and for the Node object.

Nothing here is an identity. Each fact is read where the kernel or the
distribution keeps it; a fact that cannot be read is left empty.
"""

from __future__ import annotations

import os
import platform
import socket
import time
from collections.abc import Mapping
from pathlib import Path

from tether.verbs.requests import DeviceFacts, ForwardRule

#: ``uname -m`` in Go's words, as Kubernetes writes architectures.
_ARCHITECTURES = {
    "x86_64": "amd64",
    "i686": "386",
    "i386": "386",
    "aarch64": "arm64",
    "armv8l": "arm",
    "armv7l": "arm",
    "armv6l": "arm",
}


def gather(
    allow: frozenset[str],
    forward: tuple[ForwardRule, ...],
    labels: Mapping[str, str],
    root: Path = Path("/"),
) -> DeviceFacts:
    """Read the facts of the host below ``root``, with what the owner's policy adds."""
    kernel = platform.uname()
    return DeviceFacts(
        os=kernel.system.lower(),
        arch=_ARCHITECTURES.get(kernel.machine, kernel.machine),
        kernel=kernel.release,
        os_image=_os_image(root),
        hostname=socket.gethostname(),
        machine_id=_line(root / "etc/machine-id"),
        boot_id=boot_id(root),
        cpus=os.cpu_count() or 0,
        memory_bytes=os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        storage_bytes=_storage(root),
        allow=allow,
        forward=forward,
        labels=dict(labels),
        clock_unix_nanos=time.time_ns(),
    )


def boot_id(root: Path = Path("/")) -> str:
    """The kernel's id of this boot: one per running host, however many agents it has."""
    return _line(root / "proc/sys/kernel/random/boot_id")


def _line(path: Path) -> str:
    try:
        return path.read_text("utf-8", "replace").strip()
    except OSError:
        return ""


def _os_image(root: Path) -> str:
    for name in ("etc/os-release", "usr/lib/os-release"):
        for line in _line(root / name).splitlines():
            key, _, value = line.partition("=")
            if key == "PRETTY_NAME":
                return value.strip("\"'")
    return ""


def _storage(root: Path) -> int:
    try:
        status = os.statvfs(root)
    except OSError:
        return 0
    return status.f_blocks * status.f_frsize
