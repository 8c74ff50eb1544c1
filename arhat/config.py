"""The device owner's policy: one YAML file becomes one frozen ``Config``.

What the cluster may do on a device is also its owner's choice, and this file is
where it is written down. A mistake in it is one ``ConfigError`` line that names
the file, the key and what is allowed; it never silently means "allow more".
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from tether.verbs.requests import ForwardRule

#: Everything that a device can allow.
VERBS = ("exec", "attach", "logs", "port-forward")

#: The device's own loopback, any port.
LOOPBACK = (ForwardRule("127.0.0.0/8", 1, 65535), ForwardRule("::1/128", 1, 65535))

#: As many rules and labels as aranya takes note of.
_RULES_LIMIT = 256
_LABELS_LIMIT = 32

#: Label keys with these suffixes belong to Kubernetes or to aranya.
_RESERVED_LABELS = ("kubernetes.io", "k8s.io", "arhat.dev")

_LABEL_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")
_LABEL_PREFIX = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*")
_HOST_NAME = re.compile(
    r"[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?(\.[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?)*\.?"
)


class ConfigError(Exception):
    """A wrong setting; the text is one line."""


@dataclass(frozen=True, slots=True)
class Config:
    """All that a device's owner decides.

    An empty ``user`` or ``shell`` is the agent's own, an empty ``path`` the usual
    one, an empty ``journal`` the host's.
    """

    allow: frozenset[str] = frozenset(VERBS)
    user: str = ""
    shell: str = ""
    path: str = ""
    forward: tuple[ForwardRule, ...] = LOOPBACK
    log_files: tuple[str, ...] = ("/var/log/**",)
    journal: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    max_sessions: int = 256
    kill_grace: float = 5.0
    drain: float = 30.0

    @classmethod
    def read(cls, file: Path | None) -> Config:
        """Read ``file``, or give the defaults when there is none. Raises ``ConfigError``."""
        if file is None:
            return cls()
        try:
            content = yaml.safe_load(file.read_text("utf-8"))
        except OSError as why:
            raise ConfigError(f"cannot read --config {file}: {why.strerror}") from None
        except (yaml.YAMLError, UnicodeDecodeError) as why:
            raise ConfigError(f"{file} is not YAML: {' '.join(str(why).split())}") from None
        if content is None:
            return cls()
        try:
            return cls.of(content)
        except ConfigError as why:
            raise ConfigError(f"{file}: {why}") from None

    @classmethod
    def of(cls, content: object) -> Config:
        """The policy that a parsed file states. Raises ``ConfigError``."""
        config = cls()
        attach = True
        for key, value in _mapping("the file", content).items():
            if key == "attach":
                attach = _switch(key, value)
            elif key in _KEYS:
                config = replace(config, **_KEYS[key](key, value))
            else:
                raise ConfigError(f"unknown key {key!r}; known are {', '.join([*_KEYS, 'attach'])}")
        # Whatever the order in the file: "off" takes away, "on" does not give.
        return config if attach else replace(config, allow=config.allow - {"attach"})


def _mapping(key: str, value: object) -> Mapping[str, Any]:
    if not isinstance(value, dict) or not all(isinstance(name, str) for name in value):
        raise ConfigError(f"{key}: expected a mapping of names to values")
    return value


def _strings(key: str, value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise ConfigError(f"{key}: expected a list of strings")
    return tuple(value)


def _string(key: str, value: object) -> str:
    if not isinstance(value, str) or not value or not value.isprintable():
        raise ConfigError(f"{key}: expected a string, not {value!r}")
    return value


def _switch(key: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise ConfigError(f"{key}: expected on or off, not {value!r}")
    return value


def _allow(key: str, value: object) -> dict[str, Any]:
    verbs = _strings(key, value)
    for verb in verbs:
        if verb not in VERBS:
            raise ConfigError(f"{key}: unknown verb {verb!r}; known are {', '.join(VERBS)}")
    return {"allow": frozenset(verbs)}


def _user(key: str, value: object) -> dict[str, Any]:
    return {"user": _string(key, value)}


def _shell(key: str, value: object) -> dict[str, Any]:
    shell = _string(key, value)
    if not shell.startswith("/"):
        raise ConfigError(f"{key}: expected an absolute path, not {shell!r}")
    return {"shell": shell}


def _path(key: str, value: object) -> dict[str, Any]:
    path = _string(key, value)
    if not all(folder.startswith("/") for folder in path.split(":")):
        raise ConfigError(f"{key}: expected absolute folders with colons between, not {path!r}")
    return {"path": path}


def _forward(key: str, value: object) -> dict[str, Any]:
    rules = tuple(rule for text in _strings(key, value) for rule in forward_rules(text))
    if len(rules) > _RULES_LIMIT:
        raise ConfigError(f"{key}: {len(rules)} rules are too many; {_RULES_LIMIT} can be told to aranya")
    return {"forward": rules}


def forward_rules(text: str) -> tuple[ForwardRule, ...]:
    """The rules that ``host:port``, ``host:low-high``, ``host:*`` or ``CIDR:port`` stands for.

    An IPv6 address is written in brackets; ``localhost`` is the loopback of both
    families. Raises ``ConfigError``.
    """
    bad = f"forward: {text!r} is not HOST:PORT, HOST:LOW-HIGH or CIDR:PORT"
    host, colon, ports = text.rpartition(":")
    if not colon or not host:
        raise ConfigError(bad)
    low, high = _ports(ports, bad)
    if host.lower() == "localhost":
        return tuple(replace(rule, low=low, high=high) for rule in LOOPBACK)
    bracketed = host.startswith("[") and host.endswith("]")
    bare = host[1:-1] if bracketed else host
    try:
        network = ipaddress.ip_network(bare, strict=False)
    except ValueError:
        if bracketed or "/" in bare or ":" in bare or not _HOST_NAME.fullmatch(bare) or bare[-1].isdigit():
            raise ConfigError(bad) from None
        return (ForwardRule(bare.lower().rstrip("."), low, high),)
    if (network.version == 6) != bracketed:
        raise ConfigError(f"forward: {text!r}: write an IPv6 address as [ADDRESS]:PORT")
    return (ForwardRule(str(network) if "/" in bare else str(network.network_address), low, high),)


def _ports(text: str, bad: str) -> tuple[int, int]:
    if text == "*":
        return 1, 65535
    low, dash, high = text.partition("-")
    numbers = [low, high] if dash else [low]
    if not all(number.isascii() and number.isdigit() for number in numbers):
        raise ConfigError(bad)
    first, last = int(numbers[0]), int(numbers[-1])
    if not 1 <= first <= last <= 65535:
        raise ConfigError(f"{bad}; ports are within 1-65535")
    return first, last


def _logs(key: str, value: object) -> dict[str, Any]:
    logs = _mapping(key, value)
    for name in logs:
        if name not in ("files", "journal"):
            raise ConfigError(f"{key}: unknown key {name!r}; known are files, journal")
    decided: dict[str, Any] = {}
    if "journal" in logs:
        decided["journal"] = _string(f"{key}.journal", logs["journal"])
        if not decided["journal"].startswith("/"):
            raise ConfigError(f"{key}.journal: expected an absolute path, not {decided['journal']!r}")
    if "files" not in logs and logs:
        return decided
    files = _strings(f"{key}.files", logs.get("files", []))
    for file in files:
        if not file.startswith("/") or "/../" in f"{file}/":
            raise ConfigError(f"{key}.files: expected an absolute path without .., not {file!r}")
    return {"log_files": files, **decided}


def _labels(key: str, value: object) -> dict[str, Any]:
    labels = _mapping(key, value)
    if len(labels) > _LABELS_LIMIT:
        raise ConfigError(f"{key}: {len(labels)} are too many; {_LABELS_LIMIT} can be told to aranya")
    for name, text in labels.items():
        prefix, slash, local = name.rpartition("/")
        if any(prefix == reserved or prefix.endswith("." + reserved) for reserved in _RESERVED_LABELS):
            raise ConfigError(
                f"{key}: {name!r} is reserved; keys of {', '.join(_RESERVED_LABELS)} are not allowed"
            )
        if not _LABEL_NAME.fullmatch(local) or (slash and not _LABEL_PREFIX.fullmatch(prefix)):
            raise ConfigError(f"{key}: {name!r} is not a label key")
        if not isinstance(text, str) or (text and not _LABEL_NAME.fullmatch(text)):
            raise ConfigError(f"{key}: {name}: {text!r} is not a label value; quote numbers and yes or no")
    return {"labels": dict(labels)}


def _limits(key: str, value: object) -> dict[str, Any]:
    limits = _mapping(key, value)
    for name in limits:
        if name != "sessions":
            raise ConfigError(f"{key}: unknown key {name!r}; known is sessions")
    sessions = limits.get("sessions", Config().max_sessions)
    if not isinstance(sessions, int) or isinstance(sessions, bool) or not 1 <= sessions <= 10000:
        raise ConfigError(f"{key}.sessions: expected a number within 1 and 10000, not {sessions!r}")
    return {"max_sessions": sessions}


def _kill_grace(key: str, value: object) -> dict[str, Any]:
    return {"kill_grace": _seconds(key, value)}


def _drain(key: str, value: object) -> dict[str, Any]:
    return {"drain": _seconds(key, value)}


def _seconds(key: str, value: object) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= 3600:
        raise ConfigError(f"{key}: expected seconds within 0 and 3600, not {value!r}")
    return float(value)


_KEYS: dict[str, Callable[[str, object], dict[str, Any]]] = {
    "allow": _allow,
    "user": _user,
    "shell": _shell,
    "path": _path,
    "forward": _forward,
    "logs": _logs,
    "labels": _labels,
    "limits": _limits,
    "kill-grace": _kill_grace,
    "drain": _drain,
}
