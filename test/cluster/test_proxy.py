"""The bad road does what its methods say, between two sockets."""

from __future__ import annotations

import os
import socket
import struct
import threading
import time

from twisted.trial.unittest import SynchronousTestCase

from test.cluster.child import free_ports
from test.cluster.daemons import wait_until
from test.cluster.proxy import Road, Storm

#: Long enough for loopback, short enough to be waited for in vain.
MOMENT = 0.2


class RoadCase(SynchronousTestCase):
    """Two ends, ``device`` and ``gateway``, joined by a road."""

    def setUp(self) -> None:
        """Have a road and a listener behind it."""
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.listening.settimeout(5)
        self.addCleanup(self.listening.close)
        self.port = free_ports(1, "127.0.0.1")[0]
        self.road = Road(self.port, self.listening.getsockname()[1]).open()
        self.addCleanup(self.road.close)

    def dial(self) -> socket.socket:
        """Connect to the road."""
        device = socket.create_connection(("127.0.0.1", self.port), 5)
        self.addCleanup(device.close)
        return device

    def accept(self) -> socket.socket:
        """What arrives at the other side."""
        gateway, _ = self.listening.accept()
        gateway.settimeout(5)
        self.addCleanup(gateway.close)
        return gateway

    def pair(self) -> tuple[socket.socket, socket.socket]:
        """Both ends of a new connection."""
        return self.dial(), self.accept()

    def assert_quiet(self, *ends: socket.socket) -> None:
        """Nothing comes here, no end either."""
        for end in ends:
            end.settimeout(MOMENT)
            self.assertRaises(TimeoutError, end.recv, 1)
            end.settimeout(5)


class RoadTests(RoadCase):
    """One method at a time."""

    def test_carries(self) -> None:
        """Bytes go both ways, and each direction ends by itself."""
        device, gateway = self.pair()
        device.sendall(b"up")
        self.assertEqual(gateway.recv(10), b"up")
        device.shutdown(socket.SHUT_WR)
        self.assertEqual(gateway.recv(10), b"")
        gateway.sendall(b"down")
        gateway.close()
        self.assertEqual(device.recv(10), b"down")
        self.assertEqual(device.recv(10), b"")
        self.assertEqual((self.road.up.carried, self.road.down.carried, self.road.begun), (2, 4, 1))

    def test_much(self) -> None:
        """Bulk arrives whole; who does not read stops who sends."""
        device, gateway = self.pair()
        data = os.urandom(1024) * 4096
        sender = threading.Thread(target=device.sendall, args=(data,))
        sender.start()
        sender.join(MOMENT)
        self.assertLess(self.road.up.carried, len(data))
        arrived = b""
        while len(arrived) < len(data):
            arrived += gateway.recv(65536)
        sender.join()
        self.assertTrue(arrived == data)

    def test_reset_passes(self) -> None:
        """What breaks at one end breaks at the other."""
        device, gateway = self.pair()
        gateway.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        gateway.close()
        self.assertRaises(ConnectionResetError, device.recv, 1)

    def test_nobody_there(self) -> None:
        """A target that refuses ends the connection."""
        self.listening.close()
        self.assertRaises(ConnectionResetError, lambda: self.dial().recv(1))

    def test_cut(self) -> None:
        """Both ends are reset, and the next connection works."""
        device, gateway = self.pair()
        self.assertEqual(self.road.cut(), 1)
        self.assertRaises(ConnectionResetError, device.recv, 1)
        self.assertRaises(ConnectionResetError, gateway.recv, 1)
        self.assertEqual(self.road.cut(), 0)
        device, gateway = self.pair()
        device.sendall(b"again")
        self.assertEqual(gateway.recv(10), b"again")

    def test_cut_in_order(self) -> None:
        """Each end finds that the other has closed."""
        device, gateway = self.pair()
        self.assertEqual(self.road.cut(orderly=True), 1)
        for end in (device, gateway):
            self.assertEqual(end.recv(1), b"")
            end.close()

    def test_cut_after(self) -> None:
        """So many bytes arrive, and not one more."""
        device, gateway = self.pair()
        happened = self.road.cut_after(7)
        device.sendall(b"four")
        self.assertEqual(gateway.recv(10), b"four")
        self.assertFalse(happened.is_set())
        gateway.sendall(b"some more")
        self.assertEqual(device.recv(10), b"som")
        self.assertRaises(ConnectionResetError, device.recv, 1)
        self.assertTrue(happened.wait(5))

    def test_slow(self) -> None:
        """Bytes take their time."""
        device, gateway = self.pair()
        self.road.slow(800_000)
        began = time.monotonic()
        device.sendall(bytes(30_000))
        left = 30_000
        while left:
            left -= len(gateway.recv(65536))
        self.assertGreater(time.monotonic() - began, 0.25)

    def test_delay(self) -> None:
        """Bytes come late in either direction, as many and in the order they were sent in."""
        device, gateway = self.pair()
        self.road.delay(0.1, 0.05)
        began = time.monotonic()
        sent = bytes(range(250)) * 400
        for start in range(0, len(sent), 1000):
            device.sendall(sent[start : start + 1000])
        arrived = gateway.recv(65536)
        self.assertGreater(time.monotonic() - began, 0.09)
        while len(arrived) < len(sent):
            arrived += gateway.recv(65536)
        self.assertEqual(arrived, sent)
        self.assertLess(time.monotonic() - began, 2)
        gateway.sendall(b"back")
        self.assertEqual(device.recv(10), b"back")
        self.assertGreater(time.monotonic() - began, 0.19)

    def test_silence(self) -> None:
        """Nothing arrives, not even an end, until it is over."""
        device, gateway = self.pair()
        self.road.silence()
        device.sendall(b"said")
        gateway.sendall(b"told")
        gateway.close()
        later = self.dial()
        later.sendall(b"hello")
        self.assert_quiet(device, later)
        self.road.resume()
        self.assertEqual(device.recv(10), b"told")
        self.assertEqual(self.accept().recv(10), b"hello")

    def test_silence_in_one_direction(self) -> None:
        """The other direction goes on."""
        device, gateway = self.pair()
        self.road.silence(down=False)
        device.sendall(b"up")
        gateway.sendall(b"down")
        self.assertEqual(device.recv(10), b"down")
        self.assert_quiet(gateway)
        self.road.resume()
        self.assertEqual(gateway.recv(10), b"up")

    def test_silence_spares_newcomers(self) -> None:
        """If wished, a new connection passes while the old one is silent."""
        device, gateway = self.pair()
        self.road.silence(newcomers=False)
        device.sendall(b"old")
        newer, other = self.pair()
        newer.sendall(b"new")
        self.assertEqual(other.recv(10), b"new")
        self.assert_quiet(gateway)

    def test_rebind(self) -> None:
        """The ends of an old connection hear nothing of each other, ever; new ones pass."""
        device, gateway = self.pair()
        self.road.rebind()
        device.sendall(b"old")
        device.close()
        newer, other = self.pair()
        newer.sendall(b"new")
        self.assertEqual(other.recv(10), b"new")
        self.road.resume()
        self.assert_quiet(gateway)
        self.assertEqual(self.road.cut(), 1)

    def test_rebind_told(self) -> None:
        """Who dialled is reset, the target hears nothing until what was under way comes late."""
        device, gateway = self.pair()
        self.road.silence(newcomers=False)
        device.sendall(b"old")
        self.assert_quiet(device, gateway)
        self.road.rebind(told=True)
        self.assertRaises(ConnectionResetError, device.recv, 1)
        self.assert_quiet(gateway)
        self.road.deliver_late()
        self.assertEqual(gateway.recv(10), b"old")
        self.assertRaises(ConnectionResetError, gateway.recv, 1)

    def test_silence_after(self) -> None:
        """So many bytes arrive, then nothing, while newcomers pass."""
        device, gateway = self.pair()
        happened = self.road.silence_after(3)
        device.sendall(b"four")
        self.assertEqual(gateway.recv(10), b"fou")
        self.assertTrue(happened.wait(5))
        self.assert_quiet(device, gateway)
        newer, other = self.pair()
        newer.sendall(b"new")
        self.assertEqual(other.recv(10), b"new")

    def test_overtaking(self) -> None:
        """A connection that waited is led to its target after a newer one."""
        self.road.silence()
        older = self.dial()
        older.sendall(b"older")
        wait_until("it has begun", lambda: self.road.begun == 1, 5)
        self.road.rebind()
        newer, first = self.pair()
        newer.sendall(b"newer")
        self.assertEqual(first.recv(10), b"newer")
        self.road.deliver_late()
        second = self.accept()
        self.assertEqual(second.recv(10), b"older")
        second.sendall(b"yes?")
        self.assertEqual(older.recv(10), b"yes?")

    def test_refuse(self) -> None:
        """Nobody listens; who was connected stays so."""
        device, gateway = self.pair()
        self.road.refuse()
        self.assertRaises(ConnectionRefusedError, self.dial)
        device.sendall(b"still")
        self.assertEqual(gateway.recv(10), b"still")
        self.road.admit()
        self.pair()

    def test_drop(self) -> None:
        """Who is let in is out at once."""
        self.road.drop()
        self.assertEqual(self.dial().recv(1), b"")
        self.road.admit()
        device, gateway = self.pair()
        device.sendall(b"in")
        self.assertEqual(gateway.recv(10), b"in")
        self.assertEqual(self.road.begun, 2)


class StormTests(RoadCase):
    """A storm cuts, and says so."""

    def test_by_time(self) -> None:
        """Cuts come by themselves until the end, and callers are let in then."""
        with Storm(self.road, 1, every=(0.01, 0.02), outage=(0.01, 0.02)) as storm:
            wait_until("it cuts", lambda: self.flap() and storm.cuts >= 3, 10, storm.__str__)
        self.pair()
        self.assertIn("seed 1, ", str(storm))

    def test_by_size(self) -> None:
        """Cuts come after so many bytes, as often as was said."""
        data = bytes(500)
        with Storm(self.road, 2, each=(1000, 1000), cuts=2) as storm:
            for number in (1, 2):
                device, gateway = self.pair()
                for _ in range(2):
                    device.sendall(data)
                    self.assertEqual(len(gateway.recv(500)), 500)
                self.wait_for(storm, number)
            device, gateway = self.pair()
            device.sendall(data * 10)
            self.assertEqual(len(gateway.recv(5000, socket.MSG_WAITALL)), 5000)

    def test_is_told(self) -> None:
        """What fails in a storm says which storm it was."""
        with self.assertRaisesRegex(AssertionError, r"(?s)no\n.*seed 42"), Storm(self.road, 42, every=(9, 9)):
            raise AssertionError("no")

    def wait_for(self, storm: Storm, cuts: int) -> None:
        """So many cuts have been."""
        wait_until("it has cut", lambda: storm.cuts == cuts, 5)

    def flap(self) -> bool:
        """Try to have a connection on the road."""
        try:
            socket.create_connection(("127.0.0.1", self.port), 5).close()
        except OSError:
            pass
        return True
