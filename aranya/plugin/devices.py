"""``join``, ``ban`` and ``unban``: what changes one EdgeDevice."""

from __future__ import annotations

import base64
import secrets
import time
from collections.abc import Callable
from typing import TextIO

from aranya.device.storage import JOIN_EXPIRES, join_secret_name
from aranya.names import JOIN_ANNOTATION
from aranya.plugin.cluster import Changed, Cluster, Missing, Object, PluginError

#: Seconds to wait for aranya to answer a join request.
PATIENCE = 30.0
_LOOK_AGAIN = 0.5


def join(
    cluster: Cluster,
    name: str,
    *,
    print_token: bool,
    out: TextIO,
    sleep: Callable[[float], None] = time.sleep,
    now: Callable[[], float] = time.monotonic,
) -> None:
    """Ask aranya for a join token, wait for it, print the line to type on the device."""
    edge_device = _edge_device(cluster, name)
    if (edge_device.get("spec") or {}).get("banned"):
        raise PluginError(f"{name} is banned; first: kubectl aranya unban {name} -n {cluster.namespace}")
    nonce = secrets.token_hex(8)
    _annotate(cluster, edge_device, nonce)
    deadline = now() + PATIENCE
    while True:
        secret = _join_secret(cluster, name)
        if secret is not None and _annotations(secret).get(JOIN_ANNOTATION) == nonce:
            break
        if now() >= deadline:
            raise PluginError(
                f"aranya did not answer within {PATIENCE:.0f} s; is it running? "
                f"see: kubectl aranya doctor -n {cluster.namespace}"
            )
        sleep(_LOOK_AGAIN)
    data = secret.get("data") or {}
    if print_token:
        print(_text(data, "token"), file=out)
        return
    expires = _annotations(secret).get(JOIN_EXPIRES, "soon")
    print(f"# On the device; good once, until {expires}:", file=out)
    print(_text(data, "command"), file=out)


def set_banned(cluster: Cluster, name: str, banned: bool, *, out: TextIO) -> None:
    """Ban a device (its link ends at once, tokens and renewal are void) or let it back in."""
    edge_device = _edge_device(cluster, name)
    if bool((edge_device.get("spec") or {}).get("banned")) == banned:
        print(f"{name} is {'banned' if banned else 'not banned'} already", file=out)
        return
    steps: list[Object] = []
    if not isinstance(edge_device.get("spec"), dict):
        steps.append({"op": "add", "path": "/spec", "value": {}})
    steps.append({"op": "add", "path": "/spec/banned", "value": banned})
    cluster.patch_edge_device(name, steps)
    print(f"{name} {'banned' if banned else 'unbanned'}", file=out)


def _edge_device(cluster: Cluster, name: str) -> Object:
    try:
        return cluster.edge_device(name)
    except Missing:
        # The server says 404 both for a missing object and for a missing CRD.
        try:
            names = [str(one["metadata"]["name"]) for one in cluster.edge_devices()]
        except Missing:
            raise PluginError("the CRD of EdgeDevice is not installed in this cluster") from None
        there = f"there are: {', '.join(sorted(names)[:10])}" if names else "there are none"
        raise PluginError(f"no EdgeDevice {name} in namespace {cluster.namespace}; {there}") from None


def _annotate(cluster: Cluster, edge_device: Object, nonce: str) -> None:
    name = edge_device["metadata"]["name"]
    path = "/metadata/annotations/" + JOIN_ANNOTATION.replace("~", "~0").replace("/", "~1")
    for attempt in (1, 2):
        steps: list[Object] = []
        if not edge_device["metadata"].get("annotations"):
            # An "add" replaces what is there; the test keeps annotations that came meanwhile.
            version = edge_device["metadata"]["resourceVersion"]
            steps.append({"op": "test", "path": "/metadata/resourceVersion", "value": version})
            steps.append({"op": "add", "path": "/metadata/annotations", "value": {}})
        steps.append({"op": "add", "path": path, "value": nonce})
        try:
            cluster.patch_edge_device(name, steps)
            return
        except Changed:
            if attempt == 2:
                raise
            edge_device = cluster.edge_device(name)


def _join_secret(cluster: Cluster, name: str) -> Object | None:
    try:
        return cluster.secret(join_secret_name(name))
    except Missing:
        return None


def _annotations(found: Object) -> Object:
    return found["metadata"].get("annotations") or {}


def _text(data: Object, field: str) -> str:
    return base64.b64decode(data.get(field, "")).decode("utf-8")
