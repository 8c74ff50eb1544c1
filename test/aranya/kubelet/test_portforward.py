"""Tests of ``aranya.kubelet.portforward``."""

from __future__ import annotations

from dataclasses import replace

from twisted.trial.unittest import SynchronousTestCase

from aranya.interfaces import ForwardTarget
from test.support.clients import SPDY_UPGRADE, SpdyClient
from test.support.door import House
from tether.errors import ResetCode
from tether.link.interfaces import Lane
from tether.verbs.requests import Forward

TARGET = "/portForward/edge/dev"
VERSION = "portforward.k8s.io"


class PortForwardTests(SynchronousTestCase):
    """One upgrade, any number of connections."""

    def setUp(self) -> None:
        self.house = House()

    def connect(self, port: str = "80", request: str = "0") -> SpdyClient:
        client = SpdyClient(self.house, TARGET, VERSION)
        self.assertEqual(client.answer.code, 101)
        client.open("error", "data", port=port, requestid=request)
        return client

    def test_refusals(self) -> None:
        """What is refused before the 101."""

        def ask(target: str = TARGET) -> tuple[int, bytes]:
            upgrade = (*SPDY_UPGRADE, f"X-Stream-Protocol-Version: {VERSION}")
            answer = self.house.ask("POST", target, *upgrade).answer
            return answer.code, answer.body

        self.assertEqual(ask("/portForward/foreign/dev"), (404, b"pod does not exist"))
        self.assertEqual(ask("/portForward/edge/dev/uid-0"), (404, b"pod does not exist"))
        self.house.device.forbidden.add("port-forward")
        self.assertEqual(ask(), (503, b"device dev refused: its owner does not allow port-forward"))
        self.house.devices.here.clear()
        self.assertEqual(ask(), (503, b"device dev is offline"))

    def test_both_ways(self) -> None:
        """Bytes cross both ways and the connection ends without an error."""
        client = self.connect()
        session = self.house.device.session
        self.assertEqual(session.request, Forward(port=80))
        client.write("data0", b"ping")
        self.assertEqual(session.channel.lane(Lane.MAIN), b"ping")
        session.tell(b"pong")
        session.receiver.finished()
        self.assertEqual((client.received["data0"], client.received.get("error0", b"")), (b"pong", b""))
        self.assertLessEqual({"data0", "error0"}, client.ended)
        self.assertTrue(client.connection.wire.connected)

    def test_unreachable(self) -> None:
        """A target that does not answer is told on the error stream."""
        client = self.connect()
        self.house.device.session.break_off(ResetCode.UNREACHABLE, "connection refused")
        self.assertEqual(
            client.received["error0"],
            b"error forwarding port 80 to pod edge/dev, uid uid-1: connection refused",
        )
        self.assertIn("error0", client.ended)

    def test_new_targets(self) -> None:
        """A change of the pod holds for new connections and ends nothing."""
        client = self.connect()
        self.house.served.pod = replace(
            self.house.pod, uid="uid-2", forward=(ForwardTarget(81, "192.168.7.51", 8081),)
        )
        client.open("error", "data", port="81", requestid="1")
        self.assertEqual(self.house.device.session.request, Forward(port=8081, host="192.168.7.51"))
        self.house.served.pod = replace(self.house.pod, uid="")
        client.open("error", "data", port="82", requestid="2")
        self.assertEqual(self.house.device.session.request, Forward(port=82))

    def test_offline_later(self) -> None:
        """A device that went away is told at the next connection."""
        client = self.connect()
        self.house.devices.here.clear()
        client.open("error", "data", port="80", requestid="1")
        self.assertIn(b"device dev is offline", client.received["error1"])

    def test_endpoint_stops(self) -> None:
        """An endpoint that stops ends the port-forward and its connections on the device."""
        client = self.connect()
        self.house.served.end_sessions("aranya is stopping")
        self.assertIsNotNone(self.house.device.session.channel.reset_with)
        self.assertFalse(client.connection.wire.connected)
        self.assertEqual(self.house.served.sessions, 0)
