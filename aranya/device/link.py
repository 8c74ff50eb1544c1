"""One process of a device's agent on this side: its tether, from its first Hello until its sessions are over.

It tells the registry how the process fares, and renews the device's certificate.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from cryptography import x509
from twisted.logger import Logger

from aranya.certs.keys import key_hash
from aranya.device.admission import Admission, Admitted, NotAdmitted
from aranya.device.device import LinkedDevice
from aranya.device.joining import JoinDenied, Joins, RenewedLately
from aranya.device.registry import Cloned, Registry
from aranya.kube.errors import KubeError
from aranya.names import DeviceKey
from tether.errors import Reason, ResetCode
from tether.join import printable
from tether.link.interfaces import Channel, Introduction, Lane, Link, Receiver
from tether.link.link import PeerIntroduction, Tether
from tether.tasks import spawn
from tether.verbs.codec import encode_result
from tether.verbs.requests import Failed, Issued, Renew, Request, Result
from tether.wire.frames import Duty

CLOSING = "the controller is stopping"

_UNSUPPORTED = Reason(ResetCode.UNSUPPORTED, "the controller does not do this for a device")
_ONE_RENEWAL = Reason(ResetCode.LIMIT, "a renewal of this device is under way already")


class Door(Protocol):
    """What a link needs of the gateway that let it in."""

    @property
    def closing(self) -> bool:
        """Whether nobody is let in any more."""

    def link_over(self, link: DeviceLink) -> None:
        """Nobody will come back for this link's sessions."""


@dataclass
class Heirs:
    """Which key was certified for the holder of which, for each device: the last renewal.

    Only who holds a key can have another certified over its link. So who comes back with the
    newer one is who left with the older, and its sessions may go on.
    """

    _last: dict[DeviceKey, tuple[str, str]] = field(default_factory=dict)

    def certified(self, key: DeviceKey, present: str, newer: str) -> None:
        """``newer`` was certified for the holder of ``present``."""
        self._last[key] = (present, newer)

    def same_holder(self, before: Admitted, now: Admitted) -> bool:
        """Whether both are one device with one key, or with its heir."""
        if before.identity != now.identity:
            return False
        pair = (before.key_hash, now.key_hash)
        return before.key_hash == now.key_hash or self._last.get(now.identity.key) == pair

    def same_line(self, one: Admitted, other: Admitted) -> bool:
        """Whether both are one device with one key, or one of them with the other's heir."""
        return self.same_holder(one, other) or self.same_holder(other, one)


class DeviceLink:
    """A process's tether, and what is done when it comes, goes, or asks: ``Watcher`` and ``Acceptor``."""

    _log = Logger()

    def __init__(
        self,
        admitted: Admitted,
        instance: bytes,
        new_tether: Callable[[DeviceLink], Tether],
        admission: Admission,
        joins: Joins,
        registry: Registry,
        heirs: Heirs,
        door: Door,
    ) -> None:
        self.admitted = admitted
        self.instance = instance
        self._admission = admission
        self._joins = joins
        self._registry = registry
        self._heirs = heirs
        self._door = door
        self._device: LinkedDevice | None = None
        self._renewing = False
        self.tether = new_tether(self)

    def is_elsewhere(self, said: Introduction) -> bool:
        """Whether another host than this link's says that it has its instance; no process outlives a boot."""
        peer = self.tether.peer
        return peer is not None and peer.host_boot_id != said.host_boot_id

    def overtook(self, admitted: Admitted, said: PeerIntroduction) -> bool:
        """Whether who says this is this link's process, but has come by a later connection already."""
        # A connection that was long on its way may have begun before the key was renewed.
        return self._heirs.same_line(self.admitted, admitted) and self.tether.is_late(said)

    def continued_by(self, admitted: Admitted) -> bool:
        """Whether who comes with this link's instance holds its key, too; then it is taken up."""
        if not self._heirs.same_holder(self.admitted, admitted):
            return False
        self.admitted = admitted
        return True

    def close(self, reason: str, retry: bool = True) -> None:
        """End the link for good."""
        self.tether.close(reason, retry)

    # ---- Watcher

    def link_up(self, link: Link, resumed: bool) -> None:
        """The device said Hello; from here on it can be used."""
        if self._door.closing:
            self.close(CLOSING)
            return
        transport = self.tether.transport
        address = transport.address if transport is not None else ""
        device = LinkedDevice(self.admitted.identity, self.admitted.key_hash, link, address)
        try:
            # A ban or another join may have come since the handshake, when there was no link to end.
            self._admission.check(self.admitted)
            self._registry.arrived(device)
        except NotAdmitted as refused:
            self.close(str(refused), retry=False)
            return
        except Cloned as refused:
            self.close(str(refused), refused.retry)
            return
        self._device = device
        spawn(self._record_use(), self._log, "cannot record which key a device uses")

    def link_down(self, link: Link, reason: str, retry: bool) -> None:
        """The connection is gone; the process may come back within the grace."""
        if self._device is not None:
            # Perhaps the device's own words, as it closed the WebSocket.
            self._registry.left(self._device, printable(reason))

    def link_over(self, link: Link) -> None:
        """It did not, or is not to."""
        device, self._device = self._device, None
        if device is not None:
            self._registry.over(device)
        self._door.link_over(self)

    def duty_told(self, link: Link, duty: Duty) -> None:
        """An agent that is stopping gives its duty back; what else it may say is not for it to decide."""
        if duty is Duty.DRAINING and self._device is not None:
            self._registry.drains(self._device)

    async def _record_use(self) -> None:
        try:
            await self._joins.connected(self.admitted.identity, self.admitted.key_hash)
        except KubeError as error:
            # The key before counts on until the next time.
            device = str(self.admitted.identity.key)
            self._log.warn(
                "cannot record which key {device} uses: {reason}", device=device, reason=str(error)
            )

    # ---- Acceptor

    def stream_opened(self, request: Request, channel: Channel) -> Receiver:
        """Devices may ask for a new certificate, and for nothing else."""
        answer = _Answer(channel)
        if isinstance(request, Renew) and self._renewing:
            # Each is signed and recorded: no device may have the controller do that without end.
            channel.reset(_ONE_RENEWAL)
        elif isinstance(request, Renew):
            self._renewing = True
            spawn(self._renew(request, answer), self._log, "cannot renew a device's certificate")
        else:
            channel.reset(_UNSUPPORTED)
        return answer

    async def _renew(self, request: Renew, answer: _Answer) -> None:
        admitted = self.admitted
        try:
            chain = await self._joins.renew(admitted.identity, admitted.key_hash, request.csr)
        except RenewedLately as denied:
            answer.refuse(Reason(ResetCode.LIMIT, str(denied)))
        except JoinDenied as denied:
            answer.give(Failed(ResetCode.REFUSED, str(denied)))
        except KubeError as error:
            self._log.warn(
                "renewal for {device} failed: {reason}",
                device=str(admitted.identity.key),
                reason=str(error),
            )
            answer.give(Failed(ResetCode.INTERNAL, "the controller cannot record the key now; try later"))
        else:
            newer = key_hash(x509.load_pem_x509_certificate(chain).public_key())
            self._heirs.certified(admitted.identity.key, admitted.key_hash, newer)
            answer.give(Issued(chain))
        finally:
            self._renewing = False


class _Answer:
    """Gives one result on a channel, if anybody still waits; receives nothing."""

    def __init__(self, channel: Channel) -> None:
        self._channel: Channel | None = channel

    def give(self, result: Result) -> None:
        """The answer."""
        if self._channel is not None:
            self._channel.write(encode_result(result), Lane.RESULT)
            self._channel.finish()

    def refuse(self, reason: Reason) -> None:
        """There is no answer, and why."""
        if self._channel is not None:
            self._channel.reset(reason)

    def data_received(self, lane: Lane, data: bytes) -> None:
        """Nothing belongs here."""

    def finished(self) -> None:
        """The asker has said all."""

    def reset(self, reason: Reason) -> None:
        """Nobody waits any more."""
        self._channel = None

    def closed(self) -> None:
        """The channel is history."""
        self._channel = None
