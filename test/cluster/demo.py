"""
The demo: a cluster, aranya, a device, and a handful of kubectl commands that reach it.

Run by ``make demo``. It starts a control plane of its own (or takes the cluster that ``--kubeconfig``
names), leaves everything running after the commands, and on Ctrl-C takes away all that it made.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

from test.cluster.binaries import NoControlPlane, find_kubectls, find_or_build
from test.cluster.child import PlaneError
from test.cluster.daemons import DEVICE_NAMESPACE, PROGRAMS, Site, TooLate
from test.cluster.kubectl import Kubectl
from test.cluster.plane import Plane

DEVICE = "my-edge-device"


class Interrupted(Exception):
    """Ctrl-C, or SIGTERM."""


class GivenCluster:
    """The cluster of a kubeconfig, with the rights that it gives."""

    def __init__(self, kubeconfig: Path) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="aranya-demo-"))
        self.address = ""
        self._kubeconfig = kubeconfig

    def kubectl(self, kubeconfig: Path | None = None, namespace: str | None = None) -> Kubectl:
        """The newest kubectl of this machine."""
        return Kubectl(find_kubectls()[-1].path, kubeconfig or self._kubeconfig, namespace)

    def kubeconfig_for_service_account(self, namespace: str, name: str, *, seconds: int = 3600) -> Path:
        """A copy of the kubeconfig that carries the ServiceAccount's token instead of the user's own."""
        kubectl = self.kubectl()
        request = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest"}
        done = kubectl.run(
            *("create", "--raw", f"/api/v1/namespaces/{namespace}/serviceaccounts/{name}/token", "-f", "-"),
            input=json.dumps({**request, "spec": {"expirationSeconds": seconds}}).encode(),
        )
        view = kubectl.run("config", "view", "--minify", "--flatten", "--raw", "-o", "json")
        if done.code or view.code:
            raise TooLate(f"no token for the ServiceAccount: {(done.err + view.err).decode().strip()}")
        config = json.loads(view.out)
        config["users"][0]["user"] = {"token": json.loads(done.out)["status"]["token"]}
        path = self.folder / f"{name}.kubeconfig"
        path.touch(0o600)
        path.write_text(json.dumps(config))
        return path

    def stop(self) -> None:
        """Forget it; the cluster stays."""
        shutil.rmtree(self.folder, ignore_errors=True)


def say(line: str = "") -> None:
    """Print one line at once."""
    print(line, flush=True)


def show(kubectl: Kubectl, shown: str, *words: str, input: bytes | None = None) -> None:
    """Print a command as a reader would type it, run it, and print what it says."""
    say(f"\n$ {shown}")
    done = kubectl.run(*words, input=input)
    sys.stdout.buffer.write(done.out + done.err)
    sys.stdout.flush()
    if done.code:
        say(f"(exit code {done.code})")


def tour(site: Site) -> None:
    """The commands a newcomer wants to see work."""
    kubectl = site.edge
    show(kubectl, "kubectl get edgedevices", "get", "edgedevices")
    show(kubectl, f"kubectl get node {DEVICE}", "get", "node", DEVICE)
    show(kubectl, f"kubectl exec {DEVICE} -- uname -a", "exec", DEVICE, "--", "uname", "-a")
    show(kubectl, f"kubectl exec {DEVICE} -- sh -c 'exit 3'", "exec", DEVICE, "--", "sh", "-c", "exit 3")
    show(
        kubectl,
        f"echo hello | kubectl exec -i {DEVICE} -- tr a-z A-Z",
        *("exec", "-i", DEVICE, "--", "tr", "a-z", "A-Z"),
        input=b"hello\n",
    )
    copy = site.folder / "debian_version"
    show(
        kubectl,
        f"kubectl cp {DEVICE}:/etc/debian_version {copy}",
        *("cp", f"{DEVICE}:/etc/debian_version", str(copy)),
    )
    show(kubectl, f"kubectl logs {DEVICE} --tail=3", "logs", DEVICE, "--tail=3")


def invitation(site: Site, kubectl: Kubectl) -> None:
    """What to type in another terminal."""
    config = site.folder / "kubeconfig"
    view = kubectl.run("config", "view", "--minify", "--flatten", "--raw", "-o", "json")
    content = json.loads(view.out)
    content["contexts"][0]["context"]["namespace"] = DEVICE_NAMESPACE
    config.touch(0o600)
    config.write_text(json.dumps(content))
    say("\nIt runs. In another terminal:\n")
    say(f"  export KUBECONFIG={config}")
    path = f"{PROGRAMS}:$PATH"
    if shutil.which("kubectl") is None:
        tools = site.folder / "bin"
        tools.mkdir(exist_ok=True)
        (tools / "kubectl").unlink(missing_ok=True)
        (tools / "kubectl").symlink_to(kubectl.binary)
        path = f"{tools}:{path}"
    say(f"  export PATH={path}    # for kubectl aranya")
    for line in (f"exec -it {DEVICE} -- sh", f"attach -it {DEVICE}", f"port-forward {DEVICE} 8022:22"):
        say(f"  kubectl {line}")
    say("\nLogs: " + " ".join(shlex.quote(str(one.log)) for one in (site.controller, *site.devices.values())))
    say("Ctrl-C stops everything and takes away what the demo made.")


def run(cluster: Plane | GivenCluster) -> None:
    """Start, show, wait for Ctrl-C, clean up."""
    site = Site(cluster, "demo")
    made = False
    try:
        say("Applying deploy/ and starting aranya ...")
        made = True
        site.start()
        say(f"Joining the device {DEVICE} (this machine) ...")
        site.add_device(DEVICE)
        tour(site)
        invitation(site, cluster.kubectl())
        while site.controller.is_alive() and all(agent.is_alive() for agent in site.devices.values()):
            time.sleep(0.5)
        say("A daemon ended by itself:\n" + site.explain())
        raise SystemExit(1)
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        say("\nStopping ...")
        if made and isinstance(cluster, GivenCluster):
            # Only what this demo made; whoever uses aranya already keeps its CRD and RBAC.
            site.edge.run("delete", "edgedevice", DEVICE, "--ignore-not-found", "--timeout=30s")
        site.stop()


def main() -> None:
    """Parse, and turn every expected failure into one line."""
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__.strip().splitlines()[0])
    parser.add_argument("--kubeconfig", type=Path, help="use this cluster instead of one of its own")
    options = parser.parse_args()

    def interrupt(_number: int, _frame: object) -> None:
        raise Interrupted

    signal.signal(signal.SIGTERM, interrupt)
    signal.signal(signal.SIGINT, interrupt)
    cluster: Plane | GivenCluster | None = None
    try:
        if options.kubeconfig is not None:
            if not os.access(options.kubeconfig, os.R_OK):
                raise TooLate(f"cannot read KUBECONFIG={options.kubeconfig}")
            cluster = GivenCluster(options.kubeconfig.absolute())
        else:
            binaries = find_or_build()
            say(f"Starting a Kubernetes {binaries.version} control plane (about ten seconds) ...")
            cluster = Plane(binaries).start()
        run(cluster)
    except Interrupted:
        say("Stopped.")
    except (NoControlPlane, PlaneError, TooLate) as why:
        say(f"demo: {why}")
        raise SystemExit(1) from None
    finally:
        if cluster is not None:
            cluster.stop()


if __name__ == "__main__":
    main()
