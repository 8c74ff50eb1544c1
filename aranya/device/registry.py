"""Which devices are here now, and which of a device's agents is the active one.

A device may be connected more than once: while its agent is upgraded, two processes of one host hold
a link each. A *process* is known by its instance, and stays known while its link is down and its
sessions wait for it.

The rule of duty
    Of the processes that are connected and do not drain the eldest is active: new sessions go to
    it, and so every attach finds the shell that was there before. The others stand by. When the
    active one goes, the next is active in the same turn; when it comes back, it is active again. Who
    is the eldest is for the host's own clock to say, so a controller that was restarted decides as
    the one before it.

The rule of restart
    A process that is not among the companions of a newcomer from the same host is dead, whatever its
    connection says: its sessions end. If it still looks connected it is first asked for a sign of life,
    for a folder may have been copied.

The rule of witnesses
    A process whose connection is lost may be dead, or only cut off. An agent that shares its state folder
    can tell, and is asked as long as that lasts: nobody waits out the grace of a dead one.

The rule of clones
    A connected device of another host with the same identity is a clone, or the same machine just
    rebooted. Nobody can tell at once, so the newcomer is refused and may come again, and the old link is
    asked for a sign of life. If it gives one, somebody copied a key, and ``cloned`` is told; if it gives
    none, it is closed, and the newcomer finds the place free. Either way a session
    never moves to a machine that merely holds the same key.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger

from aranya.device.device import LinkedDevice
from aranya.interfaces import Device
from aranya.names import DeviceKey
from tether.errors import LinkLost, Reason, ResetCode, StreamReset
from tether.link.call import ask
from tether.link.interfaces import Lane
from tether.tasks import spawn
from tether.verbs.requests import AskFacts, DeviceFacts
from tether.wire.frames import Duty

#: Seconds that a doubted link has to give a sign of life; an agent answers in its next turn.
PROOF_OF_LIFE = 5.0
#: The same where the host itself says that the process is dead.
PROOF_OF_DEATH = 0.8
#: Seconds until a witness is asked again, doubled each time up to the other; how long its answer may take.
WITNESS_PAUSE = 1.0
WITNESS_LONGEST_PAUSE = 30.0
WITNESS_PATIENCE = 5.0

_DIED = "its agent died"
_RESTARTED = "its agent was restarted"
_REBOOTED = "it came back as another host, or was rebooted"
_SILENT = "the old link gave no sign of life"
_REPLACED = "a newer link of this device took over"


class Cloned(Exception):
    """Another host is connected with this identity; one line of why, which the device is told.

    ``retry``: it may be the same machine just rebooted, and find the place free soon.
    """

    def __init__(self, line: str, retry: bool) -> None:
        super().__init__(line)
        self.retry = retry


@dataclass(slots=True, eq=False)
class _Process:
    """One process of a device's agent, as it introduced itself last."""

    device: LinkedDevice
    order: int  # of arrival, among those that do not tell their age
    up: bool = True
    draining: bool = False
    duty: Duty | None = None  # what it was told on this link
    doubt: IDelayedCall | None = None  # it has to give a sign of life until then
    clone_told: bool = False
    search: Deferred[None] | None = None  # witnesses are asked for it

    @property
    def age(self) -> tuple[int, int]:
        """Smaller is elder."""
        return self.device.started, self.order


@dataclass(slots=True)
class _Household:
    """All processes of one device."""

    processes: dict[bytes, _Process] = field(default_factory=dict)
    arrivals: int = 0

    def ranked(self) -> list[_Process]:
        """Those that are connected and do not drain, the active one first."""
        able = (process for process in self.processes.values() if process.up and not process.draining)
        return sorted(able, key=lambda process: process.age)

    def active(self) -> _Process | None:
        """Who takes new sessions; if all drain, one that refuses them and says why."""
        ranked = self.ranked() or [process for process in self.processes.values() if process.up]
        return ranked[0] if ranked else None


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
        self._households: dict[DeviceKey, _Household] = {}
        self._listeners: list[Callable[[DeviceKey], None]] = []

    # ---- Devices -------------------------------------------------------------------

    def get(self, key: DeviceKey) -> Device | None:
        """The device, if it is connected: its active agent."""
        household = self._households.get(key)
        active = None if household is None else household.active()
        return None if active is None else active.device

    def standbys(self, key: DeviceKey) -> Sequence[Device]:
        """The agents of a device that stand by, the eldest first."""
        household = self._households.get(key)
        return [] if household is None else [process.device for process in household.ranked()[1:]]

    def disconnect(self, key: DeviceKey, reason: str, retry: bool = True) -> None:
        """Close all links of the device; sessions that wait for one to come back end, too."""
        household = self._households.pop(key, None)
        if household is not None:
            self._log.info("device {device} is sent away: {reason}", device=str(key), reason=reason)
            for process in household.processes.values():
                self._trust(process)
                self._stop_looking(process)
                process.device.link.close(reason, retry)
            self._tell(key)

    def subscribe(self, listener: Callable[[DeviceKey], None]) -> Callable[[], None]:
        """Call ``listener`` whenever a device, or an agent that stands by, came or went."""
        self._listeners.append(listener)

        def undo() -> None:
            if listener in self._listeners:
                self._listeners.remove(listener)

        return undo

    # ---- for the gateway --------------------------------------------------------------

    def keys(self) -> list[DeviceKey]:
        """All that are connected now."""
        return [key for key in self._households if self.get(key) is not None]

    def arrived(self, device: LinkedDevice) -> None:
        """A link of an admitted device said Hello. Raises ``Cloned`` when it must go again."""
        key = device.key
        others = [process for process in self._processes(key) if process.device.instance != device.instance]
        for other in others:
            self._suspect_clone(other, device)
        for other in others:
            self._meet(other, device)
        household = self._households.setdefault(key, _Household())
        process = household.processes.get(device.instance)
        if process is None:
            household.arrivals += 1
            process = _Process(device, household.arrivals)
            household.processes[device.instance] = process
        else:
            older, process.device = process.device.link, device
            process.up, process.duty = True, None
            self._trust(process)
            self._stop_looking(process)
            if older is not device.link:
                older.close(_REPLACED)
        self._log.info(
            "device {device} connected from {peer} with {software}",
            device=str(key),
            peer=device.address,
            software=device.software,
        )
        if device.draining:
            # Its word may have been lost with the former link.
            self._drains(process)
        self._changed(key)
        self._seek(other for other in others if not other.up)

    def drains(self, device: LinkedDevice) -> None:
        """This agent takes no new sessions any more; those it has go on.

        It hears that back, and until then must take what was sent to it before.
        """
        process = self._process(device)
        if process is None:
            return
        if self._drains(process):
            self._changed(device.key)
        device.link.tell_duty(Duty.DRAINING)

    def _drains(self, process: _Process) -> bool:
        """There is no way back from draining; true if this is news."""
        news, process.draining = not process.draining, True
        if news:
            self._log.info(
                "device {device}: the agent at {peer} is stopping",
                device=str(process.device.key),
                peer=process.device.address,
            )
        return news

    def left(self, device: LinkedDevice, reason: str) -> None:
        """A connection is gone, and may come back; ignored when a newer one took its place."""
        process = self._process(device)
        if process is not None and process.up:
            process.up = False
            self._log.info(
                "device {device} left from {peer}: {reason}",
                device=str(device.key),
                peer=device.address,
                reason=reason,
            )
            self._changed(device.key)
            self._seek([process])

    def over(self, device: LinkedDevice) -> None:
        """Nobody will come back for the sessions of this link: they have ended."""
        process = self._process(device)
        if process is not None:
            self._forget(process)

    # ---- who is who ------------------------------------------------------------------------

    def _suspect_clone(self, other: _Process, newer: LinkedDevice) -> None:
        """Raises ``Cloned`` if the two cannot be of one host and the other may live."""
        older = other.device
        if not other.up or _same_host(older, newer) or older.key_hash != newer.key_hash:
            # Another admitted key is a renewal or a new join: the older one is on its way out.
            return
        line = (
            f"another host is connected as {newer.key}, from {older.address}; "
            "two devices must not share one identity"
        )

        def alive() -> None:
            other.clone_told = True
            self._log.warn(
                "device {device} was cloned: connected from {peer}, refused from {other}",
                device=str(newer.key),
                peer=older.address,
                other=newer.address,
            )
            self._cloned(newer.key, f"{line}; refused from {newer.address}")

        if not other.clone_told:
            self._doubt(other, self._proof_of_life, _SILENT, alive)
        raise Cloned(line, retry=not other.clone_told)

    def _meet(self, other: _Process, newer: LinkedDevice) -> None:
        """Another process of this device is known: it stays, it is dead, or that has to be found out."""
        if not _same_host(other.device, newer):
            self._bury(other, _REPLACED if other.up else _REBOOTED, retry=False)
        elif other.device.alias not in newer.companions:
            if not other.up:
                self._bury(other, _RESTARTED)
            else:
                told = newer.tells_companions and other.device.tells_companions
                patience = PROOF_OF_DEATH if told else self._proof_of_life
                self._doubt(other, patience, _RESTARTED, lambda: None)

    def _doubt(self, process: _Process, patience: float, verdict: str, alive: Callable[[], None]) -> None:
        """Ask for a sign of life; without one in time the process is buried."""
        if process.doubt is not None:
            return

        def answered() -> None:
            if self._trust(process):
                alive()

        def silent() -> None:
            process.doubt = None
            self._bury(process, verdict)
            self._changed(process.device.key)

        process.doubt = self._clock.callLater(patience, silent)
        try:
            process.device.link.open(AskFacts(), _SignOfLife(answered)).finish()
        except (LinkLost, StreamReset):
            # Too many streams are open for one more: the deadline decides.
            pass

    def _trust(self, process: _Process) -> bool:
        """The process lives; true if that was in doubt."""
        doubt, process.doubt = process.doubt, None
        if doubt is not None:
            doubt.cancel()
        return doubt is not None

    def _seek(self, missing: Iterable[_Process]) -> None:
        """Have others look whether these live, who are not connected."""
        for process in missing:
            if process.search is None and self._witness(process) is not None:
                search = spawn(self._look_for(process), self._log, "cannot find out whether an agent lives")
                if not search.called:
                    process.search = search

    async def _look_for(self, process: _Process) -> None:
        pause = WITNESS_PAUSE
        while (witness := self._witness(process)) is not None:
            try:
                told = await ask(witness.device.link, AskFacts(), self._clock, WITNESS_PATIENCE)
            except (LinkLost, StreamReset):
                told = None
            living = told.agents if isinstance(told, DeviceFacts) else frozenset()
            if living and process.device.alias not in living and self._is_missed(process):
                self._log.info(
                    "device {device}: the agent at {peer} died",
                    device=str(process.device.key),
                    peer=process.device.address,
                )
                process.search = None
                self._bury(process, _DIED)
                return
            await deferLater(self._clock, pause, lambda: None)
            pause = min(2 * pause, WITNESS_LONGEST_PAUSE)
        process.search = None

    def _stop_looking(self, process: _Process) -> None:
        search, process.search = process.search, None
        if search is not None:
            search.cancel()

    def _witness(self, process: _Process) -> _Process | None:
        """A connected process that can tell whether this one lives, if it is missed."""
        if not self._is_missed(process):
            return None
        others = self._processes(process.device.key)
        return next((other for other in others if other.up and _acquainted(other, process)), None)

    def _is_missed(self, process: _Process) -> bool:
        """Whether it is not connected, and its sessions wait for it."""
        return not process.up and process in self._processes(process.device.key)

    def _bury(self, process: _Process, reason: str, retry: bool = True) -> None:
        """End all that this process had."""
        self._forget(process)
        process.device.link.close(reason, retry)

    def _processes(self, key: DeviceKey) -> list[_Process]:
        household = self._households.get(key)
        return [] if household is None else list(household.processes.values())

    def _process(self, device: LinkedDevice) -> _Process | None:
        """The process that this link is the present one of."""
        household = self._households.get(device.key)
        process = None if household is None else household.processes.get(device.instance)
        return process if process is not None and process.device is device else None

    def _forget(self, process: _Process) -> None:
        self._trust(process)
        self._stop_looking(process)
        key = process.device.key
        household = self._households.get(key)
        if household is not None and household.processes.get(process.device.instance) is process:
            del household.processes[process.device.instance]
            if not household.processes:
                del self._households[key]

    # ---- telling ---------------------------------------------------------------------------

    def _changed(self, key: DeviceKey) -> None:
        """Tell each agent its duty, and the listeners that something is new."""
        household = self._households.get(key)
        for rank, process in enumerate(household.ranked() if household is not None else []):
            duty = Duty.STANDBY if rank else Duty.ACTIVE
            if process.duty is not duty:
                if process.duty is not None or duty is Duty.STANDBY:
                    self._log.info(
                        "device {device}: the agent at {peer} {does}",
                        device=str(key),
                        peer=process.device.address,
                        does="stands by" if rank else "is active now",
                    )
                process.duty = duty
                process.device.link.tell_duty(duty)
        self._tell(key)

    def _tell(self, key: DeviceKey) -> None:
        for listener in list(self._listeners):
            try:
                listener(key)
            except Exception:
                # One bad listener must not keep the others from knowing.
                self._log.failure("a listener failed on device {device}", device=str(key))


def _acquainted(one: _Process, other: _Process) -> bool:
    """Whether they share a state folder: one knew of the other as it connected."""
    return one.device.alias in other.device.companions or other.device.alias in one.device.companions


def _same_host(older: LinkedDevice, newer: LinkedDevice) -> bool:
    return bool(older.host_boot_id) and older.host_boot_id == newer.host_boot_id
