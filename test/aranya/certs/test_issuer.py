"""Tests of ``aranya.certs.issuer``."""

from __future__ import annotations

import base64
from datetime import UTC, datetime

from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509.oid import NameOID
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from aranya.certs.authority import new_authority
from aranya.certs.issuer import (
    NotIssued,
    SubjectParts,
    issue_serving_certificate,
    issued,
    serving_request,
)
from aranya.certs.keys import KeyPair, key_hash
from aranya.certs.requests import hosts_of, requested_key
from aranya.kube.errors import Forbidden
from aranya.kube.memory import MemoryApiServer
from aranya.kube.memory_requests import Refusal, Request
from aranya.kube.objects import CSRS

NOW = datetime(2030, 1, 1, tzinfo=UTC)


class IssueTests(SynchronousTestCase):
    """Asking the cluster for a serving certificate."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.advance(NOW.timestamp())
        self.server = MemoryApiServer(self.clock)
        self.kubernetes = self.server.client()
        self.signer = new_authority(NOW)

    def start(self, timeout: float = 60.0) -> Deferred[KeyPair]:
        """Ask for a certificate."""
        work = issue_serving_certificate(self.kubernetes, "pump-7", ["10.0.0.1"], self.clock, timeout=timeout)
        return Deferred.fromCoroutine(work)

    def request(self) -> dict[str, object]:
        """The one request object that is there."""
        [found] = self.server.all_stored(CSRS)
        return found

    def settle(self, **status: object) -> None:
        """Be the signer: set the status of the request."""
        found = self.request()
        found["status"] = {**found.get("status", {}), **status}
        name = found["metadata"]["name"]
        self.successResultOf(
            Deferred.fromCoroutine(self.kubernetes.replace(CSRS, None, name, found, sub="status"))
        )

    def sign(self) -> None:
        """Be the signer: issue."""
        wanted = base64.b64decode(self.request()["spec"]["request"])
        chain = self.signer.sign_server(requested_key(wanted), ["10.0.0.1"], NOW)
        self.settle(certificate=base64.b64encode(chain).decode())

    def test_asked_approved_issued(self) -> None:
        """The request has the signer's form, is approved, and its certificate comes back with its key."""
        work = self.start()
        found = self.request()
        self.assertEqual(found["spec"]["signerName"], "kubernetes.io/kubelet-serving")
        self.assertEqual(
            sorted(found["spec"]["usages"]), ["digital signature", "key encipherment", "server auth"]
        )
        self.assertEqual(found["status"]["conditions"][0]["type"], "Approved")
        self.sign()
        self.clock.pump([0.25] * 20)
        pair = self.successResultOf(work)
        chain, _ = pair.parse()
        self.assertEqual(hosts_of(chain[0]), {"10.0.0.1"})

    def test_nothing_stays_behind(self) -> None:
        """The request object is deleted after issuing."""
        work = self.start()
        self.sign()
        self.clock.pump([0.25] * 20)
        self.successResultOf(work)
        self.assertEqual(self.server.all_stored(CSRS), [])

    def test_denied(self) -> None:
        """A denial ends the wait with its message."""
        work = self.start()
        self.settle(conditions=[{"type": "Failed", "status": "True", "message": "bad subject"}])
        self.clock.pump([0.25] * 20)
        error = self.failureResultOf(work, NotIssued)
        self.assertIn("bad subject", str(error.value))
        self.assertEqual(self.server.all_stored(CSRS), [])

    def test_nobody_signs(self) -> None:
        """Without a signer the wait ends at its deadline and says what may be missing."""
        work = self.start(timeout=10)
        self.clock.pump([0.5] * 30)
        error = self.failureResultOf(work, NotIssued)
        self.assertIn("controller-manager", str(error.value))

    def test_approval_forbidden(self) -> None:
        """Without the right to approve, that error comes out and nothing stays behind."""

        def refuse(request: Request) -> None:
            if request.sub == "approval":
                raise Refusal(403, "Forbidden", "may not approve")

        self.server.before = refuse
        self.failureResultOf(self.start(), Forbidden)
        self.assertEqual(self.server.all_stored(CSRS), [])

    def test_cancelled(self) -> None:
        """A cancelled wait cleans up, too."""
        work = self.start()
        work.addErrback(lambda failure: None)
        work.cancel()
        self.clock.pump([0.25] * 4)
        self.assertEqual(self.server.all_stored(CSRS), [])


class RequestTests(SynchronousTestCase):
    """The request itself, and when the next one is due."""

    def test_subject(self) -> None:
        """The subject is a node's, with the parts that the EdgeDevice adds."""
        key, request = serving_request("pump-7", ["10.0.0.1"], SubjectParts(country="AT", locality="Graz"))
        parsed = x509.load_pem_x509_csr(request)
        subject = parsed.subject
        self.assertEqual(subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value, "system:node:pump-7")
        organizations = subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)
        self.assertEqual([part.value for part in organizations], ["system:nodes"])
        self.assertEqual(subject.get_attributes_for_oid(NameOID.LOCALITY_NAME)[0].value, "Graz")
        public_key = load_pem_private_key(key, None).public_key()
        self.assertEqual(key_hash(public_key), key_hash(requested_key(request)))

    def test_impossible_subject(self) -> None:
        """A country that is not two letters is refused with a line."""
        self.assertRaises(NotIssued, serving_request, "n", ["10.0.0.1"], SubjectParts(country="Austria"))

    def test_pending(self) -> None:
        """An approved request without a certificate is still pending."""
        self.assertIsNone(issued({"status": {"conditions": [{"type": "Approved"}]}}))
        self.assertIsNone(issued({}))
