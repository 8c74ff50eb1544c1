"""What is wished for one EdgeDevice, and what is seen of it: frozen values.

An EdgeDevice is written by tenants, and old API servers check little of it, so
``wish_of`` never fails: what is bad is left out and becomes one line in ``problems``. Null is
empty: some API servers keep an empty string as null.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, TypeGuard

from aranya.certs.issuer import SubjectParts
from aranya.certs.keys import KeyPair
from aranya.interfaces import ForwardTarget, Object, ServedPod, VirtualContainer
from aranya.names import FINALIZER, HOST_CONTAINER, DeviceKey
from tether.verbs.requests import DeviceFacts

_DNS_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_DNS_SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_QUALIFIED_NAME = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
_RESERVED_DOMAINS = ("kubernetes.io", "k8s.io", "arhat.dev")
_TAINT_EFFECTS = frozenset({"NoSchedule", "PreferNoSchedule", "NoExecute"})
_MOST_CONTAINERS = 64
_MOST_FORWARDS = 256
_LONGEST_ANNOTATION = 16 * 1024
_LONGEST_SUBJECT_FIELD = 64
_LONGEST_LOG_SOURCE = 4096


@dataclass(frozen=True, slots=True)
class Taint:
    """A taint wished for the Node; key and effect are its identity."""

    key: str
    effect: str
    value: str = ""


@dataclass(frozen=True, slots=True)
class Wish:
    """An EdgeDevice, read and checked."""

    key: DeviceKey
    uid: str
    source: Object
    deleting: bool = False
    finalizer: bool = False
    banned: bool = False
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    taints: tuple[Taint, ...] = ()
    subject: SubjectParts = field(default_factory=SubjectParts)
    containers: tuple[VirtualContainer, ...] = (VirtualContainer(HOST_CONTAINER),)
    forward: tuple[ForwardTarget, ...] = ()
    problems: tuple[str, ...] = ()

    @property
    def status(self) -> Mapping[str, Any]:
        """What the EdgeDevice's status says now."""
        return _mapping(self.source.get("status"))


@dataclass(frozen=True, slots=True)
class Certificate:
    """The serving certificate of one Node, as its Secret holds it."""

    pair: KeyPair
    not_after: float
    renew_at: float
    hosts: frozenset[str]
    subject: SubjectParts

    def fits(self, subject: SubjectParts, hosts: frozenset[str]) -> bool:
        """Whether it says what is wished and covers every address."""
        return self.subject == subject and hosts <= self.hosts


@dataclass(frozen=True, slots=True)
class Connected:
    """What a connected device tells about itself."""

    facts: DeviceFacts
    software: str
    address: str


@dataclass(frozen=True, slots=True)
class Standby:
    """An agent of the device that is connected and not the active one."""

    software: str
    address: str


@dataclass(frozen=True, slots=True)
class Site:
    """What of the configuration the plan and the builders need."""

    node_address: str
    certificate_hosts: frozenset[str]
    kubelet_version: str = ""
    host_node: str = ""
    last_seen_every: float = 60.0


@dataclass(frozen=True, slots=True)
class Setback:
    """What could not be done and will not get better by trying at once.

    ``again_at`` is when to try again; whoever keeps a setback sets it.
    """

    namespace_ending: bool = False
    pod_refused: str = ""
    endpoint_error: str = ""
    again_at: float = 0.0

    def __bool__(self) -> bool:
        return bool(self.namespace_ending or self.pod_refused or self.endpoint_error)


@dataclass(frozen=True, slots=True)
class Seen:
    """What there is. Objects are as the API server last showed them; nobody changes them.

    All moments are seconds since the epoch, on the clock of ``plan``'s ``now``.
    """

    device: Object | None = None
    node: Object | None = None
    pod: Object | None = None
    secret: Object | None = field(default=None, repr=False)
    certificate: Certificate | None = None

    #: A certificate fresh from the signer, not yet kept; whether one was asked for; how that failed.
    issued: Certificate | None = None
    issuing: bool = False
    issue_error: str = ""
    issue_again_at: float = 0.0

    #: The endpoint: its port (0: none), the pair it shows, the pod it was told of.
    port: int = 0
    shown: KeyPair | None = None
    told: ServedPod | None = None

    #: The UID of the Node whose Lease is being renewed.
    lease_of: str = ""

    #: The device: an absent one counts as it was shown last until ``grace_until``.
    connected: Connected | None = None
    standbys: tuple[Standby, ...] = ()
    grace_until: float = 0.0
    last_seen: float | None = None

    account_exists: bool = False

    #: What was refused of late, and is not tried again before its time.
    setback: Setback = field(default_factory=Setback)

    #: What has been taken down in this run.
    done: frozenset[Undone] = frozenset()


class Undone(Enum):
    """Things to take down that cannot be seen, so it is remembered that they were."""

    #: The link itself is seen, sessions that wait for a lost one to come back are not.
    LINK = "link"
    JOINS = "joins"
    ENDPOINT = "endpoint"
    LEASE = "lease"
    SECRET = "secret"


def wish_of(device: Object) -> Wish:
    """Read an EdgeDevice; bad values are left out and told in ``problems``."""
    metadata = _mapping(device.get("metadata"))
    spec = _mapping(device.get("spec"))
    node = _mapping(spec.get("node"))
    pod = _mapping(spec.get("pod"))
    problems: list[str] = []
    key = DeviceKey(str(metadata.get("namespace", "")), str(metadata.get("name", "")))
    if not _DNS_LABEL.fullmatch(key.name):
        problems.append(f"metadata.name: {key.name!r} is not a DNS label of at most 63 characters")
    if (_mapping(spec.get("connectivity")).get("method") or "websocket") != "websocket":
        problems.append("spec.connectivity.method: only websocket is known")
    return Wish(
        key=key,
        uid=str(metadata.get("uid", "")),
        source=device,
        deleting=bool(metadata.get("deletionTimestamp")),
        finalizer=FINALIZER in _list(metadata.get("finalizers")),
        banned=spec.get("banned") is True,
        labels=_labels(_mapping(node.get("labels")), problems),
        annotations=_annotations(_mapping(node.get("annotations")), problems),
        taints=_taints(_list(node.get("taints")), problems),
        subject=_subject(_mapping(node.get("cert")), problems),
        containers=_containers(_list(pod.get("containers")), problems),
        forward=_forward(_list(pod.get("forward")), problems),
        problems=tuple(problems),
    )


def usable_labels(labels: Mapping[str, str], limit: int) -> dict[str, str]:
    """Those of a device's own labels that may be put on a Node."""
    return {key: value for key, value in sorted(labels.items())[:limit] if not _label_problem(key, value)}


def is_reserved(key: str) -> bool:
    """Whether a label, annotation or taint key belongs to Kubernetes or to this project."""
    prefix, slash, _ = key.rpartition("/")
    domain = prefix.lower() if slash else ""
    return any(domain == reserved or domain.endswith("." + reserved) for reserved in _RESERVED_DOMAINS)


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _without_nulls(entries: Mapping[str, Any]) -> Iterable[tuple[str, Any]]:
    return ((key, "" if value is None else value) for key, value in entries.items())


def _key_problem(key: str) -> str:
    prefix, slash, name = key.rpartition("/")
    if slash and (len(prefix) > 253 or not _DNS_SUBDOMAIN.fullmatch(prefix)):
        return "is not a qualified name"
    if not _QUALIFIED_NAME.fullmatch(name):
        return "is not a qualified name"
    if is_reserved(key):
        return "uses a domain kept for Kubernetes and arhat.dev"
    return ""


def _label_problem(key: str, value: object) -> str:
    if problem := _key_problem(key):
        return problem
    if not isinstance(value, str) or (value and not _QUALIFIED_NAME.fullmatch(value)):
        return "has a value that is not a label value"
    return ""


def _labels(labels: Mapping[str, Any], problems: list[str]) -> dict[str, str]:
    good = {}
    for key, value in _without_nulls(labels):
        if problem := _label_problem(key, value):
            problems.append(f"spec.node.labels: {_shown(key)} {problem}")
        else:
            good[key] = value
    return good


def _annotations(annotations: Mapping[str, Any], problems: list[str]) -> dict[str, str]:
    good = {}
    for key, value in _without_nulls(annotations):
        problem = _key_problem(key)
        if not problem and (not isinstance(value, str) or len(value) > _LONGEST_ANNOTATION):
            problem = "has a value that is not a string of at most 16 KiB"
        if problem:
            problems.append(f"spec.node.annotations: {_shown(key)} {problem}")
        else:
            good[key] = value
    return good


def _taints(taints: Iterable[Any], problems: list[str]) -> tuple[Taint, ...]:
    good: dict[tuple[str, str], Taint] = {}
    for entry in map(_mapping, taints):
        key, effect, value = entry.get("key", ""), entry.get("effect", ""), entry.get("value") or ""
        problem = _label_problem(str(key), value)
        if not problem and effect not in _TAINT_EFFECTS:
            problem = f"has the unknown effect {_shown(effect)}"
        if problem:
            problems.append(f"spec.node.taints: {_shown(key)} {problem}")
        else:
            good.setdefault((key, effect), Taint(key, effect, value))
    return tuple(good.values())


def _subject(cert: Mapping[str, Any], problems: list[str]) -> SubjectParts:
    def text(name: str) -> str:
        value = cert.get(name) or ""
        longest = 2 if name == "country" else _LONGEST_SUBJECT_FIELD
        if not isinstance(value, str) or len(value) > longest or not (value.isprintable() or not value):
            problems.append(f"spec.node.cert.{name}: must be printable, at most {longest} characters")
            return ""
        if name == "country" and value and not re.fullmatch(r"[A-Za-z]{2}", value):
            problems.append("spec.node.cert.country: must be two letters")
            return ""
        return value

    return SubjectParts(text("orgUnit"), text("country"), text("state"), text("locality"))


def _containers(entries: list[Any], problems: list[str]) -> tuple[VirtualContainer, ...]:
    containers = {HOST_CONTAINER: VirtualContainer(HOST_CONTAINER)}
    for entry in map(_mapping, entries):
        name, log = entry.get("name", ""), _mapping(entry.get("log"))
        file, unit = log.get("file") or "", log.get("unit") or ""
        if not isinstance(name, str) or not _DNS_LABEL.fullmatch(name):
            problem = "is not a DNS label"
        elif name in containers:
            problem = "is there twice" if name != HOST_CONTAINER else "is the name of the host container"
        elif not isinstance(file, str) or not isinstance(unit, str) or bool(file) == bool(unit):
            problem = "needs either log.file or log.unit"
        elif file and not file.startswith("/"):
            problem = "has a log.file that is not an absolute path"
        elif len(file + unit) > _LONGEST_LOG_SOURCE or not (file + unit).isprintable():
            problem = "has a log source that is too long or not printable"
        elif unit.startswith("-"):
            problem = "has a log.unit that starts with a dash"
        elif len(containers) > _MOST_CONTAINERS:
            problem = f"is one too many: at most {_MOST_CONTAINERS} are served"
        else:
            containers[name] = VirtualContainer(name, file=file, unit=unit)
            continue
        problems.append(f"spec.pod.containers: {_shown(name)} {problem}")
    return tuple(containers.values())


def _forward(entries: list[Any], problems: list[str]) -> tuple[ForwardTarget, ...]:
    forward: dict[int, ForwardTarget] = {}
    for entry in map(_mapping, entries):
        port, target = entry.get("port"), entry.get("target", "")
        where = _target(target) if isinstance(target, str) else None
        if not _is_port(port):
            problem = "is not a port"
        elif port in forward:
            problem = "is there twice"
        elif where is None:
            problem = f"has the target {_shown(target)}, which is not HOST:PORT"
        elif len(forward) >= _MOST_FORWARDS:
            problem = f"is one too many: at most {_MOST_FORWARDS} are served"
        else:
            forward[port] = ForwardTarget(port, *where)
            continue
        problems.append(f"spec.pod.forward: {_shown(port)} {problem}")
    return tuple(forward.values())


def _target(target: str) -> tuple[str, int] | None:
    host, _, port = target.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        return None
    if not host or len(host) > 253 or not re.fullmatch(r"[A-Za-z0-9.:%_-]+", host):
        return None
    if not re.fullmatch(r"[0-9]{1,5}", port) or not _is_port(int(port)):
        return None
    return host, int(port)


def _is_port(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 65535


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
