"""What aranya must remember of each device: which keys count, and a pending join.

One Secret per device, ``aranya-device.<namespace>.<name>`` in aranya's own namespace,
where no tenant reads. It has no owner (the garbage collector deletes objects whose
owner is in another namespace); ``forget`` removes it. Every write names the
resource version it was made from, so that of two writers one hears ``Conflict``:
this is what binds a token to one key. The records are listed once when leadership
begins and then kept in memory, for only the leader writes them.

A record holds no secret that could be used: of a token only its hash is kept.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

from aranya.device.storage import RECORD_LABEL, RECORD_VALUE, record_name
from aranya.interfaces import Kubernetes, Object
from aranya.kube.errors import Conflict, NotFound
from aranya.kube.objects import SECRETS, new_object, version_of
from aranya.names import DeviceKey

#: How often a change is tried anew when somebody else changed the record meanwhile.
_ATTEMPTS = 4


@dataclass(frozen=True, slots=True)
class PendingJoin:
    """A join token that was made: its hash, its end, who asked, and the key that used it."""

    digest: str  # SHA-256 of the secret, hex
    expires: float  # seconds since 1970
    nonce: str
    key: str = ""  # hash of the key it is bound to


@dataclass(frozen=True, slots=True)
class Record:
    """What is remembered of one EdgeDevice.

    ``keys`` are the hashes of the keys that may connect: one, or during a renewal
    the present and the next one.
    """

    uid: str
    keys: tuple[str, ...] = ()
    join: PendingJoin | None = None


class Records:
    """The records of all devices; reads from memory, writes through."""

    def __init__(self, kubernetes: Kubernetes, namespace: str) -> None:
        self._kubernetes = kubernetes
        self._namespace = namespace
        self._known: dict[str, tuple[Record, str]] = {}

    async def load(self) -> None:
        """Read all records; to be done whenever leadership begins."""
        selector = f"{RECORD_LABEL}={RECORD_VALUE}"
        found = await self._kubernetes.list(SECRETS, self._namespace, label_selector=selector)
        self._known = {}
        for secret in found.get("items") or []:
            self._learn(secret)

    def get(self, key: DeviceKey, uid: str) -> Record:
        """The record of this EdgeDevice; an empty one if there is none for its UID."""
        known = self._known.get(record_name(key))
        return known[0] if known is not None and known[0].uid == uid else Record(uid)

    async def update(self, key: DeviceKey, uid: str, change: Callable[[Record], Record]) -> Record:
        """Write what ``change`` makes of the record, and give it back.

        ``change`` may be asked again with a newer record, and may raise to leave
        things as they are. A record of another UID counts as none.
        """
        name = record_name(key)
        for attempt in range(_ATTEMPTS):
            before = self.get(key, uid)
            after = change(before)
            known = self._known.get(name)
            if after == before and known is not None and known[0] == before:
                return after
            body = self._secret(key, after)
            try:
                if known is None:
                    written = await self._kubernetes.create(SECRETS, self._namespace, body)
                else:
                    body["metadata"]["resourceVersion"] = known[1]
                    written = await self._kubernetes.replace(SECRETS, self._namespace, name, body)
            except (Conflict, NotFound):
                if attempt == _ATTEMPTS - 1:
                    raise
                await self._read(name)
                continue
            self._learn(written)
            return after
        raise AssertionError("unreachable")

    async def forget(self, key: DeviceKey, uid: str) -> None:
        """Remove the record, unless it is of another EdgeDevice of that name.

        Without a UID (the EdgeDevice went while nobody looked) it is removed whosever it was.
        """
        name = record_name(key)
        if name not in self._known:
            await self._read(name)
        known = self._known.get(name)
        if known is None or (uid and known[0].uid != uid):
            return
        try:
            await self._kubernetes.delete(SECRETS, self._namespace, name, resource_version=known[1])
        except NotFound:
            pass
        self._known.pop(name, None)

    async def _read(self, name: str) -> None:
        try:
            self._learn(await self._kubernetes.get(SECRETS, self._namespace, name))
        except NotFound:
            self._known.pop(name, None)

    def _learn(self, secret: Object) -> None:
        metadata = secret["metadata"]
        self._known[metadata["name"]] = (_record_of(secret), version_of(secret))

    def _secret(self, key: DeviceKey, record: Record) -> Object:
        text = json.dumps(asdict(record), separators=(",", ":"))
        return new_object(
            SECRETS,
            {
                "name": record_name(key),
                "namespace": self._namespace,
                "labels": {RECORD_LABEL: RECORD_VALUE},
            },
            type="Opaque",
            data={"record": base64.b64encode(text.encode("utf-8")).decode("ascii")},
        )


def _record_of(secret: Object) -> Record:
    """The record in a Secret; a damaged one is an empty record, so the device has to join anew."""
    try:
        content: dict[str, Any] = json.loads(base64.b64decode(secret["data"]["record"]))
        join = content["join"]
        return Record(
            uid=str(content["uid"]),
            keys=tuple(str(key) for key in content["keys"]),
            join=PendingJoin(**join) if join is not None else None,
        )
    except (KeyError, TypeError, ValueError):
        return Record(uid="")


def without_join(record: Record) -> Record:
    """The record with its pending join voided."""
    return replace(record, join=None)
