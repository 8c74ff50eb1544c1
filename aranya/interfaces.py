"""What the parts of the controller know of each other.

``controller``, ``kubelet`` and ``device`` never import one another, nor do ``kube``,
``streaming`` and ``session`` below them; they meet here.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Protocol

from twisted.internet.interfaces import IPushProducer

from aranya.names import DeviceKey
from tether.link.interfaces import Channel, Receiver
from tether.verbs.requests import DeviceFacts, Request, Size

#: A Kubernetes object as JSON; typed views of it are in ``aranya.kube.objects``.
Object = dict[str, Any]


# ---- the API server ---------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Resource:
    """One kind of object as the API server's URLs name it."""

    group: str  # "" is the core group
    version: str
    plural: str
    kind: str
    namespaced: bool = True

    def path(self, namespace: str | None = None, name: str | None = None, sub: str = "") -> str:
        """The URL path of the collection, of one object, or of a subresource of it."""
        root = f"/apis/{self.group}/{self.version}" if self.group else f"/api/{self.version}"
        if self.namespaced and namespace is not None:
            root += f"/namespaces/{namespace}"
        root += f"/{self.plural}"
        if name is not None:
            root += f"/{name}"
        return root + (f"/{sub}" if sub else "")


class Change(Enum):
    """What a watch tells about an object."""

    ADDED = "ADDED"
    MODIFIED = "MODIFIED"
    DELETED = "DELETED"
    BOOKMARK = "BOOKMARK"


class Patch(Enum):
    """The content types of PATCH."""

    MERGE = "application/merge-patch+json"
    STRATEGIC = "application/strategic-merge-patch+json"
    JSON = "application/json-patch+json"


class Watching(Protocol):
    """One watch request, iterated."""

    def __aiter__(self) -> AsyncIterator[tuple[Change, Object]]: ...

    def __anext__(self) -> Awaitable[tuple[Change, Object]]: ...

    def close(self) -> None:
        """End the request; whoever leaves before its end must call it."""
        ...


class Kubernetes(Protocol):
    """The API server, as this project uses it.

    Every call raises ``aranya.kube.errors.ApiError`` (with ``NotFound``,
    ``Conflict``, ``AlreadyExists``, ``Gone``, ``Forbidden``, ``Invalid`` beneath it) for a
    Status, and ``Unreachable`` when there was no answer within the deadline. Both are
    ``aranya.kube.errors.KubeError``.
    """

    async def get(self, resource: Resource, namespace: str | None, name: str) -> Object: ...

    async def list(
        self,
        resource: Resource,
        namespace: str | None = None,
        *,
        label_selector: str = "",
        field_selector: str = "",
        resource_version: str = "",
        limit: int = 0,
    ) -> Object:
        """The whole list object (``items`` and ``metadata.resourceVersion``), pages joined."""
        ...

    async def create(
        self,
        resource: Resource,
        namespace: str | None,
        body: Object,
        *,
        name: str = "",
        sub: str = "",
    ) -> Object: ...

    async def replace(
        self, resource: Resource, namespace: str | None, name: str, body: Object, *, sub: str = ""
    ) -> Object: ...

    async def patch(
        self,
        resource: Resource,
        namespace: str | None,
        name: str,
        body: Object | Sequence[Object],
        *,
        kind: Patch = Patch.MERGE,
        sub: str = "",
    ) -> Object: ...

    async def delete(
        self,
        resource: Resource,
        namespace: str | None,
        name: str,
        *,
        uid: str = "",
        resource_version: str = "",
        grace_seconds: int | None = None,
    ) -> None:
        """Delete, with preconditions where given."""
        ...

    def watch(
        self,
        resource: Resource,
        namespace: str | None = None,
        *,
        resource_version: str,
        label_selector: str = "",
        field_selector: str = "",
    ) -> Watching:
        """One watch request; ends quietly when the server ends it; ``Gone`` on 410."""
        ...


# ---- devices ----------------------------------------------------------------


class Device(Protocol):
    """One connected device."""

    @property
    def key(self) -> DeviceKey: ...
    @property
    def facts(self) -> DeviceFacts: ...
    @property
    def software(self) -> str: ...
    @property
    def address(self) -> str:
        """Where its link comes from, for people."""
        ...

    def allows(self, verb: str) -> bool:
        """Whether the device owner's policy lets ``exec``, ``attach``, ``logs`` or ``port-forward``."""
        ...

    def may_forward(self, host: str, port: int) -> bool:
        """Whether the device's own allow list lets a forward to this target ("" = loopback)."""
        ...

    def open(self, request: Request, receiver: Receiver) -> Channel:
        """Open a session on the device at once. Raises ``LinkLost`` or ``StreamReset``."""
        ...


class Devices(Protocol):
    """Which devices are here now."""

    def get(self, key: DeviceKey) -> Device | None:
        """The device, if it is connected: its active agent."""
        ...

    def standbys(self, key: DeviceKey) -> Sequence[Device]:
        """The agents of a device that are connected and stand by."""
        ...

    def disconnect(self, key: DeviceKey, reason: str, retry: bool = True) -> None:
        """Close the device's links, and end the sessions that wait for one (banned, deleted)."""
        ...

    def subscribe(self, listener: Callable[[DeviceKey], None]) -> Callable[[], None]:
        """Call ``listener`` whenever a device, or one that stands by, came or went; gives back the undo."""
        ...


# ---- client streams: what kubectl's side of an exec or attach looks like -----


class ClientEvents(Protocol):
    """What a kubectl client does during an exec or attach; calls never raise."""

    def stdin_received(self, data: bytes) -> None: ...

    def stdin_ended(self) -> None:
        """Half close: the process should see end of file; output goes on."""
        ...

    def resized(self, size: Size) -> None: ...

    def client_gone(self, reason: str) -> None:
        """The connection ended before we ended it; the last call."""
        ...


class ClientStreams(Protocol):
    """The streams of one exec or attach, whatever protocol kubectl speaks.

    Writes go out in order. ``register_producer`` pauses a push producer of
    output while the client's TCP connection is full. ``pause_stdin`` stops reading
    from the client (after a bounded overrun); while it is paused the protocol
    still notices a dead client (``decisions.md`` 19's ping).
    """

    @property
    def tty(self) -> bool: ...
    @property
    def has_stdin(self) -> bool: ...
    @property
    def has_stdout(self) -> bool: ...
    @property
    def has_stderr(self) -> bool: ...

    def write_stdout(self, data: bytes) -> None: ...
    def write_stderr(self, data: bytes) -> None: ...
    def register_producer(self, producer: IPushProducer) -> None: ...
    def unregister_producer(self) -> None: ...
    def pause_stdin(self) -> None: ...
    def resume_stdin(self) -> None: ...

    def end(self, status: Status) -> None:
        """End the outputs, write the status, close. Only the first call counts."""
        ...


@dataclass(frozen=True, slots=True)
class Status:
    """The result of an exec or attach as a ``metav1.Status``: exactly one of three forms.

    Success: neither field. A non-zero exit: ``exit_code`` (1-255). Anything
    else: ``message``, which kubectl prints as its error and exits 1.
    """

    exit_code: int = 0
    message: str = ""

    @property
    def success(self) -> bool:
        return self.exit_code == 0 and not self.message


class ForwardStream(Protocol):
    """One forwarded TCP connection from kubectl's side: data both ways and an error text."""

    def write(self, data: bytes) -> None: ...
    def register_producer(self, producer: IPushProducer) -> None: ...
    def unregister_producer(self) -> None: ...
    def pause(self) -> None:
        """Stop reading this connection's data from the client (bounded overrun)."""
        ...

    def resume(self) -> None: ...
    def finish(self) -> None:
        """The target ended its direction: half-close towards the client."""
        ...

    def end(self, error: str = "") -> None:
        """Close both directions; a non-empty error is told on the error stream."""
        ...


class ForwardEvents(Protocol):
    """What the client does with one forwarded connection; calls never raise."""

    def data_received(self, data: bytes) -> None: ...
    def finished(self) -> None: ...
    def client_gone(self) -> None:
        """Reset by the client or connection lost; the last call."""
        ...


class ForwardAcceptor(Protocol):
    """Takes each new connection that kubectl forwards."""

    def connection_opened(self, port: int, stream: ForwardStream) -> ForwardEvents:
        """Start connecting to ``port`` on the device; refuse with ``stream.end(error)``."""
        ...


# ---- the kubelet endpoints ---------------------------------------------------


@dataclass(frozen=True, slots=True)
class VirtualContainer:
    """A container of the virtual pod and where its log comes from."""

    name: str
    file: str = ""
    unit: str = ""


@dataclass(frozen=True, slots=True)
class ForwardTarget:
    """``port`` on the virtual pod leads to ``host:target_port`` seen from the device."""

    port: int
    host: str
    target_port: int


@dataclass(frozen=True, slots=True)
class ServedPod:
    """What a kubelet endpoint must know of the one pod it answers for."""

    key: DeviceKey
    uid: str  # the live pod's UID; "" while there is none
    containers: tuple[VirtualContainer, ...]  # the host container first
    forward: tuple[ForwardTarget, ...] = ()
    object: Mapping[str, Any] | None = None  # the Pod, for /pods


class Endpoints(Protocol):
    """The kubelet HTTPS endpoints, one per device."""

    async def serve(self, key: DeviceKey, certificate: bytes, private_key: bytes, port: int = 0) -> int:
        """Listen for the device (or swap the certificate of a running endpoint); gives back the port.

        ``port`` is the one it had before (0: any). Raises ``OSError`` subclasses when it cannot listen.
        """
        ...

    def set_pod(self, pod: ServedPod) -> None:
        """Tell the endpoint which pod, containers and forwards it answers for."""
        ...

    async def stop(self, key: DeviceKey, reason: str) -> None:
        """Stop listening and end the sessions with the reason."""
        ...

    def port(self, key: DeviceKey) -> int:
        """The port it listens on now; 0 if it does not."""
        ...
