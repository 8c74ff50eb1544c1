"""What a device says of itself is made harmless."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from aranya.device.facts import allowed_labels, reaches, sanitised
from tether.verbs.requests import DeviceFacts, ForwardRule

LOOPBACK = (ForwardRule("127.0.0.0/8", 1, 65535), ForwardRule("::1/128", 1, 65535))


class FactsTests(SynchronousTestCase):
    """What a device says is made harmless."""

    @given(st.text(max_size=600), st.text(max_size=600))
    @settings(max_examples=60, deadline=None)
    def test_strings(self, one: str, other: str) -> None:
        """Strings become printable and short, label values get their syntax."""
        facts = sanitised(DeviceFacts(os=one, arch=other, kernel=one, hostname=other, labels={one: other}))
        for text in (facts.kernel, facts.hostname):
            self.assertTrue(text.isprintable())
            self.assertLessEqual(len(text), 200)
        for text in (facts.os, facts.arch, *facts.labels.values()):
            self.assertRegex(text, r"\A([A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?)?\Z")

    def test_labels(self) -> None:
        """Labels in domains with a meaning are dropped, the device's own stay."""
        told = {
            "site": "graz",
            "example.com/line": "3",
            "kubernetes.io/os": "linux",
            "node-role.kubernetes.io/master": "",
            "k8s.io/x": "y",
            "arhat.dev/name": "other",
            "x.arhat.dev/name": "other",
            "bad key": "x",
            "-bad": "x",
            "value": "not a value",
            "/empty": "x",
        }
        self.assertEqual(allowed_labels(told), {"site": "graz", "example.com/line": "3"})

    def test_many_labels(self) -> None:
        """The number of labels is bounded."""
        self.assertEqual(len(allowed_labels({f"k{number}": "v" for number in range(1000)})), 32)

    def test_verbs(self) -> None:
        """Unknown verbs are dropped."""
        facts = sanitised(DeviceFacts(allow=frozenset({"exec", "fly"})))
        self.assertEqual(facts.allow, {"exec"})

    def test_reach(self) -> None:
        """A forward reaches what a rule covers: loopback, address, network, name, and only its ports."""
        self.assertTrue(reaches(LOOPBACK, "", 80))
        self.assertTrue(reaches(LOOPBACK, "127.0.0.1", 80))
        self.assertFalse(reaches(LOOPBACK, "192.168.7.50", 502))
        rules = (ForwardRule("192.168.7.0/24", 500, 510), ForwardRule("plc.local", 502, 502))
        self.assertTrue(reaches(rules, "192.168.7.50", 502))
        self.assertFalse(reaches(rules, "192.168.7.50", 80))
        self.assertTrue(reaches(rules, "PLC.local", 502))
        self.assertFalse(reaches(rules, "", 502))
        self.assertFalse(reaches((), "", 80))
        self.assertTrue(reaches((ForwardRule("localhost", 80, 80),), "", 80))

    def test_reach_of_localhost(self) -> None:
        """``localhost`` is the loopback, and nothing else."""
        self.assertTrue(reaches(LOOPBACK, "LocalHost", 80))
        self.assertFalse(reaches((ForwardRule("192.168.7.0/24", 80, 80),), "localhost", 80))

    def test_reach_of_names(self) -> None:
        """A name that a network might cover is left to the device, which can resolve it."""
        rules = (ForwardRule("192.168.7.0/24", 502, 502), ForwardRule("plc.local", 80, 80))
        self.assertTrue(reaches(rules, "meter.local", 502))
        self.assertFalse(reaches(rules, "meter.local", 80))
