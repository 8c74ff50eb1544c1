"""What probes and Prometheus are answered."""

from __future__ import annotations

from collections.abc import Mapping

from twisted.internet.address import IPv4Address
from twisted.internet.testing import StringTransport
from twisted.trial.unittest import SynchronousTestCase
from twisted.web.server import Site

from aranya.health import GAUGES, health_site


def ask(site: Site, path: str, method: str = "GET") -> tuple[int, str, str]:
    """Code, head and body of the answer to one request."""
    protocol = site.buildProtocol(IPv4Address("TCP", "127.0.0.1", 1))
    assert protocol is not None
    transport = StringTransport()
    protocol.makeConnection(transport)
    protocol.dataReceived(f"{method} {path} HTTP/1.0\r\n\r\n".encode())
    head, _, body = transport.value().partition(b"\r\n\r\n")
    return int(head.split()[1]), head.decode().lower(), body.decode()


class HealthTests(SynchronousTestCase):
    """The three pages."""

    def setUp(self) -> None:
        self.missing = ""
        self.numbers: Mapping[str, float] = dict.fromkeys(GAUGES, 0.0)
        self.site = health_site(lambda: self.missing, lambda: self.numbers)

    def test_alive(self) -> None:
        """It lives as long as it answers."""
        self.missing = "not leading"
        self.assertEqual((200, "ok"), ask(self.site, "/healthz")[::2])

    def test_ready(self) -> None:
        """It is ready when nothing is missing, and says what is."""
        self.assertEqual((200, "ok"), ask(self.site, "/readyz")[::2])
        self.missing = "not leading"
        self.assertEqual((503, "not leading\n"), ask(self.site, "/readyz")[::2])

    def test_metrics(self) -> None:
        """The numbers are those of the moment of the scrape, each with its help."""
        self.numbers = {**self.numbers, "aranya_devices_connected": 7.0}
        code, head, body = ask(self.site, "/metrics")
        self.assertEqual(200, code)
        self.assertIn("content-type: text/plain; version=", head)
        for name, purpose in GAUGES.items():
            self.assertIn(f"# HELP {name} {purpose}", body)
        self.assertIn("aranya_devices_connected 7.0", body)
        self.assertIn("process_resident_memory_bytes", body)

    def test_nothing_else(self) -> None:
        """There is no other page, and nothing can be changed."""
        self.assertEqual(404, ask(self.site, "/")[0])
        self.assertEqual(404, ask(self.site, "/debug")[0])
        self.assertEqual(405, ask(self.site, "/healthz", "POST")[0])
