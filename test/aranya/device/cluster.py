"""What tests of joining and of the gateway share: an API server in memory and one EdgeDevice."""

from __future__ import annotations

import base64
from collections.abc import Awaitable
from datetime import UTC, datetime
from typing import Any, TypeVar, cast

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from aranya.certs.authority import new_authority
from aranya.device.joining import Joins, Welcome
from aranya.device.records import Records
from aranya.interfaces import Object, Patch
from aranya.kube.memory import MemoryApiServer
from aranya.kube.objects import EDGEDEVICES, SECRETS, new_object, uid_of
from aranya.names import JOIN_ANNOTATION, DeviceIdentity, DeviceKey
from tether.join import Token

NOW = datetime(2030, 1, 1, tzinfo=UTC)
KEY = DeviceKey("edge", "pump")
URLS = ("wss://gw.example:8443",)
_T = TypeVar("_T")


class ClusterCase(SynchronousTestCase):
    """One EdgeDevice ``edge/pump``, aranya's namespace ``system``, and ``Joins`` over them."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.advance(NOW.timestamp())
        self.server = MemoryApiServer(self.clock)
        self.kubernetes = self.server.client()
        self.authority = new_authority(NOW)
        self.rejoined: list[DeviceKey] = []
        self.create_device()
        self.joins = self.new_joins()

    def new_joins(self) -> Joins:
        """Joins of a process that has just begun to lead."""
        records = Records(self.kubernetes, "system")
        self.done(records.load())
        return Joins(
            self.kubernetes,
            self.authority,
            records,
            lambda: Welcome(URLS, self.authority.bundle),
            self.lookup,
            self.clock,
            self.rejoined.append,
        )

    def done(self, work: Awaitable[_T]) -> _T:
        """The result of an operation that needs no time."""
        return cast(_T, self.successResultOf(Deferred.fromCoroutine(cast(Any, work))))

    def refused(self, work: Awaitable[object], kind: type[Exception]) -> str:
        """The line with which an operation fails."""
        return str(self.failureResultOf(Deferred.fromCoroutine(cast(Any, work)), kind).value)

    def create_device(self) -> None:
        """Make the EdgeDevice."""
        body = new_object(EDGEDEVICES, {"name": KEY.name, "namespace": KEY.namespace}, spec={})
        self.done(self.kubernetes.create(EDGEDEVICES, KEY.namespace, body))

    def device(self) -> Object:
        """The EdgeDevice as it is now."""
        found = self.lookup(KEY)
        assert found is not None
        return found

    def lookup(self, key: DeviceKey) -> Object | None:
        """What the watch would know."""
        return self.server.stored(EDGEDEVICES, key.namespace, key.name)

    def identity(self) -> DeviceIdentity:
        """Who the EdgeDevice's device is."""
        return DeviceIdentity(KEY, uid_of(self.device()))

    def change(self, body: Object) -> None:
        """Merge into the EdgeDevice."""
        self.done(self.kubernetes.patch(EDGEDEVICES, KEY.namespace, KEY.name, body, kind=Patch.MERGE))

    def request_join(self, nonce: str = "nonce-1") -> None:
        """Do what the plugin does."""
        self.change({"metadata": {"annotations": {JOIN_ANNOTATION: nonce}}})

    def secret(self) -> Object | None:
        """The join Secret."""
        return self.server.stored(SECRETS, KEY.namespace, "pump-join")

    def token(self, nonce: str = "nonce-1") -> Token:
        """Ask for a token and read it."""
        self.request_join(nonce)
        self.done(self.joins.reconcile(self.device()))
        secret = self.secret()
        assert secret is not None
        return Token.decode(base64.b64decode(secret["data"]["token"]).decode())
