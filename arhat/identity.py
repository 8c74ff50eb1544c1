"""Who this device is: one folder with its key, certificate, the authority it trusts, and where to dial.

The key is made here and never leaves. Everything that must fit together stands in
one file, replaced by rename, so that a power cut leaves either the old identity or
the new one. A key for which a certificate was asked but not yet received is kept
apart: asking again with the same key is allowed, with another it is not.

Two agents of one device may run at once (one is being replaced through the other), so
the folder is locked for the moment of a write only, and who asks for a key while
another waits for its certificate gets the same one. What an agent changes is merged into
what is kept at that moment, for another may have renewed the certificate meanwhile.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import NameOID

_IDENTITY = "identity.json"
_NEXT_KEY = "next-key.pem"
_LOCK = "lock"


class StateError(Exception):
    """The state folder cannot be used; one line of why and what to do."""


class _Damaged(StateError):
    """The identity was read, and is none."""


@dataclass(frozen=True, slots=True)
class Identity:
    """A device that has joined. ``certificate`` is a PEM chain, ``key`` a PEM key.

    ``token`` tells the join token that it came by from any other, and is good for nothing else.
    """

    namespace: str
    name: str
    urls: tuple[str, ...]
    ca_bundle: bytes = field(repr=False)
    certificate: bytes = field(repr=False)
    key: bytes = field(repr=False)
    token: str = ""

    def leaf(self) -> x509.Certificate:
        """The device's own certificate."""
        return x509.load_pem_x509_certificates(self.certificate)[0]

    def since(self) -> datetime:
        """When the certificate became valid: of two for one device the later one counts."""
        return self.leaf().not_valid_before_utc

    def is_akin(self, other: Identity) -> bool:
        """Whether both come of the same join, so that one may be a later form of the other."""
        mine, others = ((one.namespace, one.name, one.token) for one in (self, other))
        return mine == others

    def renewal_time(self) -> datetime:
        """When two thirds of the certificate's life are over."""
        leaf = self.leaf()
        start, end = leaf.not_valid_before_utc, leaf.not_valid_after_utc
        return start + (end - start) * 2 / 3

    def trouble(self, now: datetime) -> str:
        """Why the certificate cannot work at this moment; empty if it can."""
        leaf = self.leaf()
        local = f"{now.astimezone():%Y-%m-%d %H:%M %Z}"
        if now < leaf.not_valid_before_utc:
            return (
                f"this device's certificate is valid only from {leaf.not_valid_before_utc:%Y-%m-%d %H:%M} "
                f"UTC, but the clock here says {local}; set the clock"
            )
        if now >= leaf.not_valid_after_utc:
            return (
                f"this device's certificate expired on {leaf.not_valid_after_utc:%Y-%m-%d %H:%M} UTC "
                f"(the clock here says {local}); join again with a new token and a fresh --state"
            )
        return ""


class State:
    """The state folder: private to its owner, written atomically. Blocks for a moment."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @property
    def folder(self) -> Path:
        """Where it is."""
        return self._folder

    def prepare(self) -> None:
        """Make the folder, private, and see that it is ours and can be written; raises ``StateError``."""
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            owner = self._folder.stat().st_uid
            if owner != os.geteuid():
                # Its owner could read the key, and put another in its place.
                raise StateError(
                    f"the state folder {self._folder} belongs to user {owner}, and arhat runs as user "
                    f"{os.geteuid()}; run as its owner or give another --state"
                )
            os.chmod(self._folder, 0o700)
        except OSError as error:
            raise self._unwritable(error) from None
        with self._locked():
            pass

    def load(self) -> Identity | None:
        """The identity, ``None`` before the first join; raises ``StateError``."""
        file = self._folder / _IDENTITY
        try:
            text = file.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StateError(f"cannot read {file}: {error.strerror}") from None
        try:
            content = json.loads(text)
            identity = Identity(
                namespace=str(content["namespace"]),
                name=str(content["name"]),
                urls=tuple(str(url) for url in content["urls"]),
                ca_bundle=_bytes(content["ca_bundle"]),
                certificate=_bytes(content["certificate"]),
                key=_bytes(content["key"]),
                token=str(content.get("token", "")),
            )
            if not identity.urls or not fits(identity.certificate, identity.key):
                raise ValueError("the parts do not make an identity")
        except (KeyError, TypeError, ValueError):
            raise _Damaged(
                f"{file} is damaged; remove it and join again with a new token from kubectl aranya join"
            ) from None
        return identity

    def save(self, identity: Identity) -> None:
        """Keep this identity, whatever was kept: it comes of a new join. Raises ``StateError``.

        The key it was made with waits no longer.
        """
        with self._locked():
            self._replace(identity)

    def keep_certificate(self, identity: Identity) -> Identity:
        """Keep its certificate and key, unless there is a newer one or the device has joined anew.

        Returns what is kept then. Raises ``StateError``.
        """

        def change(kept: Identity) -> Identity:
            if identity.since() <= kept.since():
                return kept
            return replace(kept, certificate=identity.certificate, key=identity.key)

        return self._change(identity, change)

    def keep_settings(self, identity: Identity) -> Identity:
        """Keep its URLs and authorities with the certificate that is kept, unless the device has joined anew.

        Returns what is kept then. Raises ``StateError``.
        """
        return self._change(
            identity, lambda kept: replace(kept, urls=identity.urls, ca_bundle=identity.ca_bundle)
        )

    def _change(self, identity: Identity, change: Callable[[Identity], Identity]) -> Identity:
        """Write the changed form of what is kept; all of ``identity`` where nothing is."""
        with self._locked():
            try:
                kept = self.load()
            except _Damaged:
                kept = None
            if kept is None:
                latest = identity
            elif identity.is_akin(kept):
                latest = change(kept)
            else:
                latest = kept
            if latest != kept:
                self._replace(latest)
            return latest

    def _replace(self, identity: Identity) -> None:
        content = {
            name: _text(value) if isinstance(value, bytes) else value
            for name, value in asdict(identity).items()
        }
        self._write(_IDENTITY, json.dumps(content, indent=1).encode("utf-8"))
        if self._read_next_key() == identity.key:
            # The identity is safe already; a key that is left costs a renewal with the same key.
            with suppress(OSError):
                (self._folder / _NEXT_KEY).unlink(missing_ok=True)

    def next_key(self) -> bytes:
        """The key (PEM) to ask a certificate for: the one that waits, else a fresh one."""
        with self._locked():
            pending = self._read_next_key()
            if pending is not None:
                return pending
            fresh = new_key()
            self._write(_NEXT_KEY, fresh)
            return fresh

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Be the only process that writes; raises ``StateError`` when another one does."""
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            lock = os.open(self._folder / _LOCK, flags, 0o600)
        except OSError as error:
            raise self._unwritable(error) from None
        try:
            try:
                # Not waited for: nobody can tell how long a stopped process will hold it.
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise StateError(
                    f"another arhat writes to the state folder {self._folder} at this moment; try again"
                ) from None
            except OSError as error:
                raise self._unwritable(error) from None
            yield
        finally:
            os.close(lock)

    def _read_next_key(self) -> bytes | None:
        file = self._folder / _NEXT_KEY
        try:
            # A link is none of ours.
            pending = None if file.is_symlink() else file.read_bytes()
        except OSError:
            return None
        return pending if pending is not None and _parse_key(pending) is not None else None

    def _write(self, name: str, content: bytes) -> None:
        target = self._folder / name
        fresh = self._folder / f".{name}.new"
        try:
            # What a power cut left; a link in its place is not followed.
            fresh.unlink(missing_ok=True)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            with open(os.open(fresh, flags, 0o600), "wb") as file:
                os.fchmod(file.fileno(), 0o600)
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(fresh, target)
            folder = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        except OSError as error:
            raise self._unwritable(error) from None

    def _unwritable(self, error: OSError) -> StateError:
        return StateError(
            f"cannot write the state folder {self._folder}: {error.strerror}; "
            "run as its owner or give --state"
        )


def new_key() -> bytes:
    """A fresh ECDSA P-256 key as PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def signing_request(key: bytes, name: str) -> bytes:
    """A request (PEM) for a certificate of ``key``; the name is for people, the controller ignores it."""
    parsed = _parse_key(key)
    if parsed is None:
        raise ValueError("not an ECDSA key")
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:64])])
    builder = x509.CertificateSigningRequestBuilder().subject_name(subject)
    return builder.sign(parsed, hashes.SHA256()).public_bytes(Encoding.PEM)


def fits(certificate: bytes, key: bytes) -> bool:
    """Whether a certificate (PEM chain) is for this key (PEM)."""
    parsed = _parse_key(key)
    try:
        leaf = x509.load_pem_x509_certificates(certificate)[0]
        of_certificate = leaf.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    except (ValueError, UnsupportedAlgorithm):
        return False
    if parsed is None:
        return False
    of_key = parsed.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return of_certificate == of_key


def valid_bundle(bundle: bytes) -> bool:
    """Whether these bytes are PEM certificates, one or more."""
    try:
        return bool(x509.load_pem_x509_certificates(bundle))
    except ValueError:
        return False


def _text(content: bytes) -> str:
    """PEM as text; comments beside it may be in any encoding, and come back as they were."""
    return content.decode("utf-8", "surrogateescape")


def _bytes(text: object) -> bytes:
    return str(text).encode("utf-8", "surrogateescape")


def _parse_key(key: bytes) -> ec.EllipticCurvePrivateKey | None:
    try:
        parsed = load_pem_private_key(key, None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        return None
    return parsed if isinstance(parsed, ec.EllipticCurvePrivateKey) else None


def without_join(arguments: Sequence[str]) -> list[str]:
    """A command line without ``--join``, so that the token does not stay in the list of processes."""
    kept: list[str] = []
    skip = False
    for argument in arguments:
        if skip:
            skip = False
        elif _is_join(argument.partition("=")[0]):
            skip = "=" not in argument
        else:
            kept.append(argument)
    return kept


def _is_join(option: str) -> bool:
    """Whether this is ``--join``, or short for it: options may be cut where they stay unique."""
    return len(option) > 2 and "--join".startswith(option)
