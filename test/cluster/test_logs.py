"""``kubectl logs`` of the virtual containers: what a file has, through rotation, cut as asked."""

from __future__ import annotations

import re

from test.cluster.test_exec import ExecCase

DEVICE = "logger"


class LogsTests(ExecCase):
    """A virtual container ``app`` whose log is one file on the device."""

    def setUp(self) -> None:
        """Have a device that lets its log folder be read."""
        super().setUp()
        folder = self.site.folder / "var-log"
        self.file = folder / "app.log"
        if DEVICE not in self.site.devices:
            folder.mkdir()
            spec = {
                "connectivity": {"graceSeconds": 1},
                "pod": {
                    "containers": [
                        {"name": "app", "log": {"file": str(self.file)}},
                        {"name": "secret", "log": {"file": "/etc/shadow"}},
                        {"name": "absent", "log": {"file": str(folder / "absent.log")}},
                    ]
                },
            }
            self.site.add_device(DEVICE, spec, config=f"logs: {{files: ['{folder}/**']}}\n")
        self.write_ten()

    def write_ten(self) -> None:
        """Fill the log with ten lines."""
        self.file.write_text("".join(f"line {n}\n" for n in range(10)))

    def test_whole(self) -> None:
        """Without options the whole file comes."""
        for client in self.clients:
            done = client.run("logs", DEVICE, "-c", "app")
            self.assert_code(done, 0)
            self.assertEqual(done.out, self.file.read_bytes())

    def test_options(self) -> None:
        """Tail and limit cut where they say; timestamps lead each line."""
        for client in self.clients:
            self.assertEqual(client.run("logs", DEVICE, "-c", "app", "--tail=2").out, b"line 8\nline 9\n")
            self.assertEqual(client.run("logs", DEVICE, "-c", "app", "--tail=0").out, b"")
            self.assertEqual(client.run("logs", DEVICE, "-c", "app", "--limit-bytes=3").out, b"lin")
            stamped = client.run("logs", DEVICE, "-c", "app", "--tail=1", "--timestamps").out
            self.assertTrue(
                re.fullmatch(rb"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}\S* line 9\n", stamped), stamped
            )

    def test_follow_through_rotation(self) -> None:
        """Follow goes on when the file is renamed and made anew."""
        for client in self.clients:
            self.write_ten()
            process = client.start("logs", "-f", DEVICE, "-c", "app", "--tail=1")
            self.addCleanup(process.wait)
            self.addCleanup(process.kill)
            assert process.stdout is not None
            self.assertEqual(process.stdout.readline(), b"line 9\n")
            with open(self.file, "a") as log:
                log.write("more\n")
            self.assertEqual(process.stdout.readline(), b"more\n")
            self.file.rename(self.file.with_suffix(".1"))
            self.file.write_text("after rotation\n")
            self.assertEqual(process.stdout.readline(), b"after rotation\n")
            process.kill()

    def test_outside_the_allow_list(self) -> None:
        """A file the device's owner did not list is refused with a line."""
        for client in self.clients:
            done = client.run("logs", DEVICE, "-c", "secret")
            self.assert_code(done, 1)
            self.assertIn(b"/etc/shadow", done.err)
            self.assertEqual(done.out, b"")

    def test_absent_file(self) -> None:
        """A file that is not there is told as such."""
        for client in self.clients:
            done = client.run("logs", DEVICE, "-c", "absent")
            self.assert_code(done, 1)
            self.assertIn(b"absent.log", done.err)

    def test_unknown_container(self) -> None:
        """An unknown container is told by the API server."""
        for client in self.clients:
            done = client.run("logs", DEVICE, "-c", "nonesuch")
            self.assert_code(done, 1)
            self.assertIn(b"nonesuch", done.err)

    def test_exec_into_a_log_container(self) -> None:
        """exec into a log container says which container to use."""
        for client in self.clients:
            done = client.run("exec", DEVICE, "-c", "app", "--", "true")
            self.assert_code(done, 1)
            self.assertIn(b"host", done.err)

    def test_link_lost(self) -> None:
        """When the link goes and its grace is over, ``logs -f`` ends with a line that says so."""
        client = self.clients[-1]
        process = client.start("logs", "-f", DEVICE, "-c", "app", "--tail=1")
        assert process.stdout is not None
        self.assertEqual(process.stdout.readline(), b"line 9\n")
        agent = self.site.devices[DEVICE]
        agent.kill()
        out, _ = process.communicate(timeout=30)
        self.assertIn(b"aranya: log stream cut: ", out)
        self.site.wait_offline(DEVICE)
        done = client.run("logs", DEVICE, "-c", "app")
        self.assert_code(done, 1)
        self.assertIn(b"offline", done.err)
        agent.start()
        self.site.wait_online(DEVICE)


class SystemLogTests(ExecCase):
    """The default container's log is the host's own."""

    def test_answers(self) -> None:
        """``kubectl logs DEVICE`` ends by itself: with the log, or with a line why there is none."""
        for client in self.clients:
            done = client.run("logs", "my-edge-device", "--tail=5")
            self.assertTrue(done.code == 0 or (done.code == 1 and done.err.count(b"\n") <= 2), done)
            self.assertLessEqual(done.out.count(b"\n"), 5)
