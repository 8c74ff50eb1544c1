"""Tests of ``aranya.certs.keys`` and ``aranya.certs.requests``."""

from __future__ import annotations

from datetime import UTC, datetime

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from aranya.certs.authority import new_authority
from aranya.certs.keys import KeyPair, PairUnusable, key_hash, key_to_pem, new_key
from aranya.certs.requests import (
    REQUEST_LIMIT,
    RequestUnusable,
    hosts_of,
    requested_key,
    signing_request,
    spelled,
)

NOW = datetime(2030, 1, 1, tzinfo=UTC)


class KeyPairTests(SynchronousTestCase):
    """A certificate and a key are a pair only if they belong together."""

    def setUp(self) -> None:
        self.authority = new_authority(NOW)

    def test_a_pair_parses(self) -> None:
        """A chain and its key come back as objects."""
        chain, key = KeyPair(self.authority.bundle, key_to_pem(self.authority.key)).parse()
        self.assertEqual(chain, [self.authority.certificate])
        self.assertEqual(key_hash(key.public_key()), key_hash(self.authority.key.public_key()))

    def test_foreign_key(self) -> None:
        """A key of another certificate is refused."""
        pair = KeyPair(self.authority.bundle, key_to_pem(new_key()))
        error = self.assertRaises(PairUnusable, pair.parse)
        self.assertIn("does not belong", str(error))

    def test_garbage(self) -> None:
        """What is not PEM is refused with a line that says which of the two it was."""
        good = key_to_pem(self.authority.key)
        self.assertIn("certificate", str(self.assertRaises(PairUnusable, KeyPair(b"x", good).parse)))
        bad_key = KeyPair(self.authority.bundle, b"x")
        self.assertIn("private key", str(self.assertRaises(PairUnusable, bad_key.parse)))

    def test_the_key_is_not_shown(self) -> None:
        """The ``repr`` of a pair does not show its private key."""
        pair = KeyPair(self.authority.bundle, key_to_pem(self.authority.key))
        self.assertNotIn("PRIVATE", repr(pair))


class RequestTests(SynchronousTestCase):
    """Signing requests, made and judged."""

    def test_made_and_read(self) -> None:
        """The key of a request is the key it was made with."""
        key = new_key()
        found = requested_key(signing_request(key, "x", hosts=["10.0.0.1", "a.example"]))
        self.assertEqual(key_hash(found), key_hash(key.public_key()))

    def test_hosts(self) -> None:
        """Addresses become IP names and the rest DNS names, each once."""
        request = signing_request(new_key(), "x", hosts=["10.0.0.1", "a.example", "10.0.0.1"])
        names = x509.load_pem_x509_csr(request).extensions.get_extension_for_class(
            x509.SubjectAlternativeName
        )
        self.assertEqual(len(list(names.value)), 2)

    def test_long_name(self) -> None:
        """A common name longer than X.509 allows is cut, not an error."""
        request = x509.load_pem_x509_csr(signing_request(new_key(), "system:node:" + "n" * 63))
        name = request.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value
        self.assertEqual(len(name), 64)

    def test_other_keys_are_refused(self) -> None:
        """Only ECDSA P-256 is signed."""
        for key in (rsa.generate_private_key(65537, 2048), ec.generate_private_key(ec.SECP384R1())):
            builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
            request = builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)
            self.assertRaises(RequestUnusable, requested_key, request)

    def test_broken_signature(self) -> None:
        """A request for somebody else's key, without that key's signature, is refused."""
        parsed = x509.load_pem_x509_csr(signing_request(new_key(), "x"))
        other = x509.load_pem_x509_csr(signing_request(new_key(), "x"))
        encoded = parsed.public_bytes(Encoding.DER)
        mixed = encoded.replace(parsed.signature, other.signature)
        if len(parsed.signature) != len(other.signature):
            # Lengths of two ECDSA signatures differ now and then; break one instead.
            mixed = encoded[:-1] + bytes([encoded[-1] ^ 1])
        request = x509.load_der_x509_csr(mixed).public_bytes(Encoding.PEM)
        error = self.assertRaises(RequestUnusable, requested_key, request)
        self.assertIn("not signed", str(error))

    def test_too_long(self) -> None:
        """A huge request is refused unread."""
        self.assertRaises(RequestUnusable, requested_key, b"x" * (REQUEST_LIMIT + 1))

    @given(st.binary(max_size=400))
    @settings(max_examples=60, deadline=None)
    def test_garbage(self, content: bytes) -> None:
        """Whatever is not a request is refused, never an unforeseen error."""
        self.assertRaises(RequestUnusable, requested_key, content)
        wrapped = b"-----BEGIN CERTIFICATE REQUEST-----\n%b\n-----END CERTIFICATE REQUEST-----\n"
        self.assertRaises(RequestUnusable, requested_key, wrapped % content.hex().encode())

    def test_one_spelling(self) -> None:
        """Addresses compare equal whatever their spelling."""
        authority = new_authority(NOW)
        chain = authority.sign_server(new_key().public_key(), ["0:0::1", "h"], NOW)
        self.assertEqual(hosts_of(x509.load_pem_x509_certificate(chain)), spelled(["::1", "h"]))
