"""The API server, asked over HTTP by Twisted's own ``Agent``.

What may be sent twice
    A connection from the pool may have died while nobody looked. A request that got
    not one byte of an answer is sent once more on a new connection, if doing it twice is
    like doing it once: not POST, not a JSON patch. After a 401 any request is sent once more with
    fresh credentials: the server did not act on it.

What is left out
    ``managedFields`` of every object: half of its size, of no use here, and in caches for
    ever. A write without them leaves them as they are.

What has a deadline
    Every call as a whole. A watch until its first byte of an answer, then its
    silence: the server was asked to end it after 5 to 10 minutes, and one that has
    sent bookmarks (it does so each minute) is given up after three without anything.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, TypeVar
from urllib.parse import urlencode

import orjson
from twisted.internet import error as network
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.interfaces import IConsumer, IReactorTime
from twisted.internet.protocol import Protocol, connectionDone
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.client import ResponseDone
from twisted.web.http import PotentialDataLoss
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgent, IBodyProducer, IResponse
from zope.interface import implementer

from aranya.interfaces import Object, Patch, Resource
from aranya.kube.credentials import ClusterAccess, InThread
from aranya.kube.errors import ApiError, Gone, KubeError, Unreachable, error_of
from aranya.kube.pace import Jitter
from aranya.kube.transport import Way
from aranya.kube.trouble import died_unseen, plainly, was_cancelled
from aranya.kube.watch import without_managed_fields
from aranya.kube.watching import Watch

DEADLINE_SECONDS = 30.0
PAGE = 500
#: One page of 500 large objects; more than that is not an answer but an attack or a mistake.
BODY_LIMIT = 128 * 1024 * 1024
WATCH_SECONDS = (300, 600)

_JSON = "application/json"
_T = TypeVar("_T")


class ApiClient:
    """``aranya.interfaces.Kubernetes`` over HTTP."""

    _log = Logger()

    def __init__(
        self,
        reactor: IReactorTime,
        access: ClusterAccess,
        *,
        agent: IAgent | None = None,
        in_thread: InThread | None = None,
        deadline: float = DEADLINE_SECONDS,
        user_agent: str = "aranya",
        jitter: Jitter = random.random,
    ) -> None:
        self._clock = reactor
        self._access = access
        self._way = Way(reactor, access) if agent is None else None
        self._agent = agent if self._way is None else self._way.agent
        self._in_thread = in_thread or threads_of(reactor)
        self._deadline = deadline
        self._user_agent = user_agent
        self._jitter = jitter
        self._base = access.base_url.rstrip("/")
        self._watches: set[Watch] = set()
        self._ending: set[Deferred[None]] = set()

    @property
    def access(self) -> ClusterAccess:
        """Where it asks, and as whom."""
        return self._access

    async def close(self) -> None:
        """End the watches and close the kept connections, for a clean end; calls that run go on."""
        for watch in tuple(self._watches):
            watch.close()
        for ending in tuple(self._ending):
            await ending
        if self._way is not None:
            await self._way.close()

    # -- the calls

    async def version(self) -> str:
        """The API server's version, as ``v1.30.2``."""
        return str((await self._call("GET", "/version")).get("gitVersion", ""))

    async def get(self, resource: Resource, namespace: str | None, name: str) -> Object:
        return await self._call("GET", resource.path(namespace, name))

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
        path = resource.path(namespace)
        query = _query(
            labelSelector=label_selector,
            fieldSelector=field_selector,
            resourceVersion=resource_version,
            limit="" if resource_version else str(limit or PAGE),
        )
        whole = await self._call("GET", path, query)
        # An empty list's items are null on the wire of old servers.
        items: list[Object] = whole.get("items") or []
        page = whole
        while token := page.get("metadata", {}).get("continue"):
            try:
                page = await self._call("GET", path, {**query, "continue": token})
            except Gone:
                # The list changed too much while we turned its pages: take it in one piece.
                query.pop("limit")
                whole = page = await self._call("GET", path, query)
                items = []
            items += page.get("items") or []
        for item in items:
            # The items of a list do not say what they are.
            item.setdefault("apiVersion", whole.get("apiVersion", ""))
            item.setdefault("kind", resource.kind)
            without_managed_fields(item)
        metadata = {**whole.get("metadata", {}), **page.get("metadata", {})}
        metadata.pop("continue", None)
        metadata.pop("remainingItemCount", None)
        return {**whole, "metadata": metadata, "items": items}

    async def create(
        self,
        resource: Resource,
        namespace: str | None,
        body: Object,
        *,
        name: str = "",
        sub: str = "",
    ) -> Object:
        return await self._call("POST", resource.path(namespace, name or None, sub), body=body)

    async def replace(
        self, resource: Resource, namespace: str | None, name: str, body: Object, *, sub: str = ""
    ) -> Object:
        return await self._call("PUT", resource.path(namespace, name, sub), body=body)

    async def patch(
        self,
        resource: Resource,
        namespace: str | None,
        name: str,
        body: Object | Sequence[Object],
        *,
        kind: Patch = Patch.MERGE,
        sub: str = "",
    ) -> Object:
        path = resource.path(namespace, name, sub)
        return await self._call("PATCH", path, body=body, content_type=kind.value)

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
        options: Object = {"apiVersion": "v1", "kind": "DeleteOptions"}
        preconditions = {}
        if uid:
            preconditions["uid"] = uid
        if resource_version:
            preconditions["resourceVersion"] = resource_version
        if preconditions:
            options["preconditions"] = preconditions
        if grace_seconds is not None:
            options["gracePeriodSeconds"] = grace_seconds
        await self._call("DELETE", resource.path(namespace, name), body=options)

    def watch(
        self,
        resource: Resource,
        namespace: str | None = None,
        *,
        resource_version: str,
        label_selector: str = "",
        field_selector: str = "",
    ) -> Watch:
        shortest, longest = WATCH_SECONDS
        seconds = int(shortest + (longest - shortest) * self._jitter())
        query = _query(
            watch="true",
            allowWatchBookmarks="true",
            resourceVersion=resource_version,
            timeoutSeconds=str(seconds),
            labelSelector=label_selector,
            fieldSelector=field_selector,
        )

        async def begin() -> IResponse:
            response = await self._send("GET", resource.path(namespace), query, None, _JSON)
            if response.code != 200:
                raise await self._refusal(response)
            return response

        def within() -> Deferred[IResponse]:
            return self._within(begin())

        watch = Watch(self._clock, within, seconds + self._deadline, self._unreachable, self._watch_closed)
        self._watches.add(watch)
        return watch

    def _watch_closed(self, watch: Watch, ended: Deferred[None]) -> None:
        self._watches.discard(watch)
        if not ended.called:
            self._ending.add(ended)
            ended.addCallback(lambda _: self._ending.discard(ended))

    # -- how a call is made

    async def _call(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        *,
        body: object = None,
        content_type: str = _JSON,
    ) -> Object:
        content = None if body is None else orjson.dumps(body)
        return await self._within(self._exchange(method, path, query or {}, content, content_type))

    def _within(self, work: Coroutine[Deferred[Any], Any, _T]) -> Deferred[_T]:
        """The work, ended at the deadline."""

        def late(_result: object, seconds: float) -> _T:
            raise self._unreachable(f"no answer within {seconds:.0f} s")

        running: Deferred[_T] = Deferred.fromCoroutine(work)
        return running.addTimeout(self._deadline, self._clock, late)

    async def _exchange(
        self, method: str, path: str, query: Mapping[str, str], content: bytes | None, content_type: str
    ) -> Object:
        response = await self._send(method, path, query, content, content_type)
        if not 200 <= response.code < 300:
            raise await self._refusal(response)
        answer = await self._json(response)
        if not isinstance(answer, dict):
            raise self._unreachable("what answers there is not an API server")
        return without_managed_fields(answer)

    async def _send(
        self, method: str, path: str, query: Mapping[str, str], content: bytes | None, content_type: str
    ) -> IResponse:
        """The head of the answer; a dead connection and stale credentials are tried once more."""
        url = (self._base + path + (f"?{urlencode(query)}" if query else "")).encode("ascii")
        repeatable = method in ("GET", "DELETE", "PUT") or content_type == Patch.MERGE.value
        renewed = repeated = False
        while True:
            now = self._clock.seconds()
            proof = await self._access.proofs.proof(now, self._in_thread)
            if self._way is not None:
                self._way.show(proof.pair)
            headers = Headers({"Accept": [_JSON], "User-Agent": [self._user_agent]})
            if proof.authorization:
                headers.addRawHeader("Authorization", proof.authorization)
            if content is not None:
                headers.addRawHeader("Content-Type", content_type)
            producer = None if content is None else _Content(content)
            assert self._agent is not None
            try:
                response: IResponse = await self._agent.request(method.encode(), url, headers, producer)
            except CancelledError:
                raise
            except KubeError:
                raise
            except Exception as error:
                if was_cancelled(error):
                    raise CancelledError() from None
                if repeatable and not repeated and died_unseen(error):
                    repeated = True
                    if self._way is not None:
                        # Connections that were idle together died together.
                        self._way.forget_idle()
                    continue
                raise self._unreachable(plainly(error)) from None
            if response.code == 401 and not renewed:
                renewed = True
                self._access.proofs.refused()
                # Its body must be read, or the connection never comes back to the pool.
                await self._body(response)
                continue
            return response

    async def _refusal(self, response: IResponse) -> ApiError:
        try:
            status = await self._json(response)
        except Unreachable:
            status = None
        if not isinstance(status, dict) or status.get("kind") != "Status":
            phrase = response.phrase.decode("latin-1")[:100]
            status = {"message": f"the API server answered {response.code} {phrase}".strip()}
        return error_of(response.code, status, _retry_after(response))

    async def _json(self, response: IResponse) -> object:
        body = await self._body(response)
        try:
            return orjson.loads(body) if body else {}
        except ValueError:
            raise self._unreachable("what answers there is not an API server") from None

    async def _body(self, response: IResponse) -> bytes:
        collector = _Collector(BODY_LIMIT)
        response.deliverBody(collector)
        try:
            return await collector.whole
        except CancelledError:
            raise
        except Exception as error:
            raise self._unreachable(plainly(error)) from None

    def _unreachable(self, why: str) -> Unreachable:
        return Unreachable(f"cannot reach the API server at {self._base}: {why}")


def threads_of(reactor: Any) -> InThread:
    """Run blocking work in the reactor's own threads."""

    def in_thread(work: Callable[[], Any]) -> Deferred[Any]:
        return deferToThreadPool(reactor, reactor.getThreadPool(), work)

    return in_thread


# ---- bodies -----------------------------------------------------------------


@implementer(IBodyProducer)
class _Content:
    """A small body, written at once."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self.length: Any = len(content)

    def startProducing(self, consumer: IConsumer) -> Deferred[None]:
        consumer.write(self._content)
        return succeed(None)

    def pauseProducing(self) -> None:
        pass

    def resumeProducing(self) -> None:
        pass

    def stopProducing(self) -> None:
        pass


class _Collector(Protocol):
    """An answer's body, whole and bounded."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._size = 0
        self._pieces: list[bytes] = []
        self.whole: Deferred[bytes] = Deferred(lambda _: self._abort())

    def dataReceived(self, data: bytes) -> None:
        self._size += len(data)
        if self._size <= self._limit:
            self._pieces.append(data)
        else:
            self._pieces.clear()
            self._abort()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self.whole.called:
            return
        if self._size > self._limit:
            self.whole.errback(network.ConnectionAborted("the answer is too large"))
        elif reason.check(ResponseDone, PotentialDataLoss):
            self.whole.callback(b"".join(self._pieces))
        else:
            self.whole.errback(reason)

    def _abort(self) -> None:
        abort = getattr(self.transport, "abortConnection", None)
        if abort is not None:
            abort()


def _query(**fields: str) -> dict[str, str]:
    return {name: value for name, value in fields.items() if value}


def _retry_after(response: IResponse) -> float | None:
    values = response.headers.getRawHeaders("Retry-After") or [""]
    return float(values[0]) if values[0].isascii() and values[0].isdigit() else None
