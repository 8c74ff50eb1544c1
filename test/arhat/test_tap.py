"""The command line of ``twistd arhat``."""

from __future__ import annotations

import os
import time
from pathlib import Path

from twisted.internet.testing import MemoryReactorClock
from twisted.trial.unittest import SynchronousTestCase

from arhat.tap import Options, default_state, makeService, wait_steadily
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
