"""Unauthenticated gets nothing, and identity comes from the certificate."""

from __future__ import annotations

import http.client
import json
import socket
import ssl
from pathlib import Path

from test.cluster.authority import Authority
from test.cluster.daemons import DEVICE_NAMESPACE, wait_until
from test.cluster.plane import KUBELET_CLIENT
from test.cluster.test_exec import DEVICE, ExecCase


class KubeletDoorTests(ExecCase):
    """The port that kube-apiserver dials, called by strangers."""

    def call(
        self,
        path: str,
        *,
        identity: tuple[bytes, bytes] | None = None,
        token: str = "",
        method: str = "GET",
    ) -> tuple[int, bytes]:
        """Ask the device's kubelet endpoint directly."""
        node = self.site.get("node", DEVICE)
        assert node is not None
        port = node["status"]["daemonEndpoints"]["kubeletEndpoint"]["Port"]
        context = ssl.create_default_context(cadata=self.site.plane.ca_certificate.decode())
        if identity is not None:
            pem = Path(self.mktemp())
            pem.write_bytes(identity[0] + identity[1])
            context.load_cert_chain(pem)
        client = http.client.HTTPSConnection(self.site.plane.address, port, timeout=20, context=context)
        client.request(method, path, headers={"Authorization": f"Bearer {token}"} if token else {})
        answer = client.getresponse()
        body = answer.read()
        client.close()
        return answer.status, body

    PATHS = (
        "/healthz",
        "/pods",
        f"/exec/{DEVICE_NAMESPACE}/{DEVICE}/host?command=id&output=1",
        f"/containerLogs/{DEVICE_NAMESPACE}/{DEVICE}/host",
        "/metrics/resource",
        "/no/such/route",
    )

    def test_anonymous(self) -> None:
        """Without a credential every route is 401, the unknown ones too."""
        for path in self.PATHS:
            self.assertEqual(self.call(path)[0], 401, path)

    def test_foreign_certificate(self) -> None:
        """A certificate of another authority is 401."""
        stranger = Authority("stranger").issue_client("kube-apiserver-kubelet-client", ["system:masters"])
        for path in self.PATHS:
            self.assertEqual(self.call(path, identity=(stranger.certificate, stranger.key))[0], 401, path)

    def test_wrong_token(self) -> None:
        """A token that the API server does not know is 401."""
        self.assertEqual(self.call("/healthz", token="no-such-token")[0], 401)

    def test_token_without_rights(self) -> None:
        """A good token without rights on nodes is 403 and says who may not do what."""
        token = self.site.plane.service_account_token(DEVICE_NAMESPACE, "default")
        status, body = self.call("/pods", token=token)
        self.assertEqual(status, 403, body)
        self.assertIn(b"system:serviceaccount:edge:default", body)

    def test_api_server(self) -> None:
        """The API server's own identity gets its answer."""
        mine = self.site.plane.kubelet_client
        self.assertEqual(self.call("/healthz", identity=(mine.certificate, mine.key)), (200, b"ok"))
        status, body = self.call("/pods", identity=(mine.certificate, mine.key))
        self.assertEqual(status, 200)
        self.assertEqual([pod["metadata"]["name"] for pod in json.loads(body)["items"]], [DEVICE])

    def test_authorisation_is_asked(self) -> None:
        """Without its binding the API server itself is refused."""
        binding = self.site.admin.run("get", "clusterrolebinding", KUBELET_CLIENT, "-o", "json")
        self.assert_code(binding, 0)
        self.assert_code(self.site.admin.run("delete", "clusterrolebinding", KUBELET_CLIENT), 0)
        # A device of its own: what was allowed before is remembered for minutes.
        try:
            self.site.create_device("unbound")
            exec_ = self.clients[-1].run
            wait_until(
                "the API server is refused",
                lambda: b"orbidden" in exec_("exec", "unbound", "--", "true").err,
                explain=self.site.explain,
            )
            self.assert_code(exec_("exec", "unbound", "--", "true"), 1)
        finally:
            found = json.loads(binding.out)
            del found["metadata"]["resourceVersion"], found["metadata"]["uid"]
            self.site.admin.run("create", "-f", "-", input=json.dumps(found).encode())

    def test_same_name_in_a_foreign_namespace(self) -> None:
        """A pod of another namespace on the device's Node is not answered for."""
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": DEVICE, "namespace": "default"},
            "spec": {
                "nodeName": DEVICE,
                "containers": [{"name": "host", "image": "virtualimage.arhat.dev/host"}],
                "tolerations": [{"operator": "Exists"}],
            },
        }
        self.assert_code(self.site.admin.run("create", "-f", "-", input=json.dumps(pod).encode()), 0)
        self.addCleanup(
            self.site.admin.run, "delete", "pod", DEVICE, "-n", "default", "--force", "--grace-period=0"
        )
        for client in self.clients:
            done = client.run("exec", "-n", "default", DEVICE, "--", "id")
            self.assertNotEqual(done.code, 0)
            self.assertEqual(done.out, b"")
            self.assertIn(b"pod does not exist", done.err)
            done = client.run("logs", "-n", "default", DEVICE)
            self.assertNotEqual(done.code, 0)
            self.assertEqual(done.out, b"")


class GatewayTests(ExecCase):
    """The port that devices dial, called by strangers."""

    def raw(self, sent: bytes, context: ssl.SSLContext | None = None) -> bytes:
        """Send bytes over TLS and read the answer to its end."""
        if context is None:
            context = ssl.create_default_context()
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        with (
            socket.create_connection(("127.0.0.1", self.site.gateway_port), 20) as plain,
            context.wrap_socket(plain, server_hostname="127.0.0.1") as link,
        ):
            link.sendall(sent)
            answer = b""
            try:
                while data := link.recv(65536):
                    answer += data
            except (ConnectionError, ssl.SSLError):
                pass
            return answer

    def upgrade(self, protocol: str) -> bytes:
        """A WebSocket handshake for a sub-protocol."""
        return (
            "GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
            f"Sec-WebSocket-Protocol: {protocol}\r\n\r\n"
        ).encode()

    def test_no_certificate(self) -> None:
        """The tether without a certificate is refused during the handshake."""
        answer = self.raw(self.upgrade("tether.v1"))
        self.assertNotIn(b" 101 ", answer.split(b"\r\n")[0])

    def test_foreign_certificate(self) -> None:
        """A certificate of another authority is refused."""
        stranger = Authority("stranger").issue_client("edge/my-edge-device", [])
        pem = Path(self.mktemp())
        pem.write_bytes(stranger.certificate + stranger.key)
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        context.load_cert_chain(pem)
        try:
            answer = self.raw(self.upgrade("tether.v1"), context)
        except (ConnectionError, ssl.SSLError):
            answer = b""
        self.assertNotIn(b" 101 ", answer.split(b"\r\n")[0])

    def test_garbage(self) -> None:
        """Garbage, a long line and plain HTTP are answered or dropped, and aranya lives on."""
        for sent in (b"\x00\xff" * 500 + b"\r\n\r\n", b"GET /" + b"a" * 100_000, b"GET / HTTP/1.1\r\n\r\n"):
            try:
                answer = self.raw(sent)
            except (ConnectionError, ssl.SSLError):
                answer = b""
            self.assertNotIn(b" 101 ", answer.split(b"\r\n")[0])
        self.assert_code(self.exec(self.clients[-1], "true"), 0)

    def test_used_token(self) -> None:
        """A token lets one key in; a second device with the same word is told so and ends with 1."""
        self.site.create_device("once")
        token = self.site.join_token("once")
        first = self.site.agent("once")
        first.start("--join", token)
        self.site.devices["once"] = first
        self.site.wait_online("once")
        second = self.site.agent("once-again")
        second.start("--join", token)
        self.assertEqual(second.wait(20), 1)
        self.assertIn("token", second.text())
        self.assertNotIn("Traceback", second.text())
        self.assertNotIn(token, second.text())

    def test_made_anew(self) -> None:
        """The device of an EdgeDevice that was deleted and made anew joins again with a new token alone."""
        self.site.add_device("phoenix")
        agent = self.site.devices["phoenix"]
        self.assert_code(self.site.edge.run("delete", "ed", "phoenix"), 0)
        self.site.create_device("phoenix")
        token = self.site.join_token("phoenix")
        for _ in range(2):
            self.assertEqual(agent.terminate(), 0)
            agent.start("--join", token)
            self.site.wait_online("phoenix")
        self.assertEqual(agent.text().count("joined as edge/phoenix"), 3, agent.tail())
        self.assertEqual(agent.text().count("this device has joined as"), 1, agent.tail())

    def test_ban(self) -> None:
        """A ban closes the link at once and keeps it closed; lifting it lets the device back."""
        self.site.add_device("rogue")
        patch = json.dumps({"spec": {"banned": True}})
        self.assert_code(self.site.edge.run("patch", "ed", "rogue", "--type=merge", "-p", patch), 0)
        wait_until(
            "the device is refused",
            lambda: self.site.condition("ed", "rogue", "Connected") == "False",
            10,
            self.site.explain,
        )
        done = self.clients[-1].run("exec", "rogue", "--", "true")
        self.assertEqual(done.code, 1)
        self.assert_code(
            self.site.edge.run("patch", "ed", "rogue", "--type=merge", "-p", '{"spec":{"banned":false}}'), 0
        )
        agent = self.site.devices["rogue"]
        agent.kill()
        agent.start()
        self.site.wait_online("rogue")
