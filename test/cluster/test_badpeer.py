"""Bad peers: clients of the kubelet port that break SPDY, devices that break the tether, old certificates."""

from __future__ import annotations

import base64
import contextlib
import datetime
import json
import os
import socket
import ssl
import struct
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

from aranya.streaming.spdy.headers import DICTIONARY
from test.cluster.authority import Authority
from test.cluster.daemons import DEVICE_NAMESPACE, OWN_NAMESPACE, Twistd, wait_until
from test.cluster.plane import shared_plane
from test.cluster.test_exec import DEVICE, MIB, ExecCase, processes_with
from test.support.spdy_client import SpdyClient, WebSocketClient
from tether.wire import frames

PEER = "bad-peer"


class PeerCase(ExecCase):
    """Looks after each attack that aranya is as well as before."""

    #: What an attack may cost aranya, in KiB.
    MEMORY = 48 * 1024

    def setUp(self) -> None:
        """Remember how aranya is."""
        super().setUp()
        self.site.wait_online(DEVICE)
        self.pid = self.site.controller.pid
        self.before = self.site.controller.resident_kib()
        self.logged = len(self.site.controller.text())

    def assert_unharmed(self) -> None:
        """The same process, not much bigger, logs no traceback and serves others at once."""
        self.assertTrue(self.site.controller.is_alive(), self.site.controller.tail())
        self.assertEqual(self.site.controller.pid, self.pid)
        began = time.monotonic()
        self.assert_code(self.exec(self.clients[-1], "true"), 0)
        self.assertLess(time.monotonic() - began, 3)
        self.assertLess(self.site.controller.resident_kib() - self.before, self.MEMORY)
        self.assertNotIn("Traceback", self.site.controller.text()[self.logged :])


class Caller:
    """The API server's place, taken by somebody who knows its key but not its manners."""

    def __init__(self, wire: ssl.SSLSocket) -> None:
        self.wire = wire
        self.spdy = SpdyClient()

    def send(self, data: bytes) -> None:
        """Write; a connection that was closed meanwhile is no error."""
        with contextlib.suppress(OSError):
            self.wire.sendall(data)

    def ended(self, seconds: float = 10) -> bool:
        """Read to the end; false if it does not come."""
        self.wire.settimeout(seconds)
        deadline = time.monotonic() + seconds
        try:
            while data := self.wire.recv(65536):
                self.heard(data)
                if time.monotonic() > deadline:
                    return False
        except TimeoutError:
            return False
        except OSError:
            pass
        return True

    def heard(self, data: bytes) -> None:
        """What comes before the end is of no interest."""

    def read_until(self, true: Callable[[SpdyClient], bool], seconds: float = 15) -> None:
        """Read frames until something is true of all that came."""
        self.wire.settimeout(seconds)
        while not true(self.spdy):
            data = self.wire.recv(65536)
            assert data, "the connection ended"
            self.spdy.receive(data)


class SpdyTests(PeerCase):
    """Who may speak to the kubelet port speaks nonsense."""

    def setUp(self) -> None:
        """Have the API server's TLS identity, and the device's kubelet port."""
        super().setUp()
        plane = shared_plane()
        mine = plane.kubelet_client
        context = ssl.create_default_context(cadata=plane.ca_certificate.decode())
        pem = Path(self.mktemp())
        pem.write_bytes(mine.certificate + mine.key)
        context.load_cert_chain(pem)
        node = self.site.get("node", DEVICE)
        assert node is not None
        self.context = context
        self.port = int(node["status"]["daemonEndpoints"]["kubeletEndpoint"]["Port"])

    def dial(self) -> ssl.SSLSocket:
        """A TLS connection to the kubelet port."""
        plain = socket.create_connection((self.site.plane.address, self.port), 15)
        wire = self.context.wrap_socket(plain, server_hostname=self.site.plane.address)
        self.addCleanup(wire.close)
        return wire

    def upgraded(self, path: str) -> Caller:
        """A connection that has left HTTP for SPDY."""
        wire = self.dial()
        wire.sendall(
            f"POST {path} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n"
            "X-Stream-Protocol-Version: v4.channel.k8s.io\r\n"
            "X-Stream-Protocol-Version: portforward.k8s.io\r\nContent-Length: 0\r\n\r\n".encode()
        )
        head = b""
        while b"\r\n\r\n" not in head:
            data = wire.recv(1)
            assert data, head
            head += data
        self.assertIn(b" 101 ", head.split(b"\r\n")[0], head)
        return Caller(wire)

    def command(self, *words: str) -> Caller:
        """An exec of these words that was upgraded and no more."""
        query = "&".join(f"command={word}" for word in words)
        return self.upgraded(f"/exec/{DEVICE_NAMESPACE}/{DEVICE}/host?{query}&input=1&output=1&error=1")

    def running(self, mark: str) -> Caller:
        """An exec of a long sleep, with its streams, that runs."""
        caller = self.command("sleep", mark)
        for name in ("error", "stdin", "stdout", "stderr"):
            caller.send(caller.spdy.syn(streamtype=name))
        wait_until("it runs", lambda: processes_with(f"sleep\x00{mark}"), 10, self.site.explain)
        return caller

    def test_malformed_frames(self) -> None:
        """A frame against the law ends the connection and what ran on it, at once."""
        control = 0x80030000
        for number, (what, bad) in enumerate(
            {
                "noise": b"\xff" * 4096,
                "unknown type": struct.pack(">II", control | 99, 0),
                "control frame of 16 MiB": struct.pack(">II", control | 1, 0xFFFFFF) + bytes(64 * 1024),
                "short SYN_STREAM": struct.pack(">II", control | 1, 4) + bytes(4),
                "PING of no length": struct.pack(">II", control | 6, 0),
                "data for stream 0": struct.pack(">II", 0, 5) + b"hello",
                "reply from a client": struct.pack(">IIHH", control | 2, 4, 0, 1),
            }.items()
        ):
            mark = f"33{number}"
            caller = self.running(mark)
            caller.send(bad)
            self.assertTrue(caller.ended(), what)
            wait_until(f"{what}: it is gone", lambda mark=mark: not processes_with(f"sleep\x00{mark}"), 10)
        self.assert_unharmed()

    def test_wrong_zlib_stream(self) -> None:
        """Headers without the dictionary, or cut, or no zlib at all end the connection."""
        plain = struct.pack(">IIsI5s", 1, 1, b"a", 5, b"error")
        cut = zlib.compressobj(9, zlib.DEFLATED, 15, 8, 0, DICTIONARY)
        ended = cut.compress(plain) + cut.flush(zlib.Z_FINISH)
        for what, block in {
            "no dictionary": zlib.compress(plain),
            "no zlib": b"\x00" * 40,
            "an end of the stream": ended,
            "empty": b"",
        }.items():
            caller = self.command("true")
            body = struct.pack(">IIBB", 1, 0, 0, 0) + block
            caller.send(struct.pack(">HHI", 0x8003, 1, len(body)) + body)
            self.assertTrue(caller.ended(), what)
        self.assert_unharmed()

    def test_header_bombs(self) -> None:
        """A header block that inflates to 15 MB is cut short; so are endless heads of HTTP."""
        deflate = zlib.compressobj(9, zlib.DEFLATED, 15, 9, 0, DICTIONARY)
        size = 15 * MIB
        block = deflate.compress(struct.pack(">IIsI", 1, 1, b"a", size) + bytes(size))
        block += deflate.flush(zlib.Z_SYNC_FLUSH)
        for repeat in range(20):
            caller = self.command("true")
            body = struct.pack(">IIBB", 1, 0, 0, 0) + block[: 16 * 1024 - 10]
            caller.send(struct.pack(">HHI", 0x8003, 1, len(body)) + body)
            self.assertTrue(caller.ended(), repeat)
        for head in (b"GET /" + b"a" * 3 * MIB, b"GET / HTTP/1.1\r\n" + b"X: " + b"a" * 3 * MIB):
            wire = self.dial()
            caller = Caller(wire)
            caller.send(head)
            self.assertTrue(caller.ended())
        wire = self.dial()
        caller = Caller(wire)
        caller.send(b"GET / HTTP/1.1\r\n" + b"".join(b"H%d: x\r\n" % n for n in range(100_000)))
        self.assertTrue(caller.ended())
        self.assert_unharmed()

    def test_half_a_frame_then_silence(self) -> None:
        """Fifty that stop in the middle of a frame disturb nobody; they leave nothing when they go."""
        silent = [self.command("true") for _ in range(50)]
        for caller in silent:
            caller.send(caller.spdy.syn(streamtype="error")[:11])
        running = self.running("344")
        running.send(struct.pack(">II", 3, 1000) + b"half")
        self.assert_unharmed()
        self.assertTrue(processes_with("sleep\x00344"))
        for caller in (*silent, running):
            caller.wire.close()
        wait_until("it is gone", lambda: not processes_with("sleep\x00344"), 15, self.site.explain)

    def test_ten_thousand_streams(self) -> None:
        """An exec has few streams: each of 10,000 more is refused, and the command runs on."""
        caller = self.running("345")
        first = caller.spdy.last
        for _ in range(100):
            caller.send(b"".join(caller.spdy.syn(streamtype="stdin") for _ in range(100)))
        caller.read_until(
            lambda spdy: (
                sum(one.reset is not None for one in spdy.streams.values() if one.number > first) == 10_000
            )
        )
        self.assertTrue(processes_with("sleep\x00345"))
        self.assert_unharmed()
        caller.wire.close()
        wait_until("it is gone", lambda: not processes_with("sleep\x00345"), 15)

    def test_ten_thousand_streams_unread(self) -> None:
        """Who opens 10,000 streams again and again and reads no answer is cut off."""
        caller = self.running("346")
        caller.wire.settimeout(15)
        with contextlib.suppress(OSError):
            for _ in range(200):
                caller.wire.sendall(b"".join(caller.spdy.syn(streamtype="stdin") for _ in range(1000)))
        wait_until("it is gone", lambda: not processes_with("sleep\x00346"), 15, self.site.explain)
        self.assert_unharmed()

    def test_ten_thousand_forwards(self) -> None:
        """A port-forward of 10,000 connections that lead nowhere costs little."""
        caller = self.upgraded(f"/portForward/{DEVICE_NAMESPACE}/{DEVICE}")
        with contextlib.suppress(OSError):
            caller.wire.settimeout(15)
            for number in range(10_000):
                caller.wire.sendall(caller.spdy.syn(streamtype="error", port="1", requestid=str(number)))
        caller.wire.close()
        self.assert_unharmed()

    def test_unknown_names(self) -> None:
        """An unknown pod, container or route is told in the kubelet's words, and by kubectl."""
        here, absent = f"{DEVICE_NAMESPACE}/{DEVICE}", b"pod does not exist"
        for path, code, words in (
            (f"/exec/{DEVICE_NAMESPACE}/nonesuch/host?command=id&output=1", 404, absent),
            (f"/exec/nowhere/{DEVICE}/host?command=id&output=1", 404, absent),
            (f"/portForward/{DEVICE_NAMESPACE}/nonesuch", 404, absent),
            (f"/exec/{here}/nonesuch?command=id&output=1", 500, b'container not found ("nonesuch")'),
            (f"/attach/{here}/nonesuch?output=1", 500, b"container nonesuch not found in pod"),
            ("/no/such/route", 404, b""),
            (f"/exec/{DEVICE_NAMESPACE}", 404, b""),
        ):
            with self.dial() as wire:
                wire.sendall(
                    f"POST {path} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n"
                    "X-Stream-Protocol-Version: v4.channel.k8s.io\r\nContent-Length: 0\r\n\r\n".encode()
                )
                wire.settimeout(10)
                answer = b""
                while data := wire.recv(65536):
                    answer += data
                    if path.startswith("/no/"):
                        break
            self.assertIn(f" {code} ".encode(), answer.split(b"\r\n")[0], (path, answer))
            self.assertIn(words, answer)
        for client in self.clients:
            done = client.run("exec", "nonesuch", "--", "true")
            self.assert_code(done, 1)
            self.assertIn(b'pods "nonesuch" not found', done.err)
            done = client.run("exec", DEVICE, "-c", "nonesuch", "--", "true")
            self.assert_code(done, 1)
            self.assertIn(b"nonesuch", done.err)
            done = client.run("attach", "nonesuch")
            self.assert_code(done, 1)
            self.assertIn(b'pods "nonesuch" not found', done.err)


class Impostor:
    """A device's certificate and key in the hands of a program that does not keep to the tether."""

    def __init__(self, agent: Twistd) -> None:
        self.file = agent.folder / "state" / "identity.json"
        self.content: dict[str, Any] = json.loads(self.file.read_text())

    def context(self, folder: Path, certificate: str = "") -> ssl.SSLContext:
        """TLS as this device, or with another certificate for its key."""
        pem = folder / "impostor.pem"
        pem.write_text((certificate or self.content["certificate"]) + self.content["key"])
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        context.load_cert_chain(pem)
        return context

    def keep(self, **changed: str) -> None:
        """Change what the agent will find in its state folder."""
        self.content |= changed
        self.file.write_text(json.dumps(self.content))


class Linked(Caller):
    """A WebSocket to the gateway, polite in one thing: it answers a close."""

    def __init__(self, wire: ssl.SSLSocket) -> None:
        super().__init__(wire)
        self._websocket = WebSocketClient()

    def heard(self, data: bytes) -> None:
        """Look for a close."""
        self._websocket.receive(data)
        if self._websocket.closed is not None:
            self.send(self._websocket.close())


class GatewayCase(PeerCase):
    """Has a device that joined and whose agent stopped: its certificate is ours to play with."""

    def setUp(self) -> None:
        """Have the certificate."""
        super().setUp()
        if PEER not in self.site.devices:
            self.site.add_device(PEER)
        self.agent = self.site.devices[PEER]
        self.agent.kill()
        self.impostor = Impostor(self.agent)
        self.folder = Path(self.mktemp()).absolute()
        self.folder.mkdir()

    def dial(self, context: ssl.SSLContext | None = None) -> ssl.SSLSocket:
        """A TLS connection to the gateway, as the device."""
        plain = socket.create_connection(("127.0.0.1", self.site.gateway_port), 15)
        wire = (context or self.impostor.context(self.folder)).wrap_socket(plain)
        self.addCleanup(wire.close)
        return wire

    def shake(self, wire: ssl.SSLSocket, protocol: str) -> bytes:
        """Ask for a WebSocket and give the answer's head."""
        wire.sendall(
            "GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
            f"Sec-WebSocket-Protocol: {protocol}\r\n\r\n".encode()
        )
        head = b""
        while b"\r\n\r\n" not in head:
            data = wire.recv(1)
            if not data:
                break
            head += data
        return head

    def linked(self, protocol: str = "tether.v1") -> Linked:
        """A WebSocket to the gateway that was let in."""
        wire = self.dial()
        head = self.shake(wire, protocol)
        self.assertIn(b" 101 ", head.split(b"\r\n")[0], head)
        return Linked(wire)

    @staticmethod
    def hello(**fields: Any) -> bytes:
        """A device's first frame."""
        return frames.encode([frames.Hello(**{"software": "impostor", "instance": os.urandom(16), **fields})])

    @staticmethod
    def message(payload: bytes, opcode: int = 2) -> bytes:
        """A message under a mask of zeros."""
        if len(payload) < 126:
            head = struct.pack(">BB", 0x80 | opcode, 0x80 | len(payload))
        elif len(payload) < 65536:
            head = struct.pack(">BBH", 0x80 | opcode, 0x80 | 126, len(payload))
        else:
            head = struct.pack(">BBQ", 0x80 | opcode, 0x80 | 127, len(payload))
        return head + bytes(4) + payload


class TetherTests(GatewayCase):
    """A device with a valid certificate is trusted with its own link and nothing else."""

    def test_garbage_before_hello(self) -> None:
        """What is not a Hello ends the link."""
        for what, sent in self.nonsense():
            caller = self.linked()
            caller.send(sent)
            self.assertTrue(caller.ended(), what)
        self.assert_unharmed()

    def test_garbage_after_hello(self) -> None:
        """The same from a device that was there already."""
        for what, sent in self.nonsense():
            caller = self.linked()
            caller.send(self.message(self.hello()) + sent)
            self.assertTrue(caller.ended(), what)
        self.assert_unharmed()

    def nonsense(self) -> Iterator[tuple[str, bytes]]:
        """Messages that no device sends."""
        yield "noise", self.message(b"\xff" * 5000)
        yield "text", self.message(b"hello", opcode=1)
        yield "an unknown opcode", self.message(b"", opcode=3)
        yield "no mask", b"\x82\x05hello"
        yield "a message too long", self.message(bytes(frames.MESSAGE_LIMIT + 1))
        yield "a length beyond all sense", struct.pack(">BBQ", 0x82, 0xFF, 1 << 62) + bytes(64 * 1024)
        yield "too many frames", self.message(frames.encode([frames.Ping(1)] * (frames.FRAMES_LIMIT + 1)))
        yield "endless fragments", (b"\x02\x80" + bytes(4)) + (b"\x00\x80" + bytes(4)) * 1000
        yield "an offset beyond all sense", self.message(frames.encode([frames.Credit(2, 1 << 63, 1 << 63)]))
        yield "a second hello", self.message(self.hello()) * 2

    def test_ten_thousand_streams(self) -> None:
        """A device that opens 10,000 streams ends its own link, at the latest when it reads no answer."""
        caller = self.linked()
        caller.send(self.message(self.hello()))
        opens = (frames.encode([frames.Open(2 * n + 1, 0, b"")]) for n in range(10_000))
        caller.wire.settimeout(15)
        with contextlib.suppress(OSError):
            for one in opens:
                caller.wire.sendall(self.message(one))
        caller.wire.close()
        self.assert_unharmed()

    def test_big_introduction(self) -> None:
        """A Hello that is too long is refused; one with odd facts makes an honest Node."""
        caller = self.linked()
        caller.send(self.message(self.hello(software="x" * 5000)[:-1]))
        self.assertTrue(caller.ended())
        caller = self.linked()
        caller.send(self.message(self.hello(host_boot_id="\x1b[31m" * 20)))
        caller.wire.settimeout(10)
        self.assertTrue(caller.wire.recv(1), self.site.explain())
        caller.wire.close()
        self.assert_unharmed()

    def test_silent_strangers(self) -> None:
        """A hundred connections that say nothing do not keep a device out."""
        silent = [socket.create_connection(("127.0.0.1", self.site.gateway_port), 10) for _ in range(100)]
        for one in silent:
            self.addCleanup(one.close)
        began = time.monotonic()
        self.agent.start()
        self.site.wait_online(PEER, 10)
        self.assertLess(time.monotonic() - began, 10)
        # They are not kept either.
        for one in silent:
            one.settimeout(15)
            with contextlib.suppress(ConnectionResetError):
                self.assertEqual(one.recv(1), b"")
        self.assert_unharmed()

    def test_join_garbage(self) -> None:
        """The join conversation answers nonsense with a refusal or the end."""
        for sent in (
            self.message(b"\xff" * 100),
            self.message(bytes(100 * 1024)),
            self.message(b"") * 3,
            self.message(b"join", opcode=1),
        ):
            caller = self.linked("join.v1")
            caller.send(sent)
            self.assertTrue(caller.ended())
        self.assert_unharmed()


class CertificateTests(GatewayCase):
    """Certificates and tokens past their time, and what the people at both ends are told."""

    def setUp(self) -> None:
        """Restore the device's own certificate afterwards."""
        super().setUp()
        self.addCleanup(self.impostor.keep, **self.impostor.content)
        self.addCleanup(self.agent.kill)

    def certificate(self, begin: datetime.timedelta, end: datetime.timedelta) -> str:
        """The device's certificate, signed by aranya's own authority, but for another time."""
        found = self.site.admin.run("get", "secret", "aranya-ca", "-n", OWN_NAMESPACE, "-o", "json")
        data = {name: base64.b64decode(text) for name, text in json.loads(found.out)["data"].items()}
        authority = x509.load_pem_x509_certificate(data["tls.crt"])
        mine = x509.load_pem_x509_certificates(self.impostor.content["certificate"].encode())[0]
        now = datetime.datetime.now(datetime.UTC)
        builder = (
            x509.CertificateBuilder(extensions=list(mine.extensions))
            .subject_name(mine.subject)
            .issuer_name(authority.subject)
            .public_key(mine.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + begin)
            .not_valid_after(now + end)
        )
        signed = builder.sign(load_pem_private_key(data["tls.key"], None), hashes.SHA256())  # type: ignore[arg-type]  # it is ECDSA
        return signed.public_bytes(Encoding.PEM).decode()

    def test_expired(self) -> None:
        """An expired certificate is refused by that word, and the agent says so and what to do."""
        old = self.certificate(datetime.timedelta(days=-9), datetime.timedelta(days=-2))
        head = self.shake(self.dial(self.impostor.context(self.folder, old)), "tether.v1")
        self.assertIn(b" 403 ", head.split(b"\r\n")[0])
        self.assertIn(b"expired", head)
        self.assert_agent_says(old, "expired on", "join again")

    def test_not_yet_valid(self) -> None:
        """A certificate of the future is told as a trouble of the clock."""
        early = self.certificate(datetime.timedelta(days=2), datetime.timedelta(days=9))
        head = self.shake(self.dial(self.impostor.context(self.folder, early)), "tether.v1")
        self.assertIn(b" 403 ", head.split(b"\r\n")[0])
        self.assertIn(b"valid only from", head)
        self.assert_agent_says(early, "valid only from", "clock")

    def test_gateway_of_another_authority(self) -> None:
        """A gateway that the device has no reason to trust is told as such, and gets nothing."""
        stranger = Authority("stranger").identity.certificate.decode()
        self.assert_agent_says(self.impostor.content["certificate"], "certificate", ca_bundle=stranger)

    def assert_agent_says(self, certificate: str, *words: str, **changed: str) -> None:
        """The agent with this certificate stays up, keeps out, and says why in one line."""
        size = len(self.agent.text())
        self.impostor.keep(certificate=certificate, **changed)
        self.agent.start()
        line = wait_until(
            "the agent told its trouble",
            lambda: [one for one in self.agent.text()[size:].splitlines() if "no connection" in one],
            15,
            self.agent.tail,
        )[0]
        for word in words:
            self.assertIn(word, line)
        self.assertNotIn("Traceback", self.agent.text())
        self.assertTrue(self.agent.is_alive())
        self.assertEqual(self.clients[-1].run("exec", PEER, "--", "true").code, 1)

    def test_expired_token(self) -> None:
        """A token past its time joins nobody, and the line says what to do."""
        self.site.create_device("too-late")
        token = self.site.join_token("too-late")
        name = f"aranya-device.{DEVICE_NAMESPACE}.too-late"
        found = self.site.admin.run("get", "secret", name, "-n", OWN_NAMESPACE, "-o", "json")
        record = json.loads(base64.b64decode(json.loads(found.out)["data"]["record"]))
        record["join"]["expires"] = time.time() - 1
        patch = {"data": {"record": base64.b64encode(json.dumps(record).encode()).decode()}}
        self.assert_code(
            self.site.admin.run("patch", "secret", name, "-n", OWN_NAMESPACE, "-p", json.dumps(patch)), 0
        )
        agent = self.site.agent("too-late")
        agent.start("--join", token)
        self.addCleanup(agent.kill)
        self.assertEqual(agent.wait(20), 1)
        self.assertIn("expired", agent.text())
        self.assertIn("kubectl aranya join too-late", agent.text())
        self.assertNotIn("Traceback", agent.text())
        self.assertNotIn(token, agent.text())
