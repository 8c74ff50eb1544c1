"""Forwarded connections over WebSocket: each port of the query is one, on two channels."""

from __future__ import annotations

from collections.abc import Sequence

from twisted.internet.interfaces import IReactorTime

from aranya.interfaces import ForwardAcceptor
from aranya.streaming.forwarded import Forwarded, Forwarding
from aranya.streaming.websocket.channels import ChannelData, ChannelProtocol, Channels
from aranya.streaming.websocket.frames import Part
from aranya.streaming.websocket.protocol import WebSocketProtocol


class _PortChannels(Forwarded):
    """A port on two channels: its data, and its errors."""

    def __init__(self, session: WebSocketForwarding, index: int) -> None:
        super().__init__(session)
        self._session = session
        self._channel = 2 * index

    def begin(self, port: int) -> None:
        """Both channels begin with the port, little endian."""
        greeting = port.to_bytes(2, "little")
        self._session.send(self._channel, greeting)
        self._session.send(self._channel + 1, greeting)

    def _write(self, data: bytes) -> None:
        self._session.send(self._channel, data)

    def _write_finish(self) -> None:
        # No half close here: when the target has ended, so has the client.
        self.data_finished()

    def _write_end(self, error: str) -> None:
        if error:
            self._session.send(self._channel + 1, error.encode())
        self._session.one_ended()


class WebSocketForwarding(Forwarding):
    """One connection per port of the query; the session ends with the last of them."""

    def __init__(
        self,
        clock: IReactorTime,
        acceptor: ForwardAcceptor,
        protocol: ChannelProtocol,
        ports: Sequence[int],
    ) -> None:
        self.wire = WebSocketProtocol(self, clock)
        super().__init__(self.wire, acceptor)
        self._channels = Channels(protocol)
        self._ports = ports
        self._connections = [_PortChannels(self, index) for index in range(len(ports))]
        self._running = len(ports)

    def connection_made(self) -> None:
        """Greet on all channels, then connect all ports."""
        for port, connection in zip(self._ports, self._connections, strict=True):
            connection.begin(port)
        for port, connection in zip(self._ports, self._connections, strict=True):
            self.accept(port, connection)

    def connections(self) -> Sequence[Forwarded]:
        return self._connections

    def say_goodbye(self) -> None:
        self.wire.say_goodbye()

    def send(self, channel: int, data: bytes) -> None:
        """One message on a channel."""
        self.wire.send(self._channels.message(channel, data))

    def one_ended(self) -> None:
        """One port is done."""
        self._running -= 1
        if not self._running and not self._ended:
            self._ended = True
            self.say_goodbye()

    def part_received(self, part: Part) -> None:
        for event in self._channels.receive(part):
            if isinstance(event, ChannelData) and not event.channel % 2:
                index = event.channel // 2
                if index < len(self._connections):
                    self._connections[index].data_received(event.data)
