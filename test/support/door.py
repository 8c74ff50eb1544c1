"""The door of one device without a network: requests in, answers out."""

from __future__ import annotations

from dataclasses import dataclass

from twisted.internet.error import ConnectionLost
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransportWithDisconnection
from twisted.python.failure import Failure

from aranya.certs.verification import moment
from aranya.interfaces import ForwardTarget, ServedPod, VirtualContainer
from aranya.kubelet.auth import Authentication, Authorization, ClientCA
from aranya.kubelet.root import Door, Root
from aranya.kubelet.visit import Served
from aranya.streaming.upgrade import KubeletChannel, KubeletSite
from test.support.device import ScriptedDevice, ScriptedDevices
from test.support.reviews import ReviewingKubernetes

CONTAINERS = (
    VirtualContainer("host"),
    VirtualContainer("nginx", file="/var/log/nginx/access.log"),
    VirtualContainer("ssh", unit="ssh.service"),
)


class Wire(StringTransportWithDisconnection):
    """A transport that knows when it was closed."""

    def abortConnection(self) -> None:
        """The rude close."""
        self.loseConnection()


@dataclass(frozen=True)
class Answer:
    """One HTTP answer, taken apart."""

    code: int
    headers: dict[str, str]
    body: bytes


class Connection:
    """One client connection to the door."""

    def __init__(self, channel: KubeletChannel) -> None:
        self.channel = channel
        self.wire = Wire()
        self.wire.protocol = channel
        channel.makeConnection(self.wire)

    def send(self, data: bytes) -> None:
        """The client writes."""
        self.channel.dataReceived(data)

    def take(self) -> bytes:
        """All that was answered since the last time."""
        data = self.wire.value()
        self.wire.clear()
        return data

    def leave(self) -> None:
        """The client goes away."""
        if self.wire.connected:
            self.wire.connected = False
            self.channel.connectionLost(Failure(ConnectionLost()))

    @property
    def answer(self) -> Answer:
        """What was answered, as one answer."""
        return parsed(self.take())


def parsed(data: bytes) -> Answer:
    """One answer taken apart; a chunked body is joined."""
    head, _, body = data.partition(b"\r\n\r\n")
    status, *lines = head.decode("latin-1").split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines)
    if headers.get("transfer-encoding") == "chunked":
        body = unchunked(body)
    return Answer(int(status.split()[1]), headers, body)


def unchunked(body: bytes) -> bytes:
    """What came in chunks so far."""
    joined = b""
    while body:
        size, _, rest = body.partition(b"\r\n")
        joined += rest[: int(size, 16)]
        body = rest[int(size, 16) + 2 :]
    return joined


class House:
    """A device, its pod, its door, and a user ``root`` with token ``t`` who may do everything."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.device = ScriptedDevice()
        self.devices = ScriptedDevices(self.device)
        self.kubernetes = ReviewingKubernetes()
        self.kubernetes.tokens["t"] = {"username": "root"}
        for verb in ("get", "create"):
            for subresource in (
                "proxy",
                "metrics",
                "stats",
                "log",
                "spec",
                "checkpoint",
                "statusz",
                "configz",
            ):
                self.kubernetes.allowed.add(("root", verb, subresource))
        authority = ClientCA(self.kubernetes, self.clock)
        self.door = Door(
            Authentication(self.kubernetes, authority, self.clock, lambda: moment(self.clock.seconds())),
            Authorization(self.kubernetes, self.clock),
            self.devices,
            self.clock,
        )
        self.pod = ServedPod(
            self.device.key, "uid-1", CONTAINERS, (ForwardTarget(5020, "192.168.7.50", 502),)
        )
        self.served = Served(self.device.key, "2024-01-02T03:04:05Z", self.pod)
        self.site = KubeletSite(Root(self.door, self.served), self.clock)

    def connect(self) -> Connection:
        """A new connection."""
        return Connection(self.site.buildProtocol(None))

    def ask(
        self, method: str, target: str | bytes, *headers: str, token: str = "t", body: bytes = b""
    ) -> Connection:
        """A new connection with one request on it."""
        connection = self.connect()
        path = target if isinstance(target, bytes) else target.encode()
        lines = ["Host: x", *headers]
        if token:
            lines.append(f"Authorization: Bearer {token}")
        if method != "GET":
            lines.append(f"Content-Length: {len(body)}")
        head = method.encode() + b" " + path + b" HTTP/1.1\r\n" + "\r\n".join(lines).encode()
        connection.send(head + b"\r\n\r\n" + body)
        return connection

    def get(self, target: str | bytes, *headers: str, token: str = "t") -> Answer:
        """What a GET is answered."""
        return self.ask("GET", target, *headers, token=token).answer
