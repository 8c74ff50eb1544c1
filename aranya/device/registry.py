"""Which devices are here now, and who yields when one comes twice.

The rule of succession
    A device that comes while its old link still stands is most often the same one
    whose old link died silently: same process (instance) or same host (boot id).
    Then the newer link takes over. A device of another host with the same identity is
    a clone, or the same machine just rebooted. Nobody can tell at once, so the
    newcomer is refused and may come again, and the old link is asked for a sign of
    life. If it gives one, somebody copied a key, and ``cloned`` is told; if it gives
    none, it is closed, and the newcomer finds the place free. Either way a session
    never moves to a machine that merely holds the same key.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from aranya.device.device import LinkedDevice
from aranya.interfaces import Device
from aranya.names import DeviceKey
from tether.errors import LinkLost, Reason, ResetCode, StreamReset
from tether.link.interfaces import Lane
from tether.verbs.requests import AskFacts

#: Seconds that a doubted link has to give a sign of life; an agent answers in its next turn.
PROOF_OF_LIFE = 5.0


class Cloned(Exception):
    """Another host is connected with this identity; one line of why, which the device is told."""


@dataclass(slots=True)
class _Present:
    device: LinkedDevice
    doubted: bool = False
    told: bool = False


class _SignOfLife:
    """Receives whatever a doubted device answers; anything of its own is a sign."""

    def __init__(self, alive: Callable[[], None]) -> None:
        self._alive = alive

    def data_received(self, lane: Lane, data: bytes) -> None:
        """It answered."""
        self._alive()

    def finished(self) -> None:
        """It answered, if with little."""
        self._alive()

    def reset(self, reason: Reason) -> None:
        """It refused, which is life, too; or the link is gone, which is not."""
        if reason.code is not ResetCode.LOST:
            self._alive()

    def closed(self) -> None:
        """Nothing is held."""


class Registry:
    """The connected devices; implements ``Devices``.

    ``cloned`` is called with the key and one line, once per link that was doubted.
    """

    _log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        cloned: Callable[[DeviceKey, str], None] = lambda key, message: None,
        proof_of_life: float = PROOF_OF_LIFE,
    ) -> None:
        self._clock = clock
        self._cloned = cloned
        self._proof_of_life = proof_of_life
        self._present: dict[DeviceKey, _Present] = {}
        self._listeners: list[Callable[[DeviceKey], None]] = []

    # ---- Devices -------------------------------------------------------------------

    def get(self, key: DeviceKey) -> Device | None:
        """The device, if it is connected."""
        present = self._present.get(key)
        return present.device if present is not None else None

    def disconnect(self, key: DeviceKey, reason: str, retry: bool = True) -> None:
        """Close the device's link, if there is one."""
        present = self._present.get(key)
        if present is not None:
            self._remove(present.device, reason)
            present.device.link.close(reason, retry)

    def subscribe(self, listener: Callable[[DeviceKey], None]) -> Callable[[], None]:
        """Call ``listener`` whenever a device came or went."""
        self._listeners.append(listener)

        def undo() -> None:
            if listener in self._listeners:
                self._listeners.remove(listener)

        return undo

    # ---- for the gateway --------------------------------------------------------------

    def keys(self) -> list[DeviceKey]:
        """All that are connected now."""
        return list(self._present)

    def arrived(self, device: LinkedDevice) -> None:
        """A link of an admitted device said Hello. Raises ``Cloned`` when it must go again."""
        key = device.key
        present = self._present.get(key)
        if present is not None:
            self._succeed(present, device)
        self._present[key] = _Present(device)
        self._log.info(
            "device {device} connected from {peer} with {software}",
            device=str(key),
            peer=device.address,
            software=device.software,
        )
        if present is not None and present.device.link is not device.link:
            # Another process of the same host, if it lives at all, must not come back at once
            # and so forth for ever; the same process has noticed by itself.
            same = present.device.instance == device.instance
            present.device.link.close("a newer link of this device took over", retry=same)
        self._tell(key)

    def left(self, device: LinkedDevice, reason: str) -> None:
        """A device's link is gone; ignored when a newer one took over."""
        present = self._present.get(device.key)
        if present is not None and present.device is device:
            self._remove(device, reason)

    def _succeed(self, present: _Present, newer: LinkedDevice) -> None:
        older = present.device
        same_process = older.instance == newer.instance
        same_host = bool(older.host_boot_id) and older.host_boot_id == newer.host_boot_id
        if same_process or same_host or older.key_hash != newer.key_hash:
            # Another admitted key is a renewal or a new join: the older one is on its way out.
            return
        line = (
            f"another host is connected as {newer.key}, from {older.address}; "
            "two devices must not share one identity"
        )
        if not present.doubted and not present.told:
            self._doubt(present, newer, line)
        raise Cloned(line)

    def _doubt(self, present: _Present, newer: LinkedDevice, line: str) -> None:
        older = present.device

        def alive() -> None:
            if timer.active():
                timer.cancel()
                present.doubted, present.told = False, True
                self._log.warn(
                    "device {device} was cloned: connected from {peer}, refused from {other}",
                    device=str(newer.key),
                    peer=older.address,
                    other=newer.address,
                )
                self._cloned(newer.key, f"{line}; refused from {newer.address}")

        def silent() -> None:
            present.doubted = False
            if self._present.get(older.key) is present:
                self.disconnect(older.key, "the old link gave no sign of life")

        present.doubted = True
        timer = self._clock.callLater(self._proof_of_life, silent)
        try:
            older.link.open(AskFacts(), _SignOfLife(alive))
        except (LinkLost, StreamReset):
            # Too many streams are open for one more: the deadline decides.
            pass

    def _remove(self, device: LinkedDevice, reason: str) -> None:
        del self._present[device.key]
        self._log.info("device {device} left: {reason}", device=str(device.key), reason=reason)
        self._tell(device.key)

    def _tell(self, key: DeviceKey) -> None:
        for listener in list(self._listeners):
            try:
                listener(key)
            except Exception:
                # One bad listener must not keep the others from knowing.
                self._log.failure("a listener failed on device {device}", device=str(key))
