"""The first start: a token becomes an identity.

Each URL of the token is tried in order, with the token's authority pinned. Who answers
with a refusal is believed, and nobody else is asked. Every failure is one line for
the person who typed the token.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path

from twisted.internet.defer import CancelledError, Deferred, TimeoutError
from twisted.logger import Logger
from twisted.python.failure import Failure

from arhat.gateway import GatewayTrust, NetworkReactor, ProxyRefused, gateway_endpoint, host_and_port
from arhat.identity import Identity, State, StateError, fits, signing_request, valid_bundle
from tether.errors import RemoteViolation
from tether.join import (
    SYSTEM_TRUST,
    Joined,
    JoinRefused,
    JoinRequest,
    Token,
    TokenUnreadable,
    pack_request,
    unpack_answer,
)
from tether.link.transport import NORMAL, MessageTransport
from tether.link.websocket import JOIN, ClientFactory

#: Seconds for one URL, from the first packet to the answer.
PATIENCE = 30.0


class JoinFailed(Exception):
    """The device did not join; one line of why and what to do."""


class _Unreachable(Exception):
    """This URL did not answer; another may."""


def read_token(word: str) -> Token:
    """The token in ``WORD`` or in the file of ``@FILE``; raises ``JoinFailed``."""
    if word.startswith("@"):
        file = Path(word[1:])
        try:
            word = file.read_text("ascii")
        except OSError as error:
            raise JoinFailed(f"cannot read the join token from {file}: {error.strerror}") from None
        except UnicodeDecodeError:
            raise JoinFailed(f"{file} does not hold a join token") from None
    try:
        token = Token.decode(word)
    except TokenUnreadable as error:
        raise JoinFailed(str(error)) from None
    if token.ca_bundle != SYSTEM_TRUST and not valid_bundle(token.ca_bundle):
        raise JoinFailed("the join token's authority cannot be read; make a new token")
    return token


def must_join(identity: Identity | None, now: datetime) -> bool:
    """Whether nothing works without a token: before the first join, and when the certificate has run out."""
    return identity is None or now >= identity.leaf().not_valid_after_utc


def is_another(token: Token, identity: Identity) -> bool:
    """Whether this is not the token that the identity came by; one that does not say came by any."""
    return identity.token not in ("", _mark(token))


async def join(
    token: Token,
    state: State,
    reactor: NetworkReactor,
    now: Callable[[], datetime],
    environment: Mapping[str, str],
    software: str,
) -> Identity:
    """Join and keep the identity; raises ``JoinFailed``."""
    try:
        # Kept before it is used: the token is bound to it by the first answer, even one that is lost.
        key = state.next_key()
    except StateError as error:
        raise JoinFailed(str(error)) from None
    request = JoinRequest(
        token.namespace, token.name, token.secret, signing_request(key, token.name), software
    )
    troubles: list[str] = []
    for url in token.urls:
        try:
            joined = await _ask(url, token, request, reactor, now, environment, software)
        except _Unreachable as error:
            troubles.append(f"{url}: {error}")
            continue
        identity = _identity(token, joined, key)
        trouble = identity.trouble(now())
        if trouble:
            raise JoinFailed(trouble)
        try:
            state.save(identity)
        except StateError as error:
            raise JoinFailed(str(error)) from None
        return identity
    raise JoinFailed(f"cannot join: {'; '.join(troubles)}")


def _identity(token: Token, joined: Joined, key: bytes) -> Identity:
    if not fits(joined.certificate, key):
        raise JoinFailed("the gateway answered with a certificate for another key; is it the right gateway?")
    bundle = joined.ca_bundle
    if bundle != SYSTEM_TRUST and not valid_bundle(bundle):
        bundle = token.ca_bundle
    urls = joined.urls or token.urls
    return Identity(token.namespace, token.name, urls, bundle, joined.certificate, key, _mark(token))


def _mark(token: Token) -> str:
    return hashlib.sha256(token.secret).hexdigest()[:32]


async def _ask(
    url: str,
    token: Token,
    request: JoinRequest,
    reactor: NetworkReactor,
    now: Callable[[], datetime],
    environment: Mapping[str, str],
    software: str,
) -> Joined:
    trust = GatewayTrust(host_and_port(url)[0], token.ca_bundle, now)
    question = _Question(request)
    factory = ClientFactory(url, JOIN, lambda: question, reactor, software)
    question.answer.addTimeout(PATIENCE, reactor)
    try:
        endpoint = gateway_endpoint(reactor, url, trust, environment)
        connecting = endpoint.connect(factory)
        # Whichever fails first ends the other: no connection, or no answer in time.
        connecting.addErrback(question.unconnected)
        try:
            answer = await question.answer
        finally:
            connecting.cancel()
            question.stop()
    except CancelledError:
        # The program stops; no other URL is asked.
        raise
    except TimeoutError:
        raise _Unreachable(f"no answer within {PATIENCE:.0f} s") from None
    except RemoteViolation as violation:
        raise JoinFailed(f"the gateway at {url} answered with something unknown: {violation}") from None
    except ProxyRefused as error:
        raise _Unreachable(str(error)) from None
    except Exception as error:
        # Of the many ways in which a network fails none is a bug.
        raise _Unreachable(trust.doubt or str(error) or type(error).__name__) from None
    if isinstance(answer, JoinRefused):
        raise JoinFailed(f"the gateway refused: {answer.reason}")
    return answer


class _Question:
    """Hears one ``join.v1`` connection: sends the request, takes the answer."""

    _log = Logger()

    def __init__(self, request: JoinRequest) -> None:
        self._request = request
        self._transport: MessageTransport | None = None
        self.answer: Deferred[Joined | JoinRefused] = Deferred()

    def connected(self, transport: MessageTransport) -> None:
        """The gateway let us ask."""
        self._transport = transport
        transport.send(pack_request(self._request))

    def message_received(self, message: bytes) -> None:
        """The answer."""
        if self.answer.called:
            return
        try:
            answer = unpack_answer(message)
        except RemoteViolation as violation:
            self.answer.errback(violation)
        else:
            self.answer.callback(answer)

    def connection_lost(self, reason: str) -> None:
        """The connection ended, before or after the answer."""
        self._transport = None
        self.fail(_Unreachable(reason))

    def unconnected(self, failure: Failure) -> None:
        """There is no connection. One that is cancelled by itself is no sign that the program stops."""
        given_up = failure.check(CancelledError) is not None
        self.fail(_Unreachable("the connection was given up") if given_up else failure)

    def fail(self, why: object) -> None:
        """There will be no answer."""
        if not self.answer.called:
            self.answer.errback(why)  # type: ignore[arg-type]  # an exception or a Failure, as Twisted takes both

    def stop(self) -> None:
        """Nobody waits for anything more."""
        if self._transport is not None:
            self._transport.close(NORMAL, "")
