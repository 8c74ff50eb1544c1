"""Tests of ``aranya.kubelet.auth``."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase
from twisted.web.http_headers import Headers

from aranya.certs.verification import moment
from aranya.kubelet.auth import (
    ASKED_AT_ONCE,
    REMEMBERED,
    Access,
    Authentication,
    Authorization,
    ClientCA,
    Memory,
    User,
    access_needed,
    token_of,
)
from aranya.kubelet.visit import Refusal
from test.support.reviews import ReviewingKubernetes


class Asking:
    """As much of a request as authentication reads."""

    def __init__(self, **headers: str) -> None:
        self.requestHeaders = Headers(
            {name.replace("_", "-").encode(): [value.encode()] for name, value in headers.items()}
        )


class AccessTests(SynchronousTestCase):
    """What a request needs."""

    def test_table(self) -> None:
        """Each path needs the kubelet's subresource; what streams needs ``create``."""
        for method, path, upgrade, verb, subresources in (
            ("GET", "stats/summary", False, "get", ["stats"]),
            ("POST", "stats/summary", False, "create", ["stats"]),
            ("GET", "metrics", False, "get", ["metrics"]),
            ("GET", "metrics/cadvisor", False, "get", ["metrics"]),
            ("GET", "logs/messages", False, "get", ["log"]),
            ("GET", "pods", False, "get", ["pods", "proxy"]),
            ("GET", "pods/x", False, "get", ["proxy"]),
            ("GET", "runningpods/", False, "get", ["pods", "proxy"]),
            ("GET", "healthz/ping", False, "get", ["healthz", "proxy"]),
            ("GET", "configz", False, "get", ["configz", "proxy"]),
            ("GET", "flagz", False, "get", ["configz"]),
            ("GET", "statusz", False, "get", ["statusz"]),
            ("POST", "checkpoint/a/b/c", False, "create", ["checkpoint"]),
            ("GET", "containerLogs/a/b/c", False, "get", ["proxy"]),
            ("GET", "containerLogs/a/b/c", True, "create", ["proxy"]),
            ("GET", "metrics", True, "create", ["metrics"]),
            ("GET", "exec/a/b/c", False, "create", ["proxy"]),
            ("GET", "exec/a/b/c", True, "create", ["proxy"]),
            ("POST", "attach/a/b/c", True, "create", ["proxy"]),
            ("PUT", "portForward/a/b", True, "create", ["proxy"]),
            ("GET", "run/a/b/c", False, "create", ["proxy"]),
            ("DELETE", "", False, "delete", ["proxy"]),
            ("OPTIONS", "debug/pprof", False, "", ["proxy"]),
            ("PATCH", "metricsx", False, "patch", ["proxy"]),
        ):
            needed = access_needed(method, tuple(path.split("/")), upgrade, "dev")
            self.assertEqual(needed, Access(verb, "dev", tuple(subresources)), (method, path))


class TokenTests(SynchronousTestCase):
    """Bearer tokens."""

    def test_header(self) -> None:
        """The token of the Authorization header, whatever the case of its scheme."""
        self.assertEqual(token_of(Asking(authorization="bEaReR abc")), "abc")

    def test_websocket_protocol(self) -> None:
        """A token among the WebSocket sub-protocols."""
        offered = "v4.channel.k8s.io, base64url.bearer.authorization.k8s.io.YWJjZA"
        self.assertEqual(token_of(Asking(sec_websocket_protocol=offered)), "abcd")

    def test_none(self) -> None:
        """No token, another scheme, or nonsense."""
        for asking in (
            Asking(),
            Asking(authorization="Basic abc"),
            Asking(authorization="Bearer"),
            Asking(authorization="Bearer " + "x" * 20_000),
            Asking(authorization="Bearer \u00e9"),
            Asking(sec_websocket_protocol="base64url.bearer.authorization.k8s.io.%"),
        ):
            self.assertEqual(token_of(asking), "")


class AuthenticationTests(SynchronousTestCase):
    """Who calls."""

    def setUp(self) -> None:
        self.kubernetes = ReviewingKubernetes()
        self.clock = Clock()
        authority = ClientCA(self.kubernetes, self.clock)
        self.authentication = Authentication(
            self.kubernetes, authority, self.clock, lambda: moment(self.clock.seconds())
        )

    def ask(self, **headers: str) -> Coroutine[Deferred[Any], Any, User]:
        return self.authentication.user(Asking(**headers), object())

    def test_anonymous(self) -> None:
        """Nobody is let in without credentials, and nobody is asked about it."""
        refusal = self.failureResultOf(self.ask(), Refusal).value
        self.assertEqual((refusal.code, refusal.text), (401, "Unauthorized"))
        self.assertEqual(self.kubernetes.asked, [])

    def test_anonymous_by_token(self) -> None:
        """A token that stands for nobody is nobody."""
        self.kubernetes.tokens["t"] = {"username": "system:anonymous"}
        self.failureResultOf(self.ask(authorization="Bearer t"), Refusal)

    def test_token(self) -> None:
        """A token is reviewed once in two minutes; every user is in ``system:authenticated``."""
        self.kubernetes.tokens["t"] = {
            "username": "system:serviceaccount:monitoring:prometheus",
            "uid": "u",
            "groups": ["system:serviceaccounts"],
            "extra": {"k": ["v"]},
        }
        expected = User(
            "system:serviceaccount:monitoring:prometheus",
            ("system:serviceaccounts", "system:authenticated"),
            "u",
            (("k", ("v",)),),
        )
        for _ in range(3):
            self.assertEqual(self.successResultOf(self.ask(authorization="Bearer t")), expected)
        self.assertEqual(len(self.kubernetes.asked), 1)
        self.clock.advance(121)
        self.successResultOf(self.ask(authorization="Bearer t"))
        self.assertEqual(len(self.kubernetes.asked), 2)

    def test_bad_token(self) -> None:
        """A token that is not valid is 401, and remembered as such."""
        for _ in range(2):
            self.failureResultOf(self.ask(authorization="Bearer t"), Refusal)
        self.assertEqual(len(self.kubernetes.asked), 1)

    def test_review_fails(self) -> None:
        """When nobody can be asked nobody is let in, and it is asked anew the next time."""
        self.kubernetes.failure = OSError("no route")
        refusal = self.failureResultOf(self.ask(authorization="Bearer t"), Refusal).value
        self.assertEqual(refusal.code, 401)
        self.kubernetes.failure = None
        self.kubernetes.tokens["t"] = {"username": "u"}
        self.assertEqual(self.successResultOf(self.ask(authorization="Bearer t")).name, "u")


class AuthorizationTests(SynchronousTestCase):
    """May they."""

    def setUp(self) -> None:
        self.kubernetes = ReviewingKubernetes()
        self.clock = Clock()
        self.authorization = Authorization(self.kubernetes, self.clock)
        self.user = User("u", ("g",), "uid", (("k", ("v",)),))

    def require(self, *subresources: str) -> Coroutine[Deferred[Any], Any, None]:
        return self.authorization.require(self.user, Access("get", "dev", subresources))

    def test_question(self) -> None:
        """The review asks for the node by name, with everything known of the user."""
        self.kubernetes.allowed.add(("u", "get", "proxy"))
        self.successResultOf(self.require("proxy"))
        self.assertEqual(
            self.kubernetes.asked[0]["spec"],
            {
                "user": "u",
                "groups": ["g"],
                "uid": "uid",
                "extra": {"k": ["v"]},
                "resourceAttributes": {
                    "verb": "get",
                    "version": "v1",
                    "resource": "nodes",
                    "subresource": "proxy",
                    "name": "dev",
                },
            },
        )

    def test_fallback(self) -> None:
        """The right to the whole proxy is enough where a finer one is not known."""
        self.kubernetes.allowed.add(("u", "get", "proxy"))
        self.successResultOf(self.require("pods", "proxy"))
        self.assertEqual(len(self.kubernetes.asked), 2)

    def test_forbidden(self) -> None:
        """A denial reads as the kubelet's; it is remembered for half a minute only."""
        refusal = self.failureResultOf(self.require("pods", "proxy"), Refusal).value
        self.assertEqual(refusal.code, 403)
        self.assertEqual(
            refusal.text, "Forbidden (user=u, verb=get, resource=nodes, subresource(s)=[pods proxy])\n"
        )
        self.kubernetes.allowed.add(("u", "get", "pods"))
        self.failureResultOf(self.require("pods", "proxy"), Refusal)
        self.clock.advance(31)
        self.successResultOf(self.require("pods", "proxy"))

    def test_allowed_is_remembered(self) -> None:
        """An allowance holds for five minutes."""
        self.kubernetes.allowed.add(("u", "get", "proxy"))
        self.successResultOf(self.require("proxy"))
        self.kubernetes.allowed.clear()
        self.clock.advance(299)
        self.successResultOf(self.require("proxy"))
        self.clock.advance(2)
        self.failureResultOf(self.require("proxy"), Refusal)

    def test_error(self) -> None:
        """When nobody can be asked it is a 500, never an allowance."""
        self.kubernetes.failure = OSError("no route")
        refusal = self.failureResultOf(self.require("proxy"), Refusal).value
        self.assertEqual(refusal.code, 500)
        self.assertEqual(
            refusal.text, "Authorization error (user=u, verb=get, resource=nodes, subresource=proxy)"
        )


class MemoryTests(SynchronousTestCase):
    """Answers that are remembered."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.memory: Memory[int] = Memory(self.clock, lambda answer: 10.0)
        self.open: list[Deferred[int]] = []

    async def ask(self) -> int:
        self.open.append(Deferred())
        return await self.open[-1]

    def get(self, question: object) -> Deferred[int]:
        return Deferred.fromCoroutine(self.memory.get(question, self.ask))

    def test_asked_once(self) -> None:
        """Who asks what is being asked waits for the same answer."""
        waiting = [self.get("q"), self.get("q")]
        self.assertEqual(len(self.open), 1)
        self.open[0].callback(7)
        self.assertEqual([self.successResultOf(one) for one in waiting], [7, 7])

    def test_failure(self) -> None:
        """A failure reaches all who wait and is forgotten."""
        waiting = [self.get("q"), self.get("q")]
        self.open[0].errback(OSError("x"))
        for one in waiting:
            self.failureResultOf(one, OSError)
        self.get("q")
        self.assertEqual(len(self.open), 2)

    def test_too_many_at_once(self) -> None:
        """A flood of new questions is turned away."""
        for number in range(ASKED_AT_ONCE):
            self.get(number)
        refusal = self.failureResultOf(self.get("one more"), Refusal).value
        self.assertEqual(refusal.code, 503)
        self.assertEqual(len(self.open), ASKED_AT_ONCE)

    def test_bounded(self) -> None:
        """The answer that was used least goes first."""
        for number in range(REMEMBERED):
            self.get(number)
            self.open.pop().callback(number)
        self.successResultOf(self.get(0))
        self.get("new")
        self.open.pop().callback(1)
        self.assertEqual(self.successResultOf(self.get(0)), 0)
        self.assertNoResult(self.get(1))


class ClientCATests(SynchronousTestCase):
    """Where the bundle comes from."""

    def setUp(self) -> None:
        self.kubernetes = ReviewingKubernetes()
        self.clock = Clock()

    def test_follows(self) -> None:
        """The published bundle is read at the start and once a minute."""
        authority = ClientCA(self.kubernetes, self.clock)
        self.kubernetes.config_map = {"data": {"client-ca-file": "one", "requestheader-client-ca-file": "x"}}
        authority.start()
        self.addCleanup(authority.stop)
        self.assertEqual(authority.pem, b"one")
        self.kubernetes.config_map = {"data": {"client-ca-file": "two"}}
        self.clock.advance(60)
        self.assertEqual(authority.pem, b"two")

    def test_keeps_the_old(self) -> None:
        """A bundle that cannot be read, or is missing, leaves the one read before."""
        authority = ClientCA(self.kubernetes, self.clock)
        self.kubernetes.config_map = {"data": {"client-ca-file": "one"}}
        authority.start()
        self.addCleanup(authority.stop)
        self.kubernetes.failure = OSError("no route")
        self.clock.advance(60)
        self.kubernetes.failure = None
        self.kubernetes.config_map = {}
        self.clock.advance(60)
        self.assertEqual(authority.pem, b"one")

    def test_given(self) -> None:
        """A bundle that was brought is used, and nothing is looked up."""
        authority = ClientCA(self.kubernetes, self.clock, b"mine")
        authority.start()
        authority.look_again()
        self.assertEqual((authority.pem, self.kubernetes.asked), (b"mine", []))

    def test_looks_again(self) -> None:
        """A strange certificate makes it look again, but not for each one."""
        authority = ClientCA(self.kubernetes, self.clock)
        authority.start()
        self.addCleanup(authority.stop)
        self.clock.advance(6)
        for _ in range(5):
            authority.look_again()
        self.assertEqual(len(self.kubernetes.asked), 2)
