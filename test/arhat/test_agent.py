"""A stream was opened: may it, and who does it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import CancelledError
from twisted.internet.testing import MemoryReactorClock
from twisted.trial.unittest import SynchronousTestCase, TestCase

import arhat.agent
from arhat.agent import STOP_GRACE, STOPPING, Agent
from arhat.config import Config
from arhat.dial import GOODBYE_PATIENCE
from test.arhat.running import EndingChannel, gone, own_account, zombies
from test.support.channels import RecordingChannel, RecordingReceiver
from tether.daemon import STOP_DEADLINE
from tether.errors import Reason, ResetCode
from tether.link.interfaces import Channel, Lane, Receiver
from tether.verbs.requests import AskFacts, Attach, Exec, Exited, Forward, Logs, Renew, Request


class Starting:
    """A starter that remembers what it started."""

    def __init__(self) -> None:
        self.started: list[tuple[Request, Channel]] = []
        self.receiver = RecordingReceiver()

    def __call__(self, request: Any, channel: Channel) -> Receiver:
        self.started.append((request, channel))
        return self.receiver


class DispatchTests(SynchronousTestCase):
    """Which verb goes where."""

    def setUp(self) -> None:
        self.logs = Starting()
        self.facts = Starting()

    def agent(self, **policy: Any) -> Agent:
        more = {Logs: self.logs, AskFacts: self.facts}
        return Agent(MemoryReactorClock(), Config(**policy), own_account(), more)  # type: ignore[arg-type]

    def opened(self, agent: Agent, request: Request) -> tuple[RecordingChannel, Receiver]:
        channel = RecordingChannel()
        return channel, agent.stream_opened(request, channel)

    def test_passed_on(self) -> None:
        """A request reaches its starter, and what arrives reaches the starter's receiver."""
        request = Logs(file="/var/log/x")
        channel, receiver = self.opened(self.agent(), request)
        self.assertEqual(self.logs.started, [(request, channel)])
        receiver.data_received(Lane.MAIN, b"x")
        receiver.finished()
        receiver.reset(Reason(ResetCode.LOST, "gone"))
        receiver.closed()
        self.assertEqual(self.logs.receiver.heard, [(Lane.MAIN, b"x")])
        self.assertEqual(self.logs.receiver.ended, ["finished", "reset", "closed"])

    def test_not_allowed(self) -> None:
        """What the owner does not allow is refused by its name."""
        agent = self.agent(allow=frozenset())
        for request, name in (
            (Exec((b"true",)), "exec"),
            (Attach(), "attach"),
            (Logs(), "logs"),
            (Forward(80), "port-forward"),
        ):
            channel, receiver = self.opened(agent, request)
            assert channel.reset_with is not None
            self.assertEqual(channel.reset_with.code, ResetCode.REFUSED)
            self.assertIn(f"does not allow {name};", channel.reset_with.text)
            receiver.data_received(Lane.MAIN, b"still on its way")
            receiver.closed()
        self.assertEqual(self.logs.started, [])

    def test_facts_are_always_allowed(self) -> None:
        """The facts need nobody's leave."""
        self.opened(self.agent(allow=frozenset(), max_sessions=1), AskFacts())
        self.assertEqual(len(self.facts.started), 1)

    def test_unknown(self) -> None:
        """A verb that nobody here knows is unsupported."""
        channel, _ = self.opened(self.agent(), Renew(b""))
        assert channel.reset_with is not None
        self.assertEqual(channel.reset_with.code, ResetCode.UNSUPPORTED)

    def test_limit(self) -> None:
        """One session too many is refused until another one is over."""
        agent = self.agent(max_sessions=2)
        _, first = self.opened(agent, Logs())
        self.opened(agent, Logs())
        channel, _ = self.opened(agent, Logs())
        assert channel.reset_with is not None
        self.assertEqual(channel.reset_with.code, ResetCode.LIMIT)
        first.closed()
        channel, _ = self.opened(agent, Logs())
        self.assertIsNone(channel.reset_with)

    def test_failing_starter(self) -> None:
        """A starter that fails resets its own channel and nothing else."""

        def failing(request: Any, channel: Channel) -> Receiver:
            raise RuntimeError("a bug")

        agent = Agent(MemoryReactorClock(), Config(), own_account(), {Logs: failing})  # type: ignore[arg-type]
        channel, receiver = self.opened(agent, Logs())
        assert channel.reset_with is not None
        self.assertEqual(channel.reset_with.code, ResetCode.INTERNAL)
        receiver.closed()
        self.assertEqual(agent.sessions, 0)
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)

    def test_time_to_stop(self) -> None:
        """A stubborn child and a gateway that does not answer leave time before the daemon's deadline."""
        self.assertLess(STOP_GRACE + GOODBYE_PATIENCE, STOP_DEADLINE)

    def test_stop(self) -> None:
        """Stopping ends every session with a reason, and no new one begins."""
        agent = self.agent()
        channel, receiver = self.opened(agent, Logs())
        self.successResultOf(agent.stop())
        self.assertEqual(channel.reset_with, STOPPING)
        self.assertEqual(self.logs.receiver.reason, STOPPING)
        receiver.closed()
        late, _ = self.opened(agent, Logs())
        self.assertEqual(late.reset_with, STOPPING)

    def test_nothing_to_drain(self) -> None:
        """With no session there is nothing to wait for."""
        agent = self.agent()
        _, receiver = self.opened(agent, Logs())
        receiver.closed()
        self.successResultOf(agent.drain())

    def test_drain(self) -> None:
        """Draining waits until the last channel is closed: what is said is not heard yet."""
        agent = self.agent()
        one, one_hears = self.opened(agent, Logs())
        two, two_hears = self.opened(agent, Logs())
        drained = agent.drain()
        two_hears.reset(Reason(ResetCode.CANCELLED, "enough"))
        two_hears.closed()
        one.finish()
        one_hears.finished()
        self.assertNoResult(drained)
        self.assertEqual((one.reset_with, two.reset_with), (None, None))
        one_hears.closed()
        self.successResultOf(drained)

    def test_no_sessions_while_draining(self) -> None:
        """While it drains no session begins, and the device's facts are still told and not waited for."""
        agent = self.agent()
        _, running = self.opened(agent, Logs())
        drained = agent.drain()
        refused, _ = self.opened(agent, Logs())
        self.assertEqual(refused.reset_with, STOPPING)
        asked, _ = self.opened(agent, AskFacts())
        self.assertIsNone(asked.reset_with)
        self.assertEqual((len(self.logs.started), len(self.facts.started)), (1, 1))
        running.closed()
        self.successResultOf(drained)

    def test_drain_given_up(self) -> None:
        """Who waits for the drain may stop waiting."""
        agent = self.agent()
        _, running = self.opened(agent, Logs())
        drained = agent.drain()
        drained.cancel()
        self.failureResultOf(drained, CancelledError)
        running.closed()
        self.successResultOf(agent.drain())


class ProcessTests(TestCase):
    """An agent with real processes."""

    timeout = 15

    async def test_exec_and_stop(self) -> None:
        """A stopped agent leaves neither commands nor shell behind."""
        account = replace(own_account(), shell="/bin/sh", home="/")
        self.patch(arhat.agent, "STOP_GRACE", 0.3)
        agent = Agent(reactor, Config(kill_grace=3600), account, {})  # type: ignore[arg-type]
        quick = EndingChannel()
        agent.stream_opened(Exec((b"echo", b"hello")), quick)
        await quick.ended
        self.assertEqual((quick.lane(Lane.MAIN), quick.result), (b"hello\n", Exited(0)))
        slow, tty, shell = EndingChannel(), EndingChannel(), EndingChannel()
        script = b"trap : HUP; echo $$; while :; do sleep 0.1; done"
        agent.stream_opened(Exec((b"sh", b"-c", script)), slow)
        agent.stream_opened(Exec((b"sh", b"-c", script), tty=True), tty)
        typing = agent.stream_opened(Attach(stdin=True), shell)
        typing.data_received(Lane.MAIN, b'echo "<$$>"\n')
        await slow.until(b"\n")
        await tty.until(b"\n")
        await shell.until(b">\r\n")
        await agent.stop()
        for channel in (slow, tty, shell):
            self.assertEqual(channel.reset_with, STOPPING)
        pids = [int(slow.lane(Lane.MAIN)), int(tty.lane(Lane.MAIN))]
        pids.append(int(shell.lane(Lane.MAIN).rpartition(b"<")[2].partition(b">")[0]))
        for pid in pids:
            await gone(reactor, pid)
        self.assertEqual(zombies(), [])
