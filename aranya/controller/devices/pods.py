"""The virtual Pod of an EdgeDevice: built, compared, patched. Pure.

It is never deployed. Its containers are ``host`` and one for each log source;
its phase is always ``Running``; whether the device is here is its readiness.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aranya.controller.devices.conditions import Condition, laid_over, says
from aranya.controller.devices.model import Site, Wish
from aranya.interfaces import Object
from aranya.names import (
    GROUP,
    HOST_CONTAINER,
    LABEL_NAME,
    LABEL_NAMESPACE,
    LABEL_ROLE,
    VERSION,
    VIRTUAL_IMAGE,
    DeviceKey,
)

ROLE_POD = "Pod"

_ANNOTATIONS = {
    "kubectl.kubernetes.io/default-container": HOST_CONTAINER,
    "kubectl.kubernetes.io/default-logs-container": HOST_CONTAINER,
    "sidecar.istio.io/inject": "false",
}


def is_ours(pod: Object, key: DeviceKey) -> bool:
    """Whether this project made the Pod.

    Either mark is enough: ``--cascade=orphan`` strips the owner, people strip labels.
    """
    metadata = pod.get("metadata", {})
    if pod.get("spec", {}).get("nodeName") != key.name:
        return False
    labelled = (metadata.get("labels") or {}).get(LABEL_ROLE) == ROLE_POD
    owners = metadata.get("ownerReferences") or []
    return labelled or any(
        owner.get("kind") == "EdgeDevice"
        and owner.get("name") == key.name
        and str(owner.get("apiVersion", "")).startswith(GROUP + "/")
        for owner in owners
    )


def new_pod(wish: Wish) -> Object:
    """The Pod to create; it passes PodSecurity ``restricted``."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": wish.key.name,
            "namespace": wish.key.namespace,
            "labels": _labels(wish.key),
            "annotations": dict(_ANNOTATIONS),
            "ownerReferences": [_owner(wish)],
        },
        "spec": {
            "nodeName": wish.key.name,
            "restartPolicy": "Always",
            # With any other grace a namespace being deleted would wait for us.
            "terminationGracePeriodSeconds": 0,
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "tolerations": [{"operator": "Exists"}],
            "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [_container(container.name) for container in wish.containers],
        },
    }


def has_wished_containers(pod: Object, wish: Wish) -> bool:
    """Whether the Pod's containers, which cannot be changed, are those wished for."""
    there = [(entry.get("name"), entry.get("image")) for entry in pod.get("spec", {}).get("containers") or []]
    return there == [(container.name, VIRTUAL_IMAGE) for container in wish.containers]


def is_held(pod: Object) -> bool:
    """Whether the Pod was finalised already and somebody's finaliser still holds it."""
    metadata = pod.get("metadata", {})
    return bool(metadata.get("deletionTimestamp")) and metadata.get("deletionGracePeriodSeconds") == 0


def pod_patch(wish: Wish, pod: Object) -> Object | None:
    """The merge patch for metadata of the Pod; ``None`` when it is as it should be."""
    metadata = pod.get("metadata", {})
    patch: Object = {}
    for field, wished in (("labels", _labels(wish.key)), ("annotations", _ANNOTATIONS)):
        old = metadata.get(field) or {}
        if changes := {key: value for key, value in wished.items() if old.get(key) != value}:
            patch[field] = changes
    if not any(owner.get("uid") == wish.uid for owner in metadata.get("ownerReferences") or []):
        patch["ownerReferences"] = [_owner(wish)]
    return {"metadata": {**patch, "uid": metadata.get("uid", "")}} if patch else None


def pod_status_patch(pod: Object, site: Site, online: bool, now: float) -> Object | None:
    """The merge patch for the Pod's status; ``None`` when it tells the truth already."""
    metadata, spec, old = pod.get("metadata", {}), pod.get("spec", {}), pod.get("status", {})
    born = metadata.get("creationTimestamp")
    wished: dict[str, Any] = {
        "phase": "Running",
        "startTime": born,
        "hostIP": site.node_address,
        "conditions": laid_over(old.get("conditions"), _conditions(online), now),
        "containerStatuses": [
            _container_status(pod, str(entry.get("name", "")), str(entry.get("image", "")), online)
            for entry in spec.get("containers") or []
        ],
    }
    if debug := spec.get("ephemeralContainers"):
        wished["ephemeralContainerStatuses"] = [_refused(pod, entry) for entry in debug]
    changes = {field: value for field, value in wished.items() if not says(old.get(field), value)}
    if not changes:
        return None
    return {"metadata": {"uid": metadata.get("uid", "")}, "status": changes}


def refused_status_patch(pod: Object) -> Object | None:
    """The merge patch that fails a Pod which somebody bound to a device; ``None`` if it is final."""
    if pod.get("status", {}).get("phase") in ("Failed", "Succeeded"):
        return None
    return {
        "metadata": {"uid": pod.get("metadata", {}).get("uid", "")},
        "status": {
            "phase": "Failed",
            "reason": "DeviceRunsNoPods",
            "message": "this Node is an edge device without a container runtime; it runs no pods",
        },
    }


def _labels(key: DeviceKey) -> dict[str, str]:
    return {
        LABEL_ROLE: ROLE_POD,
        LABEL_NAME: key.name,
        LABEL_NAMESPACE: key.namespace,
        "sidecar.istio.io/inject": "false",
    }


def _owner(wish: Wish) -> dict[str, Any]:
    return {
        "apiVersion": f"{GROUP}/{VERSION}",
        "kind": "EdgeDevice",
        "name": wish.key.name,
        "uid": wish.uid,
        "controller": True,
        "blockOwnerDeletion": False,
    }


def _container(name: str) -> dict[str, Any]:
    container: dict[str, Any] = {
        "name": name,
        "image": VIRTUAL_IMAGE,
        "imagePullPolicy": "IfNotPresent",
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "runAsNonRoot": True,
            "capabilities": {"drop": ["ALL"]},
        },
    }
    if name == HOST_CONTAINER:
        container |= {"stdin": True, "tty": True}
    return container


def _conditions(online: bool) -> tuple[Condition, ...]:
    reason, message = ("", "") if online else ("DeviceOffline", "the device is not connected")
    return (
        Condition("Initialized", True, ""),
        Condition("Ready", online, reason, message),
        Condition("ContainersReady", online, reason, message),
        Condition("PodScheduled", True, ""),
    )


def _container_status(pod: Object, name: str, image: str, online: bool) -> dict[str, Any]:
    metadata = pod.get("metadata", {})
    return {
        "name": name,
        "image": image,
        "imageID": image,
        "containerID": f"aranya://{metadata.get('uid', '')}/{name}",
        "ready": online,
        "started": True,
        "restartCount": 0,
        "lastState": {},
        "state": {"running": {"startedAt": metadata.get("creationTimestamp")}},
    }


def _refused(pod: Object, entry: Mapping[str, Any]) -> dict[str, Any]:
    born = pod.get("metadata", {}).get("creationTimestamp")
    return {
        "name": entry.get("name", ""),
        "image": entry.get("image", ""),
        "imageID": "",
        "ready": False,
        "restartCount": 0,
        "lastState": {},
        "state": {
            "terminated": {
                "exitCode": 1,
                "reason": "Unsupported",
                "message": "an edge device runs no containers; use kubectl exec",
                "startedAt": born,
                "finishedAt": born,
            }
        },
    }
