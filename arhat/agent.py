"""The agent proper: a stream was opened with a request; may it, and who does it.

Three refusals come before any work: a verb that nobody here knows, a verb that
the device's owner does not allow, and one session too many. A fourth comes when the
agent drains: then no session begins any more, and those that run go on.

What has a name that an owner may allow is a session, whatever it does: an attached
shell at which nobody types and a ``logs -f`` count, though they never end by
themselves. A session is over when its channel is closed, which is when the other side
has acknowledged its result. A question of the controller's own is not a session.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from twisted.internet.defer import Deferred, succeed
from twisted.logger import Logger

from arhat.config import Config
from arhat.executor.attach import SharedShell
from arhat.executor.ending import Deaf
from arhat.executor.environment import Account
from arhat.executor.execution import Execution
from arhat.executor.hangup import Hangups
from arhat.executor.portforward import PortForward
from arhat.interfaces import AnyStarter, Builtins, Host
from tether.errors import Reason, ResetCode
from tether.link.interfaces import Channel, Lane, Receiver
from tether.verbs.requests import Attach, Exec, Forward, Logs, Request

#: What the owner calls each verb; what is not here is always allowed, and is no session.
NAMES: Mapping[type[Request], str] = {
    Exec: "exec",
    Attach: "attach",
    Logs: "logs",
    Forward: "port-forward",
}

STOPPING = Reason(ResetCode.INTERNAL, "arhat is stopping")

#: The most seconds that processes have to go when the agent stops, whatever the owner's ``kill-grace``.
STOP_GRACE = 5.0


class Agent:
    """Accepts what the controller opens, within the owner's policy.

    ``more`` holds the starters that are made elsewhere: ``Logs``, ``AskFacts``.
    ``Account.of`` says beforehand whether ``config`` names a user that exists.
    """

    _log = Logger()

    def __init__(
        self,
        host: Host,
        config: Config,
        account: Account,
        more: Mapping[type[Request], AnyStarter],
        builtins: Builtins | None = None,
    ) -> None:
        self._config = config
        self._hangups = Hangups(host, config.kill_grace)
        self._shell = SharedShell(host, account, self._hangups)
        self._starters: dict[type[Request], AnyStarter] = {
            Exec: Execution(host, account, self._hangups, builtins),
            Attach: self._shell,
            Forward: PortForward(host, config.forward),
            **more,
        }
        self._sessions: dict[Session, Channel] = {}
        self._draining = False
        self._drained: list[Deferred[None]] = []

    @property
    def sessions(self) -> int:
        """How many sessions run."""
        return len(self._sessions)

    def stream_opened(self, request: Request, channel: Channel) -> Receiver:
        """Start ``request``, or reset ``channel`` with the reason why not."""
        refusal = self._refusal(request)
        if refusal is not None:
            self._log.info("stream {stream}: refused, {reason}", stream=channel.stream, reason=refusal.text)
            channel.reset(refusal)
            return Deaf()
        session = Session(self._over)
        if type(request) in NAMES:
            # Before the start: what ends at once must find itself here.
            self._sessions[session] = channel
        try:
            session.serve(self._starters[type(request)](request, channel))
        except Exception:
            self._log.failure(
                "stream {stream}: {verb} failed", stream=channel.stream, verb=type(request).__name__
            )
            channel.reset(Reason(ResetCode.INTERNAL, "the agent failed; its log says why"))
        return session

    def drain(self) -> Deferred[None]:
        """Begin no more sessions; fires when those that run are over, and may be cancelled."""
        self._draining = True
        if not self._sessions:
            return succeed(None)
        drained: Deferred[None] = Deferred(self._drained.remove)
        self._drained.append(drained)
        return drained

    def stop(self) -> Deferred[None]:
        """End all sessions and the shared shell; fires when their processes had their grace."""
        self._draining = True
        self._hangups.hurry(STOP_GRACE)
        for session, channel in list(self._sessions.items()):
            channel.reset(STOPPING)
            session.reset(STOPPING)
        self._sessions.clear()
        self._shell.stop()
        return self._hangups.idle()

    def _over(self, session: Session) -> None:
        self._sessions.pop(session, None)
        if not self._sessions:
            drained, self._drained = self._drained, []
            for deferred in drained:
                deferred.callback(None)

    def _refusal(self, request: Request) -> Reason | None:
        if type(request) not in self._starters:
            return Reason(ResetCode.UNSUPPORTED, f"this agent cannot do {type(request).__name__.lower()}")
        name = NAMES.get(type(request))
        if name is None:
            return None
        if self._draining:
            return STOPPING
        if name not in self._config.allow:
            return Reason(ResetCode.REFUSED, f"this device does not allow {name}; see allow in its config")
        if self.sessions >= self._config.max_sessions:
            return Reason(
                ResetCode.LIMIT, f"too many sessions on this device; its limit is {self._config.max_sessions}"
            )
        return None


class Session:
    """Stands before whoever receives, to know when the channel is over."""

    def __init__(self, over: Callable[[Session], None]) -> None:
        self._over = over
        self._receiver: Receiver = Deaf()

    def serve(self, receiver: Receiver) -> None:
        """Pass everything on to ``receiver`` from now on."""
        self._receiver = receiver

    def data_received(self, lane: Lane, data: bytes) -> None:
        """Pass on."""
        self._receiver.data_received(lane, data)

    def finished(self) -> None:
        """Pass on."""
        self._receiver.finished()

    def reset(self, reason: Reason) -> None:
        """Pass on."""
        self._receiver.reset(reason)

    def closed(self) -> None:
        """The channel is over: one session less."""
        try:
            self._receiver.closed()
        finally:
            # Last, for the agent may have waited for this to stop.
            self._over(self)
