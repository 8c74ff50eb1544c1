"""What one side may ask of the other, and the answers, as frozen values.

``tether.verbs.codec`` is the only place that maps them to the schema.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from tether.errors import ResetCode


@dataclass(frozen=True, slots=True)
class Size:
    """A terminal's size in characters; zero in either means "not known"."""

    width: int
    height: int


@dataclass(frozen=True, slots=True)
class Exec:
    """Run ``argv`` on the host, no shell added."""

    argv: tuple[bytes, ...]
    stdin: bool = False
    stdout: bool = True
    stderr: bool = True
    tty: bool = False
    size: Size | None = None


@dataclass(frozen=True, slots=True)
class Attach:
    """Join the device's one long-lived login shell."""

    stdin: bool = False
    stdout: bool = True
    stderr: bool = False
    tty: bool = True
    size: Size | None = None


@dataclass(frozen=True, slots=True)
class Logs:
    """Read a log: ``file`` or ``unit``, or the host's system log when both are empty.

    ``since_unix_nanos`` and ``since_seconds`` exclude each other; ``None`` means
    "not asked for". ``previous`` is the previous boot.
    """

    file: str = ""
    unit: str = ""
    follow: bool = False
    previous: bool = False
    timestamps: bool = False
    tail_lines: int | None = None
    since_unix_nanos: int | None = None
    since_seconds: int | None = None
    limit_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Forward:
    """Connect to a TCP port; an empty ``host`` is the device's loopback."""

    port: int
    host: str = ""


@dataclass(frozen=True, slots=True)
class Renew:
    """Agent to controller: sign this CSR (PEM) for the identity of this link."""

    csr: bytes


@dataclass(frozen=True, slots=True)
class AskFacts:
    """Controller to agent: tell the device's facts anew."""


Request = Exec | Attach | Logs | Forward | Renew | AskFacts


@dataclass(frozen=True, slots=True)
class ForwardRule:
    """A host (address, name, or CIDR) and an inclusive range of ports."""

    host: str
    low: int
    high: int


@dataclass(frozen=True, slots=True)
class DeviceFacts:
    """What a device says about itself; informative, never an identity.

    ``agents`` is told only when asked for: the aliases of all agents that live on the host now,
    the one that answers among them. If there is none it cannot know.
    """

    os: str = ""
    arch: str = ""
    kernel: str = ""
    os_image: str = ""
    hostname: str = ""
    machine_id: str = ""
    boot_id: str = ""
    cpus: int = 0
    memory_bytes: int = 0
    storage_bytes: int = 0
    allow: frozenset[str] = frozenset()
    forward: tuple[ForwardRule, ...] = ()
    labels: dict[str, str] = field(default_factory=dict)
    clock_unix_nanos: int = 0
    agents: frozenset[bytes] = frozenset()


@dataclass(frozen=True, slots=True)
class Settings:
    """What the controller tells a device: who it is, how to keep in touch."""

    namespace: str
    name: str
    keepalive_seconds: int = 15
    urls: tuple[str, ...] = ()
    ca_bundle: bytes = b""
    grace_seconds: int = 0


@dataclass(frozen=True, slots=True)
class Exited:
    """The process ended by itself with this code."""

    code: int


@dataclass(frozen=True, slots=True)
class Killed:
    """The process was ended by this signal."""

    signal: int


@dataclass(frozen=True, slots=True)
class Failed:
    """The request could not be done, and why in one line."""

    code: ResetCode
    message: str


@dataclass(frozen=True, slots=True)
class Succeeded:
    """Done; there is nothing more to say."""


@dataclass(frozen=True, slots=True)
class Issued:
    """A renewed certificate: PEM chain."""

    certificate: bytes


Result = Exited | Killed | Failed | Succeeded | Issued | DeviceFacts
