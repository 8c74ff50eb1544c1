"""``kubectl port-forward`` to TCP servers on the device."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator

from test.cluster.kubectl import Kubectl
from test.cluster.test_exec import DEVICE, MIB, ExecCase


@contextlib.contextmanager
def server(answer: Callable[[socket.socket], None], family: int = socket.AF_INET) -> Iterator[int]:
    """A TCP server on loopback that gives each connection to ``answer`` in a thread."""
    address = "127.0.0.1" if family == socket.AF_INET else "::1"
    with socket.create_server((address, 0), family=family, backlog=128) as listening:

        def accept() -> None:
            while True:
                try:
                    connection, _ = listening.accept()
                except OSError:
                    return
                threading.Thread(target=serve, args=(connection,), daemon=True).start()

        def serve(connection: socket.socket) -> None:
            with connection, contextlib.suppress(OSError):
                answer(connection)

        threading.Thread(target=accept, daemon=True).start()
        yield listening.getsockname()[1]
        listening.shutdown(socket.SHUT_RDWR)


def echo(connection: socket.socket) -> None:
    """Send back what comes until the client half-closes."""
    while data := connection.recv(65536):
        connection.sendall(data)


def received(connection: socket.socket) -> bytes:
    """All until the other side ends."""
    pieces = []
    while data := connection.recv(65536):
        pieces.append(data)
    return b"".join(pieces)


class ForwardTests(ExecCase):
    """What connects to kubectl's port talks to the device's."""

    @contextlib.contextmanager
    def forwarded(self, client: Kubectl, port: int) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
        """Forward a free local port to ``port`` of the device."""
        process = client.start("port-forward", DEVICE, f":{port}")
        assert process.stdout is not None
        try:
            line = process.stdout.readline().decode()
            found = re.search(r"127\.0\.0\.1:(\d+) ->", line)
            self.assertIsNotNone(found, f"{line}")
            assert found is not None
            yield int(found.group(1)), process
        finally:
            process.kill()
            process.communicate()

    def dial(self, port: int) -> socket.socket:
        """Connect to kubectl."""
        connection = socket.create_connection(("127.0.0.1", port), 20)
        self.addCleanup(connection.close)
        return connection

    def test_echo_and_half_close(self) -> None:
        """Bytes come back, and the answer arrives after our half close."""
        for client in self.clients:
            with server(echo) as port, self.forwarded(client, port) as (local, _):
                connection = self.dial(local)
                connection.sendall(b"hello")
                self.assertEqual(connection.recv(5), b"hello")
                connection.sendall(b"bye")
                connection.shutdown(socket.SHUT_WR)
                self.assertEqual(received(connection), b"bye")

    def test_target_speaks_first_and_closes(self) -> None:
        """A server that greets and hangs up is heard, and the connection ends."""
        for client in self.clients:
            with (
                server(lambda one: one.sendall(b"220 hi\r\n")) as port,
                self.forwarded(client, port) as (local, _),
            ):
                for _ in range(3):
                    self.assertEqual(received(self.dial(local)), b"220 hi\r\n")

    def test_ipv6_loopback(self) -> None:
        """A server on ::1 only is reached."""
        client = self.clients[-1]
        with server(echo, socket.AF_INET6) as port, self.forwarded(client, port) as (local, _):
            connection = self.dial(local)
            connection.sendall(b"six")
            self.assertEqual(connection.recv(3), b"six")

    def test_many_at_once(self) -> None:
        """Fifty connections at once each have their own bytes."""
        for client in self.clients:
            with server(echo) as port, self.forwarded(client, port) as (local, _):
                connections = [self.dial(local) for _ in range(50)]
                for number, connection in enumerate(connections):
                    connection.sendall(b"%d" % number)
                    connection.shutdown(socket.SHUT_WR)
                self.assertEqual(
                    [received(connection) for connection in connections], [b"%d" % n for n in range(50)]
                )

    def test_bulk(self) -> None:
        """32 MiB each way at once arrive with the right checksum."""
        data = os.urandom(MIB) * 32
        for client in self.clients:
            with server(echo) as port, self.forwarded(client, port) as (local, _):
                connection = self.dial(local)

                def send(connection: socket.socket = connection) -> None:
                    connection.sendall(data)
                    connection.shutdown(socket.SHUT_WR)

                sender = threading.Thread(target=send)
                sender.start()
                digest = hashlib.sha256(received(connection)).hexdigest()
                sender.join()
                self.assertEqual(digest, hashlib.sha256(data).hexdigest())

    def test_dead_port(self) -> None:
        """A port nobody listens on is told in the kubelet's words, and nothing hangs."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
            for client in self.clients:
                with self.forwarded(client, port) as (local, process):
                    with contextlib.suppress(ConnectionError):
                        self.assertEqual(received(self.dial(local)), b"")
                    process.terminate()
                    _, err = process.communicate(timeout=20)
                    self.assertIn(b"error forwarding port", err)
                    self.assertIn(b"refused", err)

    def test_unknown_pod(self) -> None:
        """A pod that is not there is refused by name."""
        for client in self.clients:
            done = client.run("port-forward", "nonesuch", ":80")
            self.assert_code(done, 1)
            self.assertIn(b"nonesuch", done.err)
