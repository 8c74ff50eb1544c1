"""``kubectl cp`` to and from the device, with tar on it and without."""

from __future__ import annotations

import os
from pathlib import Path

from test.cluster.test_exec import DEVICE, MIB, ExecCase


class CopyTests(ExecCase):
    """Files arrive byte for byte, whoever packs them."""

    device = DEVICE

    def setUp(self) -> None:
        """Have a folder here and one on the device."""
        super().setUp()
        self.here = Path(self.mktemp()).absolute()
        self.there = Path(self.mktemp()).absolute()
        self.here.mkdir()
        self.there.mkdir()

    def test_up_and_down(self) -> None:
        """A binary file goes up and comes back the same."""
        data = os.urandom(5 * MIB + 17)
        for number, client in enumerate(self.clients):
            (self.here / "file").write_bytes(data)
            up = client.run("cp", str(self.here / "file"), f"{self.device}:{self.there}/up{number}")
            self.assert_code(up, 0)
            self.assertTrue((self.there / f"up{number}").read_bytes() == data)
            back = self.here / f"back{number}"
            down = client.run("cp", f"{self.device}:{self.there}/up{number}", str(back))
            self.assert_code(down, 0)
            self.assertTrue(back.read_bytes() == data)

    def test_folder(self) -> None:
        """A folder with files below files arrives whole."""
        for number, client in enumerate(self.clients):
            tree = self.here / f"tree{number}"
            (tree / "a" / "b").mkdir(parents=True)
            (tree / "a" / "b" / "ünï").write_text("x")
            (tree / "empty").write_text("")
            self.assert_code(client.run("cp", str(tree), f"{self.device}:{self.there}"), 0)
            arrived = self.there / f"tree{number}"
            self.assertEqual((arrived / "a" / "b" / "ünï").read_text(), "x")
            self.assertEqual((arrived / "empty").read_text(), "")

    def test_absent_source(self) -> None:
        """Copying what is not there makes no file; tar says why and its code arrives.

        kubectl itself leaves ``cp`` at the archive's end marker, before it heard how tar ended: whether
        its own exit code and output tell is a race within it. So tar is asked by ``exec`` as well.
        """
        for client in self.clients:
            client.run("cp", f"{self.device}:{self.there}/nothing", str(self.here / "nothing"))
            self.assertFalse((self.here / "nothing").exists())
            done = client.run("exec", self.device, "--", "tar", "cf", "-", f"{self.there}/nothing")
            self.assertEqual(done.code, 2)
            self.assertIn(b"Cannot stat", done.err)


class CopyWithoutTarTests(CopyTests):
    """The same where the host has no tar: the agent brings its own."""

    device = "tarless"

    def setUp(self) -> None:
        """Have a second device whose PATH has no tar."""
        super().setUp()
        if self.device not in self.site.devices:
            tools = self.site.folder / "tools"
            tools.mkdir()
            for name in ("sh", "true", "cat", "tail"):
                (tools / name).symlink_to(
                    f"/bin/{name}" if os.path.exists(f"/bin/{name}") else f"/usr/bin/{name}"
                )
            self.site.add_device(self.device, config=f"path: {tools}\n")

    def test_there_is_no_tar(self) -> None:
        """The device really has none: asking for its version is not answered by a tar."""
        done = self.clients[-1].run("exec", self.device, "--", "tar", "--version")
        self.assertNotEqual(done.code, 0)
