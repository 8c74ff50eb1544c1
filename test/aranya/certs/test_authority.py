"""Tests of ``aranya.certs.authority``."""

from __future__ import annotations

import base64
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from aranya.certs.authority import (
    AUTHORITY_SECRET,
    AuthorityUnusable,
    authority_of,
    identity_of,
    identity_uri,
    load_authority,
    new_authority,
    renewal_due,
    tls_secret,
)
from aranya.certs.keys import KeyPair, key_to_pem, new_key
from aranya.kube.memory import MemoryApiServer
from aranya.kube.objects import SECRETS
from aranya.names import DeviceIdentity, DeviceKey

NOW = datetime(2030, 1, 1, tzinfo=UTC)
IDENTITY = DeviceIdentity(DeviceKey("edge", "pump-7"), "0b6b-uid")
_LABEL = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", fullmatch=True)


class SigningTests(SynchronousTestCase):
    """What the authority signs."""

    def setUp(self) -> None:
        self.authority = new_authority(NOW)

    def certificate(self, identity: DeviceIdentity = IDENTITY) -> x509.Certificate:
        """A device's certificate."""
        chain = self.authority.sign_device(new_key().public_key(), identity, NOW)
        return x509.load_pem_x509_certificate(chain)

    def usages(self, certificate: x509.Certificate) -> list[x509.ObjectIdentifier]:
        """What a certificate is good for."""
        return list(certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)

    def test_a_device_is_a_client_only(self) -> None:
        """A device certificate is for client authentication, signed by the authority, not a CA."""
        certificate = self.certificate()
        certificate.verify_directly_issued_by(self.authority.certificate)
        self.assertEqual(self.usages(certificate), [ExtendedKeyUsageOID.CLIENT_AUTH])
        constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
        self.assertFalse(constraints.ca)

    def test_the_gateway_is_a_server_only(self) -> None:
        """A server certificate is for server authentication, and names no device."""
        chain = self.authority.sign_server(new_key().public_key(), ["gw.example"], NOW)
        certificate = x509.load_pem_x509_certificate(chain)
        self.assertEqual(self.usages(certificate), [ExtendedKeyUsageOID.SERVER_AUTH])
        self.assertIsNone(identity_of(certificate))

    @given(_LABEL, _LABEL, st.uuids())
    @settings(max_examples=15, deadline=None)
    def test_identity_survives(self, namespace: str, name: str, uid: object) -> None:
        """Namespace, name and UID come back from the certificate as they went in."""
        identity = DeviceIdentity(DeviceKey(namespace, name), str(uid))
        self.assertEqual(identity_of(self.certificate(identity)), identity)

    def test_other_uris_name_nobody(self) -> None:
        """A URI that aranya would not have written is no identity."""
        for uri in (
            "aranya://edge/pump?uid=",
            "aranya://edge/?uid=1",
            "spiffe://edge/pump?uid=1",
            "aranya://edge/pump?uid=1#x",
            "ARANYA://edge/pump?uid=1",
            "aranya://edge/pump",
        ):
            names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri)])
            name = x509.Name([])
            certificate = (
                x509.CertificateBuilder(name, name, self.authority.key.public_key(), 1, NOW, NOW)
                .add_extension(names, critical=False)
                .sign(self.authority.key, self.authority.certificate.signature_hash_algorithm)
            )
            self.assertIsNone(identity_of(certificate), uri)

    def test_nothing_outlives_its_signer(self) -> None:
        """Near the authority's end a certificate ends with the authority."""
        late = self.authority.certificate.not_valid_after_utc - timedelta(days=1)
        chain = self.authority.sign_device(new_key().public_key(), IDENTITY, late)
        certificate = x509.load_pem_x509_certificate(chain)
        self.assertEqual(certificate.not_valid_after_utc, self.authority.certificate.not_valid_after_utc)

    def test_renewal_is_due_at_two_thirds(self) -> None:
        """Renewal is due after two thirds of a certificate's life, not before."""
        certificate = self.certificate()
        self.assertFalse(renewal_due(certificate, NOW + timedelta(days=59)))
        self.assertTrue(renewal_due(certificate, NOW + timedelta(days=61)))

    def test_uri(self) -> None:
        """The URI is readable."""
        self.assertEqual(identity_uri(IDENTITY), "aranya://edge/pump-7?uid=0b6b-uid")


class LoadTests(SynchronousTestCase):
    """The authority in its Secret."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.server = MemoryApiServer(self.clock)
        self.kubernetes = self.server.client()

    def test_made_once(self) -> None:
        """The second to load gets what the first made."""
        first = self.successResultOf(load_authority(self.kubernetes, "system", NOW))
        second = self.successResultOf(load_authority(self.kubernetes, "system", NOW))
        self.assertEqual(first.certificate, second.certificate)

    def test_the_loser_of_the_race_reads(self) -> None:
        """Whoever finds that somebody else created the Secret uses that one."""
        theirs = new_authority(NOW)
        pair = KeyPair(theirs.bundle, key_to_pem(theirs.key))
        body = tls_secret(AUTHORITY_SECRET, "system", pair)
        kubernetes = self.kubernetes
        true_create = kubernetes.create

        async def beaten(*arguments: object, **options: object) -> object:
            await true_create(SECRETS, "system", body)
            return await true_create(*arguments, **options)  # type: ignore[arg-type]

        self.patch(kubernetes, "create", beaten)
        ours = self.successResultOf(load_authority(kubernetes, "system", NOW))
        self.assertEqual(ours.certificate, theirs.certificate)

    def unusable(self, secret: dict[str, object], now: datetime = NOW) -> str:
        """Why a Secret holds no authority."""
        return str(self.assertRaises(AuthorityUnusable, authority_of, secret, now))

    def test_unusable_secrets(self) -> None:
        """A Secret that cannot sign is refused with a line that names it and says why."""
        authority = new_authority(NOW)
        pair = KeyPair(authority.bundle, key_to_pem(authority.key))
        good = tls_secret(AUTHORITY_SECRET, "system", pair)
        self.assertIn("tls.crt", self.unusable({"data": {}}))
        garbage = {"tls.crt": base64.b64encode(b"x").decode(), "tls.key": good["data"]["tls.key"]}
        self.assertIn("not PEM", self.unusable({"data": garbage}))
        self.assertIn("not now", self.unusable(good, NOW + timedelta(days=3651)))
        self.assertIn("not now", self.unusable(good, NOW - timedelta(days=1)))
        key = new_key()
        leaf = KeyPair(authority.sign_server(key.public_key(), ["h"], NOW), key_to_pem(key))
        self.assertIn("not an authority", self.unusable(tls_secret("x", "y", leaf)))
        self.assertIn(AUTHORITY_SECRET, self.unusable({"data": None}))

    def test_an_unusable_secret_stays(self) -> None:
        """An unusable Secret is never overwritten."""
        body = tls_secret(AUTHORITY_SECRET, "system", KeyPair(b"x", b"y"))
        self.successResultOf(self.kubernetes.create(SECRETS, "system", body))
        self.failureResultOf(load_authority(self.kubernetes, "system", NOW), AuthorityUnusable)
        stored = self.server.stored(SECRETS, "system", AUTHORITY_SECRET)
        assert stored is not None
        self.assertEqual(stored["data"], body["data"])
