"""Serving certificates for kubelet endpoints, signed by the cluster itself.

kube-apiserver trusts its own ``kubernetes.io/kubelet-serving`` signer. Nobody
approves such a request by default, so aranya approves what it asked for itself.
One certificate with this process's addresses serves any number of Nodes: only chain
and alternative names are checked when the API server dials.

The request object is deleted afterwards, issued or not; the controller-manager would
otherwise keep it for an hour, and 500 devices would keep 500 of them.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime

from cryptography import x509
from cryptography.x509.oid import NameOID
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater

from aranya.certs.keys import KeyPair, PairUnusable, key_to_pem, new_key
from aranya.certs.requests import signing_request
from aranya.certs.verification import moment
from aranya.interfaces import Kubernetes, Object
from aranya.kube.errors import ApiError, Conflict, KubeError, NotFound
from aranya.kube.objects import CSRS, new_object, rfc3339

SIGNER = "kubernetes.io/kubelet-serving"
#: All three, always: 1.20 demands them, later releases take them.
USAGES = ("digital signature", "key encipherment", "server auth")
#: Seconds between looks at a pending request: first, factor, most.
_FIRST_LOOK, _SLOWER, _SLOWEST = 0.25, 1.5, 3.0


class NotIssued(Exception):
    """The cluster did not issue a certificate, and why in one line."""


@dataclass(frozen=True, slots=True)
class SubjectParts:
    """What ``spec.node.cert`` of an EdgeDevice adds to the subject."""

    org_unit: str = ""
    country: str = ""
    state: str = ""
    locality: str = ""

    def attributes(self) -> list[tuple[x509.ObjectIdentifier, str]]:
        """As parts of a name, in the usual order."""
        return [
            (NameOID.COUNTRY_NAME, self.country),
            (NameOID.STATE_OR_PROVINCE_NAME, self.state),
            (NameOID.LOCALITY_NAME, self.locality),
            (NameOID.ORGANIZATIONAL_UNIT_NAME, self.org_unit),
        ]


def serving_request(
    node_name: str, hosts: Iterable[str], parts: SubjectParts | None = None
) -> tuple[bytes, bytes]:
    """A new private key (PEM) and the request (PEM) for it; raises ``NotIssued`` for a bad subject."""
    key = new_key()
    try:
        request = signing_request(
            key,
            f"system:node:{node_name}",
            organization="system:nodes",
            hosts=hosts,
            subject=(parts or SubjectParts()).attributes(),
        )
    except ValueError as error:
        raise NotIssued(f"the certificate's subject is not possible: {error}") from None
    return key_to_pem(key), request


def request_object(node_name: str, request: bytes) -> Object:
    """The CertificateSigningRequest for ``request``, under a name that no other request has."""
    digest = hashlib.sha256(request).hexdigest()[:16]
    return new_object(
        CSRS,
        {"name": f"aranya-{node_name}-{digest}"},
        spec={
            "request": base64.b64encode(request).decode("ascii"),
            "signerName": SIGNER,
            "usages": list(USAGES),
        },
    )


def approved(found: Object, now: datetime) -> Object:
    """The request object with aranya's approval in it."""
    condition = {
        "type": "Approved",
        "status": "True",
        "reason": "AranyaApproved",
        "message": "aranya asked for this certificate itself",
        "lastUpdateTime": rfc3339(now),
    }
    status = dict(found.get("status") or {})
    others = [one for one in status.get("conditions") or [] if one.get("type") != "Approved"]
    status["conditions"] = [*others, condition]
    return {**found, "status": status}


def issued(found: Object) -> bytes | None:
    """The chain (PEM) if there is one yet; raises ``NotIssued`` when there never will be."""
    status = found.get("status") or {}
    if status.get("certificate"):
        return base64.b64decode(status["certificate"])
    for condition in status.get("conditions") or []:
        if condition.get("type") in ("Denied", "Failed"):
            message = condition.get("message") or condition.get("reason") or "no reason given"
            raise NotIssued(f"the request was {condition['type'].lower()}: {message}")
    return None


async def approve(kubernetes: Kubernetes, found: Object, now: datetime) -> None:
    """Approve the request; once more from its newest state if it changed meanwhile."""
    name = found["metadata"]["name"]
    try:
        await kubernetes.replace(CSRS, None, name, approved(found, now), sub="approval")
    except Conflict:
        found = await kubernetes.get(CSRS, None, name)
        await kubernetes.replace(CSRS, None, name, approved(found, now), sub="approval")


async def issue_serving_certificate(
    kubernetes: Kubernetes,
    node_name: str,
    addresses: Iterable[str],
    clock: IReactorTime,
    *,
    parts: SubjectParts | None = None,
    timeout: float = 60.0,
) -> KeyPair:
    """Ask, approve, wait; raises ``NotIssued`` or ``KubeError``. Cancellable."""
    key, request = serving_request(node_name, addresses, parts)
    body = request_object(node_name, request)
    name = str(body["metadata"]["name"])
    found = await kubernetes.create(CSRS, None, body)
    try:
        await approve(kubernetes, found, moment(clock.seconds()))
        chain = await _wait(kubernetes, name, clock, timeout)
    finally:
        # The controller-manager sweeps what stays behind.
        with suppress(KubeError):
            await kubernetes.delete(CSRS, None, name)
    pair = KeyPair(chain, key)
    try:
        pair.parse()
    except PairUnusable as error:
        raise NotIssued(f"the signer answered with something unusable: {error}") from None
    return pair


async def _wait(kubernetes: Kubernetes, name: str, clock: IReactorTime, timeout: float) -> bytes:
    deadline = clock.seconds() + timeout
    pause = _FIRST_LOOK
    trouble = "is the controller-manager running, with a signer for kubernetes.io/kubelet-serving?"
    while True:
        try:
            chain = issued(await kubernetes.get(CSRS, None, name))
        except NotFound:
            raise NotIssued("somebody deleted the certificate request") from None
        except ApiError as error:
            if error.code < 500 and error.code != 429:
                raise
            trouble = str(error)
            chain = None
        if chain is not None:
            return chain
        left = deadline - clock.seconds()
        if left <= 0:
            raise NotIssued(f"no certificate within {timeout:.0f} s; {trouble}")
        await deferLater(clock, min(pause, left), lambda: None)
        pause = min(pause * _SLOWER, _SLOWEST)
