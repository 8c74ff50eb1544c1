"""One request at the door of one device: what it asks for, and the ways to answer it.

Errors are plain text with a length, as the real kubelet's are; a refused upgrade
also closes the connection, because the API server copies the error until the end
of the stream and would wait ten seconds for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol
from urllib.parse import unquote_to_bytes

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure
from twisted.web.http import Request

from aranya.interfaces import Device, Devices, ServedPod, VirtualContainer
from aranya.names import DeviceKey
from aranya.session.status import forbidden, offline
from aranya.streaming.sessions import Sessions

TEXT = "text/plain; charset=utf-8"
JSON = "application/json"


class Refusal(Exception):
    """The request is answered with an error: a code and one line of text."""

    def __init__(self, code: int, text: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(code, text)
        self.code = code
        self.text = text
        self.headers = dict(headers or {})


class Running(Protocol):
    """Something that runs for a client inside HTTP and can be ended with a reason."""

    @property
    def over(self) -> bool: ...

    def abort(self, reason: str) -> None: ...


@dataclass(slots=True)
class Served:
    """What an endpoint knows: whose it is, the pod it answers for, and who is connected."""

    key: DeviceKey
    started: str  # RFC 3339
    pod: ServedPod | None = None
    stopping: str = ""
    #: What left HTTP: exec, attach, port-forward.
    streams: Sessions = field(default_factory=Sessions)
    #: What runs inside it: logs and ``/run``.
    running: set[Running] = field(default_factory=set)

    @property
    def sessions(self) -> int:
        """How many sessions of clients there are."""
        return len(self.streams) + len(self.running)

    def end_sessions(self, reason: str) -> None:
        """Tell every client why its session ends; none begins any more."""
        self.stopping = reason
        self.streams.abort_all(reason)
        for running in tuple(self.running):
            running.abort(reason)

    def began(self, running: Running) -> None:
        """Count what began inside HTTP, unless it is over already."""
        if not running.over:
            self.running.add(running)

    def ended(self, running: Running) -> None:
        """It is over, whoever ended it."""
        self.running.discard(running)


def pairs_of(query: bytes) -> list[tuple[bytes, bytes]]:
    """The query's names and values as the client meant them: bytes, blanks kept, ``+`` a space."""
    pairs = []
    for piece in query.split(b"&"):
        if piece:
            name, _, value = piece.partition(b"=")
            pairs.append((_decoded(name), _decoded(value)))
    return pairs


def _decoded(text: bytes) -> bytes:
    return unquote_to_bytes(text.replace(b"+", b" "))


def segments_of(path: bytes) -> tuple[str, ...]:
    """The path's parts, decoded once: who may go there and what is there must be one reading of it."""
    return tuple(unquote_to_bytes(part).decode("utf-8", "replace") for part in path.split(b"/")[1:])


def is_upgrade(request: Request) -> bool:
    """Whether the client wants to leave HTTP."""
    connection = b",".join(request.requestHeaders.getRawHeaders(b"connection", ()))
    return b"upgrade" in connection.lower() or request.requestHeaders.hasHeader(b"upgrade")


class Visit:
    """One request, the device whose door it came to, and what its path named."""

    def __init__(self, request: Request, served: Served, devices: Devices, clock: IReactorTime) -> None:
        self.request = request
        self.served = served
        self.devices = devices
        self.clock = clock
        self.method = request.method.decode("ascii", "replace")
        self.named: dict[str, str] = {}
        self.gone = False
        self._leaving: list[Callable[[], None]] = []
        finished: Deferred[None] = request.notifyFinish()
        finished.addCallbacks(self._answered, self._left)

    def on_leaving(self, hear: Callable[[], None]) -> None:
        """Call ``hear`` when the client leaves before it is answered; at once if it has left."""
        if self.gone:
            hear()
        else:
            self._leaving.append(hear)

    # ---- what it asks for --------------------------------------------------------
    # Taken apart when asked, which is after the client was authenticated: a target may be long.

    @cached_property
    def segments(self) -> tuple[str, ...]:
        """The parts of the path."""
        return segments_of(self.request.uri.partition(b"?")[0])

    @cached_property
    def pairs(self) -> list[tuple[bytes, bytes]]:
        """The query."""
        return pairs_of(self.request.uri.partition(b"?")[2])

    def values(self, name: bytes) -> list[bytes]:
        """All values of one query parameter, in order."""
        return [value for key, value in self.pairs if key == name]

    def value(self, name: bytes) -> bytes | None:
        """The first value of a query parameter."""
        values = self.values(name)
        return values[0] if values else None

    def pod(self, code: int = 404, text: str = "pod does not exist") -> ServedPod:
        """The one pod that this door answers for, if the path names it."""
        pod = self.served.pod
        named = (self.named.get("namespace"), self.named.get("pod"))
        if pod is None or not pod.uid or named != (pod.key.namespace, pod.key.name):
            raise Refusal(code, text)
        if self.named.get("uid", pod.uid) != pod.uid:
            raise Refusal(code, text)
        return pod

    def container(self, pod: ServedPod) -> VirtualContainer | None:
        """The container that the path names."""
        for container in pod.containers:
            if container.name == self.named.get("container"):
                return container
        return None

    def device(self, verb: str, code: int = 503) -> Device:
        """The device, if it is here and its owner allows ``verb``."""
        device = self.devices.get(self.served.key)
        if device is None:
            raise Refusal(code, offline(self.served.key.name))
        if not device.allows(verb):
            raise Refusal(code, forbidden(self.served.key.name, verb))
        return device

    # ---- how it is answered --------------------------------------------------------

    def answer(
        self,
        body: bytes | str,
        content_type: str = TEXT,
        code: int = 200,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Answer with a whole body; nothing happens if the client has left."""
        if self.gone or self.request.finished or self.request.startedWriting:
            return
        content = body if isinstance(body, bytes) else body.encode("utf-8", "replace")
        self.request.setResponseCode(code)
        self.request.setHeader("Content-Type", content_type)
        self.request.setHeader("Content-Length", str(len(content)))
        self.request.setHeader("X-Content-Type-Options", "nosniff")
        for name, value in (headers or {}).items():
            self.request.setHeader(name, value)
        if self.request.method != b"HEAD":
            self.request.write(content)
        self.request.finish()

    def refuse(self, refusal: Refusal) -> None:
        """Answer with an error, and hang up if the client wanted to leave HTTP."""
        headers = dict(refusal.headers)
        if is_upgrade(self.request):
            headers["Connection"] = "close"
            hang_up_after(self.request)
        self.answer(refusal.text, code=refusal.code, headers=headers)

    def _answered(self, _: None) -> None:
        self._leaving.clear()

    def _left(self, _: Failure) -> None:
        self.gone = True
        leaving, self._leaving = self._leaving, []
        for hear in leaving:
            hear()


def hang_up_after(request: Request) -> None:
    """Close the connection when the answer to ``request`` is out."""
    channel = request.channel
    if channel is not None and hasattr(channel, "persistent"):
        channel.persistent = 0
