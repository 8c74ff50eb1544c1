"""What an agent needs before it dials, what it says of itself, and that it leaves in order."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.internet.testing import MemoryReactorClock
from twisted.logger import capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase

import arhat.joining
import arhat.service
from aranya.certs.authority import new_authority
from aranya.certs.requests import requested_key
from aranya.names import DeviceIdentity, DeviceKey
from arhat.agent import STOPPING, Agent
from arhat.companions import Companions
from arhat.config import Config
from arhat.executor.ending import Deaf, conclude
from arhat.executor.environment import Account
from arhat.identity import Identity, State, signing_request
from arhat.joining import JoinFailed, _mark
from arhat.service import DRAIN_PATIENCE, Arhat, Start, build
from test.arhat import test_identity
from test.arhat.running import own_account
from test.arhat.test_identity import AUTHORITY, NOW
from test.arhat.test_over_link import Nobody
from test.support.channels import RecordingChannel, RecordingReceiver
from tether.daemon import STOP_DEADLINE, Fatal, Lingering
from tether.join import Token
from tether.link.interfaces import Channel, Lane, Link, Receiver
from tether.link.link import RESUME, TAKEOVER, PeerIntroduction, Tether
from tether.link.memory import Watch, joined
from tether.verbs.codec import decode_result, encode_result
from tether.verbs.requests import AskFacts, DeviceFacts, Exited, Logs
from tether.wire.frames import Duty, alias_of


class BuildTests(SynchronousTestCase):
    """``build``, without a network."""

    def setUp(self) -> None:
        self.reactor = MemoryReactorClock()
        self.reactor.advance(NOW.timestamp())
        self.folder = Path(self.mktemp())
        self.identity = test_identity.joined()
        self.asked: list[Token] = []
        self.again: list[bool] = []
        self.outcome: Identity | JoinFailed = self.identity
        self.patch(arhat.service, "join", self.join)
        self.token = self.new_token(b"s")

    def new_token(self, letter: bytes) -> str:
        """A token for this device."""
        return Token(("wss://h",), "edge", "pump", letter * 32, AUTHORITY.bundle).encode()

    def kept(self) -> Identity:
        """What the folder holds."""
        identity = State(self.folder).load()
        assert identity is not None
        return identity

    async def join(self, token: Token, state: State, *_: object) -> Identity:
        """What joining comes to."""
        self.asked.append(token)
        if isinstance(self.outcome, JoinFailed):
            raise self.outcome
        identity = replace(self.outcome, token=_mark(token))
        state.save(identity)
        return identity

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

    def test_joins_anew(self) -> None:
        """Another token than the one it joined with makes it join again; that one is known for what it is."""
        self.successResultOf(self.build(self.token))
        other = self.new_token(b"t")
        self.successResultOf(self.build(other))
        self.successResultOf(self.build(other))
        self.assertEqual((2, [True, True]), (len(self.asked), self.again))
        self.assertEqual(_mark(Token.decode(other)), self.kept().token)

    def test_joins_anew_in_vain(self) -> None:
        """A new token that is of no use leaves the device what it was, and is told."""
        self.successResultOf(self.build(self.token))
        before, self.outcome = self.kept(), JoinFailed("the gateway refused: it has expired")
        for word, line in (
            (self.new_token(b"t"), "still edge/pump: the gateway refused: it has expired"),
            ("nonsense", "this device has joined as edge/pump; --join is ignored: "),
            (f"@{self.folder}/gone", "this device has joined as edge/pump; --join is ignored: cannot read"),
        ):
            with capturedLogs() as events:
                self.assertIsInstance(self.successResultOf(self.build(word)), Arhat)
            told = [formatEvent(event) or "" for event in events]
            self.assertTrue(any(one.startswith(line) for one in told), told)
        self.assertEqual((2, [True], before), (len(self.asked), self.again, self.kept()))

    def test_joined_by_a_former_version(self) -> None:
        """That did not keep which token it was; then one line says how to join anew."""
        self.keep(self.identity)
        with capturedLogs() as events:
            self.successResultOf(self.build(self.token))
        self.assertEqual([], self.asked)
        line = f"--join is ignored; to join anew, stop it and remove {self.folder}"
        self.assertTrue(any((formatEvent(event) or "").endswith(line) for event in events))

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

    def dials(self, connecting: Callable[[], Deferred[Any]]) -> list[str]:
        """Join for real, with what dialling comes to; the URLs that are asked."""
        asked: list[str] = []

        def endpoint(_: object, url: str, *__: object) -> SimpleNamespace:
            asked.append(url)
            return SimpleNamespace(connect=lambda _: connecting())

        self.patch(arhat.service, "join", arhat.joining.join)
        self.patch(arhat.joining, "gateway_endpoint", endpoint)
        self.token = Token(("wss://h", "wss://i"), "edge", "pump", b"s" * 32, AUTHORITY.bundle).encode()
        return asked

    def test_stopped_while_joining(self) -> None:
        """A join that is cancelled is over at once, and is no failure that is told."""
        asked = self.dials(Deferred)
        for keep in (lambda: None, lambda: self.keep(replace(self.identity, token="another"))):
            keep()
            building = self.build(self.token)
            self.assertNoResult(building)
            building.cancel()
            self.failureResultOf(building, CancelledError)
        self.assertEqual((["wss://h"] * 2, []), (asked, self.again))
        self.assertEqual([], self.reactor.getDelayedCalls())

    def test_connection_is_given_up(self) -> None:
        """A connection that is cancelled by itself is one that failed: the next URL is asked."""
        asked = self.dials(lambda: fail(CancelledError()))
        line = "cannot join: wss://h: the connection was given up; wss://i: the connection was given up"
        self.assertEqual(line, self.refused(self.token))
        self.assertEqual(["wss://h", "wss://i"], asked)

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

    def test_introduction(self) -> None:
        """It says since when it lives and what it can, and who lives beside it at that moment."""
        self.keep(self.identity)
        self.patch(arhat.service, "Dial", StillDial)
        first = self.successResultOf(self.build())
        [dial] = first
        alone = dial.introduce()
        self.assertEqual((frozenset({RESUME, TAKEOVER}), frozenset()), (alone.capabilities, alone.companions))
        second = self.successResultOf(self.build())
        [other] = second
        beside, younger = dial.introduce(), other.introduce()
        self.assertEqual({alias_of(younger.instance)}, beside.companions)
        self.assertEqual({alias_of(alone.instance)}, younger.companions)
        self.assertEqual((alone.instance, alone.started), (beside.instance, beside.started))
        self.assertTrue(0 < alone.started < younger.started < time.clock_gettime_ns(time.CLOCK_BOOTTIME))
        self.successResultOf(second.stopService())
        self.assertEqual(frozenset(), dial.introduce().companions)
        self.successResultOf(first.stopService())

    def test_tells_who_lives(self) -> None:
        """When it is asked for its facts it tells who lives on its host now, itself included."""
        self.keep(self.identity)
        self.patch(arhat.service, "Dial", StillDial)
        first = self.successResultOf(self.build())
        [dial] = first
        own, beside = dial.introduce().instance, self.successResultOf(self.build())
        [other] = beside
        self.assertEqual({alias_of(own), alias_of(other.introduce().instance)}, self.living(dial))
        self.successResultOf(beside.stopService())
        self.assertEqual({alias_of(own)}, self.living(dial))
        self.successResultOf(first.stopService())

    def living(self, dial: StillDial) -> frozenset[bytes]:
        """Who lives, as the agent says that this dial serves."""
        channel = RecordingChannel()
        dial.acceptor.stream_opened(AskFacts(), channel)
        facts = decode_result(channel.lane(Lane.RESULT))
        assert isinstance(facts, DeviceFacts)
        return facts.agents


class StillDial(Service):
    """A dial that never dials."""

    def __init__(self, reactor: Any, state: Any, identity: Any, agent: Any, introduce: Any, *_: Any) -> None:
        self.introduce: Callable[[], PeerIntroduction] = introduce
        self.acceptor: Agent = agent

    def drain(self) -> Deferred[None]:
        """There is nobody to tell."""
        return succeed(None)


class JoinedDial(Service, Watch):
    """Has a link that needs no dialling, and hears what it tells."""

    link: Tether

    def __init__(self) -> None:
        Watch.__init__(self)
        self._heard: Deferred[None] | None = None

    def drain(self) -> Deferred[None]:
        """As the real one."""
        self._heard = Deferred()
        self.link.tell_duty(Duty.DRAINING)
        return self._heard

    def link_up(self, link: Link, resumed: bool) -> None:
        """As the real one."""
        super().link_up(link, resumed)
        if self._heard is not None:
            self.link.tell_duty(Duty.DRAINING)

    def duty_told(self, link: Link, duty: Duty) -> None:
        """As the real one."""
        super().duty_told(link, duty)
        if self._heard is not None and not self._heard.called:
            self._heard.callback(None)

    def stopService(self) -> None:
        """As the real one."""
        super().stopService()
        self.link.close("the agent stops")


class Hearing(Watch):
    """A controller that says what it heard, unless it is ``deaf``."""

    deaf = False

    def duty_told(self, link: Link, duty: Duty) -> None:
        """Say it back."""
        super().duty_told(link, duty)
        if not self.deaf:
            link.tell_duty(duty)


class Work:
    """A starter whose sessions end when a test says so."""

    def __init__(self) -> None:
        self.channels: list[Channel] = []

    def __call__(self, request: Any, channel: Channel) -> Receiver:
        self.channels.append(channel)
        return Deaf()

    def end(self) -> None:
        """Say the result of the eldest."""
        conclude(self.channels.pop(0), Exited(7))


class Kubectl(RecordingReceiver):
    """Who asked: it is content with a result."""

    channel: Channel

    def finished(self) -> None:
        super().finished()
        self.channel.finish()


class LeavingTests(SynchronousTestCase):
    """From the first signal to the goodbye, with a controller at the other end."""

    def setUp(self) -> None:
        self.clock = MemoryReactorClock()
        self.work = Work()
        self.watch = Hearing()
        self.agent = Agent(self.clock, Config(), own_account(), {Logs: self.work})  # type: ignore[arg-type]
        dial = JoinedDial()
        self.pair = joined(
            self.clock,
            Nobody(),
            self.agent,
            controller_watcher=self.watch,
            agent_watcher=dial,
            grace=60,
        )
        dial.link = self.pair.agent
        companions = Companions(Path(self.mktemp()), b"a" * 16)
        self.service = Arhat(self.clock, self.agent, dial, companions, 30.0)  # type: ignore[arg-type]
        self.service.startService()

    def ask(self) -> Kubectl:
        """Begin a session."""
        kubectl = Kubectl()
        kubectl.channel = self.pair.controller.open(Logs(), kubectl)
        self.pair.flush()
        return kubectl

    def stop(self) -> Deferred[None]:
        """As the first signal does."""
        stopped = self.service.stopService()
        self.pair.flush()
        return stopped

    def assert_lasts(self, seconds: float, stopped: Deferred[None]) -> None:
        """It has stopped after so long, and not before."""
        self.clock.advance(seconds - 0.1)
        self.assertNoResult(stopped)
        self.clock.advance(0.2)
        self.pair.flush()
        self.successResultOf(stopped)

    def test_nothing_to_wait_for(self) -> None:
        """Without a session it says that it goes, and goes."""
        self.successResultOf(self.stop())
        self.assertEqual([Duty.DRAINING], self.watch.duties)
        self.assertEqual([("the agent stops", True)], self.watch.downs)

    def test_waits(self) -> None:
        """Whoever has a session gets its result; a new one is refused; then comes the goodbye."""
        with capturedLogs() as events:
            one, two = self.ask(), self.ask()
            stopped = self.stop()
            self.assertEqual([Duty.DRAINING], self.watch.duties)
            late = self.ask()
            self.assertEqual(STOPPING, late.reason)
            self.work.end()
            self.pair.flush()
            self.clock.advance(29)
            self.assertNoResult(stopped)
            self.work.end()
            self.assertNoResult(stopped)
            self.pair.flush()
            self.successResultOf(stopped)
        for kubectl in (one, two):
            self.assertEqual(encode_result(Exited(7)), kubectl.lane(Lane.RESULT))
            self.assertEqual(["finished", "closed"], kubectl.ended)
        self.assertEqual([("the agent stops", True)], self.watch.downs)
        lines = [formatEvent(event) for event in events]
        self.assertIn("stopping: 2 sessions run on, for up to 30 s; a second SIGTERM ends them now", lines)
        self.assertIn("stopping: all sessions are over", lines)
        self.assertEqual([], self.clock.getDelayedCalls())

    def test_over_a_cut(self) -> None:
        """A link that is lost meanwhile is waited for like the sessions on it."""
        kubectl = self.ask()
        stopped = self.stop()
        self.pair.cut()
        self.work.end()
        self.clock.advance(10)
        self.assertNoResult(stopped)
        self.pair.rejoin()
        self.successResultOf(stopped)
        self.assertEqual(encode_result(Exited(7)), kubectl.lane(Lane.RESULT))

    def test_word_is_lost(self) -> None:
        """Until the controller has heard, be it by the next link, sessions are served, then refused."""
        one, two = self.ask(), Kubectl()
        two.channel = self.pair.controller.open(Logs(), two)
        stopped = self.service.stopService()
        self.pair.cut()
        self.assertEqual([], self.watch.duties)
        self.clock.advance(DRAIN_PATIENCE + 1)
        self.assertNoResult(stopped)
        self.pair.rejoin()
        self.assertEqual([Duty.DRAINING], self.watch.duties)
        self.assertEqual(STOPPING, self.ask().reason)
        for _ in range(2):
            self.assertNoResult(stopped)
            self.work.end()
            self.pair.flush()
        self.successResultOf(stopped)
        for kubectl in (one, two):
            self.assertEqual(encode_result(Exited(7)), kubectl.lane(Lane.RESULT))
        self.assertEqual([], self.clock.getDelayedCalls())

    def test_nobody_hears(self) -> None:
        """A controller that does not say that it heard is waited for as long as sessions, else a moment."""
        self.watch.deaf = True
        line = "the controller did not hear that this agent is stopping"
        with capturedLogs() as events:
            self.ask()
            stopped = self.stop()
            self.assert_lasts(30, stopped)
        self.assertEqual(1, [formatEvent(event) for event in events].count(line))

    def test_nobody_hears_without_sessions(self) -> None:
        """Then it goes after a moment, which somebody who insists need not wait for."""
        self.watch.deaf = True
        stopped = self.stop()
        self.assert_lasts(DRAIN_PATIENCE, stopped)

    def test_insisting_while_nobody_hears(self) -> None:
        """A second signal ends that waiting, too."""
        self.watch.deaf = True
        kubectl = self.ask()
        stopped = self.stop()
        self.assertNoResult(stopped)
        self.service.hurry()
        self.pair.flush()
        self.successResultOf(stopped)
        self.assertEqual(STOPPING, kubectl.reason)

    def test_not_for_ever(self) -> None:
        """What still runs at the limit is ended with the reason."""
        with capturedLogs() as events:
            kubectl = self.ask()
            stopped = self.stop()
            self.assert_lasts(30, stopped)
        self.assertEqual(STOPPING, kubectl.reason)
        line = "stopping: sessions that still run are ended (1), 30 s are over"
        self.assertIn(line, [formatEvent(event) for event in events])

    def test_insisting(self) -> None:
        """A second signal ends the waiting."""
        with capturedLogs() as events:
            kubectl = self.ask()
            stopped = self.stop()
            self.service.hurry()
            self.pair.flush()
            self.successResultOf(stopped)
            self.service.hurry()
        self.assertEqual(STOPPING, kubectl.reason)
        line = "stopping: sessions that still run are ended (1), for somebody insists"
        self.assertIn(line, [formatEvent(event) for event in events])

    def test_insisting_at_once(self) -> None:
        """A second signal may come before the first has done anything."""
        kubectl = self.ask()
        self.service.hurry()
        self.successResultOf(self.stop())
        self.assertEqual(STOPPING, kubectl.reason)

    def test_owner_waits_for_nobody(self) -> None:
        """With a drain of nothing sessions end at once, and a second signal changes nothing."""
        kubectl = self.ask()
        self.service.linger = 0.0
        self.successResultOf(self.stop())
        self.service.hurry()
        self.assertEqual(STOPPING, kubectl.reason)

    def test_init_system_waits(self) -> None:
        """The unit gives an agent the time that it may take by default."""
        unit = (Path(arhat.service.__file__).parents[1] / "deploy" / "arhat.service").read_text("utf-8")
        [patience] = re.findall(r"^TimeoutStopSec=(\d+)$", unit, re.MULTILINE)
        self.assertGreater(int(patience), Config().drain + STOP_DEADLINE)

    def test_daemon_knows(self) -> None:
        """The daemon learns that it may take longer."""
        self.assertIsInstance(self.service, Lingering)
        self.assertEqual(30.0, self.service.linger)
