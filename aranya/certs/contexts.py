"""Server TLS whose certificate can be swapped while connections live.

A context that has made a connection must not be changed any more, so a swap makes
a new context for new handshakes; connections keep the one they were made with.

The client's certificate is asked for and never judged in the handshake: the one
who answers the request does that (``verification.py``) and can say why it refuses.
There is no session resumption: a resumed session would bring back a peer without
its chain, and every decision would have to be remembered with it.
"""

from __future__ import annotations

from typing import Any, cast

from OpenSSL import SSL, crypto
from twisted.internet.interfaces import IOpenSSLServerConnectionCreator
from twisted.protocols.tls import TLSMemoryBIOProtocol
from zope.interface import implementer

from aranya.certs.keys import KeyPair

#: Forward secrecy and AEAD only; TLS 1.3's own suites are all of that kind.
CIPHERS = b"ECDHE+AESGCM:ECDHE+CHACHA20"

# The published stubs lag behind the library: they know neither this option nor that a
# context takes the objects of ``cryptography``.
_SSL: Any = SSL

_OPTIONS = (
    SSL.OP_NO_COMPRESSION | _SSL.OP_NO_RENEGOTIATION | SSL.OP_NO_TICKET | SSL.OP_CIPHER_SERVER_PREFERENCE
)


@implementer(IOpenSSLServerConnectionCreator)
class ServerContext:
    """Makes server connections with the newest certificate; asks clients for theirs.

    Clients are told no list of authorities: one that holds a certificate presents it.
    Raises ``PairUnusable``.
    """

    def __init__(self, pair: KeyPair) -> None:
        pair.parse()
        self._pair = pair
        # Made for the first client: of thousands of endpoints most never see one, and each costs 20 kB.
        self._context: SSL.Context | None = None

    @property
    def pair(self) -> KeyPair:
        """What new handshakes present."""
        return self._pair

    def swap(self, pair: KeyPair) -> None:
        """Use this certificate for new handshakes; raises ``PairUnusable`` and changes nothing."""
        if pair != self._pair:
            pair.parse()
            self._pair, self._context = pair, None

    def serverConnectionForTLS(self, tlsProtocol: TLSMemoryBIOProtocol) -> SSL.Connection:
        """Framework hook: the OpenSSL connection of one accepted socket."""
        if self._context is None:
            self._context = server_context(self._pair)
        return SSL.Connection(self._context, None)


def server_context(pair: KeyPair) -> SSL.Context:
    """One context: TLS 1.2 or newer, this certificate, any client certificate or none."""
    chain, key = pair.parse()
    context: Any = SSL.Context(SSL.TLS_METHOD)
    context.set_min_proto_version(SSL.TLS1_2_VERSION)
    context.set_cipher_list(CIPHERS)
    context.set_options(_OPTIONS)
    context.set_mode(SSL.MODE_RELEASE_BUFFERS)
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    # Without it OpenSSL fails a client that offers both a session and a certificate.
    context.set_session_id(b"aranya")
    context.use_certificate(chain[0])
    for certificate in chain[1:]:
        context.add_extra_chain_cert(certificate)
    context.use_privatekey(key)
    context.set_verify(SSL.VERIFY_PEER, _any_certificate)
    return cast(SSL.Context, context)


def _any_certificate(
    connection: SSL.Connection, certificate: crypto.X509, error: int, depth: int, ok: int
) -> bool:
    return True
