"""``kubectl exec`` on a real device through a real API server, with every kubectl of the machine."""

from __future__ import annotations

import hashlib
import os
import signal
import sys
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from test.cluster.daemons import kubectls, shared_site, wait_until
from test.cluster.kubectl import Completed, Kubectl
from test.cluster.terminal import Terminal

DEVICE = "my-edge-device"
MIB = 1024 * 1024


def processes_with(mark: str) -> list[int]:
    """The processes of this machine with a word in their command line, zombies left out."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if mark.encode() in words and int(entry.name) != os.getpid():
                found.append(int(entry.name))
    return found


class ExecCase(SynchronousTestCase):
    """Has the shared site and runs each question with each kubectl."""

    def setUp(self) -> None:
        """Have a device online."""
        self.site = shared_site()
        self.clients = kubectls()

    def exec(self, client: Kubectl, *argv: str, input: bytes | None = None) -> Completed:
        """Run a command on the device."""
        flags = ["-i"] if input is not None else []
        return client.run("exec", *flags, DEVICE, "--", *argv, input=input)

    def assert_code(self, done: Completed, code: int) -> None:
        """The exit code is this one; if not, show everything."""
        self.assertEqual(done.code, code, f"{done}\n{self.site.explain()}")


class ResultTests(ExecCase):
    """What a command said and how it ended arrives as it was."""

    def test_host_name(self) -> None:
        """The command runs on the device's host."""
        for client in self.clients:
            done = self.exec(client, "uname", "-n")
            self.assert_code(done, 0)
            self.assertEqual(done.out.decode().strip(), os.uname().nodename)
            self.assertEqual(done.err, b"")

    def test_exit_codes(self) -> None:
        """An exit code is kubectl's exit code."""
        for client in self.clients:
            for code in (0, 1, 3, 42, 255):
                self.assert_code(self.exec(client, "sh", "-c", f"exit {code}"), code)

    def test_signals(self) -> None:
        """Death by signal n is 128+n."""
        for client in self.clients:
            for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV):
                self.assert_code(self.exec(client, "sh", "-c", f"kill -{int(number)} $$"), 128 + number)

    def test_no_such_command(self) -> None:
        """An absent command is 127 with a line on stderr."""
        for client in self.clients:
            done = self.exec(client, "no-such-command-here")
            self.assert_code(done, 127)
            self.assertIn(b"no-such-command-here", done.err)
            self.assertNotIn(b"Traceback", done.err)

    def test_not_executable(self) -> None:
        """A file without the permission is 126 with a line on stderr."""
        for client in self.clients:
            done = self.exec(client, "/etc/passwd")
            self.assert_code(done, 126)
            self.assertIn(b"/etc/passwd", done.err)

    def test_streams_apart(self) -> None:
        """Stdout and stderr do not mix."""
        for client in self.clients:
            done = self.exec(client, "sh", "-c", "echo out; echo err >&2; exit 5")
            self.assert_code(done, 5)
            self.assertEqual(done.out, b"out\n")
            self.assertTrue(done.err.startswith(b"err\n"), done.err)

    def test_arguments(self) -> None:
        """Arguments arrive byte for byte: empty, spaces, quotes, unicode, newlines."""
        words = ["", "a b", '"quoted"', "ünï©ødé ☃", "line\nbreak", "+%26&=;", "--flag"]
        for client in self.clients:
            done = self.exec(client, "printf", "[%s]", *words)
            self.assert_code(done, 0)
            self.assertEqual(done.out.decode(), "".join(f"[{word}]" for word in words))

    def test_long_argument(self) -> None:
        """An argument of 100 KB arrives whole."""
        word = "x" * 100_000
        for client in self.clients:
            done = self.exec(client, "sh", "-c", 'printf %s "$1" | wc -c', "sh", word)
            self.assert_code(done, 0)
            self.assertEqual(int(done.out), 100_000)

    def test_thirty_at_once(self) -> None:
        """Thirty at once each return their own code."""
        client = self.clients[-1]
        running = [
            client.start("exec", DEVICE, "--", "sh", "-c", f"sleep 0.2; echo {n}; exit {n}")
            for n in range(1, 31)
        ]
        for number, process in enumerate(running, 1):
            out, err = process.communicate(timeout=60)
            self.assertEqual((process.returncode, out), (number, f"{number}\n".encode()), err)


class StdinTests(ExecCase):
    """What is typed or piped reaches the command, and so does its end."""

    def test_pipe(self) -> None:
        """A pipe's bytes come back, and the command sees their end."""
        for client in self.clients:
            done = self.exec(client, "cat", input=b"hello\n")
            self.assert_code(done, 0)
            self.assertEqual(done.out, b"hello\n")

    def test_empty(self) -> None:
        """An empty stdin ends at once."""
        for client in self.clients:
            done = self.exec(client, "sh", "-c", "cat; echo end", input=b"")
            self.assert_code(done, 0)
            self.assertEqual(done.out, b"end\n")

    def test_none(self) -> None:
        """Without -i the command's stdin is empty."""
        for client in self.clients:
            done = self.exec(client, "sh", "-c", "cat; echo end")
            self.assert_code(done, 0)
            self.assertEqual(done.out, b"end\n")

    def test_output_after_stdin_ended(self) -> None:
        """The end of stdin is a half close: what the command says afterwards arrives."""
        for client in self.clients:
            done = self.exec(client, "sh", "-c", "cat >/dev/null; sleep 0.3; echo after; exit 4", input=b"x")
            self.assert_code(done, 4)
            self.assertEqual(done.out, b"after\n")

    def test_command_that_ignores_stdin(self) -> None:
        """A command that ends without reading its stdin returns its code."""
        for client in self.clients:
            self.assert_code(self.exec(client, "sh", "-c", "exit 6", input=b"z" * 4 * MIB), 6)


class BulkTests(ExecCase):
    """Much of it, in both directions, byte for byte."""

    SIZE = 64 * MIB

    def test_down(self) -> None:
        """Bytes from the device arrive with the right checksum."""
        code = (
            "import hashlib,sys,random\n"
            "r=random.Random(7)\n"
            f"for _ in range({self.SIZE // MIB}): sys.stdout.buffer.write(r.randbytes({MIB}))\n"
        )
        expected = hashlib.sha256()
        import random

        source = random.Random(7)
        for _ in range(self.SIZE // MIB):
            expected.update(source.randbytes(MIB))
        for client in self.clients:
            done = self.exec(client, sys.executable, "-c", code)
            self.assert_code(Completed(done.code, b"", done.err), 0)
            self.assertEqual(hashlib.sha256(done.out).hexdigest(), expected.hexdigest())

    def test_up(self) -> None:
        """Bytes to the device arrive with the right checksum."""
        data = os.urandom(MIB) * (self.SIZE // MIB)
        for client in self.clients:
            done = self.exec(client, "sha256sum", input=data)
            self.assert_code(done, 0)
            self.assertEqual(done.out.split()[0].decode(), hashlib.sha256(data).hexdigest())

    def test_there_and_back(self) -> None:
        """Both directions at once do not stop each other."""
        data = os.urandom(MIB) * 16
        for client in self.clients:
            done = self.exec(client, "cat", input=data)
            self.assert_code(Completed(done.code, b"", done.err), 0)
            self.assertTrue(done.out == data)


class TerminalTests(ExecCase):
    """``exec -it``: a terminal on the device."""

    def shell(self, client: Kubectl) -> Terminal:
        """Open a shell on a terminal of 100 by 30."""
        words = client.command("exec", "-it", DEVICE, "--", "sh")
        terminal = Terminal(words, client.environment(), 100, 30)
        self.addCleanup(terminal.close)
        terminal.type(b"PS1='%s '; echo rea''dy\n" % b"ok>")
        terminal.expect(b"ready")
        return terminal

    def test_size(self) -> None:
        """The shell has the size of the window, and a new size when it changes."""
        for client in self.clients:
            terminal = self.shell(client)
            terminal.type(b"stty size; echo do''ne\n")
            self.assertIn(b"30 100", terminal.expect(b"done"))
            terminal.resize(120, 40)
            os.kill(terminal.process.pid, 0)
            terminal.type(b"sleep 0.5; stty size; echo do''ne\n")
            self.assertIn(b"40 120", terminal.expect(b"done"))
            terminal.type(b"exit 7\n")
            self.assertEqual(terminal.wait(), 7)

    def test_interrupt(self) -> None:
        """Ctrl-C interrupts what runs, not the session."""
        for client in self.clients:
            terminal = self.shell(client)
            terminal.type(b"sleep 1000\n")
            wait_until("the sleep runs", lambda: processes_with("sleep\x001000"), 5)
            terminal.type(b"\x03")
            terminal.type(b"echo sti''ll here\n")
            terminal.expect(b"still here")
            terminal.type(b"exit\n")
            terminal.wait()
            self.assertEqual(processes_with("sleep\x001000"), [])

    def test_given_up(self) -> None:
        """A command that lets go of its terminal goes on, and has its own code."""
        for client in self.clients:
            terminal = self.shell(client)
            terminal.type(b"exec </dev/null >/dev/null 2>&1; sleep 0.3; exit 9\n")
            self.assertEqual(terminal.wait(), 9)

    def test_hang_up(self) -> None:
        """When kubectl is killed nothing of the session is left on the device."""
        for client in self.clients:
            terminal = self.shell(client)
            terminal.type(b"sleep 1001\n")
            wait_until("the sleep runs", lambda: processes_with("sleep\x001001"), 5)
            terminal.close()
            wait_until("the sleep is gone", lambda: not processes_with("sleep\x001001"), 15)


class OrphanTests(ExecCase):
    """Without a terminal, too, a command does not outlive its kubectl."""

    def test_kubectl_killed(self) -> None:
        """kubectl killed in the middle leaves no process on the device."""
        for number, client in enumerate(self.clients):
            mark = f"200{number}"
            process = client.start("exec", "-i", DEVICE, "--", "sh", "-c", f"echo up; sleep {mark}; true")
            self.addCleanup(process.wait)
            assert process.stdout is not None
            self.assertEqual(process.stdout.readline(), b"up\n")
            process.kill()
            wait_until("the sleep is gone", lambda mark=mark: not processes_with(f"sleep\x00{mark}"), 15)
