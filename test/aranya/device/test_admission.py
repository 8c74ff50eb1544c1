"""Tests of ``aranya.device.admission``."""

from __future__ import annotations

from dataclasses import replace

from cryptography import x509

from aranya.certs.keys import key_hash, new_key
from aranya.device.admission import Admission, Admitted, NotAdmitted
from aranya.kube.objects import EDGEDEVICES
from aranya.names import DeviceIdentity, DeviceKey
from test.aranya.device.cluster import KEY, NOW, ClusterCase


class AdmissionTests(ClusterCase):
    """A certificate opens the door only for the device it was made for, as it is now."""

    def setUp(self) -> None:
        super().setUp()
        self.key = new_key()
        self.recorded = [key_hash(self.key.public_key())]
        self.admission = Admission(self.lookup, lambda identity: self.recorded)

    def certificate(self, identity: DeviceIdentity | None = None) -> x509.Certificate:
        """A device certificate."""
        chain = self.authority.sign_device(self.key.public_key(), identity or self.identity(), NOW)
        return x509.load_pem_x509_certificate(chain)

    def refusal(self, certificate: x509.Certificate | None = None) -> str:
        """Why the owner stays out."""
        wanted = certificate or self.certificate()
        return str(self.assertRaises(NotAdmitted, self.admission.admit, wanted))

    def test_admitted(self) -> None:
        """The live, unbanned device with the recorded key comes in, and may stay."""
        admitted = self.admission.admit(self.certificate())
        self.assertEqual(admitted, Admitted(self.identity(), self.recorded[0]))
        self.admission.check(admitted)

    def test_no_device_certificate(self) -> None:
        """A certificate of the same authority that names no device stays out."""
        chain = self.authority.sign_server(self.key.public_key(), ["h"], NOW)
        self.assertIn("names no EdgeDevice", self.refusal(x509.load_pem_x509_certificate(chain)))

    def test_unknown(self) -> None:
        """A device that no EdgeDevice stands for stays out."""
        other = replace(self.identity(), key=DeviceKey("edge", "other"))
        self.assertIn("no EdgeDevice edge/other", self.refusal(self.certificate(other)))

    def test_other_uid(self) -> None:
        """A namesake of a deleted EdgeDevice does not inherit its devices."""
        certificate = self.certificate(replace(self.identity(), uid="older"))
        self.assertIn("kubectl aranya join pump -n edge", self.refusal(certificate))

    def test_banned(self) -> None:
        """A banned device stays out, and may not stay in."""
        admitted = self.admission.admit(self.certificate())
        self.change({"spec": {"banned": True}})
        self.assertIn("banned", self.refusal())
        self.assertRaises(NotAdmitted, self.admission.check, admitted)

    def test_being_deleted(self) -> None:
        """A device whose EdgeDevice is being deleted stays out."""
        certificate = self.certificate()
        self.change({"metadata": {"finalizers": ["x/y"]}})
        self.done(self.kubernetes.delete(EDGEDEVICES, KEY.namespace, KEY.name))
        self.assertIn("no EdgeDevice", self.refusal(certificate))

    def test_unrecorded_key(self) -> None:
        """A key that is not recorded, or no more, stays out."""
        self.recorded = [key_hash(new_key().public_key())]
        self.assertIn("another machine has joined", self.refusal())
        self.recorded = []
        self.refusal()
