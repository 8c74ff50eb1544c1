"""What ``aranya.streaming.carrier`` does when the connection ends beneath it."""

from __future__ import annotations

from twisted.internet.interfaces import IPushProducer
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from aranya.streaming.carrier import Carrier


class Silent:
    """Hears of its connection and does nothing."""

    def connection_made(self) -> None:
        """Nothing."""

    def connection_ended(self, reason: str) -> None:
        """Nothing."""

    def connection_gone(self) -> None:
        """Nothing."""

    def connection_idle(self) -> None:
        """Nothing."""


class OverTLS(StringTransport):
    """A transport as TLS is one: what closes is the transport beneath, and nobody says so."""

    def __init__(self) -> None:
        super().__init__()
        self.transport = StringTransport()
        self.was_aborted = False

    def abortConnection(self) -> None:
        """The rude close."""
        self.was_aborted = True


@implementer(IPushProducer)
class Source:
    """Remembers whether it may produce."""

    def __init__(self) -> None:
        self.runs = True

    def pauseProducing(self) -> None:
        """Not now."""
        self.runs = False

    def resumeProducing(self) -> None:
        """Go on."""
        self.runs = True

    def stopProducing(self) -> None:
        """Never again."""
        self.runs = False


class HangUpTests(SynchronousTestCase):
    """A client that ends TLS while it has too much to read is gone."""

    def setUp(self) -> None:
        """A connection whose client does not keep up."""
        self.wire = OverTLS()
        self.carrier = Carrier(Silent(), Clock())
        self.carrier.makeConnection(self.wire)
        self.source = Source()
        self.carrier.add_producer(self.source)
        self.carrier.pauseProducing()

    def test_client_ended_tls(self) -> None:
        """The connection is dropped when it drains, and nothing more is produced into the void."""
        self.wire.transport.disconnecting = True
        self.carrier.resumeProducing()
        self.assertTrue(self.wire.was_aborted)
        self.assertFalse(self.source.runs)

    def test_client_reads_on(self) -> None:
        """A client that only was slow gets the rest."""
        self.carrier.resumeProducing()
        self.assertFalse(self.wire.was_aborted)
        self.assertTrue(self.source.runs)
