"""What runs instead of a command that the device lacks: Python, with the agent's own version of it.

Replaced is only what is understood in full: ``test -d``, the ``tar`` command
lines of ``options``, and kubectl's way to resume a download,
``sh -c 'tar cf - PATH | tail -c+N'``. All else stays "not found".
The child is an ordinary command under the configured account.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

from arhat.builtin.options import Create, NotUnderstood, understood

#: Finds this package wherever the agent runs from, without letting its folder hide the standard library.
_START = (
    "import sys; sys.path.append({root!r}); "
    "from arhat.builtin.__main__ import main; sys.exit(main(sys.argv[1:]))"
)

#: Kubectl does not quote; what a shell would not take as plain words is left to a shell.
_RESUMED = re.compile(r"tar cf - ([^\\'\"`$&|;<>()*?\[\]{}~#!\n]+) \| tail -c\+(\d{1,19})")


def builtins(argv: tuple[bytes, ...], present: Callable[[bytes], bool]) -> tuple[bytes, ...] | None:
    """The argv to run instead of ``argv``, if the device lacks it and this package has it (``Builtins``)."""
    words = _replacement([os.fsdecode(argument) for argument in argv], present)
    if words is None:
        return None
    root = str(Path(__file__).resolve().parent.parent.parent)
    python = (sys.executable, "-I", "-S", "-X", "utf8", "-c", _START.format(root=root))
    return tuple(os.fsencode(word) for word in (*python, *words))


def _replacement(words: list[str], present: Callable[[bytes], bool]) -> list[str] | None:
    match words:
        case ["test", "-d", _] if not present(b"test"):
            return words
        case ["tar", *arguments] if not present(b"tar"):
            try:
                understood(arguments)
            except NotUnderstood:
                return None
            return words
        case ["sh", "-c", script] if (found := _RESUMED.fullmatch(script.strip())) and not present(b"tar"):
            arguments = ["cf", "-", *found[1].split()]
            try:
                is_packing = isinstance(understood(arguments), Create)
            except NotUnderstood:
                is_packing = False
            return ["tar-from", found[2], *arguments] if is_packing else None
    return None
