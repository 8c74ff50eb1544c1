"""Tests of ``arhat.identity`` and of reading tokens in ``arhat.joining``."""

from __future__ import annotations

import fcntl
import os
import stat
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from aranya.certs.authority import new_authority
from aranya.certs.requests import requested_key
from aranya.names import DeviceIdentity, DeviceKey
from arhat.identity import Identity, State, StateError, fits, new_key, signing_request, without_join
from arhat.joining import JoinFailed, must_join, read_token
from tether.join import Token

NOW = datetime(2030, 1, 1, tzinfo=UTC)
AUTHORITY = new_authority(NOW)


def joined(key: bytes | None = None, when: datetime = NOW) -> Identity:
    """An identity as a join leaves it, or a renewal then."""
    key = key or new_key()
    public_key = requested_key(signing_request(key, "pump"))
    chain = AUTHORITY.sign_device(public_key, DeviceIdentity(DeviceKey("edge", "pump"), "u"), when)
    return Identity("edge", "pump", ("wss://h",), AUTHORITY.bundle, chain, key)


class StateTests(SynchronousTestCase):
    """The state folder."""

    def setUp(self) -> None:
        self.folder = Path(self.mktemp()) / "deep" / "state"
        self.state = State(self.folder)
        self.state.prepare()

    def test_before(self) -> None:
        """Before the first join there is no identity."""
        self.assertIsNone(self.state.load())

    def test_kept(self) -> None:
        """What was saved is loaded, also by another process."""
        identity = joined()
        self.state.save(identity)
        self.assertEqual(State(self.folder).load(), identity)

    def test_private(self) -> None:
        """Folder and files are for their owner only, whatever the umask and an older mode."""
        os.chmod(self.folder, 0o755)
        old = os.umask(0)
        self.addCleanup(os.umask, old)
        self.state.prepare()
        self.state.next_key()
        self.state.save(joined())
        self.assertEqual(stat.S_IMODE(self.folder.stat().st_mode), 0o700)
        for file in self.folder.iterdir():
            self.assertEqual(stat.S_IMODE(file.stat().st_mode), 0o600, file.name)

    def test_the_waiting_key(self) -> None:
        """The key stays the same until a certificate for it was saved."""
        key = self.state.next_key()
        self.assertEqual(self.state.next_key(), key)
        self.state.save(joined())
        self.assertEqual(self.state.next_key(), key)
        self.state.save(joined(key))
        self.assertNotEqual(self.state.next_key(), key)

    def test_a_broken_waiting_key(self) -> None:
        """A damaged waiting key is replaced."""
        (self.folder / "next-key.pem").write_bytes(b"half a k")
        self.assertIn(b"PRIVATE KEY", self.state.next_key())

    def test_damaged(self) -> None:
        """A damaged identity is an error that says what to do, not a fresh start."""
        self.state.save(joined())
        file = self.folder / "identity.json"
        whole = file.read_bytes()
        for content in (b"", whole[:100], b"[]", b"{}"):
            file.write_bytes(content)
            error = self.assertRaises(StateError, self.state.load)
            self.assertIn("join again", str(error))

    def test_key_of_another(self) -> None:
        """A key that does not fit the certificate is damage, too."""
        self.state.save(replace(joined(), key=new_key()))
        self.assertRaises(StateError, self.state.load)

    def test_two_agents(self) -> None:
        """A second agent may start on the same folder, and asks with the key that waits already."""
        self.state.save(joined())
        other = State(self.folder)
        other.prepare()
        self.assertEqual(other.load(), self.state.load())
        self.assertEqual(other.next_key(), self.state.next_key())

    def test_written_by_another(self) -> None:
        """While another process writes nothing is written, and nobody waits for it."""
        with open(self.folder / "lock", "wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            for write in (
                self.state.next_key,
                lambda: self.state.save(joined()),
                lambda: self.state.keep_certificate(joined()),
                lambda: self.state.keep_settings(joined()),
            ):
                self.assertIn("try again", str(self.assertRaises(StateError, write)))
        self.state.save(joined())

    def test_no_locks(self) -> None:
        """A file system that cannot lock is one line."""

        def unable(*_: object) -> None:
            raise OSError(37, "No locks available")

        self.patch(fcntl, "flock", unable)
        self.assertIn("No locks available", str(self.assertRaises(StateError, self.state.save, joined())))

    def test_newer_certificate(self) -> None:
        """A newer certificate is kept with its key; URLs and authorities stay what another left there."""
        first, newer = joined(), joined(when=NOW + timedelta(days=60))
        self.state.save(replace(first, urls=("wss://i",)))
        kept = self.state.keep_certificate(newer)
        self.assertEqual(kept, replace(newer, urls=("wss://i",)))
        self.assertEqual(self.state.load(), kept)

    def test_older_certificate(self) -> None:
        """An older certificate never takes the place of a newer one, nor does one of the same second."""
        newer = joined(when=NOW + timedelta(days=60))
        self.state.save(newer)
        for older in (joined(), joined(when=NOW + timedelta(days=60))):
            self.assertEqual(self.state.keep_certificate(older), newer)
            self.assertEqual(self.state.load(), newer)

    def test_settings(self) -> None:
        """URLs and authorities are kept with the certificate that another agent left there."""
        newer = joined(when=NOW + timedelta(days=60))
        self.state.save(newer)
        told = replace(joined(), urls=("wss://i",), ca_bundle=new_authority(NOW).bundle)
        kept = self.state.keep_settings(told)
        self.assertEqual(kept, replace(newer, urls=told.urls, ca_bundle=told.ca_bundle))
        self.assertEqual(self.state.load(), kept)

    def test_joined_anew(self) -> None:
        """What comes of a former join changes nothing of a new one."""
        anew = replace(joined(), token="another")
        self.state.save(anew)
        late = replace(joined(when=NOW + timedelta(days=60)), urls=("wss://i",))
        self.assertEqual(self.state.keep_certificate(late), anew)
        self.assertEqual(self.state.keep_settings(late), anew)
        self.assertEqual(self.state.load(), anew)

    def test_nothing_to_merge_with(self) -> None:
        """Where there is no identity, or a damaged one, all of it is written."""
        identity = joined()
        self.assertEqual(self.state.keep_settings(identity), identity)
        self.assertEqual(self.state.load(), identity)
        (self.folder / "identity.json").write_bytes(b"{")
        self.assertEqual(self.state.keep_certificate(identity), identity)
        self.assertEqual(self.state.load(), identity)

    def test_comments(self) -> None:
        """Comments beside the certificates may be in any encoding."""
        identity = replace(joined(), ca_bundle="# Zürich 🏔\n".encode() + b"# Z\xfcrich\n" + AUTHORITY.bundle)
        self.state.save(identity)
        self.assertEqual(self.state.load(), identity)

    def test_waiting_key_stays(self) -> None:
        """An identity is saved, too, where the key that waited cannot be removed."""
        key = self.state.next_key()
        identity = joined(key)

        def stuck(path: Path, missing_ok: bool = False) -> None:
            if path.name == "next-key.pem":
                raise OSError(5, "Input/output error")
            if path.exists():
                os.unlink(path)

        self.patch(Path, "unlink", stuck)
        self.state.save(identity)
        self.assertEqual(self.state.load(), identity)

    def test_links(self) -> None:
        """Nothing is written through a link, and a waiting key is not read through one."""
        elsewhere = self.folder.parent.absolute() / "elsewhere"
        key = new_key()
        elsewhere.write_bytes(key)
        for name in (".identity.json.new", ".next-key.pem.new", "next-key.pem"):
            (self.folder / name).symlink_to(elsewhere)
        self.assertNotEqual(self.state.next_key(), key)
        identity = joined()
        self.state.save(identity)
        self.assertEqual(self.state.load(), identity)
        self.assertEqual(elsewhere.read_bytes(), key)

    def test_linked_lock(self) -> None:
        """A lock that is a link is not opened."""
        elsewhere = self.folder.parent.absolute() / "elsewhere"
        (self.folder / "lock").unlink()
        (self.folder / "lock").symlink_to(elsewhere)
        self.assertRaises(StateError, self.state.prepare)
        self.assertFalse(elsewhere.exists())

    def test_folder_of_another(self) -> None:
        """A folder of another user is refused in one line that names both, and is left as it is."""
        os.chmod(self.folder, 0o755)
        owner = os.geteuid()
        self.patch(os, "geteuid", lambda: owner + 1)
        line = str(self.assertRaises(StateError, self.state.prepare))
        self.assertIn(f"{self.folder} belongs to user {owner}, and arhat runs as user {owner + 1}; run", line)
        self.assertEqual(stat.S_IMODE(self.folder.stat().st_mode), 0o755)

    def test_a_file_in_the_way(self) -> None:
        """A folder that cannot be made is one line that names it."""
        blocked = self.folder / "file"
        blocked.write_bytes(b"")
        error = self.assertRaises(StateError, State(blocked / "state").prepare)
        self.assertIn(str(blocked), str(error))

    def test_full(self) -> None:
        """A write that fails is one line, and the old identity stays."""
        identity = joined()
        self.state.save(identity)

        def full(*_: object) -> None:
            raise OSError(28, "No space left on device")

        self.patch(os, "fsync", full)
        error = self.assertRaises(StateError, self.state.save, joined())
        self.assertIn("No space left", str(error))
        self.assertEqual(self.state.load(), identity)


class IdentityTests(SynchronousTestCase):
    """What an identity knows of itself."""

    def test_secrets_are_not_shown(self) -> None:
        """The ``repr`` shows no key."""
        self.assertNotIn("PRIVATE", repr(joined()))

    def test_request(self) -> None:
        """A request is for the key it was made with."""
        key = new_key()
        request = x509.load_pem_x509_csr(signing_request(key, "x" * 100))
        self.assertTrue(request.is_signature_valid)
        self.assertFalse(fits(joined().certificate, key))
        self.assertTrue(fits(joined(key).certificate, key))
        self.assertFalse(fits(b"rubbish", key))

    def test_trouble(self) -> None:
        """A certificate out of its time says so with the local time."""
        identity = joined()
        self.assertEqual(identity.trouble(NOW), "")
        self.assertIn("set the clock", identity.trouble(NOW - timedelta(days=3000)))
        self.assertIn("expired on 2030-04-01", identity.trouble(NOW + timedelta(days=100)))

    def test_when_to_join(self) -> None:
        """A token is used before the first join and when the certificate has run out."""
        self.assertTrue(must_join(None, NOW))
        self.assertFalse(must_join(joined(), NOW))
        self.assertTrue(must_join(joined(), NOW + timedelta(days=91)))

    def test_renewal_time(self) -> None:
        """Renewal is at two thirds of the certificate's life."""
        at = joined().renewal_time()
        self.assertTrue(NOW + timedelta(days=59) < at < NOW + timedelta(days=61))


class TokenTests(SynchronousTestCase):
    """The word after ``--join``."""

    def word(self, ca_bundle: bytes = AUTHORITY.bundle) -> str:
        """A token."""
        return Token(("wss://h",), "edge", "pump", b"s", ca_bundle).encode()

    def test_file(self) -> None:
        """``@FILE`` is the word in the file."""
        file = Path(self.mktemp())
        file.write_text(self.word() + "\n")
        self.assertEqual(read_token(f"@{file}"), read_token(self.word()))

    def test_system_trust(self) -> None:
        """A token may say that the system's authorities are trusted."""
        self.assertEqual(read_token(self.word(b"system")).ca_bundle, b"system")

    def test_bad(self) -> None:
        """What cannot be used is one line."""
        binary = Path(self.mktemp())
        binary.write_bytes(b"\xff")
        for word in ("rubbish", "", "@/no/such/file", f"@{binary}", self.word(b"no pem")):
            error = self.assertRaises(JoinFailed, read_token, word)
            self.assertNotIn("\n", str(error))

    @given(
        st.lists(st.sampled_from(["-n", "arhat", "--state", "x", "--pidfile="]), max_size=5),
        st.sampled_from(["--join", "--joi", "--j"]),
        st.booleans(),
    )
    @settings(max_examples=30, deadline=None)
    def test_rerun(self, others: list[str], option: str, glued: bool) -> None:
        """The command line to run again is the same without the token, also where the option is cut."""
        token = [f"{option}=T"] if glued else [option, "T"]
        for place in range(len(others) + 1):
            self.assertEqual(without_join([*others[:place], *token, *others[place:]]), others)
