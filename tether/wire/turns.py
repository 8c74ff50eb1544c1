"""Whose turn it is among the streams that have something to send.

A stream with little to say (a keystroke, an echo, an exit code) goes ahead of
bulk, so that it waits for at most the one chunk that is on its way. A stream
that had much to say lately does not count as one with little to say, or a copy
that is fed in small pieces would crowd out the shell beside it. Bulk streams
take turns, one chunk each. After ``_PATIENCE`` messages of little ones in a row
one chunk of bulk goes all the same: nothing starves.
"""

from __future__ import annotations

from collections import OrderedDict

#: As many bytes as a person or a prompt produces at once.
LITTLE = 4096
#: For how many messages a stream that sent bulk still counts as bulk.
_MEMORY = 16
#: How many messages of little ones may go while bulk waits.
_PATIENCE = 8


class Turns:
    """The order of the streams that can send; each is named by its id."""

    def __init__(self) -> None:
        self._little: OrderedDict[int, None] = OrderedDict()
        self._bulk: OrderedDict[int, None] = OrderedDict()
        self._bulk_until: dict[int, int] = {}
        self._messages = 0
        self._in_a_row = 0

    def ready(self, stream: int, queued: int) -> None:
        """``stream`` can send, and has ``queued`` bytes."""
        if queued > LITTLE:
            self._bulk_until[stream] = self._messages + _MEMORY
        elif self._bulk_until.get(stream, -1) < self._messages:
            self._bulk_until.pop(stream, None)
            if stream not in self._bulk:
                self._little[stream] = None
            return
        self._little.pop(stream, None)
        self._bulk[stream] = None

    def forget(self, stream: int) -> None:
        """``stream`` has ended, or cannot send."""
        self._little.pop(stream, None)
        self._bulk.pop(stream, None)
        self._bulk_until.pop(stream, None)

    def clear(self) -> None:
        """Forget all."""
        self._little.clear()
        self._bulk.clear()
        self._bulk_until.clear()

    def next(self) -> tuple[list[int], int | None]:
        """Who sends in the next message: all little ones, or else one bulk stream.

        Both are taken off the order; who has more to send says ``ready`` again.
        """
        self._messages += 1
        if self._little and (not self._bulk or self._in_a_row < _PATIENCE):
            self._in_a_row = self._in_a_row + 1 if self._bulk else 0
            little = list(self._little)
            self._little.clear()
            return little, None
        self._in_a_row = 0
        if self._bulk:
            return [], self._bulk.popitem(last=False)[0]
        return [], None
