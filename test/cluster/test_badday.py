"""Bad days: daemons killed, the API server away, clients that do not read, options that are wrong."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from test.cluster.daemons import PROGRAMS, ROOT, wait_until
from test.cluster.kubectl import Kubectl
from test.cluster.plane import shared_plane
from test.cluster.test_exec import MIB, ExecCase, processes_with

DEVICE = "unlucky"


class BadDayCase(ExecCase):
    """Has a site of its own, so that others do not see the deaths."""

    def setUp(self) -> None:
        """Have an aranya and a device that may be killed."""
        super().setUp()
        if DEVICE not in self.site.devices:
            self.site.add_device(DEVICE)
        if not self.site.controller.is_alive():
            self.site.controller.start()
        self.site.wait_ready()
        agent = self.site.devices[DEVICE]
        if not agent.is_alive():
            agent.start()
        self.site.wait_online(DEVICE)

    def running(self, client: Kubectl, *argv: str) -> subprocess.Popen[bytes]:
        """Start an exec and wait until its first line is here."""
        process = client.start("exec", "-i", DEVICE, "--", "sh", "-c", f"echo up; {' '.join(argv)}")
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        assert process.stdout is not None
        self.assertEqual(process.stdout.readline(), b"up\n", self.site.explain())
        return process


class DeathTests(BadDayCase):
    """Whoever dies, kubectl never says 0."""

    def test_agent_killed(self) -> None:
        """SIGKILL of arhat ends kubectl non-zero, with a reason, as soon as it was started anew."""
        for client in self.clients:
            process = self.running(client, "sleep 300")
            self.site.devices[DEVICE].kill()
            self.site.devices[DEVICE].start()
            _, err = process.communicate(timeout=15)
            self.assertEqual(process.returncode, 1, err)
            self.assertIn(DEVICE.encode(), err)
            for orphan in processes_with("sleep\x00300"):
                os.kill(orphan, signal.SIGKILL)
            self.site.wait_online(DEVICE)

    def test_aranya_killed(self) -> None:
        """SIGKILL of aranya ends kubectl non-zero, and the device is back within seconds."""
        for client in self.clients:
            process = self.running(client, "sleep 301")
            self.site.controller.kill()
            out, err = process.communicate(timeout=30)
            self.assertNotEqual(process.returncode, 0, (out, err))
            self.site.controller.start()
            self.site.wait_ready()
            began = time.monotonic()
            wait_until(
                "exec works again",
                lambda client=client: client.run("exec", DEVICE, "--", "true").code == 0,
                45,
                self.site.explain,
            )
            self.assertLess(time.monotonic() - began, 45)

    def test_restart_keeps_the_certificate(self) -> None:
        """An aranya that stops cleanly comes back with the same Node certificate and port."""
        secret = ("get", "secret", f"kubelet-tls.{DEVICE}", "-n", "aranya", "-o", "jsonpath={.data}")
        before = self.site.admin.run(*secret).out
        self.assertTrue(before)
        self.assertEqual(self.site.controller.terminate(), 0)
        self.site.controller.start()
        self.site.wait_ready()
        wait_until(
            "exec works again",
            lambda: self.clients[-1].run("exec", DEVICE, "--", "true").code == 0,
            45,
            self.site.explain,
        )
        self.assertEqual(self.site.admin.run(*secret).out, before)

    def test_terminated_cleanly(self) -> None:
        """An agent that is told twice to go leaves with 0 and ends what runs with a reason."""
        client, agent = self.clients[-1], self.site.devices[DEVICE]
        process = self.running(client, "sleep 302")
        before = agent.text().count("a second SIGTERM")
        os.kill(agent.pid, signal.SIGTERM)
        wait_until(
            "the agent waits",
            lambda: agent.text().count("a second SIGTERM") > before,
            10,
            self.site.explain,
        )
        self.assertEqual(agent.terminate(), 0)
        _, err = process.communicate(timeout=20)
        self.assertEqual(process.returncode, 1, err)
        self.assertNotIn("Traceback", agent.text())

    def test_killed_from_within(self) -> None:
        """The exec that tells its own agent to go has its own exit code, and so has one beside it."""
        for client in self.clients:
            agent = self.site.devices[DEVICE]
            other = self.running(client, "cat; exit 9")
            done = client.run("exec", DEVICE, "--", "sh", "-c", f"kill {agent.pid}; echo sent; exit 7")
            self.assertEqual((done.code, done.out), (7, b"sent\n"), done.err)
            self.assertTrue(agent.is_alive())
            _, err = other.communicate(b"", timeout=20)
            self.assertEqual(other.returncode, 9, err)
            self.assertEqual(agent.wait(), 0)
            agent.start()
            self.site.wait_online(DEVICE)

    def test_api_server_away(self) -> None:
        """The API server goes for a while: nothing is lost, and all converges when it is back."""
        plane = shared_plane()
        uid = (self.site.get("node", DEVICE) or {})["metadata"]["uid"]
        plane.stop_apiserver()
        time.sleep(5)
        plane.start_apiserver()
        wait_until(
            "exec works again",
            lambda: self.clients[-1].run("exec", DEVICE, "--", "true").code == 0,
            60,
            self.site.explain,
        )
        self.assertEqual((self.site.get("node", DEVICE) or {})["metadata"]["uid"], uid)
        self.site.create_device("after-the-outage")
        wait_until(
            "a device made after the outage gets its Node",
            lambda: self.site.get("node", "after-the-outage"),
            60,
            self.site.explain,
        )
        self.site.edge.run("delete", "ed", "after-the-outage", timeout=30)


class SlowReaderTests(BadDayCase):
    """A client that never reads costs bounded memory and nobody else's time."""

    def test_memory_and_latency(self) -> None:
        """With three stuck readers both daemons stay small and a short exec stays quick."""
        client = self.clients[-1]
        controller, agent = self.site.controller, self.site.devices[DEVICE]
        before = controller.resident_kib(), agent.resident_kib()
        stuck = [client.start("exec", DEVICE, "--", "cat", "/dev/zero") for _ in range(3)]
        for process in stuck:
            self.addCleanup(process.wait)
            self.addCleanup(process.kill)
            assert process.stdout is not None
            process.stdout.read(MIB)
        wait_until(
            "the flood has stopped",
            lambda: _quiet(agent.pid, 0.5),
            30,
        )
        for _ in range(5):
            began = time.monotonic()
            self.assert_code(client.run("exec", DEVICE, "--", "true"), 0)
            self.assertLess(time.monotonic() - began, 2)
        after = controller.resident_kib(), agent.resident_kib()
        for old, new in zip(before, after, strict=True):
            self.assertLess(new - old, 64 * 1024, (before, after))


def _quiet(pid: int, seconds: float) -> bool:
    """Whether a process used next to no CPU for a while."""

    def ticks() -> int:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return int(fields[11]) + int(fields[12])

    before = ticks()
    time.sleep(seconds)
    return ticks() - before <= seconds * os.sysconf("SC_CLK_TCK") * 0.1


class OptionTests(SynchronousTestCase):
    """Wrong options and unreadable files are one clear line and exit code 1."""

    def run_twistd(self, *words: str) -> tuple[int, str]:
        """Run a daemon that should not start; give its code and all it said."""
        done = subprocess.run(
            [str(PROGRAMS / "twistd"), "-n", "--pidfile=", *words],
            cwd=ROOT,
            env={"PATH": os.environ["PATH"], "HOME": "/nonexistent", "PYTHONPATH": str(ROOT)},
            capture_output=True,
            timeout=30,
            check=False,
        )
        return done.returncode, (done.stdout + done.stderr).decode()

    def assert_refused(self, about: str, *words: str) -> None:
        """Exit code 1, the subject is named, no traceback."""
        code, said = self.run_twistd(*words)
        self.assertEqual(code, 1, said)
        self.assertIn(about, said)
        self.assertNotIn("Traceback", said)

    def test_aranya(self) -> None:
        """Each wrong option of aranya is named."""
        state = self.mktemp()
        Path(state).write_text("gateway: [\n")
        self.assert_refused("--frobnicate", "aranya", "--frobnicate")
        self.assert_refused("kubelet-ports", "aranya", "--kubelet-ports", "9-1")
        self.assert_refused("gateway-url", "aranya", "--gateway-url", "http://x")
        self.assert_refused("/no/such/file", "aranya", "--config", "/no/such/file")
        self.assert_refused("YAML", "aranya", "--config", str(Path(state).absolute()))
        self.assert_refused("/no/such/kubeconfig", "aranya", "--kubeconfig", "/no/such/kubeconfig")
        self.assert_refused("xml", "aranya", "--log-format", "xml")

    def test_arhat(self) -> None:
        """Each wrong option of arhat is named."""
        folder = Path(self.mktemp()).absolute()
        folder.mkdir()
        bad = folder / "arhat.yaml"
        bad.write_text("alow: [exec]\n")
        state = str(folder / "state")
        self.assert_refused("--frobnicate", "arhat", "--frobnicate")
        self.assert_refused("--join", "arhat", "--state", state)
        self.assert_refused("token", "arhat", "--state", state, "--join", "garbage")
        self.assert_refused("/no/such/token", "arhat", "--state", state, "--join", "@/no/such/token")
        self.assert_refused("alow", "arhat", "--state", state, "--config", str(bad))
        self.assert_refused("/no/such", "arhat", "--state", state, "--config", "/no/such/file")

    def test_listening_fails(self) -> None:
        """A port that is taken is one line and exit code 1."""
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            kubeconfig = shared_plane().admin_kubeconfig
            self.assert_refused(
                str(port),
                "aranya",
                *("--kubeconfig", str(kubeconfig), "--health", f"tcp:{port}:interface=127.0.0.1"),
            )
