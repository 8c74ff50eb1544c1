"""The API server in memory answers the contract, and its hooks do what tests need."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from aranya.interfaces import Kubernetes
from aranya.kube.errors import Gone, NotFound, ServerError, TooManyRequests, Unreachable
from aranya.kube.memory import MemoryApiServer
from aranya.kube.objects import CONFIGMAPS, NODES, SERVICEACCOUNTS, new_object, version_of
from test.contracts.kubernetes import KubernetesQuestions


class MemoryContractTests(KubernetesQuestions, SynchronousTestCase):
    """The double, through the shipped client."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.server = MemoryApiServer(self.clock)
        self.kube: Kubernetes = self.server.client()
        self.namespace = "default"

    def ask(self, answer: Coroutine[Any, Any, None]) -> None:
        """Drive the question on the clock."""
        asked = Deferred.fromCoroutine(answer)
        for _ in range(50):
            if asked.called:
                break
            self.clock.advance(0.1)
        self.successResultOf(asked)


class HooksTests(SynchronousTestCase):
    """What a test can make the server do."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.server = MemoryApiServer(self.clock)
        self.kube = self.server.client()

    def make(self, name: str) -> Any:
        return self.successResultOf(
            Deferred.fromCoroutine(
                self.kube.create(CONFIGMAPS, "default", new_object(CONFIGMAPS, {"name": name}))
            )
        )

    def failing(self, work: Coroutine[Any, Any, Any], kind: type[Exception]) -> Any:
        return self.failureResultOf(Deferred.fromCoroutine(work), kind).value

    def test_fail_next(self) -> None:
        """So many requests are refused with the code told, then it answers again."""
        self.server.fail_next(1)
        self.server.fail_next(1, 429, "TooManyRequests", retry_after=7)
        self.failing(self.kube.get(CONFIGMAPS, "default", "x"), ServerError)
        error = self.failing(self.kube.get(CONFIGMAPS, "default", "x"), TooManyRequests)
        self.assertEqual(error.retry_after, 7.0)
        self.failing(self.kube.get(CONFIGMAPS, "default", "x"), NotFound)

    def test_away(self) -> None:
        """A server that is away refuses connections and keeps what it has."""
        self.make("x")
        self.server.go_away()
        error = self.failing(self.kube.get(CONFIGMAPS, "default", "x"), Unreachable)
        self.assertEqual(
            str(error), "cannot reach the API server at https://memory.invalid: connection refused"
        )
        self.server.come_back()
        self.successResultOf(Deferred.fromCoroutine(self.kube.get(CONFIGMAPS, "default", "x")))

    def test_compact(self) -> None:
        """After compaction an old version is ``Gone``, the newest is not."""
        old = version_of(self.make("x"))
        new = version_of(self.make("y"))
        self.server.compact()
        stream = self.kube.watch(CONFIGMAPS, "default", resource_version=old)
        waiting = Deferred.fromCoroutine(stream.__anext__())
        self.clock.advance(0)
        self.failureResultOf(waiting, Gone)
        stream = self.kube.watch(CONFIGMAPS, "default", resource_version=new)
        waiting = Deferred.fromCoroutine(stream.__anext__())
        self.clock.advance(0)
        self.assertNoResult(waiting)
        stream.close()
        self.failureResultOf(waiting, StopAsyncIteration)
        self.assertEqual(self.server.watching, 0)

    def test_unknown_path(self) -> None:
        """What is not an API path is ``NotFound``."""
        from aranya.interfaces import Resource

        strange = Resource("", "v1", "", "")
        self.failing(self.kube.list(strange), NotFound)

    def test_subresources(self) -> None:
        """Tokens are made for a ServiceAccount, and a pod is bound to its node."""
        from aranya.kube.objects import PODS

        run = lambda work: self.successResultOf(Deferred.fromCoroutine(work))  # noqa: E731
        run(self.kube.create(SERVICEACCOUNTS, "default", new_object(SERVICEACCOUNTS, {"name": "sa"})))
        request = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}}
        answer = run(self.kube.create(SERVICEACCOUNTS, "default", request, name="sa", sub="token"))
        self.assertTrue(answer["status"]["token"])
        run(self.kube.create(PODS, "default", new_object(PODS, {"name": "p"}, spec={})))
        binding = {"apiVersion": "v1", "kind": "Binding", "target": {"kind": "Node", "name": "n"}}
        run(self.kube.create(PODS, "default", binding, name="p", sub="binding"))
        stored = self.server.stored(PODS, "default", "p")
        assert stored is not None
        self.assertEqual(stored["spec"]["nodeName"], "n")

    def test_status_of_a_node(self) -> None:
        """Objects given out are copies: changing one changes nothing in the server."""
        self.make("x")
        found = self.server.stored(CONFIGMAPS, "default", "x")
        assert found is not None
        found["metadata"]["name"] = "y"
        self.assertIsNone(self.server.stored(CONFIGMAPS, "default", "y"))
        self.assertEqual(self.server.all_stored(NODES), [])
