"""Joining: a token is made when asked for, used once, bound to one key; and renewal.

Making a token
    ``kubectl aranya join`` writes a nonce into an annotation of the EdgeDevice; that
    takes the right to update EdgeDevices and nothing else. aranya writes the hash of
    a fresh secret into the device's record, then the Secret ``<device>-join`` with
    the token in it, then takes the annotation away. An interruption anywhere is
    repaired by doing it over. No annotation, no token.

Using it
    The first request with the right secret binds the token to its key, by a write
    that fails if the record changed meanwhile. The same key may ask again until the
    token expires, because the answer may have been lost on the way; another key is
    refused. The names in the request are ignored: the token says which EdgeDevice.
    The bound key replaces every key recorded before, so a machine that was
    replaced is out.

Refusals
    Whoever does not know the secret hears the same sentence whatever is wrong. Whoever
    knows it hears the reason.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from cryptography.hazmat.primitives.asymmetric import ec
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from aranya.certs.authority import Authority
from aranya.certs.keys import key_hash
from aranya.certs.requests import RequestUnusable, requested_key
from aranya.certs.verification import moment
from aranya.device.records import PendingJoin, Record, Records, without_join
from aranya.device.storage import JOIN_EXPIRES, join_secret_name
from aranya.interfaces import Kubernetes, Object, Patch
from aranya.kube.errors import ApiError, Conflict, KubeError, NotFound
from aranya.kube.objects import EDGEDEVICES, SECRETS, new_object, owner_reference, rfc3339, uid_of
from aranya.names import JOIN_ANNOTATION, DeviceIdentity, DeviceKey
from tether.join import Token

TOKEN_LIFETIME = 3600.0
_SECRET_BYTES = 32

#: Failed joins that one address may have in a row, and the seconds until it may have one more.
FAILURES_ALLOWED = 10
FAILURE_FORGOTTEN = 10.0
_ADDRESSES_REMEMBERED = 4096

#: Seconds between two renewals of one device, and until it may ask again for the key it asked for last,
#: as after a lost answer.
RENEWAL_PAUSE = 60.0
REPEAT_PAUSE = 5.0


class JoinDenied(Exception):
    """A device may not join or renew, and why in one line."""


class RenewedLately(JoinDenied):
    """A device may not renew again so soon."""


class JoinImpossible(KubeError):
    """A token cannot be made, and why in one line."""


@dataclass(frozen=True, slots=True)
class Welcome:
    """What a token and the answer to a join tell a device: where to dial and whom to trust."""

    urls: tuple[str, ...]
    ca_bundle: bytes


class Joins:
    """Answers join requests, redeems tokens, renews certificates; keeps the records.

    ``welcome`` is asked each time, as the gateway's certificate may change.
    ``lookup`` gives the EdgeDevice as the watch knows it. ``rejoined`` is called when
    a device's recorded keys were replaced, so that a link of an old key can be ended.
    """

    _log = Logger()

    def __init__(
        self,
        kubernetes: Kubernetes,
        authority: Authority,
        records: Records,
        welcome: Callable[[], Welcome],
        lookup: Callable[[DeviceKey], Object | None],
        clock: IReactorTime,
        rejoined: Callable[[DeviceKey], None] = lambda key: None,
        random_bytes: Callable[[int], bytes] = secrets.token_bytes,
    ) -> None:
        self._kubernetes = kubernetes
        self._authority = authority
        self._records = records
        self._welcome = welcome
        self._lookup = lookup
        self._clock = clock
        self._rejoined = rejoined
        self._random_bytes = random_bytes
        self._failures = Failures(clock)
        self._renewals = Renewals(clock)

    # ---- for the controller ------------------------------------------------------

    async def reconcile(self, edge_device: Object) -> float | None:
        """Make a token if one was asked for, void it when its time is over.

        Gives back the seconds after which to come again. Raises ``JoinImpossible``
        and ``KubeError``.
        """
        key, uid = _key_of(edge_device), uid_of(edge_device)
        if edge_device["metadata"].get("deletionTimestamp"):
            return None
        pending = self._records.get(key, uid).join
        if is_banned(edge_device):
            if pending is not None:
                await self._void(key, uid, pending)
            return None
        nonce = (edge_device["metadata"].get("annotations") or {}).get(JOIN_ANNOTATION)
        if nonce:
            if pending is None or pending.nonce != nonce or not await self._answered(key, pending):
                pending = await self._make(edge_device, nonce)
            await self._take_annotation(key, nonce)
        if pending is None:
            return None
        left = pending.expires - self._clock.seconds()
        if left <= 0:
            await self._void(key, uid, pending)
            return None
        return left

    async def forget(self, key: DeviceKey, uid: str) -> None:
        """Remove the device's record and its token: the EdgeDevice is being deleted."""
        pending = self._records.get(key, uid).join
        await self._records.forget(key, uid)
        if pending is not None:
            await self._delete_secret(key, pending)

    # ---- for the gateway -----------------------------------------------------------

    async def redeem(self, key: DeviceKey, secret: bytes, request: bytes, address: str) -> bytes:
        """The certificate (PEM chain) for the key of ``request``; raises ``JoinDenied``.

        ``address`` is where the asker comes from.
        """
        if not self._failures.may_try(address):
            raise JoinDenied("too many failed joins from this address; try again in a minute")
        try:
            return await self._redeem(key, secret, request)
        except JoinDenied as denied:
            self._failures.failed(address)
            self._log.info(
                "join of {device} from {peer} refused: {reason}",
                device=str(key),
                peer=address,
                reason=str(denied),
            )
            raise

    async def renew(self, identity: DeviceIdentity, present_key: str, request: bytes) -> bytes:
        """A new certificate (PEM chain) for the device of a living link; raises ``JoinDenied``.

        The present key counts until the new one was used to connect. Each renewal is signed and
        recorded, so a device that asks again too soon is told so with ``RenewedLately``.
        """
        self._living(identity)
        public_key = _requested(request)
        wanted = key_hash(public_key)
        if not self._renewals.may_begin(identity, wanted):
            raise RenewedLately("the certificate of this device was renewed just now; try again in a minute")
        self._renewals.begun(identity, wanted)

        def add(record: Record) -> Record:
            if present_key not in record.keys:
                raise JoinDenied("the device has joined anew with another key")
            return replace(record, keys=tuple(dict.fromkeys((present_key, wanted))))

        await self._records.update(identity.key, identity.uid, add)
        # A ban may have come while the record was written.
        self._living(identity)
        self._log.info("certificate of {device} renewed", device=str(identity.key))
        return self._sign(public_key, identity)

    def recorded_keys(self, identity: DeviceIdentity) -> tuple[str, ...]:
        """Hashes of the keys with which this EdgeDevice may connect."""
        return self._records.get(identity.key, identity.uid).keys

    async def connected(self, identity: DeviceIdentity, used_key: str) -> None:
        """The device has connected with this key: the one it replaces counts no more."""

        def settle(record: Record) -> Record:
            keys = record.keys
            # Only the newest key ends a renewal; an old one may be used till the new one was.
            return replace(record, keys=(used_key,)) if keys and keys[-1] == used_key else record

        if len(self.recorded_keys(identity)) > 1:
            await self._records.update(identity.key, identity.uid, settle)

    # ---- making a token --------------------------------------------------------------

    async def _make(self, edge_device: Object, nonce: str) -> PendingJoin:
        key, uid = _key_of(edge_device), uid_of(edge_device)
        secret = self._random_bytes(_SECRET_BYTES)
        pending = PendingJoin(_digest(secret), self._clock.seconds() + TOKEN_LIFETIME, nonce)
        await self._records.update(key, uid, lambda record: replace(record, join=pending))
        welcome = self._welcome()
        token = Token(welcome.urls, key.namespace, key.name, secret, welcome.ca_bundle).encode()
        await self._write_secret(edge_device, pending, token)
        self._log.info("join token made for {device}", device=str(key))
        return pending

    async def _write_secret(self, edge_device: Object, pending: PendingJoin, token: str) -> None:
        key = _key_of(edge_device)
        name = join_secret_name(key.name)
        contents = {"token": token, "command": join_command(token)}
        body = new_object(
            SECRETS,
            {
                "name": name,
                "namespace": key.namespace,
                "annotations": {
                    JOIN_ANNOTATION: pending.nonce,
                    JOIN_EXPIRES: rfc3339(moment(pending.expires)),
                },
                "ownerReferences": [owner_reference(edge_device)],
            },
            type="Opaque",
            data={field: base64.b64encode(text.encode()).decode() for field, text in contents.items()},
        )
        with suppress(NotFound):
            old = await self._kubernetes.get(SECRETS, key.namespace, name)
            if uid_of(edge_device) not in _owners(old):
                raise JoinImpossible(
                    f"a Secret {name} is there that aranya did not make; delete or rename it"
                )
            await self._kubernetes.delete(SECRETS, key.namespace, name, uid=uid_of(old))
        await self._kubernetes.create(SECRETS, key.namespace, body)

    async def _answered(self, key: DeviceKey, pending: PendingJoin) -> bool:
        if pending.key:
            return True
        try:
            secret = await self._kubernetes.get(SECRETS, key.namespace, join_secret_name(key.name))
        except NotFound:
            return False
        return _nonce_of(secret) == pending.nonce

    async def _take_annotation(self, key: DeviceKey, nonce: str) -> None:
        path = "/metadata/annotations/" + JOIN_ANNOTATION.replace("~", "~0").replace("/", "~1")
        steps: Sequence[Object] = [
            {"op": "test", "path": path, "value": nonce},
            {"op": "remove", "path": path},
        ]
        try:
            await self._kubernetes.patch(EDGEDEVICES, key.namespace, key.name, steps, kind=Patch.JSON)
        except NotFound:
            pass
        except ApiError as error:
            # The test failed: another nonce is there by now, or none; the watch will tell.
            if error.code not in (409, 422):
                raise

    async def _void(self, key: DeviceKey, uid: str, pending: PendingJoin) -> None:
        def drop(record: Record) -> Record:
            return without_join(record) if record.join == pending else record

        await self._records.update(key, uid, drop)
        await self._delete_secret(key, pending)

    async def _delete_secret(self, key: DeviceKey, pending: PendingJoin) -> None:
        name = join_secret_name(key.name)
        with suppress(NotFound, Conflict):
            secret = await self._kubernetes.get(SECRETS, key.namespace, name)
            if _nonce_of(secret) == pending.nonce:
                await self._kubernetes.delete(SECRETS, key.namespace, name, uid=uid_of(secret))

    # ---- using it ----------------------------------------------------------------------

    async def _redeem(self, key: DeviceKey, secret: bytes, request: bytes) -> bytes:
        edge_device = self._lookup(key)
        uid = uid_of(edge_device) if edge_device is not None else ""
        public_key = _requested(request)
        used_key = key_hash(public_key)
        digest = _digest(secret)
        before: list[tuple[str, ...]] = []

        def bind(record: Record) -> Record:
            pending = record.join
            # Compared even where nothing is pending, so that time tells nothing either.
            expected = pending.digest if pending is not None else _digest(b"")
            right = hmac.compare_digest(expected, digest)
            if pending is None or not uid or not right or self._clock.seconds() >= pending.expires:
                raise JoinDenied(
                    "the join token is not valid or has expired; make a new one with: "
                    f"kubectl aranya join {key.name} -n {key.namespace}"
                )
            self._living(DeviceIdentity(key, uid))
            if pending.key and pending.key != used_key:
                raise JoinDenied("the join token was used already, by another key; make a new one")
            before.append(record.keys)
            # The same key asking again must not take back a renewal that came between.
            keys = record.keys if used_key in record.keys else (used_key,)
            return replace(record, keys=keys, join=replace(pending, key=used_key))

        record = await self._records.update(key, uid, bind)
        if before[-1] and used_key not in before[-1]:
            self._rejoined(key)
        if record.join is not None:
            await self._delete_secret(key, record.join)
        self._living(DeviceIdentity(key, uid))
        self._log.info("{device} joined", device=str(key))
        return self._sign(public_key, DeviceIdentity(key, uid))

    def _living(self, identity: DeviceIdentity) -> None:
        edge_device = self._lookup(identity.key)
        if edge_device is None or uid_of(edge_device) != identity.uid:
            raise JoinDenied(f"there is no EdgeDevice {identity.key} of this identity any more")
        if edge_device["metadata"].get("deletionTimestamp"):
            raise JoinDenied(f"EdgeDevice {identity.key} is being deleted")
        if is_banned(edge_device):
            raise JoinDenied(f"EdgeDevice {identity.key} is banned")

    def _sign(self, public_key: ec.EllipticCurvePublicKey, identity: DeviceIdentity) -> bytes:
        return self._authority.sign_device(public_key, identity, moment(self._clock.seconds()))


class Failures:
    """How many failed joins each address had of late; bounded."""

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._counts: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def may_try(self, address: str) -> bool:
        """Whether this address may try again now."""
        return self._count(address) < FAILURES_ALLOWED

    def failed(self, address: str) -> None:
        """One more failure."""
        self._counts[address] = (self._count(address) + 1, self._clock.seconds())
        self._counts.move_to_end(address)
        while len(self._counts) > _ADDRESSES_REMEMBERED:
            self._counts.popitem(last=False)

    def _count(self, address: str) -> float:
        count, since = self._counts.get(address, (0.0, 0.0))
        return max(0.0, count - (self._clock.seconds() - since) / FAILURE_FORGOTTEN)


class Renewals:
    """When each device last asked for another certificate, and for which key; forgotten with time."""

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._last: OrderedDict[DeviceIdentity, tuple[float, str]] = OrderedDict()

    def __len__(self) -> int:
        """How many devices are remembered."""
        return len(self._last)

    def may_begin(self, device: DeviceIdentity, wanted: str) -> bool:
        """Whether this device may have this key certified now."""
        self._forget()
        if device not in self._last:
            return True
        since, key = self._last[device]
        return key == wanted and self._clock.seconds() - since >= REPEAT_PAUSE

    def begun(self, device: DeviceIdentity, wanted: str) -> None:
        """This key is about to be certified, which counts whether it works or not."""
        self._last[device] = (self._clock.seconds(), wanted)
        self._last.move_to_end(device)

    def _forget(self) -> None:
        while self._last:
            device, (since, _) = next(iter(self._last.items()))
            if self._clock.seconds() - since < RENEWAL_PAUSE:
                return
            del self._last[device]


def join_command(token: str) -> str:
    """The one line to type on the device."""
    return f"twistd -n --pidfile= arhat --join {token}"


def is_banned(edge_device: Object) -> bool:
    """Whether the EdgeDevice's spec bans its device."""
    return bool((edge_device.get("spec") or {}).get("banned"))


def _requested(request: bytes) -> ec.EllipticCurvePublicKey:
    try:
        return requested_key(request)
    except RequestUnusable as error:
        raise JoinDenied(str(error)) from None


def _digest(secret: bytes) -> str:
    return hashlib.sha256(secret).hexdigest()


def _key_of(edge_device: Object) -> DeviceKey:
    metadata = edge_device["metadata"]
    return DeviceKey(metadata["namespace"], metadata["name"])


def _nonce_of(secret: Object) -> str:
    return str((secret["metadata"].get("annotations") or {}).get(JOIN_ANNOTATION) or "")


def _owners(found: Object) -> set[str]:
    return {str(owner.get("uid")) for owner in found["metadata"].get("ownerReferences") or []}
