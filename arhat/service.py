"""The wiring of the agent: identity first, then the agent, then the dialling.

``build`` joins if it must. After a join it does not go on: the token stands in this
process's argument list, so ``joined`` is called to start the program anew
without it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from twisted.application.service import IService, MultiService
from twisted.internet.defer import Deferred
from twisted.logger import Logger

from arhat import node
from arhat.agent import Agent
from arhat.builtin.commands import builtins
from arhat.config import Config
from arhat.dial import Dial
from arhat.executor.environment import Account
from arhat.executor.facts import TellFacts
from arhat.executor.logs.starting import LogReading
from arhat.identity import State, StateError
from arhat.joining import JoinFailed, join, must_join, read_token
from tether.daemon import Fatal
from tether.link.link import PeerIntroduction
from tether.link.websocket import nvx_available
from tether.verbs.requests import AskFacts, DeviceFacts, Logs
from tether.version import VERSION

_log = Logger()
_SOFTWARE = f"arhat/{VERSION}"


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
        if start.join and must_join(identity, now()):
            identity = await join(read_token(start.join), state, reactor, now, environment, _SOFTWARE)
            _log.info("joined as {device}", device=f"{identity.namespace}/{identity.name}")
            joined()
        elif start.join and identity is not None:
            _log.info(
                "this device has joined as {device}; --join is ignored",
                device=f"{identity.namespace}/{identity.name}",
            )
    except (StateError, JoinFailed) as why:
        raise Fatal(str(why)) from None
    if identity is None:
        raise Fatal(f"this device has not joined (nothing in {start.state}); start once with --join TOKEN")
    if not nvx_available():
        _log.warn("autobahn has no NVX here: the link will be slow (10 MB/s at most)")

    def facts() -> DeviceFacts:
        return node.gather(start.config.allow, start.config.forward, start.config.labels)

    agent = Agent(
        reactor,
        start.config,
        start.account,
        {
            Logs: LogReading(reactor, start.account, start.config),
            AskFacts: TellFacts(facts),
        },
        builtins,
    )
    instance = os.urandom(16)

    def introduce() -> PeerIntroduction:
        told = facts()
        return PeerIntroduction(software=_SOFTWARE, instance=instance, host_boot_id=told.boot_id, facts=told)

    dial = Dial(reactor, state, identity, agent, introduce, environment, now)
    return Arhat(agent, dial)


class Arhat(MultiService):
    """The link and what is done over it; stops sessions before the link."""

    def __init__(self, agent: Agent, dial: Dial) -> None:
        super().__init__()
        self._agent = agent
        dial.setServiceParent(self)

    def stopService(self) -> Deferred[None]:
        """Hang up every session, then say goodbye."""
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        await self._agent.stop()
        stopped = super().stopService()
        if stopped is not None:
            await stopped
