"""Tests of ``kubectl aranya``: the true command line and client against a double, over HTTP."""

from __future__ import annotations

import io
import json
import threading
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IConsumer
from twisted.web.client import readBody
from twisted.web.http_headers import Headers
from twisted.web.iweb import IBodyProducer
from zope.interface import implementer

from aranya.interfaces import Object
from aranya.kube.memory import MemoryApiServer
from aranya.kube.memory_requests import Refusal, Request
from aranya.kube.objects import EDGEDEVICES, LEASES, NODES, PODS, micro_time, new_object
from aranya.names import FINALIZER, JOIN_ANNOTATION
from aranya.plugin import devices
from aranya.plugin.main import run
from test.aranya.device.cluster import ClusterCase
from tether.join import Token


@implementer(IBodyProducer)
class Body:
    """A request's body."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.length = len(data)

    def startProducing(self, consumer: IConsumer) -> Deferred[None]:
        """All at once."""
        consumer.write(self._data)
        return Deferred()

    def pauseProducing(self) -> None:
        """Never."""

    def resumeProducing(self) -> None:
        """Never."""

    def stopProducing(self) -> None:
        """Never."""


class Bridge:
    """Serves a ``MemoryApiServer`` over HTTP on the loopback."""

    def __init__(self, server: MemoryApiServer) -> None:
        self.health = b"ok"
        self.lock = threading.Lock()
        agent = server.agent()
        bridge = self

        class Handler(BaseHTTPRequestHandler):
            """One connection."""

            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                """Pass the request on."""
                length = int(self.headers.get("Content-Length") or 0)
                content = self.rfile.read(length)
                with bridge.lock:
                    code, body = self.ask(content)
                self.send_response(code)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def ask(self, content: bytes) -> tuple[int, bytes]:
                """The code and body of the answer."""
                if self.path == "/version" or self.path == "/version/":
                    version = {
                        name: "x"
                        for name in ("buildDate", "compiler", "gitCommit", "gitTreeState", "goVersion")
                    } | {"gitVersion": "v1.36.0", "major": "1", "minor": "36", "platform": "linux/amd64"}
                    return 200, json.dumps(version).encode()
                if self.path.split("?")[0].endswith("/proxy/healthz"):
                    return (200, bridge.health) if bridge.health else (503, b'{"message": "no route"}')
                headers = Headers({name: [value] for name, value in self.headers.items()})
                body = Body(content) if content else None
                result: list[Any] = []
                asked = agent.request(self.command.encode(), self.path.encode(), headers, body)
                asked.addCallback(lambda response: result.append(response.code) or readBody(response))  # type: ignore[func-returns-value]
                asked.addCallback(result.append)
                return result[0], result[1]

            do_GET = do_POST = do_PATCH = do_PUT = do_DELETE = answer

            def log_message(self, *_: object) -> None:
                """Nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def stop(self) -> None:
        """Serve no more."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class PluginCase(ClusterCase):
    """The plugin, a cluster, and aranya's side of a join."""

    def setUp(self) -> None:
        super().setUp()
        self.bridge = Bridge(self.server)
        self.addCleanup(self.bridge.stop)
        self.kubeconfig = Path(self.mktemp())
        cluster = {"name": "c", "cluster": {"server": self.bridge.url}}
        contexts = [
            {"name": name, "context": {"cluster": "c", "user": "u", "namespace": namespace}}
            for name, namespace in (("edge", "edge"), ("other", "nowhere"))
        ]
        content = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [cluster],
            "users": [{"name": "u", "user": {}}],
            "contexts": contexts,
            "current-context": "edge",
        }
        self.kubeconfig.write_text(json.dumps(content))
        self.patch(devices, "_LOOK_AGAIN", 0.01)

    def call(self, *arguments: str) -> tuple[int, str, str]:
        """Exit code, output and errors of a command line."""
        out, err = io.StringIO(), io.StringIO()
        code = run([*arguments, "--kubeconfig", str(self.kubeconfig)], out, err)
        return code, out.getvalue(), err.getvalue()

    def create(self, resource: Any, namespace: str | None, name: str, **fields: Any) -> None:
        """Make an object."""
        metadata: Object = {"name": name, **fields.pop("metadata", {})}
        if namespace is not None:
            metadata["namespace"] = namespace
        self.done(self.kubernetes.create(resource, namespace, new_object(resource, metadata, **fields)))

    def lead(self, seconds_ago: float, namespace: str = "edge") -> None:
        """aranya renewed its Lease that long ago."""
        renewed = micro_time(datetime.now(UTC) - timedelta(seconds=seconds_ago))
        spec = {"holderIdentity": "aranya-0", "renewTime": renewed, "leaseDurationSeconds": 15}
        self.create(LEASES, namespace, "aranya", spec=spec)


class JoinTests(PluginCase):
    """``join``."""

    def answer_joins(self) -> None:
        """Be aranya: answer each request as it comes."""
        busy: list[bool] = []

        def after_patch(request: Request) -> None:
            # The memory server asks before it acts, so the next question finds the request.
            if busy or request.plural != "secrets":
                return
            busy.append(True)
            self.done(self.joins.reconcile(self.device()))
            busy.clear()

        self.server.before = after_patch

    def test_command(self) -> None:
        """The line to type is printed, and its token is good for the device."""
        self.answer_joins()
        code, out, err = self.call("join", "pump")
        self.assertEqual((code, err), (0, ""))
        comment, line = out.splitlines()
        self.assertTrue(comment.startswith("#"))
        self.assertEqual(Token.decode(line.split()[-1]).name, "pump")

    def test_token(self) -> None:
        """``--print-token`` prints nothing but the token."""
        self.answer_joins()
        code, out, _ = self.call("join", "pump", "--print-token")
        self.assertEqual(code, 0)
        self.assertEqual(Token.decode(out).namespace, "edge")

    def test_annotations_stay(self) -> None:
        """The other annotations of the EdgeDevice stay."""
        self.change({"metadata": {"annotations": {"a": "b"}}})
        self.answer_joins()
        self.assertEqual(self.call("join", "pump")[0], 0)
        self.assertEqual(self.device()["metadata"]["annotations"]["a"], "b")

    def test_an_old_secret(self) -> None:
        """The Secret of an earlier request is not taken for the answer."""
        old = self.token("old")
        self.answer_joins()
        _, out, _ = self.call("join", "pump", "--print-token")
        self.assertNotEqual(Token.decode(out), old)

    def test_nobody_answers(self) -> None:
        """Without an answer there is one line, and what to look at."""
        self.patch(devices, "PATIENCE", 0.05)
        code, out, err = self.call("join", "pump")
        self.assertEqual((code, out), (1, ""))
        self.assertIn("kubectl aranya doctor", err)
        self.assertEqual(len(err.splitlines()), 1)
        self.assertIn(JOIN_ANNOTATION, self.device()["metadata"]["annotations"])

    def test_banned(self) -> None:
        """A banned device gets no token."""
        self.change({"spec": {"banned": True}})
        code, _, err = self.call("join", "pump")
        self.assertEqual(code, 1)
        self.assertIn("unban", err)

    def test_unknown(self) -> None:
        """A device that does not exist is one line with those that do."""
        code, _, err = self.call("join", "pmup")
        self.assertEqual(code, 1)
        self.assertIn("there are: pump", err)

    def test_forbidden(self) -> None:
        """What RBAC forbids is one line."""

        def refuse(request: Request) -> None:
            if request.method == "PATCH":
                raise Refusal(403, "Forbidden", "user cannot patch edgedevices")

        self.server.before = refuse
        code, _, err = self.call("join", "pump")
        self.assertEqual(code, 1)
        self.assertIn("user cannot patch edgedevices", err)


class BanTests(PluginCase):
    """``ban`` and ``unban``."""

    def test_both(self) -> None:
        """A device is banned and let in again; asking twice changes nothing."""
        for verb, banned in (("ban", True), ("ban", True), ("unban", False), ("unban", False)):
            code, out, _ = self.call(verb, "pump")
            self.assertEqual(code, 0)
            self.assertIn("pump", out)
            self.assertEqual(bool(self.device()["spec"].get("banned")), banned)

    def test_options_before_and_after(self) -> None:
        """Namespace and context may stand before or behind the verb."""
        for arguments in (
            ("-n", "edge", "--context", "other", "ban", "pump"),
            ("ban", "-n", "edge", "pump", "--context", "other"),
            ("--context", "other", "ban", "pump", "--namespace", "edge"),
        ):
            self.assertEqual(self.call(*arguments)[0], 0, arguments)
        code, _, err = self.call("ban", "pump", "--context", "other")
        self.assertEqual(code, 1)
        self.assertIn("nowhere", err)

    def test_bad_context(self) -> None:
        """A context that is not there is one line."""
        code, _, err = self.call("ban", "pump", "--context", "absent")
        self.assertEqual(code, 1)
        self.assertEqual(len(err.splitlines()), 1)

    def test_unreachable(self) -> None:
        """An API server that does not answer is one line."""
        self.bridge._server.server_close()
        text = self.kubeconfig.read_text().replace(self.bridge.url, "http://127.0.0.1:1")
        self.kubeconfig.write_text(text)
        code, _, err = self.call("ban", "pump")
        self.assertEqual(code, 1)
        self.assertIn("not reachable", err)
        self.assertEqual(len(err.splitlines()), 1)


class DoctorTests(PluginCase):
    """``doctor``."""

    def all_well(self) -> None:
        """A cluster where nothing is wrong."""
        self.lead(3)
        conditions = [
            {"type": kind, "status": "True", "reason": "R"}
            for kind in ("Connected", "NodeReady", "CertificateReady")
        ]
        body = self.device()
        body["status"] = {"conditions": conditions}
        self.done(self.kubernetes.replace(EDGEDEVICES, "edge", "pump", body, sub="status"))
        self.create(NODES, None, "pump", spec={"providerID": "aranya://edge/pump"})
        pod = {"nodeName": "pump", "containers": [{"name": "host", "image": "x"}]}
        self.create(PODS, "edge", "pump", spec=pod)
        stored = self.done(self.kubernetes.get(PODS, "edge", "pump"))
        stored["status"] = {"phase": "Running"}
        self.done(self.kubernetes.replace(PODS, "edge", "pump", stored, sub="status"))

    def test_well(self) -> None:
        """Where all is well every line says ok and the exit code is 0."""
        self.all_well()
        code, out, err = self.call("doctor")
        self.assertEqual((code, err), (0, ""), out)
        self.assertEqual({line.split()[0] for line in out.splitlines()}, {"ok"}, out)
        self.assertGreaterEqual(len(out.splitlines()), 9)

    def test_nothing_there(self) -> None:
        """Each thing that is missing is a line that says FAIL and what to do."""
        code, out, _ = self.call("doctor", "pump")
        self.assertEqual(code, 1)
        failed = [line for line in out.splitlines() if line.startswith("FAIL")]
        self.assertTrue(any("start aranya" in line for line in failed))
        self.assertTrue(any("kubectl aranya join pump" in line for line in failed))

    def test_stale_lease(self) -> None:
        """An old Lease means that aranya does not run."""
        self.all_well()
        self.done(self.kubernetes.delete(LEASES, "edge", "aranya"))
        self.lead(300)
        code, out, _ = self.call("doctor")
        self.assertEqual(code, 1)
        self.assertIn("FAIL  aranya leads", out)

    def test_kubelet_unreachable(self) -> None:
        """A kubelet endpoint that the API server cannot reach is told with its reason."""
        self.all_well()
        self.bridge.health = b""
        code, out, _ = self.call("doctor")
        self.assertEqual(code, 1)
        self.assertIn("no route", out)
        self.assertIn("--node-address", out)

    def test_what_may_not_be_seen(self) -> None:
        """What the caller may not look at is skipped, not failed."""
        self.all_well()

        def refuse(request: Request) -> None:
            if request.plural in ("nodes", "leases"):
                raise Refusal(403, "Forbidden", "no")

        self.server.before = refuse
        code, out, _ = self.call("doctor")
        self.assertEqual(code, 0, out)
        self.assertIn("skip  pump: Node", out)

    def test_unknown(self) -> None:
        """A device that does not exist fails."""
        self.lead(1)
        code, out, _ = self.call("doctor", "other")
        self.assertEqual(code, 1)
        self.assertIn("no EdgeDevice other", out)


class UninstallTests(PluginCase):
    """``uninstall``."""

    def setUp(self) -> None:
        super().setUp()
        self.change({"metadata": {"finalizers": ["other/one", FINALIZER]}})
        self.create(NODES, None, "pump", spec={"providerID": "aranya://edge/pump"})
        self.create(NODES, None, "real", spec={"providerID": "aranya://edge2/real"})
        self.create(PODS, "edge", "pump", spec={"nodeName": "pump", "containers": []})
        self.create(PODS, "edge", "real", spec={"nodeName": "real", "containers": []})

    def test_released(self) -> None:
        """Our Nodes and Pods go, our finaliser comes off, all else stays."""
        code, out, err = self.call("uninstall", "--yes")
        self.assertEqual((code, err), (0, ""))
        self.assertIn("Node pump deleted", out)
        names = [node["metadata"]["name"] for node in self.server.all_stored(NODES)]
        self.assertEqual(names, ["real"])
        self.assertEqual([pod["metadata"]["name"] for pod in self.server.all_stored(PODS)], ["real"])
        self.assertEqual(self.device()["metadata"]["finalizers"], ["other/one"])
        self.assertIn("nothing of aranya", self.call("uninstall", "--yes")[1])

    def test_running(self) -> None:
        """While aranya runs nothing is changed."""
        self.lead(2)
        code, _, err = self.call("uninstall", "--yes")
        self.assertEqual(code, 1)
        self.assertIn("still runs", err)
        self.assertEqual(len(self.server.all_stored(NODES)), 2)
