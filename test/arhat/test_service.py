"""What an agent needs before it dials, and that it stops in order."""

from __future__ import annotations

import os
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.testing import MemoryReactorClock
from twisted.trial.unittest import SynchronousTestCase

import arhat.service
from aranya.certs.authority import new_authority
from aranya.certs.requests import requested_key
from aranya.names import DeviceIdentity, DeviceKey
from arhat.config import Config
from arhat.executor.environment import Account
from arhat.identity import Identity, State, signing_request
from arhat.joining import JoinFailed
from arhat.service import Arhat, Start, build
from test.arhat.test_identity import AUTHORITY, NOW, joined
from tether.daemon import Fatal
from tether.join import Token


class BuildTests(SynchronousTestCase):
    """``build``, without a network."""

    def setUp(self) -> None:
        self.reactor = MemoryReactorClock()
        self.reactor.advance(NOW.timestamp())
        self.folder = Path(self.mktemp())
        self.identity = joined()
        self.asked: list[Token] = []
        self.again: list[bool] = []
        self.outcome: Identity | JoinFailed = self.identity
        self.patch(arhat.service, "join", self.join)
        self.token = Token(("wss://h",), "edge", "pump", b"s" * 32, AUTHORITY.bundle).encode()

    async def join(self, token: Token, state: State, *_: object) -> Identity:
        """What joining comes to."""
        self.asked.append(token)
        if isinstance(self.outcome, JoinFailed):
            raise self.outcome
        state.save(self.outcome)
        return self.outcome

    def build(self, word: str = "") -> Deferred[Any]:
        """Build with this ``--join``."""
        config = Config()
        start = Start(config, Account.of(config), self.folder, word)

        def now() -> datetime:
            return datetime.fromtimestamp(self.reactor.seconds(), UTC)

        return Deferred.fromCoroutine(build(start, {}, self.reactor, now, lambda: self.again.append(True)))

    def refused(self, word: str = "") -> str:
        """The one line."""
        line = str(self.failureResultOf(self.build(word), Fatal).value)
        self.assertEqual(1, len(line.splitlines()))
        return line

    def keep(self, identity: Identity) -> None:
        """Have joined before."""
        state = State(self.folder)
        state.prepare()
        state.save(identity)

    def test_not_joined(self) -> None:
        """Without identity and token it says what to do."""
        self.assertIn("start once with --join TOKEN", self.refused())

    def test_joins(self) -> None:
        """A token is used once, and then the program is started anew without it."""
        self.assertIsInstance(self.successResultOf(self.build(self.token)), Arhat)
        self.assertEqual((["pump"], [True]), ([token.name for token in self.asked], self.again))
        self.assertIsInstance(self.successResultOf(self.build(self.token)), Arhat)
        self.assertEqual((1, [True]), (len(self.asked), self.again))

    def test_expired(self) -> None:
        """A token counts again when the certificate has run out."""
        then = datetime.now(UTC) - timedelta(days=91)
        public_key = requested_key(signing_request(self.identity.key, "pump"))
        name = DeviceIdentity(DeviceKey("edge", "pump"), "u")
        chain = new_authority(then).sign_device(public_key, name, then)
        self.keep(replace(self.identity, certificate=chain))
        self.successResultOf(self.build(self.token))
        self.assertEqual([True], self.again)

    def test_refusals(self) -> None:
        """A token that is none, a join that is refused, a state that is damaged: one line each."""
        self.assertIn("token", self.refused("nonsense"))
        self.outcome = JoinFailed("the gateway refused: banned")
        self.assertEqual("the gateway refused: banned", self.refused(self.token))
        self.assertEqual([], self.again)
        self.keep(self.identity)
        [file] = [path for path in self.folder.iterdir() if path.suffix == ".json"]
        file.write_text("{")
        self.assertIn("damaged", self.refused())

    def test_unwritable_state(self) -> None:
        """A state folder that cannot be made is one line."""
        self.folder = Path(os.devnull) / "state"
        self.assertIn("state folder", self.refused())

    def test_dials_until_stopped(self) -> None:
        """It dials when it starts, and when it has stopped it does not begin again."""
        self.keep(self.identity)
        service = self.successResultOf(self.build())
        service.startService()
        self.reactor.advance(1)
        self.assertNotEqual([], self.reactor.getDelayedCalls())
        self.successResultOf(service.stopService())
        self.reactor.advance(600)
        self.assertEqual([], self.reactor.getDelayedCalls())
