"""Who calls, and may they: client certificate or token, then SubjectAccessReview.

Nobody is trusted by name. The API server's own client certificate has another
subject in every distribution, so the question "may this user do that to this node"
is always put to the API server itself, and an answer is remembered for a while.

Anonymous is always 401. A request that leaves HTTP needs ``create`` whatever its
method: a WebSocket handshake is a GET, and reading a node must not be enough to
open a shell on it.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Hashable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Generic, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.web.http import Request

from aranya.certs.verification import CertificateRefused, NoCertificate, client_identity
from aranya.interfaces import Kubernetes, Object, Resource
from aranya.kubelet.visit import Refusal
from tether.tasks import spawn

TOKEN_REVIEWS = Resource("authentication.k8s.io", "v1", "tokenreviews", "TokenReview", namespaced=False)
ACCESS_REVIEWS = Resource(
    "authorization.k8s.io", "v1", "subjectaccessreviews", "SubjectAccessReview", namespaced=False
)
CONFIG_MAPS = Resource("", "v1", "configmaps", "ConfigMap")

AUTHENTICATED = "system:authenticated"
ANONYMOUS = "system:anonymous"

TOKEN_LIFETIME = 120.0
ALLOWED_LIFETIME = 300.0
DENIED_LIFETIME = 30.0
REMEMBERED = 4096
#: Questions to the API server that may be open at once; beyond that callers are asked to come back.
ASKED_AT_ONCE = 128
TOKEN_LIMIT = 16 * 1024

AUTHORITY_PERIOD = 60.0
#: A certificate that does not verify may be of a newer authority: look again, but not for each one.
AUTHORITY_RECHECK = 5.0
_AUTHORITY_PLACE = ("kube-system", "extension-apiserver-authentication")
_AUTHORITY_KEY = "client-ca-file"

_TOKEN_PROTOCOL = b"base64url.bearer.authorization.k8s.io."
_VERBS = {"GET": "get", "POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}
_STREAMED = frozenset({"exec", "attach", "portForward", "run"})

#: First part of the path -> subresources of ``nodes``, tried in order; the first allow wins.
_SUBRESOURCES: Mapping[str, tuple[str, ...]] = {
    "stats": ("stats",),
    "metrics": ("metrics",),
    "logs": ("log",),
    "spec": ("spec",),
    "checkpoint": ("checkpoint",),
    "statusz": ("statusz",),
    "flagz": ("configz",),
    "pods": ("pods", "proxy"),
    "runningpods": ("pods", "proxy"),
    "healthz": ("healthz", "proxy"),
    "configz": ("configz", "proxy"),
}
#: These cover themselves only; what is below them is ``proxy`` like everything else.
_EXACT = frozenset({"statusz", "flagz", "pods", "configz"})

V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class User:
    """Who calls, in the terms of a SubjectAccessReview."""

    name: str
    groups: tuple[str, ...] = ()
    uid: str = ""
    extra: tuple[tuple[str, tuple[str, ...]], ...] = ()


@dataclass(frozen=True, slots=True)
class Access:
    """What a request needs: a verb on subresources of one node, any of which is enough."""

    verb: str
    node: str
    subresources: tuple[str, ...]


def access_needed(method: str, segments: tuple[str, ...], upgrade: bool, node: str) -> Access:
    """What the request with this path needs."""
    head = segments[0] if segments else ""
    subresources = _SUBRESOURCES.get(head, ("proxy",))
    if head in _EXACT and len(segments) > 1:
        subresources = ("proxy",)
    verb = "create" if upgrade or head in _STREAMED else _VERBS.get(method, "")
    return Access(verb, node, subresources)


class Memory(Generic[V]):
    """Answers that are remembered for a while; a question that is open is asked once.

    Bounded both ways: what is remembered (the least used goes first) and what is asked at once.
    """

    def __init__(self, clock: IReactorTime, lifetime: Callable[[V], float]) -> None:
        self._clock = clock
        self._lifetime = lifetime
        self._known: OrderedDict[Hashable, tuple[float, V]] = OrderedDict()
        self._asked: dict[Hashable, list[Deferred[V]]] = {}

    async def get(self, question: Hashable, ask: Callable[[], Coroutine[Deferred[Any], Any, V]]) -> V:
        """The remembered answer, else what ``ask`` gives; failures are not remembered."""
        known = self._known.get(question)
        if known is not None:
            if self._clock.seconds() < known[0]:
                self._known.move_to_end(question)
                return known[1]
            del self._known[question]
        if question in self._asked:
            heard: Deferred[V] = Deferred()
            self._asked[question].append(heard)
            return await heard
        if len(self._asked) >= ASKED_AT_ONCE:
            raise Refusal(503, "too many requests wait for the API server; try again", {"Retry-After": "1"})
        self._asked[question] = []
        try:
            answer = await ask()
        except BaseException as error:
            for waiting in self._asked.pop(question):
                waiting.errback(error)
            raise
        self._known[question] = (self._clock.seconds() + self._lifetime(answer), answer)
        while len(self._known) > REMEMBERED:
            self._known.popitem(last=False)
        for waiting in self._asked.pop(question):
            waiting.callback(answer)
        return answer


class ClientCA:
    """The bundle of authorities that sign client certificates, kept up to date.

    The API server publishes it; an operator may bring one instead, as some
    distributions publish none. Without either no certificate counts.
    """

    _log = Logger()

    def __init__(self, kubernetes: Kubernetes, clock: IReactorTime, bundle: bytes = b"") -> None:
        """``bundle`` (PEM), if given, is used as it is and nothing is looked up."""
        self._kubernetes = kubernetes
        self._clock = clock
        self._given = bool(bundle)
        self._pem = bundle
        self._complained = False
        self._looked = float("-inf")
        self._looking: Deferred[None] | None = None
        self._poll = LoopingCall(self.look_again)
        self._poll.clock = clock

    @property
    def pem(self) -> bytes:
        """The bundle as it is now; empty while none is known."""
        return self._pem

    def start(self) -> None:
        """Look now and once a minute."""
        if not self._given and not self._poll.running:
            self._poll.start(AUTHORITY_PERIOD, now=True)

    def stop(self) -> None:
        """Look no more."""
        if self._poll.running:
            self._poll.stop()
        if self._looking is not None:
            self._looking.cancel()

    def look_again(self) -> Deferred[None] | None:
        """Look now, unless that is being done or was a moment ago."""
        now = self._clock.seconds()
        if self._given or now - self._looked < AUTHORITY_RECHECK:
            return self._looking
        self._looked = now
        self._looking = spawn(self.refresh(), self._log, "Looking for the client CA failed.")
        return self._looking

    async def refresh(self) -> None:
        """Read the bundle that the API server publishes; keep the old one when that fails."""
        namespace, name = _AUTHORITY_PLACE
        try:
            published = await self._kubernetes.get(CONFIG_MAPS, namespace, name)
        except Exception as error:
            self._complain(str(error))
            return
        pem = (published.get("data") or {}).get(_AUTHORITY_KEY, "").encode("utf-8")
        if not pem.strip():
            self._complain(f"it has no key {_AUTHORITY_KEY}")
            return
        self._complained = False
        if pem != self._pem:
            self._pem = pem
            place = "/".join(_AUTHORITY_PLACE)
            self._log.info("The client CA of the cluster was read from ConfigMap {place}.", place=place)

    def _complain(self, why: str) -> None:
        if not self._complained:
            self._complained = True
            self._log.warn(
                "The client CA of the cluster cannot be read from ConfigMap {place}: {why}. "
                "Until it can, {effect}.",
                place="/".join(_AUTHORITY_PLACE),
                why=why,
                effect="the one read before is used" if self._pem else "client certificates are refused",
            )


class Authentication:
    """Finds out who calls."""

    _log = Logger()

    def __init__(
        self,
        kubernetes: Kubernetes,
        authority: ClientCA,
        clock: IReactorTime,
        now: Callable[[], datetime],
    ) -> None:
        self._kubernetes = kubernetes
        self._authority = authority
        self._now = now
        self._tokens: Memory[User | None] = Memory(clock, lambda user: TOKEN_LIFETIME)

    async def user(self, request: Request, transport: object) -> User:
        """Who calls; raises ``Refusal`` 401 when nobody can tell.

        The certificate is judged anew for each request: a pooled connection may
        outlive the authority that it was made under.
        """
        user = self._by_certificate(transport)
        if user is None:
            token = token_of(request)
            if token:
                user = await self._by_token(token)
        if user is None or user.name == ANONYMOUS:
            raise Refusal(401, "Unauthorized")
        if AUTHENTICATED not in user.groups:
            user = User(user.name, (*user.groups, AUTHENTICATED), user.uid, user.extra)
        return user

    def _by_certificate(self, transport: object) -> User | None:
        try:
            identity = client_identity(transport, self._authority.pem, self._now())
        except NoCertificate:
            return None
        except CertificateRefused as refused:
            self._log.info("A client certificate was refused: {reason}", reason=str(refused))
            self._authority.look_again()
            return None
        return User(identity.user, tuple(identity.groups))

    async def _by_token(self, token: str) -> User | None:
        digest = hashlib.sha256(token.encode("utf-8")).digest()
        try:
            return await self._tokens.get(digest, lambda: self._review(token))
        except Refusal:
            raise
        except Exception as error:
            self._log.warn("A token could not be reviewed: {error}", error=str(error))
            return None

    async def _review(self, token: str) -> User | None:
        body: Object = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenReview",
            "spec": {"token": token},
        }
        review = await self._kubernetes.create(TOKEN_REVIEWS, None, body)
        status = review.get("status") or {}
        user = status.get("user") or {}
        if status.get("authenticated") is not True or not user.get("username"):
            return None
        extra = user.get("extra") or {}
        return User(
            user["username"],
            tuple(user.get("groups") or ()),
            user.get("uid") or "",
            tuple(sorted((key, tuple(values or ())) for key, values in extra.items())),
        )


def token_of(request: Request) -> str:
    """The bearer token of a request, by header or by WebSocket sub-protocol; empty if there is none."""
    for header in request.requestHeaders.getRawHeaders(b"authorization", ()):
        scheme, _, token = header.strip().partition(b" ")
        if scheme.lower() == b"bearer":
            return _token(token.strip())
    for header in request.requestHeaders.getRawHeaders(b"sec-websocket-protocol", ()):
        for offered in header.split(b","):
            if offered.strip().startswith(_TOKEN_PROTOCOL):
                encoded = offered.strip()[len(_TOKEN_PROTOCOL) :]
                try:
                    return _token(base64.urlsafe_b64decode(encoded + b"=" * (-len(encoded) % 4)))
                except (binascii.Error, ValueError):
                    return ""
    return ""


def _token(token: bytes) -> str:
    if len(token) > TOKEN_LIMIT:
        return ""
    try:
        return token.decode("ascii")
    except UnicodeDecodeError:
        return ""


class Authorization:
    """Asks the API server whether a user may do something to a node."""

    _log = Logger()

    def __init__(self, kubernetes: Kubernetes, clock: IReactorTime) -> None:
        self._kubernetes = kubernetes
        self._verdicts: Memory[bool] = Memory(
            clock, lambda allowed: ALLOWED_LIFETIME if allowed else DENIED_LIFETIME
        )

    async def require(self, user: User, access: Access) -> None:
        """Return if it is allowed; raises ``Refusal`` 403, or 500 when nobody could be asked."""
        for subresource in access.subresources:
            try:
                if await self._allowed(user, access, subresource):
                    return
            except Refusal:
                raise
            except Exception as error:
                self._log.warn("An access could not be reviewed: {error}", error=str(error))
                raise Refusal(
                    500,
                    f"Authorization error (user={user.name}, verb={access.verb}, "
                    f"resource=nodes, subresource={subresource})",
                ) from None
        raise Refusal(
            403,
            f"Forbidden (user={user.name}, verb={access.verb}, "
            f"resource=nodes, subresource(s)=[{' '.join(access.subresources)}])\n",
        )

    async def _allowed(self, user: User, access: Access, subresource: str) -> bool:
        async def ask() -> bool:
            review = await self._kubernetes.create(
                ACCESS_REVIEWS, None, access_review(user, access, subresource)
            )
            status = review.get("status") or {}
            return status.get("allowed") is True and status.get("denied") is not True

        return await self._verdicts.get((user, access.verb, access.node, subresource), ask)


def access_review(user: User, access: Access, subresource: str) -> Object:
    """The SubjectAccessReview to create."""
    spec: Object = {
        "user": user.name,
        "groups": list(user.groups),
        "resourceAttributes": {
            "verb": access.verb,
            "version": "v1",
            "resource": "nodes",
            "subresource": subresource,
            "name": access.node,
        },
    }
    if user.uid:
        spec["uid"] = user.uid
    if user.extra:
        spec["extra"] = {key: list(values) for key, values in user.extra}
    return {"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "spec": spec}
