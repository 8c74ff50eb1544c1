"""Health, and the small pages that only say that somebody is at home."""

from __future__ import annotations

import json

from aranya.kubelet.visit import JSON, Visit

CHECKS = ("ping", "log", "syncloop")


def healthz(visit: Visit) -> None:
    """``/healthz`` and its checks: the endpoint lives; whether the device does is in the Node."""
    if visit.value(b"verbose") is not None and len(visit.segments) == 1:
        excluded = {value.decode("utf-8", "replace") for value in visit.values(b"exclude")}
        lines = [f"[+]{check} excluded: ok" if check in excluded else f"[+]{check} ok" for check in CHECKS]
        visit.answer("\n".join([*lines, "healthz check passed", ""]))
    else:
        visit.answer("ok")


def configz(visit: Visit) -> None:
    """``/configz``: there is no kubelet configuration to tell."""
    visit.answer(json.dumps({"kubeletconfig": {}}), JSON)


def statusz(visit: Visit) -> None:
    """``/statusz``: whose door this is, and since when."""
    visit.answer(f"aranya kubelet endpoint\nnode: {visit.served.key.name}\nstarted: {visit.served.started}\n")


def flagz(visit: Visit) -> None:
    """``/flagz``: the endpoint has no flags of its own."""
    visit.answer("aranya kubelet endpoint\n")
