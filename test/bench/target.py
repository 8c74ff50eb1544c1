"""
The TCP server at the far end of every forwarded connection: ``python -m test.bench.target``.

The first byte says what is wanted: ``E`` echo everything, ``E`` included; ``U`` take as many bytes as the
next eight say and answer ``k``; ``D`` send as many. A process of its own, so that it and the client that
measures do not wait for each other.
"""

from __future__ import annotations

import json
import selectors
import socket
import struct
from collections.abc import Callable

LENGTH = struct.Struct(">Q")
_CHUNK = 256 * 1024


class Connection:
    """One connection; ``ready`` is called when the kernel has bytes for it, or room."""

    def __init__(self, wire: socket.socket, waiting: selectors.BaseSelector) -> None:
        self._wire = wire
        self._waiting = waiting
        self._left = 0
        self._head = b""
        self.ready: Callable[[], None] = self._begin
        waiting.register(wire, selectors.EVENT_READ, self)

    def _begin(self) -> None:
        data = self._head + self._wire.recv(_CHUNK)
        if not data:
            self.close()
        elif data[:1] == b"E":
            self.ready = self._echo
            self._wire.sendall(data)
        elif len(data) < 1 + LENGTH.size:
            self._head = data
        else:
            (self._left,) = LENGTH.unpack_from(data, 1)
            if data[:1] == b"D":
                self.ready = self._send
                self._waiting.modify(self._wire, selectors.EVENT_WRITE, self)
            else:
                self.ready = self._take
                self._taken(len(data) - 1 - LENGTH.size)

    def _echo(self) -> None:
        data = self._wire.recv(_CHUNK)
        if data:
            self._wire.sendall(data)
        else:
            self.close()

    def _take(self) -> None:
        size = self._wire.recv_into(_BUFFER)
        if size:
            self._taken(size)
        else:
            self.close()

    def _taken(self, size: int) -> None:
        self._left -= size
        if self._left <= 0:
            self._wire.sendall(b"k")
            self.ready = self._echo

    def _send(self) -> None:
        self._left -= self._wire.send(_ZEROS[: self._left] if self._left < _CHUNK else _ZEROS)
        if not self._left:
            self.close()

    def close(self) -> None:
        """Be done with it."""
        self._waiting.unregister(self._wire)
        self._wire.close()


_BUFFER = bytearray(_CHUNK)
_ZEROS = memoryview(bytes(_CHUNK))


def main() -> None:
    """Serve until killed."""
    waiting = selectors.DefaultSelector()
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listening:
        waiting.register(listening, selectors.EVENT_READ, None)
        print(json.dumps(listening.getsockname()[1]), flush=True)
        while True:
            for key, _ in waiting.select():
                connection = key.data
                if connection is None:
                    wire, _ = listening.accept()
                    wire.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    Connection(wire, waiting)
                    continue
                try:
                    connection.ready()
                except OSError:
                    connection.close()


if __name__ == "__main__":
    main()
