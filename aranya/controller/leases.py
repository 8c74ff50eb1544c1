"""Renews the Leases of Nodes: one for every device this aranya serves, ten seconds apart.

A Lease says that the Node's kubelet lives, which is this process; whether the
device is here is the Node's ``Ready`` condition (``docs/objects.md``). So Leases are
renewed as long as we lead. If they were not, the lifecycle controller would
overwrite our conditions with its own "Unknown".

The renewals of a thousand Nodes are spread over the ten seconds; each one is one PUT of
what was last seen. The lifecycle controller compares renewals with each other, so
the time in a Lease never goes backwards, whatever our clock does.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from aranya.interfaces import Kubernetes, Object
from aranya.kube.errors import AlreadyExists, Conflict, KubeError, NotFound
from aranya.kube.objects import LEASES, micro_time, parse_time, uid_of
from aranya.names import LABEL_NAME, LABEL_NAMESPACE, LABEL_ROLE, NODE_LEASE_NAMESPACE
from tether.tasks import spawn

ROLE_LEASE = "Lease"
DURATION = 40
RENEW_EVERY = 10.0
RETRY_AFTER = 2.0

_TICK = 0.25
_SPREAD = 0.04
_AT_ONCE = 64


@dataclass(slots=True)
class _Kept:
    node_uid: str
    due: float
    lease: Object | None = None
    renewing: Deferred[None] | None = None


class NodeLeases(Service):
    """Renews the Leases of the Nodes it was told to keep, while it is started."""

    _log = Logger()

    def __init__(
        self,
        kube: Kubernetes,
        clock: IReactorTime,
        namespace: str,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._kube = kube
        self._clock = clock
        self._namespace = namespace
        self._jitter = jitter
        self._kept: dict[str, _Kept] = {}
        self._found: dict[str, Object] = {}
        self._ready = False
        self._failing = False
        self._loading: Deferred[None] | None = None
        self._ticking = LoopingCall(self._tick)
        self._ticking.clock = clock

    def __len__(self) -> int:
        """How many Leases are kept."""
        return len(self._kept)

    def keep(self, node_name: str, node_uid: str) -> None:
        """Renew the Lease of this Node from now on."""
        kept = self._kept.get(node_name)
        if kept is None:
            self._kept[node_name] = _Kept(node_uid, self._clock.seconds())
        elif kept.node_uid != node_uid:
            kept.node_uid, kept.due = node_uid, self._clock.seconds()

    def kept_for(self, node_name: str) -> str:
        """The UID of the Node whose Lease is renewed; empty if none is."""
        kept = self._kept.get(node_name)
        return kept.node_uid if kept is not None else ""

    async def drop(self, node_name: str) -> None:
        """Stop renewing the Lease and delete it, if it is one of ours."""
        kept = self._kept.pop(node_name, None)
        lease = self._found.pop(node_name, None)
        if kept is not None:
            lease = kept.lease or lease
            if kept.renewing is not None:
                # What is on its way may arrive after all: read anew what there is.
                kept.renewing.cancel()
                lease = None
        try:
            if lease is None:
                lease = await self._kube.get(LEASES, NODE_LEASE_NAMESPACE, node_name)
            if self._is_ours(lease):
                await self._kube.delete(LEASES, NODE_LEASE_NAMESPACE, node_name, uid=uid_of(lease))
        except (NotFound, Conflict):
            pass

    def startService(self) -> None:
        super().startService()
        self._loading = spawn(self._load(), self._log, "reading Node Leases failed: a bug")

    def stopService(self) -> Deferred[Any]:
        """Stop renewing; the Leases run out, or the next leader renews them."""
        super().stopService()
        running = [kept.renewing for kept in self._kept.values() if kept.renewing is not None]
        if self._loading is not None:
            running.append(self._loading)
            self._loading = None
        if self._ticking.running:
            self._ticking.stop()
        self._kept.clear()
        self._found.clear()
        self._ready = False
        for one in list(running):
            one.cancel()
        return DeferredList(running)

    async def _load(self) -> None:
        try:
            selector = f"{LABEL_ROLE}={ROLE_LEASE},{LABEL_NAMESPACE}={self._namespace}"
            listing = await self._kube.list(LEASES, NODE_LEASE_NAMESPACE, label_selector=selector)
            self._found = {item["metadata"]["name"]: item for item in listing["items"]}
        except KubeError as error:
            self._log.info("cannot list Node Leases: {error}; reading them one by one", error=str(error))
        self._loading = None
        if self.running:
            ticking = self._ticking.start(_TICK)
            ticking.addErrback(lambda why: self._log.failure("renewing Node Leases stopped: a bug", why))

    def _tick(self) -> None:
        now = self._clock.seconds()
        busy = sum(kept.renewing is not None for kept in self._kept.values())
        for name, kept in list(self._kept.items()):
            if busy >= _AT_ONCE:
                return
            if kept.renewing is None and kept.due <= now and not self._spread(name, kept, now):
                busy += 1
                self._start(name, kept)

    def _spread(self, name: str, kept: _Kept, now: float) -> bool:
        """Whether a Lease that a former leader renewed lately may wait for its turn."""
        found = self._found.pop(name, None)
        if found is None:
            return False
        kept.lease = found
        renewed = parse_time(found.get("spec", {}).get("renewTime"))
        if renewed is None or not 0 <= now - renewed.timestamp() < DURATION / 2:
            return False
        kept.due = now + self._jitter() * RENEW_EVERY
        return True

    def _start(self, name: str, kept: _Kept) -> None:
        running = spawn(self._renew(name, kept), self._log, "renewing a Node Lease failed: a bug")
        if not running.called:
            kept.renewing = running

            def ended(_: object) -> None:
                kept.renewing = None

            running.addCallback(ended)

    async def _renew(self, name: str, kept: _Kept) -> None:
        kept.due = self._clock.seconds() + RETRY_AFTER
        try:
            kept.lease = await self._write(name, kept)
        except NotFound:
            kept.lease = None
        except Conflict:
            kept.lease = await self._read(name)
        except KubeError as error:
            if not self._failing:
                self._failing = True
                self._log.warn("cannot renew the Lease of Node {node}: {error}", node=name, error=str(error))
        else:
            if self._failing:
                self._failing = False
                self._log.info("Node Leases are renewed again")
            kept.due = self._clock.seconds() + RENEW_EVERY * (1 + _SPREAD * (2 * self._jitter() - 1))

    async def _read(self, name: str) -> Object | None:
        try:
            return await self._kube.get(LEASES, NODE_LEASE_NAMESPACE, name)
        except KubeError:
            return None

    async def _write(self, name: str, kept: _Kept) -> Object:
        """PUT or POST; a conflict or a deletion meanwhile is settled once, here."""
        lease = kept.lease
        if lease is None:
            try:
                return await self._kube.create(LEASES, NODE_LEASE_NAMESPACE, self._renewed(name, kept, {}))
            except AlreadyExists:
                lease = await self._kube.get(LEASES, NODE_LEASE_NAMESPACE, name)
        try:
            return await self._put(name, kept, lease)
        except NotFound:
            return await self._kube.create(LEASES, NODE_LEASE_NAMESPACE, self._renewed(name, kept, {}))
        except Conflict:
            lease = await self._kube.get(LEASES, NODE_LEASE_NAMESPACE, name)
            return await self._put(name, kept, lease)

    async def _put(self, name: str, kept: _Kept, lease: Object) -> Object:
        body = self._renewed(name, kept, lease)
        return await self._kube.replace(LEASES, NODE_LEASE_NAMESPACE, name, body)

    def _renewed(self, name: str, kept: _Kept, lease: Object) -> Object:
        metadata = {**lease.get("metadata", {}), "name": name, "namespace": NODE_LEASE_NAMESPACE}
        metadata["labels"] = {
            **(metadata.get("labels") or {}),
            LABEL_ROLE: ROLE_LEASE,
            LABEL_NAME: name,
            LABEL_NAMESPACE: self._namespace,
        }
        metadata["ownerReferences"] = [
            {"apiVersion": "v1", "kind": "Node", "name": name, "uid": kept.node_uid}
        ]
        spec = lease.get("spec", {})
        moment = datetime.fromtimestamp(self._clock.seconds(), UTC)
        last = parse_time(spec.get("renewTime"))
        if last is not None and moment <= last:
            moment = last + timedelta(microseconds=1)
        return {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": metadata,
            "spec": {
                **spec,
                "holderIdentity": name,
                "leaseDurationSeconds": DURATION,
                "renewTime": micro_time(moment),
            },
        }

    def _is_ours(self, lease: Object) -> bool:
        labels = lease["metadata"].get("labels") or {}
        return bool(labels.get(LABEL_NAMESPACE) == self._namespace)
