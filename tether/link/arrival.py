"""A connection that has yet to say who it is: the peer's Hello decides which tether takes it.

The gateway knows from the certificate *which device* dials, and from the Hello
*which process* of it: the one whose streams wait for it, a restarted one, or a
clone. So it hears the Hello first and answers with the Hello of the tether that
was chosen, which can state what it holds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from tether.errors import RemoteViolation
from tether.link.connection import HELLO_PATIENCE
from tether.link.link import PeerIntroduction, Tether
from tether.link.transport import POLICY_VIOLATION, MessageReceiver, MessageTransport
from tether.wire import frames


@dataclass(frozen=True, slots=True)
class Dismissal:
    """Not taken: why, in one line, and whether coming back makes sense."""

    reason: str
    retry: bool


#: Given who says Hello, on which connection: the tether that takes it, or why none does. What it is given
#: may be late (``Tether.is_late``); then it must leave all as it is.
Choose = Callable[[PeerIntroduction, MessageTransport], Tether | Dismissal]


class Arrival:
    """A ``MessageReceiver`` that hands its connection to the tether chosen by the peer's Hello.

    ``waits_no_more`` is called once: when the Hello came, or when it will not any more.
    """

    _log = Logger()

    def __init__(
        self, clock: IReactorTime, choose: Choose, waits_no_more: Callable[[], None] = lambda: None
    ) -> None:
        self._clock = clock
        self._choose = choose
        self._waits_no_more: Callable[[], None] | None = waits_no_more
        self._transport: MessageTransport | None = None
        self._receiver: MessageReceiver | None = None
        self._deadline: IDelayedCall | None = None

    def connected(self, transport: MessageTransport) -> None:
        """The connection is there; its Hello must come in time."""
        self._transport = transport
        self._deadline = self._clock.callLater(
            HELLO_PATIENCE, self._dismiss, f"no Hello within {HELLO_PATIENCE:.0f} s", True
        )

    def message_received(self, message: bytes) -> None:
        """The first message is the Hello; what follows is the tether's."""
        if self._receiver is not None:
            self._receiver.message_received(message)
            return
        transport = self._transport
        if transport is None:
            return
        try:
            chosen = self._chosen(message, transport)
        except RemoteViolation as violation:
            chosen = Dismissal(str(violation), True)
        except Exception:
            self._log.failure("choosing a link for {peer} failed", peer=transport.address)
            chosen = Dismissal("internal error", True)
        if isinstance(chosen, Dismissal):
            self._dismiss(chosen.reason, chosen.retry)
            return
        self._end_wait()
        self._receiver = receiver = chosen.receiver()
        receiver.connected(transport)
        receiver.message_received(message)

    def connection_lost(self, reason: str) -> None:
        """The connection is gone."""
        self._end_wait()
        self._transport = None
        if self._receiver is not None:
            self._receiver.connection_lost(reason)

    def _chosen(self, message: bytes, transport: MessageTransport) -> Tether | Dismissal:
        said = frames.decode(message)
        if not said or not isinstance(said[0], frames.Hello):
            raise RemoteViolation("the first frame is not a Hello")
        return self._choose(PeerIntroduction.of(said[0]), transport)

    def _dismiss(self, reason: str, retry: bool) -> None:
        self._end_wait()
        transport, self._transport = self._transport, None
        if transport is not None:
            self._log.info("connection from {peer} refused: {reason}", peer=transport.address, reason=reason)
            transport.send(frames.encode([frames.Goodbye(reason, retry)]))
            transport.close(POLICY_VIOLATION, reason)

    def _end_wait(self) -> None:
        if self._deadline is not None and self._deadline.active():
            self._deadline.cancel()
        self._deadline = None
        waits_no_more, self._waits_no_more = self._waits_no_more, None
        if waits_no_more is not None:
            waits_no_more()
