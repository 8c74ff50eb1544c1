"""A device in a network of its own: packets lost, late and out of order, a plug pulled, another address."""

from __future__ import annotations

import atexit
import functools
import hashlib
import os
import random
import time
from pathlib import Path

from twisted.trial.unittest import SkipTest, SynchronousTestCase

from test.cluster.binaries import for_tests
from test.cluster.child import free_ports
from test.cluster.daemons import Site, kubectls, wait_until
from test.cluster.kubectl import Completed
from test.cluster.netem import CLEAR, CLOUD, TunnelWire, Unavailable, Weather, Wire
from test.cluster.plane import BRISK, Plane
from test.cluster.proxy import Road
from test.cluster.session import SOON, Session
from test.cluster.terminal import Terminal
from test.cluster.test_exec import MIB
from test.cluster.test_flapping import counted, counter
from test.cluster.test_slowlink import KEEPALIVE, PATIENCE

NAME = "wired"
#: A bad day of a mobile network.
BAD = Weather(delay=60, jitter=20, loss=3, reorder=5, duplicate=1)


@functools.cache
def wired_plane() -> Plane:
    """Give a plane whose devices know no other way than the wire; stopped at exit."""
    plane = Plane(for_tests(), extra=BRISK).start()
    atexit.register(plane.stop)
    return plane


@functools.cache
def wired_site() -> Site:
    """Give its site."""
    site = Site(wired_plane(), detours=free_ports(1, "127.0.0.1"), host=CLOUD)
    atexit.register(site.stop)
    return site.start()


class WireCase(SynchronousTestCase):
    """Has a device at the far end of a wire."""

    kind: type[Wire] = Wire

    def setUp(self) -> None:
        """Lay the wire and have the device online."""
        try:
            self.wire = self.kind()
        except Unavailable as missing:
            raise SkipTest(str(missing)) from None
        self.addCleanup(self.wire.close)
        self.try_weather()
        self.site = wired_site()
        self.client = kubectls(plane=wired_plane())[-1]
        self.road = Road(
            self.site.detours[0], self.site.gateway_port, CLOUD, within=self.wire.cloud.entered
        ).open()
        self.addCleanup(self.road.close)
        if NAME in self.site.devices:
            self.agent = self.site.devices[NAME]
            with self.wire.device.entered():
                self.agent.start()
        else:
            self.site.create_device(NAME, {"connectivity": {"keepaliveSeconds": KEEPALIVE}})
            token = self.site.join_token(NAME)
            self.agent = self.site.devices[NAME] = self.site.agent(NAME)
            with self.wire.device.entered():
                self.agent.start("--join", token)
        self.addCleanup(self.agent.kill)
        self.site.wait_online(NAME)

    def try_weather(self) -> None:
        """Skip where the kernel cannot make the weather that is needed."""

    def begun(self, script: str, *flags: str) -> Session:
        """Start a shell script on the device and wait until it runs."""
        session = Session(self.client.start("exec", *flags, NAME, "--", "sh", "-c", f"echo up; {script}"))
        self.addCleanup(session.kill)
        self.assertEqual(session.line(), b"up\n", f"{session}\n{self.site.explain()}")
        return session

    def assert_ends(self, session: Session, code: int, out: bytes, seconds: float = SOON) -> None:
        """It ends in time, with this code and output."""
        done = session.end(seconds)
        self.assertEqual((done.code, done.out), (code, out), f"{done.err!r}\n{self.site.explain()}")

    def assert_code(self, done: Completed, code: int) -> None:
        """The exit code is this one; if not, show everything."""
        self.assertEqual(done.code, code, f"{done}\n{self.site.explain()}")

    def assert_silent(self, seconds: float) -> None:
        """Nothing gets through for so long."""
        # But for what was on the way.
        time.sleep(0.2)
        carried = self.road.up.carried
        time.sleep(seconds)
        self.assertEqual(self.road.up.carried, carried)

    def links(self) -> int:
        """How often the device has connected."""
        return self.agent.text().count("connected to ")


class PlugTests(WireCase):
    """The device's own network changes."""

    def test_far_away(self) -> None:
        """The device really is in another network than we."""
        done = self.client.run("exec", NAME, "--", "ip", "-o", "address")
        self.assert_code(done, 0)
        self.assertIn(b"10.213.77.2", done.out)

    def test_unplugged_for_a_moment(self) -> None:
        """What is short of the keep-alive is not even noticed."""
        session = self.begun(counter(300, 0.02, code=3))
        links = self.links()
        self.wire.pull()
        self.assert_silent(3)
        self.wire.plug()
        self.assert_ends(session, 3, counted(300), 30)
        self.assertEqual(self.links(), links, self.site.explain())

    def test_in_a_tunnel(self) -> None:
        """After half a minute without a network the device comes back and sessions go on."""
        session = self.begun(counter(400, 0.02, code=4))
        links = self.links()
        self.wire.pull()
        self.site.wait_offline(NAME, KEEPALIVE + PATIENCE + 10)
        self.assertTrue(session.runs)
        self.wire.plug()
        self.assert_ends(session, 4, counted(400), 30)
        self.assertGreater(self.links(), links)

    def test_another_address(self) -> None:
        """A device that moves to another address comes back from there and sessions go on."""
        session = self.begun(counter(400, 0.02, code=5))
        links = self.links()
        self.wire.move()
        wait_until(
            "it comes from elsewhere",
            lambda: self.links() > links,
            KEEPALIVE + PATIENCE + 10,
            self.site.explain,
        )
        self.assert_ends(session, 5, counted(400), 30)


class WeatherTests(WireCase):
    """Packets go astray, in a tunnel device of ours."""

    kind: type[Wire] = TunnelWire

    def setUp(self) -> None:
        """Have files on both sides."""
        super().setUp()
        self.folder = Path(self.mktemp()).absolute()
        self.folder.mkdir()

    def test_copy(self) -> None:
        """A copy up and down arrives, and keys are answered meanwhile."""
        data = random.randbytes(MIB)
        (self.folder / "here").write_bytes(data)
        terminal = Terminal(self.client.command("exec", "-it", NAME, "--", "sh"), self.client.environment())
        self.addCleanup(terminal.close)
        terminal.type(b"PS1=; echo rea''dy\n")
        terminal.expect(b"ready")
        self.wire.set_weather(BAD)
        up = self.begun_copy(str(self.folder / "here"), f"{NAME}:{self.folder}/there")
        self.assert_answers(terminal, up)
        self.assertTrue((self.folder / "there").read_bytes() == data)
        down = self.begun_copy(f"{NAME}:{self.folder}/there", str(self.folder / "back"))
        self.assert_answers(terminal, down)
        self.assertTrue((self.folder / "back").read_bytes() == data)

    def begun_copy(self, *words: str) -> Session:
        """Start ``kubectl cp``."""
        session = Session(self.client.start("cp", *words))
        self.addCleanup(session.kill)
        return session

    def assert_answers(self, terminal: Terminal, copy: Session) -> None:
        """Each key is answered until the copy has ended well."""
        number = 0
        while copy.runs or not number:
            number += 1
            terminal.type(b"echo an''swer %d.\n" % number)
            terminal.expect(b"answer %d." % number, SOON)
        self.assert_code(copy.end(60), 0)

    def test_counter(self) -> None:
        """A counter arrives without gap and double, also through a time in which nothing passes."""
        session = self.begun(counter(400, code=6))
        self.wire.set_weather(BAD)
        wait_until("it counts", lambda: self.road.up.carried > 20_000, 20, self.site.explain)
        self.wire.set_weather(Weather(loss=100))
        self.assert_silent(2)
        self.wire.set_weather(BAD)
        self.assert_ends(session, 6, counted(400), 60)

    def test_move(self) -> None:
        """The device moves in the middle of a bulk transfer, in bad weather."""
        data = os.urandom(6 * MIB)
        file = self.folder / "file"
        file.write_bytes(data)
        self.wire.set_weather(BAD)
        session = self.begun(f"cat {file}; exit 7")
        wait_until("it is under way", lambda: self.road.up.carried > MIB, 60, self.site.explain)
        self.wire.move()
        self.wire.set_weather(CLEAR)
        done = session.end(KEEPALIVE + PATIENCE + 40)
        self.assertEqual(
            (done.code, hashlib.sha256(done.out).digest()), (7, hashlib.sha256(data).digest()), done.err
        )


class NetemTests(WeatherTests):
    """The same weather, made by the kernel."""

    kind = Wire

    def try_weather(self) -> None:
        """Not every kernel has ``netem``."""
        try:
            self.wire.set_weather(CLEAR)
        except Unavailable as missing:
            raise SkipTest(f"this kernel has no netem ({missing})") from None
