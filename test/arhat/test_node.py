"""Tests of ``arhat.node``."""

from __future__ import annotations

from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from arhat.node import gather


class GatherTests(SynchronousTestCase):
    """Facts are read where the host keeps them."""

    def host(self) -> Path:
        """Make a host's files in a fresh folder."""
        root = Path(self.mktemp())
        for name, text in {
            "etc/machine-id": "0123456789abcdef\n",
            "etc/os-release": 'ID=debian\nPRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\n',
            "proc/sys/kernel/random/boot_id": "11111111-2222-3333-4444-555555555555\n",
        }.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(text)
        return root

    def test_reads_the_host(self) -> None:
        """The ids and the image are those of the host's own files."""
        facts = gather(frozenset({"exec"}), (), {"site": "roof"}, self.host())
        self.assertEqual(facts.machine_id, "0123456789abcdef")
        self.assertEqual(facts.os_image, "Debian GNU/Linux 12 (bookworm)")
        self.assertEqual(facts.boot_id, "11111111-2222-3333-4444-555555555555")
        self.assertEqual(facts.allow, frozenset({"exec"}))
        self.assertEqual(facts.labels, {"site": "roof"})
        self.assertGreater(facts.memory_bytes, 0)
        self.assertGreater(facts.storage_bytes, 0)

    def test_absent_files(self) -> None:
        """A host without those files has empty facts, not an error."""
        root = Path(self.mktemp())
        root.mkdir()
        facts = gather(frozenset(), (), {}, root)
        self.assertEqual((facts.machine_id, facts.os_image, facts.boot_id), ("", "", ""))
