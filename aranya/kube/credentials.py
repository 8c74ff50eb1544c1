"""Who we are to the API server, and where it is: in-cluster files or a kubeconfig.

What is read once is a frozen ``ClusterAccess``. What changes while we run stands
behind a ``ProofSource``: a projected service-account token rotates every hour, and
an exec plugin's answer expires. After a 401 the source is told so, and the next
proof is fresh. Plugins block, so they run in a thread; the files are small and local.

``kubernetes.config`` does the merging of several kubeconfigs, relative paths and the
calling of plugins. It is imported late: it costs half a second, and in a cluster it is not needed.
"""

from __future__ import annotations

import base64
import binascii
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from cryptography import x509
from twisted.internet.defer import Deferred

from aranya.kube.errors import CredentialsError
from aranya.kube.objects import parse_time

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")

#: How often a token file is looked at again.
FILE_CHECK_SECONDS = 60.0
#: A plugin's answer is replaced this long before it expires.
EXPIRY_MARGIN = timedelta(seconds=60)

#: Runs a blocking callable elsewhere and gives back its result.
InThread = Callable[[Callable[[], Any]], "Deferred[Any]"]


@dataclass(frozen=True, slots=True)
class ClientPair:
    """A client certificate (with its chain) and its key, PEM."""

    certificate: bytes
    key: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Proof:
    """What is shown to the API server: an ``Authorization`` header, a client certificate, or neither."""

    authorization: str = field(default="", repr=False)
    pair: ClientPair | None = None


class ProofSource(Protocol):
    """Where proofs come from."""

    async def proof(self, now: float, in_thread: InThread) -> Proof:
        """The proof to show now (seconds since the epoch). Raises ``CredentialsError``."""
        ...

    def refused(self) -> None:
        """The API server answered 401 to the last proof: the next one must be fresh."""
        ...


@dataclass(frozen=True, slots=True)
class ClusterAccess:
    """Where the API server is, how to know it, and how it knows us."""

    base_url: str
    ca: bytes | None = None  # PEM; None: what this machine trusts
    verify: bool = True
    server_name: str = ""  # to expect in the certificate instead of the URL's host
    namespace: str = ""  # the pod's or the context's; "" if it names none
    proofs: ProofSource = field(default_factory=lambda: StaticProof(Proof()))
    proxy_url: str = ""

    @property
    def host(self) -> str:
        """The API server's host, without brackets."""
        return urlsplit(self.base_url).hostname or ""

    @property
    def port(self) -> int:
        """The API server's port."""
        parts = urlsplit(self.base_url)
        return parts.port or (443 if parts.scheme == "https" else 80)


# ---- sources ----------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class StaticProof:
    """A token, a password or a certificate that stays."""

    shown: Proof

    async def proof(self, now: float, in_thread: InThread) -> Proof:
        """Always the same."""
        return self.shown

    def refused(self) -> None:
        """Nothing can be done about it."""


class FileToken:
    """A bearer token in a file that somebody else renews."""

    def __init__(self, path: Path, pair: ClientPair | None = None) -> None:
        self._path = path
        self._pair = pair
        self._checked = float("-inf")
        self._stamp: tuple[int, int] | None = None
        self._proof: Proof | None = None

    async def proof(self, now: float, in_thread: InThread) -> Proof:
        """The token as the file has it, looked at once a minute."""
        if self._proof is None or now - self._checked >= FILE_CHECK_SECONDS:
            self._look()
            self._checked = now
        assert self._proof is not None
        return self._proof

    def refused(self) -> None:
        """Look at once."""
        self._checked = float("-inf")

    def _look(self) -> None:
        try:
            found = self._path.stat()
            # The projected volume swaps a symlink: another inode, perhaps within the same second.
            stamp = (found.st_ino, found.st_mtime_ns)
            if stamp != self._stamp:
                token = self._path.read_text("ascii").strip()
                if not token:
                    raise CredentialsError(f"token file {self._path} is empty")
                self._proof, self._stamp = Proof(f"Bearer {token}", self._pair), stamp
        except (OSError, ValueError) as error:
            # A token that was good may still be; without one there is nothing to show.
            if self._proof is None:
                raise CredentialsError(f"cannot read token file {self._path}: {_why(error)}") from None


class CalledProof:
    """A proof that a blocking call makes (an exec plugin), made anew when it expires or is refused."""

    def __init__(self, call: Callable[[], tuple[Proof, object]]) -> None:
        self._call = call
        self._proof: Proof | None = None
        self._expires: float | None = None
        self._asking: list[Deferred[Proof]] | None = None

    async def proof(self, now: float, in_thread: InThread) -> Proof:
        """The plugin's answer; those who ask while it runs share one run."""
        if self._proof is not None and (self._expires is None or now < self._expires):
            return self._proof
        if self._asking is not None:
            sharing: Deferred[Proof] = Deferred()
            self._asking.append(sharing)
            return await sharing
        waiting = self._asking = []
        try:
            shown, expires = await in_thread(self._call)
        except BaseException as error:
            self._asking = None
            for other in waiting:
                if not other.called:
                    other.errback(CredentialsError(str(error) or "the credential plugin was interrupted"))
            raise
        self._asking = None
        self._proof = shown
        moment = parse_time(expires)
        self._expires = (moment - EXPIRY_MARGIN).timestamp() if moment is not None else None
        for other in waiting:
            if not other.called:
                other.callback(shown)
        return self._proof

    def refused(self) -> None:
        """Ask the plugin again."""
        self._proof = None


# ---- reading ----------------------------------------------------------------


def read_access(
    kubeconfig: str = "",
    context: str = "",
    environ: Mapping[str, str] | None = None,
    service_account: Path = SERVICE_ACCOUNT,
) -> ClusterAccess:
    """Find and read the credentials; blocks on files only, plugins run later.

    Without ``kubeconfig`` or ``context``: in-cluster, else ``$KUBECONFIG``, else ``~/.kube/config``.
    Raises ``CredentialsError`` with one line.
    """
    environ = os.environ if environ is None else environ
    # The variable alone is no proof of a service account.
    inside = environ.get("KUBERNETES_SERVICE_HOST") and (service_account / "token").exists()
    if inside and not kubeconfig and not context:
        return in_cluster(environ, service_account)
    paths = kubeconfig or environ.get("KUBECONFIG") or "~/.kube/config"
    return from_kubeconfig(paths, context)


def load_access(in_thread: InThread, kubeconfig: str = "", context: str = "") -> Deferred[ClusterAccess]:
    """``read_access`` in a thread."""
    return in_thread(lambda: read_access(kubeconfig, context))


def in_cluster(environ: Mapping[str, str], service_account: Path = SERVICE_ACCOUNT) -> ClusterAccess:
    """The service account of the pod we run in."""
    host, port = environ["KUBERNETES_SERVICE_HOST"], environ.get("KUBERNETES_SERVICE_PORT", "443")
    authority = _read(service_account / "ca.crt", "the cluster's CA")
    _check_pem(authority, f"{service_account / 'ca.crt'}")
    namespace = service_account / "namespace"
    return ClusterAccess(
        f"https://{f'[{host}]' if ':' in host else host}:{port}",
        ca=authority,
        namespace=namespace.read_text("ascii").strip() if namespace.exists() else "",
        proofs=FileToken(service_account / "token"),
    )


def from_kubeconfig(paths: str, context: str = "") -> ClusterAccess:
    """One context of a kubeconfig (or of several, joined with ``:``)."""
    import yaml
    from kubernetes.config.config_exception import ConfigException
    from kubernetes.config.kube_config import KubeConfigMerger

    files = [Path(path).expanduser() for path in paths.split(os.pathsep) if path]
    if not any(path.exists() for path in files):
        raise CredentialsError(
            f"no credentials for a cluster: {' and '.join(map(str, files))} not found; use --kubeconfig"
        )
    try:
        merged = KubeConfigMerger(paths).config
        name = context or merged.safe_get("current-context")
        if not name:
            raise CredentialsError(f"kubeconfig {paths} has no current context; use --context")
        chosen = merged["contexts"].get_with_name(name)["context"]
        cluster = merged["clusters"].get_with_name(chosen["cluster"])
        user = None
        if chosen.safe_get("user"):
            user = merged["users"].get_with_name(chosen["user"])
        return _access(_Part(cluster, "cluster"), _Part(user, "user"), chosen, merged, name)
    except yaml.YAMLError as error:
        # YAML's own message quotes the line, which may be the token.
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark is not None else ""
        raise CredentialsError(f"kubeconfig {paths} is not YAML{where}") from None
    except ConfigException as error:
        raise CredentialsError(f"kubeconfig {paths}: {_why(error)}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise CredentialsError(f"cannot read kubeconfig {paths}: {_why(error)}") from None
    except (TypeError, AttributeError, KeyError, ValueError):
        raise CredentialsError(f"kubeconfig {paths} is not a valid kubeconfig") from None


class _Part:
    """The ``cluster`` or ``user`` section of a kubeconfig, whose relative paths start at its own file."""

    def __init__(self, entry: Any, what: str) -> None:
        section = entry.safe_get(what) if entry is not None else None
        self.node = entry[what] if isinstance(section, dict) else None
        self.fields: Mapping[str, Any] = section if isinstance(section, dict) else {}
        self.folder = Path(entry.path).absolute().parent if entry is not None and entry.path else Path()

    def text(self, name: str) -> str:
        """A plain field."""
        value = self.fields.get(name)
        return str(value) if value else ""

    def path(self, name: str) -> Path | None:
        """A field that names a file."""
        return self.folder / self.text(name) if self.text(name) else None

    def data(self, name: str) -> bytes | None:
        """PEM that is here in base64, or in a file."""
        encoded = self.text(f"{name}-data")
        if encoded:
            try:
                return base64.b64decode(encoded, validate=True)
            except binascii.Error:
                raise CredentialsError(f"kubeconfig: {name}-data is not base64") from None
        path = self.path(name)
        return None if path is None else _read(path, name)


def _access(cluster: _Part, user: _Part, chosen: Any, merged: Any, context: str) -> ClusterAccess:
    server = cluster.text("server").rstrip("/")
    parts = urlsplit(server)
    if parts.scheme not in ("https", "http") or not parts.hostname:
        raise CredentialsError(
            f"kubeconfig: context {context} has no usable server: {server or 'none given'}"
        )
    authority = cluster.data("certificate-authority")
    if authority is not None:
        _check_pem(authority, "certificate-authority")
    if cluster.text("proxy-url") and urlsplit(cluster.text("proxy-url")).scheme != "http":
        raise CredentialsError("kubeconfig: proxy-url must be http://HOST:PORT")
    return ClusterAccess(
        server,
        ca=authority,
        verify=not cluster.fields.get("insecure-skip-tls-verify"),
        server_name=cluster.text("tls-server-name"),
        namespace=str(chosen.safe_get("namespace") or ""),
        proofs=_proofs(cluster, user, merged, context),
        proxy_url=cluster.text("proxy-url"),
    )


def _proofs(cluster: _Part, user: _Part, merged: Any, context: str) -> ProofSource:
    certificate, key = user.data("client-certificate"), user.data("client-key")
    if (certificate is None) != (key is None):
        raise CredentialsError("kubeconfig: client-certificate and client-key must both be given")
    pair = None
    if certificate is not None and key is not None:
        _check_pem(certificate, "client-certificate")
        pair = ClientPair(certificate, key)
    if user.text("token"):
        return StaticProof(Proof(f"Bearer {user.text('token')}", pair))
    token_file = user.path("tokenFile")
    if token_file is not None:
        return FileToken(token_file, pair)
    if user.fields.get("exec"):
        return CalledProof(lambda: _run_plugin(cluster, user, pair))
    if user.fields.get("auth-provider"):
        return CalledProof(lambda: _run_provider(merged, context, pair))
    if user.text("username") and user.text("password"):
        word = base64.b64encode(f"{user.text('username')}:{user.text('password')}".encode()).decode("ascii")
        return StaticProof(Proof(f"Basic {word}", pair))
    return StaticProof(Proof("", pair))


def _run_plugin(cluster: _Part, user: _Part, pair: ClientPair | None) -> tuple[Proof, object]:
    """Call the exec plugin; blocks."""
    from kubernetes.config.config_exception import ConfigException
    from kubernetes.config.exec_provider import ExecProvider

    assert user.node is not None
    try:
        command = user.node["exec"]
        status = ExecProvider(command, str(user.folder), cluster.node).run()
    except ConfigException as error:
        raise CredentialsError(f"credential plugin: {_why(error)}") from None
    except OSError as error:
        name = user.fields["exec"].get("command")
        raise CredentialsError(f"credential plugin {name} does not start: {_why(error)}") from None
    token = status.get("token")
    if status.get("clientCertificateData") and status.get("clientKeyData"):
        pair = ClientPair(status["clientCertificateData"].encode(), status["clientKeyData"].encode())
    if not token and pair is None:
        raise CredentialsError("credential plugin: its answer holds neither a token nor a certificate")
    return Proof(f"Bearer {token}" if token else "", pair), status.get("expirationTimestamp")


def _run_provider(merged: Any, context: str, pair: ClientPair | None) -> tuple[Proof, object]:
    """Let ``kubernetes.config`` ask one of the old providers (oidc, gcp); blocks."""
    from kubernetes.client import Configuration
    from kubernetes.config.config_exception import ConfigException
    from kubernetes.config.kube_config import KubeConfigLoader

    configuration = Configuration()
    try:
        loader = KubeConfigLoader(merged, active_context=context, config_base_path=None)
        loader.load_and_set(configuration)
    except ConfigException as error:
        raise CredentialsError(f"auth-provider: {_why(error)}") from None
    token = configuration.api_key.get("BearerToken")
    if not token:
        raise CredentialsError("auth-provider gave no token; use an exec plugin instead")
    expiry = getattr(loader, "expiry", None)
    return Proof(token, pair), expiry.isoformat() if expiry is not None else None


# ---- small things ------------------------------------------------------------


def _read(path: Path, what: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CredentialsError(f"cannot read {what}: {_why(error)}") from None


def _check_pem(data: bytes, what: str) -> None:
    try:
        x509.load_pem_x509_certificates(data)
    except ValueError:
        raise CredentialsError(f"{what} holds no certificate") from None


def _why(error: BaseException) -> str:
    """One line of an exception, without Python's ornaments."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    return " ".join(str(error).split()) or type(error).__name__
