"""The client's promises: deadlines, what is sent twice, plain words for what went wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import orjson
from twisted.internet import error as network
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.interfaces import IProtocol
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from twisted.web.client import ResponseDone, ResponseFailed, ResponseNeverReceived
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgent, IBodyProducer, IResponse
from zope.interface import implementer

from aranya.interfaces import Change, Kubernetes, Patch
from aranya.kube.client import ApiClient
from aranya.kube.credentials import ClusterAccess, InThread, Proof
from aranya.kube.errors import ApiError, Gone, ServerError, Unauthorized, Unreachable
from aranya.kube.memory import MemoryApiServer
from aranya.kube.objects import CONFIGMAPS, LEASES, new_object, version_of
from aranya.kube.watching import EVENTS_WAITING, SILENCE_SECONDS


class Response:
    """An answer of a test's choosing."""

    version = (b"HTTP", 1, 1)
    phrase = b"Phrase"

    def __init__(self, code: int, body: bytes = b"{}", cut: Exception | None = None) -> None:
        self.code = code
        self.headers = Headers()
        self._body = body
        self._cut = cut

    def deliverBody(self, protocol: IProtocol) -> None:
        protocol.makeConnection(StringTransport())
        protocol.dataReceived(self._body)
        protocol.connectionLost(Failure(self._cut or ResponseDone()))


@implementer(IAgent)
class ScriptedAgent:
    """Remembers requests; a test answers each."""

    def __init__(self) -> None:
        self.asked: list[tuple[bytes, bytes, Headers]] = []
        self.answers: list[Deferred[IResponse]] = []
        self.cancelled = 0

    def request(
        self,
        method: bytes,
        uri: bytes,
        headers: Headers | None = None,
        bodyProducer: IBodyProducer | None = None,
    ) -> Deferred[IResponse]:
        def cancel(waiting: Deferred[IResponse]) -> None:
            self.cancelled += 1
            # As Twisted's agent does once the request was sent.
            waiting.errback(ResponseNeverReceived([Failure(CancelledError())]))

        assert headers is not None
        self.asked.append((method, uri, headers))
        self.answers.append(Deferred(cancel))
        return self.answers[-1]

    def answer(self, code: int, body: object = None, cut: Exception | None = None) -> None:
        content = body if isinstance(body, bytes) else orjson.dumps(body or {})
        self.answers[-1].callback(Response(code, content, cut))  # type: ignore[arg-type]

    def die(self, why: Exception | None = None) -> None:
        self.answers[-1].errback(ResponseNeverReceived([Failure(why or network.ConnectionLost())]))


class Tokens:
    """Proofs that count."""

    def __init__(self) -> None:
        self.generation = 1

    async def proof(self, now: float, in_thread: InThread) -> Proof:
        return Proof(f"Bearer secret-{self.generation}")

    def refused(self) -> None:
        self.generation += 1


class ApiClientTests(SynchronousTestCase):
    """Calls with a scripted agent."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.agent = ScriptedAgent()
        access = ClusterAccess("https://api:6443", proofs=Tokens())
        self.kube: Kubernetes = ApiClient(
            self.clock, access, agent=self.agent, in_thread=lambda work: succeed(work())
        )

    def get(self) -> Deferred[Any]:
        return Deferred.fromCoroutine(self.kube.get(CONFIGMAPS, "ns", "x"))

    def test_request(self) -> None:
        """A call is one request with the path, the query and the proof."""
        asked = Deferred.fromCoroutine(
            self.kube.list(CONFIGMAPS, "ns", label_selector="a=b,c", resource_version="0")
        )
        [(method, uri, headers)] = self.agent.asked
        self.assertEqual(method, b"GET")
        self.assertEqual(
            uri,
            b"https://api:6443/api/v1/namespaces/ns/configmaps?labelSelector=a%3Db%2Cc&resourceVersion=0",
        )
        self.assertEqual(headers.getRawHeaders("Authorization"), ["Bearer secret-1"])
        self.agent.answer(200, {"items": None, "metadata": {"resourceVersion": "5"}})
        self.assertEqual(self.successResultOf(asked)["items"], [])

    def test_deadline(self) -> None:
        """A server that says nothing is given up after 30 s, and the request with it."""
        asked = self.get()
        self.clock.advance(29.9)
        self.assertNoResult(asked)
        self.clock.advance(0.2)
        error = self.failureResultOf(asked, Unreachable).value
        self.assertEqual(str(error), "cannot reach the API server at https://api:6443: no answer within 30 s")
        self.assertEqual((self.agent.cancelled, self.clock.getDelayedCalls()), (1, []))

    def test_cancelled(self) -> None:
        """Who cancels a call hears that it was cancelled, not that the server is away."""
        asked = self.get()
        asked.cancel()
        self.failureResultOf(asked, CancelledError)
        self.assertEqual((self.agent.cancelled, self.clock.getDelayedCalls()), (1, []))

    def test_stale_credentials(self) -> None:
        """After a 401 the call is made once more with a fresh proof, and no third time."""
        asked = self.get()
        self.agent.answer(401)
        self.assertEqual(self.agent.asked[1][2].getRawHeaders("Authorization"), ["Bearer secret-2"])
        self.agent.answer(200, {"kind": "ConfigMap"})
        self.assertEqual(self.successResultOf(asked), {"kind": "ConfigMap"})
        asked = self.get()
        self.agent.answer(401)
        self.agent.answer(401, {"kind": "Status", "message": "Unauthorized"})
        self.failureResultOf(asked, Unauthorized)
        self.assertEqual(len(self.agent.asked), 4)

    def test_dead_connection(self) -> None:
        """A request on a connection that was dead already is made once more, if it may be."""
        body = new_object(CONFIGMAPS, {"name": "x"})
        calls: list[tuple[Callable[[], Any], int]] = [
            (lambda: self.kube.get(CONFIGMAPS, "ns", "x"), 2),
            (lambda: self.kube.delete(CONFIGMAPS, "ns", "x"), 2),
            (lambda: self.kube.replace(CONFIGMAPS, "ns", "x", body), 2),
            (lambda: self.kube.patch(CONFIGMAPS, "ns", "x", {}), 2),
            (lambda: self.kube.patch(CONFIGMAPS, "ns", "x", [], kind=Patch.JSON), 1),
            (lambda: self.kube.create(CONFIGMAPS, "ns", body), 1),
        ]
        for call, expected in calls:
            self.agent.asked.clear()
            asked = Deferred.fromCoroutine(call())
            for _ in range(expected):
                self.agent.die()
            error = self.failureResultOf(asked, Unreachable).value
            self.assertIn("it closed the connection before it answered", str(error))
            self.assertEqual(len(self.agent.asked), expected)

    def test_refused_connections_are_not_retried(self) -> None:
        """A server that does not listen is not asked twice in one call."""
        asked = self.get()
        self.agent.answers[-1].errback(network.ConnectionRefusedError())
        self.assertIn("connection refused", str(self.failureResultOf(asked, Unreachable).value))
        self.assertEqual(len(self.agent.asked), 1)

    def test_not_an_api_server(self) -> None:
        """What is not JSON, or no object, is said in one line; so is a proxy's error page."""
        for body in (b"<html>", b"[1]", b'"x"'):
            asked = self.get()
            self.agent.answer(200, body)
            self.assertIn("not an API server", str(self.failureResultOf(asked, Unreachable).value))
        asked = self.get()
        self.agent.answer(502, b"<html>secret</html>")
        error = self.failureResultOf(asked, ServerError).value
        assert isinstance(error, ApiError)
        self.assertEqual((error.code, str(error)), (502, "the API server answered 502 Phrase"))

    def test_cut_answer(self) -> None:
        """An answer that breaks off is no answer."""
        asked = self.get()
        self.agent.answer(200, b'{"kind":', ResponseFailed([Failure(network.ConnectionLost())]))
        self.failureResultOf(asked, Unreachable)

    def test_pages_that_expired(self) -> None:
        """A list that changed under its pages is read again in one piece."""
        asked = Deferred.fromCoroutine(self.kube.list(CONFIGMAPS, "ns"))
        self.agent.answer(200, {"items": [{"metadata": {"name": "a"}}], "metadata": {"continue": "c"}})
        self.assertIn(b"continue=c", self.agent.asked[1][1])
        self.agent.answer(410, {"kind": "Status", "reason": "Expired"})
        self.assertNotIn(b"limit", self.agent.asked[2][1])
        whole = [{"metadata": {"name": "a"}}, {"metadata": {"name": "b"}}]
        self.agent.answer(200, {"items": whole, "metadata": {"resourceVersion": "9"}})
        listing = self.successResultOf(asked)
        self.assertEqual([item["metadata"]["name"] for item in listing["items"]], ["a", "b"])
        self.assertEqual(listing["metadata"], {"resourceVersion": "9"})


class WatchTests(SynchronousTestCase):
    """Watches, with the API server in memory."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.server = MemoryApiServer(self.clock)
        self.kube = self.server.client(jitter=lambda: 0.5)

    def run_now(self, work: Any) -> Any:
        return self.successResultOf(Deferred.fromCoroutine(work))

    def watch(self) -> Any:
        return self.kube.watch(CONFIGMAPS, "ns", resource_version=str(self.server.version))

    def make(self, name: str) -> None:
        self.run_now(self.kube.create(CONFIGMAPS, "ns", new_object(CONFIGMAPS, {"name": name})))

    def next(self, stream: Any) -> Deferred[Any]:
        waiting: Deferred[Any] = Deferred.fromCoroutine(stream.__anext__())
        self.clock.advance(0)
        return waiting

    def test_ends_after_its_time(self) -> None:
        """The server is asked for a time between 5 and 10 minutes; its end is quiet."""
        stream = self.watch()
        waiting = self.next(stream)
        self.assertEqual(self.server.requests[-1].query["timeoutSeconds"], "450")
        self.clock.advance(449)
        self.assertNoResult(waiting)
        self.clock.advance(2)
        self.failureResultOf(waiting, StopAsyncIteration)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_silence(self) -> None:
        """Once a server has sent a bookmark, three minutes of silence mean that it is dead."""
        stream = self.watch()
        self.next(stream)
        self.server.bookmark()
        self.clock.advance(0)
        waiting = self.next(stream)
        self.clock.advance(SILENCE_SECONDS - 1)
        self.assertNoResult(waiting)
        self.clock.advance(2)
        self.assertIn("silent for 180 s", str(self.failureResultOf(waiting, Unreachable).value))
        self.clock.advance(0)
        self.assertEqual((self.server.watching, self.clock.getDelayedCalls()), (0, []))

    def test_slow_reader(self) -> None:
        """A reader that does not read pauses the connection; nothing is lost."""
        stream = self.watch()
        waiting = self.next(stream)
        total = EVENTS_WAITING + 100
        for number in range(total):
            self.make(f"m-{number}")
        self.clock.advance(0)
        names = [self.successResultOf(waiting)[1]["metadata"]["name"]]
        self.assertLessEqual(len(stream._stream._events), EVENTS_WAITING)
        while len(names) < total:
            change, found = self.successResultOf(self.next(stream))
            self.assertIs(change, Change.ADDED)
            names.append(found["metadata"]["name"])
        self.assertEqual(names, [f"m-{number}" for number in range(total)])
        stream.close()

    def test_refused(self) -> None:
        """A watch that the server refuses by code raises that error, ``Gone`` included."""
        self.server.fail_next(1, 410, "Expired")
        self.failureResultOf(self.next(self.watch()), Gone)

    def test_close(self) -> None:
        """Closing the client ends its watches; who waits for one sees a quiet end."""
        waiting = self.next(self.watch())
        closing = Deferred.fromCoroutine(self.kube.close())
        self.clock.advance(0)
        self.successResultOf(closing)
        self.failureResultOf(waiting, StopAsyncIteration)
        self.assertEqual((self.server.watching, self.clock.getDelayedCalls()), (0, []))

    def test_cancelled(self) -> None:
        """A reader that is cancelled ends the request."""
        waiting = self.next(self.watch())
        waiting.cancel()
        self.failureResultOf(waiting, CancelledError)
        self.clock.advance(0)
        self.assertEqual((self.server.watching, self.clock.getDelayedCalls()), (0, []))

    def test_one_resource(self) -> None:
        """A watch of one resource does not hear of another."""
        waiting = self.next(self.watch())
        made = self.run_now(self.kube.create(LEASES, "ns", new_object(LEASES, {"name": "l"}, spec={})))
        self.assertTrue(version_of(made))
        self.clock.advance(0)
        self.assertNoResult(waiting)
        waiting.cancel()
        self.failureResultOf(waiting, CancelledError)
