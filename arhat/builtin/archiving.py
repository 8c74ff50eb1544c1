"""``tar cf -``: files and folders packed as a stream, in memory that does not grow with them.

As GNU tar does it: names lose their leading ``/`` and ``..``, links are packed as
links, a file that shrinks is filled with zeros, what cannot be read is told and
left out. Unlike it, a file with several names is packed under each: ``kubectl cp``
makes empty files of hard links.
"""

from __future__ import annotations

import errno
import grp
import io
import os
import pwd
import re
import stat
import tarfile
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import IO, Protocol, cast

from arhat.builtin.options import Create

_RECORD = 20 * 512
_LEADING = re.compile(r"(?:.*/)?\.\.(?:/+|$)|/+", re.DOTALL)
FAILED = "Exiting with failure status due to previous errors"


class Output(Protocol):
    """Where an archive goes."""

    def write(self, data: bytes, /) -> object:
        """Take all of ``data``."""
        ...


def pack(asked: Create, output: Output, complain: Callable[[str], None]) -> int:
    """Write the archive; the exit code."""
    packing = _Packing(output, complain, asked.dereference)
    for folder, path in asked.paths:
        packing.add(folder, path)
    return packing.end()


class _Packing:
    """One archive being written."""

    def __init__(self, output: Output, complain: Callable[[str], None], dereference: bool) -> None:
        self._complain = complain
        self._follow = dereference
        self._code = 0
        self._removed: set[str] = set()
        self._archive = tarfile.open(  # noqa: SIM115  # ended by end()
            fileobj=cast(IO[bytes], output),
            mode="w|",
            format=tarfile.GNU_FORMAT,
            bufsize=_RECORD * 16,
            encoding="utf-8",
            errors="surrogateescape",
        )

    def add(self, folder: str, path: str) -> None:
        """Add a path, and all beneath it; the folders on the way down are kept open by the iterators only."""
        waiting: list[Iterator[tuple[str, str]]] = [iter([(os.path.join(folder, path), path)])]
        while waiting:
            entry = next(waiting[-1], None)
            if entry is None:
                waiting.pop()
            elif self._one(*entry):
                waiting.append(self._beneath(*entry))

    def end(self) -> int:
        """Finish the archive; the exit code."""
        self._archive.close()
        if self._code == 2:
            self._complain(FAILED)
        return self._code

    def _beneath(self, path: str, shown: str) -> Iterator[tuple[str, str]]:
        try:
            names = os.listdir(path)
        except OSError as why:
            self._failed(shown, "Cannot open", why)
            return
        head = shown.rstrip("/") if shown.strip("/") else ""
        for name in names:
            yield os.path.join(path, name), f"{head}/{name}"

    def _one(self, path: str, shown: str) -> bool:
        """Add one entry; whether there may be others beneath it."""
        try:
            status = os.stat(path) if self._follow else os.lstat(path)
        except OSError as why:
            self._failed(shown, "Cannot stat", why)
            return False
        member = self._member(shown, status)
        if member is None:
            self._complain(f"{shown}: socket ignored")
        elif member.isreg():
            self._file(path, shown, member)
        else:
            if member.issym():
                try:
                    member.linkname = os.readlink(path)
                except OSError as why:
                    self._failed(shown, "Cannot readlink", why)
                    return False
            self._put(member)
        return stat.S_ISDIR(status.st_mode)

    def _file(self, path: str, shown: str, member: tarfile.TarInfo) -> None:
        flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | (0 if self._follow else os.O_NOFOLLOW)
        try:
            descriptor = os.open(path, flags)
        except OSError as why:
            self._failed(shown, "Cannot open", why)
            return
        with open(descriptor, "rb", buffering=0) as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                self._failed(shown, "Cannot open", OSError(errno.EINVAL, "changed while it was read"))
                return
            member.size = status.st_size
            reader = _Exactly(file, member.size)
            self._put(member, reader)
            if reader.problem:
                self._complain(f"{shown}: {reader.problem}")
                self._code = max(self._code, 1)

    def _put(self, member: tarfile.TarInfo, content: _Exactly | None = None) -> None:
        self._archive.addfile(member, cast("IO[bytes] | None", content))
        # Else it would remember every member.
        self._archive.members.clear()  # type: ignore[attr-defined]  # missing in the stubs

    def _member(self, shown: str, status: os.stat_result) -> tarfile.TarInfo | None:
        kinds = {
            stat.S_IFREG: tarfile.REGTYPE,
            stat.S_IFDIR: tarfile.DIRTYPE,
            stat.S_IFLNK: tarfile.SYMTYPE,
            stat.S_IFIFO: tarfile.FIFOTYPE,
            stat.S_IFCHR: tarfile.CHRTYPE,
            stat.S_IFBLK: tarfile.BLKTYPE,
        }
        kind = kinds.get(stat.S_IFMT(status.st_mode))
        if kind is None:
            return None
        member = tarfile.TarInfo(self._name(shown))
        member.type = kind
        member.mode = stat.S_IMODE(status.st_mode)
        member.mtime = int(status.st_mtime)
        member.uid, member.gid = status.st_uid, status.st_gid
        member.uname, member.gname = _user(status.st_uid), _group(status.st_gid)
        if kind in (tarfile.CHRTYPE, tarfile.BLKTYPE):
            member.devmajor, member.devminor = os.major(status.st_rdev), os.minor(status.st_rdev)
        return member

    def _name(self, shown: str) -> str:
        """The name without what would lead out of the folder it is unpacked in."""
        found = _LEADING.match(shown)
        if found is None:
            return shown
        if found[0] not in self._removed and len(self._removed) < 100:
            self._removed.add(found[0])
            self._complain(f"Removing leading `{found[0]}' from member names")
        return shown[found.end() :] or "."

    def _failed(self, shown: str, what: str, why: OSError) -> None:
        self._complain(f"{shown}: {what}: {why.strerror}")
        self._code = 2


class _Exactly:
    """A file as so many bytes, whatever it becomes meanwhile."""

    def __init__(self, file: io.FileIO, size: int) -> None:
        self._file = file
        self._left = size
        self.problem = ""

    def read(self, size: int) -> bytes:
        """The next ``size`` bytes."""
        size = min(size, self._left)
        try:
            data = b"" if self.problem else self._file.read(size)
        except OSError as why:
            data, self.problem = b"", f"Read error: {why.strerror}; padding with zeros"
        if not data and size:
            self.problem = self.problem or f"File shrank by {self._left} bytes; padding with zeros"
            data = bytes(size)
        self._left -= len(data)
        if len(data) < size:
            return data + self.read(size - len(data))
        return data


@lru_cache(maxsize=256)
def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return ""


@lru_cache(maxsize=256)
def _group(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return ""
