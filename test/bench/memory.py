"""What the daemons hold and burn while nothing happens, and what stays after much did."""

from __future__ import annotations

import base64
import json
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor

from test.bench.child import running
from test.bench.cluster import Ground
from test.bench.contenders import TRUE, ByKubectl
from test.bench.machine import Processors, resident_kib
from test.bench.report import ARANYA, Goal, Report, Row
from test.cluster.daemons import DEVICE_NAMESPACE, wait_until

STAGE = "Size"
_IDLE_SECONDS = 30.0
#: After this long what was in flight is over and lists have been read.
_SETTLE_SECONDS = 5.0
_AT_ONCE = 6
_WARM_EXECS = 100
_PER_DEVICE_PATIENCE = 1.0

_JOIN_ANNOTATION = "aranya.arhat.dev/join-requested"


def measure_idle(ground: Ground, report: Report) -> None:
    """Memory and processors of both daemons with one device and nothing to do."""
    time.sleep(_SETTLE_SECONDS)
    for name, pid in zip(("aranya", "arhat"), ground.daemons, strict=True):
        held = resident_kib(pid) / 1024
        goals = [Goal(ARANYA, at_most=55)] if name == "arhat" else []
        report.add(STAGE, Row(f"{name} idle", "MiB RSS", {ARANYA: held}, goals))
    each = {name: Processors([pid]) for name, pid in zip(("aranya", "arhat"), ground.daemons, strict=True)}
    time.sleep(_IDLE_SECONDS)
    for name, processors in each.items():
        share = processors.used() / _IDLE_SECONDS * 100
        goals = [Goal(ARANYA, at_most=0.1)] if name == "arhat" else []
        report.add(STAGE, Row(f"{name} idle", "% CPU", {ARANYA: share}, goals))


def measure_execs(ground: Ground, report: Report, count: int) -> None:
    """Whether memory is flat over many commands."""
    contender = ground.contenders[ARANYA]
    assert isinstance(contender, ByKubectl)
    words, environment = contender.command(TRUE), dict(contender.environment)

    def once(_: int) -> None:
        done = subprocess.run(
            words, env=environment, stdin=subprocess.DEVNULL, capture_output=True, timeout=120, check=False
        )
        if done.returncode:
            raise RuntimeError(f"an exec failed: {done.stderr.decode()[-300:]}")

    with ThreadPoolExecutor(_AT_ONCE) as workers:
        # Until pools and caches have their size.
        list(workers.map(once, range(_WARM_EXECS)))
        before = [resident_kib(pid) for pid in ground.daemons]
        processors = Processors(ground.daemons)
        list(workers.map(once, range(count)))
    burnt = processors.used() / count * 1000
    report.add(STAGE, Row("CPU of aranya + arhat for one exec", "ms", {ARANYA: burnt}))
    for name, pid, kib in zip(("aranya", "arhat"), ground.daemons, before, strict=True):
        grown = resident_kib(pid) - kib
        row = Row(f"{name} grew over {count:,} execs", "KiB", {ARANYA: grown}, [Goal(ARANYA, at_most=4096)])
        report.add(STAGE, row)


def measure_devices(ground: Ground, report: Report, count: int) -> None:
    """What one more device costs aranya: link, endpoint, Node, Lease, pod; and how soon all are Ready."""
    names = [f"idle-{number}" for number in range(count)]
    controller = ground.site.controller.pid
    time.sleep(_SETTLE_SECONDS)
    before, processors = resident_kib(controller), Processors([controller])
    began = time.monotonic()
    items = [
        {
            "apiVersion": "aranya.arhat.dev/v1alpha1",
            "kind": "EdgeDevice",
            "metadata": {"name": name, "namespace": DEVICE_NAMESPACE, "annotations": {_JOIN_ANNOTATION: "x"}},
            "spec": {},
        }
        for name in names
    ]
    listed = {"apiVersion": "v1", "kind": "List", "items": items}
    done = ground.site.edge.run("create", "-f", "-", input=json.dumps(listed).encode(), timeout=300)
    if done.code:
        raise RuntimeError(done.err.decode()[-500:])
    patience = 30 + count * _PER_DEVICE_PATIENCE
    tokens = wait_until(
        "every device has a join token", lambda: _tokens(ground, names), patience, ground.site.explain
    )
    made = time.monotonic() - began
    folder = ground.folder / "idle"
    folder.mkdir()
    file = folder / "tokens"
    file.touch(0o600)
    file.write_text("\n".join(tokens))
    # Said once all are up.
    with running("test.bench.idle", [str(file), str(folder)], ground.folder / "idle.log") as (told, _):
        wait_until("every pod is Ready", lambda: _ready(ground, names), patience, ground.site.explain)
        ready = time.monotonic() - began
        burnt = processors.used()
        # The API server's many answers to all this have to be read and dropped first.
        time.sleep(2 * _SETTLE_SECONDS)
        grown = resident_kib(controller) - before
        idle = Processors([controller])
        time.sleep(_IDLE_SECONDS)
        share = idle.used() / _IDLE_SECONDS * 100
    what = f"aranya, each of {count} idle devices more"
    report.add(STAGE, Row(what, "KiB RSS", {ARANYA: grown / count}, [Goal(ARANYA, at_most=120)]))
    remark = "the API server and its controllers share these processors"
    report.add(STAGE, Row(f"{count} devices, from nothing to tokens", "s", {ARANYA: made}))
    report.add(STAGE, Row(f"{count} devices, joins until links are up", "s", {ARANYA: told["seconds"]}))
    report.add(STAGE, Row(f"{count} devices, from nothing to Ready", "s", {ARANYA: ready}, remark=remark))
    report.add(STAGE, Row("… CPU of aranya for each", "ms", {ARANYA: burnt / count * 1000}))
    report.add(STAGE, Row(f"aranya with {count} idle devices", "% CPU", {ARANYA: share}))


def _tokens(ground: Ground, names: list[str]) -> list[str]:
    secrets = ground.plane.request("GET", f"/api/v1/namespaces/{DEVICE_NAMESPACE}/secrets").body["items"]
    found = {one["metadata"]["name"]: one.get("data", {}).get("token", "") for one in secrets}
    tokens = [base64.b64decode(found.get(f"{name}-join", "")).decode() for name in names]
    return tokens if all(tokens) else []


def _ready(ground: Ground, names: list[str]) -> bool:
    pods = ground.plane.request("GET", f"/api/v1/namespaces/{DEVICE_NAMESPACE}/pods").body["items"]
    ready = {
        pod["metadata"]["name"]
        for pod in pods
        for condition in pod["status"].get("conditions", [])
        if condition["type"] == "Ready" and condition["status"] == "True"
    }
    return ready.issuperset(names)
