"""
A bad road between a device and its gateway: a TCP proxy that does what networks do to connections.

It is slow, late or silent, it breaks, turns callers away, forgets who they were, or lets a newer
connection overtake an older one. What is under way in it is kept small, as in a modem and not as in
the kernel's buffers of loopback, so that the two ends feel the road as it is. A ``Storm`` breaks it
again and again.

A road runs in a thread of its own. Its methods may be called from any other thread, and when they
return it is so.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Coroutine
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

_PIECE = 64 * 1024
#: On a slow lane pieces are small, that it may be slow evenly.
_SLOW_PIECE = 2048
_BUFFER = 16 * 1024
#: What a late lane holds at most.
_UNDER_WAY = 1024 * 1024
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: close sends RST
#: Seconds that an end which was sent a FIN has to send its own.
_FAREWELL = 5.0
_PATIENCE = 10.0

_T = TypeVar("_T")


@dataclass
class Lane:
    """One direction of the road, shared by all its connections; ``rate`` is bytes a second."""

    rate: float | None = None
    #: Seconds that every byte takes, and up to how many more; bytes of a lane do not overtake each other.
    latency: float = 0.0
    jitter: float = 0.0
    carried: int = 0
    _free_at: float = 0.0
    _random: random.Random = field(default_factory=random.Random)

    @property
    def piece(self) -> int:
        """How much is read at once."""
        return _PIECE if self.rate is None else _SLOW_PIECE

    @property
    def limit(self) -> int:
        """Nothing is read while so many bytes are under way."""
        return _UNDER_WAY if self.latency or self.jitter else 1

    def arrival(self, size: int, now: float) -> float:
        """Count so many bytes that set out now, and say when they are there."""
        self.carried += size
        begin = max(now, self._free_at)
        self._free_at = begin + size / self.rate if self.rate else begin
        return self._free_at + self.latency + self._random.uniform(0, self.jitter)


class Road:
    """
    Listens on ``port`` of ``host`` and leads to ``target`` on loopback, between ``open`` and ``close``.

    ``up`` is the way to the target, ``down`` the way back. It listens where it is ``within``, which may
    be another network than the one it leads to.
    """

    def __init__(
        self,
        port: int,
        target: int,
        host: str = "127.0.0.1",
        within: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext,
    ) -> None:
        self.up, self.down = Lane(), Lane()
        #: How many connections were begun, whether or not they led anywhere.
        self.begun = 0
        self._address, self._target = (host, port), target
        self._within = within
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._server: asyncio.Server | None = None
        self._drops = False
        self._newcomers_pass = True
        #: The connections there are, and those that only their two ends still believe in.
        self._passages: set[_Passage] = set()
        self._forgotten: set[_Passage] = set()
        self._fuse: _Fuse | None = None

    # ---- its life

    def open(self) -> Road:
        """Listen."""
        self._thread.start()
        self._do(self._listen())
        return self

    def close(self) -> None:
        """End it and all that is on it; a second time does nothing."""
        if not self._loop.is_closed():
            self._do(self._end())
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(_PATIENCE)
            self._loop.close()

    def __enter__(self) -> Road:
        return self.open()

    def __exit__(self, *details: object) -> None:
        self.close()

    # ---- slow and late

    def slow(self, bits_per_second: float | None) -> None:
        """Carry so much in either direction; ``None`` is no limit."""
        self.up.rate = self.down.rate = None if bits_per_second is None else bits_per_second / 8

    def delay(self, seconds: float, jitter: float = 0.0) -> None:
        """Let every byte take so long in either direction, and up to ``jitter`` longer."""
        for lane in (self.up, self.down):
            lane.latency, lane.jitter = seconds, jitter

    # ---- broken

    def cut(self, *, orderly: bool = False) -> int:
        """
        Break every connection; both ends hear of it, by RST or as if the other had closed (FIN).

        Gives how many there were.
        """
        return self._do(self._cut(orderly))

    def cut_after(self, size: int, *, orderly: bool = False) -> threading.Event:
        """Cut when so many more bytes were carried, both ways together; the event tells when that was."""
        return self._after(size, lambda: self._break_all(orderly))

    def spare(self) -> None:
        """Take back what was to be after so many bytes, and has not been."""
        self._do(self._lay(None))

    # ---- silent

    def silence(self, *, up: bool = True, down: bool = True, newcomers: bool = True) -> None:
        """
        Swallow everything, in both directions or one, and tell nobody, not even of an end.

        Connections that are begun later are silent, too, unless ``newcomers`` is false.
        """
        self._do(self._hush(up, down, newcomers))

    def silence_after(self, size: int) -> threading.Event:
        """Silence the connections there are when so many more bytes were carried; newcomers pass."""
        return self._after(size, lambda: self._hush_all(True, True))

    def resume(self) -> None:
        """Carry again, also what was swallowed: TCP sends again what nobody confirmed."""
        self._do(self._resume())

    def rebind(self, *, told: bool = False) -> None:
        """
        Forget every connection, as a NAT does: its ends never hear of each other again. New ones pass.

        If ``told``, who dialled is reset, as by a NAT that has started anew; the target hears nothing.
        """
        self._do(self._forget(told))

    def deliver_late(self) -> None:
        """Carry on the connections that were forgotten: newer ones have overtaken them."""
        self._do(self._remember())

    # ---- closed to callers

    def refuse(self) -> None:
        """Do not listen: who dials is refused."""
        self._do(self._stop_listening())

    def drop(self) -> None:
        """Let callers in and close their connections at once."""
        self._drops = True

    def admit(self) -> None:
        """Let callers in again."""
        self._drops = False
        self._do(self._listen())

    # ---- in its own thread

    def _do(self, work: Coroutine[Any, Any, _T]) -> _T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(_PATIENCE)

    def _after(self, size: int, action: Callable[[], object]) -> threading.Event:
        happened = threading.Event()
        self._do(self._lay(_Fuse(size, action, happened)))
        return happened

    async def _listen(self) -> None:
        if self._server is not None:
            return
        with self._within():
            listening = socket.socket()
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)  # inherited
        listening.bind(self._address)
        self._server = await self._loop.create_server(self._begin, sock=listening)

    async def _stop_listening(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None

    async def _end(self) -> None:
        await self._stop_listening()
        self._passages |= self._forgotten
        await self._cut(False)
        # Sockets are closed in the rounds after that.
        for _ in range(3):
            await asyncio.sleep(0)

    def _begin(self) -> _End:
        self.begun += 1
        passage = _Passage(self)
        if self._drops:
            passage.drop()
        else:
            self._passages.add(passage)
            if self._newcomers_pass:
                passage.resume()
        return passage.device

    async def _cut(self, orderly: bool) -> int:
        return self._break_all(orderly)

    def _break_all(self, orderly: bool) -> int:
        doomed, self._passages = self._passages, set()
        for passage in doomed:
            if orderly:
                passage.leave()
            else:
                passage.reset()
        return len(doomed)

    async def _lay(self, fuse: _Fuse | None) -> None:
        self._fuse = fuse

    async def _hush(self, up: bool, down: bool, newcomers: bool) -> None:
        self._newcomers_pass = not newcomers
        self._hush_all(up, down)

    def _hush_all(self, up: bool, down: bool) -> None:
        for passage in self._passages:
            passage.hush(up, down)

    async def _resume(self) -> None:
        self._newcomers_pass = True
        for passage in list(self._passages):
            passage.resume()

    async def _forget(self, told: bool) -> None:
        self._newcomers_pass = True
        self._hush_all(True, True)
        forgotten, self._passages = self._passages, set()
        self._forgotten |= forgotten
        if told:
            for passage in forgotten:
                passage.lose_device()

    async def _remember(self) -> None:
        late, self._forgotten = self._forgotten, set()
        self._passages |= late
        for passage in late:
            passage.resume()

    # ---- what its passages use

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """Whose time it is."""
        return self._loop

    async def connect(self, end: _End) -> None:
        """Connect this end to the target."""
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
        sock.setblocking(False)
        try:
            await self._loop.sock_connect(sock, ("127.0.0.1", self._target))
            await self._loop.create_connection(lambda: end, sock=sock)
        except BaseException:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            sock.close()
            raise

    def until_cut(self, size: int) -> int:
        """How many of so many bytes are still carried."""
        return size if self._fuse is None else min(size, self._fuse.left)

    def carried(self, size: int) -> None:
        """So many were; perhaps that was enough."""
        fuse = self._fuse
        if fuse is None:
            return
        fuse.left -= size
        if fuse.left <= 0:
            self._fuse = None
            fuse.action()
            fuse.happened.set()

    def over(self, passage: _Passage) -> None:
        """Both its ends are closed."""
        self._passages.discard(passage)
        self._forgotten.discard(passage)


@dataclass
class _Fuse:
    left: int
    action: Callable[[], object]
    happened: threading.Event


class _Passage:
    """One connection: the end of who dialled, the end at the target, and what flows between them."""

    def __init__(self, road: Road) -> None:
        self._road = road
        self.device, self.gateway = _End(self), _End(self)
        self._up = _Flow(road, self, road.up, self.device, self.gateway)
        self._down = _Flow(road, self, road.down, self.gateway, self.device)
        self._leading: asyncio.Task[None] | None = None
        self._flows_ended = 0

    # ---- what the road does to it

    def resume(self) -> None:
        """Carry; the first time, connect to the target."""
        if self._leading is None:
            self._leading = self._road.loop.create_task(self._lead())
        for flow in (self._up, self._down):
            flow.silent = False
            flow.pump()

    def hush(self, up: bool, down: bool) -> None:
        """Carry nothing in these directions."""
        self._up.silent, self._down.silent = up, down

    def reset(self) -> None:
        """End it with RST."""
        if self._leading is not None:
            self._leading.cancel()
        for end in (self.device, self.gateway):
            end.reset()

    def leave(self) -> None:
        """End it with FIN; an end that is not done after a while is reset."""
        for end in (self.device, self.gateway):
            end.leave()
        self._road.loop.call_later(_FAREWELL, self.reset)

    def lose_device(self) -> None:
        """Reset who dialled; that waits on its way to the target like all else."""
        self.device.reset()
        self.device.outward.take(_BREAK)

    def drop(self) -> None:
        """End it as soon as it has begun."""
        self._leading = self._road.loop.create_task(asyncio.sleep(0))
        self.device.leave()

    async def _lead(self) -> None:
        try:
            await self._road.connect(self.gateway)
        except OSError:
            self.reset()

    # ---- what its parts tell

    def flow_ended(self) -> None:
        """One direction has carried the end of its bytes."""
        self._flows_ended += 1
        if self._flows_ended == 2:
            for end in (self.device, self.gateway):
                end.close()

    def end_lost(self) -> None:
        """One of the ends is closed."""
        if self.device.lost and (self.gateway.lost or not self.gateway.connected):
            self._road.over(self)


class _End(asyncio.BufferedProtocol):
    """One socket of a passage."""

    def __init__(self, passage: _Passage) -> None:
        self.outward: _Flow  # what is read here
        self.inward: _Flow  # what is written here
        self.lost = False
        self.full = False
        self._leaves = False
        self._passage = passage
        self._transport: asyncio.Transport | None = None
        self._buffer = memoryview(bytearray(_PIECE))

    @property
    def connected(self) -> bool:
        """Whether there is, or was, a socket."""
        return self._transport is not None

    @property
    def takes(self) -> bool:
        """Whether something can be written now."""
        return self.connected and not self.full and not self.lost

    def write(self, piece: bytes) -> None:
        """Send."""
        assert self._transport is not None
        if not self._transport.is_closing():
            self._transport.write(piece)

    def write_end(self) -> None:
        """Send FIN."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write_eof()

    def read(self, wanted: bool) -> None:
        """Read on, or leave it in the kernel, and then who sends it with it."""
        if self._transport is None or self._transport.is_closing():
            return
        if wanted:
            self._transport.resume_reading()
        else:
            self._transport.pause_reading()

    def close(self) -> None:
        """Close in order."""
        if self._transport is not None:
            self._transport.close()

    def reset(self) -> None:
        """Close with RST."""
        if self._transport is not None and not self.lost:
            sock = self._transport.get_extra_info("socket")
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            self._transport.abort()

    def leave(self) -> None:
        """Send FIN and wait for the other's; a socket closed with bytes unread would send RST."""
        self._leaves = True
        self.outward.discard()
        self.write_end()
        self.read(True)

    # ---- asyncio.BufferedProtocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """There is a socket."""
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=0)
        sock = self._transport.get_extra_info("socket")
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self._leaves:
            self.write_end()
        self.inward.pump()

    def get_buffer(self, sizehint: int) -> memoryview:
        """Where to read to, and how much at most."""
        return self._buffer[: self.outward.lane.piece]

    def buffer_updated(self, nbytes: int) -> None:
        """So much was read."""
        self.outward.take(bytes(self._buffer[:nbytes]))

    def eof_received(self) -> bool:
        """The other side sends no more; it may still read."""
        if self._leaves:
            self.close()
        else:
            self.outward.take(_END)
        return True

    def pause_writing(self) -> None:
        """The kernel takes no more."""
        self.full = True

    def resume_writing(self) -> None:
        """It does again."""
        self.full = False
        self.inward.pump()

    def connection_lost(self, exc: Exception | None) -> None:
        """There is no socket any more."""
        self.lost = True
        if exc is not None:
            self.outward.take(_BREAK)
        self.inward.pump()
        self._passage.end_lost()


_END, _BREAK = "end", "break"


class _Flow:
    """One direction of a passage."""

    def __init__(self, road: Road, passage: _Passage, lane: Lane, source: _End, sink: _End) -> None:
        self.lane = lane
        self.silent = False
        self._road = road
        self._passage = passage
        self._source, self._sink = source, sink
        source.outward = sink.inward = self
        #: What has set out, and when it arrives.
        self._pending: deque[tuple[float, bytes | str]] = deque()
        self._size = 0
        self._latest = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._discards = False

    def discard(self) -> None:
        """From here on carry nothing."""
        self._discards = True
        self._pending.clear()

    def take(self, what: bytes | str) -> None:
        """This sets out."""
        if self._discards:
            return
        if isinstance(what, bytes):
            what = what[: self._road.until_cut(len(what))]
            self._size += len(what)
        size = len(what) if isinstance(what, bytes) else 0
        self._latest = max(self._latest, self.lane.arrival(size, self._road.loop.time()))
        self._pending.append((self._latest, what))
        self.pump()
        self._road.carried(size)

    def pump(self) -> None:
        """Hand over what has arrived."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._pending and not self.silent and (self._sink.takes or self._sink.lost):
            due, what = self._pending[0]
            if due > self._road.loop.time():
                self._timer = self._road.loop.call_at(due, self.pump)
                break
            self._pending.popleft()
            self._hand_over(what)
        self._source.read(self._discards or self._size < self.lane.limit)

    def _hand_over(self, what: bytes | str) -> None:
        if isinstance(what, bytes):
            self._size -= len(what)
            if not self._sink.lost:
                self._sink.write(what)
        elif what is _END:
            self._sink.write_end()
            self._passage.flow_ended()
        else:
            self._sink.reset()


class Storm:
    """
    Breaks a road at random moments, inside a ``with``; what it did, it adds to what fails meanwhile.

    Moments are ``every`` so many seconds or after ``each`` so many bytes, both a range. A connection is
    reset, or closed in order, or its device is reset while the gateway hears nothing, until what was
    under way is delivered after a newer connection has begun. After any of that the road may be closed to
    callers for ``outage`` seconds. ``seed`` decides all of it.
    """

    def __init__(
        self,
        road: Road,
        seed: int,
        *,
        every: tuple[float, float] = (0.0, 0.0),
        each: tuple[int, int] = (0, 0),
        outage: tuple[float, float] = (0.0, 0.0),
        cuts: int | None = None,
    ) -> None:
        #: How often something broke.
        self.cuts = 0
        self._road = road
        self._seed = seed
        self._random = random.Random(seed)
        self._every, self._each, self._outage = every, each, outage
        self._limit = cuts
        self._told: deque[str] = deque(maxlen=40)
        self._began = time.monotonic()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._rage, daemon=True)

    def __enter__(self) -> Storm:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self.stop()
        if error is not None:
            # Not a note of the exception: trial does not print those.
            error.args = (f"{error}\nunder {self}", *error.args[1:])

    def __str__(self) -> str:
        return f"a storm of seed {self._seed}, {self.cuts} cuts: {', '.join(self._told)}"

    def stop(self) -> None:
        """Break nothing more, and let callers in."""
        self._over.set()
        self._thread.join(_PATIENCE)

    def _rage(self) -> None:
        while not self._over.is_set() and self.cuts != self._limit:
            how = self._random.choice(("reset", "reset", "closed", "overtaken"))
            if self._each[1]:
                broken = self._break_by_size(self._random.randint(*self._each), how)
            else:
                self._over.wait(self._random.uniform(*self._every))
                broken = not self._over.is_set() and self._break_now(how)
            if broken:
                self.cuts += 1
                self._tell(how)
            self._close_for_a_while(self._random.uniform(*self._outage))
        self._road.deliver_late()

    def _break_now(self, how: str) -> bool:
        if how != "overtaken":
            return self._road.cut(orderly=how == "closed") > 0
        self._road.silence(newcomers=False)
        self._overtake()
        return True

    def _break_by_size(self, size: int, how: str) -> bool:
        if how == "overtaken":
            happened = self._road.silence_after(size)
        else:
            happened = self._road.cut_after(size, orderly=how == "closed")
        while not happened.wait(0.05):
            if self._over.is_set():
                self._road.spare()
                return False
        if how == "overtaken":
            self._overtake()
        return True

    def _overtake(self) -> None:
        """The connections are silent: let them be overtaken."""
        # Something shall be under way by then.
        self._over.wait(self._random.uniform(0, 0.2))
        begun = self._road.begun
        self._road.rebind(told=True)
        late = self._random.uniform(0, 0.2)
        threading.Thread(target=self._deliver_late, args=(begun, late), daemon=True).start()

    def _deliver_late(self, begun: int, late: float) -> None:
        while self._road.begun == begun and not self._over.wait(0.02):
            pass
        if not self._over.wait(late):
            self._road.deliver_late()

    def _close_for_a_while(self, seconds: float) -> None:
        if not seconds or self._over.is_set():
            return
        close = self._random.choice((self._road.refuse, self._road.drop))
        close()
        self._tell(f"{close.__name__} for {seconds:.2f}")
        self._over.wait(seconds)
        self._road.admit()

    def _tell(self, what: str) -> None:
        self._told.append(f"{time.monotonic() - self._began:.2f} {what}")
