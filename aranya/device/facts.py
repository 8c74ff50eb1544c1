"""What a device says about itself, made fit for labels, status and logs.

A device is not trusted: every string is capped and printable, what becomes a label
obeys the syntax of labels, and no label may stand in a domain that Kubernetes or
aranya gives meaning to.
"""

from __future__ import annotations

import re
from dataclasses import replace
from ipaddress import ip_address, ip_network

from tether.join import printable
from tether.verbs.requests import DeviceFacts, ForwardRule

VERBS = frozenset({"exec", "attach", "logs", "port-forward"})
RESERVED_DOMAINS = ("kubernetes.io", "k8s.io", "arhat.dev")

_TEXT_LIMIT = 200
_LABELS_LIMIT = 32
_RULES_LIMIT = 256
_LABEL_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")
_LABEL_PREFIX = re.compile(r"(?=.{1,253}$)[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*")


def sanitised(facts: DeviceFacts) -> DeviceFacts:
    """The facts with nothing in them that could do harm."""
    return replace(
        facts,
        os=label_value(facts.os),
        arch=label_value(facts.arch),
        kernel=printable(facts.kernel, _TEXT_LIMIT),
        os_image=printable(facts.os_image, _TEXT_LIMIT),
        hostname=printable(facts.hostname, _TEXT_LIMIT),
        machine_id=printable(facts.machine_id, _TEXT_LIMIT),
        boot_id=printable(facts.boot_id, _TEXT_LIMIT),
        cpus=min(max(facts.cpus, 0), 1 << 20),
        memory_bytes=min(max(facts.memory_bytes, 0), 1 << 60),
        storage_bytes=min(max(facts.storage_bytes, 0), 1 << 60),
        allow=facts.allow & VERBS,
        forward=tuple(replace(rule, host=printable(rule.host, 253)) for rule in facts.forward[:_RULES_LIMIT]),
        labels=allowed_labels(facts.labels),
    )


def label_value(text: str) -> str:
    """The text as a label value: what does not fit is left out, capped at 63."""
    return re.sub(r"[^A-Za-z0-9._-]+", "", text)[:63].strip("._-")


def allowed_labels(labels: dict[str, str]) -> dict[str, str]:
    """The labels that a device may give its Node; others are dropped."""
    allowed: dict[str, str] = {}
    for key, value in sorted(labels.items()):
        prefix, slash, name = key.rpartition("/")
        if slash and not _LABEL_PREFIX.fullmatch(prefix):
            continue
        if any(prefix == domain or prefix.endswith(f".{domain}") for domain in RESERVED_DOMAINS):
            continue
        if _LABEL_NAME.fullmatch(name) and (not value or _LABEL_NAME.fullmatch(value)):
            allowed[key] = value
        if len(allowed) == _LABELS_LIMIT:
            break
    return allowed


def reaches(rules: tuple[ForwardRule, ...], host: str, port: int) -> bool:
    """Whether one of the rules may let a forward to ``host`` ("" is the loopback) and ``port``.

    Where a name leads only the device can tell. So a name passes where any address would:
    the device resolves it, and decides.
    """
    candidates = ("localhost", "127.0.0.1", "::1") if host.lower() in ("", "localhost") else (host,)
    return any(
        rule.low <= port <= rule.high and any(_may_cover(rule.host, candidate) for candidate in candidates)
        for rule in rules
    )


def _may_cover(rule: str, host: str) -> bool:
    if rule.lower().rstrip(".") == host.lower().rstrip("."):
        return True
    try:
        network = ip_network(rule, strict=False)
    except ValueError:
        return False
    try:
        return ip_address(host) in network
    except ValueError:
        return host != "localhost"
