"""Tests of ``aranya.certs.gateway``."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from aranya.certs.authority import new_authority
from aranya.certs.contexts import ServerContext
from aranya.certs.gateway import (
    GATEWAY_SECRET,
    LOOK_AGAIN,
    CertificateFiles,
    GatewayCertificate,
    OwnCertificate,
    hosts_of_urls,
    trusted_by_devices,
)
from aranya.certs.keys import KeyPair, PairUnusable, key_to_pem, new_key
from aranya.certs.requests import hosts_of
from aranya.kube.errors import ApiError
from aranya.kube.memory import MemoryApiServer
from aranya.kube.objects import SECRETS
from tether.join import SYSTEM_TRUST

NOW = datetime(2030, 1, 1, tzinfo=UTC)


class OwnCertificateTests(SynchronousTestCase):
    """The certificate that aranya signs for its gateway."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.advance(NOW.timestamp())
        self.server = MemoryApiServer(self.clock)
        self.kubernetes = self.server.client()
        self.authority = new_authority(NOW)

    def load(self, hosts: tuple[str, ...] = ("gw.example",), now: datetime = NOW) -> KeyPair:
        """The certificate for these hosts at this time."""
        source = OwnCertificate(self.kubernetes, "system", self.authority, hosts)
        return self.successResultOf(source.load(now))

    def test_signed(self) -> None:
        """It is for the hosts that devices dial, and for this machine itself."""
        certificate = self.load().parse()[0][0]
        self.assertEqual(hosts_of(certificate), {"gw.example", "localhost", "127.0.0.1", "::1"})

    def test_kept(self) -> None:
        """It is the same after a restart."""
        self.assertEqual(self.load(), self.load())

    def test_other_hosts(self) -> None:
        """It is signed anew for a host that it lacks."""
        self.assertNotEqual(self.load(), self.load(("10.0.0.1",)))

    def test_old(self) -> None:
        """It is signed anew at two thirds of its life, and kept then."""
        later = NOW + timedelta(days=61)
        new = self.load(now=later)
        self.assertEqual(self.load(now=later), new)
        self.assertNotEqual(self.load(now=later + timedelta(days=61)), new)

    def test_other_authority(self) -> None:
        """It is signed anew when the authority is another one."""
        old = self.load()
        self.authority = new_authority(NOW)
        self.assertNotEqual(self.load(), old)

    def test_damaged(self) -> None:
        """A damaged Secret is replaced."""
        self.load()
        stored = self.server.stored(SECRETS, "system", GATEWAY_SECRET)
        assert stored is not None
        stored["data"] = {"tls.crt": "eA==", "tls.key": "eA=="}
        self.successResultOf(self.kubernetes.replace(SECRETS, "system", GATEWAY_SECRET, stored))
        self.load().parse()

    def test_hosts_of_urls(self) -> None:
        """A URL's host is what stands in the certificate."""
        urls = ["wss://gw.example:8443", "wss://[::1]:1", "wss://10.0.0.1"]
        self.assertEqual(hosts_of_urls(urls), ["gw.example", "::1", "10.0.0.1"])

    def test_kept_current(self) -> None:
        """A running gateway swaps its certificate when it is due; trouble leaves the old one."""
        source = OwnCertificate(self.kubernetes, "system", self.authority, ["gw.example"])
        context = ServerContext(self.load())
        first = context.pair
        changed: list[KeyPair] = []
        service = GatewayCertificate(source, context, self.clock, changed.append)
        service.startService()
        self.clock.advance(LOOK_AGAIN)
        self.assertEqual(context.pair, first)
        self.server.fail_next()
        self.clock.advance(timedelta(days=61).total_seconds())
        self.assertEqual(context.pair, first)
        self.clock.advance(LOOK_AGAIN)
        self.assertNotEqual(context.pair, first)
        self.assertEqual(changed, [context.pair])
        service.stopService()
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.flushLoggedErrors(ApiError)


class BroughtCertificateTests(SynchronousTestCase):
    """A certificate brought as files."""

    def setUp(self) -> None:
        self.authority = new_authority(NOW)
        self.files = (Path(self.mktemp()), Path(self.mktemp()))
        self.source = CertificateFiles(*self.files)
        self.clock = Clock()
        self.clock.advance(NOW.timestamp())

    def write(self) -> KeyPair:
        """Bring a new certificate."""
        key = new_key()
        pair = KeyPair(self.authority.sign_server(key.public_key(), ["gw"], NOW), key_to_pem(key))
        self.files[0].write_bytes(pair.chain)
        self.files[1].write_bytes(pair.private_key)
        return pair

    def test_read(self) -> None:
        """The files are the certificate."""
        pair = self.write()
        self.assertEqual(self.source.read(), pair)

    def test_missing(self) -> None:
        """A missing file is one line that names it."""
        error = self.assertRaises(PairUnusable, self.source.read)
        self.assertIn(str(self.files[0]), str(error))

    def test_wrong(self) -> None:
        """A key of another certificate is one line that names the files."""
        self.write()
        self.files[1].write_bytes(key_to_pem(new_key()))
        self.assertIn(str(self.files[1]), str(self.assertRaises(PairUnusable, self.source.read)))

    def test_read_again(self) -> None:
        """Changed files are used from the next handshake on; half-written ones are not."""
        context = ServerContext(self.write())
        old = context.pair
        service = GatewayCertificate(self.source, context, self.clock)
        service.startService()
        self.addCleanup(service.stopService)
        self.files[0].write_bytes(b"half a certif")
        self.clock.advance(LOOK_AGAIN)
        self.assertEqual(context.pair, old)
        new = self.write()
        self.clock.advance(LOOK_AGAIN)
        self.assertEqual(context.pair, new)

    def test_whom_devices_trust(self) -> None:
        """Devices pin our authority or a brought anchor; for a public authority they ask their system."""
        self.assertEqual(trusted_by_devices(self.authority, None), self.authority.bundle)
        public = new_authority(NOW)
        key = new_key()
        leaf = public.sign_server(key.public_key(), ["gw"], NOW)
        brought = KeyPair(leaf, key_to_pem(key))
        self.assertEqual(trusted_by_devices(self.authority, brought), SYSTEM_TRUST)
        with_anchor = KeyPair(leaf + public.bundle, key_to_pem(key))
        bundle = x509.load_pem_x509_certificates(trusted_by_devices(self.authority, with_anchor))
        self.assertIn(public.certificate, bundle)
