"""``tar xf -``: a stream unpacked into a folder, and never outside of it.

The law
    A member's name is taken apart here: a leading ``/`` is dropped, ``..`` is
    refused. Where a folder on its way is a link, be it of the same archive or
    older, its *real* place must lie within the target; from the target's own
    descriptor each folder of that place is then opened without following links,
    so that it cannot be exchanged meanwhile. What is at a member's own place is
    removed first, hence no link there is ever followed. Devices are not made,
    and set-user-id bits only with ``-p``.

As GNU tar does it: missing folders are made, a failed member is told and the
others go on, root keeps owners and modes unless told otherwise.
"""

from __future__ import annotations

import errno
import grp
import os
import pwd
import stat
import tarfile
from collections.abc import Callable
from functools import lru_cache
from typing import IO, Self, TypeVar

from arhat.builtin.archiving import FAILED
from arhat.builtin.options import Extract

_Made = TypeVar("_Made")

_BLOCK = 256 * 1024
_FATAL = "Error is not recoverable: exiting now"
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


def unpack(asked: Extract, source: IO[bytes], complain: Callable[[str], None]) -> int:
    """Read the archive; the exit code."""
    try:
        target = os.open(asked.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as why:
        complain(f"{asked.folder}: Cannot open: {why.strerror}")
        complain(_FATAL)
        return 2
    unpacking = _Unpacking(asked, target, complain)
    try:
        archive = tarfile.open(  # noqa: SIM115  # a stream that is not ours to close
            fileobj=source,
            mode="r|",
            bufsize=20 * 512,
            tarinfo=_Header,
            encoding="utf-8",
            errors="surrogateescape",
        )
        while (member := archive.next()) is not None:
            unpacking.add(archive, member)
            # Else it would remember every member.
            archive.members.clear()  # type: ignore[attr-defined]  # missing in the stubs
    except (tarfile.TarError, ValueError, OverflowError, EOFError) as why:
        if "unexpected end of data" in str(why):
            complain("Unexpected EOF in archive")
            complain(_FATAL)
        else:
            complain("This does not look like a tar archive")
            complain(FAILED)
        return 2
    while source.read(_BLOCK):
        # Whoever writes the archive shall be able to finish.
        pass
    return unpacking.end()


class _Header(tarfile.TarInfo):
    """A header that, broken in the middle of an archive, is not taken for its end."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> Self:
        """The next header."""
        try:
            return super().fromtarfile(archive)
        except tarfile.HeaderError as why:
            # Its subclasses have names, but no place in the documentation or the stubs.
            match type(why).__name__:
                case "EOFHeaderError" | "EmptyHeaderError":
                    raise
                case "TruncatedHeaderError":
                    raise tarfile.ReadError("unexpected end of data") from None
            raise tarfile.ReadError(str(why)) from None


class _Refused(Exception):
    """A member that is not unpacked, and why."""


class _Unpacking:
    """One archive being unpacked below ``target``."""

    def __init__(self, asked: Extract, target: int, complain: Callable[[str], None]) -> None:
        root = os.geteuid() == 0
        self._touch = asked.touch
        self._owners = root if asked.same_owner is None else asked.same_owner
        exact = root if asked.same_permissions is None else asked.same_permissions
        self._umask = os.umask(0o022)
        os.umask(self._umask)
        self._modes = 0o7777 if asked.same_permissions else 0o777
        if not exact:
            self._modes &= ~self._umask
        self._target = target
        self._real = os.readlink(f"/proc/self/fd/{target}")
        self._complain = complain
        self._code = 0
        self._removed = False
        self._parent: tuple[str, int] = ("", os.dup(target))
        # Folders that their owner may not write to yet shall hold what comes for them.
        self._later: list[tuple[str, int]] = []

    def add(self, archive: tarfile.TarFile, member: tarfile.TarInfo) -> None:
        """Unpack one member, or say why not."""
        try:
            self._add(archive, member)
        except OSError as why:
            self._failed(f"{member.name}: Cannot open: {why.strerror}")
        except (ValueError, OverflowError) as why:
            self._failed(f"{member.name}: Cannot extract: {why}")
        except _Refused as why:
            self._failed(str(why))

    def end(self) -> int:
        """Give folders their modes; the exit code."""
        for path, mode in reversed(self._later):
            try:
                parent, name = self._place(path)
                folder = os.open(name, _FOLDER, dir_fd=parent)
                try:
                    os.fchmod(folder, mode)
                finally:
                    os.close(folder)
            except (OSError, _Refused) as why:
                self._failed(f"{path}: Cannot change mode: {getattr(why, 'strerror', why)}")
        if self._code:
            self._complain(FAILED)
        return self._code

    def _add(self, archive: tarfile.TarFile, member: tarfile.TarInfo) -> None:
        path = self._within(member.name, member.name)
        if not path:
            return
        if member.ischr() or member.isblk():
            raise _Refused(f"{member.name}: Cannot mknod: Operation not permitted")
        folder, name = self._place(path)
        if member.isdir():
            self._folder(folder, name, path, member)
            return
        if member.isreg():
            # Before the old file is removed: the archive may be broken here.
            content = archive.extractfile(member)
            assert content is not None
            descriptor = self._made(folder, name, lambda: os.open(name, _NEW_FILE, 0o600, dir_fd=folder))
            try:
                _copy(content, descriptor, member.size)
                self._finish(descriptor, member)
            finally:
                os.close(descriptor)
        elif member.issym():
            self._made(folder, name, lambda: os.symlink(member.linkname, name, dir_fd=folder))
            self._finish_link(folder, name, member)
        elif member.islnk():
            self._hard_link(folder, name, member)
        elif member.isfifo():
            mode = member.mode & self._modes
            self._made(folder, name, lambda: os.mkfifo(name, mode, dir_fd=folder))
            self._finish_link(folder, name, member)
        else:
            raise _Refused(f"{member.name}: Unknown file type; not extracted")

    def _within(self, path: str, shown: str) -> str:
        """``path`` from the target on. Raises ``_Refused``."""
        parts = [part for part in path.split("/") if part not in ("", ".")]
        if ".." in parts:
            raise _Refused(f"{shown}: Member name contains '..'")
        if path.startswith("/") and not self._removed:
            self._removed = True
            self._complain("Removing leading `/' from member names")
        return "/".join(parts)

    def _place(self, path: str) -> tuple[int, str]:
        """The folder that ``path`` is in, made if missing, and its name there. Raises ``_Refused``."""
        parent, _, name = path.rpartition("/")
        # A link may have come since then.
        real = os.path.realpath(f"{self._real}/{parent}")
        root = self._real.rstrip("/")
        if real != (root or "/") and not real.startswith(root + "/"):
            raise _Refused(f"{path}: Cannot open: a link leads out of the target folder")
        inner = real[len(root) :].strip("/")
        if self._parent[0] == inner and self._is_still_there(inner):
            return self._parent[1], name
        folder = os.dup(self._target)
        try:
            for part in filter(None, inner.split("/")):
                try:
                    below = os.open(part, _FOLDER, dir_fd=folder)
                except FileNotFoundError:
                    os.mkdir(part, 0o777, dir_fd=folder)
                    below = os.open(part, _FOLDER, dir_fd=folder)
                os.close(folder)
                folder = below
        except BaseException:
            os.close(folder)
            raise
        os.close(self._parent[1])
        self._parent = (inner, folder)
        return folder, name

    def _is_still_there(self, inner: str) -> bool:
        if not inner:
            return True
        try:
            there = os.lstat(f"{self._real}/{inner}")
        except OSError:
            return False
        return os.path.samestat(there, os.fstat(self._parent[1]))

    def _folder(self, folder: int, name: str, path: str, member: tarfile.TarInfo) -> None:
        mode = member.mode & self._modes
        try:
            os.mkdir(name, mode | 0o700, dir_fd=folder)
        except FileExistsError:
            # It keeps its mode; a link to a folder within the target stays a link.
            existing = os.stat(name, dir_fd=folder, follow_symlinks=False)
            if stat.S_ISDIR(existing.st_mode):
                return
            if stat.S_ISLNK(existing.st_mode) and self._leads_within(path):
                return
            os.unlink(name, dir_fd=folder)
            os.mkdir(name, mode | 0o700, dir_fd=folder)
        made = os.open(name, _FOLDER, dir_fd=folder)
        try:
            self._finish(made, member, 0o700)
        finally:
            os.close(made)
        if mode | 0o700 != mode and len(self._later) < 100_000:
            self._later.append((path, mode))

    def _leads_within(self, path: str) -> bool:
        real = os.path.realpath(f"{self._real}/{path}")
        return real.startswith(self._real.rstrip("/") + "/") and os.path.isdir(real)

    def _hard_link(self, folder: int, name: str, member: tarfile.TarInfo) -> None:
        linked = self._within(member.linkname, f"{member.name}: {member.linkname}")
        # Opening the other folder may close this one.
        here = os.dup(folder)
        try:
            there, linked_name = self._place(linked)
            if _same(there, linked_name, here, name):
                return
            self._made(
                here,
                name,
                lambda: os.link(linked_name, name, src_dir_fd=there, dst_dir_fd=here, follow_symlinks=False),
            )
        except OSError as why:
            wrong = f"Cannot hard link to '{member.linkname}': {why.strerror}"
            raise _Refused(f"{member.name}: {wrong}") from None
        finally:
            os.close(here)

    def _made(self, folder: int, name: str, make: Callable[[], _Made]) -> _Made:
        """What ``make`` makes, in place of what is there."""
        try:
            return make()
        except FileExistsError:
            pass
        try:
            os.unlink(name, dir_fd=folder)
        except (IsADirectoryError, PermissionError) as why:
            # An empty folder gives way, as in tar.
            try:
                os.rmdir(name, dir_fd=folder)
            except OSError as other:
                raise (other if other.errno != errno.ENOTDIR else why) from None
        return make()

    def _finish(self, descriptor: int, member: tarfile.TarInfo, extra: int = 0) -> None:
        if self._owners:
            os.fchown(descriptor, *_owner(member.uid, member.uname, member.gid, member.gname))
        os.fchmod(descriptor, member.mode & self._modes | extra)
        if not self._touch and not member.isdir():
            os.utime(descriptor, (member.mtime, member.mtime))

    def _finish_link(self, folder: int, name: str, member: tarfile.TarInfo) -> None:
        if self._owners:
            owner = _owner(member.uid, member.uname, member.gid, member.gname)
            os.chown(name, *owner, dir_fd=folder, follow_symlinks=False)
        if not self._touch:
            os.utime(name, (member.mtime, member.mtime), dir_fd=folder, follow_symlinks=False)

    def _failed(self, text: str) -> None:
        self._complain(text)
        self._code = 2


def _copy(content: IO[bytes], descriptor: int, size: int) -> None:
    while data := content.read(_BLOCK):
        size -= len(data)
        view = memoryview(data)
        while view:
            view = view[os.write(descriptor, view) :]
    if size > 0:
        raise tarfile.ReadError("unexpected end of data")


def _same(one: int, one_name: str, other: int, other_name: str) -> bool:
    try:
        return os.path.samestat(
            os.stat(one_name, dir_fd=one, follow_symlinks=False),
            os.stat(other_name, dir_fd=other, follow_symlinks=False),
        )
    except OSError:
        return False


@lru_cache(maxsize=256)
def _owner(uid: int, user: str, gid: int, group: str) -> tuple[int, int]:
    """The owners by name where this device knows the names, else by number."""
    try:
        uid = pwd.getpwnam(user).pw_uid if user else uid
    except KeyError:
        pass
    try:
        gid = grp.getgrnam(group).gr_gid if group else gid
    except KeyError:
        pass
    return uid, gid
