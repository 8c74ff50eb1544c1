"""Tests of ``aranya.kubelet.root`` and of the small pages behind it."""

from __future__ import annotations

import json
from dataclasses import replace

from twisted.trial.unittest import SynchronousTestCase

from aranya.kubelet.root import ROUTES
from aranya.kubelet.visit import pairs_of
from test.support.door import House

UPGRADE = ("Connection: Upgrade", "Upgrade: SPDY/3.1")


class AccessTests(SynchronousTestCase):
    """Who may come in, before what is there."""

    def setUp(self) -> None:
        self.house = House()

    def test_anonymous(self) -> None:
        """Without credentials every path is 401, known or not."""
        paths = [path.format(namespace="edge", pod="dev", uid="u", container="host") for _, path, _ in ROUTES]
        for path in [*paths, "nowhere", "", "exec", "../healthz", "%65xec/edge/dev/host"]:
            for method in ("GET", "POST"):
                answer = self.house.ask(method, f"/{path}", token="").answer
                self.assertEqual((answer.code, answer.body), (401, b"Unauthorized"), path)
                self.assertEqual(answer.headers["content-length"], "12")
        self.assertEqual(self.house.kubernetes.asked, [])

    def test_forbidden(self) -> None:
        """Who may not is told so in the kubelet's words, for unknown paths too."""
        self.house.kubernetes.tokens["other"] = {"username": "other"}
        for path in ("/healthz", "/nowhere"):
            answer = self.house.get(path, token="other")
            self.assertEqual(answer.code, 403)
            self.assertIn(b"Forbidden (user=other, verb=get, resource=nodes, subresource(s)=[", answer.body)

    def test_reading_opens_no_shell(self) -> None:
        """Who may only read the node cannot start anything, whatever the method or spelling."""
        self.house.kubernetes.allowed = {("root", "get", "proxy")}
        for method, path in (
            ("GET", "/exec/edge/dev/host?command=sh&output=1"),
            ("GET", "/%65xec/edge/dev/host?command=sh&output=1"),
            ("GET", "/attach/edge/dev/host?output=1"),
            ("GET", "/portForward/edge/dev"),
            ("POST", "/run/edge/dev/host?cmd=id"),
        ):
            answer = self.house.ask(method, path, *UPGRADE).answer
            self.assertEqual(answer.code, 403, path)
        self.assertEqual(self.house.get("/healthz", *UPGRADE).code, 403)
        self.assertEqual(self.house.get("/healthz").code, 200)

    def test_review_fails(self) -> None:
        """When the API server cannot be asked it is a 500."""
        self.house.get("/healthz")
        self.house.kubernetes.failure = OSError("no route")
        answer = self.house.get("/metrics")
        self.assertEqual(answer.code, 500)
        self.assertIn(
            b"Authorization error (user=root, verb=get, resource=nodes, subresource=metrics)", answer.body
        )


class RoutingTests(SynchronousTestCase):
    """What is where."""

    def setUp(self) -> None:
        self.house = House()

    def test_unknown(self) -> None:
        """Unknown paths answer as Go's mux and go-restful do."""
        for path, text in (
            ("/nowhere", b"404 page not found\n"),
            ("/", b"404 page not found\n"),
            ("/spec/", b"404 page not found\n"),
            ("/exec/edge", b"404: Page Not Found"),
            ("/exec/edge//host", b"404: Page Not Found"),
            ("/stats/container", b"404: Page Not Found"),
            ("/healthz/other", b"404: Page Not Found"),
            ("/debug/pprof/heap", b"404: Page Not Found"),
        ):
            answer = self.house.get(path)
            self.assertEqual((answer.code, answer.body), (404, text), path)
            self.assertEqual(answer.headers["content-type"], "text/plain; charset=utf-8")

    def test_method(self) -> None:
        """A wrong method says which are right."""
        for method, path, allow in (
            ("POST", "/pods", "get"),
            ("POST", "/containerLogs/edge/dev/host", "get"),
            ("GET", "/run/edge/dev/host", "post"),
            ("GET", "/checkpoint/edge/dev/host", "post"),
        ):
            answer = self.house.ask(method, path).answer
            self.assertEqual((answer.code, answer.body), (405, b"405: Method Not Allowed"), path)
            self.assertEqual(answer.headers["allow"], allow)

    def test_not_served(self) -> None:
        """What a node without a runtime cannot do says so."""
        for method, path in (
            ("POST", "/checkpoint/edge/dev/host"),
            ("GET", "/logs/"),
            ("GET", "/logs/messages"),
        ):
            answer = self.house.ask(method, path).answer
            self.assertEqual(answer.code, 501, path)

    def test_failed_upgrade_hangs_up(self) -> None:
        """An error to an upgrade has a length and closes; an ordinary error keeps the connection."""
        connection = self.house.ask("POST", "/exec/other/dev/host?command=a&output=1", *UPGRADE)
        self.assertEqual(connection.answer.headers["connection"], "close")
        self.assertFalse(connection.wire.connected)
        connection = self.house.ask("GET", "/nowhere")
        self.assertNotIn("connection", connection.answer.headers)
        self.assertTrue(connection.wire.connected)

    def test_stopping(self) -> None:
        """An endpoint that stops starts nothing."""
        self.house.served.end_sessions("aranya is stopping")
        answer = self.house.get("/healthz")
        self.assertEqual((answer.code, answer.body), (503, b"aranya is stopping"))

    def test_internal_error(self) -> None:
        """A bug is a 500 without a traceback, and is logged."""
        self.house.served.pod = 7  # type: ignore[assignment]  # what no caller gives
        answer = self.house.get("/pods")
        self.assertEqual((answer.code, answer.body), (500, b"internal error; see the log of aranya"))
        self.assertEqual(len(self.flushLoggedErrors(AttributeError)), 1)


class PageTests(SynchronousTestCase):
    """The small pages."""

    def setUp(self) -> None:
        self.house = House()

    def test_health(self) -> None:
        """Each check answers ``ok``; ``verbose`` lists them."""
        for path in (
            "/healthz",
            "/healthz/ping",
            "/healthz/log",
            "/healthz/syncloop",
            "/healthz/ping?verbose",
        ):
            answer = self.house.get(path)
            self.assertEqual((answer.code, answer.body), (200, b"ok"), path)
        verbose = self.house.get("/healthz?verbose=1&exclude=log").body.decode()
        self.assertEqual(verbose, "[+]ping ok\n[+]log excluded: ok\n[+]syncloop ok\nhealthz check passed\n")

    def test_metrics(self) -> None:
        """Scrapers get 200 and their content type everywhere."""
        for path in ("", "/cadvisor", "/probes", "/resource", "/slis"):
            answer = self.house.get(f"/metrics{path}")
            self.assertEqual(answer.code, 200)
            self.assertEqual(answer.headers["content-type"], "text/plain; version=0.0.4; charset=utf-8")
        self.assertIn(b"\naranya_kubelet_sessions 0\n", self.house.get("/metrics").body)

    def test_summary(self) -> None:
        """The summary has the keys that must be there and no invented figures."""
        for method in ("GET", "POST"):
            summary = json.loads(
                self.house.ask(method, "/stats/summary?only_cpu_and_memory=true").answer.body
            )
            self.assertEqual(
                summary, {"node": {"nodeName": "dev", "startTime": "2024-01-02T03:04:05Z"}, "pods": []}
            )

    def test_pods(self) -> None:
        """The list has the virtual pod, once it exists."""
        for path in ("/pods", "/runningpods/"):
            answer = self.house.get(path)
            self.assertEqual(answer.headers["content-type"], "application/json")
            pods = json.loads(answer.body)
            self.assertEqual(pods["kind"], "PodList")
            self.assertEqual([pod["metadata"]["uid"] for pod in pods["items"]], ["uid-1"])
        self.house.served.pod = replace(self.house.pod, object={"metadata": {"uid": "as it is"}})
        self.assertEqual(
            json.loads(self.house.get("/pods").body)["items"], [{"metadata": {"uid": "as it is"}}]
        )
        self.house.served.pod = replace(self.house.pod, uid="")
        self.assertEqual(json.loads(self.house.get("/pods").body)["items"], [])

    def test_configuration(self) -> None:
        """The pages about the kubelet itself answer."""
        self.assertEqual(json.loads(self.house.get("/configz").body), {"kubeletconfig": {}})
        self.assertIn(b"node: dev", self.house.get("/statusz").body)
        self.assertEqual(self.house.get("/flagz").code, 200)


class QueryTests(SynchronousTestCase):
    """What a query means."""

    def test_pairs(self) -> None:
        """Blanks are kept, ``+`` is a space, bytes stay bytes, ``;`` separates nothing."""
        self.assertEqual(
            pairs_of(b"command=sh&command=-c&command=&command=a+b%2Bc%00%ff%zz;d=e&&flag"),
            [
                (b"command", b"sh"),
                (b"command", b"-c"),
                (b"command", b""),
                (b"command", b"a b+c\0\xff%zz;d=e"),
                (b"flag", b""),
            ],
        )
