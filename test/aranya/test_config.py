"""Options from three sources become one ``Config``, or one line that says what is wrong."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from aranya.config import Config, ConfigError, check_url, own_identity, route_to


class ConfigCase(SynchronousTestCase):
    """Reads, and hears refusals."""

    def file(self, text: str) -> Path:
        path = Path(self.mktemp())
        path.write_text(text)
        return path

    def refused(
        self,
        options: Mapping[str, Any],
        environment: Mapping[str, str] | None = None,
        file: Path | None = None,
    ) -> str:
        """The one line."""
        with self.assertRaises(ConfigError) as raised:
            Config.of(options, environment or {}, file)
        line = str(raised.exception)
        self.assertEqual(1, len(line.splitlines()))
        return line


class SourcesTests(ConfigCase):
    """Command line, environment, file."""

    def test_defaults(self) -> None:
        """Without anything said all is as documented."""
        config = Config.of({}, {})
        self.assertEqual(Config(), config)
        self.assertEqual("tcp:8443", config.gateway)
        self.assertEqual("tcp:8080:interface=127.0.0.1", config.health)

    def test_precedence(self) -> None:
        """The command line wins over the environment, which wins over the file."""
        file = self.file("{gateway: 'tcp:1', health: 'tcp:1', identity: file}")
        environment = {"ARANYA_GATEWAY": "tcp:2", "ARANYA_HEALTH": "tcp:2"}
        config = Config.of({"gateway": "tcp:3"}, environment, file)
        self.assertEqual(("tcp:3", "tcp:2", "file"), (config.gateway, config.health, config.identity))

    def test_every_option_everywhere(self) -> None:
        """Each option is known to each source by the same name."""
        for option, word, value in (
            ("watch-namespace", "edge", "edge"),
            ("gateway-url", "wss://a,wss://b:1", ("wss://a", "wss://b:1")),
            ("replica-address", "10.0.0.1, 10.0.0.2", ("10.0.0.1", "10.0.0.2")),
            ("kubelet-ports", "20000-20999", (20000, 20999)),
            ("offline-grace", "0.5", 0.5),
            ("grace", "60", 60),
            ("log-format", "json", "json"),
        ):
            variable = "ARANYA_" + option.upper().replace("-", "_")
            for config in (
                Config.of({option: word}, {}),
                Config.of({}, {variable: word}),
                Config.of({}, {}, self.file(f"{option}: '{word}'")),
            ):
                self.assertEqual(value, getattr(config, option.replace("-", "_")))

    def test_grace(self) -> None:
        """The grace of sessions is whole seconds, five minutes by default; only 0 is none."""
        self.assertEqual(300, Config.of({}, {}).grace)
        for text, seconds in (("grace: 0", 0), ("grace: 90", 90), ("grace: 0.2", 1), ("grace: 3600", 3600)):
            grace = Config.of({}, {}, self.file(text)).grace
            self.assertEqual((seconds, int), (grace, type(grace)))

    def test_lists(self) -> None:
        """What may be repeated is a list in the file and on the command line."""
        config = Config.of({"gateway-url": ["wss://a", "wss://b"]}, {})
        self.assertEqual(("wss://a", "wss://b"), config.gateway_url)
        config = Config.of({}, {}, self.file("gateway-url: [wss://a, wss://b]"))
        self.assertEqual(("wss://a", "wss://b"), config.gateway_url)

    def test_empty(self) -> None:
        """An empty variable and an empty file say nothing."""
        self.assertEqual(Config(), Config.of({}, {"ARANYA_GATEWAY": ""}, self.file("")))


class RefusalTests(ConfigCase):
    """One line that names the source and what was expected."""

    def test_values(self) -> None:
        """A wrong value."""
        for option, value, said in (
            ("kubelet-ports", "20000", "LOW-HIGH"),
            ("kubelet-ports", "0-10", "within 1-65535"),
            ("kubelet-ports", "20-10", "range"),
            ("offline-grace", "soon", "seconds"),
            ("offline-grace", "nan", "within"),
            ("offline-grace", "-1", "within"),
            ("grace", "5m", "seconds"),
            ("grace", "3600.5", "within"),
            ("grace", "-1", "within"),
            ("log-format", "xml", "text or json"),
            ("gateway-url", "https://a", "wss://HOST"),
            ("gateway-url", "wss://a#b", "wss://HOST"),
        ):
            line = self.refused({}, {"ARANYA_" + option.upper().replace("-", "_"): value})
            self.assertIn("ARANYA_", line)
            self.assertIn(said, line)

    def test_types(self) -> None:
        """A value of the wrong kind in the file."""
        for text in ("gateway: 8443", "gateway-url: {a: b}", "gateway-url: [1]", "identity: [a]"):
            self.assertIn("expected", self.refused({}, file=self.file(text)))

    def test_files(self) -> None:
        """A file that is absent, broken, no mapping, or that holds an unknown option."""
        self.assertIn("cannot read --config", self.refused({}, file=Path(self.mktemp())))
        self.assertIn("not YAML", self.refused({}, file=self.file("{")))
        self.assertIn("mapping", self.refused({}, file=self.file("[]")))
        self.assertIn("unknown option 'gatway'", self.refused({}, file=self.file("gatway: x")))

    def test_half_a_pair(self) -> None:
        """A certificate without its key."""
        self.assertIn("go together", self.refused({"gateway-cert": "/a"}))


class UrlTests(SynchronousTestCase):
    """What a device can dial."""

    def test_good(self) -> None:
        """A host, with a port or without, of any kind."""
        for url in (
            "wss://gw.example",
            "wss://gw.example:443/",
            "wss://10.0.0.1:8443",
            "wss://[fd00::1]:8443",
        ):
            check_url("test", url)

    def test_bad(self) -> None:
        """Everything else."""
        for url in (
            "ws://a",
            "wss://",
            "wss://:1",
            "wss://a:0",
            "wss://a:x",
            "wss://u@a",
            "wss://a?b",
            "wss://a#b",
            "a:1",
        ):
            with self.assertRaises(ConfigError, msg=url):
                check_url("test", url)

    @settings(max_examples=200, deadline=None)
    @given(st.text(max_size=30))
    def test_anything(self, text: str) -> None:
        """Whatever is given is taken or refused with one error, never anything else."""
        for url in (text, f"wss://{text}"):
            try:
                check_url("test", url)
            except ConfigError:
                pass


class FindingOutTests(SynchronousTestCase):
    """What is found out when it is not said."""

    def test_identity(self) -> None:
        """Option, then the pod's name, then host and process."""
        self.assertEqual("a", own_identity(Config(identity="a"), {"POD_NAME": "b"}))
        self.assertEqual("b", own_identity(Config(), {"POD_NAME": "b"}))
        self.assertTrue(own_identity(Config(), {}).endswith(f"-{os.getpid()}"))

    def test_route(self) -> None:
        """The loopback is reached from itself; a name that is none is one line."""
        self.assertEqual("127.0.0.1", route_to("127.0.0.1", 6443))
        with self.assertRaises(ConfigError) as raised:
            route_to("name..invalid", 6443)
        self.assertIn("--node-address", str(raised.exception))
