"""The controller: watches, and for each EdgeDevice that may have changed gather, plan, apply.

One key is worked on at a time. A run plans again after each round of steps with what is
seen then, until there is nothing to do. It may be killed anywhere: nothing but
the API server is asked what was done.

One ``DeviceController`` works while this process leads; it may be started and stopped
again.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from ipaddress import ip_address
from typing import Any

from twisted.application.service import MultiService
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from aranya.controller.devices import nodes, pods
from aranya.controller.devices.gather import RECENT_SECONDS, Gatherer, Memory, Recent, Serving, Watches
from aranya.controller.devices.model import Seen, Site, wish_of
from aranya.controller.devices.plan import CONFLICT_SECONDS, plan, teardown
from aranya.controller.devices.steps import (
    ROLE_CERTIFICATE,
    Joins,
    Journal,
    Means,
    Subject,
    certificate_secret_name,
)
from aranya.controller.issuing import BackgroundIssuing, Issue
from aranya.controller.leases import NodeLeases
from aranya.controller.sweep import Sweep
from aranya.interfaces import Devices, Endpoints, Kubernetes, Object
from aranya.kube.errors import Conflict, KubeError, NotFound
from aranya.kube.informer import Informer
from aranya.kube.objects import EDGEDEVICES, NODES, PODS, SECRETS, ObjectKey
from aranya.kube.queue import ReconcileQueue
from aranya.names import LABEL_NAME, LABEL_NAMESPACE, LABEL_ROLE, DeviceKey
from tether.tasks import spawn

#: More rounds than any path through the plan takes; a run that wants more comes again later.
_MOST_ROUNDS = 16
_MOST_CONFLICTS = 3


@dataclass(frozen=True, slots=True)
class ControllerConfig:
    """What the controller must be told."""

    #: Where the Secrets of aranya are, and whose EdgeDevices are reconciled.
    namespace: str
    watch_namespace: str
    #: What the API server dials for the endpoints of this process.
    node_address: str
    #: The same of all replicas: a certificate covers all of them, so that a failover needs none.
    replica_addresses: tuple[str, ...] = ()
    #: The cluster's version (``v1.30.2``), shown as the Nodes'.
    kubelet_version: str = ""
    #: The Node that runs this process.
    host_node: str = ""
    #: Seconds for which a lost device counts as here: in life, and after we began to lead.
    offline_grace: float = 5.0
    startup_grace: float = 15.0
    last_seen_every: float = 60.0
    sweep_every: float = 60.0

    def site(self) -> Site:
        """What planners need of this."""
        addresses = (self.node_address, *self.replica_addresses)
        return Site(
            node_address=_canonical(self.node_address),
            certificate_hosts=frozenset(_canonical(address) for address in addresses if address),
            kubelet_version=self.kubelet_version,
            host_node=self.host_node,
            last_seen_every=self.last_seen_every,
        )


class Unsettled(KubeError):
    """What is written does not stay as it was written; the queue's backoff bounds how often we try."""


class DeviceController(MultiService):
    """Makes the world as the EdgeDevices of one namespace wish it to be."""

    _log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        kube: Kubernetes,
        devices: Devices,
        endpoints: Endpoints,
        joins: Joins,
        journal: Journal,
        config: ControllerConfig,
        issue: Issue,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        super().__init__()
        self._clock = clock
        self._kube = kube
        self._devices = devices
        self._config = config
        self._site = config.site()
        self._jitter = jitter
        self._issuing = BackgroundIssuing(issue, clock, self._wake)
        self._leases = NodeLeases(kube, clock, config.watch_namespace, jitter)
        self._means = Means(
            kube=kube,
            devices=devices,
            endpoints=endpoints,
            joins=joins,
            leases=self._leases,
            issuing=self._issuing,
            journal=journal,
            namespace=config.namespace,
        )
        self._queue: ReconcileQueue[DeviceKey] = ReconcileQueue(clock, self.reconcile, jitter=jitter)
        self._sweep = Sweep(kube, clock, config.watch_namespace, self._node_names, config.sweep_every)
        self._undo: list[Callable[[], None]] = []
        self._waiting: Deferred[None] | None = None
        self._began = 0.0
        self._reset()

    def _reset(self) -> None:
        """All that is learned anew in each term."""
        self._watches = self._make_watches()
        self._recent = Recent(self._clock)
        self._memory = Memory()
        self._gatherer = Gatherer(
            self._clock,
            self._watches,
            self._recent,
            self._memory,
            self._means,
            self._leases,
            self._issuing,
            self._grace_until,
        )
        #: Fires once the EdgeDevices are known; the gateway may admit devices from then on.
        self.synced: Deferred[None] = Deferred()

    # -- what others see

    def lookup(self, key: DeviceKey) -> Object | None:
        """The EdgeDevice, as the watch shows it."""
        if key.namespace != self._config.watch_namespace:
            return None
        return self._watches.devices.get(key.namespace, key.name)

    @property
    def queue(self) -> ReconcileQueue[DeviceKey]:
        """The keys to reconcile, for metrics."""
        return self._queue

    # -- its life

    def startService(self) -> None:
        self._began = self._clock.seconds()
        for child in (*self._informers(), self._leases):
            child.setServiceParent(self)
        super().startService()
        self._waiting = spawn(self._begin(), self._log, "the controller cannot begin: a bug")

    def stopService(self) -> Deferred[Any]:
        """Stop; nothing is taken down, the next leader goes on from here."""
        for undo in self._undo:
            undo()
        self._undo.clear()
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None
        self._issuing.stop()
        stopped: Deferred[Any] = super().stopService()
        for child in list(self):
            child.disownServiceParent()
        if not self.synced.called:
            self.synced.addErrback(lambda failure: failure.trap(CancelledError) and None)
            self.synced.cancel()
        self._reset()
        return stopped

    async def _begin(self) -> None:
        watches = self._watches
        await watches.devices.when_synced()
        self.synced.callback(None)
        for informer in (watches.nodes, watches.secrets):
            await informer.when_synced()
        self._undo += [
            watches.devices.subscribe(self._device_changed),
            watches.nodes.subscribe(self._node_changed),
            watches.secrets.subscribe(self._secret_changed),
            # Not waited for: in a namespace that is being deleted it may never come.
            watches.pods.subscribe(self._pod_changed),
            self._devices.subscribe(self._link_changed),
        ]
        self._queue.setServiceParent(self)
        self._sweep.setServiceParent(self)

    def _make_watches(self) -> Watches:
        config = self._config
        ours = f"{LABEL_NAMESPACE}={config.watch_namespace}"

        def watch(resource: Any, namespace: str | None, selector: str = "") -> Informer:
            return Informer(
                self._kube, self._clock, resource, namespace, label_selector=selector, jitter=self._jitter
            )

        return Watches(
            devices=watch(EDGEDEVICES, config.watch_namespace),
            nodes=watch(NODES, None, f"{LABEL_ROLE}={nodes.ROLE_NODE},{ours}"),
            pods=watch(PODS, config.watch_namespace),
            secrets=watch(SECRETS, config.namespace, f"{LABEL_ROLE}={ROLE_CERTIFICATE},{ours}"),
        )

    def _informers(self) -> tuple[Informer, ...]:
        watches = self._watches
        return watches.devices, watches.nodes, watches.pods, watches.secrets

    # -- what may have changed

    def _wake(self, key: DeviceKey) -> None:
        if self._queue.running:
            self._queue.add(key)

    def _device_changed(self, key: ObjectKey, old: Object | None, new: Object | None) -> None:
        if new is None and old is not None:
            self._recent.shown(EDGEDEVICES, key.name, old)
        self._queue.add(DeviceKey(key.namespace, key.name))

    def _node_changed(self, key: ObjectKey, old: Object | None, new: Object | None) -> None:
        if new is None and old is not None:
            self._recent.shown(NODES, key.name, old)
        self._queue.add(DeviceKey(self._config.watch_namespace, key.name))

    def _secret_changed(self, key: ObjectKey, old: Object | None, new: Object | None) -> None:
        shown = new or old or {}
        name = (shown.get("metadata", {}).get("labels") or {}).get(LABEL_NAME, "")
        if key.name != certificate_secret_name(name):
            return
        if new is None and old is not None:
            self._recent.shown(SECRETS, key.name, old)
        self._queue.add(DeviceKey(self._config.watch_namespace, name))

    def _pod_changed(self, key: ObjectKey, old: Object | None, new: Object | None) -> None:
        if new is None and old is not None:
            self._recent.shown(PODS, key.name, old)
        device = DeviceKey(key.namespace, key.name)
        if self.lookup(device) is not None or any(
            pods.is_ours(shown, device) for shown in (old, new) if shown is not None
        ):
            self._queue.add(device)
        elif new is not None:
            self._sweep.pod_seen(new)

    def _link_changed(self, key: DeviceKey) -> None:
        if key.namespace != self._config.watch_namespace:
            return
        if self._devices.get(key) is not None:
            self._memory.went.pop(key, None)
        elif self.lookup(key) is not None:
            self._memory.went.setdefault(key, self._clock.seconds())
        self._wake(key)

    def _grace_until(self, key: DeviceKey) -> float:
        went = self._memory.went.get(key)
        if went is None:
            return self._began + self._config.startup_grace
        return went + self._config.offline_grace

    def _node_names(self) -> frozenset[str]:
        namespace = self._config.watch_namespace
        return frozenset(
            node["metadata"]["name"]
            for node in self._watches.nodes
            if nodes.is_ours(node, DeviceKey(namespace, node["metadata"]["name"]))
        )

    # -- one key

    async def reconcile(self, key: DeviceKey) -> float | None:
        """Make things as wished for one EdgeDevice; gives back when to look again."""
        seen = await self._gatherer.gather(key)
        conflicts, wrote = 0, False
        for _ in range(_MOST_ROUNDS):
            wish = wish_of(seen.device) if seen.device is not None else None
            leaving = wish is None or wish.deleting
            if wish is not None:
                self._memory.uids[key] = wish.uid
            if wish is None or wish.deleting:
                if wish is None and key not in self._memory.uids and _nothing_left(seen):
                    return None
                if wish is not None and not wish.finalizer and not wrote:
                    return None  # Held by somebody else; what we made is gone, or goes with it.
                todo = teardown(key, wish, seen)
            else:
                todo = plan(wish, seen, self._site, self._clock.seconds())
            if not todo.steps:
                break
            subject = Subject(key, self._memory.uids.get(key, ""), wish)
            wrote = True
            try:
                for step in todo.steps:
                    after = await step.run(self._means, subject, seen)
                    self._remember(key, seen, after)
                    seen = after
            except (Conflict, NotFound):
                # Somebody else wrote or deleted meanwhile: look for ourselves.
                conflicts += 1
                if conflicts > _MOST_CONFLICTS:
                    raise
                seen = replace(await self._gatherer.gather(key, live=True), done=seen.done)
        else:
            raise Unsettled(f"{_MOST_ROUNDS} rounds of writes, and there is still something to write")
        if leaving:
            self._memory.forget(key)
            return None
        assert wish is not None
        again = await self._means.joins.reconcile(wish.source)
        waits = [todo.wake_in, again, RECENT_SECONDS if wrote else None]
        return min((wait for wait in waits if wait is not None), default=None)

    def _remember(self, key: DeviceKey, before: Seen, after: Seen) -> None:
        """Keep what a step learned until the watches show it."""
        name = certificate_secret_name(key.name)
        for resource, named, old, new in (
            (EDGEDEVICES, key.name, before.device, after.device),
            (NODES, key.name, before.node, after.node),
            (PODS, key.name, before.pod, after.pod),
            (SECRETS, name, before.secret, after.secret),
        ):
            if new is not None and new is not old:
                self._recent.wrote(resource, named, new)
            elif new is None and old is not None:
                self._recent.deleted(resource, named, old)
        if before.setback != after.setback:
            # What was refused may have been so because the namespace was made anew.
            self._memory.account_exists = False
            again_at = self._clock.seconds() + CONFLICT_SECONDS
            self._memory.setbacks[key] = replace(after.setback, again_at=again_at)
        if after.port:
            self._memory.serving[key] = Serving(after.shown, after.told)
        else:
            self._memory.serving.pop(key, None)


def _nothing_left(seen: Seen) -> bool:
    """Whether an EdgeDevice that is gone has left nothing that could be seen."""
    return (
        seen.connected is None
        and not seen.port
        and seen.secret is None
        and not seen.lease_of
        and all(found is None for found in (seen.node, seen.pod))
    )


def _canonical(address: str) -> str:
    try:
        return str(ip_address(address))
    except ValueError:
        return address
