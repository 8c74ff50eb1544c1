"""
``twistd`` whose daemons speak as ones of another version; a program of the tests, run in its place.

``SPEAKS`` in its environment says of which: ``newer``, or ``older`` and the capabilities that are known,
as in ``older resume``. What it does otherwise is this version's doing. Nothing here lets an unexpected
word pass: an older daemon that is told what it could not know breaks the link.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from test.support.versions import NEWER_LANE, Rewrite, embellished, newer, older
from tether.errors import RemoteViolation
from tether.link import channel, link, websocket
from tether.link.interfaces import Lane
from tether.link.link import PeerIntroduction
from tether.schema import tether_pb2 as schema
from tether.verbs import codec
from tether.wire import frames

#: The variable of its environment.
SPEAKS = "SPEAKS"


def speak(says: Rewrite, says_joining: Callable[[bytes, Any], bytes]) -> None:
    """Rewrite every message that leaves."""
    for protocol, kind in (
        (websocket.ClientProtocol, schema.JoinRequest.DESCRIPTOR),
        (websocket.ServerProtocol, schema.JoinAnswer.DESCRIPTOR),
    ):

        def send(self: Any, message: bytes, plainly: Any = protocol.send, kind: Any = kind) -> None:
            if self.websocket_protocol_in_use == websocket.JOIN:
                plainly(self, says_joining(message, kind))
                return
            for one in says(message):
                plainly(self, one)

        protocol.send = send


def introduce(change: Callable[[PeerIntroduction], PeerIntroduction]) -> None:
    """Change what is said, and believed, of this side."""
    begin, introduce_as = link.Tether.__init__, link.Tether.introduce_as

    def begun(self: Any, role: Any, clock: Any, introduction: Any, *rest: Any, **named: Any) -> None:
        begin(self, role, clock, change(introduction), *rest, **named)

    link.Tether.__init__ = begun
    link.Tether.introduce_as = lambda self, introduction: introduce_as(self, change(introduction))


# ---- newer ---------------------------------------------------------------------------


def speak_newer() -> None:
    """Say more, everywhere: fields, frames, capabilities, and bytes on a lane of its own."""
    speak(newer, embellished)
    introduce(lambda said: replace(said, capabilities=said.capabilities | {"telepathy"}))
    # Records go as bytes of a stream, whose offsets are counted before anything is rewritten.
    codec.encode_result = embellishing(codec.encode_result, schema.Result.DESCRIPTOR)
    codec.encode_size = embellishing(codec.encode_size, schema.Size.DESCRIPTOR)
    write = channel.MuxChannel.write

    def write_more(self: Any, data: bytes, lane: Lane = Lane.MAIN) -> None:
        if not self._over and not self._finished:
            self._turntable.mux.send(self.stream, NEWER_LANE, b"what only a newer version knows")
        write(self, data, lane)

    channel.MuxChannel.write = write_more


def embellishing(encode: Callable[[Any], bytes], kind: Any) -> Callable[[Any], bytes]:
    """The same encoding, with more in it."""
    return lambda said: embellished(encode(said), kind)


# ---- older ---------------------------------------------------------------------------


def speak_older(knows: frozenset[str]) -> None:
    """Say and understand no more than came with these capabilities."""
    speak(older(knows), lambda message, kind: message)
    introduce(lambda said: replace(said, capabilities=said.capabilities & knows))
    if link.TAKEOVER not in knows:
        know_no_companions()
        decode = frames.decode

        def decode_older(message: bytes) -> list[frames.Frame]:
            said = decode(message)
            if any(isinstance(frame, frames.OnDuty) for frame in said):
                raise RemoteViolation("a word of duty, which was never agreed on")
            return said

        frames.decode = decode_older


def know_no_companions() -> None:
    """Neither be known to other agents of this host nor know any: the folder is one that is not there."""
    from arhat.companions import Companions

    begin = Companions.__init__
    Companions.__init__ = lambda self, state, instance: begin(self, state / "nowhere", instance)


def main() -> None:
    """Speak so, then be ``twistd``."""
    version, *known = os.environ[SPEAKS].split()
    if version == "newer":
        speak_newer()
    else:
        assert version == "older", version
        speak_older(frozenset(known))
    # Only now, that the daemons find what was put in the place of this version's.
    from twisted.scripts.twistd import run

    run()


if __name__ == "__main__":
    main()
