"""Tests of ``aranya.kubelet.exec``."""

from __future__ import annotations

import json
from urllib.parse import quote, quote_plus

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from aranya.kubelet.exec import RUN_LIMIT, RUN_PATIENCE
from test.support.clients import SPDY_UPGRADE, SpdyClient, WebSocketClient
from test.support.device import ScriptedDevice
from test.support.door import House
from tether.errors import LinkLost, ResetCode
from tether.link.interfaces import Lane
from tether.verbs.codec import decode_size
from tether.verbs.requests import Attach, Exec, Exited, Killed, Size

EXEC = "/exec/edge/dev/host?command=true&output=1&error=1"


class RefusalTests(SynchronousTestCase):
    """What is refused before the 101, and how."""

    def setUp(self) -> None:
        self.house = House()

    def refused(self, target: str, code: int, text: str) -> None:
        connection = self.house.ask(
            "POST", target, *SPDY_UPGRADE, "X-Stream-Protocol-Version: v4.channel.k8s.io"
        )
        answer = connection.answer
        self.assertEqual((answer.code, answer.body.decode()), (code, text), target)
        self.assertEqual(answer.headers["connection"], "close")
        self.assertFalse(connection.wire.connected)
        self.assertEqual(self.house.device.sessions, [])

    def test_parameters(self) -> None:
        """Nothing to run, or nowhere to write, is a 400."""
        text = "you must specify at least 1 of stdin, stdout, stderr"
        self.refused("/exec/edge/dev/host?command=a", 400, text)
        self.refused("/exec/edge/dev/host?command=a&output=true&error=yes", 400, text)
        self.refused("/exec/edge/dev/host?command=a&error=1&tty=1", 400, text)
        self.refused("/attach/edge/dev/host", 400, text)
        text = "you must specify at least one command for the container"
        self.refused("/exec/edge/dev/host?output=1", 400, text)
        self.refused("/exec/edge/dev/host?output=1&command=", 400, text)

    def test_pod(self) -> None:
        """Every pod but the one of this device does not exist, however it is named."""
        for path in ("foreign/dev/host", "edge/other/host", "edge/dev/uid-0/host"):
            self.refused(f"/exec/{path}?command=a&output=1", 404, "pod does not exist")
            self.refused(f"/attach/{path}?output=1", 404, "pod does not exist")
        self.house.served.pod = None
        self.refused("/exec/edge/dev/host?command=a&output=1", 404, "pod does not exist")

    def test_container(self) -> None:
        """A container that is none, and one that is only a log."""
        self.refused("/exec/edge/dev/other?command=a&output=1", 500, 'container not found ("other")')
        self.refused("/attach/edge/dev/other?output=1", 500, "container other not found in pod dev_edge")
        log = "container nginx is a log; to {}, use the container host (-c host)"
        self.refused("/exec/edge/dev/nginx?command=a&output=1", 400, log.format("exec"))
        self.refused("/attach/edge/dev/nginx?output=1", 400, log.format("attach"))

    def test_policy(self) -> None:
        """What the device's owner does not allow."""
        self.house.device.forbidden = {"exec"}
        self.refused(EXEC, 503, "device dev refused: its owner does not allow exec")
        self.house.device.forbidden = {"attach"}
        self.refused(
            "/attach/edge/dev/host?output=1", 503, "device dev refused: its owner does not allow attach"
        )

    def test_offline(self) -> None:
        """A device that is not here is refused at once."""
        self.house.devices.here.clear()
        self.refused(EXEC, 503, "device dev is offline")
        self.refused("/attach/edge/dev/host?output=1", 503, "device dev is offline")

    def test_no_upgrade(self) -> None:
        """A request that stays in HTTP cannot exec."""
        answer = self.house.ask("POST", EXEC).answer
        self.assertEqual((answer.code, answer.body), (500, b"Upgrade request required"))


class ExecTests(SynchronousTestCase):
    """A command, from the request to its status."""

    def setUp(self) -> None:
        self.house = House()

    def test_spdy(self) -> None:
        """Outputs stay apart and come before the exit code; then everything ends."""
        client = SpdyClient(self.house, EXEC)
        self.assertEqual(client.answer.code, 101)
        self.assertEqual(self.house.device.sessions, [])
        client.open("error", "stdout", "stderr")
        session = self.house.device.session
        self.assertEqual(session.request, Exec((b"true",)))
        session.tell(b"o")
        session.tell(b"e", Lane.ERROR)
        session.answer(Exited(3))
        status = client.status
        self.assertEqual(status["details"]["causes"], [{"reason": "ExitCode", "message": "3"}])
        self.assertEqual((client.received["stdout"], client.received["stderr"]), (b"o", b"e"))
        self.assertLessEqual({"stdout", "stderr", "error"}, client.ended)
        self.assertFalse(client.connection.wire.connected)

    def test_taken_over_meanwhile(self) -> None:
        """Who is active when the streams are there gets the session, not who was at the request."""
        client = SpdyClient(self.house, EXEC)
        former, later = self.house.device, ScriptedDevice()
        self.house.devices.here[former.key] = later
        client.open("error", "stdout", "stderr")
        self.assertEqual((len(former.sessions), len(later.sessions)), (0, 1))

    def test_success(self) -> None:
        """A command that ends well is a success."""
        client = SpdyClient(self.house, EXEC)
        client.open("error", "stdout", "stderr")
        self.house.device.session.answer(Exited(0))
        self.assertEqual(client.status["status"], "Success")

    def test_websocket(self) -> None:
        """The same over WebSocket, with input and a terminal."""
        target = "/exec/edge/dev/uid-1/host?command=sh&input=1&output=1&error=1&tty=1"
        client = WebSocketClient(self.house, target)
        self.assertEqual(client.answer.code, 101)
        session = self.house.device.session
        self.assertEqual(session.request, Exec((b"sh",), stdin=True, stdout=True, stderr=False, tty=True))
        client.write(4, b'{"Width":80,"Height":24}')
        client.write(0, b"ls\n")
        self.assertEqual(decode_size(session.channel.lane(Lane.RESIZE)), Size(80, 24))
        self.assertEqual(session.channel.lane(Lane.MAIN), b"ls\n")
        session.tell(b"$ ")
        session.answer(Killed(15))
        received = client.received
        self.assertEqual(received[1], b"$ ")
        self.assertEqual(json.loads(received[3])["details"]["causes"][0]["message"], "143")
        self.assertEqual(client.close_code, 1000)

    def test_stdin_ends(self) -> None:
        """The end of stdin reaches the process and the output goes on."""
        client = SpdyClient(self.house, "/exec/edge/dev/host?command=cat&input=1&output=1")
        client.open("error", "stdin", "stdout")
        client.write("stdin", b"hi", fin=True)
        session = self.house.device.session
        self.assertEqual([lane for lane, _ in session.channel.sent], [Lane.MAIN, Lane.STDIN_END])
        session.tell(b"hi")
        session.answer(Exited(0))
        self.assertEqual(client.status["status"], "Success")
        self.assertEqual(client.received["stdout"], b"hi")

    def test_link_lost(self) -> None:
        """A lost link is a failure with one line."""
        client = SpdyClient(self.house, EXEC)
        client.open("error", "stdout", "stderr")
        self.house.device.session.break_off(ResetCode.LOST, "no sign of life")
        status = client.status
        self.assertEqual(status["status"], "Failure")
        self.assertEqual(status["message"], "device dev went offline: no sign of life")

    def test_link_lost_before_start(self) -> None:
        """A device that goes away between the 101 and the start is a failure, too."""
        client = SpdyClient(self.house, EXEC)
        self.house.device.failure = LinkLost("closed")
        client.open("error", "stdout", "stderr")
        self.assertEqual(client.status["message"], "device dev went offline: closed")

    def test_client_leaves(self) -> None:
        """A client that leaves cancels the session on the device."""
        client = SpdyClient(self.house, EXEC)
        client.open("error", "stdout", "stderr")
        self.assertEqual(self.house.served.sessions, 1)
        client.connection.leave()
        reset = self.house.device.session.channel.reset_with
        assert reset is not None
        self.assertIs(reset.code, ResetCode.CANCELLED)
        self.assertEqual(self.house.served.sessions, 0)

    def test_endpoint_stops(self) -> None:
        """An endpoint that stops ends each session with its reason, started or not."""
        running = SpdyClient(self.house, EXEC)
        running.open("error", "stdout", "stderr")
        starting = SpdyClient(self.house, EXEC)
        starting.open("error")
        self.house.served.end_sessions("aranya is stopping")
        for client in (running, starting):
            self.assertEqual(client.status["message"], "aranya is stopping")
            self.assertFalse(client.connection.wire.connected)
        self.assertIsNotNone(self.house.device.session.channel.reset_with)

    def test_pressure(self) -> None:
        """A client that does not read pauses its session on the device only."""
        client = SpdyClient(self.house, EXEC)
        client.open("error", "stdout", "stderr")
        session = self.house.device.session
        client.connection.wire.producer.pauseProducing()
        self.assertTrue(session.channel.paused)
        client.connection.wire.producer.resumeProducing()
        self.assertFalse(session.channel.paused)

    def test_attach(self) -> None:
        """An attach asks for the shell with the client's streams."""
        client = SpdyClient(self.house, "/attach/edge/dev/host?input=1&output=1&tty=1")
        client.open("error", "stdin", "stdout", "resize")
        self.assertEqual(self.house.device.session.request, Attach(True, True, False, True))
        client.write("resize", b'{"Width":132,"Height":43}\n')
        self.assertEqual(decode_size(self.house.device.session.channel.lane(Lane.RESIZE)), Size(132, 43))

    def argv(self, query: str) -> tuple[bytes, ...]:
        client = SpdyClient(self.house, f"/exec/edge/dev/host?{query}&output=1")
        client.open("error", "stdout")
        request = self.house.device.session.request
        assert isinstance(request, Exec)
        return request.argv

    def test_long_argument(self) -> None:
        """An argument of 100 KB arrives whole."""
        script = "echo " + "x;&+ %" * 17_000
        self.assertEqual(
            self.argv(f"command=sh&command=-c&command={quote_plus(script)}"), (b"sh", b"-c", script.encode())
        )

    def test_empty_argument(self) -> None:
        """An empty argument is an argument."""
        self.assertEqual(self.argv("command=sh&command=-c&command="), (b"sh", b"-c", b""))

    @given(st.lists(st.binary(min_size=1, max_size=20), min_size=1, max_size=5))
    @settings(max_examples=40, deadline=None)
    def test_any_arguments(self, argv: list[bytes]) -> None:
        """Any bytes arrive as they were, whichever way they were escaped."""
        for escape in (quote, quote_plus):
            query = "&".join("command=" + escape(word, safe="") for word in argv)
            self.assertEqual(self.argv(query), tuple(argv))


class RunTests(SynchronousTestCase):
    """``/run``, which answers a command's output."""

    def setUp(self) -> None:
        self.house = House()
        self.connection = self.house.ask("POST", "/run/edge/dev/host?cmd=uname+-a")

    def test_output(self) -> None:
        """Both outputs come as one body when the command ends."""
        session = self.house.device.session
        self.assertEqual(session.request, Exec((b"uname", b"-a")))
        session.tell(b"Linux\n")
        session.tell(b"warning\n", Lane.ERROR)
        self.assertEqual(self.connection.take(), b"")
        session.answer(Exited(0))
        answer = self.connection.answer
        self.assertEqual((answer.code, answer.body), (200, b"Linux\nwarning\n"))
        self.connection.leave()
        self.assertEqual(self.house.clock.getDelayedCalls(), [])

    def test_failure(self) -> None:
        """A command that fails is a 500 with its code and output."""
        self.house.device.session.tell(b"no\n")
        self.house.device.session.answer(Exited(2))
        answer = self.connection.answer
        self.assertEqual((answer.code, answer.body), (500, b"command terminated with exit code 2\nno\n"))

    def test_bounds(self) -> None:
        """A command that writes or runs too long is ended."""
        self.house.device.session.tell(b"x" * (RUN_LIMIT + 1))
        self.assertEqual(self.connection.answer.code, 500)
        self.assertIsNotNone(self.house.device.session.channel.reset_with)
        connection = self.house.ask("POST", "/run/edge/dev/host?cmd=sleep+inf")
        self.house.clock.advance(RUN_PATIENCE)
        self.assertIn(b"the command ran for more than 300 s", connection.answer.body)
        self.assertEqual(self.house.served.sessions, 0)

    def test_client_leaves(self) -> None:
        """A client that leaves ends the command's session."""
        self.connection.leave()
        self.assertIsNotNone(self.house.device.session.channel.reset_with)
        self.assertEqual(self.house.served.sessions, 0)

    def test_refusals(self) -> None:
        """Nothing to run, no such pod, no such device."""
        for target, code in (
            ("/run/edge/dev/host", 400),
            ("/run/edge/dev/host?cmd=+", 400),
            ("/run/edge/other/host?cmd=a", 404),
            ("/run/edge/dev/ssh?cmd=a", 400),
        ):
            self.assertEqual(self.house.ask("POST", target).answer.code, code)
        self.house.devices.here.clear()
        self.assertEqual(self.house.ask("POST", "/run/edge/dev/host?cmd=a").answer.code, 503)
