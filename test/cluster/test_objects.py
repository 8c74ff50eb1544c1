"""What aranya makes of an EdgeDevice, and that it takes all of it away again."""

from __future__ import annotations

import json
import subprocess
import time
from typing import Any

from test.cluster.daemons import DEVICE_NAMESPACE, OWN_NAMESPACE, Twistd, wait_until
from test.cluster.kubectl import Completed
from test.cluster.test_exec import DEVICE, ExecCase

#: Says something for as long as anybody listens, and leaves no process behind when nobody does.
ALIVE = "while echo alive; do sleep 0.3; done"


class ShapeTests(ExecCase):
    """The objects are as documented."""

    def test_node(self) -> None:
        """The Node has its providerID, labels, taint, one InternalIP, no os label and room for no pod."""
        node = self.site.get("node", DEVICE)
        assert node is not None
        self.assertEqual(node["spec"]["providerID"], f"aranya://{DEVICE_NAMESPACE}/{DEVICE}")
        labels = node["metadata"]["labels"]
        self.assertEqual(labels["arhat.dev/role"], "Node")
        self.assertEqual(labels["arhat.dev/name"], DEVICE)
        self.assertEqual(labels["arhat.dev/namespace"], DEVICE_NAMESPACE)
        self.assertIn("node.kubernetes.io/exclude-disruption", labels)
        self.assertNotIn("kubernetes.io/os", labels)
        taints = {(one["key"], one.get("value"), one["effect"]) for one in node["spec"]["taints"]}
        self.assertIn(("arhat.dev/namespace", DEVICE_NAMESPACE, "NoSchedule"), taints)
        self.assertEqual([one["type"] for one in node["status"]["addresses"]], ["InternalIP"])
        self.assertEqual(node["status"]["allocatable"]["pods"], "0")
        self.assertGreater(node["status"]["daemonEndpoints"]["kubeletEndpoint"]["Port"], 0)

    def test_pod(self) -> None:
        """The virtual pod is Running, Ready, bound to the Node and never evicted."""
        pod = self.site.get("pod", DEVICE)
        assert pod is not None
        self.assertEqual(pod["status"]["phase"], "Running")
        self.assertEqual(pod["spec"]["nodeName"], DEVICE)
        self.assertEqual(pod["spec"]["terminationGracePeriodSeconds"], 0)
        first = pod["spec"]["containers"][0]
        self.assertEqual((first["name"], first["tty"], first["stdin"]), ("host", True, True))
        self.assertIn({"operator": "Exists"}, pod["spec"]["tolerations"])

    def test_printed_columns(self) -> None:
        """``kubectl get ed`` shows what an operator looks for."""
        done = self.site.edge.run("get", "ed", DEVICE)
        self.assert_code(done, 0)
        head, row = done.out.decode().splitlines()
        self.assertEqual(head.split(), ["NAME", "CONNECTED", "AGENT", "HOST-NODE", "LAST-SEEN", "AGE"])
        self.assertEqual(row.split()[:2], [DEVICE, "True"])

    def test_events(self) -> None:
        """What happens to a device is told as Events of its EdgeDevice."""
        selector = f"involvedObject.kind=EdgeDevice,involvedObject.name={DEVICE}"
        done = self.site.edge.run("get", "events", "-o", "json", f"--field-selector={selector}")
        self.assert_code(done, 0)
        reasons = {event["reason"] for event in json.loads(done.out)["items"]}
        self.assertLessEqual({"CertificateIssued", "DeviceConnected"}, reasons)

    def test_bad_fields(self) -> None:
        """A bad value is refused at admission by every kubectl, with the field's name."""
        for field, spec in (
            ("spec.connectivity.method", {"connectivity": {"method": "pigeon"}}),
            ("spec.connectivity.graceSeconds", {"connectivity": {"graceSeconds": 3601}}),
            ("spec.banned", {"banned": "maybe"}),
            ("spec.pod.forward", {"pod": {"forward": [{"port": 70000, "target": "127.0.0.1:80"}]}}),
            ("spec.pod.containers", {"pod": {"containers": [{"name": "UPPER", "log": {"file": "/x"}}]}}),
        ):
            body = {
                "apiVersion": "aranya.arhat.dev/v1alpha1",
                "kind": "EdgeDevice",
                "metadata": {"name": "bad", "namespace": DEVICE_NAMESPACE},
                "spec": spec,
            }
            for client in self.clients:
                done = client.run("apply", "-f", "-", input=json.dumps(body).encode())
                self.assertNotEqual(done.code, 0, field)
                self.assertIn(field, done.err.decode())


class LifeTests(ExecCase):
    """Objects come back when they are taken, and go when the EdgeDevice goes."""

    def test_deletion_leaves_nothing(self) -> None:
        """Deleting an EdgeDevice removes Node, Lease, pod, Secrets and link within seconds."""
        agent = self.site.add_device("leaving")
        began = time.monotonic()
        done = self.site.edge.run("delete", "ed", "leaving", timeout=30)
        self.assert_code(done, 0)
        self.assertLess(time.monotonic() - began, 15)
        for kind, namespace in (
            ("node", DEVICE_NAMESPACE),
            ("pod", DEVICE_NAMESPACE),
            ("lease", "kube-node-lease"),
        ):
            done = self.site.admin.run("get", kind, "leaving", "-n", namespace)
            self.assertIn(b"not found", done.err, kind)
        for namespace in (OWN_NAMESPACE, DEVICE_NAMESPACE):
            done = self.site.admin.run("get", "secrets", "-n", namespace, "-o", "name")
            self.assertNotIn(b"leaving", done.out)
        wait_until("the agent heard of it", lambda: "the EdgeDevice was deleted" in agent.text(), 10)
        agent.kill()
        del self.site.devices["leaving"]

    def test_pod_and_node_come_back(self) -> None:
        """A deleted pod and a deleted Node are made anew, and exec works again."""
        for kind in ("pod", "node"):
            before = self.site.get(kind, DEVICE)
            assert before is not None
            self.assert_code(self.site.edge.run("delete", kind, DEVICE, "--wait=false"), 0)

            def renewed(kind: str = kind, uid: str = before["metadata"]["uid"]) -> bool:
                found = self.site.get(kind, DEVICE)
                return found is not None and found["metadata"]["uid"] != uid

            wait_until(f"a new {kind}", renewed, 20, self.site.explain)
            self.site.wait_online(DEVICE)
            wait_until(
                "exec works again",
                lambda: self.exec(self.clients[-1], "true").code == 0,
                20,
                self.site.explain,
            )

    def test_foreign_node_is_left_alone(self) -> None:
        """A Node that aranya did not make stays as it is, and the EdgeDevice says Conflict."""
        body = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "foreign"}}
        self.assert_code(self.site.admin.run("create", "-f", "-", input=json.dumps(body).encode()), 0)
        self.addCleanup(self.site.admin.run, "delete", "node", "foreign")
        before = self.site.get("node", "foreign")
        assert before is not None
        self.site.create_device("foreign")
        wait_until(
            "the conflict is told",
            lambda: self.site.condition("ed", "foreign", "Conflict") == "True",
            20,
            self.site.explain,
        )
        self.assert_code(self.site.edge.run("delete", "ed", "foreign", timeout=30), 0)
        after = self.site.get("node", "foreign")
        assert after is not None
        self.assertEqual(after["metadata"]["uid"], before["metadata"]["uid"])
        self.assertEqual(after["metadata"].get("labels", {}).get("arhat.dev/role"), None)

    def test_offline_and_back(self) -> None:
        """An absent device's Node is not Ready with a reason, exec fails at once, and all comes back."""
        agent = self.site.add_device("wanderer")
        self.assertEqual(agent.terminate(), 0)
        self.site.wait_offline("wanderer")
        node = self.site.get("node", "wanderer")
        assert node is not None
        ready = next(one for one in node["status"]["conditions"] if one["type"] == "Ready")
        self.assertEqual(ready["reason"], "DeviceOffline")
        pod = self.site.get("pod", "wanderer")
        assert pod is not None
        self.assertEqual(pod["status"]["phase"], "Running")
        for client in self.clients:
            began = time.monotonic()
            done = client.run("exec", "wanderer", "--", "true")
            self.assertEqual(done.code, 1)
            self.assertLess(time.monotonic() - began, 2)
            self.assertIn(b"offline", done.err)
            self.assertEqual(client.run("port-forward", "wanderer", ":80", timeout=10).code, 1)
        agent.start()
        self.site.wait_online("wanderer")
        self.assert_code(self.clients[-1].run("exec", "wanderer", "--", "true"), 0)

    def test_lease_is_renewed(self) -> None:
        """The Node's Lease is renewed though the device says nothing."""

        def renewed_at() -> str:
            done = self.site.admin.run(
                "get", "lease", DEVICE, "-n", "kube-node-lease", "-o", "jsonpath={.spec.renewTime}"
            )
            return done.out.decode()

        first = wait_until("a lease", renewed_at)
        wait_until("a renewal", lambda: renewed_at() > first, 25, self.site.explain)


class StandbyTests(ExecCase):
    """A second agent of a device is told in the status for as long as it stands by."""

    def setUp(self) -> None:
        """Have two agents of one device."""
        super().setUp()
        self.name = f"paired-{self.id().rpartition('_')[2]}"
        self.elder = self.site.add_device(self.name)
        self.addCleanup(self.leave)
        self.younger = Twistd("younger", self.elder.words, self.elder.folder / "younger")
        self.addCleanup(self.younger.kill)
        self.younger.start()
        wait_until("one stands by", self.standbys, 20, self.explain)

    def leave(self) -> None:
        """Take the device away."""
        self.elder.kill()
        del self.site.devices[self.name]
        self.assert_code(self.site.edge.run("delete", "ed", self.name, timeout=30), 0)

    def explain(self) -> str:
        """What all the daemons say."""
        return self.site.explain() + self.younger.tail()

    def status(self) -> dict[str, Any]:
        """The status of the EdgeDevice."""
        found = self.site.get("ed", self.name)
        assert found is not None
        return dict(found["status"])

    def standbys(self) -> list[dict[str, str]]:
        """Who stands by, as the status says."""
        return list(self.status().get("standbys", []))

    def connected(self) -> str:
        """The message of ``Connected``."""
        return next(one["message"] for one in self.status()["conditions"] if one["type"] == "Connected")

    def test_comes_and_goes(self) -> None:
        """It is told with its version and address, and no more once it left."""
        status = self.status()
        (standby,) = status["standbys"]
        self.assertEqual(standby["version"], status["agent"]["version"])
        self.assertNotEqual(standby["address"], status["agent"]["address"])
        self.assertEqual(self.connected(), "the device is connected; 1 agent stands by")
        self.younger.kill()
        wait_until("nobody stands by", lambda: "standbys" not in self.status(), 10, self.explain)
        self.assertEqual(self.connected(), "the device is connected")

    def test_takes_over(self) -> None:
        """When the active one goes it is the agent that the status names, and the device stays online."""
        (standby,) = self.standbys()
        self.elder.kill()
        wait_until(
            "it took over",
            lambda: self.status()["agent"]["address"] == standby["address"],
            10,
            self.explain,
        )
        self.assertNotIn("standbys", self.status())
        self.assertEqual(self.site.condition("node", self.name, "Ready"), "True")
        self.assert_code(self.site.edge.run("exec", self.name, "--", "true"), 0)


class WaitingTests(ExecCase):
    """Sessions that wait for a device which is away: the EdgeDevice decides how long they may."""

    def begin(self, name: str, spec: dict[str, Any] | None = None) -> subprocess.Popen[bytes]:
        """A session on a device that went away since, and counts as offline now."""
        agent = self.site.add_device(name, spec)
        self.addCleanup(self.leave, name)
        session = self.clients[-1].start("exec", name, "--", "sh", "-c", ALIVE)
        self.addCleanup(session.wait)
        self.addCleanup(session.kill)
        assert session.stdout is not None
        self.assertEqual(session.stdout.readline(), b"alive\n")
        agent.kill()
        self.site.wait_offline(name)
        return session

    def leave(self, name: str) -> None:
        """Take the device away, if it is there."""
        self.site.devices.pop(name).kill()
        done = self.site.edge.run("delete", "ed", name, "--ignore-not-found", timeout=30)
        self.assert_code(done, 0)

    def assert_ends(self, session: subprocess.Popen[bytes], seconds: float, *words: str) -> None:
        """It ends soon, not with 0, and says why in one line."""
        out, err = session.communicate(timeout=seconds)
        done = Completed(session.returncode, out, err)
        self.assertNotEqual(done.code, 0, done)
        for word in words:
            self.assertIn(word, err.decode(), self.site.explain())

    def test_deleted(self) -> None:
        """Deleting the EdgeDevice ends them."""
        session = self.begin("lost")
        self.assertIsNone(session.poll(), self.site.explain())
        self.assert_code(self.site.edge.run("delete", "ed", "lost", timeout=30), 0)
        self.assert_ends(session, 5, "deleted")

    def test_banned(self) -> None:
        """A ban ends them."""
        session = self.begin("stolen")
        self.assertIsNone(session.poll(), self.site.explain())
        patch = json.dumps({"spec": {"banned": True}})
        self.assert_code(self.site.edge.run("patch", "ed", "stolen", "--type=merge", "-p", patch), 0)
        self.assert_ends(session, 5, "banned")

    def test_grace_of_the_device(self) -> None:
        """``graceSeconds`` of the EdgeDevice is how long they wait; with 0 they end with the link."""
        session = self.begin("hasty", {"connectivity": {"graceSeconds": 0}})
        self.assert_ends(session, 1, "offline")
