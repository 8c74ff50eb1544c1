"""
The two daemons as an operator runs them: real processes under ``twistd``, against a real plane.

A ``Site`` is one aranya with the RBAC of ``deploy/`` and the devices that joined it. Everything it
starts dies with the test run. All calls block.
"""

from __future__ import annotations

import atexit
import functools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from test.cluster.binaries import for_tests
from test.cluster.child import free_ports
from test.cluster.kubectl import Kubectl
from test.cluster.plane import BRISK, Plane, shared_plane

ROOT = Path(__file__).resolve().parent.parent.parent
PROGRAMS = Path(sys.executable).parent
OWN_NAMESPACE = "aranya"
DEVICE_NAMESPACE = "edge"

#: What an operator applies before aranya; the Deployment itself is left out, we are the process.
_MANIFESTS_LEFT_OUT = ("aranya.yaml", "example")


class TooLate(Exception):
    """What was waited for did not happen; the text says what, and what the logs say."""


def wait_until(
    what: str,
    condition: Callable[[], Any],
    seconds: float = 30,
    explain: Callable[[], str] = lambda: "",
) -> Any:
    """Ask until the answer is true and give it back; ``TooLate`` past the deadline."""
    deadline = time.monotonic() + seconds
    while True:
        answer = condition()
        if answer:
            return answer
        if time.monotonic() > deadline:
            raise TooLate(f"not within {seconds} s: {what}\n{explain()}")
        time.sleep(0.05)


def free_port() -> int:
    """Give a TCP port of loopback that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Twistd:
    """One daemon as a process; it may be stopped, killed and started again."""

    def __init__(
        self, name: str, words: Sequence[str], folder: Path, env: dict[str, str] | None = None
    ) -> None:
        self.name = name
        self.words = list(words)
        self.folder = folder
        self.log = folder / f"{name}.log"
        self.program: Sequence[str] = (str(PROGRAMS / "twistd"),)
        self._env = env or {}
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The process id of the running daemon."""
        assert self._process is not None
        return self._process.pid

    def start(self, *more: str) -> None:
        """Start it, its output added to the log."""
        assert not self.is_alive(), f"{self.name} runs already"
        self.folder.mkdir(parents=True, exist_ok=True)
        words = ["setpriv", "--pdeathsig", "KILL", "--", *self.program, "-n", "--pidfile="]
        with open(self.log, "ab") as log:
            self._process = subprocess.Popen(
                [*words, *self.words, *more],
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={
                    "PATH": os.environ.get("PATH", os.defpath),
                    "HOME": os.environ.get("HOME", "/"),
                    "PYTHONPATH": str(ROOT),
                    "PYTHONUNBUFFERED": "1",
                    **self._env,
                },
                start_new_session=True,
            )

    def is_alive(self) -> bool:
        """Say whether it runs."""
        return self._process is not None and self._process.poll() is None

    def wait(self, seconds: float = 15) -> int:
        """Wait for its end and give the exit code."""
        assert self._process is not None
        return self._process.wait(seconds)

    def terminate(self, seconds: float = 15) -> int:
        """Ask it to end as an init system does, and give the exit code."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        return self.wait(seconds)

    def kill(self) -> None:
        """Kill it as a crash would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def text(self) -> str:
        """All it has logged."""
        return self.log.read_text("utf-8", "replace") if self.log.exists() else ""

    def tail(self, lines: int = 25) -> str:
        """The last lines of its log, under its name."""
        return "\n".join([f"--- {self.name}", *self.text().splitlines()[-lines:]])

    def resident_kib(self) -> int:
        """Its resident memory in KiB."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        found = re.search(r"VmRSS:\s+(\d+)", status)
        assert found is not None
        return int(found.group(1))


class Cluster(Protocol):
    """What a site needs of a cluster: a `Plane`, or one that exists already."""

    folder: Path
    #: What the API server dials to reach this machine; ``""`` lets aranya find out.
    address: str

    def kubectl(self, kubeconfig: Path | None = None, namespace: str | None = None) -> Kubectl:
        """A kubectl with an administrator's rights, or another's."""
        ...

    def kubeconfig_for_service_account(self, namespace: str, name: str, *, seconds: int = 3600) -> Path:
        """A kubeconfig with the rights of a ServiceAccount."""
        ...


class Site:
    """
    One aranya on a cluster, and its devices; started by ``start``, ended by ``stop``.

    ``detours`` are ports of ``host`` that devices dial, in turn, instead of the gateway's own; a test
    listens there.
    """

    def __init__(
        self,
        plane: Cluster,
        name: str = "site",
        *,
        kubeconfig: Path | None = None,
        options: Sequence[str] = (),
        detours: Sequence[int] = (),
        host: str = "127.0.0.1",
    ) -> None:
        self.plane = plane
        self.folder = plane.folder / name
        self.admin = plane.kubectl()
        self.edge = plane.kubectl(namespace=DEVICE_NAMESPACE)
        self.gateway_port = free_port()
        self.health_port = free_port()
        self.devices: dict[str, Twistd] = {}
        self._kubeconfig = kubeconfig
        self._options = list(options)
        self.detours = tuple(detours)
        self._host = host
        self.controller = Twistd("aranya", [], self.folder)

    def start(self) -> Site:
        """Apply ``deploy/``, start aranya as its ServiceAccount, wait until it is ready."""
        self.apply_manifests()
        self.controller.words = self.controller_words(self.gateway_port, self.health_port)
        self.controller.start()
        self.wait_ready()
        return self

    def controller_words(self, gateway_port: int, health_port: int) -> list[str]:
        """The command line of an aranya of this site: the one, or another replica on ports of its own."""
        kubeconfig = self._kubeconfig or self.plane.kubeconfig_for_service_account(
            OWN_NAMESPACE, "aranya", seconds=7200
        )
        urls = [f"wss://{self._host}:{port}" for port in self.detours or (self.gateway_port,)]
        return [
            "aranya",
            *("--kubeconfig", str(kubeconfig)),
            *("--namespace", OWN_NAMESPACE, "--watch-namespace", DEVICE_NAMESPACE),
            *("--gateway", f"tcp:{gateway_port}:interface=127.0.0.1"),
            *(word for url in urls for word in ("--gateway-url", url)),
            *(("--node-address", self.plane.address) if self.plane.address else ()),
            *("--health", f"tcp:{health_port}:interface=127.0.0.1"),
            *self._options,
        ]

    def apply_manifests(self) -> None:
        """Do what the README tells an operator to do first."""
        names = [path for path in sorted((ROOT / "deploy").glob("*.yaml"))]
        for path in names:
            if any(word in path.name for word in _MANIFESTS_LEFT_OUT):
                continue
            done = wait_until(
                f"kubectl apply -f deploy/{path.name}",
                lambda path=path: self._applied(path),
                10,
            )
            assert done

    def _applied(self, path: Path) -> bool:
        done = self.admin.run("apply", "-f", str(path))
        if done.code and b"not found" not in done.err and b"no matches" not in done.err:
            raise TooLate(f"kubectl apply -f {path.name}: {done.err.decode()}")
        return done.code == 0

    def ready(self) -> bool:
        """Ask aranya's own health endpoint."""
        try:
            with socket.create_connection(("127.0.0.1", self.health_port), 2) as asked:
                asked.sendall(b"GET /readyz HTTP/1.0\r\n\r\n")
                return b" 200 " in asked.recv(200)
        except OSError:
            return False

    def wait_ready(self, seconds: float = 30) -> None:
        """Wait until aranya leads and listens."""
        wait_until(
            "aranya is ready",
            lambda: self._alive_and_ready(),
            seconds,
            self.controller.tail,
        )

    def _alive_and_ready(self) -> bool:
        if not self.controller.is_alive():
            raise TooLate(f"aranya ended\n{self.controller.tail()}")
        return self.ready()

    # -- devices

    def create_device(self, name: str, spec: dict[str, Any] | None = None) -> None:
        """Make the EdgeDevice object."""
        body = {
            "apiVersion": "aranya.arhat.dev/v1alpha1",
            "kind": "EdgeDevice",
            "metadata": {"name": name, "namespace": DEVICE_NAMESPACE},
            "spec": spec or {},
        }
        done = self.edge.run("apply", "-f", "-", input=json.dumps(body).encode())
        assert done.code == 0, done.err

    def join_token(self, name: str) -> str:
        """Ask for a join token by the plugin, as a user does."""
        path = f"{PROGRAMS}:{os.environ.get('PATH', os.defpath)}"
        done = self.admin.run(
            "aranya", "join", name, "-n", DEVICE_NAMESPACE, "--print-token", env={"PATH": path}
        )
        assert done.code == 0, done.err.decode() + self.controller.tail()
        return done.out.decode().strip()

    def add_device(
        self,
        name: str,
        spec: dict[str, Any] | None = None,
        *,
        config: str = "",
        process: str = "",
    ) -> Twistd:
        """Create the EdgeDevice, join, start the agent and wait until kubectl may reach it."""
        self.create_device(name, spec)
        token = self.join_token(name)
        agent = self.agent(process or name, config=config)
        agent.start("--join", token)
        self.devices[name] = agent
        self.wait_online(name)
        return agent

    def agent(self, name: str, *, config: str = "", words: Sequence[str] = ()) -> Twistd:
        """Make (not start) an agent process with a state folder of its own."""
        folder = self.folder / name
        folder.mkdir(parents=True, exist_ok=True)
        options = ["arhat", "--state", str(folder / "state"), *words]
        if config:
            (folder / "arhat.yaml").write_text(config)
            options += ["--config", str(folder / "arhat.yaml")]
        return Twistd(name, options, folder)

    def get(self, kind: str, name: str) -> dict[str, Any] | None:
        """Read one object of the device namespace (or of the cluster); ``None`` if it is not there."""
        done = self.edge.run("get", kind, name, "-o", "json")
        return json.loads(done.out) if done.code == 0 else None

    def condition(self, kind: str, name: str, condition: str) -> str:
        """The status of one condition of an object, ``""`` if it has none."""
        found = self.get(kind, name) or {}
        for one in found.get("status", {}).get("conditions", []):
            if one["type"] == condition:
                return str(one["status"])
        return ""

    def wait_online(self, name: str, seconds: float = 30) -> None:
        """Wait until kubectl reaches the device; a Ready condition may be that of an earlier link."""
        wait_until(
            f"{name} is online",
            lambda: (
                self.condition("pod", name, "Ready") == "True"
                and self.edge.run("exec", name, "--", "true").code == 0
            ),
            seconds,
            self.explain,
        )

    def wait_offline(self, name: str, seconds: float = 30) -> None:
        """Wait until the Node says that the device is gone."""
        wait_until(
            f"{name} is offline",
            lambda: self.condition("node", name, "Ready") == "False",
            seconds,
            self.explain,
        )

    def explain(self) -> str:
        """What the daemons' logs say, for a failing test."""
        return "\n".join([self.controller.tail(), *(agent.tail() for agent in self.devices.values())])

    def stop(self) -> None:
        """Kill every process of the site."""
        for agent in self.devices.values():
            agent.kill()
        self.controller.kill()


@functools.cache
def shared_site() -> Site:
    """
    Give the one site that a test run shares, with the device ``my-edge-device`` online.

    Tests that kill daemons bring them back, or make a site of their own.
    """
    site = Site(shared_plane())
    atexit.register(site.stop)
    site.start()
    site.add_device("my-edge-device")
    return site


@functools.cache
def spare_plane() -> Plane:
    """Give a second plane, for what `spare_site` says; stopped at exit."""
    plane = Plane(for_tests(), extra=BRISK).start()
    atexit.register(plane.stop)
    return plane


@functools.cache
def spare_site() -> Site:
    """
    Give a site on a plane of its own, without devices: for tests whose bad days would hurt others.

    Its devices dial two ports where nobody listens unless a test does: a bad road to the gateway, and
    perhaps a second replica's gateway.
    """
    site = Site(spare_plane(), detours=free_ports(2, "127.0.0.1"))
    atexit.register(site.stop)
    return site.start()


def kubectls(namespace: str = DEVICE_NAMESPACE, plane: Plane | None = None) -> list[Kubectl]:
    """Every kubectl of this machine, oldest first, as admin of the shared plane or another."""
    return (plane or shared_plane()).kubectls(namespace=namespace)
