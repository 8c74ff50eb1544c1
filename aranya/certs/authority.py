"""aranya's own certificate authority: it signs devices and, unless one is brought, the gateway.

Its certificate and key live in the Secret ``aranya-ca``, written once by a create
that fails if the Secret exists; whoever loses that race reads what the winner
wrote. An unusable Secret is never overwritten: every device trusts what it holds,
so replacing it is an operator's decision.

A device certificate names one EdgeDevice by namespace, name and UID in a URI,
``aranya://NAMESPACE/NAME?uid=UID``. No certificate is good for both ends of TLS.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from aranya.certs.keys import Key, KeyPair, PairUnusable, key_to_pem, new_key
from aranya.certs.requests import alternative_names
from aranya.interfaces import Kubernetes, Object
from aranya.kube.errors import AlreadyExists, NotFound
from aranya.kube.objects import SECRETS
from aranya.names import DeviceIdentity, DeviceKey

AUTHORITY_SECRET = "aranya-ca"
AUTHORITY_LIFETIME = timedelta(days=3650)
DEVICE_LIFETIME = timedelta(days=90)
SERVER_LIFETIME = timedelta(days=90)
#: Clocks differ; a certificate is valid from a little before it was signed.
BACKDATED = timedelta(minutes=5)

_SCHEME = "aranya"


class AuthorityUnusable(Exception):
    """The Secret of the authority holds nothing that can sign, and why in one line."""


@dataclass(frozen=True, slots=True)
class Authority:
    """A CA certificate with its key; signs for devices and for the gateway."""

    certificate: x509.Certificate
    key: Key

    @property
    def bundle(self) -> bytes:
        """What devices must trust, PEM."""
        return self.certificate.public_bytes(Encoding.PEM)

    def sign_device(
        self, public_key: ec.EllipticCurvePublicKey, identity: DeviceIdentity, now: datetime
    ) -> bytes:
        """A client certificate (PEM) for exactly this EdgeDevice."""
        subject = x509.Name(
            [
                x509.NameAttribute(NameOID.ORGANIZATION_NAME, identity.key.namespace),
                x509.NameAttribute(NameOID.COMMON_NAME, identity.key.name),
            ]
        )
        names = [x509.UniformResourceIdentifier(identity_uri(identity))]
        usage = ExtendedKeyUsageOID.CLIENT_AUTH
        return self._sign(public_key, subject, names, usage, now, DEVICE_LIFETIME)

    def sign_server(
        self, public_key: ec.EllipticCurvePublicKey, hosts: Iterable[str], now: datetime
    ) -> bytes:
        """A server certificate (PEM) for these addresses and names."""
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "aranya gateway")])
        names = alternative_names(hosts)
        usage = ExtendedKeyUsageOID.SERVER_AUTH
        return self._sign(public_key, subject, names, usage, now, SERVER_LIFETIME)

    def _sign(
        self,
        public_key: ec.EllipticCurvePublicKey,
        subject: x509.Name,
        names: Iterable[x509.GeneralName],
        usage: x509.ObjectIdentifier,
        now: datetime,
        lifetime: timedelta,
    ) -> bytes:
        # Nothing signed outlives its signer: a verifier would refuse it anyhow.
        end = min(now + lifetime, self.certificate.not_valid_after_utc)
        authority_key = x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key())
        certificate = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self.certificate.subject)
            .public_key(public_key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - BACKDATED)
            .not_valid_after(end)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
            .add_extension(authority_key, critical=False)
            .sign(self.key, hashes.SHA256())
        )
        return certificate.public_bytes(Encoding.PEM)


def new_authority(now: datetime) -> Authority:
    """A fresh self-signed authority."""
    key = new_key()
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "aranya device authority")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATED)
        .not_valid_after(now + AUTHORITY_LIFETIME)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return Authority(certificate, key)


async def load_authority(kubernetes: Kubernetes, namespace: str, now: datetime) -> Authority:
    """The authority kept in ``namespace``, made if there is none; raises ``AuthorityUnusable``."""
    try:
        secret = await kubernetes.get(SECRETS, namespace, AUTHORITY_SECRET)
    except NotFound:
        authority = new_authority(now)
        pair = KeyPair(authority.bundle, key_to_pem(authority.key))
        body = tls_secret(AUTHORITY_SECRET, namespace, pair)
        try:
            await kubernetes.create(SECRETS, namespace, body)
        except AlreadyExists:
            secret = await kubernetes.get(SECRETS, namespace, AUTHORITY_SECRET)
        else:
            return authority
    return authority_of(secret, now)


def authority_of(secret: Object, now: datetime) -> Authority:
    """The authority in a Secret; raises ``AuthorityUnusable`` when it cannot sign."""
    try:
        chain, key = pair_of(secret).parse()
    except PairUnusable as error:
        raise _unusable(str(error)) from None
    certificate = chain[0]
    try:
        constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    except x509.ExtensionNotFound:
        raise _unusable("the certificate is not an authority's") from None
    if not constraints.ca:
        raise _unusable("the certificate is not an authority's")
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise _unusable("the key is not an ECDSA key")
    if not certificate.not_valid_before_utc <= now < certificate.not_valid_after_utc:
        raise _unusable(
            f"valid from {certificate.not_valid_before_utc:%Y-%m-%d} "
            f"to {certificate.not_valid_after_utc:%Y-%m-%d}, not now"
        )
    return Authority(certificate, key)


def _unusable(why: str) -> AuthorityUnusable:
    return AuthorityUnusable(
        f"Secret {AUTHORITY_SECRET}: {why}; repair it, or delete it and let every device join anew"
    )


def identity_uri(identity: DeviceIdentity) -> str:
    """How a device certificate names its EdgeDevice."""
    return f"{_SCHEME}://{identity.key.namespace}/{identity.key.name}?uid={identity.uid}"


def identity_of(certificate: x509.Certificate) -> DeviceIdentity | None:
    """The EdgeDevice that a certificate names, ``None`` if it names none.

    Says nothing about whether the certificate may be believed.
    """
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return None
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    if len(uris) != 1:
        return None
    parts = urlsplit(uris[0])
    identity = DeviceIdentity(
        DeviceKey(parts.netloc, parts.path.removeprefix("/")), parts.query.removeprefix("uid=")
    )
    # Only what we would have written ourselves: no second spelling of one identity.
    if not all((identity.uid, identity.key.name, identity.key.namespace)):
        return None
    return identity if identity_uri(identity) == uris[0] else None


def tls_secret(name: str, namespace: str, pair: KeyPair) -> Object:
    """A Secret of type ``kubernetes.io/tls`` as the API server takes it."""
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": name, "namespace": namespace},
        "type": "kubernetes.io/tls",
        "data": {
            "tls.crt": base64.b64encode(pair.chain).decode("ascii"),
            "tls.key": base64.b64encode(pair.private_key).decode("ascii"),
        },
    }


def pair_of(secret: Object) -> KeyPair:
    """What a Secret of type ``kubernetes.io/tls`` holds; raises ``PairUnusable``."""
    data = secret.get("data") or {}
    try:
        return KeyPair(
            base64.b64decode(data["tls.crt"], validate=True),
            base64.b64decode(data["tls.key"], validate=True),
        )
    except (KeyError, TypeError, ValueError):
        raise PairUnusable("it lacks a readable tls.crt and tls.key") from None


def renewal_due(certificate: x509.Certificate, now: datetime) -> bool:
    """Whether two thirds of the certificate's life are over."""
    start, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    return now >= start + (end - start) * 2 / 3


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )
