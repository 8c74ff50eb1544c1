"""``twistd aranya``: the options, and the only import of the reactor."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any, cast

from twisted.application.service import IService
from twisted.python import usage

from aranya.config import REPEATABLE, Config, ConfigError
from tether.daemon import Daemon, DaemonReactor, leave_soon, refuse


class Options(usage.Options):
    """The command line. Every option may also be ``ARANYA_<OPTION>`` or stand in ``--config``."""

    synopsis = "[options]"
    longdesc = "The controller: makes a Node and a virtual pod of every EdgeDevice."
    optParameters = [
        ["config", None, None, "YAML file with these options"],
        ["kubeconfig", None, None, "which cluster [in-cluster, $KUBECONFIG, ~/.kube/config]"],
        ["context", None, None, "which context of the kubeconfig"],
        ["namespace", None, None, "where aranya keeps its own objects [the pod's, the context's, default]"],
        ["watch-namespace", None, None, "whose EdgeDevices it reconciles [--namespace]"],
        ["gateway", None, None, "endpoint for devices, TLS is added [tcp:8443]"],
        ["gateway-cert", None, None, "certificate chain of the gateway [from aranya's own CA]"],
        ["gateway-key", None, None, "key for --gateway-cert"],
        ["node-address", None, None, "what the API server dials [$HOST_IP, the address routed to it]"],
        ["kubelet-ports", None, None, "LOW-HIGH for the per-device endpoints [any]"],
        ["client-ca", None, None, "who signs the API server's client certificate [from the cluster]"],
        ["identity", None, None, "name in the leader election [$POD_NAME, host name and pid]"],
        ["health", None, None, "endpoint for /healthz, /readyz, /metrics [tcp:8080:interface=127.0.0.1]"],
        ["log-format", None, None, "text or json [text]"],
        ["offline-grace", None, None, "seconds before a lost device's Node is not Ready [5]"],
        ["grace", None, None, "seconds that sessions outlive a lost link, unless the EdgeDevice says [300]"],
    ]

    def __init__(self) -> None:
        super().__init__()
        self.repeated: dict[str, list[str]] = {}

    def opt_gateway_url(self, value: str) -> None:
        """wss://HOST[:PORT] that devices dial; may be repeated, tried in order"""
        self.repeated.setdefault("gateway-url", []).append(value)

    def opt_replica_address(self, value: str) -> None:
        """--node-address of another replica; may be repeated, goes into Node certificates"""
        self.repeated.setdefault("replica-address", []).append(value)

    def parseOptions(self, options: Any = None) -> None:
        """Parse; a wrong option is one line and exit code 1, not a page of help."""
        try:
            super().parseOptions(options)
        except usage.UsageError as why:
            refuse("aranya", f"{why}; see twistd aranya --help")

    def parseArgs(self, *rest: str) -> None:
        """There are no arguments."""
        if rest:
            raise usage.UsageError(f"unexpected argument {rest[0]!r}")

    def config(self) -> Config:
        """All sources, read and checked. Raises ``ConfigError``."""
        given = {key: value for key, value in self.items() if value is not None and key != "config"}
        given |= {key: self.repeated[key] for key in REPEATABLE if key in self.repeated}
        file = self["config"] or os.environ.get("ARANYA_CONFIG")
        return Config.of(given, os.environ, Path(file) if file else None)


def makeService(options: Options) -> IService:
    """Check what can be checked before the reactor runs, then hand over to the service."""
    from twisted.internet import reactor

    try:
        from aranya.service import build
    except ModuleNotFoundError as missing:
        refuse("aranya", f"{missing.name} is not installed; pip install 'aranya[controller]'")

    try:
        config = options.config()
    except ConfigError as why:
        refuse("aranya", str(why))
    running = cast(DaemonReactor, reactor)

    async def start(daemon: Daemon) -> IService:
        return await build(config, os.environ, reactor, daemon.fail)

    json_log = sys.stdout if config.log_format == "json" else None
    return cast(IService, Daemon("aranya", running, start, json_log, leave_soon))
