"""The pod list of a node: the virtual pod, once it exists."""

from __future__ import annotations

import json

from aranya.interfaces import Object, ServedPod
from aranya.kubelet.visit import JSON, Visit


def pods(visit: Visit) -> None:
    """``/pods`` and ``/runningpods/``: the one pod that this door answers for."""
    pod = visit.served.pod
    items = [_object(pod)] if pod is not None and pod.uid else []
    pod_list = {"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items}
    visit.answer(json.dumps(pod_list), JSON)


def _object(pod: ServedPod) -> Object:
    if pod.object is not None:
        return dict(pod.object)
    return {
        "metadata": {"name": pod.key.name, "namespace": pod.key.namespace, "uid": pod.uid},
        "spec": {
            "nodeName": pod.key.name,
            "containers": [{"name": container.name} for container in pod.containers],
        },
        "status": {"phase": "Running"},
    }
