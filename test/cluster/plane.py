"""
A Kubernetes control plane of one's own: etcd, apiserver, controller-manager and scheduler on loopback.

Plain blocking Python, for tests and the demo alike. What must hold:

- nothing outlives it: every child asks the kernel to be killed with the thread that started it, so
  start a plane from a thread that lives as long (the main one);
- nobody else's cluster is touched: ports, keys and files are its own, the folder is temporary;
- it never waits without a deadline, and a failure shows the last lines of the log that explains it;
- it is as strict as a real cluster where the daemons meet it: RBAC, verified kubelet certificates,
  and a kubelet client that has to be authorised rather than being ``system:masters``.
"""

from __future__ import annotations

import atexit
import base64
import contextlib
import functools
import http.client
import json
import shutil
import ssl
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from test.cluster.authority import Authority, Identity, new_key, private_pem, public_pem, write_private
from test.cluster.binaries import Binaries, Version, find_kubectls, for_tests
from test.cluster.child import Child, PlaneError, free_ports
from test.cluster.kubectl import Kubectl

KUBELET_CLIENT = "kube-apiserver-kubelet-client"
"""The user as which the apiserver calls a kubelet, and the name of the binding that lets it."""

BRISK: Mapping[str, Sequence[str]] = {
    "kube-controller-manager": ("--kube-api-qps=200", "--kube-api-burst=400"),
}
"""
Flags (for ``extra``) that let the controllers do ten times the requests a second of a stock cluster.

They start in 1 s instead of 4, and sign more than the 20 CSRs a second of a real one: not for tests
that measure pace.
"""

_LOOPBACK = "127.0.0.1"
_SERVICES = "10.96.0.0/16"
_FIRST_SERVICE = "10.96.0.1"
_INSECURE_PORT_ENDS = Version(1, 24)
_BOOT_LIMIT = 60.0
_POLL = 0.05
_REQUEST_LIMIT = 30.0


@dataclass(frozen=True, slots=True)
class Answer:
    """What the API server answered; an empty body is an empty object."""

    status: int
    body: Any


class Plane:
    """
    One control plane. It runs between `start` and `stop`, or inside a ``with``.

    ``address`` is where the apiserver listens; etcd stays on loopback. ``extra`` adds flags, by
    the program's name (``{"kube-apiserver": ["--v=6"]}``).
    """

    def __init__(
        self,
        binaries: Binaries,
        *,
        address: str = _LOOPBACK,
        extra: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        self.binaries = binaries
        self.address = address
        self._extra = dict(extra or {})
        self._authority = Authority("kubernetes")
        self._children: list[Child] = []
        self._apiserver: Child | None = None
        self._port, self._etcd_port, self._peer_port = free_ports(3, address)
        self.folder = Path(tempfile.mkdtemp(prefix="aranya-plane-"))
        self._admin = self._authority.issue_client("kubernetes-admin", ["system:masters"])
        self._certificate_count = 0

    def __enter__(self) -> Plane:
        return self.start()

    def __exit__(self, *details: object) -> None:
        self.stop()

    # -- its life

    def start(self) -> Plane:
        """Start all parts and wait until they are ready; ``PlaneError``, and no trace, if they are not."""
        try:
            self._write_identities()
            self._start_etcd()
            self._apiserver = self._child("kube-apiserver", self.binaries.apiserver, self._api_flags())
            self.start_apiserver()
            self._admit_kubelet_client()
            self._start_controllers()
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """Kill all parts and remove the folder."""
        for child in reversed(self._children):
            child.kill()
        self._children.clear()
        self._apiserver = None
        shutil.rmtree(self.folder, ignore_errors=True)

    def stop_apiserver(self) -> None:
        """Kill the apiserver alone, as a crash would; every client loses its connections."""
        self._api_child().kill()

    def start_apiserver(self) -> None:
        """Start the apiserver (again), at the same address, and wait until it is ready."""
        child = self._api_child()
        child.start()
        self._wait_until("kube-apiserver is ready", self._is_ready)

    def pids(self) -> tuple[int, ...]:
        """List the processes that run now."""
        return tuple(child.pid for child in self._children if child.is_alive())

    def log(self, program: str) -> Path:
        """Say where a program (``"kube-apiserver"``...) writes what it has to tell."""
        return self.folder / f"{program}.log"

    # -- how to reach it

    @property
    def url(self) -> str:
        """Where the apiserver listens."""
        return f"https://{_bracketed(self.address)}:{self._port}"

    @property
    def ca_certificate(self) -> bytes:
        """The PEM certificate that signs the apiserver, its clients and all CSRs."""
        return self._authority.identity.certificate

    @property
    def admin_kubeconfig(self) -> Path:
        """A kubeconfig of a cluster admin."""
        return self.folder / "admin.kubeconfig"

    @property
    def kubelet_client(self) -> Identity:
        """The identity with which the apiserver calls a kubelet, for tests that call one directly."""
        return Identity(
            (self.folder / "kubelet-client.crt").read_bytes(),
            (self.folder / "kubelet-client.key").read_bytes(),
        )

    @property
    def has_controllers(self) -> bool:
        """Whether anyone signs CSRs, makes ServiceAccounts and collects garbage."""
        return self.binaries.controller_manager is not None

    def kubectls(self, kubeconfig: Path | None = None, namespace: str | None = None) -> list[Kubectl]:
        """Give one kubectl of each version on the machine, oldest first; the admin's if not told."""
        chosen = kubeconfig or self.admin_kubeconfig
        return [Kubectl(found.path, chosen, namespace) for found in find_kubectls()]

    def kubectl(self, kubeconfig: Path | None = None, namespace: str | None = None) -> Kubectl:
        """Give the newest kubectl of the machine; the admin's if not told."""
        found = self.kubectls(kubeconfig, namespace)
        if not found:
            raise PlaneError("this machine has no kubectl: run `python -m test.cluster.build`")
        return found[-1]

    def kubeconfig_for_certificate(
        self, user: str, groups: Iterable[str] = (), *, namespace: str = "default"
    ) -> Path:
        """Write a kubeconfig with a client certificate for any user and groups, whoever they are."""
        return self._write_certificate_kubeconfig(
            self._fresh_path(user), self._authority.issue_client(user, groups), namespace
        )

    def kubeconfig_for_token(self, user: str, token: str, *, namespace: str = "default") -> Path:
        """Write a kubeconfig with a bearer token."""
        return self._write_kubeconfig(self._fresh_path(user), {"token": token}, namespace)

    def kubeconfig_for_service_account(self, namespace: str, name: str, *, seconds: int = 3600) -> Path:
        """Write a kubeconfig of an existing ServiceAccount, with a token made for it now."""
        token = self.service_account_token(namespace, name, seconds=seconds)
        return self.kubeconfig_for_token(f"{namespace}-{name}", token, namespace=namespace)

    def service_account_token(self, namespace: str, name: str, *, seconds: int = 3600) -> str:
        """Ask for a token of an existing ServiceAccount (600 seconds is the shortest life)."""
        path = f"/api/v1/namespaces/{namespace}/serviceaccounts/{name}/token"
        wish = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenRequest",
            "spec": {"expirationSeconds": seconds},
        }
        answer = self._request_well("POST", path, wish)
        return str(answer.body["status"]["token"])

    def approve(self, name: str) -> None:
        """Approve a CertificateSigningRequest, as an admin would."""
        path = f"/apis/certificates.k8s.io/v1/certificatesigningrequests/{name}"
        request = self._request_well("GET", path).body
        request["status"]["conditions"] = [
            *request["status"].get("conditions", []),
            {"type": "Approved", "status": "True", "reason": "Test", "message": "by the harness"},
        ]
        self._request_well("PUT", f"{path}/approval", request)

    def request(self, method: str, path: str, body: object = None) -> Answer:
        """Ask the API server something as admin; PATCH is a merge patch. OSError if it is away."""
        content = "application/merge-patch+json" if method == "PATCH" else "application/json"
        connection = http.client.HTTPSConnection(
            self.address, self._port, timeout=_REQUEST_LIMIT, context=self._admin_context
        )
        with contextlib.closing(connection):
            connection.request(
                method,
                path,
                body=None if body is None else json.dumps(body),
                headers={"Content-Type": content, "Accept": "application/json"},
            )
            response = connection.getresponse()
            text = response.read()
        try:
            return Answer(response.status, json.loads(text or b"{}"))
        except ValueError:
            return Answer(response.status, text.decode("utf-8", "replace"))

    # -- its parts

    def _write_identities(self) -> None:
        pki, issue_client = self.folder, self._authority.issue_client
        self._authority.identity.write(pki, "ca")
        names = ["kubernetes", "kubernetes.default", "kubernetes.default.svc", "localhost"]
        names += sorted({_LOOPBACK, _FIRST_SERVICE, self.address})
        self._authority.issue_server("kube-apiserver", names).write(pki, "apiserver")
        # No O=system:masters: what the apiserver may do at a kubelet is for RBAC to say.
        issue_client(KUBELET_CLIENT).write(pki, "kubelet-client")
        self._admin.write(pki, "admin")

        front_proxy = Authority("front-proxy-ca")
        front_proxy.identity.write(pki, "front-proxy-ca")
        front_proxy.issue_client("front-proxy-client").write(pki, "front-proxy-client")
        storage = Authority("etcd-ca")
        storage.identity.write(pki, "etcd-ca")
        storage.issue_server("etcd", [_LOOPBACK], also_client=True).write(pki, "etcd")

        accounts = new_key()
        write_private(pki / "service-accounts.key", private_pem(accounts))
        (pki / "service-accounts.pub").write_bytes(public_pem(accounts))

        self._write_certificate_kubeconfig(self.admin_kubeconfig, self._admin, "default")
        for part in ("kube-controller-manager", "kube-scheduler"):
            identity = issue_client(f"system:{part}")
            self._write_certificate_kubeconfig(pki / f"{part}.kubeconfig", identity, "default")

    def _start_etcd(self) -> None:
        client = f"https://{_LOOPBACK}:{self._etcd_port}"
        peer = f"https://{_LOOPBACK}:{self._peer_port}"
        secured = [
            f"--{side}{flag}"
            for side in ("", "peer-")
            for flag in (
                f"cert-file={self.folder / 'etcd.crt'}",
                f"key-file={self.folder / 'etcd.key'}",
                f"trusted-ca-file={self.folder / 'etcd-ca.crt'}",
                "client-cert-auth",
            )
        ]
        flags = [
            "--name=plane",
            f"--data-dir={self.folder / 'etcd'}",
            f"--listen-client-urls={client}",
            f"--advertise-client-urls={client}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=plane={peer}",
            # The data dies with the plane.
            "--unsafe-no-fsync",
            *secured,
        ]
        self._child("etcd", self.binaries.etcd, flags).start()

    def _api_flags(self) -> list[str]:
        pki = self.folder
        flags = {
            "bind-address": self.address,
            "advertise-address": self.address,
            "secure-port": self._port,
            # Else the loopback address to advertise is refused.
            "endpoint-reconciler-type": "none",
            "etcd-servers": f"https://{_LOOPBACK}:{self._etcd_port}",
            "etcd-cafile": pki / "etcd-ca.crt",
            "etcd-certfile": pki / "etcd.crt",
            "etcd-keyfile": pki / "etcd.key",
            "tls-cert-file": pki / "apiserver.crt",
            "tls-private-key-file": pki / "apiserver.key",
            "client-ca-file": pki / "ca.crt",
            "requestheader-client-ca-file": pki / "front-proxy-ca.crt",
            "requestheader-allowed-names": "front-proxy-client",
            "requestheader-username-headers": "X-Remote-User",
            "requestheader-group-headers": "X-Remote-Group",
            "requestheader-extra-headers-prefix": "X-Remote-Extra-",
            "proxy-client-cert-file": pki / "front-proxy-client.crt",
            "proxy-client-key-file": pki / "front-proxy-client.key",
            "kubelet-certificate-authority": pki / "ca.crt",
            "kubelet-client-certificate": pki / "kubelet-client.crt",
            "kubelet-client-key": pki / "kubelet-client.key",
            "kubelet-preferred-address-types": "InternalIP,ExternalIP,Hostname",
            "service-account-issuer": "https://kubernetes.default.svc.cluster.local",
            "service-account-key-file": pki / "service-accounts.pub",
            "service-account-signing-key-file": pki / "service-accounts.key",
            "service-cluster-ip-range": _SERVICES,
            "authorization-mode": "Node,RBAC",
            "enable-admission-plugins": "NodeRestriction",
            "allow-privileged": "true",
            "profiling": "false",
        }
        if not self.has_controllers:
            # Nobody would make the ServiceAccounts that this plugin insists on.
            flags["disable-admission-plugins"] = "ServiceAccount"
        return [f"--{name}={value}" for name, value in flags.items()]

    def _start_controllers(self) -> None:
        pki = self.folder
        # Nobody scrapes them: no port, nothing to collide with another plane on the machine.
        closed = ["--leader-elect=false", "--secure-port=0", "--profiling=false"]
        if self.binaries.version < _INSECURE_PORT_ENDS:
            closed.append("--port=0")
        if self.binaries.controller_manager is not None:
            flags = [
                f"--kubeconfig={pki / 'kube-controller-manager.kubeconfig'}",
                f"--cluster-signing-cert-file={pki / 'ca.crt'}",
                f"--cluster-signing-key-file={pki / 'ca.key'}",
                f"--root-ca-file={pki / 'ca.crt'}",
                f"--service-account-private-key-file={pki / 'service-accounts.key'}",
                "--use-service-account-credentials",
                *closed,
            ]
            path = self.binaries.controller_manager
            self._child("kube-controller-manager", path, flags).start()
        if self.binaries.scheduler is not None:
            flags = [f"--kubeconfig={pki / 'kube-scheduler.kubeconfig'}", *closed]
            self._child("kube-scheduler", self.binaries.scheduler, flags).start()
        if self.has_controllers:
            self._wait_until("the default ServiceAccount exists", self._has_default_account)

    def _child(self, name: str, path: Path, flags: Sequence[str]) -> Child:
        words = [str(path), *flags, *self._extra.get(name, ())]
        child = Child(name, words, self.log(name), self.folder)
        self._children.append(child)
        return child

    def _api_child(self) -> Child:
        if self._apiserver is None:
            raise PlaneError("this control plane is not running")
        return self._apiserver

    # -- what it waits for

    def _is_ready(self) -> bool:
        return self.request("GET", "/readyz").status == http.HTTPStatus.OK

    def _has_default_account(self) -> bool:
        path = "/api/v1/namespaces/default/serviceaccounts/default"
        return self.request("GET", path).status == http.HTTPStatus.OK

    def _wait_until(self, what: str, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + _BOOT_LIMIT
        while True:
            for child in self._children:
                child.check()
            try:
                if condition():
                    return
            except (OSError, http.client.HTTPException):
                pass
            if time.monotonic() > deadline:
                tails = "\n".join(child.tail() for child in self._children)
                raise PlaneError(f"gave up after {_BOOT_LIMIT:.0f} s until {what}\n{tails}")
            time.sleep(_POLL)

    def _admit_kubelet_client(self) -> None:
        binding = {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRoleBinding",
            "metadata": {"name": KUBELET_CLIENT},
            "roleRef": {
                "apiGroup": "rbac.authorization.k8s.io",
                "kind": "ClusterRole",
                "name": "system:kubelet-api-admin",
            },
            "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": KUBELET_CLIENT}],
        }
        path = "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings"
        self._request_well("POST", path, binding)

    def _request_well(self, method: str, path: str, body: object = None) -> Answer:
        answer = self.request(method, path, body)
        if answer.status >= http.HTTPStatus.BAD_REQUEST:
            message = answer.body.get("message") if isinstance(answer.body, dict) else answer.body
            raise PlaneError(f"{method} {path}: {answer.status} {message}")
        return answer

    @functools.cached_property
    def _admin_context(self) -> ssl.SSLContext:
        context = ssl.create_default_context(cadata=self.ca_certificate.decode("ascii"))
        context.load_cert_chain(self.folder / "admin.crt", self.folder / "admin.key")
        return context

    # -- kubeconfigs

    def _fresh_path(self, user: str) -> Path:
        self._certificate_count += 1
        plain = "".join(letter if letter.isalnum() else "-" for letter in user)
        return self.folder / f"{plain}-{self._certificate_count}.kubeconfig"

    def _write_certificate_kubeconfig(self, path: Path, identity: Identity, namespace: str) -> Path:
        user = {
            "client-certificate-data": base64.b64encode(identity.certificate).decode("ascii"),
            "client-key-data": base64.b64encode(identity.key).decode("ascii"),
        }
        return self._write_kubeconfig(path, user, namespace)

    def _write_kubeconfig(self, path: Path, user: Mapping[str, str], namespace: str) -> Path:
        cluster = {
            "server": self.url,
            "certificate-authority-data": base64.b64encode(self.ca_certificate).decode("ascii"),
        }
        context = {"cluster": "plane", "user": "plane", "namespace": namespace}
        # JSON is YAML.
        text = json.dumps(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "clusters": [{"name": "plane", "cluster": cluster}],
                "users": [{"name": "plane", "user": dict(user)}],
                "contexts": [{"name": "plane", "context": context}],
                "current-context": "plane",
            },
            indent=1,
        )
        write_private(path, text.encode("utf-8"))
        return path


@functools.cache
def shared_plane() -> Plane:
    """
    Give the one plane that a test run shares, started by the first who asks and stopped at exit.

    It is `BRISK`, and nobody's to stop; whoever stops its apiserver starts it again.
    Without programs to run, the asking test is skipped (in CI: it fails), see `binaries.for_tests`.
    """
    plane = Plane(for_tests(), extra=BRISK).start()
    atexit.register(plane.stop)
    return plane


def _bracketed(address: str) -> str:
    return f"[{address}]" if ":" in address else address
