"""Keys, times and conditions."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

from twisted.trial.unittest import SynchronousTestCase

from aranya.kube.errors import AlreadyExists, ApiError, Forbidden, Gone, ServerError, error_of
from aranya.kube.objects import (
    EDGEDEVICES,
    NODES,
    key_of,
    micro_time,
    new_object,
    owner_reference,
    parse_time,
    rfc3339,
)

NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)


class TimesTests(SynchronousTestCase):
    """Times on the wire."""

    def test_micro_time_has_six_digits(self) -> None:
        """Also when the microseconds are zero, and in UTC."""
        self.assertEqual(micro_time(NOON), "2026-01-02T12:00:00.000000Z")
        east = NOON.astimezone(timezone(timedelta(hours=8)))
        self.assertEqual(micro_time(east), micro_time(NOON))
        self.assertEqual(rfc3339(east), "2026-01-02T12:00:00Z")

    def test_parse(self) -> None:
        """What was written is read; what is no time is ``None``."""
        moment = NOON.replace(microsecond=120)
        self.assertEqual(parse_time(micro_time(moment)), moment)
        self.assertEqual(parse_time(rfc3339(NOON)), NOON)
        for nothing in (None, "", "yesterday", 3):
            self.assertIsNone(parse_time(nothing))


class ObjectsTests(SynchronousTestCase):
    """Objects and references to them."""

    def test_keys(self) -> None:
        """A key prints as people write it."""
        self.assertEqual(str(key_of({"metadata": {"namespace": "a", "name": "b"}})), "a/b")
        self.assertEqual(str(key_of({"metadata": {"name": "b"}})), "b")

    def test_owner(self) -> None:
        """An owner is named by kind, name and UID."""
        made = new_object(EDGEDEVICES, {"name": "d", "uid": "u"})
        reference = owner_reference(made)
        self.assertEqual(
            reference,
            {"apiVersion": "aranya.arhat.dev/v1alpha1", "kind": "EdgeDevice", "name": "d", "uid": "u"},
        )

    def test_paths(self) -> None:
        """Cluster-wide resources have no namespace in their path."""
        self.assertEqual(NODES.path("ns", "n", "status"), "/api/v1/nodes/n/status")
        self.assertEqual(
            EDGEDEVICES.path("ns", "d"), "/apis/aranya.arhat.dev/v1alpha1/namespaces/ns/edgedevices/d"
        )


class ErrorsTests(SynchronousTestCase):
    """Status to exception."""

    def test_by_code_and_reason(self) -> None:
        """The code chooses the type; the reason refines it."""
        self.assertIsInstance(error_of(409, {"reason": "AlreadyExists"}), AlreadyExists)
        self.assertIsInstance(error_of(400, {"reason": "Expired"}), Gone)
        self.assertIsInstance(error_of(503, None), ServerError)
        self.assertIs(type(error_of(418, {})), ApiError)

    def test_one_line(self) -> None:
        """A message of several lines becomes one."""
        self.assertEqual(str(error_of(500, {"message": "a\n  b"})), "a b")

    def test_terminating_namespace(self) -> None:
        """403 in a dying namespace says so, by cause or by words."""
        by_cause = {"reason": "Forbidden", "details": {"causes": [{"reason": "NamespaceTerminating"}]}}
        by_words = {"message": 'pods "x" is forbidden: ... because it is being terminated'}
        for status, expected in ((by_cause, True), (by_words, True), ({"message": "no"}, False)):
            error = error_of(403, status)
            assert isinstance(error, Forbidden)
            self.assertEqual(error.is_terminating, expected)
