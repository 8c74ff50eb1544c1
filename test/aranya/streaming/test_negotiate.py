"""Tests of ``aranya.streaming.negotiate``."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from aranya.streaming.negotiate import (
    PORT_FORWARD,
    REMOTE_COMMAND,
    REMOTE_COMMAND_V5,
    TUNNEL_PROTOCOL,
    Answer,
    Refusal,
    Spdy,
    UpgradeRequest,
    WebSocket,
    negotiate,
)

KEY = "dGhlIHNhbXBsZSBub25jZQ=="


def spdy(*versions: str, method: str = "POST", **changes: list[str]) -> UpgradeRequest:
    """A request of kubectl over SPDY."""
    headers = {
        "connection": ["Upgrade"],
        "upgrade": ["SPDY/3.1"],
        "x-stream-protocol-version": list(versions),
    }
    return UpgradeRequest(method, {name: values for name, values in (headers | changes).items() if values})


def websocket(*protocols: str, method: str = "GET", **changes: list[str]) -> UpgradeRequest:
    """A request of a WebSocket client."""
    headers = {
        "connection": ["keep-alive, Upgrade"],
        "upgrade": ["WebSocket"],
        "sec-websocket-version": ["13"],
        "sec-websocket-key": [KEY],
        "sec-websocket-protocol": list(protocols),
    }
    changed = headers | {name.replace("_", "-"): values for name, values in changes.items()}
    return UpgradeRequest(method, {name: values for name, values in changed.items() if values})


class SpdyTests(SynchronousTestCase):
    """SPDY or a refusal."""

    def refused(self, request: UpgradeRequest) -> Refusal:
        """The refusal of an exec request."""
        answer = negotiate(request, REMOTE_COMMAND)
        assert isinstance(answer, Refusal)
        return answer

    def test_client_prefers(self) -> None:
        """The first of the client's versions that the kubelet knows is chosen, from lines and lists."""
        for versions, chosen in (
            (("v5.channel.k8s.io", "v4.channel.k8s.io", "v3.channel.k8s.io"), "v4.channel.k8s.io"),
            (("v5.channel.k8s.io, v2.channel.k8s.io,channel.k8s.io",), "v2.channel.k8s.io"),
            (("channel.k8s.io", "v4.channel.k8s.io"), "channel.k8s.io"),
            (("v5.channel.k8s.io",), "v5.channel.k8s.io"),
        ):
            self.assertEqual(negotiate(spdy(*versions), REMOTE_COMMAND), Spdy(chosen))

    def test_either_method(self) -> None:
        """GET and POST both upgrade."""
        for method in ("GET", "POST"):
            answer = negotiate(spdy("v4.channel.k8s.io", method=method), REMOTE_COMMAND)
            self.assertEqual(answer, Spdy("v4.channel.k8s.io"))
        self.assertEqual(self.refused(spdy("v4.channel.k8s.io", method="PUT")).code, 405)

    def test_forward(self) -> None:
        """Port-forward has one version."""
        self.assertEqual(negotiate(spdy("portforward.k8s.io"), PORT_FORWARD), Spdy("portforward.k8s.io"))
        answer = negotiate(spdy("v4.channel.k8s.io"), PORT_FORWARD)
        assert isinstance(answer, Refusal)
        self.assertEqual(answer.headers, (("X-Accepted-Stream-Protocol-Versions", "portforward.k8s.io"),))

    def test_no_upgrade(self) -> None:
        """A plain request is told to upgrade."""
        for request in (UpgradeRequest("GET", {}), spdy("v4.channel.k8s.io", connection=["close"])):
            self.assertEqual(self.refused(request), Refusal(500, "Upgrade request required"))

    def test_no_version(self) -> None:
        """The version header is required."""
        refusal = self.refused(spdy())
        self.assertEqual(refusal.code, 400)
        self.assertEqual(
            refusal.text,
            "unable to upgrade: header X-Stream-Protocol-Version does not exist in request with 2 headers",
        )

    def test_no_common_version(self) -> None:
        """Without a common version all that are known are named, each in a header."""
        refusal = self.refused(spdy("v9.channel.k8s.io"))
        self.assertEqual(refusal.code, 403)
        self.assertEqual(
            [value for _, value in refusal.headers],
            ["v4.channel.k8s.io", "v3.channel.k8s.io", "v2.channel.k8s.io", "channel.k8s.io"],
        )

    def test_wrong_upgrade(self) -> None:
        """Another protocol than SPDY or WebSocket is refused."""
        refusal = self.refused(spdy("v4.channel.k8s.io", upgrade=["h2c"]))
        self.assertEqual(refusal.code, 400)
        self.assertTrue(refusal.text.startswith("unable to upgrade: missing upgrade headers in request"))

    def test_head(self) -> None:
        """The accepting response."""
        self.assertEqual(
            Spdy("v4.channel.k8s.io").head(),
            b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n"
            b"X-Stream-Protocol-Version: v4.channel.k8s.io\r\n\r\n",
        )


class WebSocketTests(SynchronousTestCase):
    """WebSocket or a refusal."""

    def test_client_prefers(self) -> None:
        """The first of the client's protocols that is known is chosen."""
        for protocols, chosen in (
            (("v5.channel.k8s.io", "v4.channel.k8s.io"), "v4.channel.k8s.io"),
            (("v9.channel.k8s.io, v4.base64.channel.k8s.io",), "v4.base64.channel.k8s.io"),
            (("base64.channel.k8s.io", "v4.channel.k8s.io"), "base64.channel.k8s.io"),
            ((), ""),
        ):
            self.assertEqual(negotiate(websocket(*protocols), REMOTE_COMMAND), WebSocket(chosen, KEY))

    def test_unknown(self) -> None:
        """An unknown protocol gets an empty 403, on which kubectl falls back to SPDY."""
        for accepts, protocol in (
            (REMOTE_COMMAND, TUNNEL_PROTOCOL),
            (REMOTE_COMMAND, "v5.channel.k8s.io"),
            (PORT_FORWARD, "v5.channel.k8s.io"),
        ):
            self.assertEqual(negotiate(websocket(protocol), accepts), Refusal(403))

    def test_v5(self) -> None:
        """v5 is spoken where it was declared."""
        answer = negotiate(websocket("v5.channel.k8s.io"), REMOTE_COMMAND_V5)
        self.assertEqual(answer, WebSocket("v5.channel.k8s.io", KEY))

    def test_tunnel(self) -> None:
        """The tunnel is a protocol of port-forward."""
        self.assertEqual(negotiate(websocket(TUNNEL_PROTOCOL), PORT_FORWARD), WebSocket(TUNNEL_PROTOCOL, KEY))

    def test_handshake(self) -> None:
        """Method, version and key are checked."""
        for request, code in (
            (websocket(method="POST"), 405),
            (websocket(sec_websocket_version=["8"]), 400),
            (websocket(sec_websocket_version=[]), 400),
            (websocket(sec_websocket_key=[]), 400),
            (websocket(sec_websocket_key=[" "]), 400),
        ):
            answer = negotiate(request, REMOTE_COMMAND)
            assert isinstance(answer, Refusal)
            self.assertEqual(answer.code, code)
        version = negotiate(websocket(sec_websocket_version=["8"]), REMOTE_COMMAND)
        assert isinstance(version, Refusal)
        self.assertEqual(version.headers, (("Sec-WebSocket-Version", "13"),))


class AnyRequestTests(SynchronousTestCase):
    """Headers of any content."""

    @given(
        st.sampled_from(["GET", "POST", "PATCH"]),
        st.dictionaries(
            st.sampled_from(
                [
                    "connection",
                    "upgrade",
                    "x-stream-protocol-version",
                    "sec-websocket-key",
                    "sec-websocket-version",
                ]
            ),
            st.lists(
                st.sampled_from(["", ",", "upgrade", "websocket", "spdy/3.1", "13", "é", "v4.channel.k8s.io"])
            ),
        ),
    )
    @settings(max_examples=200, deadline=None)
    def test_always_an_answer(self, method: str, headers: dict[str, list[str]]) -> None:
        """Every request is accepted or refused."""
        for accepts in (REMOTE_COMMAND, PORT_FORWARD):
            answer = negotiate(UpgradeRequest(method, headers), accepts)
            self.assertIsInstance(answer, Answer)
