"""What the agent's parts ask of each other.

A *verb* is one kind of request. Whoever executes it is a ``Starter``: it gets
the request and a fresh channel, starts the work and gives back who receives on
that channel. It does not raise; what it cannot do it says on the channel. A
starter learns of the end by ``reset`` or ``closed`` on its receiver; the agent
calls ``reset`` too when it stops, after it has reset the channel itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from twisted.internet.interfaces import (
    IReactorPluggableNameResolver,
    IReactorProcess,
    IReactorTCP,
    IReactorTime,
)

from tether.link.interfaces import Channel, Receiver
from tether.verbs.requests import Request

_Verb = TypeVar("_Verb", bound=Request, contravariant=True)


class Starter(Protocol[_Verb]):
    """Starts the work of one verb on one channel."""

    def __call__(self, request: _Verb, channel: Channel, /) -> Receiver:
        """Start ``request``; must not raise and must not block."""
        ...


#: A starter whose verb is known only by the key it is kept under.
AnyStarter = Callable[[Any, Channel], Receiver]


class Builtins(Protocol):
    """Commands that the agent brings itself, for devices that lack them."""

    def __call__(
        self, argv: tuple[bytes, ...], present: Callable[[bytes], bool], /
    ) -> tuple[bytes, ...] | None:
        """The argv to run instead of ``argv``, or ``None`` to run it as it is.

        ``present`` tells whether the device has a command of that name.
        """
        ...


class ProcessHost(IReactorProcess, IReactorTime):
    """What running processes needs of the reactor."""


class ForwardHost(IReactorTCP, IReactorTime, IReactorPluggableNameResolver):
    """What forwarding connections needs of the reactor."""


class Host(ProcessHost, ForwardHost):
    """What the agent needs of the reactor."""


__all__ = ["AnyStarter", "Builtins", "ForwardHost", "Host", "ProcessHost", "Starter"]
