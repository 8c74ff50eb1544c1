"""The objects this project reads or writes: their resources, keys and times.

Plain functions over JSON, without I/O and without a clock, so that planners may use them.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple

from aranya.interfaces import Object, Resource
from aranya.names import GROUP, PLURAL, VERSION

NODES = Resource("", "v1", "nodes", "Node", namespaced=False)
PODS = Resource("", "v1", "pods", "Pod")
SECRETS = Resource("", "v1", "secrets", "Secret")
CONFIGMAPS = Resource("", "v1", "configmaps", "ConfigMap")
EVENTS = Resource("", "v1", "events", "Event")
SERVICEACCOUNTS = Resource("", "v1", "serviceaccounts", "ServiceAccount")
LEASES = Resource("coordination.k8s.io", "v1", "leases", "Lease")
CSRS = Resource(
    "certificates.k8s.io",
    "v1",
    "certificatesigningrequests",
    "CertificateSigningRequest",
    namespaced=False,
)
TOKENREVIEWS = Resource("authentication.k8s.io", "v1", "tokenreviews", "TokenReview", namespaced=False)
SUBJECTACCESSREVIEWS = Resource(
    "authorization.k8s.io", "v1", "subjectaccessreviews", "SubjectAccessReview", namespaced=False
)
EDGEDEVICES = Resource(GROUP, VERSION, PLURAL, "EdgeDevice")

RESOURCES: tuple[Resource, ...] = (
    NODES,
    PODS,
    SECRETS,
    CONFIGMAPS,
    EVENTS,
    SERVICEACCOUNTS,
    LEASES,
    CSRS,
    TOKENREVIEWS,
    SUBJECTACCESSREVIEWS,
    EDGEDEVICES,
)


class ObjectKey(NamedTuple):
    """Which object of a resource; the namespace of a cluster-wide one is empty."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}" if self.namespace else self.name


def key_of(found: Mapping[str, Any]) -> ObjectKey:
    """The key of an object."""
    metadata = found["metadata"]
    return ObjectKey(metadata.get("namespace") or "", metadata["name"])


def version_of(found: Mapping[str, Any]) -> str:
    """The resource version of an object or a list; empty if it has none."""
    return str(found.get("metadata", {}).get("resourceVersion") or "")


def uid_of(found: Mapping[str, Any]) -> str:
    """The UID of an object; empty if it has none."""
    return str(found.get("metadata", {}).get("uid") or "")


def api_version(resource: Resource) -> str:
    """What stands under ``apiVersion`` in an object of this resource."""
    return f"{resource.group}/{resource.version}" if resource.group else resource.version


def new_object(resource: Resource, metadata: Mapping[str, Any], **fields: Any) -> Object:
    """An object of the resource, with its ``apiVersion`` and ``kind``."""
    return {
        "apiVersion": api_version(resource),
        "kind": resource.kind,
        "metadata": dict(metadata),
        **fields,
    }


def owner_reference(owner: Mapping[str, Any]) -> Object:
    """The reference that makes the garbage collector delete an object with its owner."""
    return {
        "apiVersion": owner["apiVersion"],
        "kind": owner["kind"],
        "name": owner["metadata"]["name"],
        "uid": owner["metadata"]["uid"],
    }


# ---- times ------------------------------------------------------------------


def rfc3339(moment: datetime) -> str:
    """``metav1.Time``: seconds, in UTC."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def micro_time(moment: datetime) -> str:
    """``metav1.MicroTime``: exactly six digits, else the API server does not decode it."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def parse_time(text: object) -> datetime | None:
    """Either kind of time off the wire, in UTC; ``None`` for what is not one."""
    if not isinstance(text, str):
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    return moment.astimezone(UTC) if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
