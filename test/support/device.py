"""A device whose sessions a test plays by hand, and a set of such devices."""

from __future__ import annotations

from collections.abc import Callable

from aranya.names import DeviceKey
from test.support.channels import RecordingChannel
from tether.errors import Reason, ResetCode
from tether.link.interfaces import Channel, Lane, Receiver
from tether.verbs.codec import encode_result
from tether.verbs.requests import DeviceFacts, Request, Result


class ScriptedSession:
    """One session that was opened on a ``ScriptedDevice``: the test is the agent."""

    def __init__(self, request: Request, receiver: Receiver, stream: int) -> None:
        self.request = request
        self.receiver = receiver
        self.channel = RecordingChannel(stream)

    def tell(self, data: bytes, lane: Lane = Lane.MAIN) -> None:
        """The agent writes."""
        self.receiver.data_received(lane, data)

    def answer(self, result: Result) -> None:
        """The agent tells its result and ends, as every agent does."""
        self.receiver.data_received(Lane.RESULT, encode_result(result))
        self.receiver.finished()

    def break_off(self, code: ResetCode, text: str) -> None:
        """The session ends before its time."""
        self.receiver.reset(Reason(code, text))
        self.receiver.closed()


class ScriptedDevice:
    """A connected device that does nothing by itself."""

    def __init__(self, name: str = "dev", namespace: str = "edge") -> None:
        self.key = DeviceKey(namespace, name)
        self.facts = DeviceFacts()
        self.software = "arhat/test"
        self.address = "192.0.2.1:1"
        self.forbidden: set[str] = set()
        self.forbidden_targets: set[tuple[str, int]] = set()
        self.sessions: list[ScriptedSession] = []
        #: Raised by the next ``open``.
        self.failure: Exception | None = None
        #: Plays a session as soon as it is opened, before ``open`` returns.
        self.script: Callable[[ScriptedSession], None] = lambda session: None

    def allows(self, verb: str) -> bool:
        return verb not in self.forbidden

    def may_forward(self, host: str, port: int) -> bool:
        return (host, port) not in self.forbidden_targets

    def open(self, request: Request, receiver: Receiver) -> Channel:
        if self.failure is not None:
            raise self.failure
        session = ScriptedSession(request, receiver, 2 * len(self.sessions))
        self.sessions.append(session)
        self.script(session)
        return session.channel  # type: ignore[return-value]  # zope knows that it provides Channel

    @property
    def session(self) -> ScriptedSession:
        """The session that was opened last."""
        return self.sessions[-1]


class ScriptedDevices:
    """The devices that are here."""

    def __init__(self, *devices: ScriptedDevice) -> None:
        self.here = {device.key: device for device in devices}
        self.disconnected: list[tuple[DeviceKey, str]] = []

    def get(self, key: DeviceKey) -> ScriptedDevice | None:
        return self.here.get(key)

    def standbys(self, key: DeviceKey) -> list[ScriptedDevice]:
        return []

    def disconnect(self, key: DeviceKey, reason: str, retry: bool = True) -> None:
        self.disconnected.append((key, reason))
        self.here.pop(key, None)

    def subscribe(self, listener: Callable[[DeviceKey], None]) -> Callable[[], None]:
        return lambda: None
