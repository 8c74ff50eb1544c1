"""Ask one question, get one answer, over one channel; giving up is a reset."""

from __future__ import annotations

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime

from tether.errors import LinkLost, Reason, RemoteViolation, ResetCode, StreamReset
from tether.link.interfaces import Lane, Link
from tether.verbs.codec import decode_result
from tether.verbs.requests import Request, Result

_CANCELLED = Reason(ResetCode.CANCELLED, "the one who asked went away")


async def ask(link: Link, request: Request, clock: IReactorTime, timeout: float) -> Result:
    """The peer's answer to ``request``.

    Raises ``StreamReset`` when the peer resets instead, or does not answer within
    ``timeout`` seconds; ``LinkLost`` when the link is, or gets, lost. Cancelling
    tells the peer that nobody waits any more.
    """
    answer = _Answer()
    channel = link.open(request, answer)
    channel.finish()
    late = Reason(ResetCode.CANCELLED, f"no answer within {timeout:g} s")
    deadline = clock.callLater(timeout, answer.fail, late)
    try:
        return await answer.result
    finally:
        if deadline.active():
            deadline.cancel()
        if not answer.arrived:
            channel.reset(_CANCELLED)  # Of no effect where the stream has ended.


class _Answer:
    """The receiver of one answer."""

    def __init__(self) -> None:
        self.result: Deferred[Result] = Deferred()
        self.arrived = False

    def data_received(self, lane: Lane, data: bytes) -> None:
        """The answer is one record; whatever else comes is not for us."""
        if lane is not Lane.RESULT or self.result.called:
            return
        try:
            result = decode_result(data)
        except RemoteViolation as violation:
            self.fail(Reason(ResetCode.PROTOCOL, str(violation)))
        else:
            self.arrived = True
            self.result.callback(result)

    def finished(self) -> None:
        """Nothing more comes: without an answer by now there is none."""
        self.fail(Reason(ResetCode.PROTOCOL, "the other side finished without an answer"))

    def reset(self, reason: Reason) -> None:
        """The peer refused, or is gone."""
        self.fail(reason)

    def closed(self) -> None:
        """The channel is history."""
        self.fail(Reason(ResetCode.PROTOCOL, "the stream ended without an answer"))

    def fail(self, reason: Reason) -> None:
        """There will be no answer."""
        if not self.result.called:
            lost = reason.code is ResetCode.LOST
            self.result.errback(LinkLost(reason.text) if lost else StreamReset(reason))
