"""``/healthz``, ``/readyz`` and ``/metrics`` of aranya itself, for probes and Prometheus.

``/healthz`` answers as long as the reactor turns. ``/readyz`` is 200 while this
process leads and devices may connect: a Service in front of the gateway must not
send devices to a standby.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector
from twisted.web.http import Request
from twisted.web.resource import Resource
from twisted.web.server import Site

#: What ``readings`` may hold, with the help text of each.
GAUGES: Mapping[str, str] = {
    "aranya_leading": "1 while this process leads, else 0.",
    "aranya_devices_connected": "Devices with a live link.",
    "aranya_agents": "Agents that are connected, or may come back within the grace.",
    "aranya_sessions": "kubectl sessions under way.",
    "aranya_reconcile_queue_length": "EdgeDevices that wait to be reconciled.",
}


class _Readings(Collector):
    """Asks for the numbers when it is scraped."""

    def __init__(self, readings: Callable[[], Mapping[str, float]]) -> None:
        self._readings = readings

    def collect(self) -> list[GaugeMetricFamily]:
        """The families with their present values."""
        return [
            GaugeMetricFamily(name, GAUGES[name], value=value) for name, value in self._readings().items()
        ]


class _Page(Resource):
    """One page, made anew for each request."""

    isLeaf = True

    def __init__(self, content: Callable[[], tuple[int, bytes, bytes]]) -> None:
        super().__init__()
        self._content = content

    def render_GET(self, request: Request) -> bytes:
        """The page."""
        code, kind, body = self._content()
        request.setResponseCode(code)
        request.setHeader(b"content-type", kind)
        return body


class _QuietSite(Site):
    """A site that keeps no access log: probes every few seconds are not news."""

    noisy = False

    def log(self, request: Request) -> None:
        """Say nothing."""


def health_site(ready: Callable[[], str], readings: Callable[[], Mapping[str, float]]) -> Site:
    """The pages; ``ready`` gives ``""`` when ready, else one line that says what is missing."""
    registry = CollectorRegistry()
    registry.register(_Readings(readings))
    ProcessCollector(registry=registry)
    text = b"text/plain; charset=utf-8"

    def readyz() -> tuple[int, bytes, bytes]:
        missing = ready()
        return (503, text, missing.encode() + b"\n") if missing else (200, text, b"ok")

    root = Resource()
    root.putChild(b"healthz", _Page(lambda: (200, text, b"ok")))
    root.putChild(b"readyz", _Page(readyz))
    root.putChild(b"metrics", _Page(lambda: (200, CONTENT_TYPE_LATEST.encode(), generate_latest(registry))))
    site = _QuietSite(root)
    site.displayTracebacks = False
    return site
