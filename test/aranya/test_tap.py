"""The command line of ``twistd aranya``."""

from __future__ import annotations

import os
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from aranya.config import Config
from aranya.tap import Options, makeService
from tether.daemon import Daemon


def parsed(*words: str) -> Options:
    """The options of a command line."""
    options = Options()
    options.parseOptions(list(words))
    return options


class OptionsTests(SynchronousTestCase):
    """From words to ``Config``."""

    def setUp(self) -> None:
        for variable in ("ARANYA_CONFIG", "ARANYA_IDENTITY", "ARANYA_GATEWAY"):
            self.patch_environment(variable)

    def patch_environment(self, variable: str, value: str = "") -> None:
        former = os.environ.get(variable)

        def restore() -> None:
            if former is None:
                os.environ.pop(variable, None)
            else:
                os.environ[variable] = former

        self.addCleanup(restore)
        os.environ[variable] = value

    def test_nothing(self) -> None:
        """Without words all is as by default."""
        self.assertEqual(Config(), parsed().config())

    def test_repeated(self) -> None:
        """What may be repeated is kept in order."""
        options = parsed("--gateway-url", "wss://a", "--gateway-url=wss://b", "--replica-address", "10.0.0.2")
        self.assertEqual(("wss://a", "wss://b"), options.config().gateway_url)
        self.assertEqual(("10.0.0.2",), options.config().replica_address)

    def test_grace(self) -> None:
        """How long sessions outlive a link is an option like the others."""
        self.assertEqual(30, parsed("--grace", "30").config().grace)

    def test_config_file(self) -> None:
        """The file is named by an option or by the environment."""
        file = Path(self.mktemp())
        file.write_text("identity: me")
        self.assertEqual("me", parsed("--config", str(file)).config().identity)
        self.patch_environment("ARANYA_CONFIG", str(file))
        self.assertEqual("me", parsed().config().identity)

    def test_every_option_is_there(self) -> None:
        """Each field of ``Config`` is an option, and each option has its line of help."""
        text = parsed().getUsage(200)
        for name in Config.__dataclass_fields__:
            self.assertIn(f"--{name.replace('_', '-')}=", text)

    def test_refusals(self) -> None:
        """A wrong word is one line and no traceback."""
        for words in (("--no-such",), ("word",), ("--gateway",)):
            with self.assertRaises(SystemExit) as raised:
                parsed(*words)
            line = str(raised.exception.code)
            self.assertEqual((1, True), (len(line.splitlines()), line.startswith("aranya: ")))

    def test_service(self) -> None:
        """Good options give the daemon; bad ones end the program with one line."""
        self.assertIsInstance(makeService(parsed()), Daemon)
        with self.assertRaises(SystemExit) as raised:
            makeService(parsed("--kubelet-ports", "x"))
        self.assertIn("--kubelet-ports", str(raised.exception.code))
