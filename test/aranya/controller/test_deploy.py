"""What ``deploy/`` ships, put before a real API server: it is taken, and bad devices are not."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from aranya.certs.issuer import SubjectParts
from aranya.controller.devices.model import wish_of
from test.cluster.kubectl import Kubectl
from test.cluster.plane import shared_plane

DEPLOY = Path(__file__).resolve().parents[3] / "deploy"

BAD_SPECS: dict[str, dict[str, Any]] = {
    "connectivity.method": {"connectivity": {"method": "mqtt"}},
    "connectivity.keepaliveSeconds": {"connectivity": {"keepaliveSeconds": 1}},
    "connectivity.graceSeconds": {"connectivity": {"graceSeconds": 3601}},
    "connectivity.graceSeconds in body should be greater": {"connectivity": {"graceSeconds": -1}},
    "banned": {"banned": "yes"},
    "node.labels": {"node": {"labels": {"a": "not a value"}}},
    "node.taints[0].effect": {"node": {"taints": [{"key": "a", "effect": "Never"}]}},
    "node.taints[0].key": {"node": {"taints": [{"effect": "NoExecute"}]}},
    "node.cert.country": {"node": {"cert": {"country": "Germany"}}},
    "containers[0].name": {"pod": {"containers": [{"name": "A", "log": {"file": "/a"}}]}},
    "containers[0].name in body must not": {"pod": {"containers": [{"name": "host", "log": {"file": "/a"}}]}},
    "containers[1]": {
        "pod": {"containers": [{"name": "a", "log": {"file": "/a"}}, {"name": "a", "log": {"unit": "a"}}]}
    },
    "containers[0].log": {"pod": {"containers": [{"name": "a", "log": {"file": "/a", "unit": "a"}}]}},
    "containers[0].log in body must": {"pod": {"containers": [{"name": "a", "log": {}}]}},
    "containers[0].log.file": {"pod": {"containers": [{"name": "a", "log": {"file": "relative"}}]}},
    "forward[0].port": {"pod": {"forward": [{"port": 65536, "target": "a:1"}]}},
    "forward[0].target": {"pod": {"forward": [{"port": 1, "target": "nowhere"}]}},
}

#: Every field, empty where it may be.
EVERY_FIELD = """
apiVersion: aranya.arhat.dev/v1alpha1
kind: EdgeDevice
metadata: {name: every-field, namespace: edge}
spec:
  connectivity: {method: websocket, keepaliveSeconds: 15, graceSeconds: 0}
  banned: false
  node:
    labels: {example.com/empty: ""}
    annotations: {example.com/empty: ""}
    taints: [{key: example.com/empty, value: "", effect: NoSchedule}]
    cert: {orgUnit: "", country: "", state: "", locality: ""}
  pod:
    containers:
    - {name: nginx, log: {file: /var/log/nginx/access.log}}
    - {name: ssh, log: {unit: ssh.service}}
    forward:
    - {port: 5020, target: "192.168.7.50:502"}
status:
  conditions: []
  hostNode: ""
  kubeletPort: 0
  agent: {version: "", os: "", arch: "", address: "", lastSeen: ""}
  standbys: [{version: "", address: ""}]
"""


def apply(kubectl: Kubectl, name: str, spec: dict[str, Any]) -> tuple[int, str]:
    """Apply an EdgeDevice, leaving the checks to the server; the exit code and what kubectl said."""
    body = {
        "apiVersion": "aranya.arhat.dev/v1alpha1",
        "kind": "EdgeDevice",
        "metadata": {"name": name, "namespace": "edge"},
        "spec": spec,
    }
    done = kubectl.run("apply", "--validate=false", "-f", "-", input=json.dumps(body).encode())
    return done.code, (done.out + done.err).decode()


class ManifestTests(SynchronousTestCase):
    """The manifests on a real control plane, with every kubectl of the machine."""

    def setUp(self) -> None:
        self.plane = shared_plane()
        # The CRD takes a moment to be served; applying again is what an operator would do.
        for kubectl in self.plane.kubectls():
            done = kubectl.run("apply", "-f", str(DEPLOY))
            self.assertEqual(0, done.code, done.err.decode())
        done = self.plane.kubectl().run(
            "wait", "--for=condition=established", "--timeout=20s", "crd/edgedevices.aranya.arhat.dev"
        )
        self.assertEqual(0, done.code, done.err.decode())

    def tearDown(self) -> None:
        made = ("my-edge-device", "empty", "every-field")
        self.plane.kubectl().run("delete", "ed", "-n", "edge", "--ignore-not-found", *made)
        self.plane.kubectl().run("delete", "--ignore-not-found", "-f", str(DEPLOY / "30-aranya.yaml"))

    def test_good_devices(self) -> None:
        """The example and a device with an empty spec are taken by every kubectl, and listed."""
        for kubectl in self.plane.kubectls():
            done = kubectl.run("apply", "-f", str(DEPLOY / "optional" / "example-device.yaml"))
            self.assertEqual(0, done.code, done.err.decode())
            self.assertEqual(0, apply(kubectl, "empty", {})[0])
            listed = kubectl.run("get", "ed", "-n", "edge").out.decode().splitlines()
            columns = ["NAME", "CONNECTED", "AGENT", "HOST-NODE", "LAST-SEEN", "AGE"]
            self.assertEqual(columns, listed[0].split())
            self.assertEqual(3, len(listed))

    def test_every_field(self) -> None:
        """Empty strings are taken from every kubectl, and read as what they are."""
        for kubectl in self.plane.kubectls():
            done = kubectl.run("apply", "-f", "-", input=EVERY_FIELD.encode())
            self.assertEqual(0, done.code, done.err.decode())
        found = json.loads(kubectl.run("get", "ed", "every-field", "-n", "edge", "-o", "json").out)
        wish = wish_of(found)
        self.assertEqual((), wish.problems)
        self.assertEqual({"example.com/empty": ""}, wish.labels)
        self.assertEqual((SubjectParts(), 3), (wish.subject, len(wish.containers)))

    def test_bad_devices(self) -> None:
        """A bad value is refused, and the answer names its field."""
        for field, spec in BAD_SPECS.items():
            code, said = apply(self.plane.kubectl(), "bad", spec)
            self.assertEqual(1, code, f"{field}: {said}")
            # 1.20 leaves the indexes out.
            self.assertIn(re.sub(r"\[\d\]", "", field.split(" ")[0]), re.sub(r"\[\d\]", "", said))

    def test_bad_names(self) -> None:
        """A name that is not a DNS label of at most 63 characters is refused."""
        for name in ("two.labels", "a" * 64):
            code, said = apply(self.plane.kubectl(), name, {})
            self.assertEqual(1, code, said)
            self.assertIn("metadata.name", said)

    def test_optional_manifests(self) -> None:
        """The optional right to delete pods anywhere is taken by every kubectl."""
        for kubectl in self.plane.kubectls():
            done = kubectl.run("apply", "-f", str(DEPLOY / "optional" / "rbac-sweep.yaml"))
            self.assertEqual(0, done.code, done.err.decode())
