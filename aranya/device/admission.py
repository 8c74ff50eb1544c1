"""Is this really that device, and may it come in? A pure decision, asked at every handshake.

The identity of a link is its certificate's, never what the device says. Admitted is
who presents a certificate that names a live, unbanned EdgeDevice by its present UID,
with a key that aranya recorded for it. A deleted and re-made EdgeDevice has another
UID; a machine that was replaced has a key that is recorded no more.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cryptography import x509

from aranya.certs.authority import identity_of
from aranya.certs.keys import key_hash
from aranya.device.joining import is_banned
from aranya.interfaces import Object
from aranya.kube.objects import uid_of
from aranya.names import DeviceIdentity, DeviceKey


@dataclass(frozen=True, slots=True)
class Admitted:
    """Who may come in, and the key it proved to hold."""

    identity: DeviceIdentity
    key_hash: str


class NotAdmitted(Exception):
    """The device stays out; one line of why, which it is told."""


class Admission:
    """Decides by the EdgeDevice as the watch knows it and by the recorded keys."""

    def __init__(
        self,
        lookup: Callable[[DeviceKey], Object | None],
        recorded_keys: Callable[[DeviceIdentity], Sequence[str]],
    ) -> None:
        self._lookup = lookup
        self._recorded_keys = recorded_keys

    def admit(self, certificate: x509.Certificate) -> Admitted:
        """Let in the owner of this verified certificate; raises ``NotAdmitted``."""
        identity = identity_of(certificate)
        if identity is None:
            raise NotAdmitted("the certificate names no EdgeDevice")
        admitted = Admitted(identity, key_hash(certificate.public_key()))
        self.check(admitted)
        return admitted

    def check(self, admitted: Admitted) -> None:
        """Whether it may still come in, or stay; raises ``NotAdmitted``."""
        identity, key = admitted.identity, admitted.identity.key
        edge_device = self._lookup(key)
        again = f"join again: kubectl aranya join {key.name} -n {key.namespace}"
        if edge_device is None or edge_device["metadata"].get("deletionTimestamp"):
            raise NotAdmitted(f"there is no EdgeDevice {key}")
        if uid_of(edge_device) != identity.uid:
            raise NotAdmitted(f"EdgeDevice {key} is another one than this device joined; {again}")
        if is_banned(edge_device):
            raise NotAdmitted(f"EdgeDevice {key} is banned")
        if admitted.key_hash not in self._recorded_keys(identity):
            raise NotAdmitted(f"another machine has joined as {key} since; {again}")
