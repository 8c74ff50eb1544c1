"""EdgeDevices as they come: good ones are read, bad ones are told and never break anything."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from aranya.controller.devices.model import is_reserved, usable_labels, wish_of
from aranya.interfaces import ForwardTarget, VirtualContainer

KEYS = (
    "node",
    "labels",
    "annotations",
    "taints",
    "cert",
    "pod",
    "containers",
    "forward",
    "name",
    "log",
    "file",
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4),
    max_leaves=12,
)


def read(**spec: Any) -> Any:
    return wish_of({"metadata": {"name": "dev", "namespace": "edge", "uid": "u"}, "spec": spec})


class WishTests(SynchronousTestCase):
    """``wish_of``."""

    def test_empty(self) -> None:
        """An empty spec is a device with the host container."""
        wish = read()
        self.assertEqual(((VirtualContainer("host"),), ()), (wish.containers, wish.problems))

    def test_full(self) -> None:
        """All that a spec may say is read."""
        wish = read(
            banned=True,
            node={
                "labels": {"a": "b"},
                "annotations": {"example.com/c": "d e"},
                "taints": [{"key": "x", "effect": "NoSchedule", "value": "y"}],
                "cert": {"orgUnit": "edge", "country": "DE", "state": "HH", "locality": "Hamburg"},
            },
            pod={
                "containers": [
                    {"name": "web", "log": {"file": "/a"}},
                    {"name": "ssh", "log": {"unit": "ssh"}},
                ],
                "forward": [{"port": 1, "target": "h:2"}, {"port": 2, "target": "[fe80::1]:3"}],
            },
        )
        self.assertEqual((), wish.problems)
        self.assertTrue(wish.banned)
        self.assertEqual(({"a": "b"}, {"example.com/c": "d e"}), (wish.labels, wish.annotations))
        self.assertEqual(
            ("x", "NoSchedule", "y"), (wish.taints[0].key, wish.taints[0].effect, wish.taints[0].value)
        )
        self.assertEqual(("edge", "DE"), (wish.subject.org_unit, wish.subject.country))
        self.assertEqual(["host", "web", "ssh"], [container.name for container in wish.containers])
        self.assertEqual((ForwardTarget(1, "h", 2), ForwardTarget(2, "fe80::1", 3)), wish.forward)

    def test_reserved(self) -> None:
        """Domains of Kubernetes and of this project are reserved, wherever the dots are; others are not."""
        for key in (
            "kubernetes.io/a",
            "node.kubernetes.io/a",
            "k8s.io/a",
            "x.k8s.io/a",
            "arhat.dev/a",
            "A.Arhat.Dev/a",
        ):
            self.assertTrue(is_reserved(key), key)
        for key in ("a", "kubernetes.io", "mykubernetes.io/a", "example.com/kubernetes.io"):
            self.assertFalse(is_reserved(key), key)

    def test_problems(self) -> None:
        """Each bad value is left out and told, with the place where it stands."""
        table: list[tuple[str, dict[str, Any]]] = [
            ("spec.node.labels", {"node": {"labels": {"arhat.dev/role": "x"}}}),
            ("spec.node.labels", {"node": {"labels": {"a b": "x"}}}),
            ("spec.node.labels", {"node": {"labels": {"a": "x" * 64}}}),
            ("spec.node.annotations", {"node": {"annotations": {"k8s.io/a": ""}}}),
            ("spec.node.annotations", {"node": {"annotations": {"a": "x" * 20000}}}),
            (
                "spec.node.taints",
                {"node": {"taints": [{"key": "node.kubernetes.io/not-ready", "effect": "NoExecute"}]}},
            ),
            ("spec.node.taints", {"node": {"taints": [{"key": "a", "effect": "Never"}]}}),
            ("spec.node.cert.country", {"node": {"cert": {"country": "1!"}}}),
            ("spec.node.cert.state", {"node": {"cert": {"state": "a\nb"}}}),
            ("spec.pod.containers", {"pod": {"containers": [{"name": "host", "log": {"file": "/a"}}]}}),
            ("spec.pod.containers", {"pod": {"containers": [{"name": "a", "log": {"file": "a"}}]}}),
            ("spec.pod.containers", {"pod": {"containers": [{"name": "a", "log": {"unit": "--all"}}]}}),
            ("spec.pod.containers", {"pod": {"containers": [{"name": "a", "log": {}}]}}),
            ("spec.pod.forward", {"pod": {"forward": [{"port": 0, "target": "h:1"}]}}),
            ("spec.pod.forward", {"pod": {"forward": [{"port": True, "target": "h:1"}]}}),
            ("spec.pod.forward", {"pod": {"forward": [{"port": 1, "target": "h:70000"}]}}),
            ("spec.pod.forward", {"pod": {"forward": [{"port": 1, "target": "fe80::1:2"}]}}),
            ("spec.connectivity.method", {"connectivity": {"method": "mqtt"}}),
        ]
        for place, spec in table:
            wish = read(**spec)
            self.assertEqual(1, len(wish.problems), spec)
            self.assertTrue(wish.problems[0].startswith(place), wish.problems)
            self.assertEqual(read(), read())
            self.assertEqual((1, (), {}), (len(wish.containers), wish.forward + wish.taints, wish.labels))

    def test_nulls(self) -> None:
        """Null is empty, as some API servers keep empty strings."""
        wish = read(
            connectivity={"method": None},
            node={
                "labels": {"a": None},
                "annotations": {"b": None},
                "taints": [{"key": "c", "effect": "NoSchedule", "value": None}],
                "cert": {"orgUnit": None, "country": None, "state": None, "locality": None},
            },
            pod={"containers": [{"name": "d", "log": {"file": "/d", "unit": None}}]},
        )
        self.assertEqual((), wish.problems)
        self.assertEqual(({"a": ""}, {"b": ""}), (wish.labels, wish.annotations))
        self.assertEqual(("", VirtualContainer("d", file="/d")), (wish.taints[0].value, wish.containers[1]))

    def test_name(self) -> None:
        """A name that cannot be a DNS label is told."""
        self.assertEqual(1, len(wish_of({"metadata": {"name": "a.b", "namespace": "edge"}}).problems))

    def test_device_labels(self) -> None:
        """A device's own labels pass the same sieve, and are not too many."""
        labels = {"site": "x", "kubernetes.io/os": "linux", "bad key": "x"}
        self.assertEqual({"site": "x"}, usable_labels(labels, 10))
        self.assertEqual(3, len(usable_labels({f"l{number}": "x" for number in range(9)}, 3)))

    @settings(max_examples=150, deadline=None)
    @given(JSON)
    def test_anything(self, spec: Any) -> None:
        """Whatever stands in a spec, it is read, with the host container first."""
        wish = wish_of({"metadata": {"name": "dev", "namespace": "edge"}, "spec": spec})
        self.assertEqual("host", wish.containers[0].name)
