"""The lanes of a stream: which bytes may be split and merged on the way, and which may not."""

from __future__ import annotations

from enum import IntEnum


class Lane(IntEnum):
    """What a piece of a stream is; lanes share one offset and one credit.

    ``MAIN`` and ``ERROR`` are bytes and may be split and merged on the way.
    The others are records: one write arrives as one delivery.
    """

    MAIN = 0  # stdin towards the device; stdout, log or TCP bytes from it
    ERROR = 1  # stderr
    RESIZE = 2  # a Size, towards the device
    RESULT = 3  # a Result; the last record before the answering side's finish
    STDIN_END = 4  # one byte, ignored: stdin ended, while resizes may still follow


#: Lanes whose writes are delivered whole.
RECORD_LANES = frozenset({Lane.RESIZE, Lane.RESULT, Lane.STDIN_END})

#: The most bytes one record may have.
RECORD_LIMIT = 32 * 1024
