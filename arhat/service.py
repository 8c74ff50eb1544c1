"""The wiring of the agent: identity first, then the agent, then the dialling.

``build`` joins if it must, or is given another token than the one before. After a
join it does not go on: the token stands in this process's argument list, so ``joined``
is called to start the program anew without it.

The law of leaving
    The controller is told first: from then on new sessions go to another agent, if there
    is one, and once it has heard, be it on the next link, they are refused here. Those that run go
    on to their end, also through a lost link, for as long as the owner says (``drain``) or until
    somebody insists. What runs then is hung up. The goodbye comes last, and with it the end of every session.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from twisted.application.service import IService, MultiService
from twisted.internet.defer import CancelledError, Deferred, TimeoutError
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from arhat import node
from arhat.agent import Agent
from arhat.builtin.commands import builtins
from arhat.companions import Companions
from arhat.config import Config
from arhat.dial import Dial
from arhat.executor.environment import Account
from arhat.executor.facts import TellFacts
from arhat.executor.logs.starting import LogReading
from arhat.identity import Identity, State, StateError
from arhat.joining import JoinFailed, is_another, join, must_join, read_token
from tether.daemon import Fatal
from tether.join import Token
from tether.link.link import RESUME, TAKEOVER, PeerIntroduction
from tether.link.websocket import nvx_available
from tether.verbs.requests import AskFacts, DeviceFacts, Logs
from tether.version import VERSION

_log = Logger()
_SOFTWARE = f"arhat/{VERSION}"
_CAPABILITIES = frozenset({RESUME, TAKEOVER})

#: Seconds that the controller may take to hear that this agent drains, if no session needs longer.
DRAIN_PATIENCE = 2.0


@dataclass(frozen=True, slots=True)
class Start:
    """What the command line says."""

    config: Config
    account: Account
    state: Path
    join: str = ""


async def build(
    start: Start,
    environment: Mapping[str, str],
    reactor: Any,
    now: Callable[[], datetime],
    joined: Callable[[], None],
) -> IService:
    """Have an identity, then wire the service. Raises ``Fatal``."""
    state = State(start.state)
    try:
        state.prepare()
        identity = state.load()
        token = _new_token(start, identity, now())
        if token is not None:
            try:
                identity = await join(token, state, reactor, now, environment, _SOFTWARE)
                _log.info("joined as {device}", device=_name_of(identity))
                joined()
            except JoinFailed as why:
                if identity is None or must_join(identity, now()):
                    raise
                # A mistake in the new token must not lose a device that works.
                _log.warn("still {device}: {reason}", device=_name_of(identity), reason=str(why))
    except (StateError, JoinFailed) as why:
        raise Fatal(str(why)) from None
    if identity is None:
        raise Fatal(f"this device has not joined (nothing in {start.state}); start once with --join TOKEN")
    if not nvx_available():
        _log.warn("autobahn has no NVX here: the link will be slow (10 MB/s at most)")

    instance = os.urandom(16)
    # Who is the eldest of several agents is told by a clock that they share and nobody sets.
    started = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    companions = Companions(start.state, instance)

    def facts() -> DeviceFacts:
        return node.gather(start.config.allow, start.config.forward, start.config.labels)

    def facts_when_asked() -> DeviceFacts:
        return replace(facts(), agents=companions.all_living())

    agent = Agent(
        reactor,
        start.config,
        start.account,
        {
            Logs: LogReading(reactor, start.account, start.config),
            AskFacts: TellFacts(facts_when_asked),
        },
        builtins,
    )

    def introduce() -> PeerIntroduction:
        told = facts()
        return PeerIntroduction(
            software=_SOFTWARE,
            capabilities=_CAPABILITIES,
            instance=instance,
            host_boot_id=told.boot_id,
            facts=told,
            started=started,
            companions=companions.living(),
        )

    dial = Dial(reactor, state, identity, agent, introduce, environment, now)
    return Arhat(reactor, agent, dial, companions, start.config.drain)


def _new_token(start: Start, identity: Identity | None, now: datetime) -> Token | None:
    """The token to join with, unless it is the one that this device joined with. Raises ``JoinFailed``."""
    if not start.join:
        return None
    if identity is None or must_join(identity, now):
        return read_token(start.join)
    try:
        token = read_token(start.join)
        if is_another(token, identity):
            return token
        reason = "" if identity.token else f"; to join anew, stop it and remove {start.state}"
    except JoinFailed as why:
        # The file may be gone: it has served its time.
        reason = f": {why}"
    _log.info(
        "this device has joined as {device}; --join is ignored{reason}",
        device=_name_of(identity),
        reason=reason,
    )
    return None


def _name_of(identity: Identity) -> str:
    return f"{identity.namespace}/{identity.name}"


class Arhat(MultiService):
    """The link and what is done over it; stops sessions before the link, and ``linger``s for them."""

    def __init__(
        self, clock: IReactorTime, agent: Agent, dial: Dial, companions: Companions, linger: float
    ) -> None:
        super().__init__()
        self.linger = linger
        self._clock = clock
        self._agent = agent
        self._dial = dial
        self._companions = companions
        self._hurried = False
        self._awaited: Deferred[None] | None = None
        dial.setServiceParent(self)

    def stopService(self) -> Deferred[None]:
        """Let sessions end, hang up what still runs, then say goodbye."""
        return Deferred.fromCoroutine(self._stop())

    def hurry(self) -> None:
        """Wait for no session any more."""
        self._hurried = True
        if self._awaited is not None:
            self._awaited.cancel()

    async def _stop(self) -> None:
        await self._drain()
        await self._agent.stop()
        stopped = super().stopService()
        if stopped is not None:
            await stopped
        self._companions.leave()

    async def _drain(self) -> None:
        until = self._clock.seconds() + self.linger
        told = self._tell_sessions()
        patience = max(self.linger, DRAIN_PATIENCE) if told else DRAIN_PATIENCE
        if not await self._within(patience, self._dial.drain()) and not self._hurried:
            _log.warn("the controller did not hear that this agent is stopping")
        drained = self._agent.drain()
        lingers = told or self._tell_sessions()
        are_over = await self._within(until - self._clock.seconds() if lingers else 0.0, drained)
        if lingers and are_over:
            _log.info("stopping: all sessions are over")
        elif lingers:
            _log.info(
                "stopping: sessions that still run are ended ({count}), {reason}",
                count=self._agent.sessions,
                reason="for somebody insists" if self._hurried else f"{self.linger:g} s are over",
            )

    def _tell_sessions(self) -> bool:
        """Whether there is something to linger for; then the log says so."""
        count = self._agent.sessions
        if not count or not self.linger or self._hurried:
            return False
        _log.info(
            "stopping: {sessions} on, for up to {limit:g} s; a second SIGTERM ends them now",
            sessions="1 session runs" if count == 1 else f"{count} sessions run",
            limit=self.linger,
        )
        return True

    async def _within(self, seconds: float, awaited: Deferred[None]) -> bool:
        """Whether this happens in time, and before somebody insists; else it is given up."""
        self._awaited = awaited
        if self._hurried or seconds <= 0:
            awaited.cancel()
        try:
            await awaited.addTimeout(max(seconds, 0), self._clock)
        except (TimeoutError, CancelledError):
            return False
        finally:
            self._awaited = None
        return True
