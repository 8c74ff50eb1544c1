"""The wiring diagram: who is whose child, and what each part is handed.

``build`` finds the cluster and gives back the service that ``twistd`` runs: a health
page, and a candidate in the leader election. While it leads there is one
``Term``, a graph of parts that is built when the term begins and dropped when it
ends; nothing of it survives, because the next term may be another process's.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from cryptography.x509 import load_pem_x509_certificates
from twisted.application.service import IService, MultiService
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.endpoints import serverFromString
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IListeningPort, IStreamServerEndpoint
from twisted.internet.task import deferLater
from twisted.logger import Logger

from aranya.certs.authority import Authority, AuthorityUnusable, load_authority
from aranya.certs.contexts import ServerContext
from aranya.certs.gateway import (
    CertificateFiles,
    GatewayCertificate,
    OwnCertificate,
    Source,
    hosts_of_urls,
    trusted_by_devices,
)
from aranya.certs.issuer import SubjectParts, issue_serving_certificate
from aranya.certs.keys import KeyPair, PairUnusable
from aranya.certs.verification import moment
from aranya.config import Config, ConfigError, own_identity, route_to
from aranya.controller.controller import ControllerConfig, DeviceController
from aranya.device.admission import Admission
from aranya.device.gateway import Gateway, LinkTerms, device_settings
from aranya.device.joining import Joins, Welcome
from aranya.device.records import Records
from aranya.device.registry import Registry
from aranya.election import Election
from aranya.health import health_site
from aranya.interfaces import Object
from aranya.kube.client import ApiClient, threads_of
from aranya.kube.credentials import load_access
from aranya.kube.errors import CredentialsError, KubeError
from aranya.kube.events import Recorder
from aranya.kubelet.auth import Authentication, Authorization, ClientCA
from aranya.kubelet.endpoints import KubeletEndpoints
from aranya.kubelet.root import Door
from aranya.names import DeviceKey
from tether.daemon import Fatal
from tether.link.websocket import nvx_available
from tether.tasks import spawn
from tether.version import VERSION

#: The Lease that says who leads, in ``--namespace``.
LEASE = "aranya"
#: From so long before its end on, each leader tells that the authority of the devices ends.
AUTHORITY_NOTICE = timedelta(days=365)

#: What an endpoint raises that cannot listen; the second for a port beyond 65535.
_NO_PORT = (CannotListenError, OverflowError)

_log = Logger()


async def build(
    config: Config, environment: Mapping[str, str], reactor: Any, fail: Callable[[str], None]
) -> IService:
    """Find the cluster and wire the service. Raises ``Fatal``; ``fail`` ends the daemon later."""
    in_thread = threads_of(reactor)
    try:
        access = await load_access(in_thread, config.kubeconfig, config.context)
        address = config.node_address or environment.get("HOST_IP", "")
        if not address:
            # The API server's name may have to be looked up, which blocks.
            address = await in_thread(lambda: route_to(access.host, access.port))
        urls = config.gateway_url or (_default_url(config.gateway, address),)
        client_ca = _authorities(config.client_ca)
        if config.gateway_cert:
            # Now, and not only when this process comes to lead.
            _files(config).read()
        endpoint = _endpoint(reactor, "--gateway", config.gateway)
        health = _endpoint(reactor, "--health", config.health)
    except (CredentialsError, ConfigError, PairUnusable) as why:
        raise Fatal(str(why)) from None
    if not nvx_available():
        _log.warn("autobahn has no NVX here: links to devices will be slow (10 MB/s at most)")
    namespace = config.namespace or access.namespace or "default"
    settings = Settings(
        config=config,
        namespace=namespace,
        watch_namespace=config.watch_namespace or namespace,
        address=address,
        urls=urls,
        client_ca=client_ca,
        identity=own_identity(config, environment),
        host_node=environment.get("NODE_NAME", ""),
    )
    return Aranya(settings, ApiClient(reactor, access), endpoint, health, reactor, fail)


def _authorities(file: str) -> bytes:
    """The certificates in ``--client-ca``; nothing without that option."""
    if not file:
        return b""
    try:
        bundle = Path(file).read_bytes()
        load_pem_x509_certificates(bundle)
    except OSError as why:
        raise ConfigError(f"cannot read --client-ca {file}: {why.strerror}") from None
    except ValueError:
        raise ConfigError(f"--client-ca {file} holds no certificate") from None
    return bundle


def _files(config: Config) -> CertificateFiles:
    return CertificateFiles(Path(config.gateway_cert), Path(config.gateway_key))


def _endpoint(reactor: Any, option: str, description: str) -> IStreamServerEndpoint:
    try:
        endpoint: IStreamServerEndpoint = serverFromString(reactor, description)
    except Exception as why:
        # Each kind of endpoint reads its own words, and fails in its own way.
        line = " ".join(str(why).split()) or type(why).__name__
        raise ConfigError(f"{option} {description!r} is not a Twisted server endpoint: {line}") from None
    return endpoint


def _default_url(gateway: str, address: str) -> str:
    """``wss://`` this host and the gateway's port; only a plain ``tcp:`` endpoint tells its port."""
    kind, _, rest = gateway.partition(":")
    port = rest.split(":")[0].removeprefix("port=")
    if kind not in ("tcp", "tcp4", "tcp6") or not port.isdigit() or port == "0":
        raise ConfigError(f"--gateway {gateway} has no port to tell devices; give --gateway-url")
    return f"wss://{f'[{address}]' if ':' in address else address}:{port}"


@dataclass(frozen=True, slots=True)
class Settings:
    """What was found out about the options, for all terms."""

    config: Config
    namespace: str
    watch_namespace: str
    address: str
    urls: tuple[str, ...]
    client_ca: bytes
    identity: str
    host_node: str


class Aranya(MultiService):
    """The controller: a health page, and leadership with a ``Term`` inside."""

    def __init__(
        self,
        settings: Settings,
        api: ApiClient,
        gateway: IStreamServerEndpoint,
        health: IStreamServerEndpoint,
        reactor: Any,
        fail: Callable[[str], None],
    ) -> None:
        super().__init__()
        self._settings = settings
        self._api = api
        self._gateway = gateway
        self._health = health
        self._reactor = reactor
        self._fail = fail
        self._instance = os.urandom(16)
        self._recorder = Recorder(api, reactor, instance=settings.identity)
        self._client_ca = ClientCA(api, reactor, settings.client_ca)
        self._term: Term | None = None
        self._beginning: Deferred[None] | None = None
        self._listening: IListeningPort | None = None
        Election(
            api,
            reactor,
            settings.namespace,
            LEASE,
            settings.identity,
            self._started_leading,
            self._stopped_leading,
        ).setServiceParent(self)

    def startService(self) -> None:
        """Answer probes and stand for election."""
        self._client_ca.start()
        spawn(self._listen_for_probes(), _log, "the health page cannot start")
        super().startService()

    def stopService(self) -> Deferred[None]:
        """Stop leading, tell everybody why, and let go of the lease."""
        return Deferred.fromCoroutine(self._stop(super().stopService()))

    async def _stop(self, children: Deferred[Any] | None) -> None:
        if children is not None:
            await children
        self._client_ca.stop()
        if self._listening is not None:
            await _ended(self._listening.stopListening())
        await self._api.close()

    async def _listen_for_probes(self) -> None:
        try:
            self._listening = await self._health.listen(health_site(self.missing, self.readings))
        except _NO_PORT as why:
            self._fail(f"cannot listen on --health {self._settings.config.health}: {_words(why)}")

    def missing(self) -> str:
        """What this process lacks for devices to connect; "" for nothing."""
        term = self._term
        if term is None:
            return "not leading"
        return "" if term.is_open else "starting"

    def readings(self) -> Mapping[str, float]:
        """Numbers for ``/metrics``."""
        term = self._term
        return {
            "aranya_leading": 0.0 if term is None else 1.0,
            "aranya_devices_connected": 0.0 if term is None else float(len(term.registry.keys())),
            "aranya_agents": 0.0 if term is None else float(term.gateway.agents),
            "aranya_sessions": 0.0 if term is None else float(term.endpoints.sessions()),
            "aranya_reconcile_queue_length": 0.0 if term is None else float(len(term.controller.queue)),
        }

    # ---- leadership

    def _started_leading(self) -> None:
        self._beginning = spawn(self._begin(), _log, "a term of leadership could not begin")

    async def _begin(self) -> None:
        wait = 1.0
        while True:
            try:
                term = self._term = await Term.build(
                    self._settings,
                    self._api,
                    self._gateway,
                    self._reactor,
                    self._recorder,
                    self._client_ca,
                    self._instance,
                )
                await term.begin()
                return
            except _NO_PORT as why:
                self._fail(f"cannot listen on --gateway {self._settings.config.gateway}: {_words(why)}")
                return
            except (AuthorityUnusable, PairUnusable) as why:
                self._fail(str(why))
                return
            except KubeError as why:
                _log.warn("cannot begin to lead yet: {reason}", reason=str(why))
            except CancelledError:
                raise
            except Exception:
                # Who leads and does nothing would keep the others from it.
                _log.failure("a term of leadership could not begin: a bug")
            await self._drop_term("starting again")
            await deferLater(self._reactor, wait)
            wait = min(wait * 2, 30.0)

    def _stopped_leading(self, reason: str) -> Deferred[None]:
        beginning, self._beginning = self._beginning, None
        if beginning is not None:
            beginning.cancel()
        return spawn(self._drop_term(reason), _log, "a term of leadership did not end cleanly")

    async def _drop_term(self, reason: str) -> None:
        term = self._term
        if term is not None:
            await term.end(
                f"the controller is stopping: {reason}" if reason else "the controller is stopping"
            )
            # Not before: whoever is interrupted here leaves it to the next one to end it again.
            self._term = None


class Term:
    """All that works while this process leads."""

    def __init__(
        self,
        settings: Settings,
        api: ApiClient,
        authority: Authority,
        certificate: KeyPair,
        source: Source,
        gateway: IStreamServerEndpoint,
        reactor: Any,
        recorder: Recorder,
        client_ca: ClientCA,
        instance: bytes,
        cluster_version: str,
    ) -> None:
        config = settings.config
        context = ServerContext(certificate)

        def welcome_with(pair: KeyPair) -> Welcome:
            brought = pair if config.gateway_cert else None
            return Welcome(settings.urls, trusted_by_devices(authority, brought))

        def welcome() -> Welcome:
            return self._welcome

        def renewed(pair: KeyPair) -> None:
            self._welcome = welcome_with(pair)

        def lookup(key: DeviceKey) -> Object | None:
            return self.controller.lookup(key)

        def cloned(key: DeviceKey, line: str) -> None:
            device = lookup(key)
            if device is not None:
                recorder.record(device, "DeviceCloned", line, warning=True)

        def rejoined(key: DeviceKey) -> None:
            self.registry.disconnect(key, "another machine has joined as this device", False)

        async def issue(node: str, addresses: Sequence[str], parts: SubjectParts) -> KeyPair:
            return await issue_serving_certificate(api, node, addresses, reactor, parts=parts)

        self.is_open = False
        self._welcome = welcome_with(certificate)
        self.registry = Registry(reactor, cloned)
        self._records = Records(api, settings.namespace)
        joins = Joins(api, authority, self._records, welcome, lookup, reactor, rejoined)
        door = Door(
            Authentication(api, client_ca, reactor, lambda: moment(reactor.seconds())),
            Authorization(api, reactor),
            self.registry,
            reactor,
        )
        self.endpoints = KubeletEndpoints(reactor, reactor, door, ports=config.kubelet_ports)
        self.controller = DeviceController(
            reactor,
            api,
            self.registry,
            self.endpoints,
            joins,
            recorder,
            ControllerConfig(
                namespace=settings.namespace,
                watch_namespace=settings.watch_namespace,
                node_address=settings.address,
                replica_addresses=config.replica_address,
                kubelet_version=cluster_version,
                host_node=settings.host_node,
                offline_grace=config.offline_grace,
            ),
            issue,
        )
        self._certificate = GatewayCertificate(source, context, reactor, renewed)
        self.gateway = Gateway(
            gateway,
            context,
            authority.bundle,
            Admission(lookup, joins.recorded_keys),
            joins,
            self.registry,
            welcome,
            lambda key: device_settings(key, lookup(key), welcome(), config.grace),
            LinkTerms(software=f"aranya/{VERSION}", instance=instance),
            reactor,
        )

    @classmethod
    async def build(
        cls,
        settings: Settings,
        api: ApiClient,
        gateway: IStreamServerEndpoint,
        reactor: Any,
        recorder: Recorder,
        client_ca: ClientCA,
        instance: bytes,
    ) -> Term:
        """Read what must be read before anything may start.

        Raises ``KubeError``, ``AuthorityUnusable`` and ``PairUnusable``.
        """
        config = settings.config
        now = moment(reactor.seconds())
        authority = await load_authority(api, settings.namespace, now)
        end = authority.certificate.not_valid_after_utc
        if end - now < AUTHORITY_NOTICE:
            _log.warn(
                "the authority of all devices ends on {day}; delete Secret aranya-ca before, "
                "restart, and let every device join anew",
                day=f"{end:%Y-%m-%d}",
            )
        source: Source
        if config.gateway_cert:
            source = _files(config)
        else:
            source = OwnCertificate(api, settings.namespace, authority, hosts_of_urls(settings.urls))
        certificate = await source.load(now)
        return cls(
            settings,
            api,
            authority,
            certificate,
            source,
            gateway,
            reactor,
            recorder,
            client_ca,
            instance,
            await api.version(),
        )

    async def begin(self) -> None:
        """Start the controller; let devices in once the EdgeDevices are known."""
        await self._records.load()
        self.controller.startService()
        self._certificate.startService()
        await self.controller.synced
        await self.gateway.listen()
        self.is_open = True
        _log.info("devices may connect")

    async def end(self, reason: str) -> None:
        """Stop everything, and tell kubectls and devices why."""
        self.is_open = False
        # The controller forgets the EdgeDevices when it stops; nobody may ask for them after that.
        await self.gateway.stop_listening()
        try:
            await _ended(self.controller.stopService() if self.controller.running else None)
            if self._certificate.running:
                await _ended(self._certificate.stopService())
        finally:
            # Whatever went wrong above, no kubectl may take the end of its connection for success.
            await self.endpoints.stop_all(reason)
            await self.gateway.close(reason)


async def _ended(stopping: Any) -> None:
    if isinstance(stopping, Deferred):
        await stopping


def _words(why: Exception) -> str:
    cause = why.socketError if isinstance(why, CannotListenError) else None
    return str(getattr(cause, "strerror", None) or cause or why)
