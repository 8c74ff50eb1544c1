"""What a run is done on: a control plane, aranya with one device, the floor's pod, and an OpenSSH server."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from test.bench.child import running
from test.bench.contenders import NO_WEBSOCKET, ByKubectl, BySsh, Contender
from test.bench.openssh import NoOpenSSH, openssh
from test.bench.report import ARANYA, FLOOR, SPDY, SSH
from test.cluster.binaries import find_or_build
from test.cluster.daemons import Site, Twistd, free_port
from test.cluster.plane import BRISK, Plane

DEVICE = "my-edge-device"
_FLOOR = "floor"


@dataclass(frozen=True, slots=True)
class Ground:
    """All that is measured, up and running."""

    plane: Plane
    site: Site
    agent: Twistd
    #: The TCP server at the far end of forwarded connections.
    target: int
    folder: Path
    contenders: Mapping[str, Contender]

    @property
    def daemons(self) -> tuple[int, int]:
        """The process ids of aranya and arhat."""
        return self.site.controller.pid, self.agent.pid

    def only(self, *names: str) -> dict[str, Contender]:
        """Those of these names that take part in this run."""
        return {name: self.contenders[name] for name in names if name in self.contenders}

    @contextlib.contextmanager
    def device(self, name: str, spec: dict[str, Any] | None = None) -> Iterator[Twistd]:
        """One device more, up until the end of the block."""
        agent = self.site.add_device(name, spec)
        try:
            yield agent
        finally:
            agent.kill()
            del self.site.devices[name]
            self.site.edge.run("delete", "edgedevice", name, timeout=60)

    @contextlib.contextmanager
    def detour(self) -> Iterator[int]:
        """
        A port that devices which join meanwhile dial instead of the gateway's; nobody listens there yet.

        aranya starts anew for it, and at the end; the device that was there before keeps its own way.
        """
        port = free_port()
        self._restart((port,))
        try:
            yield port
        finally:
            self._restart(())

    def _restart(self, detours: tuple[int, ...]) -> None:
        site = self.site
        site.detours = detours
        site.controller.terminate()
        site.controller.words = site.controller_words(site.gateway_port, site.health_port)
        site.controller.start()
        site.wait_ready()
        site.wait_online(DEVICE)


@contextlib.contextmanager
def ground(say: Callable[[str], None], missing: list[str]) -> Iterator[Ground]:
    """Start everything, and end it; what could not be had is said in ``missing``."""
    with contextlib.ExitStack() as opened:
        say("start a control plane, aranya, and one device")
        plane = opened.enter_context(Plane(find_or_build(), extra=BRISK))
        folder = plane.folder / "bench"
        folder.mkdir()
        site = Site(plane)
        opened.callback(site.stop)
        site.start()
        agent = site.add_device(DEVICE)
        target, _ = opened.enter_context(running("test.bench.target", [], folder / "target.log"))
        contenders: dict[str, Contender] = {
            ARANYA: ByKubectl(site.edge, DEVICE, {}),
            SPDY: ByKubectl(site.edge, DEVICE, NO_WEBSOCKET),
        }
        try:
            server = opened.enter_context(openssh(folder / "ssh"))
        except NoOpenSSH as problem:
            missing.append(f"ssh: {problem}")
        else:
            contenders[SSH] = BySsh(server)
        contenders[FLOOR] = opened.enter_context(_floor(plane, folder))
        yield Ground(plane, site, agent, target, folder, contenders)


@contextlib.contextmanager
def _floor(plane: Plane, folder: Path) -> Iterator[Contender]:
    """A Node whose kubelet is ``test.bench.floor``, and a pod on it."""
    identity = plane._authority.issue_server("floor", ["127.0.0.1"])
    pem = folder / "floor.pem"
    pem.touch(0o600)
    pem.write_bytes(identity.certificate + identity.key)
    with running("test.bench.floor", [str(pem)], folder / "floor.log") as (port, _):
        node = "/api/v1/nodes"
        _well(plane, "POST", node, {"apiVersion": "v1", "kind": "Node", "metadata": {"name": _FLOOR}})
        status = {
            "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": port}},
        }
        _well(plane, "PATCH", f"{node}/{_FLOOR}/status", {"status": status})
        pods = "/api/v1/namespaces/default/pods"
        spec = {
            "nodeName": _FLOOR,
            "containers": [{"name": "host", "image": "none"}],
            # Nobody reports this Node's health, and no run shall end with its pod evicted.
            "tolerations": [{"operator": "Exists"}],
        }
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": _FLOOR}, "spec": spec}
        _well(plane, "POST", pods, pod)
        _well(plane, "PATCH", f"{pods}/{_FLOOR}/status", {"status": {"phase": "Running"}})
        yield ByKubectl(plane.kubectl(namespace="default"), _FLOOR, NO_WEBSOCKET)


def _well(plane: Plane, method: str, path: str, body: object) -> None:
    answer = plane.request(method, path, body)
    if answer.status >= 400:
        raise RuntimeError(f"{method} {path}: {answer.status} {answer.body}")
