"""port-forward: each connection that kubectl forwards, joined to one TCP connection made by the device."""

from __future__ import annotations

from collections.abc import Callable

from aranya.interfaces import Device, Devices, ForwardEvents, ForwardStream, ServedPod
from aranya.session import status as outcome
from aranya.session.pipe import Source
from tether.errors import LinkLost, Reason, RemoteViolation, ResetCode, StreamReset
from tether.link.interfaces import Channel, Lane
from tether.verbs.codec import decode_result
from tether.verbs.requests import Failed, Forward

#: After bytes flowed, a target that hangs up rudely is an ordinary end: newer kubectl gives up
#: the whole port-forward on any error text, and TLS and database probes hang up like this.
_ORDINARY_ENDS = frozenset(
    {ResetCode.UNSPECIFIED, ResetCode.CANCELLED, ResetCode.UNREACHABLE, ResetCode.INTERNAL}
)


class Deaf:
    """Hears what a client does with a connection that was refused."""

    def data_received(self, data: bytes) -> None:
        """Dropped."""

    def finished(self) -> None:
        """Nothing to do."""

    def client_gone(self) -> None:
        """Nothing to do."""


class Forwarding:
    """Takes each new connection of one port-forward (``ForwardAcceptor``).

    ``pod`` is asked anew for each connection: the allow list may change while
    a port-forward runs for days.
    """

    def __init__(self, devices: Devices, pod: Callable[[], ServedPod | None]) -> None:
        self._devices = devices
        self._pod = pod

    def connection_opened(self, port: int, stream: ForwardStream) -> ForwardEvents:
        """Connect to what ``port`` stands for, or tell why not."""
        pod = self._pod()
        if pod is None:
            stream.end(f"error forwarding port {port}: pod does not exist")
            return Deaf()
        error = _Errors(port, pod)
        device = self._devices.get(pod.key)
        if device is None:
            stream.end(error.text(outcome.offline(pod.key.name)))
            return Deaf()
        target = target_of(pod, port)
        if not device.allows("port-forward"):
            stream.end(error.text(outcome.forbidden(pod.key.name, "port-forward")))
            return Deaf()
        if not device.may_forward(target.host, target.port):
            stream.end(error.text(outcome.forbidden(pod.key.name, f"forwarding to {describe(target)}")))
            return Deaf()
        return Relay(device, target, stream, error).client


def target_of(pod: ServedPod, port: int) -> Forward:
    """What ``port`` of the virtual pod leads to: a named target, else the device's loopback."""
    for target in pod.forward:
        if target.port == port:
            return Forward(host=target.host, port=target.target_port)
    return Forward(port=port)


def describe(target: Forward) -> str:
    """The target for a person."""
    return f"{target.host or 'localhost'}:{target.port}"


class _Errors:
    """The kubelet's wording of a failed forward."""

    def __init__(self, port: int, pod: ServedPod) -> None:
        self._port = port
        self._pod = pod
        self.device = pod.key.name

    def text(self, cause: str) -> str:
        return f"error forwarding port {self._port} to pod {self._pod.key}, uid {self._pod.uid}: {cause}"


class Relay:
    """One forwarded connection, as its device hears it (``Receiver``).

    ``client`` is the same connection as kubectl hears it.
    """

    def __init__(self, device: Device, target: Forward, stream: ForwardStream, error: _Errors) -> None:
        self._stream = stream
        self._error = error
        self._over = False
        self._flowed = False
        self._source = Source(stream.pause, stream.resume)
        self._channel: Channel | None = None
        self.client: ForwardEvents = _FromClient(self)
        try:
            channel = device.open(target, self)
        except LinkLost as lost:
            self._fail(Reason(ResetCode.LOST, str(lost)))
            return
        except StreamReset as reset:
            self._fail(reset.reason)
            return
        if self._over:
            channel.reset(Reason(ResetCode.CANCELLED, "the connection ended"))
            return
        self._channel = channel
        channel.registerProducer(self._source, True)
        stream.register_producer(channel)

    # ---- the client, by way of ``_FromClient`` ----------------------------------

    def send(self, data: bytes) -> None:
        """The client's bytes go to the target."""
        if self._channel is not None:
            self._channel.write(data)

    def half_close(self) -> None:
        """The client will send no more."""
        if self._channel is not None:
            self._channel.unregisterProducer()
            self._channel.finish()

    def abandon(self) -> None:
        """The client is gone."""
        self._over = True
        channel, self._channel = self._channel, None
        if channel is not None:
            channel.reset(Reason(ResetCode.CANCELLED, "the client closed the connection"))

    # ---- the device --------------------------------------------------------------

    def data_received(self, lane: Lane, data: bytes) -> None:
        """The target's bytes go to the client."""
        if self._over:
            return
        if lane is Lane.MAIN:
            self._flowed = True
            self._stream.write(data)
        elif lane is Lane.RESULT:
            try:
                result = decode_result(data)
            except RemoteViolation as violation:
                self._fail(Reason(ResetCode.PROTOCOL, str(violation)))
                return
            if isinstance(result, Failed):
                self._fail(Reason(result.code, result.message))

    def finished(self) -> None:
        """The target will send no more, which for kubectl is the end.

        kubectl never half-closes its local connection: up to 1.31 it closes that
        only when the error stream ends, so waiting for the client here would hold
        back the end of file from whoever talks through it.
        """
        channel, self._channel = self._channel, None
        self._end("")
        if channel is None:
            return
        channel.unregisterProducer()
        if self._source.held:
            channel.reset(Reason(ResetCode.CANCELLED, "the target ended the connection"))
        else:
            channel.finish()

    def reset(self, reason: Reason) -> None:
        """The connection to the target failed or broke."""
        self._channel = None
        self._fail(reason)

    def closed(self) -> None:
        """Both directions are over."""
        self._channel = None
        self._end("")

    def _fail(self, reason: Reason) -> None:
        if self._flowed and reason.code in _ORDINARY_ENDS:
            self._end("")
        elif reason.code is ResetCode.UNREACHABLE and reason.text:
            self._end(self._error.text(outcome.one_line(reason.text)))
        else:
            self._end(self._error.text(outcome.sentence(self._error.device, reason)))

    def _end(self, error: str) -> None:
        if not self._over:
            self._over = True
            self._stream.unregister_producer()
            self._stream.end(error)
        channel, self._channel = self._channel, None
        if channel is not None:
            channel.reset(Reason(ResetCode.CANCELLED, "the connection ended"))


class _FromClient:
    """What kubectl does with the connection (``ForwardEvents``)."""

    def __init__(self, relay: Relay) -> None:
        self._relay = relay

    def data_received(self, data: bytes) -> None:
        self._relay.send(data)

    def finished(self) -> None:
        self._relay.half_close()

    def client_gone(self) -> None:
        self._relay.abandon()
