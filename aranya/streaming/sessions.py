"""What an endpoint holds of a running session, and of all of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from twisted.internet.defer import Deferred


class Session(Protocol):
    """One taken-over connection, whatever runs on it."""

    def abort(self, message: str) -> None:
        """End it with this reason, told to the client and to the session's events."""
        ...

    def when_gone(self) -> Deferred[None]:
        """Fires when the connection is no more; at once if it is so already."""
        ...


class Sessions:
    """The sessions of one endpoint; each leaves when its connection is gone."""

    def __init__(self) -> None:
        self._running: set[Session] = set()

    def add(self, session: Session | None) -> None:
        """Remember a session; ``None`` is that of a refused request."""
        if session is None:
            return
        self._running.add(session)
        session.when_gone().addCallback(lambda _: self._running.discard(session))

    def __len__(self) -> int:
        return len(self._running)

    def __iter__(self) -> Iterator[Session]:
        return iter(tuple(self._running))

    def abort_all(self, message: str) -> None:
        """End every session with this reason."""
        for session in self:
            session.abort(message)


class Carried:
    """The part of a ``Session`` that hears what becomes of its connection."""

    def __init__(self) -> None:
        self._gone = False
        self._waiting: list[Deferred[None]] = []

    def abort(self, message: str) -> None:
        """A session overrides: end with this reason."""
        raise NotImplementedError

    def when_gone(self) -> Deferred[None]:
        """Fires when the connection is no more."""
        waiting: Deferred[None] = Deferred()
        if self._gone:
            waiting.callback(None)
        else:
            self._waiting.append(waiting)
        return waiting

    def connection_idle(self) -> None:
        """The carrier tells: nobody is there any more, or nobody cares."""
        self.abort("nothing moved on this session for 4 hours")

    def connection_gone(self) -> None:
        """The carrier tells: the connection is no more."""
        self._gone = True
        waiting, self._waiting = self._waiting, []
        for each in waiting:
            each.callback(None)
