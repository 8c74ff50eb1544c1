"""Small types instead of strings, and the names that are seen in the API."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NewType

NodeName = NewType("NodeName", str)

GROUP = "aranya.arhat.dev"
VERSION = "v1alpha1"
PLURAL = "edgedevices"
FINALIZER = "aranya.arhat.dev/finalizer"
#: ``kubectl aranya join`` writes a nonce here; aranya answers with a fresh join Secret.
JOIN_ANNOTATION = "aranya.arhat.dev/join-requested"

LABEL_ROLE = "arhat.dev/role"
LABEL_NAME = "arhat.dev/name"
LABEL_NAMESPACE = "arhat.dev/namespace"
LABEL_ARCH = "arhat.dev/arch"
LABEL_OS = "arhat.dev/os"
TAINT_NAMESPACE = "arhat.dev/namespace"

HOST_CONTAINER = "host"
VIRTUAL_IMAGE = "virtualimage.arhat.dev/host"
NODE_LEASE_NAMESPACE = "kube-node-lease"


@dataclass(frozen=True, slots=True, order=True)
class DeviceKey:
    """Which EdgeDevice: its namespace and name. Node and virtual pod share the name."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"

    @property
    def provider_id(self) -> str:
        """The Node's providerID, by which ownership of a Node is known."""
        return f"aranya://{self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True)
class DeviceIdentity:
    """Who a device certificate says it is: one EdgeDevice, by UID."""

    key: DeviceKey
    uid: str
