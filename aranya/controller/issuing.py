"""Certificates asked for in the background: a signer may take a minute, a deletion must not wait.

What is going on for a device is a value, ``Progress``; when it changes the device's key
is woken, and the plan decides what to do with it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from cryptography import x509
from cryptography.x509.oid import NameOID
from twisted.internet.defer import Deferred, DeferredSemaphore
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from aranya.certs.issuer import NotIssued, SubjectParts
from aranya.certs.keys import KeyPair, PairUnusable
from aranya.certs.requests import hosts_of
from aranya.controller.devices.model import Certificate
from aranya.kube.errors import KubeError
from aranya.names import DeviceKey
from tether.tasks import spawn

#: Gives a serving certificate for a Node; raises ``NotIssued`` or ``KubeError``.
Issue = Callable[[str, Sequence[str], SubjectParts], Awaitable[KeyPair]]

#: The controller-manager signs about twenty in a second; more at once only wait longer.
_AT_ONCE = 16
_FIRST_RETRY = 5.0
_LAST_RETRY = 300.0


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the request for one device's certificate has come."""

    asking: bool = False
    issued: Certificate | None = None
    error: str = ""
    again_at: float = 0.0
    failures: int = 0


class BackgroundIssuing:
    """Asks for certificates, some at once, and wakes the device's key with the outcome."""

    _log = Logger()

    def __init__(self, issue: Issue, clock: IReactorTime, wake: Callable[[DeviceKey], None]) -> None:
        self._issue = issue
        self._clock = clock
        self._wake = wake
        self._turns = DeferredSemaphore(_AT_ONCE)
        self._progress: dict[DeviceKey, Progress] = {}
        self._running: dict[DeviceKey, Deferred[None]] = {}

    def progress(self, key: DeviceKey) -> Progress:
        """How it stands with this device's certificate."""
        return self._progress.get(key, Progress())

    def ask(self, key: DeviceKey, subject: SubjectParts, hosts: tuple[str, ...]) -> None:
        """Start asking, unless that is under way."""
        if key in self._running:
            return
        self._progress[key] = replace(self.progress(key), asking=True, issued=None)
        running = spawn(self._ask(key, subject, hosts), self._log, "asking for a certificate failed: a bug")
        if not running.called:
            self._running[key] = running

    def forget(self, key: DeviceKey) -> None:
        """Stop asking and drop what came of it."""
        self._progress.pop(key, None)
        running = self._running.pop(key, None)
        if running is not None:
            running.cancel()

    def stop(self) -> None:
        """Stop asking for all."""
        for key in list(self._progress):
            self.forget(key)

    async def _ask(self, key: DeviceKey, subject: SubjectParts, hosts: tuple[str, ...]) -> None:
        before = self.progress(key)
        try:
            pair = await self._turns.run(self._one, key, subject, hosts)
            certificate = certificate_of(pair)
        except (NotIssued, KubeError, PairUnusable) as error:
            pause = min(_FIRST_RETRY * 2**before.failures, _LAST_RETRY)
            self._log.warn(
                "no serving certificate for {device}, again in {pause:.0f} s: {error}",
                device=str(key),
                pause=pause,
                error=str(error),
            )
            outcome = Progress(
                error=str(error), again_at=self._clock.seconds() + pause, failures=before.failures + 1
            )
        else:
            outcome = Progress(issued=certificate)
        self._running.pop(key, None)
        self._progress[key] = outcome
        self._wake(key)

    def _one(self, key: DeviceKey, subject: SubjectParts, hosts: tuple[str, ...]) -> Deferred[KeyPair]:
        async def issue() -> KeyPair:
            return await self._issue(key.name, hosts, subject)

        return Deferred.fromCoroutine(issue())


def certificate_of(pair: KeyPair) -> Certificate:
    """What a serving certificate says; raises ``PairUnusable``."""
    leaf = pair.parse()[0][0]
    start, end = leaf.not_valid_before_utc.timestamp(), leaf.not_valid_after_utc.timestamp()

    def part(oid: x509.ObjectIdentifier) -> str:
        values: list[Any] = [attribute.value for attribute in leaf.subject.get_attributes_for_oid(oid)]
        return str(values[0]) if values else ""

    subject = SubjectParts(
        org_unit=part(NameOID.ORGANIZATIONAL_UNIT_NAME),
        country=part(NameOID.COUNTRY_NAME),
        state=part(NameOID.STATE_OR_PROVINCE_NAME),
        locality=part(NameOID.LOCALITY_NAME),
    )
    return Certificate(
        pair=pair,
        not_after=end,
        renew_at=start + (end - start) * 2 / 3,
        hosts=hosts_of(leaf),
        subject=subject,
    )
