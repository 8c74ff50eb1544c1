"""Kubernetes Events: what a person sees under ``kubectl describe``.

Telling must never hurt what is told about: it does not block, does not fail, and its memory
and its requests are bounded. The same thing said again within ten minutes raises the count
of the Event that is there; said while a write is under way, it is counted with the next.
"""

from __future__ import annotations

import uuid
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from aranya.interfaces import Kubernetes, Object
from aranya.kube.errors import KubeError, NotFound
from aranya.kube.objects import EVENTS, new_object, rfc3339, uid_of
from tether.tasks import spawn

AGGREGATE_SECONDS = 600.0
REMEMBERED = 1024
UNDER_WAY = 32
_MESSAGE_LIMIT = 1000


@dataclass(slots=True)
class _Told:
    """One Event as we last wrote it, and what came since."""

    namespace: str
    name: str = ""  # "" until it is written
    count: int = 0
    written: int = 0
    last: float = 0.0
    busy: bool = False


class Recorder:
    """Writes Events about objects."""

    _log = Logger()

    def __init__(
        self,
        kube: Kubernetes,
        clock: IReactorTime,
        *,
        component: str = "aranya",
        instance: str = "",
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._kube = kube
        self._clock = clock
        self._component = component
        self._instance = instance
        self._now = now
        self._told: OrderedDict[tuple[str, ...], _Told] = OrderedDict()
        self._under_way = 0

    def record(self, about: Mapping[str, Any], reason: str, message: str, *, warning: bool = False) -> None:
        """Tell ``reason`` (one CamelCase word) and ``message`` about an object; never raises."""
        metadata = about["metadata"]
        message = message[:_MESSAGE_LIMIT]
        namespace = metadata.get("namespace") or "default"
        kind = "Warning" if warning else "Normal"
        key = (about.get("kind", ""), namespace, metadata["name"], uid_of(about), kind, reason, message)
        told = self._told.get(key)
        now = self._clock.seconds()
        if told is None or (now - told.last > AGGREGATE_SECONDS and not told.busy):
            told = self._told[key] = _Told(namespace)
        self._told.move_to_end(key)
        while len(self._told) > REMEMBERED:
            self._told.popitem(last=False)
        told.count += 1
        told.last = now
        if told.busy:
            return
        if self._under_way >= UNDER_WAY:
            self._log.debug("too many Events at once; not written: {reason}", reason=reason)
            return
        body = self._event(about, namespace, kind, reason, message)
        spawn(self._write(told, body), self._log, "writing an Event failed: a bug")

    def _event(
        self, about: Mapping[str, Any], namespace: str, kind: str, reason: str, message: str
    ) -> Object:
        metadata = about["metadata"]
        moment = rfc3339(self._now())
        involved = {
            "apiVersion": about.get("apiVersion"),
            "kind": about.get("kind"),
            "namespace": metadata.get("namespace"),
            "name": metadata["name"],
            "uid": metadata.get("uid"),
            "resourceVersion": metadata.get("resourceVersion"),
        }
        source = {"component": self._component, "host": self._instance}
        return new_object(
            EVENTS,
            {"name": f"{metadata['name'][:200]}.{uuid.uuid4().hex[:16]}", "namespace": namespace},
            involvedObject={name: value for name, value in involved.items() if value},
            reason=reason,
            message=message,
            type=kind,
            source={name: value for name, value in source.items() if value},
            firstTimestamp=moment,
            lastTimestamp=moment,
            reportingComponent=self._component,
            reportingInstance=self._instance,
        )

    async def _write(self, told: _Told, body: Object) -> None:
        told.busy = True
        self._under_way += 1
        try:
            while told.written < told.count:
                count = told.count
                await self._write_once(told, body, count)
                told.written = count
        except KubeError as error:
            # What was not told is not told later: an Event is news, not state.
            told.written = told.count
            self._log.debug("an Event was not written: {error}", error=str(error))
        finally:
            told.busy = False
            self._under_way -= 1

    async def _write_once(self, told: _Told, body: Object, count: int) -> None:
        if told.name:
            change = {"count": count, "lastTimestamp": rfc3339(self._now())}
            try:
                await self._kube.patch(EVENTS, told.namespace, told.name, change)
                return
            except NotFound:
                told.name = ""  # it lived its hour
        made = await self._kube.create(EVENTS, told.namespace, {**body, "count": count})
        told.name = made["metadata"]["name"]
