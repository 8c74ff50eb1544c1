"""A connected device: the face that sessions and the controller see of a link."""

from __future__ import annotations

from aranya.device.facts import reaches, sanitised
from aranya.names import DeviceIdentity, DeviceKey
from tether.join import printable
from tether.link.interfaces import Channel, Link, Receiver
from tether.link.link import TAKEOVER
from tether.verbs.requests import DeviceFacts, Request
from tether.wire.frames import alias_of


class LinkedDevice:
    """A ``Device`` over a link whose peer was admitted as ``identity``."""

    def __init__(self, identity: DeviceIdentity, key_hash: str, link: Link, address: str) -> None:
        peer = link.peer
        self._identity = identity
        self._key_hash = key_hash
        self._link = link
        self._address = address
        self._facts = sanitised(peer.facts or DeviceFacts())
        self._software = printable(peer.software, 64)
        self._instance = bytes(peer.instance)
        self._alias = alias_of(self._instance)
        # Compared as it was said; a cleaned text could make two hosts look alike.
        self._host_boot_id = str(peer.host_boot_id)
        self._tells_companions = TAKEOVER in peer.capabilities
        self._started = int(peer.started)
        self._companions = frozenset(peer.companions)
        self._draining = bool(peer.draining)

    @property
    def key(self) -> DeviceKey:
        """Which EdgeDevice it is."""
        return self._identity.key

    @property
    def identity(self) -> DeviceIdentity:
        """Who its certificate says it is."""
        return self._identity

    @property
    def key_hash(self) -> str:
        """The key that it proved to hold."""
        return self._key_hash

    @property
    def link(self) -> Link:
        """What carries it now."""
        return self._link

    @property
    def facts(self) -> DeviceFacts:
        """What it says about itself, sanitised."""
        return self._facts

    @property
    def software(self) -> str:
        """The agent's name and version."""
        return self._software

    @property
    def address(self) -> str:
        """Where its link comes from, for people."""
        return self._address

    @property
    def instance(self) -> bytes:
        """Which process of the agent it is."""
        return self._instance

    @property
    def alias(self) -> bytes:
        """What other agents of its host call this process."""
        return self._alias

    @property
    def host_boot_id(self) -> str:
        """Tells a second process of one host from a cloned device."""
        return self._host_boot_id

    @property
    def started(self) -> int:
        """When the process began, by its host's clock; of two of one host the smaller is the elder."""
        return self._started

    @property
    def tells_companions(self) -> bool:
        """Whether ``companions`` means anything: a former version does not tell."""
        return self._tells_companions

    @property
    def companions(self) -> frozenset[bytes]:
        """Aliases of the other agents that lived on its host when it connected."""
        return self._companions

    @property
    def draining(self) -> bool:
        """Whether it was stopping already when it connected."""
        return self._draining

    def allows(self, verb: str) -> bool:
        """Whether the owner's policy lets this verb; the device enforces it itself, too."""
        return verb in self._facts.allow

    def may_forward(self, host: str, port: int) -> bool:
        """Whether the device's own allow list lets a forward there ("" is its loopback)."""
        return self.allows("port-forward") and reaches(self._facts.forward, host, port)

    def open(self, request: Request, receiver: Receiver) -> Channel:
        """Open a session on the device at once. Raises ``LinkLost`` or ``StreamReset``."""
        return self._link.open(request, receiver)
