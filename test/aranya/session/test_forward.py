"""Tests of ``aranya.session.forward``."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from aranya.interfaces import ForwardTarget, ServedPod
from aranya.names import DeviceKey
from aranya.session.forward import Forwarding
from test.support.device import ScriptedDevice, ScriptedDevices
from test.support.streams import RecordingForwardStream
from tether.errors import LinkLost, Reason, ResetCode, StreamReset
from tether.link.interfaces import Lane
from tether.verbs.codec import encode_result
from tether.verbs.requests import Failed, Forward

POD = ServedPod(DeviceKey("edge", "dev"), "uid-1", (), forward=(ForwardTarget(5020, "192.168.7.50", 502),))
ERROR = "error forwarding port {} to pod edge/dev, uid uid-1: "


class ForwardTestCase(SynchronousTestCase):
    """A port-forward to one device."""

    def setUp(self) -> None:
        self.device = ScriptedDevice()
        self.devices = ScriptedDevices(self.device)
        self.pod: ServedPod | None = POD
        self.forwarding = Forwarding(self.devices, lambda: self.pod)
        self.stream = RecordingForwardStream()

    def open(self, port: int = 80) -> None:
        self.client = self.forwarding.connection_opened(port, self.stream)


class RefusalTests(ForwardTestCase):
    """What cannot be forwarded is told in the kubelet's words."""

    def refused(self, text: str, port: int = 80) -> None:
        self.open(port)
        self.assertEqual(self.stream.ends, [text])
        self.client.data_received(b"late")
        self.client.finished()
        self.client.client_gone()

    def test_offline(self) -> None:
        """A device that is not here."""
        self.devices.here.clear()
        self.refused(ERROR.format(80) + "device dev is offline")

    def test_no_pod(self) -> None:
        """A pod that is gone."""
        self.pod = None
        self.refused("error forwarding port 80: pod does not exist")

    def test_verb_forbidden(self) -> None:
        """A device whose owner allows no port-forward."""
        self.device.forbidden.add("port-forward")
        self.refused(ERROR.format(80) + "device dev refused: its owner does not allow port-forward")

    def test_target_forbidden(self) -> None:
        """A target outside the device's own list."""
        self.device.forbidden_targets.add(("192.168.7.50", 502))
        self.refused(
            ERROR.format(5020)
            + "device dev refused: its owner does not allow forwarding to 192.168.7.50:502",
            5020,
        )

    def test_link_lost_while_opening(self) -> None:
        """A device that goes away at that moment."""
        self.device.failure = LinkLost("closed")
        self.refused(ERROR.format(80) + "device dev went offline: closed")

    def test_too_many(self) -> None:
        """A device with too many sessions."""
        self.device.failure = StreamReset(Reason(ResetCode.LIMIT, "64 sessions"))
        self.refused(ERROR.format(80) + "device dev is too busy: 64 sessions")

    def test_unreachable(self) -> None:
        """A target that does not answer gives the device's cause."""
        self.open()
        self.device.session.break_off(ResetCode.UNREACHABLE, "connection refused")
        self.assertEqual(self.stream.ends, [ERROR.format(80) + "connection refused"])

    def test_failed(self) -> None:
        """A failure told as a result reads the same."""
        self.open()
        self.device.session.tell(encode_result(Failed(ResetCode.UNREACHABLE, "refused")), Lane.RESULT)
        self.device.session.receiver.finished()
        self.assertEqual(self.stream.ends, [ERROR.format(80) + "refused"])


class FlowTests(ForwardTestCase):
    """Bytes both ways."""

    def test_loopback(self) -> None:
        """A port without a target of its own is the device's loopback."""
        self.open(80)
        self.assertEqual(self.device.session.request, Forward(port=80, host=""))

    def test_named_target(self) -> None:
        """A port with a target leads there."""
        self.open(5020)
        self.assertEqual(self.device.session.request, Forward(port=502, host="192.168.7.50"))

    def test_both_ways(self) -> None:
        """Bytes cross in both directions, and the client's half close leaves the answer running."""
        self.open()
        self.client.data_received(b"GET /")
        self.client.finished()
        session = self.device.session
        self.assertEqual(session.channel.lane(Lane.MAIN), b"GET /")
        self.assertTrue(session.channel.is_finished)
        session.tell(b"200")
        self.assertEqual((self.stream.received, self.stream.ends), (b"200", []))
        session.receiver.finished()
        session.receiver.closed()
        self.assertEqual(self.stream.ends, [""])

    def test_target_ends(self) -> None:
        """A target that ends its direction ends the connection without an error."""
        self.open()
        self.device.session.tell(b"bye")
        self.device.session.receiver.finished()
        self.assertEqual(self.stream.ends, [""])
        self.assertTrue(self.device.session.channel.is_finished)

    def test_target_ends_unread(self) -> None:
        """What a finished target did not read is dropped."""
        self.open()
        self.device.session.channel.block()
        self.device.session.receiver.finished()
        self.assertIsNotNone(self.device.session.channel.reset_with)

    def test_rude_end_after_traffic(self) -> None:
        """A target that resets after bytes flowed is an ordinary end; a lost link is not."""
        for code, text in (
            (ResetCode.CANCELLED, ""),
            (ResetCode.UNREACHABLE, ""),
            (ResetCode.LOST, ERROR.format(80) + "device dev went offline: x"),
        ):
            self.stream = RecordingForwardStream()
            self.open()
            self.device.session.tell(b"data")
            self.device.session.break_off(code, "x")
            self.assertEqual(self.stream.ends, [text])

    def test_pressure(self) -> None:
        """Either side that is full pauses the other, this connection only."""
        self.open()
        channel = self.device.session.channel
        channel.block()
        self.assertTrue(self.stream.paused)
        channel.unblock()
        self.assertFalse(self.stream.paused)
        assert self.stream.producer is not None
        self.stream.producer.pauseProducing()
        self.assertTrue(channel.paused)

    def test_client_gone(self) -> None:
        """A client that leaves cancels the connection on the device."""
        self.open()
        self.client.client_gone()
        reset = self.device.session.channel.reset_with
        assert reset is not None
        self.assertIs(reset.code, ResetCode.CANCELLED)
        self.device.session.receiver.closed()
        self.assertEqual(self.stream.ends, [])
