"""Two muxes joined by hand, for tests that read frames."""

from __future__ import annotations

from tether.wire import frames
from tether.wire.events import DataArrived, Event, StreamFinished
from tether.wire.frames import Frame, Hello
from tether.wire.mux import WINDOW, Mux, Role


class MuxPair:
    """A controller's and an agent's mux that said Hello; everything arriving is handed on at once.

    ``heard`` has all events by side, ``frames`` all frames by the side that sent them.
    """

    def __init__(self, window: int = WINDOW) -> None:
        self.controller = Mux(Role.CONTROLLER, b"c" * 16, window)
        self.agent = Mux(Role.AGENT, b"a" * 16, window)
        self.heard: dict[Mux, list[Event]] = {self.controller: [], self.agent: []}
        self.frames: dict[Mux, list[Frame]] = {self.controller: [], self.agent: []}
        self.messages = 0
        self.attach()
        self.flush()
        self.forget()

    def forget(self) -> None:
        """Forget what was recorded."""
        for mux in self.heard:
            self.heard[mux].clear()
            self.frames[mux].clear()
        self.messages = 0

    def attach(self) -> None:
        """A new link."""
        for mux in self.heard:
            mux.attach(Hello("test"))

    def detach(self) -> None:
        """The link is gone."""
        for mux in self.heard:
            mux.detach()

    def other(self, mux: Mux) -> Mux:
        """The peer."""
        return self.agent if mux is self.controller else self.controller

    def move(self, mux: Mux, limit: int = 65536, lose: bool = False) -> bool:
        """Move one message of ``mux``, or lose it on the way."""
        message = mux.next_message(limit)
        if message is None:
            return False
        self.messages += 1
        self.frames[mux] += frames.decode(message)
        if not lose:
            self.arrive(self.other(mux), message)
        return True

    def arrive(self, mux: Mux, message: bytes) -> None:
        """``mux`` hears this message."""
        for event in mux.receive(message):
            self.heard[mux].append(event)
            if isinstance(event, DataArrived):
                mux.delivered(event.stream, len(event.data))
            elif isinstance(event, StreamFinished):
                mux.delivered(event.stream, 1)

    def flush(self) -> None:
        """Move until quiet."""
        while self.move(self.controller) | self.move(self.agent):
            pass
