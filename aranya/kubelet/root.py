"""The resource tree of a kubelet endpoint: every route on one screen.

A path is decoded once, and the same reading of it decides who may go there
(``auth.py``) and what is there, so no spelling of a path can mean two things.
Authentication comes first for every path: who is not known learns nothing,
not even which paths exist.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.web.http import Request
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET

from aranya.interfaces import Devices
from aranya.kubelet import health, pods, stats
from aranya.kubelet.auth import Authentication, Authorization, access_needed
from aranya.kubelet.exec import attach, execute, run
from aranya.kubelet.logs import container_logs
from aranya.kubelet.portforward import port_forward
from aranya.kubelet.visit import Refusal, Served, Visit, is_upgrade
from tether.tasks import spawn

Page = Callable[[Visit], Awaitable[None] | None]


def _gone(code: int, text: str) -> Page:
    def page(visit: Visit) -> None:
        raise Refusal(code, text)

    return page


_NO_CHECKPOINT = _gone(501, "checkpoint is not supported: nothing is deployed on this node")
_NO_NODE_LOGS = _gone(501, "node logs are not served here: use kubectl logs on the pod named as this node")
_NO_DEBUG = _gone(404, "404: Page Not Found")

#: Methods ("" is any), path, page. ``{name}`` is one part of a path, ``*`` at the end all that follows.
ROUTES: tuple[tuple[str, str, Page], ...] = (
    ("GET POST", "exec/{namespace}/{pod}/{container}", execute),
    ("GET POST", "exec/{namespace}/{pod}/{uid}/{container}", execute),
    ("GET POST", "attach/{namespace}/{pod}/{container}", attach),
    ("GET POST", "attach/{namespace}/{pod}/{uid}/{container}", attach),
    ("GET POST", "portForward/{namespace}/{pod}", port_forward),
    ("GET POST", "portForward/{namespace}/{pod}/{uid}", port_forward),
    ("POST", "run/{namespace}/{pod}/{container}", run),
    ("POST", "run/{namespace}/{pod}/{uid}/{container}", run),
    ("GET", "containerLogs/{namespace}/{pod}/{container}", container_logs),
    ("GET", "pods", pods.pods),
    ("GET", "runningpods/", pods.pods),
    ("GET", "runningpods", pods.pods),
    ("GET", "healthz", health.healthz),
    ("GET", "healthz/ping", health.healthz),
    ("GET", "healthz/log", health.healthz),
    ("GET", "healthz/syncloop", health.healthz),
    ("GET", "metrics", stats.metrics),
    ("GET", "metrics/cadvisor", stats.nothing),
    ("GET", "metrics/probes", stats.nothing),
    ("GET", "metrics/resource", stats.nothing),
    ("GET", "metrics/slis", stats.nothing),
    ("GET POST", "stats/summary", stats.summary),
    ("GET", "configz", health.configz),
    ("GET", "statusz", health.statusz),
    ("GET", "flagz", health.flagz),
    ("POST", "checkpoint/{namespace}/{pod}/{container}", _NO_CHECKPOINT),
    ("GET", "logs", _NO_NODE_LOGS),
    ("GET", "logs/*", _NO_NODE_LOGS),
    ("", "debug/*", _NO_DEBUG),
)


@dataclass(frozen=True, slots=True)
class Route:
    """One line of the table, taken apart."""

    methods: tuple[str, ...]
    parts: tuple[str, ...]
    page: Page

    def match(self, segments: tuple[str, ...]) -> dict[str, str] | None:
        """What the path names, if it is this route's."""
        parts = self.parts
        if parts[-1] == "*":
            parts = parts[:-1]
            segments = segments[: len(parts)]
        if len(parts) != len(segments):
            return None
        named: dict[str, str] = {}
        for part, segment in zip(parts, segments, strict=True):
            if part.startswith("{"):
                if not segment:
                    return None
                named[part[1:-1]] = segment
            elif part != segment:
                return None
        return named


class Routes:
    """The table by first part of the path."""

    def __init__(self, table: tuple[tuple[str, str, Page], ...] = ROUTES) -> None:
        self._by_root: dict[str, list[Route]] = {}
        for methods, path, page in table:
            parts = tuple(path.split("/"))
            self._by_root.setdefault(parts[0], []).append(Route(tuple(methods.split()), parts, page))

    def find(self, method: str, segments: tuple[str, ...]) -> tuple[Page, dict[str, str]]:
        """The page and what its path names; raises ``Refusal`` as go-restful and Go's mux word it."""
        routes = self._by_root.get(segments[0] if segments else "")
        if routes is None:
            raise Refusal(404, "404 page not found\n")
        allowed: list[str] = []
        for route in routes:
            named = route.match(segments)
            if named is None:
                continue
            if not route.methods or method in route.methods:
                return route.page, named
            allowed += route.methods
        if allowed:
            raise Refusal(405, "405: Method Not Allowed", {"Allow": ", ".join(dict.fromkeys(allowed))})
        raise Refusal(404, "404: Page Not Found")


class Door:
    """What all endpoints share: who may come in, and what is where."""

    _log = Logger()

    def __init__(
        self,
        authentication: Authentication,
        authorization: Authorization,
        devices: Devices,
        clock: IReactorTime,
        routes: Routes | None = None,
    ) -> None:
        self._authentication = authentication
        self._authorization = authorization
        self._devices = devices
        self._clock = clock
        self._routes = routes if routes is not None else Routes()

    def enter(self, request: Request, served: Served) -> None:
        """Answer ``request``, which came to the endpoint of ``served``."""
        visit = Visit(request, served, self._devices, self._clock)
        spawn(self._visit(visit), self._log, "A request could not be answered.")

    async def _visit(self, visit: Visit) -> None:
        try:
            await self._lead(visit)
        except Refusal as refusal:
            visit.refuse(refusal)
        except Exception:
            self._log.failure(
                "A request for {path} failed.", path=visit.segments[:1], device=str(visit.served.key)
            )
            visit.refuse(Refusal(500, "internal error; see the log of aranya"))

    async def _lead(self, visit: Visit) -> None:
        channel = visit.request.channel
        user = await self._authentication.user(visit.request, getattr(channel, "transport", None))
        node = visit.served.key.name
        upgrade = is_upgrade(visit.request)
        access = access_needed(visit.method, visit.segments, upgrade, node)
        await self._authorization.require(user, access)
        page, visit.named = self._routes.find(visit.method, visit.segments)
        if visit.gone:
            return
        if visit.served.stopping:
            raise Refusal(503, visit.served.stopping)
        answer = page(visit)
        if answer is not None:
            await answer


class Root(Resource):
    """The whole tree of one endpoint, small enough to have one per device."""

    isLeaf = True

    def __init__(self, door: Door, served: Served) -> None:
        super().__init__()
        self._door = door
        self.served = served

    def render(self, request: Request) -> int:
        """Framework hook: a request is complete."""
        self._door.enter(request, self.served)
        return NOT_DONE_YET
