"""Certificate authorities and certificates for tests of TLS."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from OpenSSL import SSL, crypto

from aranya.certs.keys import KeyPair, key_to_pem, new_key
from aranya.certs.requests import alternative_names


class TestAuthority:
    """Signs whatever a test needs."""

    def __init__(self, name: str = "test authority") -> None:
        self.key = new_key()
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self.certificate = self._sign(self.name, self.key, x509.BasicConstraints(True, None), [], ())

    @property
    def pem(self) -> bytes:
        """The bundle to trust."""
        return self.certificate.public_bytes(Encoding.PEM)

    def issue(
        self,
        common_name: str,
        organizations: Sequence[str] = (),
        *,
        usage: x509.ObjectIdentifier = ExtendedKeyUsageOID.CLIENT_AUTH,
        hosts: Sequence[str] = (),
        starts: timedelta = timedelta(hours=-1),
        ends: timedelta = timedelta(hours=1),
    ) -> KeyPair:
        """A certificate and its key."""
        key = new_key()
        parts = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, each) for each in organizations]
        parts.append(x509.NameAttribute(NameOID.COMMON_NAME, common_name))
        certificate = self._sign(
            x509.Name(parts), key, x509.BasicConstraints(False, None), [usage], hosts, starts, ends
        )
        return KeyPair(certificate.public_bytes(Encoding.PEM), key_to_pem(key))

    def _sign(
        self, subject, key, constraints, usages, hosts, starts=timedelta(hours=-2), ends=timedelta(hours=2)
    ):  # type: ignore[no-untyped-def]  # only for the two above
        now = datetime.now(UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self.name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + starts)
            .not_valid_after(now + ends)
            .add_extension(constraints, critical=True)
        )
        if usages:
            builder = builder.add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        if hosts:
            builder = builder.add_extension(
                x509.SubjectAlternativeName(alternative_names(hosts)), critical=False
            )
        return builder.sign(self.key, hashes.SHA256())


def client_context(pair: KeyPair | None, protocols: Sequence[bytes] = ()) -> SSL.Context:
    """A TLS client that believes every server, as kubeadm's API server does."""
    context = SSL.Context(SSL.TLS_METHOD)
    if pair is not None:
        chain, key = pair.parse()
        context.use_certificate(crypto.X509.from_cryptography(chain[0]))
        context.use_privatekey(crypto.PKey.from_cryptography_key(key))  # type: ignore[arg-type]  # an EC key
    if protocols:
        context.set_alpn_protos(list(protocols))
    return context
