"""What is seen of one EdgeDevice: from the watches' caches, our own latest writes, and memory.

A watch shows our own writes a moment late. Planning from the older picture would do
things twice, so what a write answered is remembered until the watch has surely shown it
(``Recent``), and the newer of the two counts.

What is missing from a cache that shows only labelled objects is looked up, for it may be
there without the label: a Node of somebody else above all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from twisted.internet.interfaces import IReactorTime

from aranya.certs.authority import pair_of
from aranya.certs.keys import KeyPair, PairUnusable
from aranya.controller.devices.model import Certificate, Connected, Seen, Setback, Standby
from aranya.controller.devices.steps import Means, certificate_secret_name
from aranya.controller.issuing import BackgroundIssuing, certificate_of
from aranya.controller.leases import NodeLeases
from aranya.interfaces import Object, Resource, ServedPod
from aranya.kube.errors import Forbidden, NotFound
from aranya.kube.informer import Informer
from aranya.kube.objects import EDGEDEVICES, NODES, PODS, SECRETS, SERVICEACCOUNTS, uid_of, version_of
from aranya.names import DeviceKey

#: For how long the answer to a write may be newer than what the watch shows.
RECENT_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Watches:
    """The caches of what is watched."""

    devices: Informer
    nodes: Informer
    pods: Informer
    secrets: Informer


class Recent:
    """The answers to our latest writes and reads, for ``RECENT_SECONDS`` each."""

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._kept: dict[tuple[Resource, str], tuple[Object, bool, float]] = {}

    def __len__(self) -> int:
        """How many are kept."""
        return len(self._kept)

    def wrote(self, resource: Resource, name: str, found: Object) -> None:
        """The object reads like this now."""
        self._keep(resource, name, found, there=True)

    def deleted(self, resource: Resource, name: str, last: Object) -> None:
        """The object is gone, or as good as gone."""
        self._keep(resource, name, last, there=False)

    def newest(self, resource: Resource, name: str, cached: Object | None) -> Object | None:
        """What counts: the cached object, or what we know to be newer."""
        kept = self._kept.get((resource, name))
        if kept is None:
            return cached
        found, there, until = kept
        if self._clock.seconds() >= until:
            return cached
        if cached is not None and (_newer(cached, found) or (not there and uid_of(cached) != uid_of(found))):
            return cached
        return found if there else None

    def shown(self, resource: Resource, name: str, gone: Object) -> None:
        """The watch shows that this object is gone."""
        kept = self._kept.get((resource, name))
        if kept is not None and uid_of(kept[0]) == uid_of(gone):
            del self._kept[resource, name]

    def _keep(self, resource: Resource, name: str, found: Object, there: bool) -> None:
        now = self._clock.seconds()
        self._kept.pop((resource, name), None)
        self._kept[resource, name] = (found, there, now + RECENT_SECONDS)
        # All are kept for equally long, so the oldest stand first.
        while self._kept[oldest := next(iter(self._kept))][2] <= now:
            del self._kept[oldest]


@dataclass(slots=True)
class Serving:
    """What an endpoint was told; only this process knows."""

    shown: KeyPair | None = None
    told: ServedPod | None = None


@dataclass(slots=True)
class Memory:
    """What can be seen nowhere else and is learned anew after a start."""

    serving: dict[DeviceKey, Serving] = field(default_factory=dict)
    #: When a device went, on our clock.
    went: dict[DeviceKey, float] = field(default_factory=dict)
    certificates: dict[DeviceKey, tuple[str, Certificate | None]] = field(default_factory=dict)
    uids: dict[DeviceKey, str] = field(default_factory=dict)
    setbacks: dict[DeviceKey, Setback] = field(default_factory=dict)
    account_exists: bool = False

    def forget(self, key: DeviceKey) -> None:
        """Drop all that concerns one device."""
        for known in (self.serving, self.went, self.certificates, self.uids, self.setbacks):
            known.pop(key, None)


class Gatherer:
    """Collects what is seen of one EdgeDevice."""

    def __init__(
        self,
        clock: IReactorTime,
        watches: Watches,
        recent: Recent,
        memory: Memory,
        means: Means,
        leases: NodeLeases,
        issuing: BackgroundIssuing,
        grace_until: Callable[[DeviceKey], float],
    ) -> None:
        self._clock = clock
        self._watches = watches
        self._recent = recent
        self._memory = memory
        self._means = means
        self._leases = leases
        self._issuing = issuing
        self._grace_until = grace_until

    async def gather(self, key: DeviceKey, live: bool = False) -> Seen:
        """What is seen now; ``live`` asks the API server instead of the caches."""
        device = await self._device(key, live)
        leaving = device is None or bool(device["metadata"].get("deletionTimestamp"))
        pod = await self._pod(key, live, leaving)
        connected = self._means.devices.get(key)
        progress = self._issuing.progress(key)
        port = self._means.endpoints.port(key)
        serving = self._memory.serving.get(key, Serving()) if port else Serving()
        name = certificate_secret_name(key.name)
        cached = self._watches.secrets.get(self._means.namespace, name)
        secret = self._recent.newest(SECRETS, name, cached)
        return Seen(
            device=device,
            node=await self._node(key, live),
            pod=pod,
            secret=secret,
            certificate=self._certificate(key, secret),
            issued=progress.issued,
            issuing=progress.asking,
            issue_error=progress.error,
            issue_again_at=progress.again_at,
            port=port,
            shown=serving.shown,
            told=serving.told,
            lease_of=self._leases.kept_for(key.name),
            connected=Connected(connected.facts, connected.software, connected.address)
            if connected is not None
            else None,
            standbys=tuple(
                Standby(standby.software, standby.address) for standby in self._means.devices.standbys(key)
            ),
            grace_until=self._grace_until(key),
            last_seen=self._memory.went.get(key) if connected is None else self._clock.seconds(),
            setback=self._setback(key),
            account_exists=leaving or pod is not None or await self._account(key),
        )

    def _setback(self, key: DeviceKey) -> Setback:
        setback = self._memory.setbacks.get(key, Setback())
        if setback.again_at <= self._clock.seconds():
            self._memory.setbacks.pop(key, None)
            return Setback()
        return setback

    async def _device(self, key: DeviceKey, live: bool) -> Object | None:
        cached = self._watches.devices.get(key.namespace, key.name)
        device = self._recent.newest(EDGEDEVICES, key.name, cached)
        if device is None or live:
            # Before anything is torn down, be sure that it is gone.
            device = await self._read(EDGEDEVICES, key.namespace, key.name)
        return device

    async def _node(self, key: DeviceKey, live: bool) -> Object | None:
        node = self._recent.newest(NODES, key.name, self._watches.nodes.get("", key.name))
        return await self._read(NODES, None, key.name) if node is None or live else node

    async def _pod(self, key: DeviceKey, live: bool, leaving: bool) -> Object | None:
        cached = self._watches.pods.get(key.namespace, key.name)
        if self._watches.pods.synced and not live:
            return self._recent.newest(PODS, key.name, cached)
        try:
            return await self._read(PODS, key.namespace, key.name)
        except Forbidden:
            # A namespace that is being deleted takes our rights in it first.
            if not leaving:
                raise
            return cached

    async def _account(self, key: DeviceKey) -> bool:
        if not self._memory.account_exists:
            try:
                account = await self._read(SERVICEACCOUNTS, key.namespace, "default")
            except Forbidden:
                # Creating the pod will tell whether the namespace is going or a right is missing.
                return True
            self._memory.account_exists = account is not None
        return self._memory.account_exists

    async def _read(self, resource: Resource, namespace: str | None, name: str) -> Object | None:
        try:
            found = await self._means.kube.get(resource, namespace, name)
        except NotFound:
            return None
        if resource is not SERVICEACCOUNTS:
            self._recent.wrote(resource, name, found)
        return found

    def _certificate(self, key: DeviceKey, secret: Object | None) -> Certificate | None:
        if secret is None:
            return None
        version, certificate = self._memory.certificates.get(key, ("", None))
        if version != version_of(secret):
            try:
                certificate = certificate_of(pair_of(secret))
            except PairUnusable:
                certificate = None
            self._memory.certificates[key] = (version_of(secret), certificate)
        return certificate


def _newer(one: Object, other: Object) -> bool:
    try:
        return int(version_of(one)) > int(version_of(other))
    except ValueError:
        return False
