"""Tests for ``tether.link.call``."""

from __future__ import annotations

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from test.tether.link.test_link import Acceptance
from tether.errors import LinkLost, Reason, ResetCode, StreamReset
from tether.link.call import ask
from tether.link.interfaces import Lane
from tether.link.memory import joined
from tether.verbs.codec import encode_result
from tether.verbs.requests import AskFacts, DeviceFacts, Result


class AskTests(SynchronousTestCase):
    """A controller asks, an agent answers, or does not."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.agent_side = Acceptance()
        self.pair = joined(self.clock, Acceptance(), self.agent_side)
        self.asked = self.asking()
        self.pair.flush()

    def asking(self) -> Deferred[Result]:
        return Deferred.fromCoroutine(ask(self.pair.controller, AskFacts(), self.clock, 10))

    def answer(self, data: bytes, lane: Lane = Lane.RESULT) -> None:
        self.agent_side.channel.write(data, lane)
        self.agent_side.channel.finish()
        self.pair.flush()

    def test_answer(self) -> None:
        """The answer is what the peer said; nothing is left behind."""
        self.assertIsInstance(self.agent_side.opened[0][0], AskFacts)
        self.assertNoResult(self.asked)
        self.answer(encode_result(DeviceFacts(os="linux")))
        self.assertEqual(self.successResultOf(self.asked), DeviceFacts(os="linux"))
        self.assertEqual(self.agent_side.receiver.ended, ["finished", "closed"])
        self.assertEqual((len(self.pair.controller.mux), len(self.pair.agent.mux)), (0, 0))

    def test_late(self) -> None:
        """Without an answer in time the peer is told, and the asker too."""
        self.clock.advance(10)
        failure = self.failureResultOf(self.asked, StreamReset)
        self.assertEqual(str(failure.value), "no answer within 10 s")
        self.pair.flush()
        self.assertEqual(self.agent_side.receiver.reason.code, ResetCode.CANCELLED)

    def test_refused(self) -> None:
        """A reset is the asker's failure, with its reason."""
        self.agent_side.channel.reset(Reason(ResetCode.REFUSED, "not here"))
        self.pair.flush()
        failure = self.failureResultOf(self.asked, StreamReset)
        self.assertEqual(failure.value.reason, Reason(ResetCode.REFUSED, "not here"))

    def test_no_answer(self) -> None:
        """A peer that finishes without an answer broke its word."""
        self.answer(b"")
        failure = self.failureResultOf(self.asked, StreamReset)
        self.assertEqual(failure.value.reason.code, ResetCode.PROTOCOL)

    def test_garbage(self) -> None:
        """An answer that does not parse is the asker's failure."""
        self.answer(b"\xff\xff")
        failure = self.failureResultOf(self.asked, StreamReset)
        self.assertEqual(str(failure.value), "result does not parse")

    def test_other_lanes(self) -> None:
        """What comes on other lanes is no answer."""
        self.agent_side.channel.write(b"chatter")
        self.pair.flush()
        self.assertNoResult(self.asked)
        self.answer(encode_result(DeviceFacts()))
        self.successResultOf(self.asked)

    def test_lost(self) -> None:
        """A link that is lost, or was, is told apart from a refusal."""
        self.pair.cut()
        self.failureResultOf(self.asked, LinkLost)
        self.failureResultOf(self.asking(), LinkLost)

    def test_cancelled(self) -> None:
        """Whoever cancels tells the peer; no deadline stays behind."""
        before = len(self.clock.getDelayedCalls())
        self.asked.cancel()
        self.failureResultOf(self.asked, CancelledError)
        self.pair.flush()
        self.assertEqual(self.agent_side.receiver.reason.code, ResetCode.CANCELLED)
        self.assertEqual(len(self.clock.getDelayedCalls()), before - 1)
