"""The serving certificate of a Node, from the request to its renewal."""

from __future__ import annotations

from aranya.controller.controller import ControllerConfig
from aranya.kube.objects import EDGEDEVICES, NODES, SECRETS
from test.aranya.controller.harness import KEY, Case, World


class CertificateTests(Case):
    """Serving certificates in their Secrets."""

    def test_kept(self) -> None:
        """A restart uses the certificate that is there, at the same port if it can."""
        world = self.lead()
        port = world.endpoints.port(KEY)
        world.restart()
        self.assertEqual(1, len(world.signer.asked))
        self.assertEqual(port, world.endpoints.port(KEY))

    def test_covers_all_replicas(self) -> None:
        """A certificate covers every replica, so a failover needs none."""
        world = self.lead()
        self.assertEqual(("10.0.0.1", "10.0.0.2"), world.signer.asked[0][1])
        world.config = ControllerConfig("aranya", "edge", "10.0.0.2", ("10.0.0.1",))
        world.restart()
        self.assertEqual(1, len(world.signer.asked))
        self.assertEqual("10.0.0.2", world.node["status"]["addresses"][0]["address"])

    def test_other_address(self) -> None:
        """An address that the certificate lacks is published only with a new certificate."""
        world = self.lead()
        world.config = ControllerConfig("aranya", "edge", "10.0.0.9")
        world.signer.held = []
        world.restart()
        self.assertEqual("10.0.0.1", world.node["status"]["addresses"][0]["address"])
        self.assertEqual(0, world.endpoints.port(KEY))
        world.signer.held[0].callback(None)
        world.settle()
        self.assertEqual("10.0.0.9", world.node["status"]["addresses"][0]["address"])

    def test_renewal(self) -> None:
        """At two thirds of its life a certificate is renewed and swapped, the endpoint going on."""
        world = self.lead()
        first = world.endpoints.certificates[KEY]
        world.clock.advance(20 * 86400 + 1)
        world.settle()
        self.assertEqual(2, len(world.signer.asked))
        self.assertNotEqual(first, world.endpoints.certificates[KEY])
        self.assertEqual([], world.endpoints.stopped)

    def test_subject_changed(self) -> None:
        """Another subject in the spec makes another certificate."""
        world = self.lead()
        world.patch(EDGEDEVICES, "dev", {"spec": {"node": {"cert": {"orgUnit": "harbour"}}}})
        world.settle()
        self.assertEqual("harbour", world.signer.asked[-1][2].org_unit)
        world.settle(30)
        self.assertEqual(2, len(world.signer.asked))

    def test_refused(self) -> None:
        """A refused certificate is told, and asked for again later; no Node is there before."""
        world = World()
        world.signer.error = "the request was denied: policy"
        world.create_device()
        world.start()
        self.assertEqual(("False", "IssueFailed"), world.condition(world.device, "CertificateReady"))
        self.assertIsNone(world.stored(NODES))
        world.signer.error = ""
        world.settle(8)
        self.assertEqual(("True", "Issued"), world.condition(world.device, "CertificateReady"))
        self.assertIsNotNone(world.stored(NODES))

    def test_deleted_while_asking(self) -> None:
        """An EdgeDevice goes at once though the signer does not answer."""
        world = World()
        world.signer.held = []
        world.create_device()
        world.start()
        world.delete(EDGEDEVICES, "dev")
        world.settle(2)
        self.assertIsNone(world.stored(EDGEDEVICES))
        self.assertIsNone(world.stored(SECRETS, "kubelet-tls.dev", "aranya"))
