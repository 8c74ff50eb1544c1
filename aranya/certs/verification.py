"""Is a TLS client who its certificate says? Asked after the handshake, answered in words.

The handshake takes any client certificate or none (``contexts.py``), because a
TLS alert tells the other side nothing it could act on. So nothing here may be
skipped: a certificate counts only after ``verified_certificate`` let it pass.

As Go does for the real kubelet: every certificate of the bundle is an anchor,
self-signed or not; the chain may contain intermediates that the client sent; the
leaf must be meant for client authentication; the subject's common name is the
user and every organisation a group.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import cast

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from OpenSSL import SSL, crypto
from twisted.internet.interfaces import ITransport

#: More certificates than any honest chain has.
CHAIN_LIMIT = 10


class CertificateRefused(Exception):
    """A client certificate does not count, and why in one line."""


class NoCertificate(CertificateRefused):
    """The client presented none."""


@dataclass(frozen=True, slots=True)
class ClientIdentity:
    """Who a verified client certificate names, in the terms of Kubernetes."""

    user: str
    groups: tuple[str, ...]


def client_identity(transport: object, authorities: bytes, now: datetime) -> ClientIdentity:
    """The user and groups of the client at the other end of a TLS transport.

    ``authorities`` is a PEM bundle. Raises ``NoCertificate`` when the client
    presented none and ``CertificateRefused`` when the one presented does not count.
    """
    certificate = verified_certificate(transport, authorities, now)
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    user = str(names[0].value) if names else ""
    if not user:
        raise CertificateRefused("the client certificate has no common name")
    organizations = certificate.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)
    return ClientIdentity(user, tuple(str(part.value) for part in organizations))


def verified_certificate(transport: object, authorities: bytes, now: datetime) -> x509.Certificate:
    """The peer's certificate, if it may be believed; raises ``CertificateRefused``."""
    connection = getattr(cast(ITransport, transport), "getHandle", lambda: None)()
    leaf = connection.get_peer_certificate() if isinstance(connection, SSL.Connection) else None
    if leaf is None:
        raise NoCertificate("no client certificate was presented")
    sent = cast(SSL.Connection, connection).get_peer_cert_chain() or []
    # On the server's side OpenSSL leaves the leaf out of the chain; twice would do no harm.
    return verify_chain(leaf, sent[:CHAIN_LIMIT], authorities, now)


def verify_chain(
    leaf: crypto.X509, others: Sequence[crypto.X509], authorities: bytes, now: datetime
) -> x509.Certificate:
    """``leaf``, if ``others`` lead from it to one of the authorities; raises ``CertificateRefused``."""
    store = crypto.X509Store()
    for anchor in _anchors(authorities):
        store.add_cert(anchor)
    store.set_time(now)
    store.set_flags(crypto.X509StoreFlags.PARTIAL_CHAIN)
    try:
        crypto.X509StoreContext(store, leaf, list(others)).verify_certificate()
    except crypto.X509StoreContextError as error:
        certificate = error.certificate.to_cryptography()
        raise CertificateRefused(_explain(str(error), certificate, now)) from None
    certificate = leaf.to_cryptography()
    if not _for_clients(certificate):
        raise CertificateRefused("the certificate is not meant for client authentication")
    return certificate


def _explain(error: str, certificate: x509.Certificate, now: datetime) -> str:
    # Of a device's troubles a wrong clock is the commonest, and the hardest to guess.
    if now >= certificate.not_valid_after_utc:
        return f"the certificate expired on {certificate.not_valid_after_utc:%Y-%m-%d %H:%M} UTC"
    if now < certificate.not_valid_before_utc:
        return f"the certificate is valid only from {certificate.not_valid_before_utc:%Y-%m-%d %H:%M} UTC"
    return f"the certificate is not signed by an authority known here ({error})"


def _for_clients(certificate: x509.Certificate) -> bool:
    try:
        usages = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        return True
    except ValueError:
        return False
    return bool({ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE} & set(usages))


@lru_cache(maxsize=8)
def _anchors(authorities: bytes) -> tuple[crypto.X509, ...]:
    try:
        certificates = x509.load_pem_x509_certificates(authorities)
    except ValueError:
        return ()
    return tuple(crypto.X509.from_cryptography(certificate) for certificate in certificates)


def moment(seconds: float) -> datetime:
    """A clock's seconds as an aware time."""
    return datetime.fromtimestamp(seconds, UTC)
