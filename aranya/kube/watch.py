"""The bytes of a watch, made into events. No I/O.

A watch is one endless answer: a JSON object per line, ``{"type": ..., "object": ...}``.
A line is bounded (a peer that never ends one must not fill our memory). An
``ERROR`` object is how the server says that the resource version has become too
old in mid-stream: it is raised as ``Gone``, like the same thing said by an HTTP code.
"""

from __future__ import annotations

from typing import Any

import orjson

from aranya.interfaces import Change, Object
from aranya.kube.errors import ApiError, Unreachable, error_of

#: An object of etcd's default limit is 1.5 MiB; managed fields and JSON may triple it.
LINE_LIMIT = 8 * 1024 * 1024

Event = tuple[Change, Object]


class WatchDecoder:
    """One watch: feed it bytes, take events."""

    def __init__(self, limit: int = LINE_LIMIT) -> None:
        self._limit = limit
        self._pieces: list[bytes] = []
        self._waiting = 0
        self._bookmarked = False

    @property
    def bookmarked(self) -> bool:
        """Whether this server sends bookmarks, so that long silence means something."""
        return self._bookmarked

    def receive(self, data: bytes) -> tuple[list[Event], ApiError | Unreachable | None]:
        """The events that are complete now, and the error that ends the watch, if one came after them."""
        lines = data.split(b"\n")
        events: list[Event] = []
        for part in lines[:-1]:
            line = b"".join((*self._pieces, part))
            self._pieces.clear()
            self._waiting = 0
            if len(line) > self._limit:
                return events, _nonsense("a watch event that is too long")
            if not line.strip():
                continue
            outcome = _parse(line)
            if not isinstance(outcome, tuple):
                return events, outcome
            if outcome[0] is Change.BOOKMARK:
                self._bookmarked = True
            events.append(outcome)
        if lines[-1]:
            self._pieces.append(lines[-1])
            self._waiting += len(lines[-1])
        if self._waiting > self._limit:
            return events, _nonsense("a watch event that is too long")
        return events, None


def _parse(line: bytes) -> Event | ApiError | Unreachable:
    try:
        event: Any = orjson.loads(line)
        kind, found = event["type"], event["object"]
        if kind == "ERROR":
            return error_of(int(found.get("code") or 500), found)
        change = Change(kind)
        # Every event must say where to resume, and whom it is about.
        complete = found["metadata"]["resourceVersion"]
        if change is not Change.BOOKMARK:
            complete = complete and found["metadata"]["name"]
        if not complete:
            raise ValueError
    except (ValueError, KeyError, TypeError, AttributeError):
        return _nonsense("a watch event that makes no sense")
    return change, without_managed_fields(found)


def without_managed_fields(found: Object) -> Object:
    """The object as it is kept: who set which field is nobody's business here, and large."""
    metadata = found.get("metadata")
    if isinstance(metadata, dict):
        metadata.pop("managedFields", None)
    return found


def _nonsense(what: str) -> Unreachable:
    return Unreachable(f"the API server, or a proxy before it, sent {what}")
