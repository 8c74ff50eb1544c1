"""The device owner's policy."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from arhat.config import LOOPBACK, VERBS, Config, ConfigError, forward_rules
from tether.verbs.requests import ForwardRule


class ConfigTests(SynchronousTestCase):
    """One YAML file becomes one value."""

    def read(self, text: str) -> Config:
        self.file = Path(self.mktemp())
        self.file.write_text(text, "utf-8")
        return Config.read(self.file)

    def refusal(self, text: str) -> str:
        line = str(self.assertRaises(ConfigError, self.read, text))
        self.assertTrue(line.startswith((f"{self.file}: ", f"{self.file} ")), line)
        self.assertNotIn("\n", line)
        return line

    def test_defaults(self) -> None:
        """Without a file, or with an empty one, everything is allowed on the loopback."""
        self.assertEqual(Config.read(None), Config())
        self.assertEqual(self.read(""), Config())
        self.assertEqual(Config().allow, frozenset(VERBS))
        self.assertEqual(Config().forward, LOOPBACK)
        self.assertEqual(Config().log_files, ("/var/log/**",))

    def test_everything(self) -> None:
        """Each key is read."""
        config = self.read(
            "allow: [exec, logs]\nuser: nobody\nshell: /bin/bash\npath: /opt/bin:/bin\n"
            "forward: ['192.168.7.50:502', 'localhost:80-90']\n"
            "logs: {files: [/var/log/**, /srv/app.log], journal: /srv/journal}\n"
            "labels: {site: north, example.com/rack: 'r1'}\n"
            "limits: {sessions: 5}\nkill-grace: 2.5\ndrain: 60\n"
        )
        self.assertEqual(
            config,
            Config(
                allow=frozenset({"exec", "logs"}),
                user="nobody",
                shell="/bin/bash",
                path="/opt/bin:/bin",
                forward=(
                    ForwardRule("192.168.7.50", 502, 502),
                    ForwardRule("127.0.0.0/8", 80, 90),
                    ForwardRule("::1/128", 80, 90),
                ),
                log_files=("/var/log/**", "/srv/app.log"),
                journal="/srv/journal",
                labels={"site": "north", "example.com/rack": "r1"},
                max_sessions=5,
                kill_grace=2.5,
                drain=60.0,
            ),
        )

    def test_attach_off(self) -> None:
        """``attach: off`` takes attach away, wherever it stands; ``on`` gives nothing."""
        self.assertEqual(self.read("attach: off").allow, frozenset(VERBS) - {"attach"})
        self.assertEqual(self.read("attach: off\nallow: [exec, attach]").allow, {"exec"})
        self.assertEqual(self.read("allow: [exec]\nattach: on").allow, {"exec"})

    def test_no_drain(self) -> None:
        """The owner may let the agent stop at once; by default sessions have half a minute."""
        self.assertEqual((self.read("drain: 0").drain, Config().drain), (0.0, 30.0))

    def test_nothing_allowed(self) -> None:
        """Empty lists allow nothing."""
        config = self.read("allow: []\nforward: []\nlogs: {files: []}\n")
        self.assertEqual((config.allow, config.forward, config.log_files), (frozenset(), (), ()))

    def test_mistakes(self) -> None:
        """A mistake is one line that names the file, the key and what is allowed."""
        for text, part in (
            ("alow: [exec]", "unknown key 'alow'; known are allow, "),
            ("allow: exec", "allow: expected a list of strings"),
            ("allow: [run]", "allow: unknown verb 'run'; known are exec, attach, logs, port-forward"),
            ("attach: maybe", "attach: expected on or off"),
            ("user: 7", "user: expected a string"),
            ("shell: bash", "shell: expected an absolute path"),
            ("path: bin:/bin", "path: expected absolute folders"),
            ("logs: {journal: x}", "logs.journal: expected an absolute path"),
            ("forward: [80]", "forward: expected a list"),
            ("forward: ['host']", "forward: 'host' is not HOST:PORT"),
            ("forward: ['10.0.0.1:0']", "ports are within 1-65535"),
            ("forward: ['fd00::1:80']", "IPv6 address as [ADDRESS]:PORT"),
            ("logs: [x]", "logs: expected a mapping"),
            ("logs: {file: [x]}", "logs: unknown key 'file'; known are files, journal"),
            ("logs: {files: [var/log]}", "logs.files: expected an absolute path"),
            ("logs: {files: [/var/log/../../etc/**]}", "logs.files: expected an absolute path without .."),
            ("labels: {kubernetes.io/role: x}", "reserved"),
            ("labels: {node.k8s.io/x: x}", "reserved"),
            ("labels: {arhat.dev/name: x}", "reserved"),
            ("labels: {a: yes}", "labels: a: True is not a label value; quote"),
            ("labels: {'a b': x}", "labels: 'a b' is not a label key"),
            (f"forward: {['h:1'] * 257}", "forward: 257 rules are too many; 256 can be told"),
            (f"labels: {dict.fromkeys(map(str, range(33)), 'x')}", "labels: 33 are too many; 32 can be told"),
            ("limits: {sessions: 0}", "limits.sessions: expected a number within 1 and 10000"),
            ("limits: {x: 0}", "limits: unknown key 'x'"),
            ("kill-grace: soon", "kill-grace: expected seconds"),
            ("drain: off", "drain: expected seconds within 0 and 3600, not False"),
            ("drain: -1", "drain: expected seconds within 0 and 3600, not -1"),
            ("drain: 3601", "drain: expected seconds"),
            ("- exec", "expected a mapping"),
            ("{", "is not YAML"),
        ):
            self.assertIn(part, self.refusal(text), text)

    def test_missing_file(self) -> None:
        """A file that cannot be read is one line."""
        why = self.assertRaises(ConfigError, Config.read, Path("/no/such/file"))
        self.assertEqual(str(why), "cannot read --config /no/such/file: No such file or directory")


class ForwardRuleTests(SynchronousTestCase):
    """How targets are written."""

    def test_forms(self) -> None:
        """Addresses, networks and names, with a port, a range, or any port."""
        for text, host, low, high in (
            ("10.0.0.5:80", "10.0.0.5", 80, 80),
            ("10.0.0.5/24:80-81", "10.0.0.0/24", 80, 81),
            ("[fd00::1]:443", "fd00::1", 443, 443),
            ("[fd00::/8]:*", "fd00::/8", 1, 65535),
            ("PLC.lan:502", "plc.lan", 502, 502),
        ):
            self.assertEqual(forward_rules(text), (ForwardRule(host, low, high),), text)

    def test_bad_forms(self) -> None:
        """Whatever cannot be meant is refused."""
        bad = ("", ":80", "a:", "a:b", "a:1-", "a:2-1", "a:70000", "10.0.0.0/40:1", "300.1.1.1:80")
        for text in (*bad, "a/b:1", "[plc]:1", "a:+1", "a:1_0", "a b:1"):
            self.assertRaises(ConfigError, forward_rules, text)

    @given(st.text(max_size=30))
    @settings(max_examples=200, deadline=None)
    def test_any_text(self, text: str) -> None:
        """Any text is either rules within the range of ports, or one ``ConfigError``."""
        try:
            rules = forward_rules(text)
        except ConfigError:
            return
        for rule in rules:
            self.assertTrue(1 <= rule.low <= rule.high <= 65535)
