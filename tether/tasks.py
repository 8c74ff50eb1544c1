"""The one way to start a coroutine whose result nobody awaits.

A coroutine that is started and dropped swallows its failure. ``spawn`` attaches
the ear: a failure is logged with the sentence it was given, a cancellation is not.
"""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure


def spawn(work: Coroutine[Deferred[Any], Any, Any], log: Logger, sentence: str) -> Deferred[None]:
    """Run ``work``; log a failure as ``sentence``. Gives back a Deferred to cancel or await.

    The Deferred fires with ``None`` however the work ends.
    """
    running: Deferred[Any] = Deferred.fromCoroutine(work)

    def failed(failure: Failure) -> None:
        if not isinstance(failure.value, CancelledError):
            log.failure("{sentence}", failure=failure, sentence=sentence)

    return running.addCallbacks(lambda _: None, failed)
