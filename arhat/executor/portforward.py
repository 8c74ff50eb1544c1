"""Port-forward: a TCP connection made from the device, and a channel.

The law of what may be reached
    The owner's rules name addresses, networks or names, each with ports. A
    target is resolved once, every address is held against the rules, and the
    connection goes to an address that passed, never back through its name: a
    name that answers differently the second time gains nothing. A rule that is
    a name lets that name lead wherever it does.

Ends are passed on one direction at a time. A target that cannot be reached
resets the channel with the text that a kubelet would give; a connection that
breaks after it was made ends as any other, since a client can see that only as
an end.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Sequence
from typing import Any

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP6ClientEndpoint
from twisted.internet.error import ConnectError
from twisted.internet.error import TimeoutError as ConnectTimeout
from twisted.internet.interfaces import (
    IAddress,
    IDelayedCall,
    IHalfCloseableProtocol,
    IHostResolution,
    IResolutionReceiver,
    ITCPTransport,
)
from twisted.internet.protocol import Factory, Protocol
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from arhat.executor.ending import Valve
from arhat.interfaces import ForwardHost
from tether.errors import Reason, ResetCode
from tether.link.interfaces import Channel, Lane, Receiver
from tether.tasks import spawn
from tether.verbs.requests import Forward, ForwardRule

#: Seconds that reaching a target may take, its name included.
CONNECT_SECONDS = 10.0

#: Seconds that a target may take to read the last bytes after both sides have ended.
LINGER_SECONDS = 60.0

#: The loopback, in the order in which it is tried.
_LOOPBACK = ("127.0.0.1", "::1")


class PortForward:
    """Connects to targets that the rules allow; the ``Starter`` of ``Forward``."""

    def __init__(self, host: ForwardHost, rules: Sequence[ForwardRule]) -> None:
        self._host = host
        self._rules = tuple(rules)

    def __call__(self, request: Forward, channel: Channel) -> Receiver:
        """Connect ``channel`` to what ``request`` names."""
        connection = ForwardedConnection(self._host, self._rules, channel)
        connection.connect(request)
        return connection


class Unreachable(Exception):
    """A target that cannot be had; the text is one line for the user."""

    def __init__(self, code: ResetCode, text: str) -> None:
        super().__init__(text)
        self.reason = Reason(code, text)


class ForwardedConnection:
    """One connection: a channel on one side, a socket on the other."""

    _log = Logger()

    def __init__(self, host: ForwardHost, rules: tuple[ForwardRule, ...], channel: Channel) -> None:
        self._host = host
        self._rules = rules
        self._channel = channel
        self._connecting: Deferred[None] | None = None
        self._socket: ITCPTransport | None = None
        self._client_here = True
        self._early: list[bytes] = []
        self._client_finished = False
        self._target_finished = False
        self._linger: IDelayedCall | None = None

    def connect(self, request: Forward) -> None:
        """Begin; until the target answers, the client is held back."""
        self._channel.pauseProducing()
        self._connecting = spawn(self._connect(request), self._log, "port-forward failed")

    # -- the client's side

    def data_received(self, lane: Lane, data: bytes) -> None:
        """Bytes for the target."""
        if lane is not Lane.MAIN:
            return
        if self._socket is not None:
            self._socket.write(data)
        elif self._connecting is not None:
            self._early.append(data)

    def finished(self) -> None:
        """The client will send nothing more; the target may still answer."""
        self._client_finished = True
        self._end_writing()

    def reset(self, reason: Reason) -> None:
        """The client went away."""
        self._abandon()

    def closed(self) -> None:
        """The channel is over; after two proper ends, what the target has not read yet is still sent."""
        if self._client_here and self._client_finished and self._socket is not None:
            self._client_here = False
            self._linger = self._host.callLater(LINGER_SECONDS, self._socket.abortConnection)
        else:
            self._abandon()

    # -- the target's side

    def connected(self, socket: ITCPTransport) -> None:
        """The target answered: let each side hold the other back."""
        if not self._client_here:
            socket.abortConnection()
            return
        self._socket = socket
        socket.setTcpNoDelay(True)
        socket.setTcpKeepAlive(True)
        self._channel.registerProducer(socket, True)
        socket.registerProducer(  # type: ignore[attr-defined]  # every TCP transport is an IConsumer
            Valve(self._channel.pauseProducing, self._channel.resumeProducing), True
        )
        self._channel.resumeProducing()
        early, self._early = self._early, []
        for data in early:
            socket.write(data)
        if self._client_finished:
            self._end_writing()

    def arrived(self, data: bytes) -> None:
        """Bytes from the target."""
        self._channel.write(data)

    def target_finished(self) -> None:
        """The target will send nothing more."""
        self._target_finished = True
        if self._client_here:
            self._channel.finish()
        if self._client_finished:
            self._end_writing()

    def lost(self) -> None:
        """The connection is over, whatever the reason."""
        self._socket = None
        if self._linger is not None and self._linger.active():
            self._linger.cancel()
        if self._client_here:
            self._channel.unregisterProducer()
            self._channel.finish()
            # What the client still sends goes nowhere.
            self._channel.resumeProducing()

    # -- between them

    async def _connect(self, request: Forward) -> None:
        try:
            await self._reach(request)
        except Unreachable as why:
            if self._client_here:
                self._client_here = False
                self._channel.reset(why.reason)
        except Exception:
            # A client that left has cancelled the attempt, and that is all.
            if self._client_here:
                self._client_here = False
                self._channel.reset(Reason(ResetCode.INTERNAL, "the agent failed; its log says why"))
                raise
        finally:
            self._connecting = None

    async def _reach(self, request: Forward) -> None:
        port = request.port
        loopback = request.host.lower() in ("", "localhost")
        addresses = await self._allowed(request.host, port, loopback)
        failures = []
        deadline = self._host.seconds() + CONNECT_SECONDS
        for address in addresses:
            left = deadline - self._host.seconds()
            if left <= 0:
                break
            endpoint = (TCP6ClientEndpoint if ":" in address else TCP4ClientEndpoint)(
                self._host, address, port, timeout=left
            )
            try:
                await endpoint.connect(_Once(TargetProtocol(self)))
                return
            except ConnectError as why:
                failures.append(dial_error(address, port, why))
        where = f"localhost:{port}" if loopback else _joined(request.host, port)
        if loopback and len(failures) == 2:
            said = f"IPv4: {failures[0]} IPv6: {failures[1]}"
        else:
            said = failures[-1] if failures else "i/o timeout"
        raise Unreachable(ResetCode.UNREACHABLE, f"failed to connect to {where}: {said}")

    async def _allowed(self, host: str, port: int, loopback: bool) -> list[str]:
        """The addresses of the target that the rules let through. Raises ``Unreachable``."""
        if not 1 <= port <= 65535:
            raise Unreachable(ResetCode.INVALID, f"port {port} is not within 1-65535")
        addresses: Sequence[str]
        named = False
        if loopback:
            addresses = _LOOPBACK
        elif _address(host) is not None:
            addresses = [str(_address(host))]
        else:
            named = allows_name(self._rules, host, port)
            # A name must not make the device ask its DNS unless an answer could pass.
            addresses = await self._resolve(host, port) if named or self._any(port) else []
        passed = [address for address in addresses if named or allows_address(self._rules, address, port)]
        if not passed:
            where = f"localhost:{port}" if loopback else _joined(host, port)
            raise Unreachable(
                ResetCode.REFUSED,
                f"this device does not allow port-forward to {where}; see forward in its config",
            )
        return passed

    def _any(self, port: int) -> bool:
        return any(rule.low <= port <= rule.high for rule in self._rules)

    async def _resolve(self, host: str, port: int) -> list[str]:
        resolution = _Resolution()
        self._host.nameResolver.resolveHostName(resolution, host, port)
        resolution.addresses.addTimeout(CONNECT_SECONDS, self._host)
        try:
            addresses = await resolution.addresses
        except Exception as why:
            raise _no_such_host(host) from why
        if not addresses:
            raise _no_such_host(host)
        return addresses

    def _end_writing(self) -> None:
        if self._socket is not None:
            # A paused producer would keep this direction open for ever.
            self._socket.unregisterProducer()  # type: ignore[attr-defined]  # every TCP transport is an IConsumer
            # Twisted leaves a connection open that ended in both directions one by one.
            if self._target_finished:
                self._socket.loseConnection()
            else:
                self._socket.loseWriteConnection()

    def _abandon(self) -> None:
        if not self._client_here:
            return
        self._client_here = False
        self._early.clear()
        self._channel.unregisterProducer()
        if self._connecting is not None:
            self._connecting.cancel()
        if self._socket is not None:
            self._socket.abortConnection()


class _Once(Factory):
    """Gives the protocol of one connection."""

    noisy = False

    def __init__(self, protocol: Protocol) -> None:
        self._protocol = protocol

    def buildProtocol(self, addr: IAddress | None) -> Protocol:
        return self._protocol


@implementer(IHalfCloseableProtocol)
class TargetProtocol(Protocol):
    """The socket's side of one forwarded connection."""

    def __init__(self, connection: ForwardedConnection) -> None:
        self._connection = connection

    def connectionMade(self) -> None:
        """The target accepted."""
        assert self.transport is not None
        self._connection.connected(self.transport)  # type: ignore[arg-type]  # a TCP endpoint's transport

    def dataReceived(self, data: bytes) -> None:
        """Bytes from the target."""
        self._connection.arrived(data)

    def readConnectionLost(self) -> None:
        """The target half-closed."""
        self._connection.target_finished()

    def writeConnectionLost(self) -> None:
        """All that the client sent has gone out, and its end."""

    def connectionLost(self, reason: Failure | None = None) -> None:
        """Both directions are over."""
        self._connection.lost()


@implementer(IResolutionReceiver)
class _Resolution:
    """Collects the addresses of one name."""

    def __init__(self) -> None:
        self.addresses: Deferred[list[str]] = Deferred()
        self._found: list[str] = []

    def resolutionBegan(self, resolutionInProgress: IHostResolution) -> None:
        pass

    def addressResolved(self, address: IAddress) -> None:
        if isinstance(address, IPv4Address | IPv6Address) and address.host not in self._found:
            self._found.append(address.host)

    def resolutionComplete(self) -> None:
        if not self.addresses.called:
            self.addresses.callback(self._found)


def allows_address(rules: Sequence[ForwardRule], address: str, port: int) -> bool:
    """Whether a rule that is an address or a network lets ``address`` and ``port`` through."""
    target = _address(address)
    if target is None:
        return False
    for rule in rules:
        network = _network(rule.host)
        if network is not None and rule.low <= port <= rule.high and target in network:
            return True
    return False


def allows_name(rules: Sequence[ForwardRule], name: str, port: int) -> bool:
    """Whether a rule that is a name lets ``name`` and ``port`` through."""
    wanted = name.lower().rstrip(".")
    return any(
        _network(rule.host) is None and rule.host.lower() == wanted and rule.low <= port <= rule.high
        for rule in rules
    )


def dial_error(address: str, port: int, why: ConnectError) -> str:
    """The words in which a kubelet tells that a connection could not be made."""
    family = "tcp6" if ":" in address else "tcp4"
    where = _joined(address, port)
    if isinstance(why, ConnectTimeout):
        return f"dial {family} {where}: i/o timeout"
    number: Any = why.osError
    told = os.strerror(number) if isinstance(number, int) else str(number or why)
    return f"dial {family} {where}: connect: {told.lower()}"


def _no_such_host(host: str) -> Unreachable:
    return Unreachable(ResetCode.UNREACHABLE, f"dial tcp: lookup {host}: no such host")


def _joined(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    # Written as IPv6, an IPv4 address must not slip past a rule.
    mapped = getattr(address, "ipv4_mapped", None)
    return mapped if mapped is not None else address


def _network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network | None:
    try:
        return ipaddress.ip_network(text, strict=False)
    except ValueError:
        return None
