"""What a child gets from the agent: whose it is, where it starts, what it can see.

A child gets HOME, USER, LOGNAME, SHELL, PATH, LANG, and TERM with a terminal;
nothing of the agent's own environment, which may hold a proxy's password. It
starts in HOME, or in ``/`` when that is missing.

Why commands are looked up here although the kernel would do it
    ``spawnProcess`` runs Python in the child until the command takes over, so
    what fails there fails as a traceback on the user's stderr with exit code 1.
    What can be known before is therefore refused before, as a shell would:
    127 for "not found", 126 for "cannot run". What only the kernel can know
    (a foreign binary, a lost interpreter) is left to a small program between
    the two, ``setsid`` or ``env``, which says it in one line with the same codes.
"""

from __future__ import annotations

import os
import pwd
import re
import shutil
import stat
import sys
from dataclasses import dataclass
from pathlib import Path

from arhat.config import Config, ConfigError
from arhat.interfaces import Builtins
from tether.verbs.requests import Exec

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

#: The kernel's limit for one argument or variable with its ending NUL (32 pages of 4 KiB).
_ONE_STRING = 32 * 4096

#: Where distributions keep the system's language.
_LOCALES = ("etc/default/locale", "etc/locale.conf")

#: Stands in for ``setsid`` and ``env`` where a device has neither.
_STAND_IN = """\
import os, sys
if sys.argv[1] == "session":
    os.setsid()
try:
    os.execvp(sys.argv[2], sys.argv[2:])
except OSError as why:
    sys.stderr.write(f"arhat: {sys.argv[2]}: {why.strerror}\\n")
    sys.exit(127 if isinstance(why, FileNotFoundError) else 126)
"""


class CannotRun(Exception):
    """A command that will not start; ``code`` is the exit code a shell would give."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.text = text


@dataclass(frozen=True, slots=True)
class Account:
    """Whose processes the children are. ``switch`` says that the agent is someone else (root)."""

    name: str
    uid: int
    gid: int
    home: str
    shell: str
    switch: bool = False
    path: str = PATH

    @classmethod
    def of(cls, config: Config) -> Account:
        """The account the owner chose, or the agent's own. Raises ``ConfigError``."""
        own = os.geteuid()
        try:
            entry = pwd.getpwnam(config.user) if config.user else pwd.getpwuid(own)
        except KeyError:
            if config.user:
                raise ConfigError(f"user: there is no user {config.user!r} on this device") from None
            # Containers and NFS have users without an entry.
            return cls(
                str(own), own, os.getegid(), "/", config.shell or _some_shell(""), path=config.path or PATH
            )
        if entry.pw_uid != own and own != 0:
            raise ConfigError(f"user: only root may run processes as {config.user!r}; leave it out")
        return cls(
            name=entry.pw_name,
            uid=entry.pw_uid,
            gid=entry.pw_gid,
            home=entry.pw_dir or "/",
            shell=config.shell or _some_shell(entry.pw_shell),
            switch=entry.pw_uid != own,
            path=config.path or PATH,
        )

    @property
    def folder(self) -> str:
        """Where children start: HOME if the account can be there, else ``/``."""
        try:
            status = os.stat(self.home)
        except OSError:
            return "/"
        return self.home if stat.S_ISDIR(status.st_mode) and self._may(status, os.X_OK) else "/"

    def environment(self, tty: bool) -> dict[bytes, bytes]:
        """The whole environment of a child."""
        variables = {
            "HOME": self.home,
            "USER": self.name,
            "LOGNAME": self.name,
            "SHELL": self.shell,
            "PATH": self.path,
            "LANG": language(),
        }
        if tty:
            variables["TERM"] = "xterm"
        return {os.fsencode(name): os.fsencode(value) for name, value in variables.items()}

    def may_run(self, status: os.stat_result) -> bool:
        """Whether the mode of a file lets this account execute it."""
        return self._may(status, os.X_OK)

    def _may(self, status: os.stat_result, right: int) -> bool:
        if self.uid == 0:
            return bool(status.st_mode & 0o111)
        if status.st_uid == self.uid:
            return bool(status.st_mode & (right << 6))
        groups = os.getgrouplist(self.name, self.gid) if self.switch else [*os.getgroups(), self.gid]
        if status.st_gid in groups:
            return bool(status.st_mode & (right << 3))
        return bool(status.st_mode & right)


@dataclass(frozen=True, slots=True)
class Launch:
    """All that starting a process takes; ``uid`` and ``gid`` only when they change."""

    executable: bytes
    argv: tuple[bytes, ...]
    environment: dict[bytes, bytes]
    folder: str
    uid: int | None
    gid: int | None


def login_shell(account: Account) -> Launch:
    """How to start the account's login shell on a terminal. Raises ``CannotRun``."""
    shell = os.fsencode(account.shell)
    _check(shell, shell, account)
    return _launch(account, shell, (b"-" + os.path.basename(shell),), tty=True)


def launch(account: Account, request: Exec, builtins: Builtins | None = None) -> Launch:
    """How to start what ``request`` asks for. Raises ``CannotRun``."""
    argv = request.argv
    if not argv or not argv[0]:
        raise CannotRun(127, "arhat: no command given")
    name = os.fsdecode(argv[0]) if argv[0].isascii() else argv[0].decode("utf-8", "replace")
    if any(b"\0" in argument for argument in argv):
        raise CannotRun(126, f"arhat: {name}: an argument holds a NUL byte")
    environment = account.environment(request.tty)
    if builtins is not None:
        argv = builtins(argv, lambda command: _find(command, account) is not None) or argv
    found = _find(argv[0], account)
    if found is None:
        raise CannotRun(127, f"arhat: {name}: not found")
    _check(found, argv[0], account)
    starter = _starter(argv[0], request.tty)
    strings = [*starter, *argv, *(key + b"=" + value for key, value in environment.items())]
    if max(map(len, strings)) >= _ONE_STRING or sum(len(text) + 9 for text in strings) > _all_strings():
        raise CannotRun(126, f"arhat: {name}: argument list too long")
    return _launch(account, starter[0], (*starter, *argv), request.tty)


def _launch(account: Account, executable: bytes, argv: tuple[bytes, ...], tty: bool) -> Launch:
    return Launch(
        executable=executable,
        argv=argv,
        environment=account.environment(tty),
        folder=account.folder,
        uid=account.uid if account.switch else None,
        gid=account.gid if account.switch else None,
    )


def _starter(command: bytes, tty: bool) -> tuple[bytes, ...]:
    """The program between agent and command.

    Without a terminal it makes the command the leader of its own session, so
    that one signal reaches all that the command started; a terminal does so by itself.
    """
    if not tty and (setsid := shutil.which("setsid", path=PATH)):
        return (os.fsencode(setsid), b"--")
    # To env, a name with "=" is a variable.
    if tty and b"=" not in command and (env := shutil.which("env", path=PATH)):
        return (os.fsencode(env), b"--")
    program = os.fsencode(sys.executable)
    return (program, b"-I", b"-S", b"-c", _STAND_IN.encode(), b"terminal" if tty else b"session")


def _find(command: bytes, account: Account) -> bytes | None:
    """The file that ``command`` names, on the PATH unless it holds a slash; the first runnable one."""
    if b"/" in command:
        path = os.path.join(os.fsencode(account.folder), command)
        return path if os.path.lexists(path) else None
    if not command:
        return None
    candidates = [os.path.join(folder, command) for folder in os.fsencode(account.path).split(b":")]
    present = [path for path in candidates if os.path.isfile(path)]
    for path in present:
        if account.may_run(os.stat(path)):
            return path
    return present[0] if present else None


def _check(path: bytes, command: bytes, account: Account) -> None:
    shown = command.decode("utf-8", "replace")
    try:
        status = os.stat(path)
    except FileNotFoundError:
        raise CannotRun(127, f"arhat: {shown}: not found") from None
    except OSError as why:
        raise CannotRun(126, f"arhat: {shown}: {(why.strerror or 'cannot be read').lower()}") from None
    if stat.S_ISDIR(status.st_mode):
        raise CannotRun(126, f"arhat: {shown}: is a directory")
    if not stat.S_ISREG(status.st_mode) or not account.may_run(status):
        raise CannotRun(126, f"arhat: {shown}: permission denied")


def _all_strings() -> int:
    try:
        limit = os.sysconf("SC_ARG_MAX")
    except (OSError, ValueError):
        limit = -1
    # The stack of the new process also holds its auxiliary vector and the file's name.
    return (limit if limit > 0 else 128 * 1024) - 4096


def _some_shell(wished: str) -> str:
    """The account's shell, or ``sh`` when it has none."""
    return wished if wished.startswith("/") else "/bin/sh"


def language(root: Path = Path("/")) -> str:
    """The system's language as its administrator set it, else ``C.UTF-8``."""
    for name in _LOCALES:
        try:
            text = (root / name).read_text("utf-8", "replace")
        except OSError:
            continue
        if found := re.search(r'^\s*LANG=["\']?([A-Za-z0-9_.@-]+)["\']?\s*$', text, re.MULTILINE):
            return found.group(1)
    return "C.UTF-8"
