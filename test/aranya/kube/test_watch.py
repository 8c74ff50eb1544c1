"""A watch's bytes become the same events however they are cut."""

from __future__ import annotations

from itertools import pairwise

import orjson
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from aranya.interfaces import Change
from aranya.kube.errors import Gone, Unreachable
from aranya.kube.watch import WatchDecoder


def line(kind: str, version: int = 1, name: str = "x") -> bytes:
    """One event as the server writes it."""
    found = {"metadata": {"resourceVersion": str(version), "name": name}}
    return orjson.dumps({"type": kind, "object": found}) + b"\n"


GONE = orjson.dumps({"type": "ERROR", "object": {"kind": "Status", "code": 410, "reason": "Expired"}}) + b"\n"


class WatchDecoderTests(SynchronousTestCase):
    """Bytes in, events out."""

    @settings(max_examples=100, deadline=None)
    @given(
        st.lists(st.sampled_from(["ADDED", "MODIFIED", "DELETED", "BOOKMARK"]), max_size=6),
        st.lists(st.integers(0, 500), max_size=8),
    )
    def test_any_cut(self, kinds: list[str], cuts: list[int]) -> None:
        """The events do not depend on how the bytes arrive."""
        whole = b"".join(line(kind, number + 1) for number, kind in enumerate(kinds))
        places = sorted({0, len(whole), *(cut for cut in cuts if cut < len(whole))})
        decoder = WatchDecoder()
        heard = []
        for begin, end in pairwise(places):
            events, error = decoder.receive(whole[begin:end])
            self.assertIsNone(error)
            heard += events
        self.assertEqual([change.value for change, _ in heard], kinds)
        versions = [found["metadata"]["resourceVersion"] for _, found in heard]
        self.assertEqual(versions, [str(number + 1) for number in range(len(kinds))])
        self.assertEqual(decoder.bookmarked, "BOOKMARK" in kinds)

    @settings(max_examples=100, deadline=None)
    @given(st.binary(max_size=200))
    def test_nonsense_never_raises(self, data: bytes) -> None:
        """Whatever a proxy sends is events or one plain error."""
        events, error = WatchDecoder().receive(data + b"\n")
        self.assertTrue(error is None or isinstance(error, Unreachable))
        self.assertEqual(events, [])

    def test_managed_fields(self) -> None:
        """Who set which field is left out."""
        found = {"metadata": {"name": "a", "resourceVersion": "1", "managedFields": [{"manager": "x"}]}}
        [(_, told)], _ = WatchDecoder().receive(orjson.dumps({"type": "ADDED", "object": found}) + b"\n")
        self.assertEqual({"name": "a", "resourceVersion": "1"}, told["metadata"])

    def test_gone_after_events(self) -> None:
        """The events before an error are told with it."""
        events, error = WatchDecoder().receive(line("ADDED") + GONE + line("ADDED"))
        self.assertEqual([change for change, _ in events], [Change.ADDED])
        self.assertIsInstance(error, Gone)

    def test_a_line_has_a_limit(self) -> None:
        """A line that does not end is given up before it fills the memory."""
        decoder = WatchDecoder(limit=100)
        for _ in range(10):
            self.assertEqual(decoder.receive(b"x" * 10), ([], None))
        _, error = decoder.receive(b"x")
        self.assertIsInstance(error, Unreachable)
        _, error = WatchDecoder(limit=100).receive(b"y" * 101 + b"\n")
        self.assertIsInstance(error, Unreachable)

    def test_an_event_says_where_to_resume(self) -> None:
        """An event without a version is nonsense: after it the watch could not be resumed."""
        _, error = WatchDecoder().receive(b'{"type":"ADDED","object":{"metadata":{"name":"x"}}}\n')
        self.assertIsInstance(error, Unreachable)
