"""Packing and unpacking: against the real ``tar`` both ways, and against archives that mean harm."""

from __future__ import annotations

import io
import os
import shutil
import stat
import subprocess
import tarfile
from collections.abc import Iterable
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SkipTest, SynchronousTestCase

from arhat.builtin import archiving, unpacking
from arhat.builtin.commands import builtins
from arhat.builtin.options import Create, Extract

MIB = 1024 * 1024


def tree(folder: Path) -> dict[str, tuple[object, ...]]:
    """What is below ``folder``, as far as an archive keeps it."""
    found: dict[str, tuple[object, ...]] = {}
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        kind = stat.S_IFMT(status.st_mode)
        content: object = None
        if kind == stat.S_IFREG:
            content = path.read_bytes()
        elif kind == stat.S_IFLNK:
            content = os.readlink(path)
        mode = None if kind == stat.S_IFLNK else stat.S_IMODE(status.st_mode)
        found[str(path.relative_to(folder))] = (kind, mode, status.st_uid, status.st_gid, content)
    return found


class TarCase(SynchronousTestCase):
    """Two folders, and what is said."""

    def setUp(self) -> None:
        """Have a folder to pack and one to unpack into, in one of their own."""
        self.around = Path(self.mktemp()).absolute()
        self.source = self.around / "source"
        self.target = self.around / "target"
        self.source.mkdir(parents=True)
        self.target.mkdir()
        self.said: list[str] = []

    def pack(self, *paths: str, code: int = 0, dereference: bool = False) -> bytes:
        """Pack paths, from ``source`` on."""
        output = io.BytesIO()
        asked = Create(tuple((str(self.source), path) for path in paths), dereference)
        self.assertEqual(archiving.pack(asked, output, self.said.append), code, self.said)
        return output.getvalue()

    def unpack(self, archive: bytes, code: int = 0, **options: bool) -> None:
        """Unpack into ``target``."""
        asked = Extract(str(self.target), **options)
        self.assertEqual(unpacking.unpack(asked, io.BytesIO(archive), self.said.append), code, self.said)

    def made(
        self, members: Iterable[tarfile.TarInfo | tuple[str, bytes]], form: int = tarfile.GNU_FORMAT
    ) -> bytes:
        """An archive of these members, however foul."""
        output = io.BytesIO()
        with tarfile.open(fileobj=output, mode="w", format=form) as archive:
            for member in members:
                if isinstance(member, tuple):
                    info = tarfile.TarInfo(member[0])
                    info.size = len(member[1])
                    info.uid, info.gid = os.getuid(), os.getgid()
                    archive.addfile(info, io.BytesIO(member[1]))
                else:
                    archive.addfile(member)
        return output.getvalue()

    def member(self, name: str, kind: bytes, link: str = "", mode: int = 0o755) -> tarfile.TarInfo:
        """A member that is no file."""
        info = tarfile.TarInfo(name)
        info.type, info.linkname, info.mode = kind, link, mode
        info.uid, info.gid = os.getuid(), os.getgid()
        return info

    def gnu_tar(self, *arguments: str, data: bytes = b"") -> bytes:
        """Run the real one."""
        program = shutil.which("tar")
        if program is None:
            raise SkipTest("this machine has no tar")
        done = subprocess.run([program, *arguments], input=data, capture_output=True, timeout=60)
        self.assertEqual(done.returncode, 0, done.stderr)
        return done.stdout


class RoundTripTests(TarCase):
    """What is packed is unpacked the same, by the real ``tar`` too."""

    def fill(self) -> None:
        """Have one of each kind."""
        (self.source / "a" / "b").mkdir(parents=True)
        (self.source / "empty folder").mkdir(mode=0o750)
        (self.source / "a" / "ünï 文 \udcff").write_bytes(os.urandom(100_000))
        (self.source / "a" / "b" / "empty").write_bytes(b"")
        (self.source / "run me").write_bytes(b"#!/bin/sh\n")
        (self.source / "run me").chmod(0o751)
        (self.source / ("long" * 40)).write_bytes(b"long")
        (self.source / "a" / "up").symlink_to("../run me")
        (self.source / "dangling").symlink_to("/nonexistent/" + "x" * 150)
        os.link(self.source / "run me", self.source / "a" / "second name")
        os.mkfifo(self.source / "pipe", 0o644)
        os.utime(self.source / "run me", (1, 1_500_000_000))

    def test_both_ours(self) -> None:
        """Packed and unpacked here, a folder is the same."""
        self.fill()
        self.unpack(self.pack("."))
        self.assertEqual(tree(self.target), tree(self.source))
        self.assertEqual((self.target / "run me").stat().st_mtime, 1_500_000_000)
        self.assertEqual(self.said, [])

    def test_to_the_real_one(self) -> None:
        """The real ``tar`` unpacks what was packed here."""
        self.fill()
        self.gnu_tar("-xpf", "-", "-C", str(self.target), data=self.pack("."))
        self.assertEqual(tree(self.target), tree(self.source))

    def test_from_the_real_one(self) -> None:
        """What the real ``tar`` packs, in each of its formats, is unpacked here, hard links too."""
        self.fill()
        for form in ("gnu", "pax", "oldgnu"):
            shutil.rmtree(self.target)
            self.target.mkdir()
            self.unpack(self.gnu_tar("-cf", "-", f"--format={form}", "-C", str(self.source), "."))
            self.assertEqual(tree(self.target), tree(self.source), form)
            self.assertEqual((self.target / "run me").stat().st_nlink, 2)

    def test_sparse(self) -> None:
        """Holes that the real ``tar`` left out are there again."""
        with open(self.source / "holes", "wb") as file:
            file.truncate(MIB)
            file.seek(MIB // 2)
            file.write(b"middle")
        self.unpack(self.gnu_tar("-cSf", "-", "-C", str(self.source), "holes"))
        self.assertEqual((self.target / "holes").read_bytes(), (self.source / "holes").read_bytes())

    @settings(max_examples=25, deadline=None)
    @given(st.dictionaries(st.text("ab./ é", min_size=1, max_size=8), st.binary(max_size=2000), max_size=5))
    def test_any_names(self, files: dict[str, bytes]) -> None:
        """Whatever files a folder has, they arrive."""
        shutil.rmtree(self.around)
        self.source.mkdir(parents=True)
        self.target.mkdir()
        for name, data in files.items():
            path = self.source / os.path.normpath("/" + name).lstrip("/")
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)
            except (FileExistsError, IsADirectoryError, NotADirectoryError):
                continue
        self.unpack(self.pack("."))
        self.assertEqual(tree(self.target), tree(self.source))


class PackingTests(TarCase):
    """The fine print of packing."""

    def names(self, archive: bytes) -> list[str]:
        """The names in an archive, as they are in it."""
        with tarfile.open(fileobj=io.BytesIO(archive)) as opened:
            return [member.name + "/" * member.isdir() for member in opened.getmembers()]

    def test_absolute(self) -> None:
        """Names lose what leads out of where they are unpacked, said once."""
        (self.source / "a").mkdir()
        (self.source / "a" / "f").write_bytes(b"")
        inner = f"{self.source}/a"
        self.assertEqual(self.names(self.pack(inner)), [inner[1:] + "/", inner[1:] + "/f"])
        self.assertEqual(self.said, ["Removing leading `/' from member names"])
        self.assertEqual(
            self.names(self.pack(f"../source/../{self.source.name}/a/f")), [f"{self.source.name}/a/f"]
        )
        self.assertEqual(self.names(self.pack("a/..")), ["./", "a/", "a/f"])

    def test_missing(self) -> None:
        """What is missing is told as ``tar`` tells it, and the rest is packed."""
        (self.source / "f").write_bytes(b"")
        self.assertEqual(self.names(self.pack("nothing", "f", code=2)), ["f"])
        self.assertEqual(self.said, ["nothing: Cannot stat: No such file or directory", archiving.FAILED])

    def test_links_are_followed_when_asked(self) -> None:
        """With ``-h`` a link is packed as what it leads to."""
        (self.source / "f").write_bytes(b"data")
        (self.source / "l").symlink_to("f")
        self.unpack(self.pack("l", dereference=True))
        self.assertEqual((self.target / "l").read_bytes(), b"data")
        self.assertFalse((self.target / "l").is_symlink())

    def test_every_name_of_a_file_has_its_content(self) -> None:
        """There are no hard links in an archive: kubectl makes empty files of them."""
        (self.source / "f").write_bytes(b"data")
        os.link(self.source / "f", self.source / "g")
        with tarfile.open(fileobj=io.BytesIO(self.pack("f", "g"))) as opened:
            self.assertEqual([member.type for member in opened.getmembers()], [tarfile.REGTYPE] * 2)

    def test_a_file_that_shrinks(self) -> None:
        """A file that lacks bytes is filled with zeros, and that is said."""
        file = archiving._Exactly(io.FileIO(os.memfd_create("short")), 10)
        self.assertEqual(file.read(6) + file.read(6), bytes(10))
        self.assertIn("shrank", file.problem)

    def test_endless_and_strange_files(self) -> None:
        """What says of itself to be empty is, and devices are packed as such."""
        archive = self.pack("/proc/self/status", "/dev/null")
        with tarfile.open(fileobj=io.BytesIO(archive)) as opened:
            status, null = opened.getmembers()
        self.assertEqual((status.size, null.type), (0, tarfile.CHRTYPE))


class HarmTests(TarCase):
    """Nothing outside of the target is touched, whatever an archive says."""

    def setUp(self) -> None:
        """Have something outside that could be harmed."""
        super().setUp()
        self.outside = self.around / "outside"
        self.outside.mkdir()
        (self.outside / "file").write_bytes(b"precious")
        self.before = tree(self.outside)

    def assert_unharmed(self) -> None:
        """What is outside is as it was, and nothing is beside the two folders."""
        self.assertEqual(tree(self.outside), self.before)
        self.assertEqual(sorted(os.listdir(self.around)), ["outside", "source", "target"])

    def test_dots(self) -> None:
        """``..`` is refused wherever it stands, and the other members come."""
        names = ("../outside/file", "a/../../outside/file", "..", "a/..", "./../x")
        self.unpack(self.made([*((name, b"bad") for name in names), ("good", b"good")]), code=2)
        self.assertEqual(sorted(os.listdir(self.target)), ["good"])
        self.assertEqual(
            len([said for said in self.said if said.endswith("Member name contains '..'")]), len(names)
        )
        self.assert_unharmed()

    def test_absolute(self) -> None:
        """An absolute name is unpacked below the target."""
        self.unpack(self.made([(f"{self.outside}/file", b"new")]))
        self.assertEqual((self.target / str(self.outside)[1:] / "file").read_bytes(), b"new")
        self.assert_unharmed()

    def test_through_a_link_of_the_same_archive(self) -> None:
        """A link is made as it is, but never followed outwards."""
        for link in (str(self.outside), "../outside", "inner/../../outside", "/"):
            path = f"l/{self.outside}/file" if link == "/" else "l/file"
            self.unpack(self.made([self.member("l", tarfile.SYMTYPE, link), (path, b"bad")]), code=2)
            self.assertEqual(os.readlink(self.target / "l"), link)
            self.assert_unharmed()

    def test_through_chains_of_links(self) -> None:
        """Several links that lead out together do not, either."""
        archive = self.made(
            [
                self.member("a", tarfile.DIRTYPE),
                self.member("a/up", tarfile.SYMTYPE, ".."),
                self.member("b", tarfile.SYMTYPE, "a/up/.."),
                ("b/outside/file", b"bad"),
                self.member("b/outside/folder", tarfile.DIRTYPE),
            ]
        )
        self.unpack(archive, code=2)
        self.assert_unharmed()

    def test_over_a_link(self) -> None:
        """A member in a link's place takes it, and does not write through it."""
        archive = self.made([self.member("l", tarfile.SYMTYPE, str(self.outside / "file")), ("l", b"mine")])
        self.unpack(archive)
        self.assertEqual((self.target / "l").read_bytes(), b"mine")
        archive = self.made(
            [
                self.member("d", tarfile.SYMTYPE, str(self.outside)),
                self.member("d", tarfile.DIRTYPE, mode=0o777),
                ("d/x", b""),
            ]
        )
        self.unpack(archive)
        self.assertFalse((self.target / "d").is_symlink())
        self.assert_unharmed()

    def test_hard_links(self) -> None:
        """A hard link leads to what is in the target only."""
        (self.target / "out").symlink_to(self.outside)
        for link in ("../outside/file", str(self.outside / "file"), "out/file"):
            self.unpack(self.made([self.member("h", tarfile.LNKTYPE, link), ("h", b"bad")]), code=2)
            self.assert_unharmed()
        (self.target / "f").write_bytes(b"data")
        self.unpack(
            self.made([self.member("h2", tarfile.LNKTYPE, "f"), self.member("f", tarfile.LNKTYPE, "f")])
        )
        self.assertTrue((self.target / "h2").samefile(self.target / "f"))

    def test_links_within(self) -> None:
        """A link to another place in the target is followed, an older one too."""
        (self.target / "real").mkdir()
        (self.target / "old").symlink_to("real")
        self.unpack(
            self.made(
                [
                    self.member("new", tarfile.SYMTYPE, "real/deep"),
                    ("new/x", b"1"),
                    self.member("old", tarfile.DIRTYPE),
                    ("old/y", b"2"),
                ]
            )
        )
        self.assertEqual((self.target / "real" / "deep" / "x").read_bytes(), b"1")
        self.assertEqual((self.target / "real" / "y").read_bytes(), b"2")

    def test_devices(self) -> None:
        """Devices are refused."""
        for kind in (tarfile.CHRTYPE, tarfile.BLKTYPE):
            self.unpack(self.made([self.member("d", kind), ("good", b"")]), code=2)
            self.assertEqual(os.listdir(self.target), ["good"])
        self.assertIn("d: Cannot mknod: Operation not permitted", self.said)

    def test_set_user_id(self) -> None:
        """Bits that lend rights are dropped unless asked for."""
        info = self.member("suid", tarfile.REGTYPE, mode=0o6755)
        self.unpack(self.made([info]))
        self.assertEqual(stat.S_IMODE((self.target / "suid").stat().st_mode) & 0o7000, 0)
        self.unpack(self.made([info]), same_permissions=True)
        self.assertEqual(stat.S_IMODE((self.target / "suid").stat().st_mode), 0o6755)

    @settings(max_examples=60, deadline=None)
    @given(
        st.lists(
            st.tuples(
                st.sampled_from(["a", "b", "a/b", "b/a", "a/b/c", "../outside/x", "/a", "a/../../outside"]),
                st.sampled_from([tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE]),
                st.sampled_from(["..", "../outside", "a", "b", "a/b", "../outside/file", "/", "."]),
            ),
            max_size=6,
        )
    )
    def test_any_archive(self, members: list[tuple[str, bytes, str]]) -> None:
        """No sequence of files, folders and links harms what is outside."""
        shutil.rmtree(self.target)
        self.target.mkdir()
        archive = self.made([self.member(name, kind, link) for name, kind, link in members])
        unpacking.unpack(Extract(str(self.target)), io.BytesIO(archive), self.said.append)
        self.assert_unharmed()

    @settings(max_examples=60, deadline=None)
    @given(st.binary(max_size=1500), st.integers(0, 4000))
    def test_broken_archives(self, junk: bytes, at: int) -> None:
        """Broken or cut, an archive never breaks the program, and is not taken for whole."""
        whole = self.made([("a", b"x" * 700), ("b", b"y")])
        for broken in (junk, whole[:at] + junk + whole[at + len(junk) :]):
            code = unpacking.unpack(Extract(str(self.target)), io.BytesIO(broken), self.said.append)
            self.assertIn(code, (0, 2))
        cut = whole[: at % 2560]
        code = unpacking.unpack(Extract(str(self.target)), io.BytesIO(cut), self.said.append)
        if at % 2560 % 512:
            self.assertEqual(code, 2, at)


class UnpackingTests(TarCase):
    """The fine print of unpacking."""

    def test_missing_folders_are_made(self) -> None:
        """Folders that are not in the archive are made."""
        self.unpack(self.made([("a/b/c", b"1")]))
        self.assertEqual((self.target / "a" / "b" / "c").read_bytes(), b"1")

    def test_no_target(self) -> None:
        """A missing target is told as ``tar`` tells it."""
        self.target.rmdir()
        self.unpack(b"", code=2)
        self.assertEqual(
            self.said,
            [
                f"{self.target}: Cannot open: No such file or directory",
                "Error is not recoverable: exiting now",
            ],
        )

    def test_replaces(self) -> None:
        """A file takes the place of another, which lives on under its other names; a full folder stays."""
        (self.target / "f").write_bytes(b"old and longer")
        os.link(self.target / "f", self.target / "g")
        (self.target / "d" / "e").mkdir(parents=True)
        self.unpack(self.made([("f", b"new"), ("d", b"file")]), code=2)
        self.assertEqual((self.target / "f").read_bytes(), b"new")
        self.assertEqual((self.target / "g").read_bytes(), b"old and longer")
        self.assertTrue((self.target / "d" / "e").is_dir())

    def test_a_file_on_the_way(self) -> None:
        """A file where a folder must be is told."""
        (self.target / "f").write_bytes(b"")
        self.unpack(self.made([("f/x", b"")]), code=2)
        self.assertEqual(self.said[0], "f/x: Cannot open: Not a directory")

    def test_closed_folders(self) -> None:
        """A folder that may not be written to gets its content first."""
        self.unpack(
            self.made([self.member("d", tarfile.DIRTYPE, mode=0o555), ("d/x", b"1")]), same_permissions=True
        )
        self.assertEqual(stat.S_IMODE((self.target / "d").stat().st_mode), 0o555)
        self.assertEqual((self.target / "d" / "x").read_bytes(), b"1")

    def test_times(self) -> None:
        """Times are the archive's, or with ``-m`` now."""
        archive = self.made([("f", b"")])
        self.unpack(archive)
        self.assertEqual((self.target / "f").stat().st_mtime, 0)
        self.unpack(archive, touch=True)
        self.assertGreater((self.target / "f").stat().st_mtime, 1_000_000_000)

    def test_no_archive(self) -> None:
        """What is no archive, or nothing at all, is told; an empty archive is fine."""
        self.unpack(b"hello" * 1000, code=2)
        self.unpack(b"", code=2)
        self.assertEqual(self.said, ["This does not look like a tar archive", archiving.FAILED] * 2)
        self.unpack(bytes(1024))

    def test_permissions(self) -> None:
        """Without ``-p`` the umask counts, unless root unpacks."""
        before = os.umask(0o077)
        self.addCleanup(os.umask, before)
        archive = self.made([self.member("f", tarfile.REGTYPE, mode=0o666)])
        self.unpack(archive, same_permissions=False)
        self.assertEqual(stat.S_IMODE((self.target / "f").stat().st_mode), 0o600)
        self.unpack(archive, same_permissions=True)
        self.assertEqual(stat.S_IMODE((self.target / "f").stat().st_mode), 0o666)

    def test_owners(self) -> None:
        """Root keeps owners, by name where the name is known here, unless told otherwise."""
        if os.geteuid() != 0:
            raise SkipTest("only root gives files away")
        info = self.member("f", tarfile.REGTYPE)
        info.uid, info.gid, info.uname = 12345, 12346, "no such user here"
        self.unpack(self.made([info]))
        status = (self.target / "f").stat()
        self.assertEqual((status.st_uid, status.st_gid), (12345, 12346))
        self.unpack(self.made([info]), same_owner=False)
        self.assertEqual((self.target / "f").stat().st_uid, 0)


class StreamingTests(TarCase):
    """Sizes do not matter."""

    def test_memory(self) -> None:
        """A large file passes through both ends in little memory."""
        size = 200 * MIB
        with open(self.source / "large", "wb") as file:
            file.truncate(size)
            file.seek(size - 3)
            file.write(b"end")
        little = ["sh", "-c", 'ulimit -v 100000; exec "$@"', "sh"]
        packing = self.argv("tar", "cf", "-", "-C", str(self.source), "large")
        unpacking_ = self.argv("tar", "-xmf", "-", "-C", str(self.target))
        packer = subprocess.Popen([*little, *packing], stdout=subprocess.PIPE)
        unpacker = subprocess.Popen([*little, *unpacking_], stdin=packer.stdout)
        assert packer.stdout is not None
        packer.stdout.close()
        self.assertEqual((packer.wait(60), unpacker.wait(60)), (0, 0))
        self.assertEqual((self.target / "large").stat().st_size, size)
        with open(self.target / "large", "rb") as file:
            file.seek(-3, os.SEEK_END)
            self.assertEqual(file.read(), b"end")

    def argv(self, *argv: str) -> list[bytes]:
        """The replacement on a device without commands."""
        replaced = builtins(tuple(map(os.fsencode, argv)), lambda command: False)
        assert replaced is not None
        return list(replaced)

    def test_a_header_that_lies(self) -> None:
        """A header that claims gigabytes of name fails alone."""
        info = tarfile.TarInfo("././@LongLink")
        info.type, info.size = tarfile.GNUTYPE_LONGNAME, 8 * 1024 * MIB
        header = info.tobuf(tarfile.GNU_FORMAT)
        zeros = subprocess.Popen(["head", "-c", "1G", "/dev/zero"], stdout=subprocess.PIPE)
        read, write = os.pipe()
        os.write(write, header)
        joined = subprocess.Popen(["cat"], stdin=zeros.stdout, stdout=write)
        os.close(write)
        assert zeros.stdout is not None
        zeros.stdout.close()
        done = subprocess.run(
            self.argv("tar", "xf", "-", "-C", str(self.target)), stdin=read, capture_output=True, timeout=60
        )
        os.close(read)
        joined.wait(60)
        zeros.wait(60)
        self.assertEqual((done.returncode, done.stderr), (2, b"tar: memory exhausted\n"))
