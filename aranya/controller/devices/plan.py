"""From what is wished and what is seen to what to do next. Pure: no clock, no I/O, no log.

A plan holds only what can be done at once: whoever carries it out plans again with
what is seen then, until a plan is empty. So the order below is the only memory
there is, and a run killed anywhere is taken up where it stopped:

    finaliser - certificate - endpoint - Node - Lease - Pod - its status - our own status

The certificate precedes the endpoint, which needs it; the endpoint precedes the Node, which
publishes its port; the Node precedes Lease and Pod, whose collectors look for it.
"""

from __future__ import annotations

from dataclasses import dataclass

from aranya.controller.devices import nodes, pods, status, steps
from aranya.controller.devices.model import Seen, Site, Undone, Wish
from aranya.interfaces import Object, ServedPod
from aranya.names import DeviceKey

#: Seconds until another look at what cannot be watched.
CONFLICT_SECONDS = 60.0
ACCOUNT_SECONDS = 1.0
LEAVING_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do now, in order, and when to look again if nothing happens."""

    steps: tuple[steps.Step, ...] = ()
    wake_in: float | None = None


def plan(wish: Wish, seen: Seen, site: Site, now: float) -> Plan:
    """What to do for an EdgeDevice that is to be."""
    doing: list[steps.Step] = []
    waits: list[float] = []
    if not wish.finalizer:
        doing.append(steps.AddFinalizer())
    # Once the status tells of the ban nobody waits any more, and nobody is let in.
    if wish.banned and _may_be_linked(seen, known_gone=status.tells_ban(wish)):
        doing.append(steps.Disconnect("this device is banned"))
    if seen.node is not None and not nodes.is_ours(seen.node, wish.key):
        waits.append(CONFLICT_SECONDS)
        if seen.port:
            doing.append(steps.StopEndpoint("the Node of this name belongs to somebody else"))
        # Its own kubelet would take our Pod for one to run, and our renewals would hide its death.
        if seen.pod is not None and pods.is_ours(seen.pod, wish.key) and not pods.is_held(seen.pod):
            doing.append(steps.DeletePod(_uid(seen.pod)))
        if seen.lease_of:
            doing.append(steps.DropLease())
    elif doing:
        pass  # The finaliser comes before anything that it must undo.
    else:
        _plan_certificate(wish, seen, site, now, doing, waits)
        _plan_endpoint(wish, seen, site, doing)
        _plan_node(wish, seen, site, now, doing, waits)
        _plan_pod(wish, seen, site, now, doing, waits)
        _plan_told(wish, seen, doing)
    if seen.setback:
        waits.append(max(seen.setback.again_at - now, 1.0))
    if not doing:
        _plan_status(wish, seen, site, now, doing, waits)
    return Plan(tuple(doing), min(waits, default=None))


def teardown(key: DeviceKey, wish: Wish | None, seen: Seen) -> Plan:
    """What to do for an EdgeDevice that is to go; ``wish`` is ``None`` if it went without us."""
    doing: list[steps.Step] = []
    if _may_be_linked(seen):
        doing.append(steps.Disconnect("the EdgeDevice was deleted", retry=False))
    if Undone.JOINS not in seen.done:
        doing.append(steps.ForgetJoins())
    if Undone.ENDPOINT not in seen.done or seen.port:
        doing.append(steps.StopEndpoint("the EdgeDevice was deleted"))
    if seen.pod is not None and pods.is_ours(seen.pod, key):
        doing.append(steps.DeletePod(_uid(seen.pod), tolerant=True))
    if Undone.LEASE not in seen.done:
        doing.append(steps.DropLease())
    if seen.node is not None and nodes.is_ours(seen.node, key):
        doing.append(steps.DeleteNode(_uid(seen.node)))
    if Undone.SECRET not in seen.done:
        doing.append(steps.DeleteSecret())
    if not doing and wish is not None and wish.finalizer:
        doing.append(steps.RemoveFinalizer())
    return Plan(tuple(doing))


def served_pod(wish: Wish, pod: Object | None) -> ServedPod:
    """What the endpoint must know: the live Pod, if it is ours and not on its way out."""
    live = pod if pod is not None and pods.is_ours(pod, wish.key) and not _is_leaving(pod) else None
    uid = _uid(live) if live is not None else ""
    return ServedPod(wish.key, uid, wish.containers, wish.forward, live)


def _may_be_linked(seen: Seen, known_gone: bool = False) -> bool:
    """Whether there is a link to end, or may be sessions that wait for one, which nobody sees."""
    return seen.connected is not None or not (known_gone or Undone.LINK in seen.done)


def _plan_certificate(
    wish: Wish, seen: Seen, site: Site, now: float, doing: list[steps.Step], waits: list[float]
) -> None:
    there = seen.certificate
    if there is not None and there.fits(wish.subject, site.certificate_hosts) and now < there.renew_at:
        waits.append(there.renew_at - now)
    elif seen.issued is not None and seen.issued.fits(wish.subject, site.certificate_hosts):
        doing.append(steps.StoreCertificate(seen.issued))
    elif seen.issuing:
        pass  # It wakes us.
    elif now < seen.issue_again_at:
        waits.append(seen.issue_again_at - now)
    else:
        doing.append(steps.AskForCertificate(wish.subject, tuple(sorted(site.certificate_hosts))))


def _plan_endpoint(wish: Wish, seen: Seen, site: Site, doing: list[steps.Step]) -> None:
    if seen.certificate is None or site.node_address not in seen.certificate.hosts:
        return
    if seen.port and seen.shown == seen.certificate.pair:
        return
    if seen.setback.endpoint_error:
        return
    doing.append(steps.Serve(seen.certificate.pair, seen.port or _former_port(wish, seen)))


def _former_port(wish: Wish, seen: Seen) -> int:
    port = wish.status.get("kubeletPort")
    if not isinstance(port, int) or not 0 < port < 65536:
        node = seen.node or {}
        port = node.get("status", {}).get("daemonEndpoints", {}).get("kubeletEndpoint", {}).get("Port")
    return port if isinstance(port, int) and 0 < port < 65536 else 0


def _plan_node(
    wish: Wish, seen: Seen, site: Site, now: float, doing: list[steps.Step], waits: list[float]
) -> None:
    online = status.is_online(wish, seen, now)
    if seen.node is None:
        if seen.port:
            doing.append(steps.CreateNode(nodes.new_node(wish, seen, site, online, now)))
        return
    if _is_leaving(seen.node):
        waits.append(LEAVING_SECONDS)
        return
    if patch := nodes.node_patch(wish, seen):
        doing.append(steps.PatchNode(patch))
    # Without an endpoint the port and address of the former one still say more than none.
    elif seen.port and (patch := nodes.node_status_patch(seen, site, online, now)):
        doing.append(steps.PatchNode(patch, sub="status"))
    if seen.lease_of != _uid(seen.node):
        doing.append(steps.KeepLease(_uid(seen.node)))
    waits.append(nodes.HEARTBEAT_SECONDS)


def _plan_pod(
    wish: Wish, seen: Seen, site: Site, now: float, doing: list[steps.Step], waits: list[float]
) -> None:
    if seen.node is None or _is_leaving(seen.node):
        return
    pod = seen.pod
    if pod is None:
        if seen.setback.namespace_ending or seen.setback.pod_refused:
            return
        if seen.account_exists:
            doing.append(steps.CreatePod(pods.new_pod(wish)))
        else:
            waits.append(ACCOUNT_SECONDS)
    elif not pods.is_ours(pod, wish.key):
        waits.append(CONFLICT_SECONDS)
    elif _is_leaving(pod) or not pods.has_wished_containers(pod, wish):
        if pods.is_held(pod):
            waits.append(LEAVING_SECONDS)  # Somebody's finaliser holds it.
        else:
            doing.append(steps.DeletePod(_uid(pod)))
    else:
        if patch := pods.pod_patch(wish, pod):
            doing.append(steps.PatchPod(patch))
        if patch := pods.pod_status_patch(pod, site, status.is_online(wish, seen, now), now):
            doing.append(steps.PatchPod(patch, sub="status"))


def _plan_told(wish: Wish, seen: Seen, doing: list[steps.Step]) -> None:
    served = served_pod(wish, seen.pod)
    # Between two Pods the endpoint keeps answering for the former one.
    if any(isinstance(step, steps.CreatePod) for step in doing):
        return
    if seen.port and served != seen.told:
        doing.append(steps.TellEndpoint(served))


def _plan_status(
    wish: Wish, seen: Seen, site: Site, now: float, doing: list[steps.Step], waits: list[float]
) -> None:
    if patch := status.status_patch(wish, seen, site, now):
        doing.append(steps.PatchStatus(patch, status.occasions(wish, patch)))
    if seen.connected is not None:
        waits.append(site.last_seen_every)
    elif now < seen.grace_until:
        waits.append(seen.grace_until - now)


def _uid(found: Object) -> str:
    return str(found.get("metadata", {}).get("uid", ""))


def _is_leaving(found: Object) -> bool:
    return bool(found.get("metadata", {}).get("deletionTimestamp"))
