"""ECDSA P-256 keys, and the pairs of certificate and key that TLS wants.

One curve everywhere: every TLS stack of the last ten years speaks it, keys are
made in a millisecond, and a handshake costs little on a small device.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

Key = ec.EllipticCurvePrivateKey


class PairUnusable(Exception):
    """A certificate and key cannot be used, and why in one line."""


def new_key() -> Key:
    """A fresh private key."""
    return ec.generate_private_key(ec.SECP256R1())


def key_to_pem(key: Key) -> bytes:
    """The key as unencrypted PKCS #8, which every TLS library reads."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def key_hash(public_key: PublicKeyTypes) -> str:
    """SHA-256 of the public key (its SubjectPublicKeyInfo) in hex: the name of a key."""
    encoded = public_key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(encoded).hexdigest()


@dataclass(frozen=True, slots=True)
class KeyPair:
    """A certificate chain (leaf first) and its private key, both PEM."""

    chain: bytes
    private_key: bytes = field(repr=False)

    def parse(self) -> tuple[list[x509.Certificate], Key | rsa.RSAPrivateKey]:
        """The chain and the key, checked to belong together; raises ``PairUnusable``."""
        try:
            chain = x509.load_pem_x509_certificates(self.chain)
        except ValueError:
            raise PairUnusable("the certificate is not PEM") from None
        try:
            key = load_pem_private_key(self.private_key, None)
        except (ValueError, TypeError, UnsupportedAlgorithm):
            raise PairUnusable("the private key is not an unencrypted PEM key") from None
        if not isinstance(key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey):
            raise PairUnusable("the private key is neither ECDSA nor RSA")
        if key_hash(chain[0].public_key()) != key_hash(key.public_key()):
            raise PairUnusable("the private key does not belong to the certificate")
        return chain, key
