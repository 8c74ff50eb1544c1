"""Sizes of a terminal out of a stream of JSON objects, split and merged as the network likes."""

from __future__ import annotations

import json
import re
from typing import Final

from tether.verbs.requests import Size

_HELD_LIMIT: Final = 4096
_SIZE_LIMIT: Final = 0xFFFF
#: An object without objects or strings with braces within; a size is never more.
_OBJECT: Final = re.compile(rb"\s*(\{[^{}]*\})")


class SizeReader:
    """Reads ``{"Width":80,"Height":24}`` after another; the first bad one silences it, as in a kubelet."""

    def __init__(self) -> None:
        self._held = b""
        self._broken = False

    def receive(self, data: bytes) -> list[Size]:
        """The sizes that are complete now."""
        sizes: list[Size] = []
        if self._broken:
            return sizes
        held = self._held + data
        position = 0
        while (found := _OBJECT.match(held, position)) is not None:
            size = _size(found[1])
            if size is None:
                self._broken = True
                break
            sizes.append(size)
            position = found.end()
        self._held = held[position:].lstrip()
        if self._held and (self._held[:1] != b"{" or len(self._held) > _HELD_LIMIT):
            self._broken = True
        if self._broken:
            self._held = b""
        return sizes


def _size(text: bytes) -> Size | None:
    try:
        decoded = json.loads(text)
    except ValueError:
        return None
    fields = {name.lower(): value for name, value in decoded.items()}
    width, height = fields.get("width", 0), fields.get("height", 0)
    for number in (width, height):
        if type(number) is not int or not 0 <= number <= _SIZE_LIMIT:
            return None
    return Size(width, height)
