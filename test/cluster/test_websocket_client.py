"""Clients that speak WebSocket to the API server: the Python client, and raw ``channel.k8s.io``."""

from __future__ import annotations

import base64
import contextlib
import json
import ssl
from typing import Any, cast
from urllib.parse import urlencode

import websocket
from kubernetes import client, config
from kubernetes.stream import portforward, stream

from test.cluster.daemons import DEVICE_NAMESPACE, wait_until
from test.cluster.plane import shared_plane
from test.cluster.test_exec import DEVICE, MIB, ExecCase, processes_with
from test.cluster.test_forward import echo, server


class PythonClientTests(ExecCase):
    """``kubernetes.stream``, as Ansible and others use it."""

    def setUp(self) -> None:
        """Have a client of the API server."""
        super().setUp()
        self.site.wait_online(DEVICE)

    def api(self) -> Any:
        """A client of its own: ``stream`` changes the one that it is given."""
        connected = config.new_client_from_config(str(shared_plane().admin_kubeconfig))
        self.addCleanup(connected.close)
        return client.CoreV1Api(connected)

    def exec(self, *words: str, **options: Any) -> Any:  # type: ignore[override]  # another client's exec
        """Start a command and give its streams."""
        api = self.api()
        opened = stream(
            api.connect_get_namespaced_pod_exec,
            DEVICE,
            DEVICE_NAMESPACE,
            command=list(words),
            **{"stdin": False, "stdout": True, "stderr": True, "tty": False, **options},
            _preload_content=False,
        )
        self.addCleanup(opened.close)
        return opened

    def test_output_and_code(self) -> None:
        """Stdout, stderr and the exit code arrive, each where it belongs."""
        running = self.exec("sh", "-c", "echo out; echo err >&2; exit 5")
        running.run_forever(timeout=15)
        self.assertEqual(running.read_stdout(), "out\n")
        self.assertEqual(running.read_stderr(), "err\n")
        self.assertEqual(running.returncode, 5)
        running = self.exec("true")
        running.run_forever(timeout=15)
        self.assertEqual(running.returncode, 0)

    def test_at_once(self) -> None:
        """The form that returns all output at once does so."""
        text = stream(
            self.api().connect_get_namespaced_pod_exec,
            DEVICE,
            DEVICE_NAMESPACE,
            command=["printf", "%s", "ünï ☃"],
            stdin=False,
            stdout=True,
            stderr=True,
            tty=False,
        )
        self.assertEqual(text, "ünï ☃")

    def test_stdin(self) -> None:
        """What is written reaches the command."""
        running = self.exec("sh", "-c", "read line; echo got $line; exit 3", stdin=True)
        running.write_stdin("hello\n")
        running.run_forever(timeout=15)
        self.assertEqual(running.read_stdout(), "got hello\n")
        self.assertEqual(running.returncode, 3)

    def test_terminal(self) -> None:
        """With a terminal the size can be set and is that of the terminal."""
        running = self.exec("sh", stdin=True, stderr=False, tty=True)
        running.write_channel(4, json.dumps({"Width": 101, "Height": 33}))
        running.write_stdin(
            "until stty size | grep -q '33 101'; do sleep 0.1; done; echo re''sized; exit 4\n"
        )
        seen = ""
        while "resized" not in seen:
            running.update(timeout=10)
            self.assertTrue(running.is_open() or running.peek_stdout(), seen)
            seen += running.read_stdout(timeout=0) if running.peek_stdout() else ""
        running.run_forever(timeout=15)
        self.assertEqual(running.returncode, 4)

    def test_bulk(self) -> None:
        """16 MiB arrive whole."""
        running = self.exec("sh", "-c", f"head -c {16 * MIB} /dev/zero | tr '\\0' x")
        size = 0
        while running.is_open():
            running.update(timeout=15)
            if running.peek_stdout():
                size += len(running.read_stdout())
        self.assertEqual(size, 16 * MIB)
        self.assertEqual(running.returncode, 0)

    def test_client_leaves(self) -> None:
        """A client that closes takes its command along."""
        running = self.exec("sh", "-c", "echo up; sleep 361; true", stdin=True)
        running.update(timeout=15)
        wait_until("it runs", lambda: processes_with("sleep\x00361"), 10)
        running.close()
        wait_until("it is gone", lambda: not processes_with("sleep\x00361"), 15, self.site.explain)

    def test_no_such_command(self) -> None:
        """127 and a line on stderr, here too."""
        running = self.exec("no-such-command-here")
        running.run_forever(timeout=15)
        self.assertEqual(running.returncode, 127)
        self.assertIn("no-such-command-here", running.read_stderr())

    def test_unknown_pod(self) -> None:
        """The API server's own refusal arrives as such."""
        with self.assertRaises(client.ApiException) as caught:
            stream(
                self.api().connect_get_namespaced_pod_exec,
                "nonesuch",
                DEVICE_NAMESPACE,
                command=["true"],
                stdout=True,
            )
        self.assertIn("404", str(caught.exception))

    def test_port_forward(self) -> None:
        """A forwarded connection carries bytes both ways, a dead port tells its error."""
        with server(echo) as port:
            forward = portforward(
                self.api().connect_get_namespaced_pod_portforward, DEVICE, DEVICE_NAMESPACE, ports=str(port)
            )
            wire = forward.socket(port)
            wire.settimeout(15)
            wire.sendall(b"hello")
            self.assertEqual(wire.recv(5), b"hello")
            wire.close()
        forward = portforward(
            self.api().connect_get_namespaced_pod_portforward, DEVICE, DEVICE_NAMESPACE, ports=str(port)
        )
        wire = forward.socket(port)
        wire.settimeout(15)
        self.assertEqual(wire.recv(5), b"")
        wait_until("the error is told", lambda: forward.error(port), 10)
        self.assertIn("refused", forward.error(port))
        wire.close()


class RawTests(ExecCase):
    """Each sub-protocol of ``channel.k8s.io``, message by message."""

    def setUp(self) -> None:
        """Have the device."""
        super().setUp()
        self.site.wait_online(DEVICE)

    def dial(self, protocols: list[str], *words: str, **flags: str) -> websocket.WebSocket:
        """A WebSocket to the API server for an exec of these words."""
        plane = shared_plane()
        asked = [*(("command", word) for word in words), *flags.items(), ("stdout", "1"), ("stderr", "1")]
        pem = plane.folder / "raw-client.pem"
        pem.write_bytes((plane.folder / "admin.crt").read_bytes() + (plane.folder / "admin.key").read_bytes())
        url = plane.url.replace("https:", "wss:")
        opened = websocket.create_connection(
            f"{url}/api/v1/namespaces/{DEVICE_NAMESPACE}/pods/{DEVICE}/exec?{urlencode(asked)}",
            timeout=15,
            subprotocols=protocols,
            sslopt={
                "ca_certs": str(plane.folder / "ca.crt"),
                "certfile": str(pem),
                "cert_reqs": ssl.CERT_REQUIRED,
            },
        )
        self.addCleanup(opened.close)
        return opened

    def heard(self, opened: websocket.WebSocket, is_base64: bool) -> dict[int, bytes]:
        """All that comes until the end, by channel."""
        channels: dict[int, bytes] = {}
        with contextlib.suppress(websocket.WebSocketConnectionClosedException):
            while True:
                opcode, data = opened.recv_data()
                if opcode == websocket.ABNF.OPCODE_CLOSE:
                    break
                message = cast(bytes, data)
                if not message:
                    continue
                if is_base64:
                    self.assertEqual(opcode, websocket.ABNF.OPCODE_TEXT)
                    channel, payload = int(chr(message[0])), base64.b64decode(message[1:], validate=True)
                else:
                    self.assertEqual(opcode, websocket.ABNF.OPCODE_BINARY)
                    channel, payload = message[0], message[1:]
                channels[channel] = channels.get(channel, b"") + payload
        return channels

    def test_each_protocol(self) -> None:
        """Stdin, stdout, stderr and the result travel on their channels, raw or in base64."""
        for protocol in (
            "v4.channel.k8s.io",
            "v4.base64.channel.k8s.io",
            "channel.k8s.io",
            "base64.channel.k8s.io",
        ):
            opened = self.dial([protocol], "sh", "-c", "read x; echo out $x; echo err >&2; exit 6", stdin="1")
            self.assertEqual(opened.getsubprotocol(), protocol)
            is_base64 = "base64" in protocol
            if is_base64:
                opened.send("0" + base64.b64encode(b"in\n").decode())
            else:
                opened.send_binary(b"\x00in\n")
            heard = self.heard(opened, is_base64)
            self.assertEqual((heard[1], heard[2]), (b"out in\n", b"err\n"), protocol)
            if protocol.startswith("v4."):
                status = json.loads(heard[3])
                self.assertEqual(status["status"], "Failure")
                self.assertEqual(status["reason"], "NonZeroExitCode")
                self.assertEqual(status["details"]["causes"], [{"reason": "ExitCode", "message": "6"}])
            else:
                self.assertIn(b"6", heard[3])

    def test_first_known_protocol(self) -> None:
        """Of several that are offered the first known one is spoken; an unknown one alone is refused."""
        opened = self.dial(["v9.channel.k8s.io", "v4.base64.channel.k8s.io", "v4.channel.k8s.io"], "true")
        self.assertIn(opened.getsubprotocol(), ("v4.base64.channel.k8s.io", "v4.channel.k8s.io"))
        heard = self.heard(opened, "base64" in str(opened.getsubprotocol()))
        self.assertEqual(json.loads(heard[3])["status"], "Success")
        with self.assertRaises(websocket.WebSocketException):
            self.dial(["v9.channel.k8s.io"], "true")

    def test_bad_messages(self) -> None:
        """Messages that make no sense harm nobody else; the command ends with its client at the latest."""
        frame = websocket.ABNF.create_frame
        for number, bad in enumerate(
            (
                frame(b"", websocket.ABNF.OPCODE_BINARY).format(),
                frame(b"\x63data", websocket.ABNF.OPCODE_BINARY).format(),
                frame("no channel", websocket.ABNF.OPCODE_TEXT).format(),
                b"\xff" * 500,
            )
        ):
            mark = f"37{number}"
            opened = self.dial(["v4.channel.k8s.io"], "sleep", mark, stdin="1")
            wait_until("it runs", lambda mark=mark: processes_with(f"sleep\x00{mark}"), 10)
            assert opened.sock is not None
            opened.sock.sendall(bad)
            opened.shutdown()
            wait_until(f"{bad!r}: gone", lambda mark=mark: not processes_with(f"sleep\x00{mark}"), 15)
        self.assert_code(self.exec(self.clients[-1], "true"), 0)
