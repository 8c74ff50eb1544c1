"""The questions of ``test.contracts.kubernetes``, put by the shipped client to a real API server."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.trial.unittest import TestCase

from aranya.kube.client import ApiClient
from aranya.kube.credentials import read_access
from test.cluster.plane import shared_plane
from test.contracts.kubernetes import KubernetesQuestions


class KubernetesTests(KubernetesQuestions, TestCase):
    """What the API server in memory is believed to do, the real one does."""

    timeout = 60
    namespace = "default"

    def setUp(self) -> None:
        client = ApiClient(reactor, read_access(str(shared_plane().admin_kubeconfig)))  # type: ignore[arg-type]
        self.kube = client
        self.addCleanup(lambda: Deferred.fromCoroutine(client.close()))

    def ask(self, answer: Coroutine[Any, Any, None]) -> Deferred[None]:
        """Drive one question by the real reactor."""
        return Deferred.fromCoroutine(answer)
