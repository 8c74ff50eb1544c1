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
from aranya.plugin.cluster import Cluster, Denied, Missing, Object, PluginError, age
from aranya.plugin.doctor import leases_of_aranya


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
    nodes = [node for node in cluster.nodes() if _provider_id(node).startswith(prefix)]
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
        name = node["metadata"]["name"]
        _delete_pod(cluster, name)
        try:
            cluster.delete_node(name, node["metadata"]["uid"])
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
        if (pod.get("spec") or {}).get("nodeName") == name:
            cluster.delete_pod(name, pod["metadata"]["uid"])
    except Missing:
        pass


def _provider_id(node: Object) -> str:
    return str((node.get("spec") or {}).get("providerID") or "")


def _refuse_while_running(cluster: Cluster, system_namespace: str | None, now: datetime) -> None:
    try:
        leases = leases_of_aranya(cluster, system_namespace)
    except Denied:
        return
    for lease in leases:
        spec = lease.get("spec") or {}
        if spec.get("holderIdentity") and age(spec.get("renewTime"), now) < 30:
            raise PluginError(
                f"aranya still runs ({spec['holderIdentity']} in {lease['metadata'].get('namespace')}) and "
                "would make everything anew; delete its Deployment first (if that one serves another "
                "namespace, say where yours ran: --system-namespace)"
            )
