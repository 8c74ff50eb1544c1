"""Pods that somebody bound to a device's Node, though a device runs none.

No kubelet will ever finalise them, and a namespace with one of them would hang in
Terminating. So the ones on their way out are finalised at once; the others are
reported ``Failed``, after which whoever made them can delete them without us.

The watched namespace is seen by a watch; the rest of the cluster is swept by
one LIST for each Node, spread over a minute and answered from the API server's
cache. What RBAC does not let us do there is told once and left.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any
from zlib import crc32

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from aranya.controller.devices.pods import refused_status_patch
from aranya.interfaces import Kubernetes, Object
from aranya.kube.errors import Conflict, Forbidden, KubeError, NotFound
from aranya.kube.objects import PODS, uid_of
from aranya.kube.pace import pause
from tether.tasks import spawn

PERIOD = 60.0
_TURNS = 60


class Sweep(Service):
    """Looks for foreign Pods on ``nodes`` and settles them, while it is started."""

    _log = Logger()

    def __init__(
        self,
        kube: Kubernetes,
        clock: IReactorTime,
        namespace: str,
        nodes: Callable[[], Collection[str]],
        period: float = PERIOD,
    ) -> None:
        self._kube = kube
        self._clock = clock
        self._namespace = namespace
        self._nodes = nodes
        self._period = period
        self._told: set[tuple[str, str]] = set()
        self._running: Deferred[None] | None = None
        self._visits: set[Deferred[None]] = set()

    def startService(self) -> None:
        super().startService()
        self._running = spawn(self._run(), self._log, "sweeping foreign pods stopped: a bug")

    def stopService(self) -> None:
        super().stopService()
        for running in (self._running, *tuple(self._visits)):
            if running is not None:
                running.cancel()
        self._running = None

    def pod_seen(self, pod: Object) -> None:
        """A watch shows a Pod; settle it if it is a foreign one on a Node of ours."""
        name = pod.get("spec", {}).get("nodeName", "")
        if not self.running or name not in self._nodes() or not self._is_foreign(pod, name):
            return
        if pod["metadata"].get("deletionTimestamp") or refused_status_patch(pod) is not None:
            visit = spawn(self._visit(pod), self._log, "settling a foreign pod failed: a bug")
            if not visit.called:
                self._visits.add(visit)
                visit.addCallback(lambda _: self._visits.discard(visit))

    async def settle(self, pod: Object) -> None:
        """Finalise or fail one foreign Pod."""
        metadata = pod["metadata"]
        namespace, name = metadata.get("namespace", ""), metadata["name"]
        try:
            if metadata.get("deletionTimestamp"):
                if metadata.get("deletionGracePeriodSeconds") != 0:
                    await self._kube.delete(PODS, namespace, name, uid=uid_of(pod), grace_seconds=0)
            elif patch := refused_status_patch(pod):
                await self._kube.patch(PODS, namespace, name, patch, sub="status")
        except (NotFound, Conflict):
            pass
        except Forbidden as error:
            self._tell_once(namespace, "delete" if metadata.get("deletionTimestamp") else "patch", error)

    async def sweep(self, node: str) -> None:
        """Settle all foreign Pods on one Node."""
        listing = await self._kube.list(
            PODS, None, field_selector=f"spec.nodeName={node}", resource_version="0"
        )
        for pod in listing["items"]:
            if self._is_foreign(pod, node):
                await self.settle(pod)

    async def _visit(self, pod: Object) -> None:
        try:
            await self.settle(pod)
        except KubeError as error:
            # The sweep comes by within a minute.
            self._log.debug("cannot settle {pod}: {error}", pod=pod["metadata"]["name"], error=str(error))

    async def _run(self) -> None:
        due: dict[str, float] = {}
        while True:
            await pause(self._clock, self._period / _TURNS)
            now = self._clock.seconds()
            due = {name: due.get(name, now + self._phase(name)) for name in sorted(self._nodes())}
            for name in [name for name, moment in due.items() if moment <= now]:
                due[name] = now + self._period
                try:
                    await self.sweep(name)
                except Forbidden as error:
                    self._tell_once("", "list", error)
                except KubeError as error:
                    self._log.debug("cannot sweep Node {node}: {error}", node=name, error=str(error))

    def _phase(self, name: str) -> float:
        """How long a Node that is new to us waits for its first turn: its own part of the period."""
        return crc32(name.encode("utf-8")) / 2**32 * self._period

    def _is_foreign(self, pod: Object, node: str) -> bool:
        metadata: dict[str, Any] = pod["metadata"]
        return (metadata.get("namespace"), metadata.get("name")) != (self._namespace, node)

    def _tell_once(self, namespace: str, verb: str, error: Forbidden) -> None:
        if (namespace, verb) in self._told:
            return
        self._told.add((namespace, verb))
        self._log.warn(
            "a foreign pod on a device's Node is left as it is: {error}; "
            "deploy/optional/rbac-sweep.yaml lets aranya remove such pods",
            error=str(error),
        )
