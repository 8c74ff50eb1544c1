"""``/containerLogs``: a log of the device as the answer to one request.

Everything that can be refused is refused before the first byte, and as 400: of
all codes only a 400's text reaches the person behind kubectl whole.
"""

from __future__ import annotations

import calendar
import re
from collections.abc import Sequence

from twisted.internet.interfaces import IPushProducer
from twisted.web.http import Request

from aranya.interfaces import VirtualContainer
from aranya.kubelet.visit import TEXT, Refusal, Visit
from aranya.session.logs import LogStream
from tether.verbs.requests import Logs

_INT64 = re.compile(rb"[+-]?[0-9]{1,20}")
_RFC3339 = re.compile(
    rb"(\d{4})-(\d\d)-(\d\d)[Tt](\d\d):(\d\d):(\d\d)(?:[.,](\d{1,9})\d*)?(?:([Zz])|([+-])(\d\d):(\d\d))"
)


def container_logs(visit: Visit) -> None:
    """Stream the log of the container that the path names."""
    request = logs_request(visit.pairs)
    name, container_name = visit.named["pod"], visit.named["container"]
    pod = visit.pod(400, f'pod "{name}" does not exist')
    container = visit.container(pod)
    if container is None:
        raise Refusal(400, f'container "{container_name}" not found in pod "{name}"')
    device = visit.device("logs", 400)
    output = _Answer(visit.request, visit)
    stream = LogStream(device, from_container(request, container), output, visit.clock, visit.served.ended)
    visit.served.began(stream)
    visit.on_leaving(stream.client_gone)


def from_container(request: Logs, container: VirtualContainer) -> Logs:
    """The same question about this container's own file or unit."""
    return Logs(
        file=container.file,
        unit=container.unit,
        follow=request.follow,
        previous=request.previous,
        timestamps=request.timestamps,
        tail_lines=request.tail_lines,
        since_unix_nanos=request.since_unix_nanos,
        since_seconds=request.since_seconds,
        limit_bytes=request.limit_bytes,
    )


def logs_request(pairs: Sequence[tuple[bytes, bytes]]) -> Logs:
    """What a query asks for; a ``Refusal`` in the kubelet's words if it cannot be."""
    query: dict[bytes, bytes] = {}
    for name, value in pairs:
        query.setdefault(name, value)
    alias = query.get(b"tail", b"")
    if alias:
        query[b"tailLines"] = alias
        if alias == b"all":
            del query[b"tailLines"]
    tail = _integer(query.get(b"tailLines"))
    limit = _integer(query.get(b"limitBytes"))
    since = _integer(query.get(b"sinceSeconds"))
    moment = unix_nanos(query.get(b"sinceTime"))
    if query.get(b"stream", b"All") not in (b"", b"All"):
        raise _undecodable()
    if since is not None and moment is not None:
        raise _invalid()
    if (tail is not None and tail < 0) or (limit is not None and limit < 1):
        raise _invalid()
    if since is not None and since < 1:
        raise _invalid()
    return Logs(
        follow=_truth(query.get(b"follow")),
        previous=_truth(query.get(b"previous")),
        timestamps=_truth(query.get(b"timestamps")),
        tail_lines=tail,
        since_unix_nanos=moment,
        since_seconds=since,
        limit_bytes=limit,
    )


def _undecodable() -> Refusal:
    return Refusal(400, '{"message": "Unable to decode query."}')


def _invalid() -> Refusal:
    return Refusal(422, '{"message": "Invalid request."}')


def _truth(value: bytes | None) -> bool:
    # The API machinery's rule: being there is true, unless it says otherwise.
    return value is not None and value.lower() not in (b"0", b"false")


def _integer(value: bytes | None) -> int | None:
    if value is None:
        return None
    if not _INT64.fullmatch(value):
        raise _undecodable()
    number = int(value)
    if not -(2**63) <= number < 2**63:
        raise _undecodable()
    return number


def unix_nanos(value: bytes | None) -> int | None:
    """An RFC 3339 time as nanoseconds since 1970; ``None`` for an absent or empty one."""
    if value is None or value in (b"", b"null"):
        return None
    match = _RFC3339.fullmatch(value)
    if match is None:
        raise _undecodable()
    year, month, day, hour, minute, second = (int(part) for part in match.groups()[:6])
    if not (1 <= month <= 12 and 1 <= day <= 31 and hour < 24 and minute < 60 and second < 60 and year):
        raise _undecodable()
    if day > calendar.monthrange(year, month)[1]:
        raise _undecodable()
    seconds = calendar.timegm((year, month, day, hour, minute, second))
    if match[9]:
        offset = int(match[10]) * 3600 + int(match[11]) * 60
        seconds -= offset if match[9] == b"+" else -offset
    return seconds * 10**9 + int((match[7] or b"0").ljust(9, b"0"))


class _Answer:
    """The answer to one request as a place where a log goes (``LogOutput``)."""

    def __init__(self, request: Request, visit: Visit) -> None:
        self._request = request
        self._visit = visit
        self._registered = False

    def begin(self) -> None:
        if not self._visit.gone:
            self._request.setHeader("Content-Type", TEXT)
            self._request.write(b"")  # the head goes out although the log is silent

    def refuse(self, text: str) -> None:
        self._visit.refuse(Refusal(400, text))

    def write(self, data: bytes) -> None:
        if not self._visit.gone:
            self._request.write(data)

    def register_producer(self, producer: IPushProducer) -> None:
        if not self._visit.gone:
            self._registered = True
            self._request.registerProducer(producer, True)

    def unregister_producer(self) -> None:
        registered, self._registered = self._registered, False
        if registered and not self._visit.gone:
            self._request.unregisterProducer()

    def end(self) -> None:
        if not self._visit.gone:
            self._request.finish()
