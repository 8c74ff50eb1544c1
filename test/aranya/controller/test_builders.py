"""What is built: Node, Pod and status, and patches that say only what changed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from aranya.controller.devices import nodes, pods
from aranya.controller.devices.conditions import Condition, laid_over, moment, says, timestamp, without_blanks
from aranya.controller.devices.model import Connected, Seen, Site, Wish, wish_of
from aranya.controller.devices.status import occasions, status_patch
from aranya.interfaces import Object
from aranya.kube.memory_requests import merge_patch
from test.support.devices import FACTS
from tether.verbs.requests import DeviceFacts

NOW = 1_790_000_000.0
SITE = Site("10.0.0.1", frozenset({"10.0.0.1"}), "v1.20.2", "worker-1")
HERE = Connected(FACTS, "0.1.0", "192.0.2.7")
WORDS = st.sampled_from(["a", "b", "c", "d"])


def wish(status: Object | None = None, **node: Any) -> Wish:
    metadata = {"name": "dev", "namespace": "edge", "uid": "u", "resourceVersion": "7"}
    return wish_of({"metadata": metadata, "spec": {"node": node}, "status": status or {}})


class NodeTests(SynchronousTestCase):
    """The Node."""

    def test_no_stray_workloads(self) -> None:
        """Nothing on the Node attracts workloads: no os label, no host name, no room for pods."""
        node = nodes.new_node(wish(), Seen(connected=HERE, port=1), SITE, True, NOW)
        labels = node["metadata"]["labels"]
        self.assertEqual([], [key for key in labels if key.startswith(("kubernetes.io/", "beta."))])
        self.assertEqual([{"type": "InternalIP", "address": "10.0.0.1"}], node["status"]["addresses"])
        self.assertEqual(
            ("0", "0"), (node["status"]["capacity"]["pods"], node["status"]["allocatable"]["pods"])
        )
        self.assertEqual(
            [{"key": "arhat.dev/namespace", "value": "edge", "effect": "NoSchedule"}], node["spec"]["taints"]
        )
        self.assertEqual("aranya://edge/dev", node["spec"]["providerID"])

    def test_untrusted_facts(self) -> None:
        """What a device says is capped, printable, and reaches no reserved label."""
        facts = DeviceFacts(
            os="li\x1b[31mnux" * 40,
            arch="../../etc",
            kernel="6\n1",
            cpus=-4,
            memory_bytes=-1,
            labels={"arhat.dev/role": "x", "kubernetes.io/os": "linux", "ok": "yes", "bad": "a b"},
        )
        node = nodes.new_node(wish(), Seen(connected=Connected(facts, "", "")), SITE, True, NOW)
        info = node["status"]["nodeInfo"]
        self.assertTrue(all(value.isprintable() and len(value) <= 128 for value in info.values()))
        labels = node["metadata"]["labels"]
        self.assertEqual(
            ("Node", "yes", "etc"), (labels["arhat.dev/role"], labels["ok"], labels["arhat.dev/arch"])
        )
        self.assertNotIn("kubernetes.io/os", labels)
        self.assertNotIn("bad", labels)
        self.assertEqual({"pods": "0"}, node["status"]["capacity"])

    def test_wish_beats_device(self) -> None:
        """The EdgeDevice's label wins over the device's own of that name."""
        node = nodes.new_node(wish(labels={"site": "office"}), Seen(connected=HERE), SITE, True, NOW)
        self.assertEqual("office", node["metadata"]["labels"]["site"])

    def test_quantities(self) -> None:
        """Sizes are written as the API server writes them back."""
        for size, text in ((8 << 30, "8Gi"), (3 << 20, "3Mi"), (1500 << 10, "1500Ki"), (1 << 60, "1024Pi")):
            facts = replace(FACTS, memory_bytes=size)
            node = nodes.new_node(wish(), Seen(connected=Connected(facts, "", "")), SITE, True, NOW)
            self.assertEqual(text, node["status"]["capacity"]["memory"])

    def test_extended_resources(self) -> None:
        """Resources that somebody else put on the Node stay."""
        node = nodes.new_node(wish(), Seen(connected=HERE), SITE, True, NOW)
        node["status"]["capacity"]["example.com/gpu"] = "1"
        self.assertIsNone(nodes.node_status_patch(Seen(node=node, connected=HERE), SITE, True, NOW))

    def test_heartbeat(self) -> None:
        """Conditions are confirmed every five minutes, and keep the time of their last change."""
        node = nodes.new_node(wish(), Seen(connected=HERE), SITE, True, NOW)
        seen = Seen(node=node, connected=HERE)
        self.assertIsNone(nodes.node_status_patch(seen, SITE, True, NOW + 299))
        patch = nodes.node_status_patch(seen, SITE, True, NOW + 301) or {}
        ready = patch["status"]["conditions"][-1]
        self.assertEqual(timestamp(NOW + 301), ready["lastHeartbeatTime"])
        self.assertEqual(timestamp(NOW), ready["lastTransitionTime"])

    def test_other_conditions(self) -> None:
        """A condition of a network plug-in stays where ours change."""
        node = nodes.new_node(wish(), Seen(connected=HERE), SITE, True, NOW)
        foreign = {"type": "NetworkUnavailable", "status": "False", "reason": "CalicoIsUp"}
        node["status"]["conditions"].append(foreign)
        patch = nodes.node_status_patch(Seen(node=node), SITE, False, NOW) or {}
        self.assertIn(foreign, patch["status"]["conditions"])

    @settings(max_examples=60, deadline=None)
    @given(
        wished=st.lists(st.dictionaries(WORDS, WORDS), min_size=2, max_size=4),
        told=st.lists(st.none() | st.dictionaries(WORDS, WORDS), min_size=4, max_size=4),
        foreign=st.dictionaries(st.sampled_from(["x", "y"]), WORDS),
    )
    def test_labels(
        self, wished: list[dict[str, str]], told: list[dict[str, str] | None], foreign: dict[str, str]
    ) -> None:
        """However wishes and facts change, the Node ends with the last of them and all foreign labels."""
        node: Object = nodes.new_node(wish(), Seen(), SITE, False, NOW)
        node["metadata"]["labels"] |= foreign
        last: dict[str, str] = {}
        for labels, facts in zip(wished, told, strict=False):
            taints = [{"key": key, "effect": "NoSchedule"} for key in labels]
            wanted = wish(labels=labels, annotations=labels, taints=taints)
            connected = None if facts is None else Connected(replace(FACTS, labels=facts), "", "")
            last = last if facts is None else facts
            patch = nodes.node_patch(wanted, Seen(node=node, connected=connected))
            node = merge_patch(node, patch or {})
            self.assertIsNone(nodes.node_patch(wanted, Seen(node=node, connected=connected)))
            there = {key: value for key, value in node["metadata"]["labels"].items() if "/" not in key}
            self.assertEqual({**last, **labels, **foreign}, there)
            keys = [taint["key"] for taint in node["spec"]["taints"]]
            self.assertEqual(sorted(["arhat.dev/namespace", *labels]), sorted(keys))


class PodTests(SynchronousTestCase):
    """The virtual Pod."""

    def test_restricted(self) -> None:
        """The pod passes PodSecurity ``restricted`` and tolerates everything."""
        pod = pods.new_pod(wish())
        spec = pod["spec"]
        self.assertEqual({"type": "RuntimeDefault"}, spec["securityContext"]["seccompProfile"])
        self.assertTrue(spec["securityContext"]["runAsNonRoot"])
        for container in spec["containers"]:
            self.assertFalse(container["securityContext"]["allowPrivilegeEscalation"])
            self.assertEqual({"drop": ["ALL"]}, container["securityContext"]["capabilities"])
        self.assertEqual([{"operator": "Exists"}], spec["tolerations"])
        self.assertEqual((0, "dev"), (spec["terminationGracePeriodSeconds"], spec["nodeName"]))
        self.assertEqual((True, True), (spec["containers"][0]["stdin"], spec["containers"][0]["tty"]))

    def test_injected_fields(self) -> None:
        """Fields that admission adds do not make another pod."""
        pod = pods.new_pod(wish())
        pod["spec"]["containers"][0]["resources"] = {"limits": {"cpu": "1"}}
        self.assertTrue(pods.has_wished_containers(pod, wish()))

    def test_status_settles(self) -> None:
        """Once the status is written there is nothing to write, with what servers leave out left out."""
        pod = pods.new_pod(wish())
        pod["metadata"] |= {"uid": "p", "creationTimestamp": "2026-09-21T00:00:00Z"}
        for online in (True, False):
            patch = pods.pod_status_patch(pod, SITE, online, NOW) or {}
            settled = merge_patch(pod, {"status": without_blanks(patch["status"])})
            self.assertIsNone(pods.pod_status_patch(settled, SITE, online, NOW + 1000))


class StatusTests(SynchronousTestCase):
    """The EdgeDevice's status."""

    def test_last_seen(self) -> None:
        """The last contact is written once a minute while here, and exactly when the device left."""
        patch = status_patch(wish(), Seen(connected=HERE, last_seen=NOW), SITE, NOW) or {}
        told = patch["status"]
        self.assertEqual(timestamp(NOW), told["agent"]["lastSeen"])
        for later, written in ((59, False), (60, True)):
            seen = Seen(connected=HERE, last_seen=NOW + later)
            self.assertEqual(written, status_patch(wish(told), seen, SITE, NOW + later) is not None)
        gone = status_patch(wish(told), Seen(last_seen=NOW + 30), SITE, NOW + 40) or {}
        self.assertEqual(timestamp(NOW + 30), gone["status"]["agent"]["lastSeen"])
        self.assertEqual("0.1.0", gone["status"]["agent"]["version"])

    def test_guard(self) -> None:
        """A patch holds only for the version it was made from, and has no empty strings."""
        patch = status_patch(wish(), Seen(), SITE, NOW) or {}
        self.assertEqual({"uid": "u", "resourceVersion": "7"}, patch["metadata"])
        self.assertEqual(patch, without_blanks(patch))

    def test_occasions(self) -> None:
        """An Event is told when a condition turns, and not when it is confirmed."""
        first = status_patch(wish(), Seen(connected=HERE, last_seen=NOW), SITE, NOW) or {}
        self.assertEqual(["DeviceConnected"], [one.reason for one in occasions(wish(), first)])
        told = wish(first["status"])
        again = status_patch(told, Seen(connected=HERE, last_seen=NOW + 60), SITE, NOW + 60) or {}
        self.assertEqual((), occasions(told, again))
        gone = status_patch(told, Seen(last_seen=NOW), SITE, NOW + 60) or {}
        self.assertEqual(
            [("DeviceOffline", True)], [(one.reason, one.warning) for one in occasions(told, gone)]
        )


class ConditionTests(SynchronousTestCase):
    """Conditions laid over one another."""

    def test_transition(self) -> None:
        """The time of the last transition moves with the status only."""
        one = laid_over([], [Condition("A", True, "X")], NOW)
        two = laid_over(one, [Condition("A", True, "Y")], NOW + 5)
        three = laid_over(two, [Condition("A", False, "Y")], NOW + 9)
        times = [entry[0]["lastTransitionTime"] for entry in (one, two, three)]
        self.assertEqual([timestamp(NOW), timestamp(NOW), timestamp(NOW + 9)], times)

    def test_garbage(self) -> None:
        """Whatever stands there instead of conditions, the result is good."""
        for there in (None, "x", {"type": "A"}, [1, None, {"type": "B"}]):
            self.assertEqual("A", laid_over(there, [Condition("A", True, "X")], NOW)[0]["type"])

    def test_times(self) -> None:
        """Times are read as they are written; anything else is no time."""
        self.assertEqual(NOW, moment(timestamp(NOW)))
        for text in (None, "", "yesterday", 5):
            self.assertIsNone(moment(text))

    def test_says(self) -> None:
        """What a server leaves out counts as an empty string, and what it adds does not count."""
        self.assertTrue(says({"a": 1, "b": 2}, {"a": 1, "c": ""}))
        self.assertTrue(says(None, []))
        self.assertFalse(says([{"a": 1}], [{"a": 2}]))
        self.assertFalse(says([1], [1, 2]))
