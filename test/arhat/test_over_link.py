"""The agent at the end of a real tether without a network: flow, cuts and ends together."""

from __future__ import annotations

import os
import re
import signal
from dataclasses import replace

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock, LoopingCall
from twisted.logger import capturedLogs
from twisted.trial.unittest import TestCase

from arhat.agent import STOPPING, Agent
from arhat.config import Config
from test.arhat.running import alive, gone, own_account, pause, zombies
from test.support.channels import RecordingReceiver
from tether.errors import Reason, ResetCode
from tether.link.interfaces import Channel, Lane
from tether.link.memory import MemoryPair, joined
from tether.verbs.codec import decode_result
from tether.verbs.requests import Attach, Exec, Exited, Forward, Killed, Request


class Nobody:
    """A controller that accepts nothing."""

    def stream_opened(self, request: Request, channel: Channel) -> RecordingReceiver:
        channel.reset(Reason(ResetCode.REFUSED, "nobody is here"))
        return RecordingReceiver()


class Client(RecordingReceiver):
    """Who asked; ``over`` fires when the channel is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.over: Deferred[Client] = Deferred()

    def closed(self) -> None:
        super().closed()
        self.over.callback(self)


class OverLinkTests(TestCase):
    """Whole sessions through encoding, credit and turns."""

    timeout = 30

    def setUp(self) -> None:
        self.grace = 0
        account = replace(own_account(), shell="/bin/sh", home="/")
        self.agent = Agent(reactor, Config(kill_grace=0.3), account, {})  # type: ignore[arg-type]
        self.pair = self.join()
        pump = LoopingCall(lambda: self.pair.flush())
        pump.start(0.001)
        self.addCleanup(self.end, pump)

    def join(self) -> MemoryPair:
        return joined(reactor, Nobody(), self.agent, grace=self.grace)  # type: ignore[arg-type]

    async def end(self, pump: LoopingCall) -> None:
        await self.agent.stop()
        self.pair.flush()
        pump.stop()
        self.pair.cut()
        await pause(reactor, self.grace + 0.02)
        self.assertEqual((self.agent.sessions, zombies()), (0, []))

    def ask(self, request: Request) -> tuple[Client, Channel]:
        client = Client()
        return client, self.pair.controller.open(request, client)

    async def test_exec(self) -> None:
        """Output, result and end arrive in this order, and the session is over."""
        client, channel = self.ask(Exec((b"sh", b"-c", b"echo out; echo err >&2; kill -TERM $$")))
        while "finished" not in client.ended:
            await pause(reactor, 0.005)
        channel.finish()
        await client.over
        self.assertEqual((client.lane(Lane.MAIN), client.lane(Lane.ERROR)), (b"out\n", b"err\n"))
        self.assertEqual(client.heard[-1][0], Lane.RESULT)
        self.assertEqual(decode_result(client.lane(Lane.RESULT)), Killed(15))
        self.assertEqual(client.ended, ["finished", "closed"])
        self.assertEqual(self.agent.sessions, 0)

    async def test_big_copy_with_a_pause(self) -> None:
        """20 MB through cat arrive exactly although the client stops reading for a while."""
        client, channel = self.ask(Exec((b"cat",), stdin=True))
        content = os.urandom(1 << 20)
        for number in range(20):
            channel.write(content)
            if number == 10:
                channel.pauseProducing()
                await pause(reactor, 0.1)
                held = len(client.heard)
                await pause(reactor, 0.1)
                self.assertEqual(len(client.heard), held)
                channel.resumeProducing()
            await pause(reactor, 0.001)
        channel.write(b"\0", Lane.STDIN_END)
        channel.finish()
        await client.over
        self.assertTrue(client.lane(Lane.MAIN) == content * 20)
        self.assertEqual(decode_result(client.lane(Lane.RESULT)), Exited(0))

    async def test_endless_output_is_held_back(self) -> None:
        """A command that writes for ever waits for a client that reads nothing, and goes when it leaves."""
        client, channel = self.ask(Exec((b"sh", b"-c", b"echo $$; exec yes")))
        while not client.heard:
            await pause(reactor, 0.005)
        channel.pauseProducing()
        pid = int(client.lane(Lane.MAIN).split(b"\n")[0])
        await pause(reactor, 0.3)
        written = self.written(pid)
        await pause(reactor, 0.2)
        self.assertEqual(self.written(pid), written)
        channel.reset(Reason(ResetCode.CANCELLED, "enough"))
        await gone(reactor, pid)
        await client.over

    def written(self, pid: int) -> int:
        with open(f"/proc/{pid}/io", encoding="ascii") as counters:
            return int(next(line for line in counters if line.startswith("wchar")).split()[1])

    async def test_link_lost(self) -> None:
        """A link that is lost for good hangs the command up."""
        client, _ = self.ask(Exec((b"sh", b"-c", b"echo $$; exec sleep 60"), tty=True))
        while not client.heard:
            await pause(reactor, 0.005)
        self.pair.cut()
        await client.over
        self.assertIn("reset", client.ended)
        await gone(reactor, int(client.lane(Lane.MAIN)))

    async def test_link_lost_after_the_grace(self) -> None:
        """When nobody came back within the grace processes are hung up, and the log says how each fared."""
        self.pair.cut()
        clock = Clock()
        self.pair = joined(clock, Nobody(), self.agent, grace=60)
        begun = b"echo $$; while :; do sleep 0.05; done"
        clients = [
            self.ask(Exec((b"sh", b"-c", before + begun)))[0]
            for before in (b"", b"trap : HUP; ", b"trap '' HUP; ")
        ]
        while not all(client.heard for client in clients):
            await pause(reactor, 0.005)
        obedient, stubborn, staying = (int(client.lane(Lane.MAIN)) for client in clients)
        self.addCleanup(gone, reactor, staying)
        self.addCleanup(os.killpg, staying, signal.SIGKILL)
        self.pair.cut()
        clock.advance(59)
        await pause(reactor, 0.05)
        self.assertTrue(all(map(alive, (obedient, stubborn, staying))))
        with capturedLogs() as events:
            clock.advance(1)
            await gone(reactor, obedient)
            await gone(reactor, stubborn)
        self.assertTrue(alive(staying))
        self.assertEqual(
            {event["pid"]: re.sub(r"[\d.]+", "N", event["fate"]) for event in events if "fate" in event},
            {
                obedient: "ended after SIGHUP",
                stubborn: "killed after N s",
                staying: "ignores SIGHUP and was left running",
            },
        )

    async def test_link_comes_back(self) -> None:
        """Within the grace a cut loses nothing of a copy."""
        self.pair.cut()
        self.grace = 1
        self.pair = self.join()
        client, channel = self.ask(Exec((b"cat",), stdin=True))
        content = os.urandom(1 << 18)
        for number in range(12):
            channel.write(content)
            await pause(reactor, 0.005)
            if number in (3, 7):
                self.pair.cut()
                await pause(reactor, 0.05)
                self.pair.rejoin()
        channel.finish()
        await client.over
        self.assertTrue(client.lane(Lane.MAIN) == content * 12)
        self.assertEqual(decode_result(client.lane(Lane.RESULT)), Exited(0))

    async def test_attached_over_cuts(self) -> None:
        """Within the grace cuts leave all who are attached where they were: they see all, and may type."""
        self.pair.cut()
        self.grace = 1
        self.pair = self.join()
        one, one_types = self.ask(Attach(stdin=True, tty=True))
        two, two_types = self.ask(Attach(stdin=True, tty=True))
        # Without an echo, which would stand in the middle of the output.
        one_types.write(b"stty -echo; echo; seq 1 20000; echo done$((1))\n")
        for cut_at in (10_000, 50_000):
            while len(two.lane(Lane.MAIN)) < cut_at:
                await pause(reactor, 0.001)
            self.pair.cut()
            two_types.write(b"echo more$((%d))\n" % cut_at)
            await pause(reactor, 0.02)
            self.pair.rejoin()
        for client in (one, two):
            while b"more50000" not in client.lane(Lane.MAIN):
                await pause(reactor, 0.005)
            shown = client.lane(Lane.MAIN)
            numbers = [int(number) for number in re.findall(rb"^(\d+)\r$", shown, re.MULTILINE)]
            self.assertEqual(numbers, list(range(1, 20_001)))
            self.assertEqual((shown.count(b"done1"), shown.count(b"more10000")), (1, 1))

    async def test_drain(self) -> None:
        """An agent that drains has waited for a command when the client has its result."""
        client, channel = self.ask(Exec((b"cat",), stdin=True))
        channel.write(b"x")
        while not client.heard:
            await pause(reactor, 0.005)
        drained = self.agent.drain()
        late, _ = self.ask(Exec((b"true",)))
        await late.over
        self.assertEqual((late.reason, drained.called), (STOPPING, False))
        drained.addCallback(lambda _: client.lane(Lane.RESULT))
        channel.finish()
        self.assertEqual(decode_result(await drained), Exited(0))
        await client.over

    async def test_refused_forward(self) -> None:
        """A forward that the rules forbid is a reset with its reason."""
        client, _ = self.ask(Forward(80, "192.0.2.1"))
        await client.over
        assert client.reason is not None
        self.assertEqual(client.reason.code, ResetCode.REFUSED)
