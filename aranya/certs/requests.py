"""Certificate signing requests: made for kubelet serving, judged when a device sends one.

Of a device's request only the public key counts. Its names are ignored: who it is
is decided by the token or the link that it came with.
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import ip_address

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from aranya.certs.keys import Key

REQUEST_LIMIT = 16 * 1024
#: RFC 5280 allows a common name of 64 characters, no more.
COMMON_NAME_LIMIT = 64


class RequestUnusable(Exception):
    """A signing request cannot be signed, and why in one line."""


def alternative_names(hosts: Iterable[str]) -> list[x509.GeneralName]:
    """Addresses as IP names, everything else as DNS names, in order, each once."""
    names: list[x509.GeneralName] = []
    for host in dict.fromkeys(hosts):
        try:
            names.append(x509.IPAddress(ip_address(host)))
        except ValueError:
            names.append(x509.DNSName(host))
    return names


def spelled(hosts: Iterable[str]) -> set[str]:
    """The hosts as ``hosts_of`` spells them: one spelling for each address."""
    result = set()
    for host in hosts:
        try:
            result.add(str(ip_address(host)))
        except ValueError:
            result.add(host)
    return result


def hosts_of(certificate: x509.Certificate) -> frozenset[str]:
    """The addresses and DNS names that a certificate is good for."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return frozenset()
    addresses = {str(address) for address in names.get_values_for_type(x509.IPAddress)}
    return frozenset(addresses | set(names.get_values_for_type(x509.DNSName)))


def signing_request(
    key: Key,
    common_name: str,
    *,
    organization: str = "",
    hosts: Iterable[str] = (),
    subject: Iterable[tuple[x509.ObjectIdentifier, str]] = (),
) -> bytes:
    """A PEM request for ``key``; ``subject`` adds further parts to the name."""
    parts = [x509.NameAttribute(oid, value) for oid, value in subject if value]
    if organization:
        parts.append(x509.NameAttribute(NameOID.ORGANIZATION_NAME, organization))
    # The signer compares nothing behind the prefix; a name beyond the limit could not be encoded.
    parts.append(x509.NameAttribute(NameOID.COMMON_NAME, common_name[:COMMON_NAME_LIMIT]))
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name(parts))
    names = alternative_names(hosts)
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)


def requested_key(request: bytes) -> ec.EllipticCurvePublicKey:
    """The public key of a device's request, whose signature proves that the device holds it.

    Raises ``RequestUnusable``.
    """
    if len(request) > REQUEST_LIMIT:
        raise RequestUnusable("the certificate request is too long")
    try:
        parsed = x509.load_pem_x509_csr(request)
        public_key = parsed.public_key()
        signed = parsed.is_signature_valid
    except (ValueError, TypeError, UnsupportedAlgorithm, InvalidSignature):
        raise RequestUnusable("the certificate request cannot be read") from None
    if not isinstance(public_key, ec.EllipticCurvePublicKey) or not isinstance(
        public_key.curve, ec.SECP256R1
    ):
        raise RequestUnusable("the certificate request must be for an ECDSA P-256 key")
    if not signed:
        raise RequestUnusable("the certificate request is not signed by its own key")
    return public_key
