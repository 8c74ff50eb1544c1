"""The status of an EdgeDevice: what people read first. Pure.

A list in a merge patch replaces the whole list, so each patch carries the resource
version it was made from; whoever wrote meanwhile makes it fail, and it is made anew.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from aranya.controller.devices import nodes, pods
from aranya.controller.devices.conditions import (
    Condition,
    holds,
    laid_over,
    moment,
    says,
    timestamp,
    without_blanks,
)
from aranya.controller.devices.model import Seen, Site, Wish
from aranya.interfaces import Object

CONNECTED = "Connected"
NODE_READY = "NodeReady"
CERTIFICATE_READY = "CertificateReady"
CONFLICT = "Conflict"

_MOST_PROBLEMS = 8
_MOST_STANDBYS = 16


@dataclass(frozen=True, slots=True)
class Occasion:
    """Something to tell as an Event."""

    reason: str
    message: str
    warning: bool = False


def is_online(wish: Wish, seen: Seen, now: float) -> bool:
    """Whether the device counts as here: within the grace it counts as what was shown last."""
    if wish.banned:
        return False
    if seen.connected is not None:
        return True
    return now < seen.grace_until and holds(wish.status.get("conditions"), CONNECTED)


def tells_ban(wish: Wish) -> bool:
    """Whether the status says already that the device is banned."""
    return _condition(wish.status.get("conditions"), CONNECTED).get("reason") == "Banned"


def conflict_of(wish: Wish, seen: Seen) -> Condition:
    """The condition that says why something wished for cannot be."""
    if seen.node is not None and not nodes.is_ours(seen.node, wish.key):
        text = f"the Node {wish.key.name} exists and was not made for this EdgeDevice; it is left alone"
        return Condition(CONFLICT, True, "NodeNotOurs", text)
    if seen.pod is not None and not pods.is_ours(seen.pod, wish.key):
        text = f"a Pod {wish.key} exists and was not made for this EdgeDevice; it is left alone"
        return Condition(CONFLICT, True, "PodNotOurs", text)
    if seen.setback.endpoint_error:
        return Condition(CONFLICT, True, "EndpointFailed", seen.setback.endpoint_error)
    if seen.setback.pod_refused:
        return Condition(CONFLICT, True, "PodRefused", seen.setback.pod_refused)
    if wish.problems:
        more = len(wish.problems) - _MOST_PROBLEMS
        text = "; ".join(wish.problems[:_MOST_PROBLEMS]) + (f"; and {more} more" if more > 0 else "")
        return Condition(CONFLICT, True, "InvalidSpec", text)
    return Condition(CONFLICT, False, "NoConflict", "nothing is in the way")


def status_patch(wish: Wish, seen: Seen, site: Site, now: float) -> Object | None:
    """The merge patch for the EdgeDevice's status; ``None`` when it tells the truth already."""
    old = wish.status
    online = is_online(wish, seen, now)
    standbys = _standbys(seen, old, online)
    conditions = _conditions(wish, seen, online, len(standbys))
    wished: dict[str, Any] = {
        "conditions": laid_over(old.get("conditions"), conditions, now),
        "hostNode": site.host_node,
        "agent": _agent(seen, _mapping(old.get("agent"))),
    }
    if seen.port:
        wished["kubeletPort"] = seen.port
    changes = {field: value for field, value in wished.items() if not says(old.get(field), value)}
    if _is_last_seen_due(seen, _mapping(old.get("agent")), site, online, bool(changes)):
        changes["agent"] = {**wished["agent"], "lastSeen": timestamp(seen.last_seen or now)}
    if not changes:
        return None
    # Never a reason to write, but with the condition that tells their number: a server whose
    # CRD is of a former version drops them, and would be told again and again.
    if not says(old.get("standbys"), standbys[:_MOST_STANDBYS]):
        changes["standbys"] = standbys[:_MOST_STANDBYS] or ""
    metadata = wish.source.get("metadata", {})
    guard = {field: metadata[field] for field in ("uid", "resourceVersion") if field in metadata}
    return {"metadata": guard, "status": without_blanks(changes)}


def occasions(wish: Wish, patch: Object) -> tuple[Occasion, ...]:
    """The Events that go with a patch of the status: one for each condition that turned."""
    before = wish.status.get("conditions")
    after = patch["status"].get("conditions")
    found: list[Occasion] = []
    for entry in after if isinstance(after, list) else ():
        old = _condition(before, entry["type"])
        if (old.get("status"), old.get("reason")) == (entry["status"], entry["reason"]):
            continue
        if occasion := _occasion(entry, old):
            found.append(occasion)
    return tuple(found)


def _occasion(entry: Mapping[str, Any], old: Mapping[str, Any]) -> Occasion | None:
    kind, holding = entry["type"], entry["status"] == "True"
    if kind == CONNECTED:
        if holding:
            return Occasion("DeviceConnected", entry.get("message", ""))
        was_here = old.get("status") == "True"
        banned = entry["reason"] == "Banned"
        reason = "DeviceBanned" if banned else "DeviceOffline"
        return Occasion(reason, entry.get("message", ""), warning=True) if was_here or banned else None
    if kind == CONFLICT and holding:
        return Occasion(entry["reason"], entry.get("message", ""), warning=True)
    if kind == CERTIFICATE_READY and entry["reason"] == "IssueFailed":
        return Occasion("CertificateFailed", entry.get("message", ""), warning=True)
    if kind == CERTIFICATE_READY and holding and old.get("status") != "True":
        return Occasion("CertificateIssued", entry.get("message", ""))
    return None


def _conditions(wish: Wish, seen: Seen, online: bool, standbys: int) -> Iterable[Condition]:
    conflict = conflict_of(wish, seen)
    yield _connected(wish, seen, online, standbys)
    yield _node_ready(wish, seen, conflict)
    yield _certificate_ready(seen)
    yield conflict


def _connected(wish: Wish, seen: Seen, online: bool, standbys: int) -> Condition:
    if wish.banned:
        text = "the device is banned; kubectl aranya unban lets it back"
        return Condition(CONNECTED, False, "Banned", text)
    if online:
        text = "the device is connected"
        if standbys:
            text += f"; {standbys} agent{' stands' if standbys == 1 else 's stand'} by"
        return Condition(CONNECTED, True, "DeviceConnected", text)
    if seen.last_seen is None and not _mapping(wish.status.get("agent")).get("lastSeen"):
        text = "the device has never connected; kubectl aranya join prints what to type on it"
        return Condition(CONNECTED, False, "NeverConnected", text)
    return Condition(CONNECTED, False, "DeviceOffline", "the device is not connected")


def _node_ready(wish: Wish, seen: Seen, conflict: Condition) -> Condition:
    if seen.node is not None and nodes.is_ours(seen.node, wish.key):
        ready = _condition(seen.node.get("status", {}).get("conditions"), "Ready")
        reason = str(ready.get("reason") or "NodeNotReady")
        return Condition(NODE_READY, ready.get("status") == "True", reason, str(ready.get("message") or ""))
    if conflict.reason in ("NodeNotOurs", "EndpointFailed"):
        return Condition(NODE_READY, False, conflict.reason, conflict.message)
    if seen.certificate is None:
        return Condition(NODE_READY, False, "CertificateMissing", "waiting for the serving certificate")
    return Condition(NODE_READY, False, "NodeMissing", "the Node is not there yet")


def _certificate_ready(seen: Seen) -> Condition:
    if seen.issue_error:
        return Condition(CERTIFICATE_READY, seen.certificate is not None, "IssueFailed", seen.issue_error)
    if seen.certificate is not None:
        text = f"valid until {timestamp(seen.certificate.not_after)}"
        return Condition(CERTIFICATE_READY, True, "Issued", text)
    return Condition(CERTIFICATE_READY, False, "Pending", "the serving certificate has been asked for")


def _agent(seen: Seen, old: Mapping[str, Any]) -> dict[str, Any]:
    agent = {field: str(old.get(field) or "") for field in ("version", "os", "arch", "address", "lastSeen")}
    if seen.connected is not None:
        facts = seen.connected.facts
        told = {
            "version": seen.connected.software,
            "os": facts.os,
            "arch": facts.arch,
            "address": seen.connected.address,
        }
        agent |= {field: nodes.printable(text) for field, text in told.items()}
    return {field: text for field, text in agent.items() if text}


def _standbys(seen: Seen, old: Mapping[str, Any], online: bool) -> list[dict[str, str]]:
    """Those beside an active agent; within the grace those that were shown last."""
    if not online:
        return []
    if seen.connected is None:
        there = old.get("standbys")
        told = [_mapping(entry) for entry in there] if isinstance(there, list) else []
        found = [{field: str(entry.get(field) or "") for field in ("version", "address")} for entry in told]
    else:
        found = [{"version": one.software, "address": one.address} for one in seen.standbys]
    return [{field: nodes.printable(text) for field, text in entry.items()} for entry in found]


def _is_last_seen_due(seen: Seen, old: Mapping[str, Any], site: Site, online: bool, writing: bool) -> bool:
    """Now and then while the device is here, along with any other write, and once when it has left."""
    if seen.last_seen is None:
        return False
    written = moment(old.get("lastSeen"))
    every = site.last_seen_every if online and not writing else 1.0
    return written is None or seen.last_seen - written >= every


def _condition(conditions: object, kind: str) -> Mapping[str, Any]:
    entries = conditions if isinstance(conditions, list) else []
    return next((entry for entry in entries if _mapping(entry).get("type") == kind), {})


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}
