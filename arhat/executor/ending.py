"""What every executor does at its ends: pauses passed on, a result, silence after it."""

from __future__ import annotations

import os
import select
from collections.abc import Callable

from twisted.internet.error import ProcessTerminated
from twisted.internet.interfaces import IPushProducer
from twisted.python.failure import Failure
from zope.interface import implementer

from tether.errors import Reason
from tether.link.interfaces import Channel, Lane
from tether.verbs.codec import encode_result
from tether.verbs.requests import Exited, Killed, Result

#: The largest piece of output that is passed on at once.
PIECE = 64 * 1024

#: Shorter reads are someone's typing, and nothing waits behind them.
_WORTH_IT = 2048


@implementer(IPushProducer)
class Valve:
    """Somebody's pause and resume as a push producer.

    To be stopped means only that the other side needs no more: a child may
    close its stdin and still have much to say.
    """

    def __init__(self, pause: Callable[[], object], resume: Callable[[], object]) -> None:
        self._pause = pause
        self._resume = resume

    def pauseProducing(self) -> None:
        """Pass the pause on."""
        self._pause()

    def resumeProducing(self) -> None:
        """Pass the resumption on."""
        self._resume()

    def stopProducing(self) -> None:
        """Let what still comes flow into nothing."""
        self._resume()


class Deaf:
    """A receiver for channels on which there is nothing left to hear."""

    def data_received(self, lane: Lane, data: bytes) -> None:
        """Let it go."""

    def finished(self) -> None:
        """So be it."""

    def reset(self, reason: Reason) -> None:
        """So be it."""

    def closed(self) -> None:
        """So be it."""


def result_of(reason: Failure) -> Result:
    """How a process ended, from what its protocol was told."""
    why = reason.value
    if not isinstance(why, ProcessTerminated):
        return Exited(0)
    if why.signal is not None:
        return Killed(why.signal)
    return Exited(why.exitCode or 0)


def readable(descriptor: int) -> bool:
    """Whether a read would give something now: data, or the end."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(0))


def with_more(data: bytes, descriptor: int) -> bytes:
    """``data`` and what else its non-blocking ``descriptor`` gives now, up to ``PIECE`` bytes.

    Twisted reads 8 KiB at a time; each piece costs a frame and a message on its
    way. An end or an error met here is met again by Twisted's next read.
    """
    if len(data) < _WORTH_IT:
        return data
    pieces, room = [data], PIECE - len(data)
    while room > 0:
        try:
            piece = os.read(descriptor, room)
        except OSError:
            break
        if not piece:
            break
        pieces.append(piece)
        room -= len(piece)
    return b"".join(pieces)


def conclude(channel: Channel, result: Result) -> None:
    """Say the result, after all output, and finish; what still comes in is let through."""
    channel.unregisterProducer()
    channel.write(encode_result(result), Lane.RESULT)
    channel.finish()
    channel.resumeProducing()


def cannot_start(channel: Channel, code: int, text: str, lane: Lane | None) -> Deaf:
    """Answer for a process that never ran: a line, if there is a lane for it, and an exit code."""
    if lane is not None:
        channel.write(text.encode() + (b"\r\n" if lane is Lane.MAIN else b"\n"), lane)
    conclude(channel, Exited(code))
    return Deaf()
