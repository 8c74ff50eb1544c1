"""Many streams on one link, without I/O: bytes in, events out, bytes when asked.

Theory of operation

Pull
    Nothing is written anywhere. Whoever owns the transport asks ``next_message``
    when the transport can take one more, so the decision whose turn it is falls
    as late as possible, and a keystroke waits for one chunk, not for a queue.

Offsets
    Everything a side sends on a stream has an absolute offset: payload bytes of
    all lanes count one each, ``Finish`` and ``Reset`` one. ``Credit`` says what
    was handed on (acknowledgement) and up to where may be sent (permission).
    ``Finish`` and ``Reset`` need an offset but no permission: they cost nothing
    to hold. Data is never dropped by the receiver, so a gap is a violation;
    what was seen already is dropped, so sending twice does no harm.

The end of a stream
    A side that finished waits until its ``Finish`` is acknowledged; then, if the
    peer's is handed on too, the stream is history. A side that reset waits for
    the acknowledgement with nothing but the ``Reset`` in hand (a tombstone). A
    side that *receives* a ``Reset`` forgets the stream at once: there is nothing
    it could still be owed. A ``Reset`` for a stream that is history (both sides
    reset at once) is acknowledged from its own offset alone, so no memory is
    needed for it.

A new link
    ``detach`` keeps all streams. On the next link both sides list in ``Hello``
    what they hold. Of a stream that the peer lists, what it was handed on is
    dropped and the rest goes again. Of one that it does not list: an ``Open`` of
    ours that nothing came back for never arrived and goes again (``Open`` frames
    go in the order of their ids, so what arrived is a prefix); one on which both
    ends were sent is history there; any other is lost.

Whether streams go on
    A side whose streams are lost is in another *epoch* from then on, and says in ``Hello``
    which. Who hears the instance and the epoch that it heard last keeps its streams; else they
    were of something that is gone, and are lost. In turn each says which ``Hello`` of whom it
    heard last. If that is not one of ours, none of our ``Open``s has arrived there in its epoch,
    for nothing is said on a link before the ``Hello`` there was heard; what it lists is of the
    past. So each side judges for itself, and need not know whether its own ``Hello`` arrived.

    A side that had met one peer and hears another's ``Hello`` loses its streams there, but may have
    said its epoch on this link already. It says that one, too, from then on, as the former: by it
    the peer that it names may know it, for whom it had no streams in that epoch. For nobody else
    does it count.

A peer that makes this side answer without reading the answers is dropped when
``_ANSWERS_LIMIT`` of them wait.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import replace
from enum import Enum
from itertools import count

from tether.errors import LinkLost, LocalMisuse, Reason, RemoteViolation, ResetCode, StreamReset
from tether.wire import frames
from tether.wire.credit import SHARED
from tether.wire.events import (
    DataArrived,
    DutyTold,
    Event,
    Introduced,
    PeerLeaves,
    PongArrived,
    StreamBroken,
    StreamClosed,
    StreamFinished,
    StreamOpened,
)
from tether.wire.frames import (
    PAYLOAD_LIMIT,
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
    StreamState,
)
from tether.wire.lanes import RECORD_LANES, RECORD_LIMIT
from tether.wire.stream import Stream
from tether.wire.turns import LITTLE, Turns

#: What a peer may send on a stream before anything was handed on; also the most that it is sent.
WINDOW = WINDOW_LIMIT

#: How many answers may wait for a peer that does not read. One that does may end all streams
#: at once, each of them twice: in order, and by a reset that crosses the acknowledgement.
_ANSWERS_LIMIT = 4 * STREAMS_LIMIT + 1024
#: How many frames, and about how many bytes, of control go into one message.
_CONTROL_FRAMES = 512
_CONTROL_BYTES = 64 * 1024
#: About what a frame costs beside its payload.
_FRAME_COST = 32

_TOO_MANY = Reason(ResetCode.LIMIT, f"more than {STREAMS_LIMIT} streams are open")
_RESTARTED = Reason(ResetCode.LOST, "the other side was restarted")
_FORGOTTEN = Reason(ResetCode.LOST, "the other side no longer holds this stream")

#: Two muxes of one process never have the same, and none has one twice.
_epochs = count(1)
_NOBODY = (b"", 0)


class Role(Enum):
    """Which end this is; it decides who owns which stream ids."""

    AGENT = 1  # odd ids
    CONTROLLER = 2  # even ids, from 2


class Mux:
    """All streams between this process and one peer, over any number of links, one at a time."""

    def __init__(self, role: Role, instance: bytes, window: int = WINDOW) -> None:
        self.role = role
        self.instance = instance
        self.window = window
        self._next_id = role.value
        self._highest_of_peer = 0
        self._streams: dict[int, Stream] = {}
        self._own = 0  # how many of them this side opened
        self._untold: list[StreamBroken | StreamClosed] = []  # a violation came in the same message
        self._epoch = next(_epochs)
        self._former = 0  # the epoch before, if this one began by meeting another peer
        self._peer = _NOBODY  # whose streams these are: instance and epoch in its last Hello
        self._peer_window = 0
        self._links = 0  # how many there were
        self._newest = (b"", 0)  # whose Hello came last, and its number
        # What belongs to the present link; ``detach`` forgets it.
        self._introduction: Hello | None = None  # to be sent
        self._introduced = False  # the peer's was received
        self._goodbye: Goodbye | None = None
        self._duty: OnDuty | None = None
        self._answers: deque[Pong | Credit | Reset] = deque()
        self._pings: deque[Ping] = deque()
        self._credits: OrderedDict[int, None] = OrderedDict()
        self._opens: OrderedDict[int, None] = OrderedDict()
        self._resets: OrderedDict[int, None] = OrderedDict()
        self._turns = Turns()

    # ---- links come and go --------------------------------------------------

    def attach(self, introduction: Hello) -> None:
        """A new link: the next message is ``introduction``, with what this side holds filled in."""
        self.detach()
        self._links += 1
        self._introduction = replace(
            introduction, instance=self.instance, window=self.window, number=self._links
        )

    def detach(self) -> None:
        """The link is gone; every stream stays as it is, and may still be written to."""
        self._introduction = None
        self._introduced = False
        self._goodbye = None
        self._duty = None
        self._answers.clear()
        self._pings.clear()
        self._credits.clear()
        self._opens.clear()
        self._resets.clear()
        self._turns.clear()

    def abandon(self, reason: Reason) -> list[StreamBroken | StreamClosed]:
        """Nobody will come back for the streams: all end; the next link starts afresh."""
        self.detach()
        if self._peer is not _NOBODY:
            # Who has heard nobody has nothing to give up, and what is on its way is not lost.
            self._epoch, self._former, self._peer = next(_epochs), 0, _NOBODY
        events, self._untold = self._untold, []
        for stream in list(self._streams.values()):
            self._lose(stream, reason, events)
        return events

    def is_late(self, hello: Hello) -> bool:
        """Whether a later Hello of the same process came before this one: what it says has changed since."""
        instance, number = self._newest
        return hello.instance == instance and 0 < hello.number <= number

    @property
    def introduced(self) -> bool:
        """True while a link is there on which the peer said Hello."""
        return self._introduced

    # ---- what this side does --------------------------------------------------

    def open(self, request: bytes) -> int:
        """Open a stream at once; gives back its id."""
        if self._peer is _NOBODY:
            raise LinkLost("the other side has not said Hello yet")
        if self._own >= STREAMS_LIMIT:
            raise StreamReset(_TOO_MANY)
        if len(request) > frames.REQUEST_LIMIT:
            raise LocalMisuse(f"a request of {len(request)} bytes is longer than {frames.REQUEST_LIMIT}")
        stream = Stream(self._next_id, self._peer_window, self.window, request)
        self._next_id += 2
        self._streams[stream.id] = stream
        self._own += 1
        if self._introduced:
            # Else the peer's Hello decides: Opens that were lost go before this one.
            self._opens[stream.id] = None
        self._joined_by_another()
        return stream.id

    def send(self, stream_id: int, lane: int, data: bytes) -> None:
        """Queue bytes, or one record; ignored after ``finish``, after the end, and when empty."""
        stream = self._streams.get(stream_id)
        if stream is None or stream.outbound.finish_asked or stream.was_reset or not data:
            return
        if lane in RECORD_LANES and len(data) > RECORD_LIMIT:
            raise LocalMisuse(f"a record of {len(data)} bytes is longer than {RECORD_LIMIT}")
        stream.outbound.write(lane, data)
        self._ready(stream)

    def finish(self, stream_id: int) -> None:
        """Half-close: what was queued still goes, and then the end."""
        stream = self._streams.get(stream_id)
        if stream is None or stream.outbound.finish_asked or stream.was_reset:
            return
        stream.outbound.finish_asked = True
        self._ready(stream)

    def reset(self, stream_id: int, reason: Reason) -> None:
        """End both directions now; to this side the stream is history from here on."""
        stream = self._streams.get(stream_id)
        if stream is None or stream.was_reset:
            return
        self._turns.forget(stream_id)
        self._credits.pop(stream_id, None)
        if stream.request is not None and not stream.open_sent:
            self._forget(stream)
            return
        stream.was_reset = True
        stream.outbound.reset(reason)
        self._resets[stream_id] = None

    def delivered(self, stream_id: int, count: int) -> bool:
        """``count`` offsets that arrived were handed on; true when that closed the stream."""
        stream = self._streams.get(stream_id)
        if stream is None or stream.was_reset:
            return False
        ledger = stream.ledger
        if ledger.delivered + count > ledger.received:
            raise LocalMisuse(f"stream {stream_id}: more was handed on than arrived")
        worth_a_frame = ledger.hand_on(count, self._is_shared)
        if worth_a_frame or stream.inbound_over:
            self._credits[stream_id] = None
        return self._closed(stream)

    def ping(self, token: int) -> None:
        """Ask whether the peer is there."""
        self._pings.append(Ping(token))

    def say_goodbye(self, reason: str, retry: bool) -> None:
        """Tell the peer that the link is going to close."""
        self._goodbye = Goodbye(reason, retry)

    def tell_duty(self, duty: Duty) -> None:
        """Tell the peer who takes new sessions, behind all that was opened before.

        The newest word counts, and a new link must hear it anew.
        """
        self._duty = OnDuty(duty)

    def queued(self, stream_id: int) -> int:
        """How many bytes of this stream wait for the peer's credit or the link's turn."""
        stream = self._streams.get(stream_id)
        return 0 if stream is None else stream.outbound.queued

    def kept(self, stream_id: int) -> int:
        """How many offsets of this stream were sent and not acknowledged yet."""
        stream = self._streams.get(stream_id)
        return 0 if stream is None else stream.outbound.kept

    def holds(self, stream_id: int) -> bool:
        """True until the stream is history, tombstone included."""
        return stream_id in self._streams

    def __len__(self) -> int:
        return len(self._streams)

    # ---- whose turn it is -------------------------------------------------------

    def next_message(self, limit: int = PAYLOAD_LIMIT) -> bytes | None:
        """The next message, with about ``limit`` bytes of bulk at most; ``None``: nothing to say."""
        if self._introduction is not None:
            instance, epoch = self._peer
            hello = replace(
                self._introduction,
                epoch=self._epoch,
                former_epoch=self._former,
                peer_instance=instance,
                peer_epoch=epoch,
                streams=tuple(
                    StreamState(stream.id, *stream.ledger.grant()) for stream in self._streams.values()
                ),
            )
            self._introduction = None
            return frames.encode([hello])
        if not self._introduced:
            # All but the reason why this side hangs up has to wait for the peer's Hello.
            goodbye, self._goodbye = self._goodbye, None
            return None if goodbye is None else frames.encode([goodbye])
        batch: list[Frame] = []
        size = self._take_control(batch)
        if not self._opens and size < limit:
            # A stream's bytes must not overtake its Open.
            self._take_data(batch, limit)
        return frames.encode(batch) if batch else None

    def _take_control(self, batch: list[Frame]) -> int:
        size = 0
        if self._goodbye is not None:
            batch.append(self._goodbye)
            self._goodbye = None
        while self._pings and len(batch) < _CONTROL_FRAMES:
            batch.append(self._pings.popleft())
        while self._answers and len(batch) < _CONTROL_FRAMES:
            batch.append(self._answers.popleft())
        while self._credits and len(batch) < _CONTROL_FRAMES:
            stream = self._streams.get(self._credits.popitem(last=False)[0])
            if stream is not None:
                batch.append(Credit(stream.id, *stream.ledger.grant()))
        while self._opens and len(batch) < _CONTROL_FRAMES and size < _CONTROL_BYTES:
            stream = self._streams[self._opens.popitem(last=False)[0]]
            assert stream.request is not None
            batch.append(Open(stream.id, stream.ledger.limit, stream.request))
            stream.open_sent = True
            size += len(stream.request) + _FRAME_COST
        if self._duty is not None and not self._opens:
            # Behind what was opened before it was said.
            batch.append(self._duty)
            self._duty = None
        while self._resets and not self._opens and len(batch) < _CONTROL_FRAMES and size < _CONTROL_BYTES:
            stream = self._streams.get(self._resets.popitem(last=False)[0])
            if stream is not None and isinstance(stream.outbound.end, Reset):
                batch.append(stream.outbound.end)
                size += 4 * len(stream.outbound.end.reason.text) + _FRAME_COST
        return size + len(batch) * _FRAME_COST

    def _take_data(self, batch: list[Frame], limit: int) -> None:
        little, bulk = self._turns.next()
        while not self._take_turn(batch, limit, little, bulk) and (little or bulk is not None):
            # What was to be sent again was acknowledged meanwhile; the others must not wait for that.
            little, bulk = self._turns.next()

    def _take_turn(self, batch: list[Frame], limit: int, little: list[int], bulk: int | None) -> bool:
        """Take what these streams have; false if that was nothing."""
        before = len(batch)
        room = limit
        for position, stream_id in enumerate(little):
            if room <= 0 or len(batch) >= _CONTROL_FRAMES:
                for waiting in little[position:]:
                    self._ready(self._streams[waiting])
                return True
            room -= self._take_of(self._streams[stream_id], batch, min(room, LITTLE))
        if bulk is not None:
            self._take_of(self._streams[bulk], batch, room)
        return len(batch) > before

    def _take_of(self, stream: Stream, batch: list[Frame], budget: int) -> int:
        """Take one piece of a stream, and its end if that is all that is left."""
        taken = 0
        for _ in range(2):
            frame = stream.outbound.take(budget)
            if frame is None:
                break
            batch.append(frame)
            taken += frame.end - frame.offset + _FRAME_COST
            if stream.outbound.queued or not stream.outbound.sendable:
                break
        self._ready(stream)
        return taken

    def _ready(self, stream: Stream) -> None:
        outbound = stream.outbound
        if not self._introduced or not outbound.sendable:
            return
        if outbound.on_the_way >= SHARED and outbound.little and self._is_shared:
            # What is on the way stands before every keystroke. The acknowledgement calls again,
            # or the end of the other stream.
            return
        self._turns.ready(stream.id, outbound.little)

    # ---- what the peer does -------------------------------------------------------

    def receive(self, message: bytes) -> list[Event]:
        """What a message of the peer means.

        Raises ``RemoteViolation`` when the link must be dropped and its streams given up; what the
        message said before that is not told, but for the ends of streams, which ``abandon`` tells.
        """
        events: list[Event] = []
        try:
            for frame in frames.decode(message):
                self._receive_frame(frame, events)
        except RemoteViolation:
            self._untold += [event for event in events if isinstance(event, StreamBroken | StreamClosed)]
            raise
        return events

    def _receive_frame(self, frame: Frame, events: list[Event]) -> None:
        if not self._introduced and not isinstance(frame, Hello | Goodbye):
            raise RemoteViolation(f"{type(frame).__name__} before Hello")
        match frame:
            case Data():
                self._receive_data(frame, events)
            case Credit():
                self._receive_credit(frame, events)
            case Finish():
                self._receive_finish(frame, events)
            case Open():
                self._receive_open(frame, events)
            case Reset():
                self._receive_reset(frame, events)
            case Ping():
                self._answer(Pong(frame.token))
            case Pong():
                events.append(PongArrived(frame.token))
            case Goodbye():
                events.append(PeerLeaves(frame.reason, frame.retry))
            case OnDuty():
                events.append(DutyTold(frame.duty))
            case Hello():
                self._receive_hello(frame, events)

    def _receive_open(self, frame: Open, events: list[Event]) -> None:
        if self._is_own(frame.stream):
            raise RemoteViolation(f"the peer opened stream {frame.stream}, an id of this side")
        if frame.stream in self._streams:
            return
        if frame.stream <= self._highest_of_peer or len(self._streams) - self._own >= STREAMS_LIMIT:
            # An older id comes again only when it was refused here and the refusal was lost.
            self._highest_of_peer = max(self._highest_of_peer, frame.stream)
            self._answer(Reset(frame.stream, 0, _TOO_MANY))
            return
        self._highest_of_peer = frame.stream
        self._streams[frame.stream] = Stream(frame.stream, frame.window, self.window)
        self._joined_by_another()
        events.append(StreamOpened(frame.stream, frame.request))

    def _receive_data(self, frame: Data, events: list[Event]) -> None:
        stream = self._stream(frame.stream)
        if stream is None or stream.was_reset:
            return
        stream.confirm()
        ledger = stream.ledger
        payload = frame.payload
        if frame.end <= ledger.received:
            return
        if frame.offset > ledger.received:
            raise RemoteViolation(f"stream {stream.id}: data at {frame.offset}, expected {ledger.received}")
        if stream.inbound_finished:
            raise RemoteViolation(f"stream {stream.id}: data after its end")
        if frame.end > ledger.limit:
            raise RemoteViolation(f"stream {stream.id}: data up to {frame.end}, granted up to {ledger.limit}")
        if frame.offset < ledger.received:
            if frame.lane in RECORD_LANES:
                raise RemoteViolation(f"stream {stream.id}: a record at {frame.offset} came in pieces")
            payload = payload[ledger.received - frame.offset :]
        ledger.received = frame.end
        ledger.frames += 1
        events.append(DataArrived(stream.id, frame.lane, payload))

    def _receive_finish(self, frame: Finish, events: list[Event]) -> None:
        stream = self._stream(frame.stream)
        if stream is None or stream.was_reset:
            return
        stream.confirm()
        ledger = stream.ledger
        if stream.inbound_finished and frame.end == ledger.received:
            return
        if stream.inbound_finished or frame.offset != ledger.received:
            raise RemoteViolation(
                f"stream {stream.id}: finished at {frame.offset}, expected {ledger.received}"
            )
        ledger.received = frame.end
        stream.inbound_finished = True
        events.append(StreamFinished(stream.id))

    def _receive_reset(self, frame: Reset, events: list[Event]) -> None:
        stream = self._stream(frame.stream)
        self._answer(Credit(frame.stream, frame.end, frame.end))
        if stream is None:
            return
        if not stream.was_reset:
            if not stream.ledger.received <= frame.offset <= stream.ledger.limit + 1:
                raise RemoteViolation(
                    f"stream {stream.id}: reset at {frame.offset}, expected {stream.ledger.received}"
                )
            events.append(StreamBroken(stream.id, frame.reason))
        self._forget(stream)

    def _receive_credit(self, frame: Credit, events: list[Event]) -> None:
        stream = self._stream(frame.stream)
        if stream is None:
            return
        stream.confirm()
        stream.outbound.acknowledge(frame.delivered, frame.limit)
        if stream.was_reset:
            if stream.outbound.over:
                self._forget(stream)
        elif self._closed(stream):
            events.append(StreamClosed(stream.id))
        else:
            self._ready(stream)

    def _receive_hello(self, hello: Hello, events: list[Event]) -> None:
        if self._introduced:
            raise RemoteViolation("a second Hello on one link")
        named = (hello.peer_instance, hello.peer_epoch)
        heard_us = named[1] != 0 and named in ((self.instance, self._epoch), (self.instance, self._former))
        known, self._peer = self._peer, (hello.instance, hello.epoch)
        resumed = known == self._peer or (heard_us and known == (hello.instance, hello.former_epoch))
        self._introduced = True
        self._newest = (hello.instance, hello.number)
        self._peer_window = hello.window
        events.append(Introduced(hello, resumed))
        if resumed:
            # Who has not heard us holds nothing of what there is, and will learn of that now.
            self._resume({state.stream: state for state in hello.streams if heard_us}, events)
            return
        if known is not _NOBODY:
            self._former, self._epoch = self._epoch, next(_epochs)
        self._answers.clear()  # they are about streams that the peer never knew
        self._highest_of_peer = 0
        reason = _RESTARTED if known[0] not in (b"", hello.instance) else _FORGOTTEN
        for stream in list(self._streams.values()):
            self._lose(stream, reason, events)

    def _resume(self, held: dict[int, StreamState], events: list[Event]) -> None:
        for stream in list(self._streams.values()):
            state = held.get(stream.id)
            if state is not None:
                stream.open_sent = True
                stream.confirm()
                stream.outbound.acknowledge(state.delivered, state.limit)
                if stream.was_reset:
                    if stream.outbound.over:
                        self._forget(stream)
                    else:
                        self._resets[stream.id] = None
                elif self._closed(stream):
                    events.append(StreamClosed(stream.id))
                else:
                    stream.outbound.rewind()
                    self._ready(stream)
            elif stream.request is not None and not stream.known and not stream.was_reset:
                stream.open_sent = False
                stream.outbound.rewind()
                self._opens[stream.id] = None
                self._ready(stream)
            else:
                self._lose(stream, _FORGOTTEN, events)

    def _lose(
        self, stream: Stream, reason: Reason, events: list[Event] | list[StreamBroken | StreamClosed]
    ) -> None:
        """The peer holds nothing of this stream: it is history there, or lost."""
        if stream.was_reset:
            pass
        elif stream.inbound_over and stream.outbound.end is not None:
            events.append(StreamClosed(stream.id))
        else:
            events.append(StreamBroken(stream.id, reason))
        self._forget(stream)

    # ---- odds ---------------------------------------------------------------------

    @property
    def _is_shared(self) -> bool:
        """Whether a stream must leave room for others on this link."""
        return len(self._streams) > 1

    def _joined_by_another(self) -> None:
        """A stream was opened: acknowledge what a stream that was alone did not have to yet."""
        if len(self._streams) == 2:
            for stream in self._streams.values():
                if stream.ledger.is_due(True):
                    self._credits[stream.id] = None

    def _is_own(self, stream_id: int) -> bool:
        return stream_id % 2 == self.role.value % 2

    def _stream(self, stream_id: int) -> Stream | None:
        """The stream, or ``None`` when it is history; one that never was is a violation."""
        stream = self._streams.get(stream_id)
        if stream is None:
            newest = self._next_id - 1 if self._is_own(stream_id) else self._highest_of_peer
            if not 0 < stream_id <= newest:
                raise RemoteViolation(f"stream {stream_id} was never opened")
        return stream

    def _answer(self, frame: Pong | Credit | Reset) -> None:
        if len(self._answers) >= _ANSWERS_LIMIT:
            raise RemoteViolation(f"the peer does not read: {_ANSWERS_LIMIT} answers wait for it")
        self._answers.append(frame)

    def _closed(self, stream: Stream) -> bool:
        """Make the stream history if both ends are over."""
        if not (stream.inbound_over and stream.outbound.over):
            return False
        if stream.id in self._credits:
            # The stream goes, its last acknowledgement must not. No peer can make these too many.
            self._answers.append(Credit(stream.id, *stream.ledger.grant()))
        self._forget(stream)
        return True

    def _forget(self, stream: Stream) -> None:
        if self._streams.pop(stream.id, None) is not None and self._is_own(stream.id):
            self._own -= 1
        self._turns.forget(stream.id)
        for queue in (self._credits, self._opens, self._resets):
            queue.pop(stream.id, None)
        if len(self._streams) == 1:
            for alone in self._streams.values():
                self._ready(alone)
