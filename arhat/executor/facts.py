"""Tells the device's facts when the controller asks for them."""

from __future__ import annotations

from collections.abc import Callable

from arhat.executor.ending import Deaf
from tether.link.interfaces import Channel, Lane, Receiver
from tether.verbs.codec import encode_result
from tether.verbs.requests import AskFacts, DeviceFacts


class TellFacts:
    """A starter that answers at once with what ``gather`` finds."""

    def __init__(self, gather: Callable[[], DeviceFacts]) -> None:
        self._gather = gather

    def __call__(self, request: AskFacts, channel: Channel) -> Receiver:
        """Answer and end."""
        channel.write(encode_result(self._gather()), Lane.RESULT)
        channel.finish()
        return Deaf()
