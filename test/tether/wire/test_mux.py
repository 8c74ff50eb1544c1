"""Tests for ``tether.wire.mux``: conversations of two cores, and peers that break the law."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from test.tether.wire.pair import MuxPair
from tether.errors import LinkLost, LocalMisuse, Reason, RemoteViolation, ResetCode, StreamReset
from tether.verbs.codec import encode_request
from tether.verbs.requests import Exec
from tether.wire import frames
from tether.wire.credit import SHARED
from tether.wire.events import (
    DataArrived,
    DutyTold,
    Introduced,
    PongArrived,
    StreamBroken,
    StreamClosed,
    StreamFinished,
    StreamOpened,
)
from tether.wire.frames import (
    KEPT_LIMIT,
    STREAMS_LIMIT,
    WINDOW_LIMIT,
    Credit,
    Data,
    Duty,
    Finish,
    Frame,
    Goodbye,
    Hello,
    OnDuty,
    Open,
    Ping,
    Pong,
    Reset,
)
from tether.wire.lanes import Lane
from tether.wire.mux import WINDOW, Mux, Role
from tether.wire.outbound import Outbound

GONE = Reason(ResetCode.CANCELLED, "gone")


class PairCase(SynchronousTestCase):
    """A pair, and a stream that the controller opened."""

    def setUp(self) -> None:
        self.pair = MuxPair()
        self.controller, self.agent = self.pair.controller, self.pair.agent
        self.stream = self.controller.open(b"")
        self.pair.flush()
        self.pair.forget()

    def data(self, mux: Mux) -> list[Data]:
        """The data frames that ``mux`` sent."""
        return [frame for frame in self.pair.frames[mux] if isinstance(frame, Data)]


class StreamTests(PairCase):
    """One stream's life."""

    def test_too_generous(self) -> None:
        """A peer that permits everything is sent no more than can be kept until it acknowledges."""
        outbound = Outbound(2, 0)
        outbound.acknowledge(0, 1 << 60)
        self.assertEqual(outbound.limit, WINDOW_LIMIT)

    def test_credit_never_falls(self) -> None:
        """What was granted once is not taken back by a Credit that says less, or that comes late."""
        outbound = Outbound(2, 100)
        outbound.acknowledge(0, 50)
        self.assertEqual(outbound.limit, 100)

    def test_ids(self) -> None:
        """Ids are even from the controller, odd from the agent, and never used twice."""
        self.assertEqual([self.controller.open(b"") for _ in range(2)], [4, 6])
        self.assertEqual([self.agent.open(b"") for _ in range(2)], [1, 3])
        self.controller.reset(6, GONE)
        self.assertEqual(self.controller.open(b""), 8)

    def test_request_travels(self) -> None:
        """What is asked arrives as it was said."""
        request = b"\x2a\x03\x0a\x01x"
        stream = self.agent.open(request)
        self.pair.flush()
        self.assertEqual(self.pair.heard[self.controller], [StreamOpened(stream, request)])

    def test_small_writes_are_joined(self) -> None:
        """Small writes that wait go as one frame, lane by lane, records by themselves."""
        for lane, data in ((0, b"a"), (0, b"b"), (1, b"c"), (2, b"d"), (2, b"e"), (0, b"f")):
            self.controller.send(self.stream, lane, data)
        self.pair.flush()
        self.assertEqual(
            [(frame.lane, frame.payload) for frame in self.data(self.controller)],
            [(0, b"ab"), (1, b"c"), (2, b"d"), (2, b"e"), (0, b"f")],
        )

    def test_large_writes_are_cut(self) -> None:
        """Large writes go in frames no larger than asked for."""
        self.controller.send(self.stream, 0, b"x" * 100_000)
        while self.pair.move(self.controller, 16_384):
            pass
        sizes = [len(frame.payload) for frame in self.data(self.controller)]
        self.assertEqual(sizes, [16_384] * 6 + [100_000 - 6 * 16_384])

    def test_end_with_the_last_bytes(self) -> None:
        """A finish goes in the message of the last bytes."""
        self.controller.send(self.stream, 0, b"x")
        self.controller.finish(self.stream)
        self.pair.move(self.controller)
        self.assertEqual(self.pair.frames[self.controller], [Data(2, 0, 0, b"x"), Finish(2, 1)])

    def test_closed_when_both_ends_are_acknowledged(self) -> None:
        """A stream is history once both finished and each heard the other."""
        self.controller.finish(self.stream)
        self.agent.finish(self.stream)
        self.pair.flush()
        self.assertEqual((len(self.controller), len(self.agent)), (0, 0))
        self.assertIn(StreamFinished(2), self.pair.heard[self.controller])

    def test_tombstone(self) -> None:
        """A reset stream is held until the peer heard of it."""
        self.controller.reset(self.stream, GONE)
        self.assertTrue(self.controller.holds(self.stream))
        self.pair.flush()
        self.assertFalse(self.controller.holds(self.stream))
        self.assertEqual(self.pair.heard[self.agent], [StreamBroken(2, GONE)])

    def test_reset_before_open_went(self) -> None:
        """A stream that was reset before its Open went never was."""
        stream = self.controller.open(b"")
        self.controller.reset(stream, GONE)
        self.pair.flush()
        self.assertFalse(self.controller.holds(stream))
        self.assertEqual(self.pair.heard[self.agent], [])

    def test_both_reset(self) -> None:
        """Resets that cross leave nothing behind, and surprise nobody."""
        self.controller.reset(self.stream, GONE)
        self.agent.reset(self.stream, GONE)
        self.pair.flush()
        self.assertEqual((len(self.controller), len(self.agent)), (0, 0))
        self.assertEqual((self.pair.heard[self.controller], self.pair.heard[self.agent]), ([], []))

    def test_reset_drops_what_waits(self) -> None:
        """What is unsent when a stream is reset is not sent."""
        self.controller.send(self.stream, 0, b"x" * 1000)
        self.controller.reset(self.stream, GONE)
        self.pair.flush()
        self.assertEqual(self.pair.frames[self.controller], [Reset(2, 0, GONE)])

    def test_too_many_of_ours(self) -> None:
        """One stream too many is refused here already."""
        for _ in range(STREAMS_LIMIT - 1):
            self.controller.open(b"")
        with self.assertRaises(StreamReset) as caught:
            self.controller.open(b"")
        self.assertEqual(caught.exception.reason.code, ResetCode.LIMIT)
        self.pair.flush()
        self.assertEqual(len(self.agent), STREAMS_LIMIT)

    def test_misuse(self) -> None:
        """Opening before Hello, records too long, and handing on what never came are bugs of this side."""
        with self.assertRaises(LinkLost):
            Mux(Role.AGENT, b"x" * 16).open(b"")
        with self.assertRaises(LocalMisuse):
            self.controller.send(self.stream, Lane.RESULT, b"x" * 32769)
        with self.assertRaises(LocalMisuse):
            self.controller.delivered(self.stream, 1)

    def test_thousands_reset_at_once(self) -> None:
        """All streams may be reset at once: a peer that reads only then is no flood."""
        streams = [self.controller.open(b"") for _ in range(STREAMS_LIMIT - 1)]
        self.pair.flush()
        for stream in streams:
            self.controller.reset(stream, GONE)
        while (message := self.controller.next_message()) is not None:
            self.pair.arrive(self.agent, message)
        self.pair.flush()
        self.assertEqual((len(self.controller), len(self.agent)), (1, 1))

    def test_thousands_close_at_once(self) -> None:
        """All streams may close at once, and be reset by whoever has not heard of it yet."""
        streams = [self.controller.open(b"") for _ in range(STREAMS_LIMIT - 1)]
        self.pair.flush()
        for stream in streams:
            self.controller.finish(stream)
            self.agent.finish(stream)
        self.pair.forget()
        while (message := self.controller.next_message()) is not None:
            self.agent.receive(message)
        while (message := self.agent.next_message()) is not None:
            self.pair.arrive(self.controller, message)
        while (message := self.controller.next_message()) is not None:
            self.agent.receive(message)
        for stream in streams:
            self.controller.reset(stream, GONE)
            self.assertTrue(self.agent.delivered(stream, 1))
        while (message := self.controller.next_message()) is not None:
            self.agent.receive(message)
        self.pair.flush()
        self.assertEqual((len(self.controller), len(self.agent)), (1, 1))

    def test_many_pings(self) -> None:
        """However many pings wait, each message is lawful."""
        for token in range(3000):
            self.controller.ping(token)
        self.pair.flush()
        self.assertEqual(self.pair.heard[self.controller], [PongArrived(token) for token in range(3000)])

    def test_ping(self) -> None:
        """A ping is answered with its token."""
        self.controller.ping(7)
        self.pair.flush()
        self.assertEqual(self.pair.frames[self.agent], [Pong(7)])
        self.assertEqual(self.pair.heard[self.controller], [PongArrived(7)])


class CreditTests(PairCase):
    """Who may send how much."""

    def test_window(self) -> None:
        """Without a byte handed on, exactly the window is sent."""
        self.controller.send(self.stream, 0, b"x" * (WINDOW + 1))
        while self.pair.move(self.controller, lose=True):
            pass
        self.assertEqual(sum(len(frame.payload) for frame in self.data(self.controller)), WINDOW)
        self.assertEqual(self.controller.queued(self.stream), 1)

    def test_end_needs_no_credit(self) -> None:
        """A finish goes even when the window is used up."""
        self.controller.send(self.stream, 0, b"x" * WINDOW)
        self.controller.finish(self.stream)
        while self.pair.move(self.controller, lose=True):
            pass
        self.assertEqual(self.pair.frames[self.controller][-1], Finish(2, WINDOW))

    def test_grants(self) -> None:
        """Credit comes back in halves of a window, so two frames serve one."""
        self.controller.send(self.stream, 0, b"x" * (4 * WINDOW))
        self.pair.flush()
        grants = [frame for frame in self.pair.frames[self.agent] if isinstance(frame, Credit)]
        self.assertEqual(len(grants), 8)
        self.assertEqual(grants[-1].limit, 5 * WINDOW)

    def test_many_small_pieces(self) -> None:
        """Many tiny pieces are acknowledged long before half a window: the sender keeps each."""
        for _ in range(128):
            self.controller.send(self.stream, 0, b"k")
            self.pair.flush()
        self.assertEqual(self.controller.kept(self.stream), 0)

    def test_grants_of_a_byte(self) -> None:
        """A peer that grants byte by byte and acknowledges nothing is sent a bounded number of frames."""
        pair = MuxPair(window=0)
        stream = pair.controller.open(b"")
        pair.controller.send(stream, 0, b"x" * 2 * KEPT_LIMIT)
        pair.flush()
        for limit in range(1, KEPT_LIMIT + 100):
            pair.controller.receive(frames.encode([Credit(stream, 0, limit)]))
            pair.move(pair.controller, lose=True)
        self.assertEqual(pair.controller.kept(stream), KEPT_LIMIT)
        pair.controller.receive(frames.encode([Credit(stream, KEPT_LIMIT, 2 * KEPT_LIMIT)]))
        self.assertTrue(pair.move(pair.controller, lose=True))
        self.assertEqual(pair.controller.queued(stream), 0)

    def test_many_frames_as_one_piece(self) -> None:
        """However many frames were joined before they were handed on, the sender hears that it may go on."""
        for first in (0, 1):
            self.setUp()
            for _ in range(KEPT_LIMIT):
                self.controller.send(self.stream, 0, b"k")
                message = self.controller.next_message()
                assert message is not None
                self.agent.receive(message)
            self.controller.send(self.stream, 0, b"last")
            self.assertIsNone(self.controller.next_message())
            for count in (first, KEPT_LIMIT - first):
                if count:
                    self.agent.delivered(self.stream, count)
                    self.pair.flush()
            self.assertEqual((self.controller.kept(self.stream), self.controller.queued(self.stream)), (4, 0))

    def test_tiny_writes_that_wait(self) -> None:
        """They are joined, so that each costs no object; a record and another lane stay apart."""
        outbound = Outbound(2, 0)
        said = [(0, b"a"), (0, b"b"), (1, b"c"), (1, b"d"), (2, b"e"), (2, b"f"), (0, b"g")]
        for lane, data in said:
            outbound.write(lane, data)
        self.assertEqual(list(outbound._waiting), [(0, b"ab"), (1, b"cd"), (2, b"e"), (2, b"f"), (0, b"g")])
        for _ in range(100_000):
            outbound.write(0, b"x")
        self.assertLess(len(outbound._waiting), 40)
        outbound.acknowledge(0, 1 << 20)
        taken = [outbound.take(65536) for _ in range(7)]
        self.assertEqual({type(frame.payload) for frame in taken if isinstance(frame, Data)}, {bytes})
        self.assertEqual((outbound.queued, outbound.sent), (0, 100_007))

    def test_own_window(self) -> None:
        """Each side states its own window, for streams of either side."""
        pair = MuxPair(window=100_000)
        for mux, sender in ((pair.agent, pair.controller), (pair.controller, pair.agent)):
            stream = mux.open(b"")
            pair.flush()
            sender.send(stream, 0, b"x" * 200_000)
            pair.forget()
            while pair.move(sender, lose=True):
                pass
            self.assertEqual(
                sum(len(frame.payload) for frame in pair.frames[sender] if isinstance(frame, Data)), 100_000
            )

    @settings(max_examples=50, deadline=None)
    @given(st.lists(st.tuples(st.sampled_from((0, 2)), st.integers(1, 500)), max_size=60))
    def test_never_stuck(self, pieces: list[tuple[int, int]]) -> None:
        """Whatever is written arrives whole through a small window, records too."""
        pair = MuxPair(window=1000)
        stream = pair.controller.open(b"")
        for lane, size in pieces:
            pair.controller.send(stream, lane, bytes([size % 256]) * size)
        pair.controller.finish(stream)
        pair.flush()
        arrived = [event.data for event in pair.heard[pair.agent] if isinstance(event, DataArrived)]
        self.assertEqual(b"".join(arrived), b"".join(bytes([size % 256]) * size for _, size in pieces))
        self.assertIn(StreamFinished(stream), pair.heard[pair.agent])


class TurnTests(PairCase):
    """What goes first."""

    def test_little_before_bulk(self) -> None:
        """A keystroke goes in the very next message, alone; bulk goes on after it."""
        shell = self.controller.open(b"")
        self.controller.send(self.stream, 0, b"b" * 500_000)
        self.pair.move(self.controller)
        self.controller.send(shell, 0, b"k")
        self.pair.forget()
        self.pair.move(self.controller)
        self.assertEqual(self.pair.frames[self.controller], [Data(shell, 0, 0, b"k")])

    def test_bulk_takes_turns(self) -> None:
        """Bulk streams take turns, a chunk each."""
        second = self.controller.open(b"")
        for stream in (self.stream, second):
            self.controller.send(stream, 0, b"b" * 300_000)
        for _ in range(6):
            self.pair.move(self.controller)
            self.pair.move(self.agent)
        self.assertEqual([frame.stream for frame in self.data(self.controller)], [self.stream, second] * 3)

    def test_bulk_does_not_starve(self) -> None:
        """Endless little ones leave every ninth message to bulk."""
        shell = self.controller.open(b"")
        self.controller.send(self.stream, 0, b"b" * 500_000)
        for _ in range(30):
            self.controller.send(shell, 0, b"k")
            self.pair.move(self.controller)
            self.pair.move(self.agent)
        bulk = [frame for frame in self.data(self.controller) if frame.stream == self.stream]
        self.assertGreaterEqual(len(bulk), 3)

    def sent_into_the_void(self) -> int:
        """How much the controller sends while no acknowledgement comes."""
        while self.pair.move(self.controller, lose=True):
            pass
        return self.controller.kept(self.stream)

    def test_alone_it_may_use_the_window(self) -> None:
        """A stream that is alone has its whole window on the way."""
        self.controller.send(self.stream, 0, b"b" * (2 * WINDOW))
        self.assertEqual(self.sent_into_the_void(), WINDOW)

    def test_leaves_room_for_others(self) -> None:
        """Beside another stream only a little is on the way, and each acknowledgement lets more go."""
        shell = self.controller.open(b"")
        self.pair.flush()
        self.controller.send(self.stream, 0, b"b" * (2 * WINDOW))
        self.assertLess(self.sent_into_the_void(), SHARED + 65536)
        self.controller.send(shell, 0, b"k")
        self.assertTrue(self.pair.move(self.controller, lose=True))

    def test_all_arrives_beside_others(self) -> None:
        """With acknowledgements nothing is held back for good, whoever comes and goes."""
        self.controller.send(self.stream, 0, b"b" * (2 * WINDOW))
        for _ in range(3):
            self.pair.move(self.controller)
        shells = [self.controller.open(b""), self.agent.open(b"")]
        self.pair.flush()
        self.controller.reset(shells[0], GONE)
        self.agent.reset(shells[1], GONE)
        self.pair.flush()
        self.assertEqual(sum(len(frame.payload) for frame in self.data(self.controller)), 2 * WINDOW)
        self.assertEqual(self.controller.queued(self.stream), 0)

    def test_the_other_ends_first(self) -> None:
        """A stream that held back for another goes on when that ends, without an acknowledgement."""
        shell = self.controller.open(b"")
        self.pair.flush()
        self.controller.send(self.stream, 0, b"b" * (2 * WINDOW))
        held = self.sent_into_the_void()
        self.controller.reset(shell, GONE)
        while self.controller.holds(shell):
            self.pair.move(self.controller)
            self.pair.move(self.agent)
        self.assertGreater(self.sent_into_the_void(), held)

    def test_again_after_a_cut(self) -> None:
        """What was on the way when the link broke does not hold back its being sent again."""
        self.controller.send(self.stream, 0, b"b" * (2 * WINDOW))
        self.sent_into_the_void()
        self.controller.open(b"")
        self.pair.detach()
        self.pair.attach()
        self.pair.flush()
        self.assertEqual(self.controller.queued(self.stream), 0)

    def test_fed_in_small_pieces(self) -> None:
        """A copy that is fed in small pieces stays bulk, and does not crowd out a shell."""
        shell = self.controller.open(b"")
        self.controller.send(self.stream, 0, b"b" * 100_000)
        self.pair.move(self.controller)
        self.pair.move(self.controller)
        self.controller.send(self.stream, 0, b"b" * 2000)
        self.controller.send(shell, 0, b"k")
        self.pair.forget()
        self.pair.move(self.controller)
        self.assertEqual([frame.stream for frame in self.data(self.controller)], [shell])

    def test_control_goes_first(self) -> None:
        """Control frames ride in front of bulk."""
        self.controller.send(self.stream, 0, b"b" * 500_000)
        self.controller.ping(1)
        stream = self.controller.open(b"")
        self.pair.move(self.controller)
        self.assertEqual([type(frame) for frame in self.pair.frames[self.controller]], [Ping, Open, Data])
        self.assertTrue(self.agent.holds(stream))

    def test_large_opens(self) -> None:
        """Large requests fill no message beyond its limit, and no byte overtakes its Open."""
        request = frames.decode(  # a legal request of nearly the largest size
            frames.encode([Open(4, 0, b"\x0a\xf5\xff\x3f\x0a\xf1\xff\x3f" + b"x" * (1048576 - 15))])
        )[0]
        assert isinstance(request, Open)
        streams = [self.controller.open(request.request) for _ in range(3)]
        for stream in streams:
            self.controller.send(stream, 0, b"x")
        self.pair.flush()
        opened = [event.stream for event in self.pair.heard[self.agent] if isinstance(event, StreamOpened)]
        arrived = [event.stream for event in self.pair.heard[self.agent] if isinstance(event, DataArrived)]
        self.assertEqual((opened, arrived), (streams, streams))

    def test_many_little_streams(self) -> None:
        """Thousands of little streams fit into a few lawful messages."""
        streams = [self.controller.open(b"") for _ in range(3000)]
        for stream in streams:
            self.controller.send(stream, 0, b"x")
            self.controller.finish(stream)
        self.pair.flush()
        arrived = [event for event in self.pair.heard[self.agent] if isinstance(event, DataArrived)]
        self.assertEqual(len(arrived), 3000)
        self.assertLess(self.pair.messages, 60)


class ReturnTests(PairCase):
    """A new link; ``test_resume`` has the random ones."""

    def back(self) -> None:
        self.pair.detach()
        self.pair.attach()
        self.pair.flush()

    def test_lost_open(self) -> None:
        """An Open that was lost goes again, with its bytes."""
        stream = self.controller.open(b"")
        self.controller.send(stream, 0, b"x")
        self.pair.move(self.controller, lose=True)
        self.back()
        self.assertIn(StreamOpened(stream, b""), self.pair.heard[self.agent])
        self.assertIn(DataArrived(stream, 0, b"x"), self.pair.heard[self.agent])

    def test_lost_last_acknowledgement(self) -> None:
        """A stream that is history to the peer is history here, though its last word was lost."""
        self.controller.finish(self.stream)
        self.pair.flush()
        self.agent.finish(self.stream)
        self.pair.move(self.agent)
        self.assertFalse(self.controller.holds(self.stream))
        self.assertTrue(self.pair.move(self.controller, lose=True))
        self.assertTrue(self.agent.holds(self.stream))
        self.back()
        self.assertFalse(self.agent.holds(self.stream))
        self.assertIn(StreamClosed(2), self.pair.heard[self.agent])

    def test_lost_open_goes_first(self) -> None:
        """An Open that was lost goes before one of a stream that was opened before the peer's Hello."""
        lost = self.controller.open(b"")
        self.pair.move(self.controller, lose=True)
        self.pair.detach()
        self.pair.attach()
        later = self.controller.open(b"")
        self.pair.flush()
        self.assertEqual(
            [event for event in self.pair.heard[self.agent] if isinstance(event, StreamOpened)],
            [StreamOpened(lost, b""), StreamOpened(later, b"")],
        )
        self.assertEqual((len(self.controller), len(self.agent)), (3, 3))

    def test_acknowledged_before_it_goes_again(self) -> None:
        """What is acknowledged before it went again does not go, and does not hold up others."""
        self.pair = pair = MuxPair(window=20_000)
        stream, other = pair.controller.open(b""), pair.controller.open(b"")
        pair.flush()
        pair.controller.send(stream, 0, b"x" * 10_000)
        message = pair.controller.next_message()
        assert message is not None
        pair.agent.receive(message)
        pair.detach()
        pair.attach()
        pair.move(pair.controller)
        pair.move(pair.agent)
        pair.controller.send(other, 0, b"y" * 5_000)
        pair.agent.delivered(stream, 10_000)
        pair.move(pair.agent)
        pair.forget()
        pair.move(pair.controller)
        self.assertEqual(pair.frames[pair.controller], [Data(other, 0, 0, b"y" * 5_000)])

    def test_half_a_link(self) -> None:
        """Who gave up, and was not heard when it said so, does not take up what it gave up."""
        stream = self.controller.open(b"")
        self.pair.flush()
        self.pair.detach()
        self.agent.abandon(GONE)
        self.pair.attach()
        self.pair.move(self.controller)
        self.pair.move(self.agent, lose=True)
        self.back()
        opened = [event for event in self.pair.heard[self.agent] if isinstance(event, StreamOpened)]
        self.assertEqual([event.stream for event in opened], [stream])
        self.assertEqual((len(self.controller), len(self.agent)), (0, 0))
        self.assertEqual(
            [event.stream for event in self.pair.heard[self.controller] if isinstance(event, StreamBroken)],
            [self.stream, stream],
        )

    def test_half_a_link_of_a_fresh_mux(self) -> None:
        """A process that forgot its peer starts anew with it, though ids and instance are those of before."""
        self.agent.send(self.stream, 0, b"of the old")
        self.replace(self.controller, b"c" * 16)
        self.pair.attach()
        self.pair.move(self.agent)
        self.assertEqual(self.pair.controller.open(b""), self.stream)
        self.pair.move(self.pair.controller, lose=True)
        self.pair.detach()
        self.pair.attach()
        # It says what it holds of the old before it hears of the new.
        self.pair.move(self.agent)
        stream = self.pair.controller.open(b"")
        self.pair.flush()
        heard = self.pair.heard[self.pair.controller]
        self.assertEqual([event for event in heard if isinstance(event, DataArrived)], [])
        self.assertTrue(self.agent.holds(stream))
        self.assertEqual((len(self.pair.controller), len(self.agent)), (2, 2))

    def test_first_link_is_cut_early(self) -> None:
        """What was opened on a first link on which one side heard nothing at all goes on by the next."""
        pair = self.pair
        for mux in (pair.controller, pair.agent):
            mux.abandon(GONE)
        pair.attach()
        pair.move(pair.agent)
        stream = pair.controller.open(b"")
        pair.move(pair.controller, lose=True)
        pair.detach()
        pair.attach()
        pair.flush()
        self.assertEqual(pair.heard[pair.agent][1:], [StreamOpened(stream, b"")])
        self.assertTrue(pair.controller.holds(stream))

    def test_visit_elsewhere(self) -> None:
        """What a peer lost as it heard another one is not asked of it again when it comes back."""
        for unheard in (0, 1):
            self.setUp()
            first, opened = self.pair.controller, self.pair.heard[self.agent]
            stream = self.controller.open(b"")
            self.pair.move(self.controller)
            self.assertIn(StreamOpened(stream, b""), opened)
            self.replace(first, b"d" * 16)
            self.pair.attach()
            self.pair.flush()
            self.assertEqual(len(self.agent), 0)
            self.pair.detach()
            opened.clear()
            self.pair.controller = first
            self.pair.heard, self.pair.frames = {first: [], self.agent: opened}, {first: [], self.agent: []}
            for _ in range(unheard):
                self.pair.attach()
                self.pair.move(first)
                self.pair.move(self.agent, lose=True)
            self.back()
            self.assertEqual([event for event in opened if not isinstance(event, Introduced)], [])
            self.assertEqual((len(first), len(self.agent)), (0, 0))

    def test_met_on_the_way(self) -> None:
        """Who comes from another and is cut off before it was heard again is known by its former epoch."""
        self.replace(self.pair.controller, b"d" * 16)
        self.pair.attach()
        self.pair.move(self.agent)
        stream = self.pair.controller.open(b"")
        self.pair.move(self.pair.controller)
        self.back()
        self.assertIn(StreamOpened(stream, b""), self.pair.heard[self.agent])
        self.assertTrue(self.pair.controller.holds(stream))

    def test_epochs(self) -> None:
        """Another epoch begins whenever streams were given up, and no two muxes share one."""
        fresh = Mux(Role.AGENT, self.agent.instance)
        before = [self.epoch(mux) for mux in (self.controller, self.agent, fresh) for _ in range(2)]
        self.assertEqual(before[::2], before[1::2])
        for mux in (self.controller, self.agent, fresh):
            mux.abandon(GONE)
        self.assertEqual(self.epoch(fresh), before[-1], "it had nothing to give up")
        after = [self.epoch(mux) for mux in (self.controller, self.agent)]
        self.assertEqual(len({*before, *after}), 5)

    def epoch(self, mux: Mux) -> int:
        """The epoch in its next Hello."""
        mux.attach(Hello())
        message = mux.next_message()
        assert message is not None
        [hello] = frames.decode(message)
        assert isinstance(hello, Hello)
        return hello.epoch

    def test_closed_between_hellos(self) -> None:
        """A process that was restarted hears no answer about streams that it never knew."""
        self.controller.finish(self.stream)
        self.agent.send(self.stream, 0, b"x")
        self.agent.finish(self.stream)
        self.pair.move(self.controller)
        message = self.agent.next_message()
        assert message is not None
        self.controller.receive(message)
        self.replace(self.agent, b"n" * 16)
        self.pair.attach()
        self.assertTrue(self.controller.delivered(self.stream, 2))
        self.pair.flush()
        self.assertTrue(self.pair.agent.introduced)

    def test_late(self) -> None:
        """A Hello of an older link is known for what it is; another process counts for itself."""
        hellos = []
        for _ in range(3):
            self.pair.detach()
            self.pair.attach()
            message = self.agent.next_message()
            assert message is not None
            hellos += [frame for frame in frames.decode(message) if isinstance(frame, Hello)]
        self.controller.receive(frames.encode([hellos[1]]))
        self.assertEqual([self.controller.is_late(hello) for hello in hellos], [True, True, False])
        self.assertFalse(self.controller.is_late(replace(hellos[0], instance=b"n" * 16)))
        self.assertFalse(self.controller.is_late(replace(hellos[0], number=0)))

    def replace(self, mux: Mux, instance: bytes) -> None:
        """A fresh mux takes the place of this one, on no link yet."""
        self.pair.detach()
        fresh = Mux(mux.role, instance)
        if mux is self.agent:
            self.pair.agent = fresh
        else:
            self.pair.controller = fresh
        del self.pair.heard[mux], self.pair.frames[mux]
        self.pair.heard[fresh], self.pair.frames[fresh] = [], []

    def test_restart(self) -> None:
        """Streams of a process that is gone are lost, and the next link works."""
        self.replace(self.agent, b"n" * 16)
        self.pair.attach()
        self.pair.flush()
        broken = [event for event in self.pair.heard[self.controller] if isinstance(event, StreamBroken)]
        self.assertEqual([event.reason.code for event in broken], [ResetCode.LOST])
        stream = self.controller.open(b"")
        self.pair.flush()
        self.assertTrue(self.pair.agent.holds(stream))

    def test_abandoned_by_one_side(self) -> None:
        """When one side gave the streams up they are lost on the other, too."""
        self.pair.detach()
        self.assertEqual(self.agent.abandon(GONE), [StreamBroken(2, GONE)])
        self.pair.attach()
        self.pair.flush()
        self.assertEqual(len(self.controller), 0)
        self.assertEqual(self.pair.heard[self.controller][1].reason.code, ResetCode.LOST)


class DutyTests(PairCase):
    """Who takes new sessions."""

    def duties(self, mux: Mux) -> list[Duty]:
        """What ``mux`` was told."""
        return [event.duty for event in self.pair.heard[mux] if isinstance(event, DutyTold)]

    def test_told(self) -> None:
        """Either side tells the other, and the newest word counts."""
        self.controller.tell_duty(Duty.STANDBY)
        self.controller.tell_duty(Duty.ACTIVE)
        self.agent.tell_duty(Duty.DRAINING)
        self.pair.flush()
        self.assertEqual(self.duties(self.agent), [Duty.ACTIVE])
        self.assertEqual(self.duties(self.controller), [Duty.DRAINING])

    def test_told_anew(self) -> None:
        """A new link hears nothing of what was said on the last, whether it went or not."""
        self.controller.tell_duty(Duty.ACTIVE)
        self.pair.flush()
        self.controller.tell_duty(Duty.STANDBY)
        self.pair.forget()
        self.pair.detach()
        self.pair.attach()
        self.pair.flush()
        self.assertEqual(self.duties(self.agent), [])
        self.controller.tell_duty(Duty.ACTIVE)
        self.pair.flush()
        self.assertEqual(self.duties(self.agent), [Duty.ACTIVE])

    def test_waits_for_hello(self) -> None:
        """What is said before the peer's Hello goes after it."""
        self.pair.detach()
        self.pair.attach()
        self.controller.tell_duty(Duty.STANDBY)
        self.pair.flush()
        self.assertEqual(self.duties(self.agent), [Duty.STANDBY])

    def test_behind_opens(self) -> None:
        """It goes behind what was opened before, in however many messages that takes."""
        request = encode_request(Exec((b"x" * 40_000,)))
        streams = [self.controller.open(request) for _ in range(3)]
        self.controller.tell_duty(Duty.STANDBY)
        self.pair.flush()
        self.assertGreater(self.pair.messages, 1)
        heard = [event for event in self.pair.heard[self.agent] if isinstance(event, StreamOpened | DutyTold)]
        self.assertEqual([getattr(event, "stream", 0) for event in heard], [*streams, 0])


class ViolationTests(PairCase):
    """What a peer may not do."""

    def refused(self, *said: Frame) -> str:
        """Why the agent drops a controller that says this."""
        with self.assertRaises(RemoteViolation) as caught:
            self.agent.receive(frames.encode(said))
        return str(caught.exception)

    def test_law(self) -> None:
        """Each breach is named."""
        for said, reason in (
            (Data(2, 1, 0, b"x"), "data at 1, expected 0"),
            (Data(4, 0, 0, b"x"), "stream 4 was never opened"),
            (Data(1, 0, 0, b"x"), "stream 1 was never opened"),
            (Data(0, 0, 0, b"x"), "stream 0 was never opened"),
            (Finish(2, 1), "finished at 1, expected 0"),
            (Reset(2, WINDOW + 2, GONE), "reset at"),
            (Credit(2, 1, WINDOW), "1 acknowledged, but only 0 were sent"),
            (Open(3, 1, b""), "the peer opened stream 3, an id of this side"),
            (Hello(instance=b"c" * 16), "a second Hello"),
            (Hello(instance=b"c"), "an instance of 1 bytes"),
            (Data(2, 1 << 63, 0, b"x"), "beyond all sense"),
        ):
            self.assertIn(reason, self.refused(said))

    def test_beyond_the_window(self) -> None:
        """Data above what was granted is a breach."""
        chunk = b"x" * 65536
        for offset in range(0, WINDOW, 65536):
            self.agent.receive(frames.encode([Data(2, offset, 0, chunk)]))
        self.assertIn("granted up to", self.refused(Data(2, WINDOW, 0, b"x")))

    def test_data_after_the_end(self) -> None:
        """Data after a finish is a breach."""
        self.agent.receive(frames.encode([Finish(2, 0)]))
        self.assertIn("after its end", self.refused(Data(2, 1, 0, b"x")))

    def test_record_in_pieces(self) -> None:
        """Half a record again is a breach, half of bytes again is not."""
        self.agent.receive(frames.encode([Data(2, 0, 0, b"ab")]))
        events = self.agent.receive(frames.encode([Data(2, 1, 0, b"bc")]))
        self.assertEqual(events, [DataArrived(2, 0, b"c")])
        self.assertIn("came in pieces", self.refused(Data(2, 2, Lane.RESIZE, b"cd")))

    def test_before_hello(self) -> None:
        """Nothing but Hello, or the reason for hanging up, is said first."""
        mux = Mux(Role.AGENT, b"x" * 16)
        mux.attach(Hello())
        with self.assertRaises(RemoteViolation):
            mux.receive(frames.encode([Ping(1)]))
        self.assertEqual(len(mux.receive(frames.encode([Goodbye("no", False)]))), 1)

    def test_ping_flood(self) -> None:
        """A peer that makes us answer and does not read is dropped."""
        pings = frames.encode([Ping(1)] * 1000)
        with self.assertRaises(RemoteViolation):
            for _ in range(20):
                self.agent.receive(pings)

    def test_full_of_answers(self) -> None:
        """However many answers wait, what this side's user does never fails for it."""
        self.controller.finish(self.stream)
        self.agent.finish(self.stream)
        self.pair.move(self.agent)
        message = self.controller.next_message()
        assert message is not None
        self.agent.receive(message)
        with self.assertRaises(RemoteViolation):
            for _ in range(20):
                self.agent.receive(frames.encode([Ping(1)] * 1000))
        self.assertTrue(self.agent.delivered(self.stream, 1))

    def test_an_end_before_the_breach(self) -> None:
        """An end that the message told before it broke the law is not forgotten."""
        self.refused(Reset(2, 0, GONE), Data(9, 0, 0, b"x"))
        self.assertFalse(self.agent.holds(2))
        lost = Reason(ResetCode.LOST, "lost")
        self.assertEqual(self.agent.abandon(lost), [StreamBroken(2, GONE)])
        self.assertEqual(self.agent.abandon(lost), [])

    def test_too_many_of_theirs(self) -> None:
        """One stream too many of the peer's is refused, and costs nothing."""
        opens = [Open(2 * number, 1, b"") for number in range(2, STREAMS_LIMIT + 2)]
        for start in range(0, len(opens), 1000):
            self.agent.receive(frames.encode(opens[start : start + 1000]))
        self.assertEqual(len(self.agent), STREAMS_LIMIT)
        self.pair.move(self.agent, lose=True)
        refusals = [frame for frame in self.pair.frames[self.agent] if isinstance(frame, Reset)]
        self.assertEqual([(frame.stream, frame.reason.code) for frame in refusals], [(8194, ResetCode.LIMIT)])
        self.agent.receive(frames.encode(opens[-1:]))
        self.pair.move(self.agent, lose=True)
        self.assertEqual(self.pair.frames[self.agent], refusals * 2)

    def test_repeated_open(self) -> None:
        """A repeated Open is ignored, one of a stream that is history is refused."""
        self.assertEqual(self.agent.receive(frames.encode([Open(2, 1, b"")])), [])
        self.assertTrue(self.agent.holds(2))
        self.assertIsNone(self.agent.next_message())
        self.controller.reset(self.stream, GONE)
        self.pair.flush()
        self.assertEqual(self.agent.receive(frames.encode([Open(2, 1, b"")])), [])
        self.assertFalse(self.agent.holds(2))

    @settings(max_examples=200, deadline=None)
    @given(st.binary(max_size=200))
    def test_garbage(self, message: bytes) -> None:
        """Any bytes are events or a violation, never another failure."""
        pair = MuxPair()
        pair.controller.open(b"")
        pair.flush()
        try:
            pair.agent.receive(message)
        except RemoteViolation:
            pass

    ANY_FRAME = st.one_of(
        st.builds(
            Data, st.integers(0, 5), st.integers(0, 5), st.integers(0, 9), st.binary(min_size=1, max_size=5)
        ),
        st.builds(Credit, st.integers(0, 5), st.integers(0, 9), st.integers(0, 1 << 40)),
        st.builds(Finish, st.integers(0, 5), st.integers(0, 5)),
        st.builds(Reset, st.integers(0, 5), st.integers(0, 5), st.just(GONE)),
        st.builds(Open, st.integers(0, 9), st.integers(0, 99), st.just(b"")),
        st.builds(Ping, st.integers(0, 9)),
        st.builds(Goodbye, st.just("x"), st.booleans()),
        st.builds(OnDuty, st.sampled_from(Duty)),
    )

    @settings(max_examples=200, deadline=None)
    @given(st.lists(ANY_FRAME, max_size=12))
    def test_any_frames(self, said: list[Frame]) -> None:
        """Any frames in any order are events or a violation, and what this side says stays lawful."""
        pair = MuxPair()
        pair.controller.open(b"")
        pair.flush()
        try:
            for frame in said:
                for event in pair.agent.receive(frames.encode([frame])):
                    if isinstance(event, DataArrived):
                        pair.agent.delivered(event.stream, len(event.data))
        except RemoteViolation:
            return
        while (message := pair.agent.next_message()) is not None:
            frames.decode(message)
