"""
Two network namespaces and the wire between them, to be made bad at the level of packets.

The namespaces have no name: they live as long as a process or an open file is in them, so nothing is
left behind however the tests end, and no address or route of the machine itself is touched. What a
namespace is *entered* for stays in it: sockets that are opened there, processes that are started.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import random
import select
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from heapq import heappop, heappush
from pathlib import Path

_CLONE_NEWNET = 0x40000000
_OWN = "/proc/thread-self/ns/net"
_TUN = Path("/dev/net/tun")
_TUNSETIFF = 0x400454CA
_IFF_TUN, _IFF_NO_PI = 0x0001, 0x1000
_LIBC = ctypes.CDLL(None, use_errno=True)
_PACKET = 65536
#: Packets on the way; what comes on top is lost, as in any router.
_QUEUE = 1000
#: The name of either end.
_END = "wire"
_PREFIX = 29
CLOUD, DEVICE, OTHER = "10.213.77.1", "10.213.77.2", "10.213.77.3"
"""The addresses of the gateway's end, and of the device's, before and after it has moved."""


class Unavailable(Exception):
    """This machine cannot do it; the text says what is missing."""


class Namespace:
    """A network of its own, with a loopback that is up."""

    def __init__(self) -> None:
        own = os.open(_OWN, os.O_RDONLY)
        try:
            if _LIBC.unshare(_CLONE_NEWNET):
                raise Unavailable(f"no network namespaces: {os.strerror(ctypes.get_errno())}")
            self._file = os.open(_OWN, os.O_RDONLY)
        finally:
            _enter(own)
            os.close(own)
        self.run("ip", "link", "set", "lo", "up")

    @property
    def path(self) -> str:
        """How ``ip`` may call it."""
        return f"/proc/{os.getpid()}/fd/{self._file}"

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """Be in it: this thread, and what it starts."""
        own = os.open(_OWN, os.O_RDONLY)
        try:
            _enter(self._file)
            yield
        finally:
            _enter(own)
            os.close(own)

    def run(self, *words: str) -> None:
        """Run a command in it; `Unavailable` with what it said if it fails."""
        with self.entered():
            try:
                done = subprocess.run(words, capture_output=True, timeout=10, check=False)
            except FileNotFoundError:
                raise Unavailable(f"there is no {words[0]}") from None
        if done.returncode:
            raise Unavailable(f"{' '.join(words)}: {done.stderr.decode().strip()}")

    def close(self) -> None:
        """Leave it to its processes; without any it is gone, with all its interfaces."""
        os.close(self._file)


@dataclass(frozen=True, slots=True)
class Weather:
    """What becomes of a packet: times in milliseconds, shares in percent."""

    delay: int = 0
    jitter: int = 0
    loss: int = 0
    #: These are not delayed, and so overtake the others.
    reorder: int = 0
    duplicate: int = 0


CLEAR = Weather()


class Wire:
    """
    What joins two namespaces, ``cloud`` and ``device``, between their making and ``close``.

    The device's end has the address `DEVICE` until it moves. Without weather it is a good wire.
    """

    def __init__(self) -> None:
        self.cloud, self.device = Namespace(), Namespace()
        self._address = DEVICE
        try:
            self.lay()
            for namespace, address in ((self.cloud, CLOUD), (self.device, DEVICE)):
                namespace.run("ip", "address", "add", f"{address}/{_PREFIX}", "dev", _END)
                namespace.run("ip", "link", "set", _END, "up")
        except Unavailable:
            self.close()
            raise

    def lay(self) -> None:
        """Make an interface ``wire`` in either namespace."""
        self.cloud.run(
            "ip", "link", "add", _END, "type", "veth", "peer", "name", _END, "netns", self.device.path
        )

    def close(self) -> None:
        """Let go of it; it is gone when the last process in it ends."""
        self.cloud.close()
        self.device.close()

    def pull(self) -> None:
        """Pull the plug out of the device."""
        self.device.run("ip", "link", "set", _END, "down")

    def plug(self) -> None:
        """Put it in again."""
        self.device.run("ip", "link", "set", _END, "up")

    def move(self, address: str = OTHER) -> None:
        """Give the device another address, and take the old one from it."""
        # With the first address all others of its network go, so it goes first.
        self.device.run("ip", "address", "del", f"{self._address}/{_PREFIX}", "dev", _END)
        self.device.run("ip", "address", "add", f"{address}/{_PREFIX}", "dev", _END)
        self._address = address

    def set_weather(self, weather: Weather) -> None:
        """Let this become of all packets, both ways; `Unavailable` where the kernel lacks ``netem``."""
        for namespace in (self.cloud, self.device):
            namespace.run(
                *("tc", "qdisc", "replace", "dev", _END, "root", "netem", "limit", str(_QUEUE)),
                *("delay", f"{weather.delay}ms", f"{weather.jitter}ms"),
                *("loss", f"{weather.loss}%", "duplicate", f"{weather.duplicate}%"),
                *(("reorder", f"{weather.reorder}%") if weather.reorder else ()),
            )


class TunnelWire(Wire):
    """The same made of two tunnel devices and a thread of ours, for kernels without ``netem``."""

    def __init__(self) -> None:
        self._weather = CLEAR
        self._files: list[int] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._carry, daemon=True)
        super().__init__()
        self._thread.start()

    def lay(self) -> None:
        """Open a tunnel device in either namespace."""
        wish = struct.pack("16sH22x", _END.encode(), _IFF_TUN | _IFF_NO_PI)
        for namespace in (self.cloud, self.device):
            with namespace.entered():
                try:
                    file = os.open(_TUN, os.O_RDWR | os.O_NONBLOCK)
                    self._files.append(file)
                    fcntl.ioctl(file, _TUNSETIFF, wish)
                except OSError as error:
                    raise Unavailable(f"no tunnel devices: {error}") from None

    def close(self) -> None:
        """Let go of it."""
        self._over.set()
        if self._thread.is_alive():
            self._thread.join()
        for file in self._files:
            os.close(file)
        self._files.clear()
        super().close()

    def set_weather(self, weather: Weather) -> None:
        """Let this become of all packets, both ways."""
        self._weather = weather

    def _carry(self) -> None:
        queue: list[tuple[float, int, int, bytes]] = []
        count = 0
        while not self._over.is_set():
            now = time.monotonic()
            while queue and queue[0][0] <= now:
                _, _, file, packet = heappop(queue)
                with contextlib.suppress(OSError):  # an interface that is down
                    os.write(file, packet)
            wait = min(0.1, queue[0][0] - now) if queue else 0.1
            ready, _, _ = select.select(self._files, [], [], wait)
            for file in ready:
                other = self._files[1 - self._files.index(file)]
                for packet in _packets(file):
                    for due in self._fate(time.monotonic(), len(queue)):
                        count += 1
                        heappush(queue, (due, count, other, packet))

    def _fate(self, now: float, queued: int) -> list[float]:
        """When a packet arrives: never, once or twice."""

        def happens(percent: int) -> bool:
            return random.random() * 100 < percent

        weather = self._weather
        if queued >= _QUEUE or happens(weather.loss):
            return []
        late = 0.0
        if not happens(weather.reorder):
            late = max(0.0, weather.delay + random.uniform(-weather.jitter, weather.jitter)) / 1000
        return [now + late] * (2 if happens(weather.duplicate) else 1)


def _packets(file: int) -> Iterator[bytes]:
    with contextlib.suppress(OSError):
        for _ in range(64):
            yield os.read(file, _PACKET)


def _enter(file: int) -> None:
    if _LIBC.setns(file, _CLONE_NEWNET):
        raise Unavailable(f"cannot enter a network namespace: {os.strerror(ctypes.get_errno())}")
