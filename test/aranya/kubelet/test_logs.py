"""Tests of ``aranya.kubelet.logs``."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from aranya.kubelet.logs import logs_request, unix_nanos
from aranya.kubelet.visit import Refusal, pairs_of
from test.support.door import House
from tether.errors import LinkLost, ResetCode
from tether.verbs.requests import Logs, Succeeded

UNDECODABLE = (400, '{"message": "Unable to decode query."}')
INVALID = (422, '{"message": "Invalid request."}')


class QueryTests(SynchronousTestCase):
    """What a query for logs asks."""

    def test_nothing(self) -> None:
        """Nothing asked is nothing limited."""
        self.assertEqual(logs_request([]), Logs())

    def test_all(self) -> None:
        """Every option reaches the device."""
        query = b"follow=true&limitBytes=5&previous=true&sinceSeconds=7&tailLines=0&timestamps=true"
        self.assertEqual(
            logs_request(pairs_of(query)),
            Logs(follow=True, previous=True, timestamps=True, tail_lines=0, since_seconds=7, limit_bytes=5),
        )

    def test_truth(self) -> None:
        """A flag that is there is true, unless it says ``0`` or ``false``."""
        for text, truth in (
            (b"follow", True),
            (b"follow=", True),
            (b"follow=1", True),
            (b"follow=no", True),
            (b"follow=0", False),
            (b"follow=FALSE", False),
            (b"follow=false&follow=true", False),
            (b"", False),
        ):
            self.assertEqual(logs_request(pairs_of(text)).follow, truth, text)

    def test_tail(self) -> None:
        """The old name of ``tailLines`` wins over it; ``all`` is no limit."""
        for text, lines in (
            (b"tail=3", 3),
            (b"tail=3&tailLines=4", 3),
            (b"tail=all&tailLines=4", None),
            (b"tail=&tailLines=4", 4),
        ):
            self.assertEqual(logs_request(pairs_of(text)).tail_lines, lines, text)

    def test_refused(self) -> None:
        """What cannot be read is 400, what makes no sense 422."""
        for text, (code, message) in (
            (b"tailLines=x", UNDECODABLE),
            (b"tailLines=", UNDECODABLE),
            (b"tailLines=1.5", UNDECODABLE),
            (b"limitBytes=9223372036854775808", UNDECODABLE),
            (b"sinceSeconds=%d9%a1", UNDECODABLE),
            (b"sinceTime=yesterday", UNDECODABLE),
            (b"sinceTime=2024-02-30T00:00:00Z", UNDECODABLE),
            (b"sinceTime=2024-02-03T00:00:00", UNDECODABLE),
            (b"stream=Stdout", UNDECODABLE),
            (b"tailLines=-1", INVALID),
            (b"limitBytes=0", INVALID),
            (b"sinceSeconds=0", INVALID),
            (b"sinceSeconds=1&sinceTime=2024-01-02T03:04:05Z", INVALID),
        ):
            refusal = self.assertRaises(Refusal, logs_request, pairs_of(text))
            self.assertEqual((refusal.code, refusal.text), (code, message), text)

    def test_refusals_are_new(self) -> None:
        """A refusal that is raised keeps its frames alive, so each is another one."""
        first, second = (self.assertRaises(Refusal, logs_request, pairs_of(b"tailLines=x")) for _ in "12")
        self.assertIsNot(first, second)

    def test_time(self) -> None:
        """RFC 3339 with fractions and offsets, to the nanosecond."""
        for text, nanos in (
            (b"1970-01-01T00:00:00Z", 0),
            (b"2024-01-02T03:04:05Z", 1704164645 * 10**9),
            (b"2024-01-02T03:04:05.123456789Z", 1704164645123456789),
            (b"2024-01-02T05:04:05.5+02:00", 1704164645500000000),
            (b"2024-01-01T21:34:05-05:30", 1704164645 * 10**9),
            (b"", None),
            (b"null", None),
        ):
            self.assertEqual(unix_nanos(text), nanos, text)

    @given(st.binary(max_size=60))
    @settings(max_examples=200, deadline=None)
    def test_any_query(self, query: bytes) -> None:
        """Whatever is asked is understood or refused."""
        try:
            logs_request(pairs_of(b"sinceTime=" + query))
        except Refusal as refusal:
            self.assertIn(refusal.code, (400, 422))


class StreamTests(SynchronousTestCase):
    """A log as an HTTP answer."""

    def setUp(self) -> None:
        self.house = House()

    def test_sources(self) -> None:
        """Each container has its own source."""
        for container, expected in (
            ("host", Logs(tail_lines=5)),
            ("nginx", Logs(file="/var/log/nginx/access.log", tail_lines=5)),
            ("ssh", Logs(unit="ssh.service", tail_lines=5)),
        ):
            self.house.ask("GET", f"/containerLogs/edge/dev/{container}?tailLines=5")
            self.assertEqual(self.house.device.session.request, expected)

    def test_whole(self) -> None:
        """A log is chunked text, and the connection stays for the next one."""
        connection = self.house.ask("GET", "/containerLogs/edge/dev/host")
        self.assertEqual(self.house.served.sessions, 1)
        self.house.device.session.tell(b"one\n")
        self.house.device.session.tell(b"two\n")
        self.house.device.session.answer(Succeeded())
        answer = connection.answer
        self.assertEqual((answer.code, answer.body), (200, b"one\ntwo\n"))
        self.assertEqual(answer.headers["transfer-encoding"], "chunked")
        self.assertTrue(connection.wire.connected)
        self.assertEqual(self.house.served.sessions, 0)

    def test_silent_follow(self) -> None:
        """A follower of a silent log has the head after a second, and each line as it comes."""
        connection = self.house.ask("GET", "/containerLogs/edge/dev/host?follow=true")
        self.assertEqual(connection.take(), b"")
        self.house.clock.advance(1)
        head = connection.take()
        self.assertTrue(head.startswith(b"HTTP/1.1 200 ") and head.endswith(b"\r\n\r\n"), head)
        self.house.device.session.tell(b"line\n")
        self.assertEqual(connection.take(), b"5\r\nline\n\r\n")

    def test_refusals(self) -> None:
        """Everything that can be refused is a 400 whose text a person sees."""
        for path, text in (
            ("edge/other/host", b'pod "other" does not exist'),
            ("foreign/dev/host", b'pod "dev" does not exist'),
            ("edge/dev/other", b'container "other" not found in pod "dev"'),
        ):
            answer = self.house.get(f"/containerLogs/{path}")
            self.assertEqual((answer.code, answer.body), (400, text))
        self.house.device.failure = LinkLost("closed")
        answer = self.house.get("/containerLogs/edge/dev/host")
        self.assertEqual((answer.code, answer.body), (400, b"device dev went offline: closed"))
        self.house.device.forbidden.add("logs")
        answer = self.house.get("/containerLogs/edge/dev/host")
        self.assertEqual(
            (answer.code, answer.body), (400, b"device dev refused: its owner does not allow logs")
        )
        self.house.devices.here.clear()
        answer = self.house.get("/containerLogs/edge/dev/host")
        self.assertEqual((answer.code, answer.body), (400, b"device dev is offline"))
        self.assertEqual(self.house.served.sessions, 0)

    def test_refused_by_the_device(self) -> None:
        """A device that refuses before the first byte is a 400, too."""
        connection = self.house.ask("GET", "/containerLogs/edge/dev/nginx?follow=true")
        self.house.device.session.break_off(ResetCode.REFUSED, "not in logs.files")
        answer = connection.answer
        self.assertEqual((answer.code, answer.body), (400, b"device dev refused: not in logs.files"))

    def test_cut(self) -> None:
        """A lost link ends the answer properly, with a line that says so."""
        connection = self.house.ask("GET", "/containerLogs/edge/dev/host?follow=true")
        self.house.device.session.tell(b"half")
        self.house.device.session.break_off(ResetCode.LOST, "no sign of life")
        data = connection.take()
        self.assertTrue(data.endswith(b"0\r\n\r\n"))
        self.assertIn(b"\naranya: log stream cut: device dev went offline: no sign of life\n", data)

    def test_client_leaves(self) -> None:
        """A client that leaves ends the log on the device."""
        connection = self.house.ask("GET", "/containerLogs/edge/dev/host?follow=true")
        self.house.device.session.tell(b"line\n")
        connection.leave()
        reset = self.house.device.session.channel.reset_with
        assert reset is not None
        self.assertIs(reset.code, ResetCode.CANCELLED)
        self.house.device.session.tell(b"late\n")
        self.house.device.session.receiver.closed()
        self.assertEqual(self.house.served.sessions, 0)

    def test_slow_client(self) -> None:
        """A client that does not read pauses the log on the device."""
        connection = self.house.ask("GET", "/containerLogs/edge/dev/host?follow=true")
        self.house.device.session.tell(b"line\n")
        connection.wire.producer.pauseProducing()
        self.assertTrue(self.house.device.session.channel.paused)
        connection.wire.producer.resumeProducing()
        self.assertFalse(self.house.device.session.channel.paused)

    def test_endpoint_stops(self) -> None:
        """An endpoint that stops says so in the log."""
        connection = self.house.ask("GET", "/containerLogs/edge/dev/host?follow=true")
        self.house.device.session.tell(b"line\n")
        self.house.served.end_sessions("aranya is stopping")
        self.assertIn(b"aranya: log stream cut: aranya is stopping\n", connection.take())
        self.assertEqual(self.house.served.sessions, 0)
