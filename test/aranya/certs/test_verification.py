"""Tests of ``aranya.certs.verification`` and ``aranya.certs.contexts``: two TLS ends joined in memory."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from OpenSSL import SSL
from twisted.trial.unittest import SynchronousTestCase

from aranya.certs.authority import Authority, new_authority
from aranya.certs.contexts import ServerContext
from aranya.certs.keys import KeyPair, PairUnusable, key_to_pem, new_key
from aranya.certs.verification import (
    CertificateRefused,
    ClientIdentity,
    NoCertificate,
    client_identity,
    verified_certificate,
)
from aranya.names import DeviceIdentity, DeviceKey

NOW = datetime(2030, 1, 1, tzinfo=UTC)
IDENTITY = DeviceIdentity(DeviceKey("edge", "pump"), "uid")


def server_pair(authority: Authority) -> KeyPair:
    """A certificate for a server."""
    key = new_key()
    return KeyPair(authority.sign_server(key.public_key(), ["localhost"], NOW), key_to_pem(key))


class Transport:
    """What the verification asks of a TLS transport."""

    def __init__(self, connection: SSL.Connection) -> None:
        self._connection = connection

    def getHandle(self) -> SSL.Connection:
        """The OpenSSL connection."""
        return self._connection


def shake_hands(context: ServerContext, client_pair: KeyPair | None) -> tuple[SSL.Connection, SSL.Connection]:
    """Both ends of a finished handshake: server, client."""
    client_context: Any = SSL.Context(SSL.TLS_METHOD)
    if client_pair is not None:
        chain, key = client_pair.parse()
        client_context.use_certificate(chain[0])
        for other in chain[1:]:
            client_context.add_extra_chain_cert(other)
        client_context.use_privatekey(key)
    client = SSL.Connection(client_context, None)
    client.set_connect_state()
    server = context.serverConnectionForTLS(None)  # type: ignore[arg-type]
    server.set_accept_state()
    for _ in range(6):
        for one, other in ((client, server), (server, client)):
            try:
                one.do_handshake()
            except SSL.WantReadError:
                pass
            try:
                other.bio_write(one.bio_read(1 << 16))
            except SSL.WantReadError:
                pass
    return server, client


class VerificationTests(SynchronousTestCase):
    """A client certificate counts only if an authority of the bundle stands behind it, now."""

    def setUp(self) -> None:
        self.authority = new_authority(NOW)
        self.context = ServerContext(server_pair(self.authority))

    def transport(self, client_pair: KeyPair | None) -> Transport:
        """The server's transport after a handshake with this client."""
        return Transport(shake_hands(self.context, client_pair)[0])

    def device_pair(self, authority: Authority | None = None) -> KeyPair:
        """A device's certificate."""
        key = new_key()
        chain = (authority or self.authority).sign_device(key.public_key(), IDENTITY, NOW)
        return KeyPair(chain, key_to_pem(key))

    def refusal(self, client_pair: KeyPair | None, now: datetime = NOW, bundle: bytes | None = None) -> str:
        """Why the client does not count."""
        authorities = self.authority.bundle if bundle is None else bundle
        transport = self.transport(client_pair)
        return str(self.assertRaises(CertificateRefused, client_identity, transport, authorities, now))

    def test_good(self) -> None:
        """A certificate of the authority counts; common name and organisations are user and groups."""
        identity = client_identity(self.transport(self.device_pair()), self.authority.bundle, NOW)
        self.assertEqual(identity, ClientIdentity("pump", ("edge",)))

    def test_one_of_many(self) -> None:
        """Any authority of the bundle will do."""
        bundle = new_authority(NOW).bundle + self.authority.bundle
        self.assertTrue(client_identity(self.transport(self.device_pair()), bundle, NOW))

    def test_none(self) -> None:
        """A client without a certificate finishes the handshake and is told apart."""
        transport = self.transport(None)
        self.assertRaises(NoCertificate, verified_certificate, transport, self.authority.bundle, NOW)

    def test_no_tls(self) -> None:
        """A plain transport has no certificate."""
        self.assertRaises(NoCertificate, verified_certificate, object(), self.authority.bundle, NOW)

    def test_foreign(self) -> None:
        """A certificate of another authority of the same name is refused, after the handshake."""
        self.assertIn("not signed by an authority", self.refusal(self.device_pair(new_authority(NOW))))

    def test_expired(self) -> None:
        """An expired certificate is refused with its date."""
        self.assertIn("expired on 2030-04-01", self.refusal(self.device_pair(), NOW + timedelta(days=91)))

    def test_not_yet_valid(self) -> None:
        """A certificate of the future is refused with its date."""
        self.assertIn("valid only from 2029-12-31", self.refusal(self.device_pair(), NOW - timedelta(days=1)))

    def test_a_server_certificate(self) -> None:
        """A server's certificate does not make a client."""
        self.assertIn("client authentication", self.refusal(server_pair(self.authority)))

    def test_no_bundle(self) -> None:
        """With an empty or damaged bundle nobody counts."""
        self.assertTrue(self.refusal(self.device_pair(), bundle=b""))
        self.assertTrue(self.refusal(self.device_pair(), bundle=b"-----BEGIN CERTIFICATE-----\nx"))

    def test_an_intermediate_sent_along(self) -> None:
        """A chain may lead over an intermediate that the client sent."""
        middle_key = new_key()
        name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "middle")])
        root = new_authority(NOW)
        # The authority's own path length forbids intermediates, so this root is made by hand.
        root_certificate = self.sign_authority(root, root.certificate.subject, root.key.public_key())
        middle = self.sign_authority(Authority(root_certificate, root.key), name, middle_key.public_key())
        key = new_key()
        leaf = Authority(middle, middle_key).sign_device(key.public_key(), IDENTITY, NOW)
        bundle = Authority(root_certificate, root.key).bundle
        with_middle = KeyPair(leaf + Authority(middle, middle_key).bundle, key_to_pem(key))
        self.assertEqual(client_identity(self.transport(with_middle), bundle, NOW).user, "pump")
        self.assertTrue(self.refusal(KeyPair(leaf, key_to_pem(key)), bundle=bundle))

    def sign_authority(self, signer: Authority, subject: x509.Name, public_key: Any) -> x509.Certificate:
        """An authority certificate without limits to its path."""
        builder = x509.CertificateBuilder().subject_name(subject).issuer_name(signer.certificate.subject)
        return (
            builder.public_key(public_key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(NOW - timedelta(days=1))
            .not_valid_after(NOW + timedelta(days=100))
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .sign(signer.key, hashes.SHA256())
        )


class ContextTests(SynchronousTestCase):
    """The server's side of TLS."""

    def setUp(self) -> None:
        self.authority = new_authority(NOW)

    def presented(self, client: SSL.Connection) -> bytes:
        """The certificate that a client saw."""
        certificate = client.get_peer_certificate()
        assert certificate is not None
        return certificate.to_cryptography().public_bytes(Encoding.PEM)

    def test_swap(self) -> None:
        """New handshakes see the new certificate; a living connection goes on with the old."""
        old, new = server_pair(self.authority), server_pair(self.authority)
        context = ServerContext(old)
        server, client = shake_hands(context, None)
        context.swap(new)
        self.assertEqual(self.presented(shake_hands(context, None)[1]), new.chain)
        server.send(b"still here")
        client.bio_write(server.bio_read(1 << 16))
        self.assertEqual(client.recv(100), b"still here")

    def test_a_bad_swap_changes_nothing(self) -> None:
        """A pair that cannot be used is refused and the old one stays."""
        pair = server_pair(self.authority)
        context = ServerContext(pair)
        self.assertRaises(PairUnusable, context.swap, KeyPair(pair.chain, key_to_pem(new_key())))
        self.assertEqual(context.pair, pair)
        self.assertEqual(self.presented(shake_hands(context, None)[1]), pair.chain)

    def test_modern_only(self) -> None:
        """A client that speaks nothing newer than TLS 1.1 gets no connection."""
        client_context: Any = SSL.Context(SSL.TLS_METHOD)
        client_context.set_max_proto_version(SSL.TLS1_1_VERSION)
        client_context.set_cipher_list(b"ALL:@SECLEVEL=0")
        client = SSL.Connection(client_context, None)
        client.set_connect_state()
        server = ServerContext(server_pair(self.authority)).serverConnectionForTLS(None)  # type: ignore[arg-type]
        server.set_accept_state()
        self.assertRaises(SSL.WantReadError, client.do_handshake)
        server.bio_write(client.bio_read(1 << 16))
        self.assertRaises(SSL.Error, server.do_handshake)

    def test_kubelet_style(self) -> None:
        """A chain with its own authority appended is presented whole."""
        pair = server_pair(self.authority)
        context = ServerContext(KeyPair(pair.chain + self.authority.bundle, pair.private_key))
        chain = shake_hands(context, None)[1].get_peer_cert_chain()
        assert chain is not None
        self.assertEqual(len(chain), 2)
