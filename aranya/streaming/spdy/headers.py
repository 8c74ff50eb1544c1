"""Header blocks: one zlib stream per direction, primed with the SPDY/3 dictionary.

Every block must pass the inflater in the order of arrival, also those of
streams that are refused: a block that is skipped turns all later ones to garbage.

The other direction needs no compressor. A server of Kubernetes never sends a
header, so its blocks are all the empty list, and the compressed form of the
second is also that of any later one. Two constants replace a quarter of a
megabyte of compressor state per connection.
"""

from __future__ import annotations

import struct
import zlib
from typing import Final

_WORDS: Final = """
options head post put delete trace accept accept-charset accept-encoding accept-language
accept-ranges age allow authorization cache-control connection content-base content-encoding
content-language content-length content-location content-md5 content-range content-type date
etag expect expires from host if-match if-modified-since if-none-match if-range
if-unmodified-since last-modified location max-forwards pragma proxy-authenticate
proxy-authorization range referer retry-after server te trailer transfer-encoding upgrade
user-agent vary via warning www-authenticate method get status 200_OK version HTTP/1.1 url public
set-cookie keep-alive origin
"""

#: What follows the words.
_TAIL: Final = (
    "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505"
    "203 Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request"
    "401 Unauthorized403 Forbidden404 Not Found500 Internal Server Error501 Not Implemented"
    "503 Service UnavailableJan Feb Mar Apr May Jun Jul Aug Sept Oct Nov Dec 00:00:00 "
    "Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMT"
    "chunked,text/html,image/png,image/jpg,image/gif,application/xml,application/xhtml+xml,"
    "text/plain,text/javascript,publicprivatemax-age=gzip,deflate,sdch"
    "charset=utf-8charset=iso-8859-1,utf-,*,enq=0."
)

#: Each word is preceded by its length in 32 bits, the tail is not.
DICTIONARY: Final = b"".join(
    struct.pack(">I", len(word)) + word.replace("_", " ").encode() for word in _WORDS.split()
) + _TAIL.encode("ascii")

#: What one block may inflate to, and how many pairs it may hold. Kubernetes needs three short ones.
INFLATED_LIMIT: Final = 32 * 1024
PAIRS_LIMIT: Final = 64


class BadHeaders(Exception):
    """A header block that does not follow the law; the connection cannot go on."""


def _empty_blocks() -> tuple[bytes, bytes]:
    deflater = zlib.compressobj(9, zlib.DEFLATED, 15, 8, zlib.Z_DEFAULT_STRATEGY, DICTIONARY)
    nothing = struct.pack(">I", 0)
    first = deflater.compress(nothing) + deflater.flush(zlib.Z_SYNC_FLUSH)
    later = deflater.compress(nothing) + deflater.flush(zlib.Z_SYNC_FLUSH)
    return first, later


#: The empty header list as the first block of a direction, and as any later one.
FIRST_EMPTY_BLOCK, LATER_EMPTY_BLOCK = _empty_blocks()


class Inflater:
    """The receiving side of one direction's header blocks."""

    def __init__(self) -> None:
        self._stream = zlib.decompressobj(15, zdict=DICTIONARY)

    def read(self, block: bytes) -> dict[str, str]:
        """The headers of the next block, names in lower case, the first value of each.

        Raises ``BadHeaders`` for anything else than a well-formed block within the limits.
        """
        try:
            plain = self._stream.decompress(block, INFLATED_LIMIT + 1)
        except zlib.error as error:
            raise BadHeaders("a header block does not inflate") from error
        if len(plain) > INFLATED_LIMIT or self._stream.unconsumed_tail:
            raise BadHeaders("a header block is too large")
        if self._stream.eof:
            raise BadHeaders("a header block ends the compressed stream")
        return parse(plain)


def parse(plain: bytes) -> dict[str, str]:
    """The pairs of an inflated block. Raises ``BadHeaders``."""
    try:
        (count,) = struct.unpack_from(">I", plain)
        if count > PAIRS_LIMIT:
            raise BadHeaders("too many headers")
        position = 4
        headers: dict[str, str] = {}
        for _ in range(count):
            name, position = _text(plain, position)
            value, position = _text(plain, position)
            name = name.lower()
            if not name or name in headers:
                raise BadHeaders("an empty or repeated header name")
            headers[name] = value.partition("\0")[0]
    except struct.error as error:
        raise BadHeaders("a header block is cut short") from error
    if position != len(plain):
        raise BadHeaders("a header block is longer than its headers")
    return headers


def _text(plain: bytes, position: int) -> tuple[str, int]:
    (length,) = struct.unpack_from(">I", plain, position)
    end = position + 4 + length
    if end > len(plain):
        raise BadHeaders("a header block is cut short")
    return plain[position + 4 : end].decode("latin-1"), end
