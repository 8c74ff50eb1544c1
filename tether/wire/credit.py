"""The arithmetic of credit, alone: when a grant is worth a frame.

Offsets are absolute, so a grant says "up to here", never "so much more": it may
be repeated, lost or overtaken without harm, and it doubles as acknowledgement.

When to grant
    Granting each byte at once costs a frame per frame; granting only when the
    window is used up stalls the peer for a round trip. So a grant is worth a
    frame when half the window can be given back, or when the peer stands still
    (it used up all it was granted) and a useful piece can be given back. HTTP/2
    stacks settled on about the same two thresholds. A third is for the peer's
    turn-taking: a stream that shares the link has no more than ``SHARED`` bytes on
    their way, so there an acknowledgement is due after every ``ACKNOWLEDGE`` bytes.
    Many tiny pieces are worth a frame too: the peer keeps each frame as an object until
    it is acknowledged, and stops when it keeps too many.
"""

from __future__ import annotations

#: How many bytes a stream may have on their way while others share the link: a keystroke waits for them.
SHARED = 128 * 1024
#: After so many bytes they are acknowledged; must be well below ``SHARED``, or both sides wait.
ACKNOWLEDGE = 64 * 1024
#: What is granted at once to a peer that stands still: less would be a trickle of tiny frames.
_USEFUL = 4096
#: After so many pieces, or frames, they are acknowledged, however small they were.
_PIECES = 128


class Ledger:
    """What one stream's peer was granted, what it used, and what was handed on."""

    __slots__ = ("delivered", "frames", "limit", "pieces", "received", "window")

    def __init__(self, window: int) -> None:
        self.window = window
        self.limit = window  # granted to the peer: it may send below this offset
        self.received = 0  # the next offset to arrive
        self.delivered = 0  # everything below was handed on
        self.pieces = 0  # how often something was handed on since the last grant
        self.frames = 0  # how many arrived since all was acknowledged

    def hand_on(self, count: int, shared: bool = False) -> bool:
        """``count`` more offsets were handed on; true when that is worth a frame."""
        self.delivered += count
        self.pieces += 1
        return self.is_due(shared)

    def is_due(self, shared: bool) -> bool:
        """Whether a grant is worth a frame now; ``shared``: other streams are on the link."""
        back = self.delivered + self.window - self.limit
        if 2 * back >= self.window or self.pieces >= _PIECES or (shared and back >= ACKNOWLEDGE):
            return True
        if self.frames >= _PIECES and self.delivered == self.received:
            # They may have been joined, and handed on as one piece.
            return True
        return self.received >= self.limit and back >= min(_USEFUL, self.window // 4)

    def grant(self) -> tuple[int, int]:
        """What to tell the peer now: ``delivered`` and ``limit``."""
        self.limit = max(self.limit, self.delivered + self.window)
        self.pieces = 0
        if self.delivered == self.received:
            self.frames = 0
        return self.delivered, self.limit
