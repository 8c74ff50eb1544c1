"""Credentials are found, read, renewed, and their faults told in one line."""

from __future__ import annotations

import base64
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from twisted.internet.defer import Deferred, succeed
from twisted.trial.unittest import SynchronousTestCase

from aranya.kube.credentials import ClusterAccess, Proof, read_access
from aranya.kube.errors import CredentialsError
from test.aranya.kube.identities import Authority

CA = Authority()


def at_once(work: Callable[[], Any]) -> Deferred[Any]:
    """No thread: the work is done here and now."""
    return succeed(None).addCallback(lambda _: work())


class CredentialsTests(SynchronousTestCase):
    """Files in a folder of its own."""

    def setUp(self) -> None:
        self.folder = Path(self.mktemp()).absolute()
        self.folder.mkdir()

    def config(self, user: dict[str, Any] | None = None, name: str = "config", **cluster: Any) -> Path:
        """A kubeconfig with one context."""
        entry = {
            "server": "https://10.0.0.1:6443/",
            "certificate-authority-data": base64.b64encode(CA.pem).decode(),
            **cluster,
        }
        content = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": name,
            "clusters": [{"name": name, "cluster": entry}],
            "users": [{"name": name, "user": user if user is not None else {"token": "secret"}}],
            "contexts": [{"name": name, "context": {"cluster": name, "user": name, "namespace": "edge"}}],
        }
        path = self.folder / name
        path.write_text(yaml.safe_dump(content))
        return path

    def proof(self, access: ClusterAccess, now: float = 0.0) -> Proof:
        return self.successResultOf(Deferred.fromCoroutine(access.proofs.proof(now, at_once)))

    def refused(self, path: Path, context: str = "") -> str:
        """The one line that a bad file ends with."""
        error = self.assertRaises(CredentialsError, read_access, str(path), context)
        self.assertNotIn("\n", str(error))
        self.assertNotIn("secret", str(error))
        return str(error)


class KubeconfigTests(CredentialsTests):
    """The file that kubectl reads too."""

    def test_token(self) -> None:
        """Server, CA, namespace and token are taken from the current context."""
        access = read_access(str(self.config()))
        self.assertEqual(
            (access.base_url, access.host, access.port), ("https://10.0.0.1:6443", "10.0.0.1", 6443)
        )
        self.assertEqual((access.ca, access.verify, access.namespace), (CA.pem, True, "edge"))
        self.assertEqual(self.proof(access).authorization, "Bearer secret")

    def test_no_secret_is_printed(self) -> None:
        """Neither the access nor a proof shows a token or a key."""
        access = read_access(str(self.config()))
        self.assertNotIn("secret", repr(access) + repr(self.proof(access)))
        pair = CA.issue("x")
        self.assertNotIn("PRIVATE", repr(Proof("", pair)))

    def test_relative_files(self) -> None:
        """Relative paths start at the kubeconfig's own folder."""
        pair = CA.issue("me")
        (self.folder / "me.crt").write_bytes(pair.certificate)
        (self.folder / "me.key").write_bytes(pair.key)
        (self.folder / "ca.crt").write_bytes(CA.pem)
        user = {"client-certificate": "me.crt", "client-key": "me.key"}
        path = self.config(user, **{"certificate-authority": "ca.crt", "certificate-authority-data": ""})
        access = read_access(str(path))
        self.assertEqual((access.ca, self.proof(access).pair), (CA.pem, pair))

    def test_several_files(self) -> None:
        """Several files are merged; ``--context`` chooses."""
        paths = f"{self.config(name='a')}{os.pathsep}{self.config({'token': 'other'}, name='b')}"
        self.assertEqual(self.proof(read_access(paths, "b")).authorization, "Bearer other")

    def test_server_name_and_verification(self) -> None:
        """tls-server-name and insecure-skip-tls-verify are honoured."""
        access = read_access(str(self.config(**{"tls-server-name": "kubernetes"})))
        self.assertEqual(access.server_name, "kubernetes")
        access = read_access(str(self.config(**{"insecure-skip-tls-verify": True})))
        self.assertFalse(access.verify)

    def test_password(self) -> None:
        """A name and a password are basic authentication."""
        access = read_access(str(self.config({"username": "a", "password": "b"})))
        self.assertEqual(self.proof(access).authorization, "Basic YTpi")

    def test_plugin(self) -> None:
        """An exec plugin is run when its answer is first needed, has expired, or was refused."""
        counter = self.folder / "runs"
        script = self.folder / "plugin.py"
        script.write_text(
            "import json\n"
            f"path = {str(counter)!r}\n"
            "open(path, 'a').write('x')\n"
            "runs = len(open(path).read())\n"
            "print(json.dumps({'apiVersion': 'client.authentication.k8s.io/v1', 'kind': 'ExecCredential',"
            " 'status': {'token': f'run-{runs}', 'expirationTimestamp': '1970-01-01T01:00:00Z'}}))\n"
        )
        command = {
            "apiVersion": "client.authentication.k8s.io/v1",
            "command": sys.executable,
            "args": [str(script)],
            "interactiveMode": "Never",
        }
        access = read_access(str(self.config({"exec": command})))
        self.assertFalse(counter.exists())
        self.assertEqual(self.proof(access, 0).authorization, "Bearer run-1")
        self.assertEqual(self.proof(access, 3000).authorization, "Bearer run-1")
        self.assertEqual(self.proof(access, 3550).authorization, "Bearer run-2")
        access.proofs.refused()
        self.assertEqual(self.proof(access, 0).authorization, "Bearer run-3")

    def test_plugin_runs_once_for_many(self) -> None:
        """Who asks while the plugin runs gets that run's answer, or its failure."""
        command = {"apiVersion": "client.authentication.k8s.io/v1", "command": "nothing"}
        access = read_access(str(self.config({"exec": command})))
        for outcome in ((Proof("Bearer x"), None), CredentialsError("no")):
            runs: list[Deferred[Any]] = []

            def in_thread(work: object, runs: list[Deferred[Any]] = runs) -> Deferred[Any]:
                runs.append(Deferred())
                return runs[-1]

            asked = [Deferred.fromCoroutine(access.proofs.proof(0, in_thread)) for _ in range(3)]
            self.assertEqual(len(runs), 1)
            if isinstance(outcome, tuple):
                runs[0].callback(outcome)
                self.assertEqual([self.successResultOf(one) for one in asked], [outcome[0]] * 3)
            else:
                runs[0].errback(outcome)
                for one in asked:
                    self.failureResultOf(one, CredentialsError)
            access.proofs.refused()

    def test_plugin_that_fails(self) -> None:
        """A plugin that is missing, fails, or gives nothing is one line."""
        for command, args, words in (
            ("/nonexistent/plugin", [], "does not start: No such file"),
            ("false", [], "process returned 1"),
            ("echo", ["{}"], "malformed response"),
        ):
            plugin = {"apiVersion": "client.authentication.k8s.io/v1", "command": command, "args": args}
            access = read_access(str(self.config({"exec": plugin})))
            failure = self.failureResultOf(
                Deferred.fromCoroutine(access.proofs.proof(0, at_once)), CredentialsError
            )
            self.assertIn(words, str(failure.value))

    def test_faults(self) -> None:
        """Each fault of a file is told in one line that names it, without its secrets."""
        missing = self.folder / "missing"
        self.assertIn("not found; use --kubeconfig", self.refused(missing))
        bad = self.folder / "bad"
        for content, words in (
            ("a: [secret", "is not YAML, line 1"),
            ("", "is empty"),
            ("[]", "not a valid kubeconfig"),
            ("just words", "not a valid kubeconfig"),
            ("clusters: []", "has no current context"),
            ("current-context: x\ncontexts: []", "Expected object with name x"),
        ):
            bad.write_text(content)
            self.assertIn(words, self.refused(bad), content)
        self.assertIn("with name nope", self.refused(self.config(), "nope"))
        self.assertIn("no usable server", self.refused(self.config(server="ftp://x")))
        broken = {"certificate-authority-data": "???"}
        self.assertIn("is not base64", self.refused(self.config(**broken)))
        broken = {"certificate-authority-data": "eHh4"}
        self.assertIn("holds no certificate", self.refused(self.config(**broken)))
        broken = {"certificate-authority-data": "", "certificate-authority": "nowhere.crt"}
        self.assertIn("No such file or directory", self.refused(self.config(**broken)))
        half = {"client-certificate-data": base64.b64encode(CA.pem).decode()}
        self.assertIn("must both be given", self.refused(self.config(half)))

    def test_folder(self) -> None:
        """A folder is not a kubeconfig."""
        self.assertIn("Is a directory", self.refused(self.folder))


class InClusterTests(CredentialsTests):
    """The service account of a pod."""

    def setUp(self) -> None:
        super().setUp()
        (self.folder / "token").write_text("first\n")
        (self.folder / "ca.crt").write_bytes(CA.pem)
        (self.folder / "namespace").write_text("home")
        self.environ = {"KUBERNETES_SERVICE_HOST": "fd00::1", "KUBERNETES_SERVICE_PORT": "443"}

    def access(self, **options: Any) -> ClusterAccess:
        return read_access(environ=self.environ, service_account=self.folder, **options)

    def test_access(self) -> None:
        """Address, CA and namespace of the pod; an IPv6 address gets its brackets."""
        access = self.access()
        self.assertEqual((access.base_url, access.host), ("https://[fd00::1]:443", "fd00::1"))
        self.assertEqual((access.ca, access.namespace), (CA.pem, "home"))
        self.assertEqual(self.proof(access).authorization, "Bearer first")

    def test_token_rotates(self) -> None:
        """A new token is seen within a minute, at once after a 401, and a lost file keeps the old."""
        access = self.access()
        self.proof(access, 0)
        new = self.folder / "new"
        new.write_text("second")
        new.rename(self.folder / "token")
        self.assertEqual(self.proof(access, 59).authorization, "Bearer first")
        self.assertEqual(self.proof(access, 60).authorization, "Bearer second")
        new.write_text("third")
        new.rename(self.folder / "token")
        access.proofs.refused()
        self.assertEqual(self.proof(access, 61).authorization, "Bearer third")
        (self.folder / "token").unlink()
        self.assertEqual(self.proof(access, 200).authorization, "Bearer third")

    def test_an_option_wins(self) -> None:
        """A kubeconfig that was asked for is used in a pod too."""
        self.assertEqual(self.access(kubeconfig=str(self.config())).host, "10.0.0.1")

    def test_variable_without_account(self) -> None:
        """Without the token file the pod's variables mean nothing."""
        (self.folder / "token").unlink()
        self.environ["KUBECONFIG"] = str(self.config())
        self.assertEqual(self.access().host, "10.0.0.1")
