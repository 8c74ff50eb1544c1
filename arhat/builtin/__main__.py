"""A command of ours in a child process: ``tar``, ``tar-from N`` (from its Nth byte on), ``test``."""

from __future__ import annotations

import os
import resource
import signal
import sys
from collections.abc import Sequence

from arhat.builtin import archiving, unpacking
from arhat.builtin.options import Create, NotUnderstood, understood

#: A header may claim to be of any size; better this process fails than the device.
MEMORY = 512 * 1024 * 1024


class _From:
    """Passes on what is written, from the ``first`` byte (counted from 1) on."""

    def __init__(self, first: int, onward: archiving.Output) -> None:
        self._skip = max(0, first - 1)
        self._onward = onward

    def write(self, data: bytes, /) -> None:
        """Drop, or pass on."""
        skipped = min(self._skip, len(data))
        self._skip -= skipped
        self._onward.write(data[skipped:])


def main(arguments: Sequence[str]) -> int:
    """Run the command; its exit code."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    soft = MEMORY if hard == resource.RLIM_INFINITY else min(MEMORY, hard)
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    try:
        return _run(arguments)
    except MemoryError:
        complain("memory exhausted")
        return 2


def _run(arguments: Sequence[str]) -> int:
    match arguments:
        case ["test", "-d", path]:
            return 0 if os.path.isdir(path) else 1
        case ["tar", *options]:
            return _tar(options, sys.stdout.buffer)
        case ["tar-from", first, *options] if first.isdigit():
            return _tar(options, _From(int(first), sys.stdout.buffer))
        case _:
            complain("not understood")
            return 2


def _tar(options: Sequence[str], output: archiving.Output) -> int:
    try:
        asked = understood(options)
    except NotUnderstood as why:
        complain(str(why))
        return 2
    if isinstance(asked, Create):
        code = archiving.pack(asked, output, complain)
        sys.stdout.buffer.flush()
        return code
    return unpacking.unpack(asked, sys.stdin.buffer, complain)


def complain(text: str) -> None:
    """One line on stderr, as ``tar`` says it."""
    os.write(2, os.fsencode(f"tar: {text}\n"))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
