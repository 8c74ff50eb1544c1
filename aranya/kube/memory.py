"""An API server in memory, behind the true client: a double with an API server's manners.

It is an ``IAgent``, so the code under test is the shipped client and all above it; the suite in
``test/contracts`` puts the same questions to it and to a real one. What it keeps of the
real thing: resource versions and conflicts, UIDs and preconditions, generations, the separation
of ``status``, finalizers, graceful deletion of pods, no write when nothing changes,
selectors, paging, watches that resume, turn ``Gone`` after ``compact`` and honour selectors.
What it leaves out: admission, validation beyond the few rules here, RBAC, garbage collection,
strategic merges (taken as merge patches: their lists are replaced).

Requests are answered at once. What a watch tells comes on the clock's next turn, as in
life it never comes before the writer's own answer.
"""

from __future__ import annotations

import base64
import copy
import re
import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.error import ConnectionLost, ConnectionRefusedError
from twisted.internet.interfaces import IConsumer, IDelayedCall, IProtocol, IPushProducer, IReactorTime
from twisted.python.failure import Failure
from twisted.web.client import ResponseDone, ResponseFailed
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgent, IBodyProducer, IResponse
from zope.interface import implementer

from aranya.interfaces import Change, Object, Patch, Resource
from aranya.kube.client import ApiClient
from aranya.kube.credentials import ClusterAccess
from aranya.kube.memory_requests import (
    Refusal,
    Request,
    check,
    field_tests,
    json_patch,
    kind_of,
    label_tests,
    merge_patch,
    not_found,
    parse,
    status_of,
    success,
)
from aranya.kube.objects import rfc3339

#: Kinds whose objects have no status of their own to keep apart.
_STATUSLESS = frozenset({"secrets", "configmaps", "leases", "events", "serviceaccounts"})
#: Kinds that are questions: answered, never stored.
_QUESTIONS = frozenset({"tokenreviews", "subjectaccessreviews"})
_NAME = re.compile(r"[a-z0-9]([-a-z0-9.:]*[a-z0-9])?")
_HISTORY_LIMIT = 10_000

_Key = tuple[str, str, str, str]  # group, plural, namespace, name


@dataclass(frozen=True, slots=True)
class _Entry:
    """One change in the history that watches are told from."""

    version: int
    key: _Key
    old: Object | None
    new: Object | None


class MemoryApiServer:
    """The server; ``client()`` gives a true client of it.

    Hooks for tests: ``fail_next``, ``go_away`` and ``come_back``, ``compact``, ``bookmark``,
    ``end_watches``; ``before`` is called with every request and may raise ``Refusal``;
    ``review_token`` and ``review_access`` answer the reviews; ``requests`` is what was asked.
    """

    def __init__(self, clock: IReactorTime, now: Callable[[], datetime] | None = None) -> None:
        self._clock = clock
        self._now = now or (lambda: datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=clock.seconds()))
        self._objects: dict[_Key, Object] = {}
        self._version = 100
        self._compacted = 100
        self._history: list[_Entry] = []
        self._watches: list[_MemoryWatch] = []
        self._away: Callable[[], Exception] | None = None
        self._failures: list[Refusal] = []
        self.before: Callable[[Request], None] = lambda request: None
        self.review_token: Callable[[str], Object] = lambda token: {"authenticated": False}
        self.review_access: Callable[[Object], Object] = lambda spec: {"allowed": False}
        self.requests: list[Request] = []

    # -- for tests

    def client(self, **options: Any) -> ApiClient:
        """The shipped client, asking this server."""
        access = ClusterAccess("https://memory.invalid", namespace="default")
        options.setdefault("in_thread", lambda work: succeed(work()))
        return ApiClient(self._clock, access, agent=self.agent(), **options)

    def agent(self) -> IAgent:
        """What takes the place of Twisted's ``Agent``."""
        return _MemoryAgent(self)

    def fail_next(
        self, count: int = 1, code: int = 500, reason: str = "InternalError", retry_after: int = 0
    ) -> None:
        """Refuse so many requests to come."""
        self._failures += [Refusal(code, reason, "told to fail", retry_after=retry_after)] * count

    def go_away(self) -> None:
        """Refuse connections and cut the watches."""
        self._away = ConnectionRefusedError
        for watch in list(self._watches):
            watch.cut(ConnectionLost())

    def come_back(self) -> None:
        """Answer again; what was stored is still there."""
        self._away = None

    def compact(self) -> None:
        """Forget the history: who resumes from before now is told ``Gone``."""
        self._history.clear()
        self._compacted = self._version

    def end_watches(self) -> None:
        """End every watch quietly, as a server does after its time."""
        for watch in list(self._watches):
            watch.end()

    def bookmark(self) -> None:
        """Tell every watch which version it has reached."""
        for watch in list(self._watches):
            watch.bookmark()

    @property
    def watching(self) -> int:
        """How many watches are open."""
        return len(self._watches)

    def stored(self, resource: Resource, namespace: str | None, name: str) -> Object | None:
        """A copy of what is stored."""
        found = self._objects.get((resource.group, resource.plural, namespace or "", name))
        return copy.deepcopy(found)

    def all_stored(self, resource: Resource) -> list[Object]:
        """Copies of all objects of a resource."""
        return [
            copy.deepcopy(found)
            for key, found in sorted(self._objects.items())
            if key[:2] == (resource.group, resource.plural)
        ]

    # -- requests

    def answer(self, request: Request) -> tuple[int, Object]:
        """One request's code and answer; raises ``Refusal``."""
        if self._failures:
            raise self._failures.pop(0)
        self.before(request)
        if request.path == "/version":
            return 200, {"major": "1", "minor": "30", "gitVersion": "v1.30.0"}
        if request.method == "GET":
            return 200, (self._list(request) if not request.name else copy.deepcopy(self._find(request)))
        if request.method == "POST":
            return 201, self._create(request)
        if request.method == "PUT":
            return 200, self._update(request, request.body)
        if request.method == "PATCH":
            return 200, self._patch(request)
        if request.method == "DELETE":
            return 200, self._delete(request)
        raise Refusal(405, "MethodNotAllowed", f"{request.method} is not allowed")

    def _find(self, request: Request) -> Object:
        found = self._objects.get((*request.kind, request.namespace, request.name))
        if found is None:
            raise not_found(request)
        return found

    def _select(self, request: Request) -> Callable[[Object], bool]:
        labels = label_tests(request.query.get("labelSelector", ""))
        fields = field_tests(request.query.get("fieldSelector", ""), request)

        def matches(found: Object) -> bool:
            own = found["metadata"].get("labels") or {}
            return all(test(own) for test in labels) and all(test(found) for test in fields)

        return matches

    def _list(self, request: Request) -> Object:
        matches = self._select(request)
        after: tuple[str, str] = ("", "")
        version = self._version
        if token := request.query.get("continue"):
            version, *place = orjson.loads(base64.b64decode(token))
            after = (place[0], place[1])
            if version < self._compacted:
                raise Refusal(410, "Expired", "The provided continue parameter is too old")
        items = [
            found
            for key, found in sorted(self._objects.items())
            if key[:2] == request.kind
            and (not request.namespace or key[2] == request.namespace)
            and key[2:] > after
            and matches(found)
        ]
        metadata: Object = {"resourceVersion": str(version)}
        limit = int(request.query.get("limit") or 0)
        if limit and len(items) > limit:
            last = items[limit - 1]["metadata"]
            place = [version, last.get("namespace", ""), last["name"]]
            metadata["continue"] = base64.b64encode(orjson.dumps(place)).decode("ascii")
            metadata["remainingItemCount"] = len(items) - limit
            items = items[:limit]
        # As on the wire: items do not repeat what the list is of.
        bare = [{k: v for k, v in found.items() if k not in ("kind", "apiVersion")} for found in items]
        version_name = f"{request.group}/{request.version}" if request.group else request.version
        return {
            "kind": f"{kind_of(request)}List",
            "apiVersion": version_name,
            "metadata": metadata,
            "items": copy.deepcopy(bare),
        }

    def _create(self, request: Request) -> Object:
        body = copy.deepcopy(request.body)
        if request.plural in _QUESTIONS:
            return self._review(request, body)
        if request.sub:
            return self._create_below(request, body)
        metadata = body.setdefault("metadata", {})
        if metadata.get("resourceVersion"):
            raise Refusal(500, "InternalError", "resourceVersion should not be set on objects to be created")
        if not metadata.get("name") and metadata.get("generateName"):
            metadata["name"] = metadata["generateName"] + uuid.uuid4().hex[:5]
        name = metadata.get("name")
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise Refusal(422, "Invalid", f"{kind_of(request)} {name!r} is invalid: metadata.name")
        if metadata.get("namespace", request.namespace) != request.namespace:
            raise Refusal(400, "BadRequest", "the namespace of the object does not match the request")
        key = (*request.kind, request.namespace, name)
        if key in self._objects:
            raise Refusal(
                409,
                "AlreadyExists",
                f'{request.plural} "{name}" already exists',
                {"name": name, "kind": request.plural, "group": request.group},
            )
        if request.namespace:
            metadata["namespace"] = request.namespace
        metadata["uid"] = str(uuid.uuid4())
        metadata["creationTimestamp"] = rfc3339(self._now())
        for given in ("deletionTimestamp", "deletionGracePeriodSeconds", "selfLink"):
            metadata.pop(given, None)
        if "spec" in body and request.plural not in _STATUSLESS:
            metadata["generation"] = 1
        body["kind"] = kind_of(request)
        version = f"{request.group}/{request.version}" if request.group else request.version
        body["apiVersion"] = version
        check(request, body)
        if request.plural == "pods":
            body["status"] = {"phase": "Pending", "qosClass": "BestEffort"}
            body.setdefault("spec", {}).setdefault("terminationGracePeriodSeconds", 30)
        elif request.plural not in _STATUSLESS and request.plural != "nodes":
            body.pop("status", None)
            if request.group in ("certificates.k8s.io",):
                body["status"] = {}
        self._store(key, body)
        return copy.deepcopy(self._objects[key])

    def _create_below(self, request: Request, body: Object) -> Object:
        if request.plural == "serviceaccounts" and request.sub == "token":
            self._find(request)
            seconds = int(body.get("spec", {}).get("expirationSeconds") or 3600)
            expires = rfc3339(self._now() + timedelta(seconds=seconds))
            return {**body, "status": {"token": f"token-{uuid.uuid4()}", "expirationTimestamp": expires}}
        if request.plural == "pods" and request.sub == "binding":
            pod = copy.deepcopy(self._find(request))
            if pod["spec"].get("nodeName"):
                raise Refusal(409, "Conflict", f"pod {request.name} is already assigned")
            pod["spec"]["nodeName"] = body["target"]["name"]
            self._store((*request.kind, request.namespace, request.name), pod)
            return success()
        if request.plural == "pods" and request.sub == "eviction":
            return self._delete(request)
        raise not_found(request)

    def _review(self, request: Request, body: Object) -> Object:
        spec = body.get("spec", {})
        if request.plural == "tokenreviews":
            return {**body, "status": self.review_token(spec.get("token", ""))}
        return {**body, "status": self.review_access(spec)}

    def _update(self, request: Request, body: Object) -> Object:
        old = self._find(request)
        new = copy.deepcopy(body)
        metadata = new.setdefault("metadata", {})
        if metadata.get("name", request.name) != request.name:
            raise Refusal(400, "BadRequest", "the name of the object does not match the name on the URL")
        self._check_current(request, old, metadata.get("resourceVersion"), metadata.get("uid"))
        careful = request.plural == "leases" or request.group.endswith(".dev")
        if careful and not metadata.get("resourceVersion"):
            # These kinds refuse to be overwritten blindly.
            raise Refusal(422, "Invalid", "metadata.resourceVersion: must be specified for an update")
        return self._write(request, old, new)

    def _patch(self, request: Request) -> Object:
        old = self._find(request)
        kind = request.headers.get("content-type", "").split(";")[0]
        if kind == Patch.JSON.value:
            new = json_patch(copy.deepcopy(old), request.body)
        elif kind in (Patch.MERGE.value, Patch.STRATEGIC.value):
            if kind == Patch.STRATEGIC.value and request.group.endswith(".dev"):
                raise Refusal(415, "UnsupportedMediaType", "custom resources take no strategic merge patch")
            new = merge_patch(copy.deepcopy(old), request.body)
        else:
            raise Refusal(415, "UnsupportedMediaType", f"the body of the request was {kind}")
        metadata = new.get("metadata", {})
        self._check_current(request, old, metadata.get("resourceVersion"), metadata.get("uid"))
        return self._write(request, old, new)

    def _check_current(
        self, request: Request, old: Object, version: str | None, uid: str | None = None
    ) -> None:
        details = {"name": request.name, "group": request.group, "kind": request.plural}
        text = f'Operation cannot be fulfilled on {request.plural} "{request.name}": '
        if version and version != old["metadata"]["resourceVersion"]:
            text += "the object has been modified; please apply your changes to the latest version"
            raise Refusal(409, "Conflict", text, details)
        if uid and uid != old["metadata"]["uid"]:
            text += "Precondition failed: UID in precondition"
            raise Refusal(409, "Conflict", text, details)

    def _write(self, request: Request, old: Object, new: Object) -> Object:
        """Keep of the new object what this request may change."""
        metadata = new["metadata"]
        own = old["metadata"]
        has_status = request.plural not in _STATUSLESS
        if request.sub in ("status", "approval"):
            kept = copy.deepcopy(old)
            wished = new.get("status", {})
            if request.sub == "approval":
                wished = {**old.get("status", {}), "conditions": wished.get("conditions", [])}
            kept["status"] = wished
            new, metadata = kept, kept["metadata"]
        elif request.sub:
            raise not_found(request)
        elif has_status:
            new.pop("status", None)
            if "status" in old:
                new["status"] = copy.deepcopy(old["status"])
        for name in ("uid", "creationTimestamp", "generation", "namespace", "name"):
            if name in own:
                metadata[name] = own[name]
            else:
                metadata.pop(name, None)
        for name in ("deletionTimestamp", "deletionGracePeriodSeconds"):
            metadata.pop(name, None)
            if name in own:
                metadata[name] = own[name]
        new["kind"], new["apiVersion"] = old["kind"], old["apiVersion"]
        check(request, new)
        if has_status and new.get("spec") != old.get("spec") and "generation" in own:
            metadata["generation"] = own["generation"] + 1
        metadata["resourceVersion"] = own["resourceVersion"]
        key = (*request.kind, request.namespace, request.name)
        gone = metadata.get("deletionTimestamp") and not metadata.get("finalizers")
        if gone and not metadata.get("deletionGracePeriodSeconds"):
            self._remove(key, new)
        elif new != old:
            self._store(key, new)
        else:
            return copy.deepcopy(old)
        return copy.deepcopy(self._objects.get(key, new))

    def _delete(self, request: Request) -> Object:
        old = self._find(request)
        options = request.body if isinstance(request.body, dict) else {}
        conditions = options.get("preconditions") or {}
        self._check_current(request, old, conditions.get("resourceVersion"), conditions.get("uid"))
        key = (*request.kind, request.namespace, request.name)
        new = copy.deepcopy(old)
        metadata = new["metadata"]
        grace = 0
        if request.plural == "pods" and new.get("spec", {}).get("nodeName"):
            given = options.get("gracePeriodSeconds")
            grace = new["spec"]["terminationGracePeriodSeconds"] if given is None else given
            if new.get("status", {}).get("phase") in ("Failed", "Succeeded"):
                grace = 0
        if grace or metadata.get("finalizers"):
            if "deletionTimestamp" not in metadata or grace < metadata.get("deletionGracePeriodSeconds", 0):
                moment = self._now() + timedelta(seconds=grace)
                metadata.setdefault("deletionTimestamp", rfc3339(moment))
                metadata["deletionGracePeriodSeconds"] = grace
                if "generation" in metadata:
                    metadata["generation"] += 1
                self._store(key, new)
            return copy.deepcopy(self._objects[key])
        self._remove(key, new)
        return success()

    # -- the store

    def _next_version(self) -> int:
        self._version += 1
        return self._version

    def _store(self, key: _Key, new: Object) -> None:
        version = self._next_version()
        new["metadata"]["resourceVersion"] = str(version)
        old = self._objects.get(key)
        self._objects[key] = new
        self._record(_Entry(version, key, old, new))

    def _remove(self, key: _Key, last: Object) -> None:
        version = self._next_version()
        old = self._objects.pop(key)
        last["metadata"]["resourceVersion"] = str(version)
        self._record(_Entry(version, key, old, None), last)

    def _record(self, entry: _Entry, last: Object | None = None) -> None:
        if last is not None:
            # The last state, with the version of its deletion, is what watches see.
            entry = replace(entry, old={**last})
        self._history.append(entry)
        if len(self._history) > _HISTORY_LIMIT:
            self._compacted = self._history.pop(0).version
        for watch in list(self._watches):
            watch.changed(entry)

    # -- watches

    def watch(self, request: Request) -> _MemoryWatch:
        """Open a watch; raises ``Refusal``."""
        if self._failures:
            raise self._failures.pop(0)
        self.before(request)
        watch = _MemoryWatch(self._clock, request, self._select(request), self)
        wished = request.query.get("resourceVersion", "")
        if wished in ("", "0"):
            for key, found in sorted(self._objects.items()):
                watch.changed(_Entry(int(found["metadata"]["resourceVersion"]), key, None, found))
        elif int(wished) < self._compacted:
            watch.refuse(Refusal(410, "Expired", f"too old resource version: {wished} ({self._compacted})"))
            return watch
        else:
            for entry in self._history:
                if entry.version > int(wished):
                    watch.changed(entry)
        self._watches.append(watch)
        return watch

    def forget(self, watch: _MemoryWatch) -> None:
        """A watch ended."""
        if watch in self._watches:
            self._watches.remove(watch)

    @property
    def version(self) -> int:
        """The newest resource version."""
        return self._version

    @property
    def away(self) -> Exception | None:
        """What a connection fails with now."""
        return None if self._away is None else self._away()


# ---- as the wire sees it -----------------------------------------------------


@implementer(IAgent)
class _MemoryAgent:
    """Requests by call instead of by socket."""

    def __init__(self, server: MemoryApiServer) -> None:
        self._server = server

    def request(
        self,
        method: bytes,
        uri: bytes,
        headers: Headers | None = None,
        bodyProducer: IBodyProducer | None = None,
    ) -> Deferred[IResponse]:
        server = self._server
        if server.away is not None:
            return fail(server.away)
        content = _Content()
        if bodyProducer is not None:
            bodyProducer.startProducing(content)
        try:
            request = parse(method, uri, headers or Headers(), content.data)
            server.requests.append(request)
            if request.query.get("watch") in ("true", "1"):
                return succeed(_MemoryResponse(200, server.watch(request)))
            code, answer = server.answer(request)
        except Refusal as refusal:
            return succeed(_MemoryResponse(refusal.code, status_of(refusal), refusal.retry_after))
        return succeed(_MemoryResponse(code, answer))


@implementer(IConsumer)
class _Content:
    """Takes a request's body."""

    def __init__(self) -> None:
        self.data = b""

    def write(self, data: bytes) -> None:
        self.data += data

    def registerProducer(self, producer: object, streaming: bool) -> None:
        pass

    def unregisterProducer(self) -> None:
        pass


@implementer(IResponse)
class _MemoryResponse:
    """An answer whose body is an object, or a watch."""

    version = (b"HTTP", 1, 1)
    request: Any = None
    previousResponse: Any = None
    length: Any = None

    def __init__(self, code: int, body: Object | _MemoryWatch, retry_after: int = 0) -> None:
        self.code = code
        self.phrase = b"OK" if code < 300 else b"No"
        self.headers = Headers({"Content-Type": ["application/json"]})
        if retry_after:
            self.headers.addRawHeader("Retry-After", str(retry_after))
        self._body = body

    def deliverBody(self, protocol: IProtocol) -> None:
        if isinstance(self._body, _MemoryWatch):
            self._body.deliver(protocol)
            return
        protocol.makeConnection(_Nowhere())  # type: ignore[arg-type]  # a reader only ends it
        protocol.dataReceived(orjson.dumps(self._body))
        protocol.connectionLost(Failure(ResponseDone()))

    def setPreviousResponse(self, response: IResponse) -> None:
        self.previousResponse = response


@implementer(IPushProducer)
class _Nowhere:
    """The transport of an answer that is complete."""

    def pauseProducing(self) -> None:
        pass

    def resumeProducing(self) -> None:
        pass

    def stopProducing(self) -> None:
        pass

    def loseConnection(self) -> None:
        pass

    abortConnection = loseConnection


@implementer(IPushProducer)
class _MemoryWatch:
    """One open watch: the transport of its own answer."""

    def __init__(
        self,
        clock: IReactorTime,
        request: Request,
        matches: Callable[[Object], bool],
        server: MemoryApiServer,
    ) -> None:
        self._clock = clock
        self._request = request
        self._matches = matches
        self._server = server
        self._lines: list[bytes] = []
        self._protocol: IProtocol | None = None
        self._paused = False
        self._end: Exception | None = None
        self._call: IDelayedCall | None = None
        seconds = int(request.query.get("timeoutSeconds") or 1800)
        self._timer = clock.callLater(seconds, self.end)

    # -- from the server

    def changed(self, entry: _Entry) -> None:
        """Tell of a change, if it concerns this watch."""
        if entry.key[:2] != self._request.kind:
            return
        if self._request.namespace and entry.key[2] != self._request.namespace:
            return
        before = entry.old is not None and self._matches(entry.old)
        after = entry.new is not None and self._matches(entry.new)
        if after:
            assert entry.new is not None
            self._say(Change.MODIFIED if before else Change.ADDED, entry.new)
        elif before:
            assert entry.old is not None
            metadata = {**entry.old["metadata"], "resourceVersion": str(entry.version)}
            self._say(Change.DELETED, {**entry.old, "metadata": metadata})

    def bookmark(self) -> None:
        """Tell the version alone."""
        if self._request.query.get("allowWatchBookmarks") == "true":
            found: Object = {
                "kind": kind_of(self._request),
                "apiVersion": self._request.version,
                "metadata": {"resourceVersion": str(self._server.version)},
            }
            self._say(Change.BOOKMARK, found)

    def refuse(self, refusal: Refusal) -> None:
        """End with an error event."""
        self._lines.append(orjson.dumps({"type": "ERROR", "object": status_of(refusal)}) + b"\n")
        self.end()

    def end(self) -> None:
        """End quietly."""
        self._finish(ResponseDone())

    def cut(self, why: Exception) -> None:
        """End as a lost connection does."""
        self._finish(ResponseFailed([Failure(why)], None))

    # -- towards the reader

    def deliver(self, protocol: IProtocol) -> None:
        self._protocol = protocol
        protocol.makeConnection(self)  # type: ignore[arg-type]  # a reader only pauses and ends it
        self._later()

    def pauseProducing(self) -> None:
        self._paused = True

    def resumeProducing(self) -> None:
        self._paused = False
        self._later()

    def stopProducing(self) -> None:
        self.abortConnection()

    def loseConnection(self) -> None:
        self.abortConnection()

    def abortConnection(self) -> None:
        self._lines.clear()
        self.cut(ConnectionLost())

    def _say(self, change: Change, found: Object) -> None:
        if self._end is None:
            self._lines.append(orjson.dumps({"type": change.value, "object": found}) + b"\n")
            self._later()

    def _finish(self, why: Exception) -> None:
        if self._end is None:
            self._end = why
            if self._timer.active():
                self._timer.cancel()
            self._server.forget(self)
            self._later()

    def _later(self) -> None:
        if self._call is None and self._protocol is not None:
            self._call = self._clock.callLater(0, self._flush)

    def _flush(self) -> None:
        self._call = None
        protocol = self._protocol
        while self._lines and not self._paused and protocol is not None:
            protocol.dataReceived(self._lines.pop(0))
        if self._end is not None and not self._lines and protocol is not None:
            self._protocol = None
            protocol.connectionLost(Failure(self._end))
