"""The gateway's certificate: signed by aranya's own authority, or brought as files.

One is signed anew when the hosts that devices dial change, after two thirds of its
life, or when the authority is another; the Secret ``aranya-gateway-tls`` keeps it
over restarts. Files are read again when they change, because whoever renews them
(cert-manager, certbot) does not tell. A bad renewal is logged and the old one stays.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import datetime
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.serialization import Encoding
from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from aranya.certs.authority import Authority, pair_of, renewal_due, tls_secret
from aranya.certs.contexts import ServerContext
from aranya.certs.keys import KeyPair, PairUnusable, key_to_pem, new_key
from aranya.certs.requests import hosts_of, spelled
from aranya.certs.verification import moment
from aranya.interfaces import Kubernetes
from aranya.kube.errors import AlreadyExists, KubeError, NotFound
from aranya.kube.objects import SECRETS, version_of
from tether.join import SYSTEM_TRUST
from tether.tasks import spawn

GATEWAY_SECRET = "aranya-gateway-tls"
LOCAL_HOSTS = ("localhost", "127.0.0.1", "::1")
#: Seconds between looks at the files or at the age of our own certificate.
LOOK_AGAIN = 60.0


class Source(Protocol):
    """Where the gateway's certificate comes from."""

    async def load(self, now: datetime) -> KeyPair:
        """The certificate to use now; raises ``PairUnusable`` or ``KubeError``."""
        ...


class OwnCertificate:
    """Signed by aranya's authority for ``hosts``, kept in a Secret of ``namespace``."""

    def __init__(
        self, kubernetes: Kubernetes, namespace: str, authority: Authority, hosts: Iterable[str]
    ) -> None:
        self._kubernetes = kubernetes
        self._namespace = namespace
        self._authority = authority
        self._hosts = tuple(dict.fromkeys((*hosts, *LOCAL_HOSTS)))

    async def load(self, now: datetime) -> KeyPair:
        """The kept certificate if it will do, else a new one."""
        for _ in range(3):
            try:
                secret = await self._kubernetes.get(SECRETS, self._namespace, GATEWAY_SECRET)
            except NotFound:
                secret = None
            if secret is not None:
                try:
                    pair = pair_of(secret)
                    if self._will_do(pair, now):
                        return pair
                except PairUnusable:
                    pass
            key = new_key()
            chain = self._authority.sign_server(key.public_key(), self._hosts, now)
            pair = KeyPair(chain, key_to_pem(key))
            body = tls_secret(GATEWAY_SECRET, self._namespace, pair)
            try:
                if secret is None:
                    await self._kubernetes.create(SECRETS, self._namespace, body)
                else:
                    body["metadata"]["resourceVersion"] = version_of(secret)
                    # A Secret's type cannot change; what is there says which it is.
                    body["type"] = secret.get("type", body["type"])
                    await self._kubernetes.replace(SECRETS, self._namespace, GATEWAY_SECRET, body)
            except (AlreadyExists, NotFound):
                continue
            except KubeError as error:
                if getattr(error, "code", 0) != 409:
                    raise
                continue
            return pair
        raise PairUnusable(f"Secret {GATEWAY_SECRET} changes all the time; is another aranya at work here?")

    def _will_do(self, pair: KeyPair, now: datetime) -> bool:
        certificate = pair.parse()[0][0]
        try:
            certificate.verify_directly_issued_by(self._authority.certificate)
        except (ValueError, TypeError, InvalidSignature):
            return False
        return (
            certificate.not_valid_before_utc <= now
            and not renewal_due(certificate, now)
            and spelled(self._hosts) <= hosts_of(certificate)
        )


class CertificateFiles:
    """A certificate (chain) and key brought by the operator as PEM files."""

    def __init__(self, certificate: Path, private_key: Path) -> None:
        self._certificate = certificate
        self._private_key = private_key

    async def load(self, now: datetime) -> KeyPair:
        """What the files hold now."""
        return self.read()

    def read(self) -> KeyPair:
        """What the files hold now; raises ``PairUnusable``."""
        contents = []
        for file in (self._certificate, self._private_key):
            try:
                contents.append(file.read_bytes())
            except OSError as error:
                raise PairUnusable(f"cannot read {file}: {error.strerror}") from None
        pair = KeyPair(*contents)
        try:
            pair.parse()
        except PairUnusable as error:
            raise PairUnusable(f"{self._certificate}, {self._private_key}: {error}") from None
        return pair


class GatewayCertificate(Service):
    """Keeps a ``ServerContext`` current while it runs; ``changed`` is called after each swap."""

    _log = Logger()

    def __init__(
        self,
        source: Source,
        context: ServerContext,
        clock: IReactorTime,
        changed: Callable[[KeyPair], None] = lambda pair: None,
    ) -> None:
        self._source = source
        self._context = context
        self._clock = clock
        self._changed = changed
        self._work: Deferred[None] | None = None
        self._looking = LoopingCall(self._look)
        self._looking.clock = clock

    def startService(self) -> None:
        """Begin to look, now and then."""
        super().startService()
        started = self._looking.start(LOOK_AGAIN, now=False)
        started.addErrback(
            lambda failure: self._log.failure("the watch over the gateway's certificate ended", failure)
        )

    def stopService(self) -> Deferred[None] | None:
        """Look no more."""
        if self._looking.running:
            self._looking.stop()
        if self._work is not None:
            self._work.cancel()
        super().stopService()
        return None

    def _look(self) -> Deferred[None]:
        work = spawn(self.refresh(), self._log, "cannot renew the gateway's certificate")
        self._work = work
        return work

    async def refresh(self) -> None:
        """Load the certificate and use it, if it is another."""
        try:
            pair = await self._source.load(moment(self._clock.seconds()))
            if pair == self._context.pair:
                return
            self._context.swap(pair)
        except (PairUnusable, KubeError) as error:
            self._log.error("the gateway keeps its old certificate: {reason}", reason=str(error))
            return
        self._log.info("the gateway has a new certificate")
        self._changed(pair)


def hosts_of_urls(urls: Iterable[str]) -> list[str]:
    """The hosts that devices dial, as they stand in a certificate."""
    return [host for url in urls if (host := urlsplit(url).hostname)]


def trusted_by_devices(authority: Authority, brought: KeyPair | None) -> bytes:
    """The bundle with which a device can verify the gateway, ``SYSTEM_TRUST`` included.

    A brought chain is pinned when it holds its own anchor (a self-signed
    certificate). Otherwise it comes from a public authority, whose intermediates
    change without notice, so the device trusts what its system trusts.
    """
    if brought is None:
        return authority.bundle
    anchors = [
        certificate.public_bytes(Encoding.PEM)
        for certificate in x509.load_pem_x509_certificates(brought.chain)
        if certificate.subject == certificate.issuer
    ]
    return b"".join(anchors) + authority.bundle if anchors else SYSTEM_TRUST
