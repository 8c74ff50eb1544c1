"""One direction of a session: whoever supplies bytes, as a producer that can be slowed down."""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.interfaces import IPushProducer
from zope.interface import implementer


@implementer(IPushProducer)
class Source:
    """The two calls that pause and resume a supplier, in the shape a consumer wants.

    Remembers whether it is held back, and tells the supplier of changes only.
    """

    def __init__(self, pause: Callable[[], None], resume: Callable[[], None]) -> None:
        self._pause = pause
        self._resume = resume
        self.held = False

    def pauseProducing(self) -> None:
        """The consumer is full."""
        if not self.held:
            self.held = True
            self._pause()

    def resumeProducing(self) -> None:
        """The consumer takes more."""
        if self.held:
            self.held = False
            self._resume()

    def stopProducing(self) -> None:
        """The consumer is gone; its owner hears of that by another way."""
        self.pauseProducing()
