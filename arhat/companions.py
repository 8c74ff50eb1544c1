"""Which other agents live on this host with the same state folder: one locked file each.

An agent holds its file under a lock for as long as it lives, and the kernel lets go
of the lock however the agent ends. So a file that can be locked is a dead one's, and
whoever finds it removes it. Children do not inherit the lock, as the file is closed in them.

The file is named by the agent's alias. A copy of the folder holds the key, and with the
instance whoever has it could take up the agent's sessions.

Only a free lock or a file that is gone proves that an agent is dead. An error that says
nothing, as when no descriptor is left, leaves an agent what it was: alive.
"""

from __future__ import annotations

import fcntl
import os
import re
from contextlib import suppress
from pathlib import Path

from twisted.logger import Logger

from tether.wire.frames import COMPANIONS_LIMIT, alias_of

_FOLDER = "agents"
#: An alias in hex; whatever else is there is nobody's.
_NAME = re.compile(r"[0-9a-f]{32}")


class Companions:
    """Makes this agent known to the others, and finds them.

    Where that cannot be done there is one line in the log, and the agent is alone.
    """

    _log = Logger()

    def __init__(self, state: Path, instance: bytes) -> None:
        self._folder = state / _FOLDER
        self._alias = alias_of(instance)
        self._name = self._alias.hex()
        self._file: int | None = None
        self._latest: frozenset[bytes] = frozenset()
        self._blind = False
        try:
            self._file = self._enter()
        except OSError as error:
            self._unknown(error)

    def living(self) -> frozenset[bytes]:
        """The aliases of the others that live now, as many as can be told.

        While they cannot be looked for they are those that lived when they last could be.
        """
        others = self._look()
        return self._latest if others is None else others

    def all_living(self) -> frozenset[bytes]:
        """The same and this one; empty where the others cannot be known now."""
        others = self._look()
        return frozenset() if others is None else others | {self._alias}

    def leave(self) -> None:
        """Be known no longer, and know nobody."""
        self._latest = frozenset()
        if self._file is not None:
            with suppress(OSError):
                (self._folder / self._name).unlink()
            os.close(self._file)
            self._file = None

    def _enter(self) -> int:
        self._folder.mkdir(mode=0o700, exist_ok=True)
        # Under its name only when it is locked: who looked in between would take it for a dead one's.
        fresh = self._folder / f"{self._name}.new"
        file = os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            fresh.rename(self._folder / self._name)
        except BaseException:
            os.close(file)
            fresh.unlink(missing_ok=True)
            raise
        return file

    def _look(self) -> frozenset[bytes] | None:
        """The others; ``None`` if they cannot be looked for now, or ever."""
        if self._file is None:
            return None
        try:
            names = os.listdir(self._folder)
        except (FileNotFoundError, NotADirectoryError) as error:
            # This one's file is gone too.
            self.leave()
            self._unknown(error)
            return None
        except OSError as error:
            if not self._blind:
                self._blind = True
                self._unknown(error)
            return None
        self._blind = False
        others = (name for name in sorted(names) if _NAME.fullmatch(name) and name != self._name)
        living = [bytes.fromhex(name) for name in others if self._may_live(name)]
        self._latest = frozenset(living[:COMPANIONS_LIMIT])
        return self._latest

    def _may_live(self, name: str) -> bool:
        path = self._folder / name
        try:
            file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        except OSError:
            return True
        try:
            # Shared, for two who look at once must not take each other for the owner.
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            with suppress(OSError):
                path.unlink()
        except OSError:
            # Most often it is locked.
            return True
        finally:
            os.close(file)
        return False

    def _unknown(self, error: OSError) -> None:
        self._log.warn(
            "cannot know other agents of this host by {folder}: {reason}",
            folder=self._folder,
            reason=error.strerror or str(error),
        )
