"""What can be done for one EdgeDevice: one effect each, and what is seen after it.

Every step may be done twice: what is there already is taken as it is, what is gone
is gone. A step does not try again; ``Conflict`` and other errors go up to the
controller, which looks anew.
"""

from __future__ import annotations

from collections.abc import Awaitable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

from aranya.certs.authority import tls_secret
from aranya.certs.issuer import SubjectParts
from aranya.certs.keys import KeyPair
from aranya.controller.devices.model import Certificate, Seen, Undone, Wish
from aranya.controller.devices.status import Occasion
from aranya.interfaces import Devices, Endpoints, Kubernetes, Object, ServedPod
from aranya.kube.errors import AlreadyExists, Conflict, Forbidden, Invalid, NotFound
from aranya.kube.objects import EDGEDEVICES, NODES, PODS, SECRETS
from aranya.names import FINALIZER, LABEL_NAME, LABEL_NAMESPACE, LABEL_ROLE, DeviceKey

ROLE_CERTIFICATE = "Certificate"


def certificate_secret_name(device: str) -> str:
    """The name of the Secret with a device's serving certificate."""
    return f"kubelet-tls.{device}"


class Leases(Protocol):
    """Who renews the Leases of Nodes."""

    def keep(self, node_name: str, node_uid: str) -> None: ...
    async def drop(self, node_name: str) -> None: ...


class Issuing(Protocol):
    """Who asks for certificates in the background."""

    def ask(self, key: DeviceKey, subject: SubjectParts, hosts: tuple[str, ...]) -> None: ...
    def forget(self, key: DeviceKey) -> None: ...


class Joins(Protocol):
    """Who makes join tokens and remembers devices' keys."""

    def reconcile(self, edge_device: Object) -> Awaitable[float | None]: ...
    def forget(self, key: DeviceKey, uid: str) -> Awaitable[None]: ...


class Journal(Protocol):
    """Where Events about an EdgeDevice go."""

    def record(
        self, about: Mapping[str, Any], reason: str, message: str, *, warning: bool = False
    ) -> None: ...


@dataclass(frozen=True, slots=True)
class Means:
    """With what steps are done."""

    kube: Kubernetes
    devices: Devices
    endpoints: Endpoints
    joins: Joins
    leases: Leases
    issuing: Issuing
    journal: Journal
    namespace: str


@dataclass(frozen=True, slots=True)
class Subject:
    """For whom a step is done; ``wish`` is ``None`` for an EdgeDevice that is gone."""

    key: DeviceKey
    uid: str
    wish: Wish | None


class Step(Protocol):
    """One thing to do."""

    async def run(self, means: Means, subject: Subject, seen: Seen) -> Seen:
        """Do it; gives back what is seen afterwards."""
        ...


# ---- the EdgeDevice itself ---------------------------------------------------


@dataclass(frozen=True, slots=True)
class AddFinalizer:
    """Make sure that the EdgeDevice cannot go without us."""

    async def run(self, means: Means, subject: Subject, seen: Seen) -> Seen:
        return replace(seen, device=await _patch_finalizers(means, subject, add=True))


@dataclass(frozen=True, slots=True)
class RemoveFinalizer:
    """Let the EdgeDevice go."""

    async def run(self, means: Means, subject: Subject, seen: Seen) -> Seen:
        try:
            device = await _patch_finalizers(means, subject, add=False)
        except NotFound:
            return replace(seen, device=None)
        return replace(seen, device=device if device["metadata"].get("finalizers") else None)


async def _patch_finalizers(means: Means, subject: Subject, add: bool) -> Object:
    metadata = subject.wish.source["metadata"] if subject.wish is not None else {}
    others = [entry for entry in metadata.get("finalizers") or [] if entry != FINALIZER]
    patch = {
        "metadata": {
            "uid": subject.uid,
            "resourceVersion": metadata.get("resourceVersion", ""),
            "finalizers": [*others, FINALIZER] if add else others,
        }
    }
    return await means.kube.patch(EDGEDEVICES, subject.key.namespace, subject.key.name, patch)


@dataclass(frozen=True, slots=True)
class PatchStatus:
    """Tell how things are; what changed is told as Events too, once it is written."""

    patch: Object
    occasions: tuple[Occasion, ...] = ()

    async def run(self, means: Means, subject: Subject, seen: Seen) -> Seen:
        key = subject.key
        device = await means.kube.patch(EDGEDEVICES, key.namespace, key.name, self.patch, sub="status")
        for occasion in self.occasions:
            means.journal.record(device, occasion.reason, occasion.message, warning=occasion.warning)
        return replace(seen, device=device)


# ---- the device ----------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Disconnect:
    """End the device's links, and the sessions that wait for a lost one."""

    reason: str
    retry: bool = True

    async def run(self, means: Means, subject: Subject, seen: Seen) -> Seen:
        means.devices.disconnect(subject.key, self.reason, self.retry)
        return replace(_done(seen, Undone.LINK), connected=None, standbys=())


@dataclass(frozen=True, slots=True)
class ForgetJoins:
    """Void tokens and recorded keys."""

    async def run(self, means: Means, subject: Subject, seen: Seen) -> Seen:
        try:
            await means.joins.forget(subject.key, subject.uid)
        except (Forbidden, NotFound):
            pass  # The namespace is going and takes the token with it.
        return _done(seen, Undone.JOINS)


# ---- certificate and endpoint ----------------------------------------------------


@dataclass(frozen=True, slots=True)
class AskForCertificate:
    """Have a certificate issued; the answer wakes the device's key."""

    subject: SubjectParts
    hosts: tuple[str, ...]

    async def run(self, means: Means, subject: Subject, seen: Seen) -> Seen:
        means.issuing.ask(subject.key, self.subject, self.hosts)
        return replace(seen, issuing=True)


@dataclass(frozen=True, slots=True)
class StoreCertificate:
    """Keep an issued certificate in its Secret."""

    certificate: Certificate

    async def run(self, means: Means, subject: Subject, seen: Seen) -> Seen:
        name = certificate_secret_name(subject.key.name)
        body = tls_secret(name, means.namespace, self.certificate.pair)
        body["metadata"]["labels"] = {
            LABEL_ROLE: ROLE_CERTIFICATE,
            LABEL_NAME: subject.key.name,
            LABEL_NAMESPACE: subject.key.namespace,
        }
        try:
            secret = await means.kube.create(SECRETS, means.namespace, body)
        except AlreadyExists:
            # Nobody else has a say in this Secret: the newest certificate wins.
            secret = await means.kube.patch(SECRETS, means.namespace, name, body)
        means.issuing.forget(subject.key)
        return replace(
            seen, secret=secret, certificate=self.certificate, issued=None, issuing=False, issue_error=""
        )


@dataclass(frozen=True, slots=True)
class DeleteSecret:
    """Delete the serving certificate and stop asking for one."""

    async def run(self, means: Means, subject: Subject, seen: Seen) -> Seen:
        means.issuing.forget(subject.key)
        try:
            await means.kube.delete(SECRETS, means.namespace, certificate_secret_name(subject.key.name))
        except NotFound:
            pass
        return replace(_done(seen, Undone.SECRET), secret=None, certificate=None, issued=None, issuing=False)


@dataclass(frozen=True, slots=True)
class Serve:
    """Listen, or swap the certificate of an endpoint that does."""

    pair: KeyPair
    port: int

    async def run(self, means: Means, subject: Subject, seen: Seen) -> Seen:
        serve = means.endpoints.serve
        try:
            try:
                port = await serve(subject.key, self.pair.chain, self.pair.private_key, self.port)
            except OSError:
                if not self.port:
                    raise
                port = await serve(subject.key, self.pair.chain, self.pair.private_key, 0)
        except OSError as error:
            text = f"the kubelet endpoint cannot listen: {error}"
            return replace(seen, setback=replace(seen.setback, endpoint_error=text))
        return replace(seen, port=port, shown=self.pair)


@dataclass(frozen=True, slots=True)
class TellEndpoint:
    """Tell the endpoint for which pod it answers."""

    pod: ServedPod

    async def run(self, means: Means, subject: Subject, seen: Seen) -> Seen:
        means.endpoints.set_pod(self.pod)
        return replace(seen, told=self.pod)


@dataclass(frozen=True, slots=True)
class StopEndpoint:
    """Stop listening and end the sessions."""

    reason: str

    async def run(self, means: Means, subject: Subject, seen: Seen) -> Seen:
        await means.endpoints.stop(subject.key, self.reason)
        return replace(_done(seen, Undone.ENDPOINT), port=0, shown=None, told=None)


# ---- Node and Lease ----------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class CreateNode:
    """Create the Node, or find out whose the one of this name is."""

    node: Object

    async def run(self, means: Means, subject: Subject, seen: Seen) -> Seen:
        try:
            return replace(seen, node=await means.kube.create(NODES, None, self.node))
        except AlreadyExists:
            return replace(seen, node=await means.kube.get(NODES, None, subject.key.name))


@dataclass(frozen=True, slots=True)
class PatchNode:
    """Change what is ours on the Node."""

    patch: Object
    sub: str = ""

    async def run(self, means: Means, subject: Subject, seen: Seen) -> Seen:
        node = await means.kube.patch(NODES, None, subject.key.name, self.patch, sub=self.sub)
        return replace(seen, node=node)


@dataclass(frozen=True, slots=True)
class DeleteNode:
    """Delete this very Node."""

    uid: str

    async def run(self, means: Means, subject: Subject, seen: Seen) -> Seen:
        try:
            await means.kube.delete(NODES, None, subject.key.name, uid=self.uid)
        except (NotFound, Conflict):
            pass
        return replace(seen, node=None)


@dataclass(frozen=True, slots=True)
class KeepLease:
    """Have the Node's Lease renewed from now on."""

    node_uid: str

    async def run(self, means: Means, subject: Subject, seen: Seen) -> Seen:
        means.leases.keep(subject.key.name, self.node_uid)
        return replace(seen, lease_of=self.node_uid)


@dataclass(frozen=True, slots=True)
class DropLease:
    """Delete the Node's Lease."""

    async def run(self, means: Means, subject: Subject, seen: Seen) -> Seen:
        await means.leases.drop(subject.key.name)
        return replace(_done(seen, Undone.LEASE), lease_of="")


# ---- the virtual Pod -----------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class CreatePod:
    """Create the virtual Pod, or find out whose the one of this name is."""

    pod: Object

    async def run(self, means: Means, subject: Subject, seen: Seen) -> Seen:
        namespace = subject.key.namespace
        try:
            return replace(seen, pod=await means.kube.create(PODS, namespace, self.pod))
        except AlreadyExists:
            return replace(seen, pod=await means.kube.get(PODS, namespace, subject.key.name))
        except Forbidden as error:
            if error.is_terminating:
                return replace(seen, setback=replace(seen.setback, namespace_ending=True))
            refusal = str(error)
        except Invalid as error:
            refusal = str(error)
        text = f"the virtual pod was refused: {refusal}"
        return replace(seen, setback=replace(seen.setback, pod_refused=text))


@dataclass(frozen=True, slots=True)
class PatchPod:
    """Change what is ours on the virtual Pod."""

    patch: Object
    sub: str = ""

    async def run(self, means: Means, subject: Subject, seen: Seen) -> Seen:
        key = subject.key
        pod = await means.kube.patch(PODS, key.namespace, key.name, self.patch, sub=self.sub)
        return replace(seen, pod=pod)


@dataclass(frozen=True, slots=True)
class DeletePod:
    """Finalise this very Pod at once.

    ``tolerant``: in a namespace that is being deleted our rights may be gone already;
    the namespace's own deletion takes the Pod, whose grace is zero.
    """

    uid: str
    tolerant: bool = False

    async def run(self, means: Means, subject: Subject, seen: Seen) -> Seen:
        key = subject.key
        try:
            await means.kube.delete(PODS, key.namespace, key.name, uid=self.uid, grace_seconds=0)
        except (NotFound, Conflict):
            pass
        except Forbidden:
            if not self.tolerant:
                raise
        return replace(seen, pod=None)


def _done(seen: Seen, what: Undone) -> Seen:
    return replace(seen, done=seen.done | {what})
