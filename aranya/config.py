"""Options, environment and file become one frozen ``Config``, with every default in sight.

Each option is looked for on the command line, then as ``ARANYA_<OPTION>`` in
the environment, then in the YAML file given by ``--config``. A value that is
wrong is one ``ConfigError`` line that names where it came from.
"""

from __future__ import annotations

import math
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

#: Options that may be given more than once.
REPEATABLE = ("gateway-url", "replica-address")


class ConfigError(Exception):
    """A wrong option; the text is one line."""


@dataclass(frozen=True, slots=True)
class Config:
    """All that an operator decides about one aranya. Empty means "find out"."""

    kubeconfig: str = ""
    context: str = ""
    namespace: str = ""
    watch_namespace: str = ""
    gateway: str = "tcp:8443"
    gateway_url: tuple[str, ...] = ()
    gateway_cert: str = ""
    gateway_key: str = ""
    node_address: str = ""
    replica_address: tuple[str, ...] = ()
    kubelet_ports: tuple[int, int] | None = None
    client_ca: str = ""
    identity: str = ""
    health: str = "tcp:8080:interface=127.0.0.1"
    log_format: str = "text"
    offline_grace: float = 5.0
    grace: int = 300

    @classmethod
    def of(
        cls,
        options: Mapping[str, Any],
        environment: Mapping[str, str],
        file: Path | None = None,
    ) -> Config:
        """Read the three sources; ``options`` holds only what the command line named.

        Raises ``ConfigError``.
        """
        known = {field.name.replace("_", "-"): field.name for field in fields(cls)}
        values: dict[str, tuple[str, Any]] = {}
        if file is not None:
            for key, value in _read(file).items():
                if key not in known:
                    raise ConfigError(f"{file}: unknown option {key!r}; known are {', '.join(known)}")
                values[known[key]] = (f"{file}: {key}", value)
        for option, name in known.items():
            variable = "ARANYA_" + option.upper().replace("-", "_")
            if environment.get(variable):
                values[name] = (variable, environment[variable])
        for key, value in options.items():
            values[known[key]] = (f"--{key}", value)
        parsed = {name: _parse(name, source, value) for name, (source, value) in values.items()}
        config = cls(**parsed)
        if bool(config.gateway_cert) != bool(config.gateway_key):
            raise ConfigError("--gateway-cert and --gateway-key go together; give both or neither")
        return config


def _read(file: Path) -> Mapping[str, Any]:
    try:
        content = yaml.safe_load(file.read_text("utf-8"))
    except OSError as why:
        raise ConfigError(f"cannot read --config {file}: {why.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as why:
        line = " ".join(str(why).split())
        raise ConfigError(f"{file} is not YAML: {line}") from None
    if content is None:
        return {}
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise ConfigError(f"{file}: expected a mapping of options to values")
    return content


def _parse(name: str, source: str, value: Any) -> Any:
    if name in ("gateway_url", "replica_address"):
        return _several(name, source, value)
    if name == "kubelet_ports":
        return _ports(source, value)
    if name == "offline_grace":
        return _seconds(source, value)
    if name == "grace":
        # Upwards: the smallest fraction is not "none", which 0 means.
        return math.ceil(_seconds(source, value))
    if not isinstance(value, str):
        raise ConfigError(f"{source}: expected a string, not {value!r}")
    if name == "log_format" and value not in ("text", "json"):
        raise ConfigError(f"{source}: expected text or json, not {value!r}")
    return value


def _several(name: str, source: str, value: Any) -> tuple[str, ...]:
    items = value.split(",") if isinstance(value, str) else value
    if not isinstance(items, list | tuple) or not all(isinstance(item, str) for item in items):
        raise ConfigError(f"{source}: expected a list of strings")
    stripped = tuple(item.strip() for item in items if item.strip())
    if name == "gateway_url":
        for url in stripped:
            check_url(source, url)
    return stripped


def check_url(source: str, url: str) -> None:
    """Raise ``ConfigError`` unless ``url`` is one that a device can dial."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise ConfigError(f"{source}: {url!r} has no valid port; expected wss://HOST[:PORT]") from None
    more = parts.username or parts.query or parts.fragment
    if parts.scheme != "wss" or not parts.hostname or more or port == 0:
        raise ConfigError(f"{source}: {url!r} is not wss://HOST[:PORT]")


def _ports(source: str, value: Any) -> tuple[int, int]:
    low, dash, high = str(value).partition("-")
    if not dash or not low.strip().isdigit() or not high.strip().isdigit():
        raise ConfigError(f"{source}: expected LOW-HIGH, for example 20000-20999, not {value!r}")
    first, last = int(low), int(high)
    if not 1 <= first <= last <= 65535:
        raise ConfigError(f"{source}: {value!r} is not a range of ports within 1-65535")
    return first, last


def _seconds(source: str, value: Any) -> float:
    try:
        seconds = float(value)
    except (TypeError, ValueError):
        raise ConfigError(f"{source}: expected seconds, not {value!r}") from None
    if not 0 <= seconds <= 3600:
        raise ConfigError(f"{source}: {value!r} is not within 0 and 3600 seconds")
    return seconds


def own_identity(config: Config, environment: Mapping[str, str]) -> str:
    """The name in the leader election: option, ``$POD_NAME``, else host name and pid."""
    return config.identity or environment.get("POD_NAME") or f"{socket.gethostname()}-{os.getpid()}"


def route_to(host: str, port: int) -> str:
    """The local address that the kernel would use to reach ``host``; sends nothing.

    Raises ``ConfigError`` when there is no route.
    """
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as probe:
            probe.connect(address)
            return str(probe.getsockname()[0])
    except (OSError, UnicodeError) as why:
        raise ConfigError(f"no route to the API server {host}: {why}; give --node-address") from None
