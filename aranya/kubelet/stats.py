"""Metrics and statistics, as little as keeps scrapers content.

An alert fires for every node whose pages do not answer 200 with a Prometheus
content type; an empty body is legal. A figure that is not known is left out, never zero.
"""

from __future__ import annotations

import json

from aranya.kubelet.visit import JSON, Visit

PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"


def metrics(visit: Visit) -> None:
    """``/metrics``: how many clients use this door."""
    visit.answer(
        "# HELP aranya_kubelet_sessions Sessions of kubectl clients that run now.\n"
        "# TYPE aranya_kubelet_sessions gauge\n"
        f"aranya_kubelet_sessions {visit.served.sessions}\n",
        PROMETHEUS,
    )


def nothing(visit: Visit) -> None:
    """A page of metrics that has none."""
    visit.answer("", PROMETHEUS)


def summary(visit: Visit) -> None:
    """``/stats/summary``: the node's name and since when it is served."""
    node = {"nodeName": visit.served.key.name, "startTime": visit.served.started}
    visit.answer(json.dumps({"node": node, "pods": []}), JSON)
