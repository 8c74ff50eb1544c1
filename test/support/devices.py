"""Doubles for the controller's surroundings: devices, endpoints, joins, a journal, a signer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime

from aranya.certs.issuer import NotIssued, SubjectParts
from aranya.certs.keys import KeyPair, key_to_pem, new_key
from aranya.certs.requests import alternative_names
from aranya.controller.devices.status import Occasion
from aranya.interfaces import Device, Object, ServedPod
from aranya.names import DeviceKey
from tether.link.interfaces import Channel, Receiver
from tether.verbs.requests import DeviceFacts, Request

FACTS = DeviceFacts(
    os="linux",
    arch="arm64",
    kernel="6.1.0",
    os_image="Debian GNU/Linux 12",
    machine_id="m1",
    boot_id="b1",
    cpus=4,
    memory_bytes=8 << 30,
    storage_bytes=3 << 20,
    labels={"site": "harbour", "kubernetes.io/os": "linux"},
)


@dataclass(slots=True)
class FakeDevice:
    """A connected device that opens nothing."""

    key: DeviceKey
    facts: DeviceFacts = FACTS
    software: str = "0.1.0"
    address: str = "192.0.2.7"

    def allows(self, verb: str) -> bool:
        return True

    def may_forward(self, host: str, port: int) -> bool:
        return True

    def open(self, request: Request, receiver: Receiver) -> Channel:
        raise NotImplementedError


@dataclass(slots=True)
class MemoryDevices:
    """Devices that come and go as a test says."""

    here: dict[DeviceKey, Device] = field(default_factory=dict)
    listeners: list[Callable[[DeviceKey], None]] = field(default_factory=list)
    disconnected: list[tuple[DeviceKey, str]] = field(default_factory=list)
    standing_by: dict[DeviceKey, list[Device]] = field(default_factory=dict)

    def get(self, key: DeviceKey) -> Device | None:
        return self.here.get(key)

    def standbys(self, key: DeviceKey) -> Sequence[Device]:
        return self.standing_by.get(key, [])

    def disconnect(self, key: DeviceKey, reason: str, retry: bool = True) -> None:
        self.disconnected.append((key, reason))
        self.standing_by.pop(key, None)
        self.go(key)

    def subscribe(self, listener: Callable[[DeviceKey], None]) -> Callable[[], None]:
        self.listeners.append(listener)
        return lambda: self.listeners.remove(listener)

    def come(self, device: Device) -> None:
        """The device connects, or tells new facts."""
        self.here[device.key] = device
        self._tell(device.key)

    def stand_by(self, key: DeviceKey, *standbys: Device) -> None:
        """These agents stand by from now on."""
        self.standing_by[key] = list(standbys)
        self._tell(key)

    def go(self, key: DeviceKey) -> None:
        """The device's link ends."""
        if self.here.pop(key, None) is not None:
            self._tell(key)

    def _tell(self, key: DeviceKey) -> None:
        for listener in list(self.listeners):
            listener(key)


@dataclass(slots=True)
class MemoryEndpoints:
    """Endpoints that take ports and tell what they were told."""

    ports: dict[DeviceKey, int] = field(default_factory=dict)
    certificates: dict[DeviceKey, bytes] = field(default_factory=dict)
    pods: dict[DeviceKey, ServedPod] = field(default_factory=dict)
    told: list[ServedPod] = field(default_factory=list)
    stopped: list[DeviceKey] = field(default_factory=list)
    taken: set[int] = field(default_factory=set)
    refuse: OSError | None = None
    _next: int = 40000

    async def serve(self, key: DeviceKey, certificate: bytes, private_key: bytes, port: int = 0) -> int:
        if self.refuse is not None:
            raise self.refuse
        if key not in self.ports:
            if port in self.taken:
                raise OSError(98, "address in use")
            if not port:
                self._next += 1
                port = self._next
            self.ports[key] = port
        self.certificates[key] = certificate
        return self.ports[key]

    def set_pod(self, pod: ServedPod) -> None:
        self.pods[pod.key] = pod
        self.told.append(pod)

    async def stop(self, key: DeviceKey, reason: str) -> None:
        if self.ports.pop(key, None) is not None:
            self.stopped.append(key)
        self.pods.pop(key, None)

    def port(self, key: DeviceKey) -> int:
        return self.ports.get(key, 0)


@dataclass(slots=True)
class MemoryJoins:
    """Remembers who was reconciled and who was forgotten."""

    again: float | None = None
    reconciled: list[str] = field(default_factory=list)
    forgotten: list[tuple[DeviceKey, str]] = field(default_factory=list)

    async def reconcile(self, edge_device: Object) -> float | None:
        self.reconciled.append(edge_device["metadata"]["name"])
        return self.again

    async def forget(self, key: DeviceKey, uid: str) -> None:
        self.forgotten.append((key, uid))


@dataclass(slots=True)
class MemoryJournal:
    """Keeps the occasions it was told."""

    occasions: list[tuple[str, Occasion]] = field(default_factory=list)

    def record(self, about: Mapping[str, Any], reason: str, message: str, *, warning: bool = False) -> None:
        self.occasions.append((about["metadata"]["name"], Occasion(reason, message, warning)))

    @property
    def reasons(self) -> list[str]:
        return [occasion.reason for _, occasion in self.occasions]


class MemorySigner:
    """Issues certificates at once, on the test's clock; or holds or refuses them."""

    def __init__(self, clock: IReactorTime, days: int = 30) -> None:
        self._clock = clock
        self._life = timedelta(days=days)
        self._key = new_key()
        self.asked: list[tuple[str, tuple[str, ...], SubjectParts]] = []
        self.error = ""
        self.held: list[Deferred[None]] | None = None

    async def issue(self, node_name: str, hosts: Sequence[str], subject: SubjectParts) -> KeyPair:
        self.asked.append((node_name, tuple(hosts), subject))
        if self.held is not None:
            gate: Deferred[None] = Deferred()
            self.held.append(gate)
            await gate
        if self.error:
            raise NotIssued(self.error)
        return self.sign(node_name, hosts, subject)

    def sign(self, node_name: str, hosts: Sequence[str], subject: SubjectParts) -> KeyPair:
        """A certificate, self-signed."""
        now = datetime.fromtimestamp(self._clock.seconds(), UTC)
        parts = [(oid, value) for oid, value in subject.attributes() if value]
        parts += [
            (NameOID.ORGANIZATION_NAME, "system:nodes"),
            (NameOID.COMMON_NAME, f"system:node:{node_name}"),
        ]
        name = x509.Name([x509.NameAttribute(oid, value) for oid, value in parts])
        builder = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(self._key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now)
            .not_valid_after(now + self._life)
            .add_extension(x509.SubjectAlternativeName(alternative_names(hosts)), critical=False)
        )
        certificate = builder.sign(self._key, hashes.SHA256())
        return KeyPair(certificate.public_bytes(Encoding.PEM), key_to_pem(self._key))
