"""Tests for ``tether.wire.credit``."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from tether.wire.credit import ACKNOWLEDGE, SHARED, Ledger


class LedgerTests(SynchronousTestCase):
    """When a grant is worth a frame."""

    def setUp(self) -> None:
        self.ledger = Ledger(1000_000)

    def test_half(self) -> None:
        """Half a window is worth a frame, less is not."""
        self.ledger.received = 600_000
        self.assertFalse(self.ledger.hand_on(499_999))
        self.assertTrue(self.ledger.hand_on(1))
        self.assertEqual(self.ledger.grant(), (500_000, 1_500_000))

    def test_shared(self) -> None:
        """On a shared link a fraction of what may be on its way is worth a frame."""
        self.ledger.received = 200_000
        self.assertFalse(self.ledger.hand_on(ACKNOWLEDGE - 1, True))
        self.assertFalse(self.ledger.hand_on(1, False))
        self.assertTrue(self.ledger.is_due(True))
        self.assertLess(2 * ACKNOWLEDGE, SHARED + 1)

    def test_standing_still(self) -> None:
        """A peer that used up all is helped along with little."""
        self.ledger.received = 1_000_000
        self.assertFalse(self.ledger.hand_on(4095))
        self.assertTrue(self.ledger.hand_on(1))

    def test_limit_never_falls(self) -> None:
        """A grant never takes back what was granted."""
        self.ledger.received = 10
        self.ledger.hand_on(10)
        self.assertEqual(self.ledger.grant(), (10, 1_000_010))
        self.ledger.window = 5
        self.assertEqual(self.ledger.grant(), (10, 1_000_010))

    def test_pieces(self) -> None:
        """Many tiny pieces are worth a frame."""
        self.ledger.received = 500
        self.assertEqual([self.ledger.hand_on(1) for _ in range(128)], [False] * 127 + [True])
