"""Keep one link up: dial, stay, notice the end, wait a little, dial again, for ever.

The law of waiting
    Each round tries every URL in order. After a round that led to nothing the next one
    waits a random time up to a bound that doubles from half a second to fifteen; a link
    that lived for a while sets the bound back, and a short one nearly so. The whole range is random ("full
    jitter"), for when a controller restarts every device has lost its link in
    the same moment. Who was refused, or was told not to come back, asks again
    after a minute or two: a ban may be lifted, and nobody restarts an agent for that.
    An answer of 500 and up is no refusal: some proxy's gateway is not there just now.

The certificate is renewed over the link at two thirds of its life and used from the
next connection on, if its key has reached the disk: the controller forgets the former key
once the new one is used, and a new one that ends with this process would lose the device.
What cannot be saved is tried again before each attempt, and at each look at the certificate.

What the controller tells about URLs and authorities is kept; the URL that works now stays
the last resort until another has worked, for a mistake in what is told must not lose a
device for good. Another agent of this host may have renewed meanwhile, so what is kept is
read again before each attempt.

While sessions wait for the next link somebody sits before a terminal that stands still: until
their grace is over the bound of the waiting is one second.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from random import Random

from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred, TimeoutError
from twisted.internet.task import LoopingCall, deferLater
from twisted.logger import Logger

from arhat.gateway import GatewayTrust, NetworkReactor, gateway_endpoint, host_and_port
from arhat.identity import Identity, State, StateError, fits, signing_request, valid_bundle
from tether.errors import LinkLost, StreamReset
from tether.join import SYSTEM_TRUST, printable, valid_url
from tether.link.call import ask
from tether.link.interfaces import Acceptor, Link
from tether.link.link import PeerIntroduction, Tether
from tether.link.transport import MessageReceiver, MessageTransport
from tether.link.websocket import TETHER, ClientFactory, Refusal
from tether.tasks import spawn
from tether.verbs.requests import Failed, Issued, Renew, Settings
from tether.wire.frames import Duty
from tether.wire.mux import Role

FIRST_WAIT = 0.5
LONGEST_WAIT = 15.0
#: The bound while sessions wait for the next link.
SESSIONS_WAIT = 1.0
#: Who was refused comes again after this long, and up to twice as long.
REFUSED_WAIT = 60.0
#: A link that lived so long was a good one.
GOOD_LIFE = 20.0
#: Seconds for one URL until TCP stands (a name may have many addresses).
CONNECT_PATIENCE = 30.0
GOODBYE_PATIENCE = 2.0
RENEWAL_LOOK = 3600.0
RENEWAL_PATIENCE = 60.0


def seconds_to_wait(failures: int, refused: bool, random: Random, longest: float = LONGEST_WAIT) -> float:
    """How long until the next round, after so many rounds in a row that led to nothing."""
    if refused:
        return REFUSED_WAIT * (1 + random.random())
    return random.uniform(0, min(longest, FIRST_WAIT * 2.0 ** min(failures, 10)))


def failures_after(failures: int, life: float) -> int:
    """How many failures count after an attempt whose link lived for ``life`` seconds (0: there was none).

    A short link counts for little: the controller is there, and may just be starting anew.
    """
    if life >= GOOD_LIFE:
        return 0
    return min(failures, 1) + 1 if life else failures + 1


class Dial(Service):
    """Keeps the link of one identity up while it runs.

    ``introduce`` is asked before each connection, for facts change; its ``instance``
    must stay the same. ``acceptor`` gets the streams that the controller opens.
    ``now`` is the wall clock, against which certificates are held.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: NetworkReactor,
        state: State,
        identity: Identity,
        acceptor: Acceptor,
        introduce: Callable[[], PeerIntroduction],
        environment: Mapping[str, str],
        now: Callable[[], datetime],
        *,
        random: Random | None = None,
    ) -> None:
        self._reactor = reactor
        self._state = state
        self._identity = identity
        self._introduce = introduce
        self._environment = environment
        self._now = now
        self._random = random or Random()
        introduction = introduce()
        self._software = introduction.software
        self._tether = Tether(Role.AGENT, reactor, introduction, acceptor, self)
        self._up_since: float | None = None
        self._farewell: tuple[str, bool] | None = None
        self._present: _Connection | None = None
        self._url = ""
        self._dialled = identity
        self._trouble = ""
        # What is to be kept, and is not on disk yet.
        self._unsaved_certificate: Identity | None = None
        self._unsaved_settings: Identity | None = None
        self._state_troubles: set[str] = set()
        self._duty = Duty.ACTIVE
        self._draining = False
        self._drain_heard: Deferred[None] | None = None
        self._keeping: Deferred[None] | None = None
        self._renewing: Deferred[None] | None = None
        self._renewals = LoopingCall(self._look_at_certificate)
        self._renewals.clock = reactor

    @property
    def identity(self) -> Identity:
        """Who this device is, with the newest certificate that is on disk."""
        return self._identity

    @property
    def is_up(self) -> bool:
        """Whether there is a link now."""
        return self._up_since is not None

    @property
    def trouble(self) -> str:
        """Why there is no link, in one line; empty while there is one."""
        return self._trouble

    def drain(self) -> Deferred[None]:
        """Tell the controller, now and on each next link, that this agent takes no new sessions.

        Fires when it has heard: what it sent here before has arrived by then, be it by the next link. Without
        a link, and without sessions that wait for one, there is nobody to hear. May be cancelled.
        """
        self._draining = True
        self._tether.introduce_as(self._introduction())
        heard = self._drain_heard = Deferred()
        if self._tether.is_up:
            self._tell_drain()
        elif self._tether.transport is None and not self._tether.waits:
            self._drain_was_heard()
        return heard

    # ---- Service

    def startService(self) -> None:
        """Begin to dial."""
        super().startService()
        self._keeping = spawn(self._keep_up(), self._log, "the agent cannot dial any more")
        started = self._renewals.start(RENEWAL_LOOK, now=False)
        started.addErrback(lambda failure: self._log.failure("the watch over the certificate ended", failure))

    def stopService(self) -> Deferred[None]:
        """Say goodbye and dial no more."""
        super().stopService()
        if self._renewals.running:
            self._renewals.stop()
        if self._renewing is not None:
            self._renewing.cancel()
        return spawn(self._stop(), self._log, "the agent did not stop in order")

    async def _stop(self) -> None:
        self._tether.close("the agent stops")
        if self._present is not None and self._present.connection is not None:
            # The goodbye needs a moment to get out.
            try:
                await self._present.gone.addTimeout(GOODBYE_PATIENCE, self._reactor)
            except (TimeoutError, CancelledError):
                self._present.abort()
        if self._keeping is not None:
            self._keeping.cancel()

    # ---- the loop

    async def _keep_up(self) -> None:
        failures = 0
        while self.running:
            outcome: _Outcome | None = None
            for url in self._identity.urls:
                latest = await self._attempt(url)
                if outcome is None or not outcome.refused or latest.life:
                    # A refusal counts, whatever comes of the URLs behind it.
                    outcome = latest
                if outcome.life:
                    # It worked; after it ended the first URL is the best again.
                    break
            if not self.running:
                # A connection that is given up half-way fails in ways of its own.
                return
            assert outcome is not None, "an identity has a URL"
            failures = failures_after(failures, outcome.life)
            longest = SESSIONS_WAIT if self._tether.waits else LONGEST_WAIT
            wait = seconds_to_wait(failures, outcome.refused, self._random, longest)
            self._say(outcome.trouble, wait)
            await deferLater(self._reactor, wait, lambda: None)

    async def _attempt(self, url: str) -> _Outcome:
        """One connection from dialling to its end."""
        self._catch_up()
        identity, now = self._identity, self._now()
        self._url, self._dialled, self._up_since, self._farewell = url, identity, None, None
        trust: GatewayTrust | None = None
        factory: ClientFactory | None = None
        present = self._present = _Connection(self._tether.receiver())
        try:
            self._tether.introduce_as(self._introduction())
            host = host_and_port(url)[0]
            trust = GatewayTrust(host, identity.ca_bundle, self._now, identity.certificate, identity.key)
            endpoint = gateway_endpoint(self._reactor, url, trust, self._environment)
            factory = ClientFactory(url, TETHER, lambda: present, self._reactor, self._software)
            connecting = endpoint.connect(factory)
            await connecting.addTimeout(CONNECT_PATIENCE, self._reactor)
            reason = await present.over
        except TimeoutError:
            reason = f"no connection within {CONNECT_PATIENCE:.0f} s"
        except CancelledError:
            present.abort()
            if not self.running:
                raise
            reason = "the attempt was given up"
        except Exception as error:
            # Of the many ways in which a network fails none is a bug.
            reason = printable(str(error)) or type(error).__name__
        refusal = None if factory is None else factory.refusal
        return self._outcome(url, reason, trust, refusal, identity.trouble(now))

    def _outcome(
        self,
        url: str,
        reason: str,
        trust: GatewayTrust | None,
        refusal: Refusal | None,
        certificate_trouble: str,
    ) -> _Outcome:
        refused = refusal is not None and refusal.status < 500
        if self._farewell is not None:
            # The link knows better why it ended than the socket beneath it.
            reason, retry = self._farewell
            refused = refused or not retry
        elif trust is not None and trust.doubt:
            reason = trust.doubt
        reason = printable(reason)
        if self._up_since is not None:
            life = max(self._reactor.seconds() - self._up_since, 0.001)
            self._up_since = None
            return _Outcome(life, refused, f"lost the connection to {url}: {reason}")
        if certificate_trouble:
            reason += f" ({certificate_trouble})"
        return _Outcome(0.0, refused, f"no connection to {url}: {reason}")

    def _say(self, trouble: str, wait: float) -> None:
        # One line for each change of state; a device may be off the net for weeks.
        if trouble != self._trouble:
            self._trouble = trouble
            self._log.warn("{reason}; next try in {wait:.1f} s", reason=trouble, wait=wait)

    # ---- Watcher

    def link_up(self, link: Link, resumed: bool) -> None:
        """The controller said Hello."""
        self._up_since = self._reactor.seconds()
        self._trouble = ""
        settings = link.peer.settings
        name = f"{self._identity.namespace}/{self._identity.name}"
        self._log.info("connected to {url} as {device}", url=self._url, device=name)
        if settings is not None:
            self._take(settings)
        if self._draining:
            self._tell_drain()
        self._look_at_certificate()

    def link_down(self, link: Link, reason: str, retry: bool) -> None:
        """The link is gone; the attempt it ran on hears of its connection's end, too."""
        self._farewell = (reason, retry)

    def link_over(self, link: Link) -> None:
        """The sessions have ended; whoever served them has heard."""
        # Until now a request that was lost with the link could still come by the next one. It still
        # can if no Hello was heard yet: then there were no sessions that could have ended.
        if self._tether.peer is not None:
            self._drain_was_heard()

    def duty_told(self, link: Link, duty: Duty) -> None:
        """Another agent of this host serves new sessions, or this one does, or was heard not to."""
        if duty is Duty.DRAINING:
            self._drain_was_heard()
            return
        if duty is not self._duty:
            self._duty = duty
            if duty is Duty.STANDBY:
                self._log.info("standing by: another agent of this host is active")
            elif not self._draining:
                self._log.info("active: new sessions come to this agent")

    def _introduction(self) -> PeerIntroduction:
        return replace(self._introduce(), draining=self._draining)

    def _tell_drain(self) -> None:
        if not self._tether.tell_duty(Duty.DRAINING):
            # A former version, which has one agent of a device and will not say that it heard.
            self._drain_was_heard()

    def _drain_was_heard(self) -> None:
        if self._drain_heard is not None and not self._drain_heard.called:
            self._drain_heard.callback(None)

    def _take(self, settings: Settings) -> None:
        if not self._dialled.is_akin(self._identity):
            # Joined anew meanwhile, and perhaps elsewhere: what this gateway tells is of no use there.
            return
        urls = tuple(dict.fromkeys((*filter(valid_url, settings.urls), self._url)))
        bundle = settings.ca_bundle
        if bundle != SYSTEM_TRUST and not valid_bundle(bundle):
            bundle = self._identity.ca_bundle
        told = replace(self._identity, urls=urls, ca_bundle=bundle)
        if told != self._identity or self._unsaved_settings is not None:
            # Used even if it cannot be kept: until the next start that is as good.
            self._identity = self._unsaved_settings = told

    # ---- the state folder

    def _catch_up(self) -> None:
        """Save what could not be saved before, and take what another process left."""
        # One that fails does not keep the others from being tried.
        steps = (self._save_certificate, self._save_settings, self._read_again)
        if all([self._is_done(step) for step in steps]):
            self._state_troubles.clear()
        told = self._unsaved_settings
        if told is not None and told.is_akin(self._identity):
            # Another certificate may have been taken, with the URLs of before.
            self._identity = replace(self._identity, urls=told.urls, ca_bundle=told.ca_bundle)

    def _is_done(self, step: Callable[[], None]) -> bool:
        try:
            step()
        except StateError as error:
            # One line, not one at each attempt.
            if str(error) not in self._state_troubles:
                self._state_troubles.add(str(error))
                self._log.error("{reason}", reason=str(error))
            return False
        return True

    def _save_certificate(self) -> None:
        renewed = self._unsaved_certificate
        if renewed is None:
            return
        self._identity = self._state.keep_certificate(renewed)
        self._unsaved_certificate = None
        if self._identity.certificate == renewed.certificate:
            until = renewed.leaf().not_valid_after_utc
            self._log.info("certificate renewed, valid until {until}", until=f"{until:%Y-%m-%d}")

    def _save_settings(self) -> None:
        if self._unsaved_settings is not None:
            self._identity = self._state.keep_settings(self._unsaved_settings)
            self._unsaved_settings = None

    def _read_again(self) -> None:
        """Take a newer identity that another process left: a second agent, or a new join."""
        kept = self._state.load()
        if kept is not None and kept.since() > self._identity.since():
            self._identity = kept

    # ---- renewal

    def _look_at_certificate(self) -> None:
        self._catch_up()
        newest = self._unsaved_certificate or self._identity
        if self.is_up and self._renewing is None and self._now() >= newest.renewal_time():
            self._renewing = spawn(self._renew(), self._log, "cannot renew this device's certificate")
            # Also when it has failed already.
            self._renewing.addCallback(self._renewal_ended)

    def _renewal_ended(self, _: None) -> None:
        self._renewing = None

    async def _renew(self) -> None:
        try:
            # By the time of the answer another may have joined anew.
            identity, key = self._identity, self._state.next_key()
            request = Renew(signing_request(key, identity.name))
            answer = await ask(self._tether, request, self._reactor, RENEWAL_PATIENCE)
            if isinstance(answer, Issued) and fits(answer.certificate, key):
                self._unsaved_certificate = replace(identity, certificate=answer.certificate, key=key)
                self._catch_up()
                return
            told = answer.message if isinstance(answer, Failed) else "the answer is not a certificate"
            self._log.warn("the certificate was not renewed: {reason}", reason=printable(told))
        except (StreamReset, LinkLost, StateError) as error:
            self._log.warn("the certificate was not renewed: {reason}", reason=printable(str(error)))


@dataclass(frozen=True, slots=True)
class _Outcome:
    """How one attempt went: seconds that the link lived, whether we were sent away, and why it is over."""

    life: float
    refused: bool
    trouble: str


class _Connection:
    """Hears one connection for the tether, and tells the loop when it is over."""

    def __init__(self, receiver: MessageReceiver) -> None:
        self._receiver = receiver
        self.connection: MessageTransport | None = None
        self.over: Deferred[str] = Deferred()
        self.gone: Deferred[None] = Deferred()

    # ---- MessageReceiver

    def connected(self, transport: MessageTransport) -> None:
        """The gateway let us in."""
        self.connection = transport
        self._receiver.connected(transport)

    def message_received(self, message: bytes) -> None:
        """Passed on."""
        self._receiver.message_received(message)

    def connection_lost(self, reason: str) -> None:
        """The connection is over; without ``connected`` we were not let in."""
        if self.connection is not None:
            self.connection = None
            self._receiver.connection_lost(reason)
        if not self.gone.called:
            self.gone.callback(None)
        if not self.over.called:
            self.over.callback(reason)

    # ---- the loop's

    def abort(self) -> None:
        """Nobody waits any more."""
        if self.connection is not None:
            self.connection.abort()
