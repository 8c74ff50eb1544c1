"""
A bad road between a device and its gateway: a TCP proxy that is slow, goes silent or breaks.

It runs in threads of the test's process. What is under way in it is kept small, as in a modem and
not as in the kernel's buffers of loopback, so that the two ends feel the road as it is.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from dataclasses import dataclass, field

_PIECE = 2048
_BUFFER = 16 * 1024
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: close sends RST


@dataclass
class Lane:
    """One direction of the road, shared by all its connections; ``rate`` is bytes a second."""

    rate: float | None = None
    carried: int = 0
    _free_at: float = 0.0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def carry(self, size: int) -> None:
        """Take the time that so many bytes need."""
        with self._lock:
            now = time.monotonic()
            begin = max(now, self._free_at)
            self._free_at = begin + size / self.rate if self.rate else begin
            self.carried += size
            wait = self._free_at - now
        if wait > 0:
            time.sleep(wait)


class Road:
    """Listens on ``port`` of loopback and leads to ``target``, between ``open`` and ``close``."""

    def __init__(self, port: int, target: int) -> None:
        self.up, self.down = Lane(), Lane()
        #: How many connections were begun, whether or not they led anywhere.
        self.begun = 0
        self._port = port
        self._target = target
        self._passable = threading.Event()
        self._passable.set()
        self._lock = threading.Lock()
        self._sockets: set[socket.socket] = set()
        self._listening: socket.socket | None = None

    def __enter__(self) -> Road:
        listening = socket.socket()
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)  # inherited
        listening.bind(("127.0.0.1", self._port))
        listening.listen(64)
        self._listening = listening
        threading.Thread(target=self._accept, args=(listening,), daemon=True).start()
        return self

    def __exit__(self, *details: object) -> None:
        self.close()

    def close(self) -> None:
        """End it and all that is on it."""
        if self._listening is not None:
            with contextlib.suppress(OSError):
                self._listening.shutdown(socket.SHUT_RDWR)
            self._listening.close()
            self._listening = None
        self._passable.set()
        self.cut()

    def slow(self, bits_per_second: float | None) -> None:
        """Carry so much in either direction; ``None`` is no limit."""
        self.up.rate = self.down.rate = None if bits_per_second is None else bits_per_second / 8

    def cut(self) -> None:
        """Break every connection; both ends hear of it."""
        with self._lock:
            doomed, self._sockets = self._sockets, set()
        for one in doomed:
            with contextlib.suppress(OSError):
                one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                # Wakes the thread that reads it, which then closes it, with RST.
                one.shutdown(socket.SHUT_RD)
                one.close()

    def silence(self) -> None:
        """Swallow everything, and tell nobody."""
        self._passable.clear()

    def resume(self) -> None:
        """Carry again."""
        self._passable.set()

    def _accept(self, listening: socket.socket) -> None:
        while True:
            try:
                device, _ = listening.accept()
            except OSError:
                return
            self.begun += 1
            threading.Thread(target=self._lead, args=(device,), daemon=True).start()

    def _lead(self, device: socket.socket) -> None:
        gateway = socket.socket()
        with self._lock:
            self._sockets |= {device, gateway}
        try:
            self._passable.wait()
            gateway.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
            gateway.connect(("127.0.0.1", self._target))
            for end in (device, gateway):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            back = threading.Thread(target=self._carry, args=(gateway, device, self.down), daemon=True)
            back.start()
            self._carry(device, gateway, self.up)
            back.join()
        except OSError:
            pass
        finally:
            with self._lock:
                self._sockets -= {device, gateway}
            device.close()
            gateway.close()

    def _carry(self, source: socket.socket, sink: socket.socket, lane: Lane) -> None:
        with contextlib.suppress(OSError):
            while piece := source.recv(_PIECE):
                lane.carry(len(piece))
                self._passable.wait()
                sink.sendall(piece)
            sink.shutdown(socket.SHUT_WR)
            return
        for end in (source, sink):  # what broke on one side breaks on the other
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
