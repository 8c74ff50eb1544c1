"""Tests of ``aranya.device.registry`` and ``aranya.device.device``."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import permutations

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from aranya.device.device import LinkedDevice
from aranya.device.registry import PROOF_OF_DEATH, PROOF_OF_LIFE, WITNESS_LONGEST_PAUSE, Cloned, Registry
from aranya.names import DeviceIdentity, DeviceKey
from test.support.channels import RecordingReceiver
from tether.errors import Reason, ResetCode
from tether.link.interfaces import Acceptor, Channel, Lane, Receiver
from tether.link.link import RESUME, TAKEOVER, PeerIntroduction
from tether.link.memory import MemoryPair, Watch, joined
from tether.verbs.codec import encode_result
from tether.verbs.requests import AskFacts, DeviceFacts, Request
from tether.wire.frames import Duty, alias_of

KEY = DeviceKey("edge", "pump")
BOTH = frozenset({RESUME, TAKEOVER})


class Refusing:
    """An agent that refuses whatever is asked, which is a sign of life."""

    def __init__(self) -> None:
        self.asked: list[Request] = []

    def stream_opened(self, request: Request, channel: object) -> Receiver:
        """Refuse."""
        self.asked.append(request)
        channel.reset(Reason(ResetCode.UNSUPPORTED, "no"))  # type: ignore[attr-defined]
        return Deaf()


class Witness:
    """An agent that tells who lives on its host."""

    def __init__(self, *living: bytes) -> None:
        self.living = frozenset(living)
        self.asked = 0

    def stream_opened(self, request: Request, channel: Channel) -> Receiver:
        """Tell."""
        self.asked += 1
        channel.write(encode_result(DeviceFacts(agents=frozenset(map(alias_of, self.living)))), Lane.RESULT)
        channel.finish()
        return Deaf()


class Deaf:
    """A receiver that does nothing."""

    def data_received(self, lane: object, data: bytes) -> None:
        """Nothing."""

    def finished(self) -> None:
        """Nothing."""

    def reset(self, reason: Reason) -> None:
        """Nothing."""

    def closed(self) -> None:
        """Nothing."""


class RegistryCase(SynchronousTestCase):
    """Has a registry and makes devices for it."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.clones: list[str] = []
        self.heard: list[DeviceKey] = []
        self.registry = Registry(self.clock, lambda key, line: self.clones.append(line))
        self.registry.subscribe(self.heard.append)

    def device(
        self,
        instance: bytes = b"a" * 16,
        boot: str = "boot",
        key_hash: str = "k",
        uid: str = "u",
        *,
        started: int = 0,
        companions: Iterable[bytes] = (),
        capabilities: frozenset[str] = BOTH,
        acceptor: Acceptor | None = None,
        draining: bool = False,
    ) -> tuple[LinkedDevice, MemoryPair, Watch]:
        """A device over a link of its own."""
        watch = Watch()
        pair = joined(
            self.clock,
            Refusing(),
            acceptor or Refusing(),
            agent=PeerIntroduction(
                "arhat/1",
                capabilities,
                instance,
                boot,
                DeviceFacts(),
                started=started,
                companions=frozenset(map(alias_of, companions)),
                draining=draining,
            ),
            agent_watcher=watch,
            keepalive=1000,
        )
        device = LinkedDevice(DeviceIdentity(KEY, uid), key_hash, pair.controller, "10.0.0.9:1")
        return device, pair, watch


class RegistryTests(RegistryCase):
    """Who is here, and who yields."""

    def test_come_and_go(self) -> None:
        """A device is found from its arrival to its leaving, and listeners hear of both."""
        device, _, _ = self.device()
        self.registry.arrived(device)
        self.assertIs(self.registry.get(KEY), device)
        self.registry.left(device, "gone")
        self.assertIsNone(self.registry.get(KEY))
        self.assertEqual(self.heard, [KEY, KEY])

    def test_unsubscribed(self) -> None:
        """Who unsubscribed hears nothing; twice does no harm."""
        heard: list[DeviceKey] = []
        undo = self.registry.subscribe(heard.append)
        undo()
        undo()
        self.registry.arrived(self.device()[0])
        self.assertEqual(heard, [])

    def test_a_bad_listener(self) -> None:
        """A listener that fails does not keep the others from hearing."""

        def bad(key: DeviceKey) -> None:
            raise RuntimeError("bad listener")

        self.registry.subscribe(bad)
        last: list[DeviceKey] = []
        self.registry.subscribe(last.append)
        self.registry.arrived(self.device()[0])
        self.assertEqual(last, [KEY])
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)

    def test_disconnect(self) -> None:
        """A device that is sent away is gone at once and hears why."""
        device, pair, watch = self.device()
        self.registry.arrived(device)
        self.registry.disconnect(KEY, "banned", retry=False)
        self.assertIsNone(self.registry.get(KEY))
        pair.flush()
        self.assertEqual(watch.downs, [("banned", False)])
        self.registry.disconnect(KEY, "again")

    def test_same_process(self) -> None:
        """The same process on a new link takes over from its stale one."""
        old, old_pair, _ = self.device()
        new, _, _ = self.device(boot="")
        self.registry.arrived(old)
        self.registry.arrived(new)
        self.assertIs(self.registry.get(KEY), new)
        self.assertFalse(old_pair.controller.is_up)

    def test_the_eldest_is_active(self) -> None:
        """Whoever of one host began first is active, in whatever order they come; the others stand by."""
        names = [b"a" * 16, b"b" * 16, b"c" * 16]
        for order in permutations(range(3)):
            self.registry.disconnect(KEY, "again")
            here = {
                number: self.device(names[number], started=number + 1, companions=names)[0]
                for number in order
            }
            for number in order:
                self.registry.arrived(here[number])
            self.assertIs(self.registry.get(KEY), here[0])
            self.assertEqual(self.registry.standbys(KEY), [here[1], here[2]])

    def test_takeover(self) -> None:
        """When the active agent goes the next is active at once; back again, it is the active one again."""
        names = [b"a" * 16, b"b" * 16]
        old, old_pair, old_watch = self.device(names[0], started=1, companions=names)
        new, new_pair, new_watch = self.device(names[1], started=2, companions=names)
        self.registry.arrived(old)
        self.registry.arrived(new)
        self.assertEqual(len(self.heard), 2)
        self.registry.left(old, "lost")
        self.assertIs(self.registry.get(KEY), new)
        self.assertEqual(self.registry.standbys(KEY), [])
        self.registry.arrived(old)
        self.assertIs(self.registry.get(KEY), old)
        old_pair.flush()
        new_pair.flush()
        self.assertEqual(old_watch.duties, [Duty.ACTIVE, Duty.ACTIVE])  # told anew after each Hello
        self.assertEqual(new_watch.duties, [Duty.STANDBY, Duty.ACTIVE, Duty.STANDBY])
        self.registry.drains(old)
        self.registry.drains(old)
        self.assertIs(self.registry.get(KEY), new)
        self.assertEqual(self.registry.standbys(KEY), [])
        new_pair.flush()
        self.assertEqual(new_watch.duties[3:], [Duty.ACTIVE])
        self.assertEqual(len(self.heard), 5)

    def test_drains_after_a_cut(self) -> None:
        """Who drains and comes back still drains, from the first moment on."""
        names = [b"a" * 16, b"b" * 16]
        old, _, _ = self.device(names[0], started=1, companions=names)
        new, new_pair, new_watch = self.device(names[1], started=2, companions=names)
        self.registry.arrived(old)
        self.registry.arrived(new)
        self.registry.drains(old)
        self.registry.left(old, "lost")
        self.registry.arrived(old)
        self.assertIs(self.registry.get(KEY), new)
        new_pair.flush()
        self.assertEqual(new_watch.duties, [Duty.STANDBY, Duty.ACTIVE])

    def test_drains_when_it_comes(self) -> None:
        """Whose word of draining was lost with its link says so in its Hello: it is active at no moment."""
        names = [b"a" * 16, b"b" * 16]
        old, _, _ = self.device(names[0], started=1, companions=names)
        new, new_pair, new_watch = self.device(names[1], started=2, companions=names)
        active: list[object] = []
        self.registry.arrived(old)
        self.registry.arrived(new)
        self.registry.left(old, "lost")
        self.registry.subscribe(lambda key: active.append(self.registry.get(key)))
        back, back_pair, back_watch = self.device(names[0], started=1, companions=names, draining=True)
        self.registry.arrived(back)
        self.assertEqual([new], active)
        self.assertEqual([], self.registry.standbys(KEY))
        new_pair.flush()
        back_pair.flush()
        self.assertEqual([Duty.STANDBY, Duty.ACTIVE], new_watch.duties)
        self.assertEqual([], back_watch.duties)

    def test_all_drain(self) -> None:
        """If nobody else is there, a draining agent is: it refuses and says why."""
        only, _, _ = self.device()
        self.registry.arrived(only)
        self.registry.drains(only)
        self.assertIs(self.registry.get(KEY), only)

    def test_restarted(self) -> None:
        """A newcomer that does not know the process before it to live proves it dead, within a second."""
        old, old_pair, _ = self.device()
        new, _, _ = self.device(b"b" * 16, started=2)
        self.registry.arrived(old)
        self.registry.arrived(new)
        self.clock.advance(PROOF_OF_DEATH)
        self.assertFalse(old_pair.controller.is_up)
        self.assertIs(self.registry.get(KEY), new)
        self.assertEqual(self.registry.standbys(KEY), [])
        self.assertLess(PROOF_OF_DEATH, 1)

    def test_restarted_after_its_link(self) -> None:
        """If its connection is gone already, there is nothing to ask: its sessions end at once."""
        old, old_pair, _ = self.device()
        receiver = RecordingReceiver()
        old_pair.controller.open(AskFacts(), receiver)
        self.registry.arrived(old)
        self.registry.left(old, "lost")
        self.registry.arrived(self.device(b"b" * 16, started=2)[0])
        assert receiver.reason is not None
        self.assertIn("restarted", receiver.reason.text)

    def test_two_folders(self) -> None:
        """An agent that lives in spite of what the newcomer says stays, and is the active one."""
        old, old_pair, _ = self.device(started=1)
        new, _, _ = self.device(b"b" * 16, started=2)
        self.registry.arrived(old)
        self.registry.arrived(new)
        old_pair.flush()
        self.clock.advance(60)
        self.assertIs(self.registry.get(KEY), old)
        self.assertEqual(self.registry.standbys(KEY), [new])

    def test_former_version(self) -> None:
        """One that does not tell its companions proves nothing: the former process has longer to answer."""
        old, _, _ = self.device()
        new, _, _ = self.device(b"b" * 16, capabilities=frozenset())
        self.registry.arrived(old)
        self.registry.arrived(new)
        self.clock.advance(PROOF_OF_DEATH)
        self.assertIs(self.registry.get(KEY), old)
        self.clock.advance(PROOF_OF_LIFE)
        self.assertIs(self.registry.get(KEY), new)

    def test_back_while_in_doubt(self) -> None:
        """Who comes back on another connection while it is in doubt lives."""
        old, _, _ = self.device(started=1)
        self.registry.arrived(old)
        self.registry.arrived(self.device(b"b" * 16, started=2)[0])
        again, _, _ = self.device(started=1, companions=[b"b" * 16])
        self.registry.arrived(again)
        self.clock.advance(60)
        self.assertIs(self.registry.get(KEY), again)

    def test_over(self) -> None:
        """A process whose sessions are over is forgotten, unless it is back by then."""
        first, _, _ = self.device()
        self.registry.arrived(first)
        self.registry.left(first, "lost")
        self.registry.over(first)
        self.assertEqual(self.registry.keys(), [])
        again, _, _ = self.device()
        self.registry.arrived(again)
        self.registry.over(first)
        self.assertIs(self.registry.get(KEY), again)

    def test_rebooted_after_its_link(self) -> None:
        """A host that rebooted while its link was down finds the place free, and ends what was before."""
        old, old_pair, _ = self.device()
        receiver = RecordingReceiver()
        old_pair.controller.open(AskFacts(), receiver)
        self.registry.arrived(old)
        self.registry.left(old, "lost")
        new, _, _ = self.device(b"b" * 16, "other")
        self.registry.arrived(new)
        self.assertIs(self.registry.get(KEY), new)
        self.assertIsNotNone(receiver.reason)

    def test_the_old_one_leaves_late(self) -> None:
        """The end of a link that was taken over does not end the new one."""
        old, new = self.device()[0], self.device()[0]
        self.registry.arrived(old)
        self.registry.arrived(new)
        self.registry.left(old, "at last")
        self.assertIs(self.registry.get(KEY), new)

    def test_renewed(self) -> None:
        """A link with a newer key takes over from one with the older key."""
        self.registry.arrived(self.device()[0])
        new, _, _ = self.device(instance=b"b" * 16, boot="other", key_hash="k2")
        self.registry.arrived(new)
        self.assertIs(self.registry.get(KEY), new)

    def test_clone(self) -> None:
        """Another host is refused while the first one lives; that is told once."""
        first, pair, _ = self.device()
        self.registry.arrived(first)
        for _ in range(3):
            clone, _, _ = self.device(instance=b"b" * 16, boot="other")
            refused = self.assertRaises(Cloned, self.registry.arrived, clone)
            # While that is in doubt it may come back soon; a known clone is to stay away.
            self.assertEqual(refused.retry, not self.clones)
            pair.flush()
        self.assertEqual(len(self.clones), 1)
        self.assertIn("10.0.0.9:1", self.clones[0])
        self.clock.advance(PROOF_OF_LIFE)
        self.assertIs(self.registry.get(KEY), first)

    def test_rebooted(self) -> None:
        """A host that rebooted finds the place free once its old link gave no sign of life."""
        self.registry.arrived(self.device()[0])
        new, _, _ = self.device(instance=b"b" * 16, boot="other")
        self.assertRaises(Cloned, self.registry.arrived, new)
        self.clock.advance(PROOF_OF_LIFE)
        self.assertIsNone(self.registry.get(KEY))
        self.registry.arrived(new)
        self.assertIs(self.registry.get(KEY), new)
        self.assertEqual(self.clones, [])

    def test_unknown_hosts(self) -> None:
        """Two hosts that do not tell their boot id are not taken for one."""
        self.registry.arrived(self.device(boot="")[0])
        other, _, _ = self.device(instance=b"b" * 16, boot="")
        self.assertRaises(Cloned, self.registry.arrived, other)

    def test_the_question(self) -> None:
        """A doubted device is asked for its facts, as any agent may be."""
        first, pair, _ = self.device()
        self.registry.arrived(first)
        self.assertRaises(Cloned, self.registry.arrived, self.device(instance=b"b" * 16, boot="other")[0])
        pair.flush()
        self.assertEqual(pair.agent._acceptor.asked, [AskFacts()])  # type: ignore[attr-defined]

    def test_answered(self) -> None:
        """A question that was answered leaves no stream behind."""
        witness = Witness()
        first, pair, _ = self.device(acceptor=witness)
        self.registry.arrived(first)
        self.assertRaises(Cloned, self.registry.arrived, self.device(instance=b"b" * 16, boot="other")[0])
        pair.flush()
        self.assertEqual(witness.asked, 1)
        self.assertEqual(pair.controller._channels, {})


class WitnessTests(RegistryCase):
    """An agent whose connection is lost, and another one of its host."""

    ELDER, YOUNGER = b"a" * 16, b"b" * 16

    def setUp(self) -> None:
        super().setUp()
        self.witness = Witness(self.ELDER, self.YOUNGER)
        self.elder, self.elder_pair, _ = self.device(
            self.ELDER, started=1, companions=[self.YOUNGER], acceptor=Witness()
        )
        self.younger, self.pair, _ = self.device(
            self.YOUNGER, started=2, companions=[self.ELDER], acceptor=self.witness
        )
        self.session = RecordingReceiver()
        self.elder_pair.controller.open(AskFacts(), self.session)

    def come(self) -> None:
        """Both are here, and then the elder is not."""
        self.registry.arrived(self.elder)
        self.registry.arrived(self.younger)
        self.registry.left(self.elder, "lost")

    def later(self) -> None:
        """The time of one question passes."""
        self.pair.flush()
        self.clock.advance(WITNESS_LONGEST_PAUSE)
        self.pair.flush()

    def test_dead(self) -> None:
        """The sessions of a dead one end as soon as the witness was asked."""
        self.witness.living = frozenset({self.YOUNGER})
        self.come()
        self.pair.flush()
        assert self.session.reason is not None
        self.assertIn("died", self.session.reason.text)
        self.assertIs(self.registry.get(KEY), self.younger)
        self.later()
        self.assertEqual(self.witness.asked, 1)

    def test_dies_later(self) -> None:
        """While it is missed the question comes again."""
        self.come()
        self.later()
        self.later()
        self.assertIsNone(self.session.reason)
        self.witness.living = frozenset({self.YOUNGER})
        self.later()
        self.assertIsNotNone(self.session.reason)

    def test_back(self) -> None:
        """Nobody asks for who is here."""
        self.come()
        self.later()
        self.registry.arrived(self.elder)
        asked = self.witness.asked
        for _ in range(3):
            self.later()
        self.assertEqual(self.witness.asked, asked)
        self.assertIs(self.registry.get(KEY), self.elder)

    def test_back_before_the_answer(self) -> None:
        """An answer that was overtaken ends nothing."""
        self.witness.living = frozenset({self.YOUNGER})
        self.come()
        self.registry.arrived(self.elder)
        self.later()
        self.assertIs(self.registry.get(KEY), self.elder)
        self.assertIsNone(self.session.reason)

    def test_cannot_know(self) -> None:
        """An agent that knows of nobody, not even of itself, is no proof."""
        self.witness.living = frozenset()
        self.come()
        self.later()
        self.assertIsNone(self.session.reason)

    def test_witness_comes_later(self) -> None:
        """Whoever arrives and knows the missing one is asked from then on."""
        self.registry.arrived(self.elder)
        self.registry.left(self.elder, "lost")
        self.registry.arrived(self.younger)
        self.later()
        self.witness.living = frozenset({self.YOUNGER})
        self.later()
        self.assertIsNotNone(self.session.reason)

    def test_questions_get_rarer(self) -> None:
        """A long absence costs few questions."""
        self.come()
        for _ in range(100):
            self.pair.flush()
            self.clock.advance(3)
        self.assertLess(self.witness.asked, 20)

    def test_stranger(self) -> None:
        """An agent with another state folder knows nothing, and is not asked."""
        self.witness.living = frozenset({self.YOUNGER})
        self.registry.arrived(self.elder)
        stranger, self.pair, _ = self.device(b"c" * 16, started=2, acceptor=self.witness)
        self.registry.arrived(stranger)
        self.elder_pair.flush()  # It lives, it says.
        self.registry.left(self.elder, "lost")
        self.later()
        self.assertEqual(self.witness.asked, 0)
        self.assertIsNone(self.session.reason)
