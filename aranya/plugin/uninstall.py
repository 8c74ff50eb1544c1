"""``uninstall``: take back what only aranya could finalise, when aranya is gone already.

Nodes go first, by their providerID; the finalisers of EdgeDevices come off after
them, so that nothing is orphaned when it is interrupted. EdgeDevices stay; they are
the user's.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import TextIO

from aranya.names import FINALIZER
from aranya.plugin.cluster import Cluster, Denied, Missing, PluginError, age
from aranya.plugin.doctor import LEASE


def uninstall(
    cluster: Cluster,
    system_namespace: str | None,
    *,
    yes: bool,
    out: TextIO,
    ask: Callable[[str], str],
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> None:
    """Remove the Nodes and Pods of this namespace's devices, then strip the finalisers."""
    _refuse_while_running(cluster, system_namespace, now())
    prefix = f"aranya://{cluster.namespace}/"
    nodes = [node for node in cluster.nodes() if (node.spec.provider_id or "").startswith(prefix)]
    try:
        edge_devices = cluster.edge_devices()
    except Missing:
        edge_devices = []
    bound = [one for one in edge_devices if FINALIZER in (one["metadata"].get("finalizers") or [])]
    if not nodes and not bound:
        print(f"nothing of aranya is left in namespace {cluster.namespace}", file=out)
        return
    if not yes:
        question = (
            f"Delete {len(nodes)} Nodes and their Pods, and release {len(bound)} EdgeDevices "
            f"in namespace {cluster.namespace}? [y/N] "
        )
        if ask(question).strip().lower() not in ("y", "yes"):
            raise PluginError("nothing was changed; --yes answers the question beforehand")
    for node in nodes:
        name = node.metadata.name
        _delete_pod(cluster, name)
        try:
            cluster.delete_node(name, node.metadata.uid)
        except Missing:
            pass
        print(f"Node {name} deleted", file=out)
    for edge_device in bound:
        metadata = edge_device["metadata"]
        name, finalizers = metadata["name"], metadata["finalizers"]
        index = finalizers.index(FINALIZER)
        path = f"/metadata/finalizers/{index}"
        steps = [{"op": "test", "path": path, "value": FINALIZER}, {"op": "remove", "path": path}]
        try:
            cluster.patch_edge_device(name, steps)
        except Missing:
            pass
        print(f"EdgeDevice {name} released", file=out)


def _delete_pod(cluster: Cluster, name: str) -> None:
    try:
        pod = cluster.pod(name)
        if pod.spec.node_name == name:
            cluster.delete_pod(name, pod.metadata.uid)
    except Missing:
        pass


def _refuse_while_running(cluster: Cluster, system_namespace: str | None, now: datetime) -> None:
    try:
        leases = cluster.leases(LEASE, system_namespace or cluster.namespace)
    except Denied:
        return
    for lease in leases:
        spec = lease.spec
        if spec.holder_identity and spec.renew_time and age(spec.renew_time, now) < 30:
            raise PluginError(
                f"aranya still runs ({spec.holder_identity}) and would make everything anew; "
                "delete its Deployment first"
            )
