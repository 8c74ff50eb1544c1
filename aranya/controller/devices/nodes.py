"""The Node of an EdgeDevice: built, compared, patched. Pure.

A Node has more authors than us: the lifecycle controller taints it, people
label it, network plug-ins annotate it. So only what this project put there is
ever changed or taken away; ``APPLIED`` on the Node remembers what that was.

While a device is away nothing new is known of it: what it told before stays.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from aranya.controller.devices.conditions import Condition, laid_over, says
from aranya.controller.devices.model import Connected, Seen, Site, Wish, usable_labels
from aranya.interfaces import Object
from aranya.names import (
    LABEL_ARCH,
    LABEL_NAME,
    LABEL_NAMESPACE,
    LABEL_OS,
    LABEL_ROLE,
    TAINT_NAMESPACE,
    DeviceKey,
)
from tether.verbs.requests import DeviceFacts

ROLE_NODE = "Node"
APPLIED = "aranya.arhat.dev/applied"
HEARTBEAT_SECONDS = 300.0

_MOST_DEVICE_LABELS = 64
_LONGEST_FACT = 128
_ANNOTATIONS = {"cluster-autoscaler.kubernetes.io/scale-down-disabled": "true"}
_EXCLUDED = {
    "node.kubernetes.io/exclude-disruption": "true",
    "node.kubernetes.io/exclude-from-external-load-balancers": "true",
}


def is_ours(node: Object, key: DeviceKey) -> bool:
    """Whether this project made the Node for this EdgeDevice: its providerID says so."""
    return bool(node.get("spec", {}).get("providerID") == key.provider_id)


def new_node(wish: Wish, seen: Seen, site: Site, online: bool, now: float) -> Object:
    """The Node to create, providerID and status included."""
    metadata, spec = _owned(wish, seen.connected, {}, {})
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": wish.key.name, **metadata},
        "spec": {"providerID": wish.key.provider_id, **spec},
        "status": _status(seen, site, {}, online, now),
    }


def node_patch(wish: Wish, seen: Seen) -> Object | None:
    """The merge patch for metadata and spec of the Node; ``None`` when it is as it should be."""
    node = seen.node or {}
    old_metadata, old_spec = node.get("metadata", {}), node.get("spec", {})
    metadata, spec = _owned(wish, seen.connected, old_metadata, old_spec)
    patch: Object = {}
    for field in ("labels", "annotations"):
        if changes := _changes(old_metadata.get(field) or {}, metadata[field]):
            patch.setdefault("metadata", {})[field] = changes
    if spec["taints"] != (old_spec.get("taints") or []):
        patch["spec"] = {"taints": spec["taints"]}
    return _guarded(patch, node)


def node_status_patch(seen: Seen, site: Site, online: bool, now: float) -> Object | None:
    """The merge patch for the Node's status; ``None`` when it tells the truth already."""
    node = seen.node or {}
    old = node.get("status", {})
    wished = _status(seen, site, old, online, now)
    status: Object = {}
    for field in ("conditions", "addresses", "daemonEndpoints"):
        if not says(old.get(field), wished[field]):
            status[field] = wished[field]
    for field in ("capacity", "allocatable", "nodeInfo"):
        if changes := _changes(old.get(field) or {}, wished[field]):
            status[field] = changes
    return _guarded({"status": status} if status else {}, node)


def _guarded(patch: Object, node: Object) -> Object | None:
    """Lists are replaced whole, so a patch holds only for the version it was made from."""
    if not patch:
        return None
    metadata = patch.setdefault("metadata", {})
    for field in ("uid", "resourceVersion"):
        if value := node.get("metadata", {}).get(field):
            metadata[field] = value
    return patch


def _changes(old: Mapping[str, Any], wished: Mapping[str, Any]) -> dict[str, Any]:
    """A merge patch between two flat maps: ``None`` takes a key away."""
    changes = {key: value for key, value in wished.items() if not says(old.get(key), value)}
    return changes | {key: None for key in old if key not in wished}


def _owned(
    wish: Wish, connected: Connected | None, old_metadata: Mapping[str, Any], old_spec: Mapping[str, Any]
) -> tuple[dict[str, dict[str, str]], dict[str, list[dict[str, Any]]]]:
    old_labels: dict[str, str] = old_metadata.get("labels") or {}
    old_annotations: dict[str, str] = old_metadata.get("annotations") or {}
    before = _read_applied(old_annotations.get(APPLIED, ""))
    told = before.device
    if connected is not None:
        told = usable_labels(connected.facts.labels, _MOST_DEVICE_LABELS)
    wished = {**told, **wish.labels}
    labels = {key: value for key, value in old_labels.items() if key not in before.labels}
    labels |= wished | _own_labels(wish.key, connected, old_labels)
    annotations = {key: value for key, value in old_annotations.items() if key not in before.annotations}
    annotations |= {**wish.annotations, **_ANNOTATIONS}
    taints = _taints(wish, old_spec.get("taints") or [], before.taints)
    annotations[APPLIED] = json.dumps(
        {
            "annotations": sorted(wish.annotations),
            "device": told,
            "labels": sorted(wished),
            "taints": sorted(f"{taint.key}:{taint.effect}" for taint in wish.taints),
        },
        separators=(",", ":"),
        sort_keys=True,
    )
    return {"labels": labels, "annotations": annotations}, {"taints": taints}


@dataclass(frozen=True, slots=True)
class _Applied:
    """What this project put on a Node: keys of its own wishes, and what the device told."""

    labels: frozenset[str]
    annotations: frozenset[str]
    taints: frozenset[str]
    device: Mapping[str, str]


def _read_applied(text: str) -> _Applied:
    try:
        read = json.loads(text) if text else {}
    except ValueError:
        read = {}
    fields = read if isinstance(read, dict) else {}

    def names(field: str) -> frozenset[str]:
        entries = fields.get(field)
        listed = entries if isinstance(entries, list) else []
        return frozenset(entry for entry in listed if isinstance(entry, str))

    told = fields.get("device")
    device = usable_labels(told if isinstance(told, dict) else {}, _MOST_DEVICE_LABELS)
    return _Applied(names("labels"), names("annotations"), names("taints"), device)


def _own_labels(key: DeviceKey, connected: Connected | None, old: Mapping[str, str]) -> dict[str, str]:
    labels = {LABEL_ROLE: ROLE_NODE, LABEL_NAME: key.name, LABEL_NAMESPACE: key.namespace, **_EXCLUDED}
    if connected is None:
        return labels | {name: old[name] for name in (LABEL_ARCH, LABEL_OS) if name in old}
    facts = {LABEL_ARCH: connected.facts.arch, LABEL_OS: connected.facts.os}
    return labels | {name: value for name, fact in facts.items() if (value := _label_value(fact))}


def _label_value(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]", "-", text[:63]).strip("-_.")


def _taints(wish: Wish, old: list[dict[str, Any]], before: frozenset[str]) -> list[dict[str, Any]]:
    own: dict[str, dict[str, Any]] = {
        f"{TAINT_NAMESPACE}:NoSchedule": {
            "key": TAINT_NAMESPACE,
            "value": wish.key.namespace,
            "effect": "NoSchedule",
        }
    }
    for taint in wish.taints:
        entry = {"key": taint.key, "effect": taint.effect} | ({"value": taint.value} if taint.value else {})
        own.setdefault(f"{taint.key}:{taint.effect}", entry)
    kept: list[dict[str, Any]] = []
    for entry in old:
        name = f"{entry.get('key')}:{entry.get('effect')}"
        if name in own:
            # ``timeAdded`` is the API server's, and the order is nobody's business.
            added = {"timeAdded": entry["timeAdded"]} if "timeAdded" in entry else {}
            kept.append(own.pop(name) | added)
        elif name not in before:
            kept.append(entry)
    return kept + list(own.values())


def _status(seen: Seen, site: Site, old: Mapping[str, Any], online: bool, now: float) -> dict[str, Any]:
    facts = seen.connected.facts if seen.connected else None
    return {
        "addresses": [{"type": "InternalIP", "address": site.node_address}],
        "daemonEndpoints": {"kubeletEndpoint": {"Port": seen.port}},
        "capacity": _capacity(facts, old.get("capacity") or {}),
        "allocatable": _capacity(facts, old.get("allocatable") or {}),
        "nodeInfo": _node_info(seen.connected, site, old.get("nodeInfo") or {}),
        "conditions": laid_over(old.get("conditions"), _conditions(online), now, HEARTBEAT_SECONDS),
    }


def _conditions(online: bool) -> tuple[Condition, ...]:
    if online:
        ready = Condition("Ready", True, "KubeletReady", "the device is connected")
    else:
        ready = Condition("Ready", False, "DeviceOffline", "the device is not connected")
    return (
        Condition("MemoryPressure", False, "KubeletHasSufficientMemory"),
        Condition("DiskPressure", False, "KubeletHasNoDiskPressure"),
        Condition("PIDPressure", False, "KubeletHasSufficientPID"),
        ready,
    )


def _capacity(facts: DeviceFacts | None, old: Mapping[str, Any]) -> dict[str, Any]:
    # Nothing is ever scheduled here: the device has no container runtime.
    if facts is None:
        return {**old, "pods": "0"}
    amounts = {
        "cpu": str(max(facts.cpus, 0)),
        "memory": _quantity(facts.memory_bytes),
        "ephemeral-storage": _quantity(facts.storage_bytes),
    }
    others = {name: amount for name, amount in old.items() if name not in amounts}
    return others | {name: amount for name, amount in amounts.items() if amount != "0"} | {"pods": "0"}


def _quantity(amount: int) -> str:
    """Bytes in whole KiB, written as the API server would write it back."""
    amount = max(amount, 0) // 1024
    units = iter(("Ki", "Mi", "Gi", "Ti", "Pi"))
    unit = next(units)
    while amount and amount % 1024 == 0 and unit != "Pi":
        amount, unit = amount // 1024, next(units)
    return f"{amount}{unit}" if amount else "0"


def _node_info(connected: Connected | None, site: Site, old: Mapping[str, Any]) -> dict[str, Any]:
    version = {"kubeletVersion": site.kubelet_version, "kubeProxyVersion": ""}
    if connected is None:
        empty = dict.fromkeys(
            (
                "machineID",
                "systemUUID",
                "bootID",
                "kernelVersion",
                "osImage",
                "containerRuntimeVersion",
                "operatingSystem",
                "architecture",
            ),
            "",
        )
        return {**empty, **old, "kubeletVersion": version["kubeletVersion"]}
    facts = connected.facts
    told = {
        "machineID": facts.machine_id,
        "systemUUID": facts.machine_id,
        "bootID": facts.boot_id,
        "kernelVersion": facts.kernel,
        "osImage": facts.os_image,
        "containerRuntimeVersion": f"arhat://{connected.software}" if connected.software else "",
        "operatingSystem": facts.os,
        "architecture": facts.arch,
    }
    return {
        **{key: value for key, value in old.items() if key not in told},
        **version,
        **{key: printable(value) for key, value in told.items()},
    }


def printable(text: str) -> str:
    """What a device says about itself, capped and made harmless to a terminal."""
    return "".join(character if character.isprintable() else "?" for character in text[:_LONGEST_FACT])
