"""``kubectl attach``: the device's one long-lived shell."""

from __future__ import annotations

from test.cluster.daemons import wait_until
from test.cluster.kubectl import Kubectl
from test.cluster.session import SOON
from test.cluster.terminal import Terminal
from test.cluster.test_exec import DEVICE, ExecCase
from test.cluster.test_takeover import TakeoverCase

DETACH = b"\x10\x11"
RESPAWNED = b"[arhat: the shell had exited; this is a new one]"


def pid_of(terminal: Terminal) -> bytes:
    """The process id of the shell."""
    terminal.type(b"echo pi''d=$$.\n")
    terminal.expect(b"pid=")
    return terminal.expect(b".")


def size_of(terminal: Terminal) -> tuple[int, int]:
    """Width and height of the shell's terminal."""
    terminal.type(b"echo si''ze $(stty size).\n")
    terminal.expect(b"size ")
    height, width = terminal.expect(b".").split()
    return int(width), int(height)


class AttachTests(ExecCase):
    """Attach joins a shell that was there before and stays after."""

    def sit_down(self, client: Kubectl, width: int = 90, height: int = 25) -> Terminal:
        """Attach, and type nothing."""
        words = client.command("attach", "-it", DEVICE, "-c", "host")
        terminal = Terminal(words, client.environment(), width, height)
        self.addCleanup(terminal.close)
        return terminal

    def attach(self, client: Kubectl, width: int = 90, height: int = 25) -> Terminal:
        """Attach and see the shell answer."""
        terminal = self.sit_down(client, width, height)
        # kubectl makes the terminal raw only when it is through; until then keys are our own echo.
        terminal.type(b"echo at''tached\n")
        terminal.expect(b"attached")
        return terminal

    def detach(self, *terminals: Terminal) -> None:
        """Leave by the detach keys, which is a success."""
        for terminal in terminals:
            terminal.type(DETACH)
            self.assertEqual(terminal.wait(), 0, terminal.screen)

    def assert_size(self, terminal: Terminal, width: int, height: int) -> None:
        """The shell's terminal has this size, or soon will."""
        wait_until(f"the terminal is {width} by {height}", lambda: size_of(terminal) == (width, height), SOON)

    def test_same_shell_again(self) -> None:
        """Detach and attach find the same shell, with its variables and its scroll-back."""
        for number, client in enumerate(self.clients):
            first = self.attach(client)
            first.type(b"KEPT=%d; echo pi''d=$$.\n" % (4200 + number))
            first.expect(b"pid=")
            pid = first.expect(b".")
            self.detach(first)
            second = self.attach(client)
            second.expect(b"pid=" + pid)
            second.type(b"echo ag''ain $KEPT.$$.\n")
            second.expect(b"again %d.%s." % (4200 + number, pid))
            self.detach(second)

    def test_two_at_once(self) -> None:
        """An old kubectl and a new one see the same shell, and either may type."""
        one, two = self.attach(self.clients[0]), self.attach(self.clients[-1])
        one.type(b"echo from-o''ne\n")
        one.expect(b"from-one")
        two.expect(b"from-one")
        two.type(b"echo from-t''wo\n")
        one.expect(b"from-two")
        two.expect(b"from-two")
        self.detach(one, two)

    def test_smallest_window(self) -> None:
        """The terminal is as wide and as high as the smallest window of those who are attached."""
        one = self.attach(self.clients[0], 90, 25)
        self.assert_size(one, 90, 25)
        two = self.attach(self.clients[-1], 120, 20)
        self.assert_size(one, 90, 20)
        two.resize(70, 40)
        self.assert_size(two, 70, 25)
        one.resize(60, 50)
        self.assert_size(two, 60, 40)
        self.detach(one)
        self.assert_size(two, 70, 40)
        self.detach(two)

    def test_scroll_back(self) -> None:
        """Who attaches is shown what was there before, up to a limit, without a key being typed."""
        first = self.attach(self.clients[-1])
        first.type(b"seq 1000 100000; echo sh''own\n")
        first.expect(b"shown", 30)
        self.detach(first)
        for client in self.clients:
            second = self.sit_down(client)
            replayed = second.expect(b"\r\n100000\r\nshown")
            self.assertIn(b"\r\n80000\r\n80001\r\n", replayed)
            self.assertNotIn(b"\r\n1000\r\n", replayed)
            self.assertLess(len(replayed), 300_000)
            self.detach(second)

    def test_one_leaves(self) -> None:
        """A kubectl that is killed leaves the shell and the others as they are."""
        for leaving, staying in (self.clients[:1] + self.clients[-1:], self.clients[-1:] + self.clients[:1]):
            one, two = self.attach(leaving, 60, 20), self.attach(staying)
            pid = pid_of(two)
            one.close()
            self.assert_size(two, 90, 25)
            self.assertEqual(pid_of(two), pid)
            self.detach(two)

    def test_exit_ends_it_and_the_next_is_new(self) -> None:
        """``exit`` ends every attachment with success; the next attach has a new shell, and is told so."""
        for client in self.clients:
            one, two = self.attach(client), self.attach(self.clients[-1])
            one.type(b"GONE=4711; exit\n")
            self.assertEqual((one.wait(), two.wait()), (0, 0))
            three = self.sit_down(client)
            three.expect(RESPAWNED)
            three.type(b"echo ne''w $GONE.\n")
            three.expect(b"new .")
            self.detach(three)

    def test_killed_shell(self) -> None:
        """A shell that is killed is replaced, too."""
        one = self.attach(self.clients[0])
        pid = pid_of(one)
        self.assert_code(self.exec(self.clients[-1], "kill", "-9", pid.decode()), 0)
        self.assertEqual(one.wait(), 0)
        two = self.sit_down(self.clients[-1])
        two.expect(RESPAWNED)
        self.assertNotEqual(pid_of(two), pid)
        self.detach(two)


class FarAttachTests(TakeoverCase):
    """The shell and the link."""

    def test_cut(self) -> None:
        """Who is attached stays so over a cut; what was typed and shown meanwhile is not lost."""
        one, two = (self.shell(client, "attach", "-it", self.device) for client in self.clients)
        pid = pid_of(one)
        two.expect(b"pid=" + pid)
        two.type(b"echo be''gun; sleep 0.5; echo mean''while\n")
        two.expect(b"begun")
        with self.outage():
            one.type(b"echo ty''ped $$.\n")
        for terminal in (one, two):
            terminal.expect(b"meanwhile")
            terminal.expect(b"typed %s." % pid)
        for terminal in (one, two):
            terminal.type(DETACH)
            self.assertEqual(terminal.wait(), 0)

    def test_standby(self) -> None:
        """A second agent comes and goes: who is attached does not notice, who comes finds the same shell."""
        one = self.shell(self.clients[0], "attach", "-it", self.device)
        pid = pid_of(one)
        self.stand_by()
        self.assertEqual(pid_of(one), pid)
        two = self.shell(self.clients[-1], "attach", "-it", self.device)
        self.assertEqual(pid_of(two), pid)
        self.assertEqual(self.younger.terminate(), 0)
        for terminal in (one, two):
            self.assertEqual(pid_of(terminal), pid)
            terminal.type(DETACH)
            self.assertEqual(terminal.wait(), 0)

    def test_next_agent(self) -> None:
        """The shell goes with its agent: whoever attaches after a takeover has that of the next one."""
        one = self.shell(self.clients[0], "attach", "-it", self.device)
        pid = pid_of(one)
        self.stand_by()
        self.assert_code(self.ask(self.clients[-1], "kill", str(self.agent.pid)), 0)
        two = self.shell(self.clients[-1], "attach", "-it", self.device)
        self.assertNotEqual(pid_of(two), pid)
        self.assertEqual(pid_of(one), pid)
        one.type(b"exit\n")
        self.assertEqual(one.wait(), 0)
        self.assertEqual(self.agent.wait(), 0)
        two.type(DETACH)
        self.assertEqual(two.wait(), 0)
