"""``kubectl attach``: the device's one long-lived shell."""

from __future__ import annotations

from test.cluster.kubectl import Kubectl
from test.cluster.terminal import Terminal
from test.cluster.test_exec import DEVICE, ExecCase


class AttachTests(ExecCase):
    """Attach joins a shell that was there before and stays after."""

    def attach(self, client: Kubectl) -> Terminal:
        """Sit down before the shell."""
        terminal = Terminal(client.command("attach", "-it", DEVICE), client.environment(), 90, 25)
        self.addCleanup(terminal.close)
        # kubectl makes the terminal raw only when it is through; until then keys are our own echo.
        terminal.type(b"echo at''tached\n")
        terminal.expect(b"attached")
        return terminal

    def test_same_shell_again(self) -> None:
        """Detach and attach find the same shell, with its variables and its scroll-back."""
        for number, client in enumerate(self.clients):
            first = self.attach(client)
            first.type(b"KEPT=%d; echo pi''d=$$.\n" % (4200 + number))
            first.expect(b"pid=")
            pid = first.expect(b".")
            first.type(b"\x10\x11")
            self.assertEqual(first.wait(), 0)
            second = self.attach(client)
            second.expect(b"pid=" + pid)
            second.type(b"echo ag''ain $KEPT.$$.\n")
            second.expect(b"again %d.%s." % (4200 + number, pid))
            second.type(b"\x10\x11")
            self.assertEqual(second.wait(), 0)

    def test_two_at_once(self) -> None:
        """Two see the same shell, and either may type."""
        client = self.clients[-1]
        one, two = self.attach(client), self.attach(client)
        one.type(b"echo from-o''ne\n")
        one.expect(b"from-one")
        two.expect(b"from-one")
        two.type(b"echo from-t''wo\n")
        one.expect(b"from-two")
        for terminal in (one, two):
            terminal.type(b"\x10\x11")
            terminal.wait()

    def test_exit_ends_it_and_the_next_is_new(self) -> None:
        """``exit`` ends every attachment with success, and the next attach has a new shell."""
        client = self.clients[-1]
        one = self.attach(client)
        one.type(b"exit\n")
        self.assertEqual(one.wait(), 0)
        two = self.attach(client)
        two.type(b"echo ne''w\n")
        two.expect(b"new")
        two.type(b"\x10\x11")
        two.wait()
