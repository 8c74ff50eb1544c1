"""Which files may be read as logs, and opening them as the account whose they must be readable by.

The law
    A file is read when its *real* path, with all symbolic links resolved, matches
    a pattern of the owner's ``logs.files``, when it is a regular file, and when
    the configured account may read it. The kernel judges the last: while a file
    is opened the agent (if it is root) has the account's effective ids, so that
    lists of access rights count as well. That holds for the whole process, but
    only during calls that do not block, on the reactor's thread.
    What was opened is asked for its path once more: a folder may have been
    exchanged between the two.

In a pattern ``*`` and ``?`` stay within a name and ``**`` does not. Links in the
part before the first of them were made by whoever owns the device, and are
followed: where ``/var/log`` leads elsewhere, so does ``/var/log/**``.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from arhat.executor.environment import Account
from tether.errors import Reason, ResetCode

_WILD = re.compile(r"[*?\[]")
_DATED = re.compile(r"-\d{8}([-_.]?\d{2,6})?")


class CannotRead(Exception):
    """A log that will not be read, and why."""

    def __init__(self, code: ResetCode, text: str) -> None:
        super().__init__(text)
        self.reason = Reason(code, text)


class NotThere(CannotRead):
    """A log that does not exist now, but may later."""

    def __init__(self, text: str) -> None:
        super().__init__(ResetCode.INVALID, text)


class AllowedFiles:
    """The files that may be read as logs by ``account``."""

    def __init__(self, patterns: Sequence[str], account: Account) -> None:
        self._patterns = tuple(patterns)
        self._account = account

    def open(self, path: str) -> int:
        """A descriptor to read ``path`` with. Raises ``CannotRead``."""
        if not path.startswith("/") or "\0" in path:
            raise CannotRead(ResetCode.INVALID, f"log file {path!r}: expected an absolute path")
        allowed = [_expression(pattern) for pattern in self._patterns]

        def check(real: str) -> None:
            if not any(expression.fullmatch(real) for expression in allowed):
                raise CannotRead(ResetCode.REFUSED, f"logs.files of this device does not list {path}")

        return open_as(self._account, path, check)

    def previous(self, path: str) -> str:
        """The file that ``path`` was before it was rotated last. Raises ``CannotRead``."""
        # Asks first whether one may know.
        try:
            os.close(self.open(path))
        except NotThere:
            pass
        for candidate in (f"{path}.1", f"{path}.0", *_dated(path)):
            if os.path.lexists(candidate):
                return candidate
        raise CannotRead(ResetCode.INVALID, f"no previous log: {path}.1 does not exist")


def open_as(account: Account, path: str, check: Callable[[str], None] = lambda real: None) -> int:
    """Open the regular file ``path`` as ``account``, if ``check`` of its real path does not raise."""
    with acting_as(account):
        real = os.path.realpath(path)
        check(real)
        try:
            descriptor = os.open(
                real, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
            )
        except OSError as why:
            raise _cannot(path, why, account) from None
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise CannotRead(ResetCode.INVALID, f"log file {path} is not a regular file")
        opened = os.readlink(f"/proc/self/fd/{descriptor}")
        if opened != real:
            if opened.endswith(" (deleted)"):
                raise NotThere(f"log file {path} does not exist")
            check(opened)
    except BaseException as why:
        os.close(descriptor)
        if isinstance(why, OSError):
            raise _cannot(path, why, account) from None
        raise
    return descriptor


@contextmanager
def acting_as(account: Account) -> Iterator[None]:
    """Have the effective ids of ``account`` for a moment, if the agent is someone else."""
    if not account.switch:
        yield
        return
    groups, group, user = os.getgroups(), os.getegid(), os.geteuid()
    os.setgroups(os.getgrouplist(account.name, account.gid))
    try:
        os.setegid(account.gid)
        os.seteuid(account.uid)
        yield
    finally:
        os.seteuid(user)
        os.setegid(group)
        os.setgroups(groups)


def _cannot(path: str, why: OSError, account: Account) -> CannotRead:
    if why.errno in (errno.ENOENT, errno.ENOTDIR):
        return NotThere(f"log file {path} does not exist")
    if why.errno in (errno.EACCES, errno.EPERM):
        return CannotRead(ResetCode.REFUSED, f"user {account.name} may not read log file {path}")
    if why.errno == errno.ELOOP:
        return CannotRead(ResetCode.INVALID, f"log file {path} is a link that leads nowhere")
    return CannotRead(ResetCode.INTERNAL, f"cannot read log file {path}: {(why.strerror or 'error').lower()}")


def _dated(path: str) -> list[str]:
    """The files that were rotated by date, newest first; what is compressed is left out."""
    folder, name = os.path.split(path)
    try:
        names = os.listdir(folder)
    except OSError:
        return []
    dated = [other for other in names if other.startswith(name) and _DATED.fullmatch(other, len(name))]
    return [str(Path(folder, other)) for other in sorted(dated, reverse=True)]


def _expression(pattern: str) -> re.Pattern[str]:
    wild = _WILD.search(pattern)
    # The name itself is not resolved: its link would lead out of the list.
    head = pattern.rfind("/", 0, wild.start() if wild else len(pattern)) + 1
    folder = os.path.realpath(pattern[:head] or "/")
    return re.compile(re.escape(folder.rstrip("/") + "/") + _translated(pattern[head:]), re.DOTALL)


def _translated(pattern: str) -> str:
    """A shell pattern as a regular expression."""
    expression, position = "", 0
    while position < len(pattern):
        if pattern.startswith("**/", position):
            expression, position = expression + "(?:.*/)?", position + 3
        elif pattern.startswith("**", position):
            expression, position = expression + ".*", position + 2
        elif pattern[position] == "*":
            expression, position = expression + "[^/]*", position + 1
        elif pattern[position] == "?":
            expression, position = expression + "[^/]", position + 1
        elif pattern[position] == "[" and (close := pattern.find("]", position + 2)) > 0:
            names = pattern[position + 1 : close]
            negated = names[0] in "!^"
            escaped = re.sub(r"([\\\[\]^&|~])", r"\\\1", names[negated:])
            expression, position = expression + f"(?!/)[{'^' * negated}{escaped}]", close + 1
        else:
            expression, position = expression + re.escape(pattern[position]), position + 1
    return expression
