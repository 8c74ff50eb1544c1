"""``doctor``: what stands between kubectl and a device, checked in the order of the road."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TextIO

from aranya.names import HOST_CONTAINER
from aranya.plugin.cluster import Cluster, Denied, Missing, Object, PluginError, age

LEASE = "aranya"


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check: ``ok`` is ``None`` when it could not be made."""

    what: str
    ok: bool | None
    detail: str = ""
    remedy: str = ""

    def __str__(self) -> str:
        word = {True: "ok  ", False: "FAIL", None: "skip"}[self.ok]
        line = f"{word}  {self.what}"
        if self.detail:
            line += f": {self.detail}"
        return f"{line} -> {self.remedy}" if self.remedy and not self.ok else line


def doctor(
    cluster: Cluster,
    name: str | None,
    system_namespace: str | None,
    *,
    out: TextIO,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> bool:
    """Print one line per check; gives back whether all is well."""
    findings = [_api_server(cluster)]
    if findings[0].ok:
        crd, edge_devices = _crd(cluster, name)
        findings += [crd, _lease(cluster, system_namespace, now())]
        for edge_device in edge_devices:
            findings += _device(cluster, edge_device)
    for finding in findings:
        print(finding, file=out)
    return all(finding.ok is not False for finding in findings)


def _api_server(cluster: Cluster) -> Finding:
    try:
        return Finding("API server", True, cluster.version())
    except PluginError as error:
        return Finding("API server", False, str(error), "check --kubeconfig and --context")


def _crd(cluster: Cluster, name: str | None) -> tuple[Finding, list[Object]]:
    try:
        found = cluster.edge_devices()
    except Missing:
        remedy = "kubectl apply -f deploy/10-crd.yaml"
        return Finding("CRD of EdgeDevice", False, "not installed", remedy), []
    except PluginError as error:
        return Finding("CRD of EdgeDevice", False, str(error), "ask for the right to list EdgeDevices"), []
    if name is not None:
        found = [one for one in found if one["metadata"]["name"] == name]
        if not found:
            missing = f"no EdgeDevice {name} in namespace {cluster.namespace}"
            return Finding("EdgeDevice", False, missing, "create it, or give -n"), []
    return Finding("CRD of EdgeDevice", True, f"{len(found)} to check in {cluster.namespace}"), found


def _lease(cluster: Cluster, system_namespace: str | None, now: datetime) -> Finding:
    what = "aranya leads"
    try:
        leases = leases_of_aranya(cluster, system_namespace)
    except Denied as error:
        return Finding(what, None, str(error), "")
    except PluginError as error:
        return Finding(what, False, str(error), "")
    held = [
        (age(spec.get("renewTime"), now), spec, lease["metadata"].get("namespace"))
        for lease in leases
        if (spec := lease.get("spec") or {}).get("holderIdentity")
    ]
    if not held:
        return Finding(what, False, "no Lease aranya is held", "start aranya; look at its log")
    seconds, spec, namespace = min(held, key=lambda one: one[0])
    told = f"{spec['holderIdentity']} in {namespace}, renewed {seconds:.0f} s ago"
    # Clocks of people and of clusters differ by some seconds.
    fresh = seconds <= (spec.get("leaseDurationSeconds") or 15) + 15
    return Finding(what, fresh, told, "start aranya; look at its log")


def leases_of_aranya(cluster: Cluster, system_namespace: str | None) -> list[Object]:
    """The leaders' Leases: of one namespace, of all, or of those where aranya most likely is."""
    if system_namespace is not None:
        return cluster.leases(LEASE, system_namespace)
    try:
        return cluster.leases(LEASE, None)
    except Denied:
        found: list[Object] = []
        denied: list[Denied] = []
        for namespace in dict.fromkeys((LEASE, cluster.namespace)):
            try:
                found += cluster.leases(LEASE, namespace)
            except Denied as error:
                denied.append(error)
        if denied and not found:
            raise denied[0] from None
        return found


def _device(cluster: Cluster, edge_device: Object) -> list[Finding]:
    name = edge_device["metadata"]["name"]
    findings = []
    if (edge_device.get("spec") or {}).get("banned"):
        findings.append(Finding(f"{name}: banned", False, "", f"kubectl aranya unban {name}"))
    remedies = {
        "Connected": f"start arhat there, look at its log; if it never joined: kubectl aranya join {name}",
        "NodeReady": "see the reason; aranya's log tells more",
        "CertificateReady": "aranya needs the right to create and approve certificate requests",
    }
    conditions = {one.get("type"): one for one in (edge_device.get("status") or {}).get("conditions") or []}
    for kind, remedy in remedies.items():
        condition = conditions.get(kind)
        if condition is None:
            findings.append(Finding(f"{name}: {kind}", False, "aranya has not said yet", remedy))
            continue
        told = condition.get("message") or condition.get("reason") or ""
        findings.append(Finding(f"{name}: {kind}", condition.get("status") == "True", told, remedy))
    conflict = conditions.get("Conflict")
    if conflict is not None and conflict.get("status") == "True":
        remedy = "rename the EdgeDevice or remove what has its name"
        findings.append(Finding(f"{name}: no conflict", False, conflict.get("message") or "", remedy))
    findings.append(_node(cluster, name))
    findings.append(_pod(cluster, name))
    findings.append(_kubelet(cluster, name))
    return findings


def _node(cluster: Cluster, name: str) -> Finding:
    what = f"{name}: Node"
    try:
        node = cluster.node(name)
    except Denied as error:
        return Finding(what, None, str(error))
    except PluginError as error:
        return Finding(what, False, str(error), "aranya makes it; look at its log")
    wanted = f"aranya://{cluster.namespace}/{name}"
    provider_id = (node.get("spec") or {}).get("providerID")
    if provider_id != wanted:
        return Finding(what, False, f"it is not aranya's ({provider_id})", "rename the EdgeDevice")
    return Finding(what, True)


def _pod(cluster: Cluster, name: str) -> Finding:
    what = f"{name}: Pod"
    try:
        pod = cluster.pod(name)
    except Denied as error:
        return Finding(what, None, str(error))
    except PluginError as error:
        return Finding(what, False, str(error), "aranya makes it; look at its log and at Events")
    spec = pod.get("spec") or {}
    containers = [container.get("name") for container in spec.get("containers") or []]
    if spec.get("nodeName") != name or HOST_CONTAINER not in containers:
        return Finding(what, False, "a Pod of that name is not aranya's", "delete or rename it")
    phase = (pod.get("status") or {}).get("phase") or ""
    return Finding(what, phase == "Running", phase, "see its Events")


def _kubelet(cluster: Cluster, name: str) -> Finding:
    what = f"{name}: kubelet endpoint"
    try:
        answer = cluster.node_health(name)
    except Denied as error:
        # 403 comes from the API server (the caller may not use nodes/proxy) or through it
        # from aranya; either way the road was not walked to its end.
        return Finding(what, None, str(error))
    except PluginError as error:
        remedy = "kube-apiserver must reach --node-address; see aranya's --node-address, --kubelet-ports"
        return Finding(what, False, str(error), remedy)
    return Finding(what, answer == "ok", answer[:80], "look at aranya's log")
