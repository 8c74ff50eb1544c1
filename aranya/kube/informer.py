"""List, then watch, for ever: a cache of one kind of object, and those who listen to it.

Four scopes of failure, from outside in: for ever (only ``stopService`` ends it); one
outage (told once when it begins and once when it is over, however many attempts lie
between); one life of a list, until its version is ``Gone``; one watch request.

What listeners may rely on: every difference between two states of the cache is told once, in
order, deletions found by listing again included; the cache is changed before they are called;
a listener that raises is logged and does not stop the others. ``synced`` comes after
the first listing was told.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType

from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from aranya.interfaces import Change, Kubernetes, Object, Resource
from aranya.kube.errors import Gone, KubeError
from aranya.kube.objects import ObjectKey, key_of, uid_of, version_of
from aranya.kube.pace import Backoff, Jitter, pause
from tether.tasks import spawn

#: Told of a key with its old and new object; ``None`` where there was, or is, none.
Listener = Callable[[ObjectKey, Object | None, Object | None], None]

BACKOFF_BASE = 0.5
BACKOFF_CAP = 30.0
#: A watch that ends sooner did not go well, even if it ended quietly.
SHORT_WATCH = 1.0


class Informer(Service):
    """Keeps a cache of the objects of one resource, in one namespace or all."""

    _log = Logger()

    def __init__(
        self,
        kube: Kubernetes,
        clock: IReactorTime,
        resource: Resource,
        namespace: str | None = None,
        *,
        label_selector: str = "",
        field_selector: str = "",
        jitter: Jitter = random.random,
    ) -> None:
        self._kube = kube
        self._clock = clock
        self._resource = resource
        self._namespace = namespace
        self._label_selector = label_selector
        self._field_selector = field_selector
        self._backoff = Backoff(BACKOFF_BASE, BACKOFF_CAP, jitter)
        self._cache: dict[ObjectKey, Object] = {}
        self._listeners: list[Listener] = []
        self._synced = False
        self._waiting: list[Deferred[None]] = []
        self._outage = False
        self._resume = ""
        self._running: Deferred[None] | None = None

    # -- what others see

    @property
    def cache(self) -> Mapping[ObjectKey, Object]:
        """What is known now; read only, and its objects are not to be changed."""
        return MappingProxyType(self._cache)

    def get(self, namespace: str, name: str) -> Object | None:
        """One object, if it is there."""
        return self._cache.get(ObjectKey(namespace, name))

    def __iter__(self) -> Iterator[Object]:
        return iter(list(self._cache.values()))

    def __len__(self) -> int:
        return len(self._cache)

    @property
    def synced(self) -> bool:
        """Whether the first listing is in the cache."""
        return self._synced

    def when_synced(self) -> Deferred[None]:
        """Fires once the first listing is in the cache; cancelled when the informer stops before."""
        waiting: Deferred[None] = Deferred()
        if self._synced:
            waiting.callback(None)
        else:
            self._waiting.append(waiting)
        return waiting

    def subscribe(self, listener: Listener) -> Callable[[], None]:
        """Tell ``listener`` of every change from now on; gives back the undo.

        What is in the cache already is told at once, as if it came now.
        """
        self._listeners.append(listener)
        for key, found in list(self._cache.items()):
            self._tell(listener, key, None, found)

        def unsubscribe() -> None:
            if listener in self._listeners:
                self._listeners.remove(listener)

        return unsubscribe

    # -- its life

    def startService(self) -> None:
        super().startService()
        self._running = spawn(self._run(), self._log, f"watching {self._resource.plural} stopped working")

    def stopService(self) -> Deferred[None] | None:
        super().stopService()
        # The cache stays, so that a new start tells what happened meanwhile.
        self._synced = False
        running, self._running = self._running, None
        waiting, self._waiting = self._waiting, []
        for one in waiting:
            one.cancel()
            one.addErrback(lambda failure: failure.trap(CancelledError) and None)
        if running is not None:
            running.cancel()
        return running

    async def _run(self) -> None:
        self._resume = ""
        while True:
            fresh = not self._resume
            try:
                if fresh:
                    self._resume = await self._list()
                await self._watch()
            except Gone:
                # The cache stays as it is until the new listing corrects it.
                self._log.debug("watching {resource}: version too old", resource=self._resource.plural)
                self._resume = ""
                if fresh:
                    # A listing that is too old at once: asking again at once will not mend that.
                    await pause(self._clock, self._backoff.next())
            except KubeError as error:
                self._lost(error)
                await pause(self._clock, self._backoff.next())

    async def _list(self) -> str:
        """Make the cache equal to a fresh listing."""
        listing = await self._kube.list(
            self._resource,
            self._namespace,
            label_selector=self._label_selector,
            field_selector=self._field_selector,
        )
        found = {key_of(item): item for item in listing["items"]}
        self._regained()
        for key in [key for key in self._cache if key not in found]:
            self._put(key, None)
        for key, item in found.items():
            self._put(key, item)
        if not self._synced:
            self._synced = True
            waiting, self._waiting = self._waiting, []
            for one in waiting:
                if not one.called:
                    one.callback(None)
        return version_of(listing)

    async def _watch(self) -> None:
        """One watch request to its quiet end; how far it came is kept, whatever ends it."""
        began = self._clock.seconds()
        stream = self._kube.watch(
            self._resource,
            self._namespace,
            resource_version=self._resume,
            label_selector=self._label_selector,
            field_selector=self._field_selector,
        )
        try:
            async for change, found in stream:
                self._regained()
                self._backoff.reset()
                self._resume = version_of(found)
                if change is not Change.BOOKMARK:
                    self._put(key_of(found), None if change is Change.DELETED else found)
        finally:
            stream.close()
        if self._clock.seconds() - began < SHORT_WATCH:
            await pause(self._clock, self._backoff.next())
        else:
            self._regained()
            self._backoff.reset()

    def _put(self, key: ObjectKey, new: Object | None) -> None:
        old = self._cache.get(key)
        if old is None and new is None:
            return
        if old is not None and new is not None:
            if version_of(old) == version_of(new):
                return
            if uid_of(old) != uid_of(new):
                # Deleted and made again while we did not look: two events, not one.
                self._put(key, None)
                old = None
        if new is None:
            del self._cache[key]
        else:
            self._cache[key] = new
        for listener in list(self._listeners):
            self._tell(listener, key, old, new)

    def _tell(self, listener: Listener, key: ObjectKey, old: Object | None, new: Object | None) -> None:
        try:
            listener(key, old, new)
        except Exception:
            self._log.failure(
                "a listener to {resource} failed on {key}", resource=self._resource.plural, key=key
            )

    def _lost(self, error: KubeError) -> None:
        if not self._outage:
            self._outage = True
            self._log.info(
                "cannot watch {resource}: {error}; trying again",
                resource=self._resource.plural,
                error=str(error),
            )

    def _regained(self) -> None:
        if self._outage:
            self._outage = False
            self._log.info("watching {resource} again", resource=self._resource.plural)
