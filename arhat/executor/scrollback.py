"""What a terminal showed lately, bounded, to be shown again to who comes later."""

from __future__ import annotations

import re

#: Questions to the terminal. Shown again, they would be answered again, and the
#: answer would arrive as if it were typed: attributes, cursor position, colours, settings.
_QUESTIONS = re.compile(
    rb"\x1b\[[0-9;?>=]*[cn]"
    rb"|\x1b\[[0-9;?>=]*\$p"
    rb"|\x1b\[>[0-9;]*q"
    rb"|\x1bP[$+]q[^\x1b]*\x1b\\"
    rb"|\x1b\][0-9;]*\?(?:\x07|\x1b\\)"
    rb"|\x05"
)


class Scrollback:
    """The last ``limit`` bytes or so."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._content = bytearray()
        self._cut = False

    def add(self, data: bytes) -> None:
        """Remember ``data`` and forget what is too old."""
        self._content += data
        # Not at every byte: what is left moves each time.
        if len(self._content) > 2 * self._limit:
            del self._content[: -self._limit]
            self._cut = True

    def clear(self) -> None:
        """Forget everything."""
        self._content.clear()
        self._cut = False

    def replay(self) -> bytes:
        """What to show; it begins at the start of a line when older output was forgotten."""
        content = bytes(self._content[-self._limit :])
        if self._cut or len(self._content) > self._limit:
            content = content[content.find(b"\n") + 1 :]
        return _QUESTIONS.sub(b"", content)
