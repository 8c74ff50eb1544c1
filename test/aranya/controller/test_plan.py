"""The planner as a table: what is wished, what is seen, what is done next."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from aranya.certs.issuer import SubjectParts
from aranya.certs.keys import KeyPair
from aranya.controller.devices import nodes, pods, status, steps
from aranya.controller.devices.model import Certificate, Connected, Seen, Setback, Site, Undone, Wish, wish_of
from aranya.controller.devices.plan import plan, served_pod, teardown
from aranya.interfaces import Object
from aranya.names import FINALIZER, DeviceKey
from test.support.devices import FACTS

NOW = 1_790_000_000.0
SITE = Site("10.0.0.1", frozenset({"10.0.0.1"}), "v1.20.2", "worker-1")
KEY = DeviceKey("edge", "dev")
PAIR = KeyPair(b"chain", b"key")
CERTIFICATE = Certificate(PAIR, NOW + 300, NOW + 200, frozenset({"10.0.0.1"}), SubjectParts())
HERE = Connected(FACTS, "0.1.0", "192.0.2.7")


def wish(status: Object | None = None, **metadata: Any) -> Wish:
    return wish_of(
        {
            "metadata": {
                "name": "dev",
                "namespace": "edge",
                "uid": "u",
                "finalizers": [FINALIZER],
                **metadata,
            },
            "spec": {},
            "status": status or {},
        }
    )


def settled(connected: Connected | None = HERE) -> tuple[Wish, Seen]:
    """All that there is to be, as it is to be."""
    wished = wish()
    seen = Seen(
        device=wished.source,
        certificate=CERTIFICATE,
        port=4000,
        shown=PAIR,
        connected=connected,
        last_seen=NOW if connected else None,
        account_exists=True,
        lease_of="n",
    )
    node = nodes.new_node(wished, seen, SITE, connected is not None, NOW)
    node["metadata"]["uid"] = "n"
    pod = pods.new_pod(wished)
    pod["metadata"] |= {"uid": "p", "creationTimestamp": "2026-09-21T00:00:00Z"}
    patch = pods.pod_status_patch(pod, SITE, connected is not None, NOW) or {}
    pod["status"] = patch["status"]
    seen = replace(seen, node=node, pod=pod)
    seen = replace(seen, told=served_pod(wished, pod))
    told = status.status_patch(wished, seen, SITE, NOW) or {}
    return wish(told["status"]), seen


def names(wished: Wish, seen: Seen, now: float = NOW) -> list[str]:
    return [type(step).__name__ for step in plan(wished, seen, SITE, now).steps]


class PlanTests(SynchronousTestCase):
    """What is done for an EdgeDevice that is to be."""

    def test_settled(self) -> None:
        """Where all is well nothing is done, and a look is taken within a minute."""
        for connected in (HERE, None):
            todo = plan(*settled(connected), SITE, NOW)
            self.assertEqual((), todo.steps)
            self.assertTrue(0 < (todo.wake_in or 0) <= 300)

    def test_from_nothing(self) -> None:
        """What is missing is made in this order, each thing when what it needs is there."""
        wished, seen = settled()
        other = KeyPair(b"other", b"key")
        table: list[tuple[Wish, Seen, list[str]]] = [
            (wish(finalizers=[]), Seen(), ["AddFinalizer"]),
            (wished, Seen(), ["AskForCertificate"]),
            (wished, Seen(issuing=True), ["PatchStatus"]),
            (wished, Seen(issue_error="no", issue_again_at=NOW + 5), ["PatchStatus"]),
            (wished, Seen(issued=CERTIFICATE), ["StoreCertificate"]),
            (wished, Seen(certificate=CERTIFICATE), ["Serve"]),
            (wished, replace(seen, shown=other), ["Serve"]),
            (wished, replace(seen, node=None, pod=None, told=None), ["CreateNode", "TellEndpoint"]),
            (wished, replace(seen, lease_of=""), ["KeepLease"]),
            (wished, replace(seen, lease_of="former"), ["KeepLease"]),
            (wished, replace(seen, pod=None), ["CreatePod"]),
            (wished, replace(seen, pod=None, account_exists=False), ["TellEndpoint"]),
            (wished, replace(seen, pod=None, setback=Setback(namespace_ending=True)), ["TellEndpoint"]),
            (wished, replace(seen, told=None), ["TellEndpoint"]),
            (wish(), seen, ["PatchStatus"]),
        ]
        for index, (wanted, there, expected) in enumerate(table):
            self.assertEqual(expected, names(wanted, there), index)

    def test_certificate(self) -> None:
        """A certificate is replaced when it is old, covers too little or says something else."""
        wished, seen = settled()
        for change in (
            {"renew_at": NOW},
            {"hosts": frozenset({"10.0.0.2"})},
            {"subject": SubjectParts(country="DE")},
        ):
            old = replace(CERTIFICATE, **change)
            self.assertIn("AskForCertificate", names(wished, replace(seen, certificate=old)))
            waiting = replace(seen, certificate=old, issuing=True)
            self.assertNotIn("AskForCertificate", names(wished, waiting))
            unfit = replace(seen, certificate=old, issued=replace(CERTIFICATE, hosts=frozenset()))
            self.assertIn("AskForCertificate", names(wished, unfit))

    def test_presence(self) -> None:
        """An absent device counts as it was told last until the grace is over."""
        wished, seen = settled()
        gone = replace(seen, connected=None, grace_until=NOW + 5, last_seen=NOW - 0.5)
        todo = plan(wished, gone, SITE, NOW)
        self.assertEqual(((), 5.0), (todo.steps, todo.wake_in))
        self.assertEqual(["PatchNode", "PatchPod"], names(wished, gone, NOW + 5))

    def test_conflicts(self) -> None:
        """Nothing is done to what is not ours; a Node that is not takes endpoint, pod and Lease with it."""
        wished, seen = settled()
        foreign = replace(seen, node={"metadata": {"name": "dev"}, "spec": {"providerID": "aws"}})
        self.assertEqual(["StopEndpoint", "DeletePod", "DropLease"], names(wished, foreign))
        cleared = replace(foreign, port=0, pod=None, lease_of="")
        self.assertEqual(["PatchStatus"], names(wished, cleared))
        pod: Object = {"metadata": {"name": "dev", "uid": "f"}, "spec": {"nodeName": "worker"}}
        self.assertEqual(["TellEndpoint"], names(wished, replace(seen, pod=pod)))

    def test_leaving(self) -> None:
        """A pod on its way out is finalised once; a Node on its way out is waited for."""
        wished, seen = settled()
        assert seen.pod is not None and seen.node is not None
        metadata = {**seen.pod["metadata"], "deletionTimestamp": "x", "deletionGracePeriodSeconds": 30}
        pod = {**seen.pod, "metadata": metadata}
        self.assertEqual(["DeletePod", "TellEndpoint"], names(wished, replace(seen, pod=pod)))
        held = {**pod, "metadata": {**metadata, "deletionGracePeriodSeconds": 0}}
        self.assertEqual(["TellEndpoint"], names(wished, replace(seen, pod=held)))
        node = {**seen.node, "metadata": {**seen.node["metadata"], "deletionTimestamp": "x"}}
        self.assertEqual((), plan(wished, replace(seen, node=node), SITE, NOW).steps)

    def test_ban(self) -> None:
        """A banned device is disconnected first."""
        wished, seen = settled()
        banned = replace(wished, banned=True)
        self.assertEqual(["Disconnect"], names(banned, seen))
        away = replace(seen, connected=None)
        self.assertEqual(["Disconnect"], names(banned, away))
        cut_off = replace(away, done=frozenset({Undone.LINK}))
        self.assertEqual(["PatchNode", "PatchPod"], names(banned, cut_off))
        told = replace(
            wish({"conditions": [{"type": "Connected", "status": "False", "reason": "Banned"}]}), banned=True
        )
        self.assertEqual(["PatchNode", "PatchPod"], names(told, away))
        self.assertEqual(["Disconnect"], names(told, seen)[:1])

    def test_former_port(self) -> None:
        """The endpoint gets the port it had, by the EdgeDevice's status or else the Node's."""
        seen = replace(settled()[1], port=0, shown=None)
        for told, port in (({"kubeletPort": 5000}, 5000), ({}, 4000), ({"kubeletPort": 0}, 4000)):
            (serve,) = (
                step for step in plan(wish(told), seen, SITE, NOW).steps if isinstance(step, steps.Serve)
            )
            self.assertEqual(port, serve.port)


class TeardownTests(SynchronousTestCase):
    """What is done for an EdgeDevice that is to go."""

    def test_order(self) -> None:
        """The link goes first, the finaliser last and only when all else is done."""
        wished, seen = settled()
        first = [type(step).__name__ for step in teardown(KEY, wished, seen).steps]
        self.assertEqual("Disconnect", first[0])
        away = replace(seen, connected=None)
        self.assertIsInstance(teardown(KEY, wished, away).steps[0], steps.Disconnect)
        self.assertEqual(
            {"ForgetJoins", "StopEndpoint", "DeletePod", "DropLease", "DeleteNode", "DeleteSecret"},
            set(first[1:]),
        )
        done = Seen(done=frozenset(Undone))
        (last,) = teardown(KEY, wished, done).steps
        self.assertIsInstance(last, steps.RemoveFinalizer)
        self.assertEqual((), teardown(KEY, None, done).steps)
        self.assertEqual((), teardown(KEY, replace(wished, finalizer=False), done).steps)

    def test_spares_others(self) -> None:
        """What is not ours is left."""
        foreign: Object = {"metadata": {"name": "dev"}, "spec": {}}
        seen = Seen(node=foreign, pod=foreign, done=frozenset(Undone))
        (last,) = teardown(KEY, wish(), seen).steps
        self.assertIsInstance(last, steps.RemoveFinalizer)
