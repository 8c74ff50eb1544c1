"""Which other agents live beside this one."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
from pathlib import Path

from twisted.logger import capturedLogs
from twisted.trial.unittest import SynchronousTestCase

from arhat.companions import Companions
from test.arhat.running import no_descriptors
from tether.wire.frames import COMPANIONS_LIMIT, alias_of

ONE, TWO, THREE = b"1" * 16, b"2" * 16, b"3" * 16

#: Lives until it is killed, and leaves a child that was given every descriptor it could be given.
_AGENT = """
import subprocess, sys
from pathlib import Path
from arhat.companions import Companions
companions = Companions(Path(sys.argv[1]), b"2" * 16)
child = subprocess.Popen(["cat"], stdin=sys.stdin, close_fds=False)
print("up", flush=True)
child.wait()
"""


def aliases(*instances: bytes) -> set[bytes]:
    """What these are called among each other."""
    return {alias_of(instance) for instance in instances}


class CompanionsTests(SynchronousTestCase):
    """One state folder, several agents."""

    def setUp(self) -> None:
        self.state = Path(self.mktemp()).absolute()
        self.state.mkdir()
        self.folder = self.state / "agents"

    def agent(self, instance: bytes) -> Companions:
        """One that leaves with the test at the latest."""
        companions = Companions(self.state, instance)
        self.addCleanup(companions.leave)
        return companions

    def test_alone(self) -> None:
        """An agent is not a companion of its own."""
        self.assertEqual(self.agent(ONE).living(), frozenset())

    def test_see_each_other(self) -> None:
        """Each sees the others, whoever came first, and no longer when they left."""
        one, two, three = self.agent(ONE), self.agent(TWO), self.agent(THREE)
        self.assertEqual(one.living(), aliases(TWO, THREE))
        self.assertEqual(three.living(), aliases(ONE, TWO))
        two.leave()
        self.assertEqual(one.living(), aliases(THREE))
        self.assertEqual(two.living(), frozenset())

    def test_all(self) -> None:
        """All is the others and this one; nobody where they cannot be known."""
        one, two = self.agent(ONE), self.agent(TWO)
        self.assertEqual(one.all_living(), aliases(ONE, TWO))
        two.leave()
        self.assertEqual((one.all_living(), two.all_living()), (aliases(ONE), frozenset()))

    def test_killed(self) -> None:
        """A killed agent is not seen any more, its file is removed, and its children do not hold it."""
        one = self.agent(ONE)
        two = subprocess.Popen(
            [sys.executable, "-c", _AGENT, str(self.state)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parents[2],
        )
        assert two.stdin is not None and two.stdout is not None
        # Its child ends with this.
        self.addCleanup(two.stdin.close)
        self.addCleanup(two.stdout.close)
        self.assertEqual(two.stdout.readline(), b"up\n")
        self.assertEqual(one.living(), aliases(TWO))
        two.kill()
        two.wait()
        self.assertEqual(one.living(), frozenset())
        self.assertEqual(os.listdir(self.folder), [alias_of(ONE).hex()])

    def test_only_for_the_owner(self) -> None:
        """Folder and files are the agent's own, and the file's name does not tell the instance."""
        self.agent(ONE)
        self.assertEqual(self.folder.stat().st_mode & 0o777, 0o700)
        self.assertEqual((self.folder / alias_of(ONE).hex()).stat().st_mode & 0o777, 0o600)
        self.assertFalse((self.folder / ONE.hex()).exists())

    def test_other_files(self) -> None:
        """What is not named as an instance is neither a companion nor removed."""
        one = self.agent(ONE)
        for name in ("README", f"{TWO.hex()}.new", "2" * 31):
            (self.folder / name).touch()
        self.assertEqual(one.living(), frozenset())
        self.assertEqual(len(os.listdir(self.folder)), 4)

    def test_too_many(self) -> None:
        """No more are named than can be told."""
        for number in range(COMPANIONS_LIMIT + 2):
            self.agent(b"%016d" % number)
        self.assertEqual(len(self.agent(ONE).living()), COMPANIONS_LIMIT)

    def test_unwritable(self) -> None:
        """Where nothing can be kept one line says so, and the agent is alone."""
        self.folder.touch()
        with capturedLogs() as events:
            one = self.agent(ONE)
            self.assertEqual((one.living(), one.living()), (frozenset(), frozenset()))
        [event] = events
        self.assertEqual(event["folder"], self.folder)

    def test_no_descriptor(self) -> None:
        """An agent that can open nothing stays known, is told so once, and knows the others again later."""
        one, two = self.agent(ONE), self.agent(TWO)
        self.assertEqual(one.living(), aliases(TWO))
        for _ in range(2):
            with capturedLogs() as events, no_descriptors():
                # Those last seen have not died of this; as a witness it says nothing.
                self.assertEqual((one.living(), one.all_living()), (aliases(TWO), frozenset()))
            self.assertEqual(len(events), 1)
            self.assertEqual(two.all_living(), aliases(ONE, TWO))
            self.assertEqual(one.all_living(), aliases(ONE, TWO))
        two.leave()
        self.assertEqual(one.living(), frozenset())

    def test_cannot_look_at_one(self) -> None:
        """Whose file cannot be opened or tried is not taken for dead."""
        one, two = self.agent(ONE), self.agent(TWO)

        def refuse(*_: object) -> int:
            raise OSError(errno.EMFILE, "too many open files")

        for module, name in ((os, "open"), (fcntl, "flock")):
            patch = self.patch(module, name, refuse)
            self.assertEqual(one.all_living(), aliases(ONE, TWO))
            patch.restore()
        self.assertEqual(two.all_living(), aliases(ONE, TWO))

    def test_dead_file_stays(self) -> None:
        """A dead one's file that cannot be removed proves its death all the same."""
        one = self.agent(ONE)
        (self.folder / alias_of(TWO).hex()).touch()

        def refuse(*_: object, **__: object) -> None:
            raise OSError(errno.EROFS, "read-only file system")

        patch = self.patch(os, "unlink", refuse)
        self.assertEqual(one.living(), frozenset())
        patch.restore()

    def test_folder_gone(self) -> None:
        """A folder that vanishes is one line too."""
        one = self.agent(ONE)
        (self.folder / alias_of(ONE).hex()).unlink()
        self.folder.rmdir()
        with capturedLogs() as events:
            self.assertEqual((one.living(), one.living()), (frozenset(), frozenset()))
        self.assertEqual(len(events), 1)
