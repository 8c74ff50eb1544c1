"""The command line of ``twistd arhat``."""

from __future__ import annotations

import os
import re
import resource
import time
from pathlib import Path

from twisted.internet.testing import MemoryReactorClock
from twisted.trial.unittest import SynchronousTestCase

import arhat.tap
from arhat.tap import Options, default_state, makeService, open_more, wait_steadily
from tether.daemon import Daemon


def parsed(*words: str) -> Options:
    """The options of a command line."""
    options = Options()
    options.parseOptions(list(words))
    return options


class ClockTests(SynchronousTestCase):
    """The clock that the agent waits by."""

    def test_nobody_sets_it(self) -> None:
        """Waiting goes by the time since boot, whatever the wall clock says."""
        reactor = MemoryReactorClock()
        wait_steadily(reactor)
        self.assertLess(abs(reactor.seconds() - time.clock_gettime(time.CLOCK_BOOTTIME)), 5)


class DescriptorTests(SynchronousTestCase):
    """How many descriptors the agent and its children may have open."""

    def setUp(self) -> None:
        before = resource.getrlimit(resource.RLIMIT_NOFILE)
        self.addCleanup(resource.setrlimit, resource.RLIMIT_NOFILE, before)
        self.hard = before[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (1000, self.hard))
        self.reactor = MemoryReactorClock()
        self.reactor.spawnProcess = lambda *arguments, **more: (self.soft(), arguments, more)

    def soft(self) -> int:
        return resource.getrlimit(resource.RLIMIT_NOFILE)[0]

    def test_agent_and_children(self) -> None:
        """The agent may open what it may at most, its children what they always could."""
        open_more(self.reactor)
        self.assertEqual(self.soft(), self.hard)
        spawned = self.reactor.spawnProcess("protocol", path="/")
        self.assertEqual(spawned, (1000, ("protocol",), {"path": "/"}))
        self.assertEqual(self.soft(), self.hard)

    def test_child_that_fails(self) -> None:
        """The limit is the agent's own again when no child came of it."""
        self.reactor.spawnProcess = lambda: os.open("/no/such/file", os.O_RDONLY)
        open_more(self.reactor)
        self.assertRaises(FileNotFoundError, self.reactor.spawnProcess)
        self.assertEqual(self.soft(), self.hard)

    def test_much_is_open(self) -> None:
        """Where a child could not be started below its limit it gets the agent's."""
        open_more(self.reactor)
        file = os.open(os.devnull, os.O_RDONLY)
        self.addCleanup(os.close, file)
        os.dup2(file, 990)
        self.addCleanup(os.close, 990)
        self.assertEqual(self.reactor.spawnProcess()[0], self.hard)

    def test_undone(self) -> None:
        """A program that takes the agent's place begins where the agent began."""
        lower = open_more(self.reactor)
        lower()
        self.assertEqual(self.soft(), 1000)

    def test_refused(self) -> None:
        """Where the kernel refuses, everything stays as it is."""

        def refuse(*_: object) -> None:
            raise ValueError("not allowed to raise maximum limit")

        patch = self.patch(resource, "setrlimit", refuse)
        open_more(self.reactor)()
        patch.restore()
        self.assertEqual((self.soft(), self.reactor.spawnProcess()[0]), (1000, 1000))

    def test_unit(self) -> None:
        """The unit leaves the agent room above what its children start with."""
        unit = (Path(arhat.tap.__file__).parents[1] / "deploy" / "arhat.service").read_text("utf-8")
        [(soft, hard)] = re.findall(r"^LimitNOFILE=(\d+):(\d+)$", unit, re.MULTILINE)
        self.assertEqual(1024, int(soft))
        self.assertGreater(int(hard), 16 * int(soft))


class OptionsTests(SynchronousTestCase):
    """What may be said, and what is one line."""

    def refused(self, *words: str) -> str:
        """The one line with which the program ends."""
        with self.assertRaises(SystemExit) as raised:
            makeService(parsed(*words))
        line = str(raised.exception.code)
        self.assertEqual((1, True), (len(line.splitlines()), line.startswith("arhat: ")))
        return line

    def test_service(self) -> None:
        """Nothing need be said; nothing is read or written before the reactor runs."""
        state = Path(self.mktemp())
        self.assertIsInstance(makeService(parsed()), Daemon)
        self.assertIsInstance(makeService(parsed("--state", str(state), "--join", "word")), Daemon)
        self.assertFalse(state.exists())

    def test_refusals(self) -> None:
        """A wrong word, a wrong log format, a policy that cannot be read or obeyed."""
        policy = Path(self.mktemp())
        policy.write_text("allow: [everything]")
        nobody = Path(self.mktemp())
        nobody.write_text("user: no-such-user")
        for words, said in (
            (("--no-such",), "twistd arhat --help"),
            (("word",), "unexpected argument"),
            (("--log-format", "xml"), "text or json"),
            (("--config", "/no/such/file"), "cannot read --config"),
            (("--config", str(policy)), str(policy)),
            (("--config", str(nobody)), "no-such-user"),
        ):
            self.assertIn(said, self.refused(*words))

    def test_token_is_not_told(self) -> None:
        """A refusal does not repeat the token."""
        self.assertNotIn("secretword", self.refused("--join", "secretword", "--log-format", "xml"))

    def test_default_state(self) -> None:
        """Root's agent has the system's place, another's its own, which XDG may move."""
        self.patch(os, "geteuid", lambda: 0)
        self.assertEqual(Path("/var/lib/arhat"), default_state())
        self.patch(os, "geteuid", lambda: 1000)
        self.patch(os, "environ", {"HOME": "/home/x"})
        self.assertEqual(Path("/home/x/.local/state/arhat"), default_state())
        self.patch(os, "environ", {"XDG_STATE_HOME": "/state"})
        self.assertEqual(Path("/state/arhat"), default_state())
