"""``kubectl aranya``: the plugin as each kubectl runs it, and leaving a cluster without a trace."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import time

from twisted.trial.unittest import SynchronousTestCase

from test.cluster.daemons import (
    DEVICE_NAMESPACE,
    OWN_NAMESPACE,
    PROGRAMS,
    Site,
    Twistd,
    kubectls,
    spare_plane,
    spare_site,
    wait_until,
)
from test.cluster.kubectl import Completed, Kubectl
from test.cluster.plane import shared_plane
from test.cluster.proxy import Road
from test.cluster.test_exec import DEVICE, ExecCase

PATH = {"PATH": f"{PROGRAMS}:{os.environ.get('PATH', os.defpath)}"}


def plugin(client: Kubectl, *words: str, input: bytes | None = None) -> Completed:
    """Run ``kubectl aranya``; kubectl takes no flag before a plugin's name."""
    bare = Kubectl(client.binary, client.kubeconfig)
    return bare.run("aranya", *words, "-n", DEVICE_NAMESPACE, env=PATH, input=input)


class VerbTests(ExecCase):
    """Each verb says in a line what it did or why not."""

    def assert_refused(self, done: Completed, *words: str) -> None:
        """Code 1, nothing on stdout, one line with these words on stderr."""
        self.assert_code(done, 1)
        self.assertEqual(done.out, b"")
        self.assertEqual(done.err.count(b"\n"), 1, done.err)
        for word in words:
            self.assertIn(word, done.err.decode())

    def test_ban_and_unban(self) -> None:
        """A ban shuts the device out at once and tells it why; lifting it lets it back."""
        if "disliked" not in self.site.devices:
            self.site.add_device("disliked")
        agent = self.site.devices["disliked"]
        client = self.clients[-1]
        done = plugin(client, "ban", "disliked")
        self.assert_code(done, 0)
        self.assertEqual(done.out, b"disliked banned\n")
        wait_until(
            "the device is out",
            lambda: self.site.condition("ed", "disliked", "Connected") == "False",
            10,
            self.site.explain,
        )
        self.assert_code(client.run("exec", "disliked", "--", "true"), 1)
        self.assertEqual(plugin(client, "ban", "disliked").out, b"disliked is banned already\n")
        self.assert_refused(plugin(client, "join", "disliked"), "unban")
        wait_until("the agent heard why", lambda: "banned" in agent.text(), 10)
        done = plugin(client, "unban", "disliked")
        self.assert_code(done, 0)
        self.assertEqual(done.out, b"disliked unbanned\n")
        # One that was sent away asks again only after a while; its owner need not wait.
        agent.kill()
        agent.start()
        self.site.wait_online("disliked", 15)

    def test_unknown_device(self) -> None:
        """A name that is not there is told together with those that are, whichever kubectl asks."""
        for client, verb in zip(self.clients, itertools.cycle(("join", "ban", "unban")), strict=False):
            self.assert_refused(plugin(client, verb, "nonesuch"), "nonesuch", DEVICE)

    def test_join_prints_the_line_to_type(self) -> None:
        """``join`` prints a comment and the command; ``--print-token`` the word in it alone."""
        self.site.create_device("invited")
        done = plugin(self.clients[-1], "join", "invited")
        self.assert_code(done, 0)
        comment, command = done.out.decode().splitlines()
        self.assertTrue(comment.startswith("# "), comment)
        self.assertIn("arhat --join ", command)
        token = plugin(self.clients[0], "join", "invited", "--print-token")
        self.assert_code(token, 0)
        self.assertEqual(token.out.count(b"\n"), 1)
        self.assertNotEqual(token.out.decode().strip(), command.split()[-1])
        self.assert_code(self.site.edge.run("delete", "ed", "invited", timeout=30), 0)

    def test_doctor(self) -> None:
        """One line per check; what a plane on loopback cannot walk is the only one that may fail."""
        done = plugin(self.clients[-1], "doctor", DEVICE)
        lines = done.out.decode().splitlines()
        for check in ("API server", "CRD of EdgeDevice", "aranya leads"):
            self.assertTrue([one for one in lines if one.startswith(f"ok    {check}")], lines)
        for check in ("Connected", "NodeReady", "CertificateReady", "Node", "Pod"):
            self.assertTrue([one for one in lines if one.startswith(f"ok    {DEVICE}: {check}")], lines)
        rest = [one for one in lines if not one.startswith("ok ")]
        self.assertTrue(all("kubelet endpoint" in one for one in rest), rest)
        self.assertEqual(done.code, 1 if any(one.startswith("FAIL") for one in rest) else 0)
        self.assertEqual(done.err, b"")

    def test_doctor_tells_of_standbys(self) -> None:
        """An agent that stands by is told beside the connection."""
        elder = self.site.devices[DEVICE]
        younger = Twistd("younger", elder.words, elder.folder / "younger")
        self.addCleanup(younger.kill)
        younger.start()

        def told() -> bool:
            lines = plugin(self.clients[-1], "doctor", DEVICE).out.decode().splitlines()
            return f"ok    {DEVICE}: Connected: the device is connected; 1 agent stands by" in lines

        wait_until("the doctor tells", told, 20, self.site.explain)

    def test_doctor_finds_an_absent_device(self) -> None:
        """A device that never joined fails its check, with what to do, and the exit code says so."""
        self.site.create_device("never-came")
        wait_until("aranya saw it", lambda: self.site.condition("ed", "never-came", "Connected"), 20)
        done = plugin(self.clients[-1], "doctor", "never-came")
        self.assert_code(done, 1)
        found = [one for one in done.out.decode().splitlines() if "never-came: Connected" in one]
        self.assertTrue(found and found[0].startswith("FAIL"), done.out)
        self.assertIn("kubectl aranya join never-came", found[0])
        self.assert_code(self.site.edge.run("delete", "ed", "never-came", timeout=30), 0)

    def test_without_rights(self) -> None:
        """Who has no rights hears it in one line, and changes nothing."""
        stranger = shared_plane().kubeconfig_for_certificate("stranger", ["nobody"])
        poor = Kubectl(self.clients[-1].binary, stranger)
        for verb in ("join", "ban"):
            self.assert_refused(plugin(poor, verb, DEVICE), "stranger")
        done = plugin(poor, "doctor")
        self.assert_code(done, 1)
        self.assertNotIn(b"Traceback", done.err)
        device = self.site.get("ed", DEVICE)
        assert device is not None
        self.assertFalse(device["spec"].get("banned"))

    def test_uninstall_while_aranya_runs(self) -> None:
        """``uninstall`` refuses as long as somebody would make everything anew."""
        self.assert_refused(plugin(self.clients[-1], "uninstall", "--yes"), "still runs", "Deployment")
        self.assertIsNotNone(self.site.get("node", DEVICE))


class LeavingTests(SynchronousTestCase):
    """What is left of aranya when it, or its devices' namespace, goes."""

    def setUp(self) -> None:
        """Have two devices on a plane of their own, one of them online."""
        self.site: Site = spare_site()
        self.client = kubectls(plane=spare_plane())[-1]
        road = Road(self.site.detours[0], self.site.gateway_port).open()
        self.addCleanup(road.close)
        self.forget_devices()
        self.addCleanup(self.restore)
        self.name = f"leaver-{self.id().rpartition('_')[2]}"
        self.site.add_device(self.name)
        self.site.create_device(f"{self.name}-2")
        wait_until("its Node", lambda: self.site.get("node", f"{self.name}-2"), 20, self.site.explain)

    def forget_devices(self) -> None:
        """The namespace goes with all its devices: what joined must join anew."""
        for agent in self.site.devices.values():
            agent.kill()
            shutil.rmtree(agent.folder / "state", ignore_errors=True)
        self.site.devices.clear()

    def restore(self) -> None:
        """Install it again."""
        self.forget_devices()
        self.site.apply_manifests()
        wait_until("the namespace is usable", self.namespace_is_there, 20)
        if not self.site.controller.is_alive():
            self.site.controller.start()
        self.site.wait_ready()

    def namespace_is_there(self) -> bool:
        """The default ServiceAccount is there, which a pod needs."""
        return self.site.edge.run("get", "serviceaccount", "default").code == 0

    def nodes(self) -> list[str]:
        """The Nodes of aranya."""
        done = self.site.admin.run("get", "nodes", "-o", "json")
        return [
            one["metadata"]["name"]
            for one in json.loads(done.out)["items"]
            if one["spec"].get("providerID", "").startswith("aranya://")
        ]

    def secrets(self) -> str:
        """The names of the Secrets of aranya's own namespace."""
        return self.site.admin.run("get", "secrets", "-n", OWN_NAMESPACE, "-o", "name").out.decode()

    def assert_namespace_goes(self) -> None:
        """The namespace is deleted to its end, and soon."""
        began = time.monotonic()
        done = self.site.admin.run("delete", "namespace", DEVICE_NAMESPACE, timeout=30)
        self.assertEqual(done.code, 0, f"{done}\n{self.site.explain()}")
        self.assertLess(time.monotonic() - began, 25)

    def test_namespace(self) -> None:
        """Deleting the namespace with devices online does not hang and leaves nothing in the cluster."""
        agent = self.site.devices[self.name]
        self.assert_namespace_goes()
        wait_until("no Node is left", lambda: not self.nodes(), 10, self.site.explain)
        leases = self.site.admin.run("get", "leases", "-n", "kube-node-lease", "-o", "name").out.decode()
        self.assertNotIn("leaver", leases)
        self.assertNotIn("leaver", self.secrets())
        self.assertTrue(self.site.controller.is_alive())
        wait_until("the agent heard of it", lambda: "deleted" in agent.text(), 10, agent.tail)
        self.assertNotIn("Traceback", self.site.controller.text())

    def test_uninstall(self) -> None:
        """With aranya gone, ``uninstall`` removes Nodes and finalisers; the namespace then goes by itself."""
        self.assertEqual(self.site.controller.terminate(), 0)
        asked = plugin(self.client, "uninstall", input=b"n\n")
        self.assertEqual(asked.code, 1)
        self.assertIn(b"nothing was changed", asked.err)
        self.assertIn(self.name, self.nodes())
        done = plugin(self.client, "uninstall", input=b"y\n")
        self.assertEqual(done.code, 0, done)
        for line in (f"Node {self.name} deleted", f"EdgeDevice {self.name}-2 released"):
            self.assertIn(line, done.out.decode())
        self.assertEqual(self.nodes(), [])
        device = self.site.get("ed", self.name)
        assert device is not None
        self.assertFalse(device["metadata"].get("finalizers"))
        again = plugin(self.client, "uninstall", "--yes")
        self.assertEqual((again.code, again.out), (0, b"nothing of aranya is left in namespace edge\n"))
        self.assert_namespace_goes()
