"""
Many devices in one process: ``python -m test.bench.idle TOKENS FOLDER``, a file with a join token a line.

Each joins and dials as arhat does, with arhat's own code, over TLS and a WebSocket of its own; only the
executor behind it is missing. One line of JSON says how many are up, once all are.
"""

from __future__ import annotations

import json
import os
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from twisted.internet import reactor as running
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater

from arhat import node
from arhat.config import Config
from arhat.dial import Dial
from arhat.executor.ending import Deaf
from arhat.identity import State
from arhat.joining import join, read_token
from tether.errors import Reason, ResetCode
from tether.link.interfaces import Channel, Receiver
from tether.link.link import PeerIntroduction
from tether.verbs.requests import Request

reactor: Any = running
_SOFTWARE = "bench"


class Nothing:
    """Nobody opens anything on these devices."""

    def stream_opened(self, request: Request, channel: Channel) -> Receiver:
        """Refused."""
        channel.reset(Reason(ResetCode.UNSUPPORTED, "this device is only here to be counted"))
        return Deaf()


def now() -> datetime:
    """The wall clock."""
    return datetime.now(UTC)


async def _device(word: str, folder: Path) -> Dial:
    state = State(folder)
    state.prepare()
    identity = await join(read_token(word), state, reactor, now, os.environ, _SOFTWARE)
    instance = os.urandom(16)
    config = Config()

    def introduce() -> PeerIntroduction:
        facts = node.gather(config.allow, config.forward, config.labels)
        return PeerIntroduction(_SOFTWARE, instance=instance, host_boot_id=facts.boot_id, facts=facts)

    dial = Dial(reactor, state, identity, Nothing(), introduce, os.environ, now)
    dial.startService()
    return dial


async def _all(words: list[str], folder: Path) -> None:
    began = time.monotonic()
    # Fewer at once than the gateway lets in.
    dials: list[Dial] = []
    waiting = list(enumerate(words))

    async def work() -> None:
        while waiting:
            number, word = waiting.pop()
            dials.append(await _device(word, folder / str(number)))

    for each in [Deferred.fromCoroutine(work()) for _ in range(16)]:
        await each
    while not all(dial.is_up for dial in dials):
        await deferLater(reactor, 0.05, lambda: None)
    print(json.dumps({"up": len(dials), "seconds": time.monotonic() - began}), flush=True)


def _failed(failure: Any) -> None:
    print(failure.getTraceback(), file=sys.stderr, flush=True)
    reactor.stop()


def main(tokens: str, folder: str) -> None:
    """Be all of them until killed."""
    words = Path(tokens).read_text().split()
    reactor.callWhenRunning(lambda: Deferred.fromCoroutine(_all(words, Path(folder))).addErrback(_failed))
    reactor.run()


if __name__ == "__main__":
    main(*sys.argv[1:])
