"""Tests of ``aranya.device.joining`` and ``aranya.device.records``."""

from __future__ import annotations

import base64

from cryptography import x509
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from aranya.certs.authority import identity_of
from aranya.certs.keys import Key, key_hash, new_key
from aranya.certs.requests import signing_request
from aranya.device.joining import (
    FAILURES_ALLOWED,
    TOKEN_LIFETIME,
    Failures,
    JoinDenied,
    JoinImpossible,
    Renewals,
    RenewedLately,
)
from aranya.kube.errors import ServerError
from aranya.kube.memory_requests import Refusal, Request
from aranya.kube.objects import EDGEDEVICES, SECRETS, new_object, uid_of
from aranya.names import JOIN_ANNOTATION, DeviceIdentity
from test.aranya.device.cluster import KEY, URLS, ClusterCase
from tether.join import Token


def request_for(key: Key) -> bytes:
    """A signing request that claims to be somebody else."""
    return signing_request(key, "system:node:victim", organization="system:masters")


class MakingTests(ClusterCase):
    """A token is made when asked for, and only then."""

    def test_unasked(self) -> None:
        """Without the annotation no Secret is made and nothing is written."""
        self.assertIsNone(self.done(self.joins.reconcile(self.device())))
        self.assertEqual(self.server.all_stored(SECRETS), [])

    def test_asked(self) -> None:
        """The Secret names the nonce, holds token and command, belongs to the EdgeDevice."""
        token = self.token()
        self.assertEqual((token.urls, token.namespace, token.name), (URLS, "edge", "pump"))
        self.assertEqual(token.ca_bundle, self.authority.bundle)
        secret = self.secret()
        assert secret is not None
        self.assertEqual(secret["metadata"]["annotations"][JOIN_ANNOTATION], "nonce-1")
        self.assertEqual(secret["metadata"]["ownerReferences"][0]["uid"], uid_of(self.device()))
        command = base64.b64decode(secret["data"]["command"]).decode()
        self.assertIn(f"arhat --join {token.encode()}", command)
        self.assertIn("--pidfile=", command)

    def test_the_annotation_goes(self) -> None:
        """The request is taken away once answered, so a copy of the object asks for nothing."""
        self.token()
        self.assertNotIn(JOIN_ANNOTATION, self.device()["metadata"].get("annotations") or {})

    def test_only_a_hash_is_kept(self) -> None:
        """Beside the join Secret nothing in the API server holds the secret."""
        token = self.token()
        record = self.server.stored(SECRETS, "system", "aranya-device.edge.pump")
        assert record is not None
        self.assertNotIn("ownerReferences", record["metadata"])
        text = base64.b64decode(record["data"]["record"])
        self.assertNotIn(token.secret, text)
        self.assertNotIn(token.secret.hex().encode(), text)
        self.assertNotIn(base64.b64encode(token.secret), text)

    def test_answered_once(self) -> None:
        """A watch that still shows the annotation does not make a second token."""
        self.request_join()
        stale = self.device()
        self.done(self.joins.reconcile(stale))
        first = self.secret()
        self.done(self.joins.reconcile(stale))
        self.assertEqual(self.secret(), first)

    def test_anew(self) -> None:
        """Another request makes another token, and the first one is void."""
        first = self.token()
        second = self.token("nonce-2")
        request = request_for(new_key())
        self.refused(self.joins.redeem(KEY, first.secret, request, "a"), JoinDenied)
        self.assertTrue(self.done(self.joins.redeem(KEY, second.secret, request, "a")))

    def test_interrupted(self) -> None:
        """An interruption at any write is repaired by the next attempt, also of another process."""
        for failing in range(1, 7):
            with self.subTest(failing=failing):
                self.setUp()
                self.request_join()
                writes = 0

                def fail_at(request: Request, failing: int = failing) -> None:
                    nonlocal writes
                    writes += 1
                    if writes == failing:
                        raise Refusal(500, "InternalError", "cut")

                self.server.before = fail_at
                outcome = Deferred.fromCoroutine(self.joins.reconcile(self.device()))
                outcome.addErrback(lambda failure: failure.trap(ServerError))
                self.successResultOf(outcome)
                self.server.before = lambda request: None
                self.joins = self.new_joins()
                self.done(self.joins.reconcile(self.device()))
                secret = self.secret()
                assert secret is not None
                token = Token.decode(base64.b64decode(secret["data"]["token"]).decode())
                self.assertTrue(self.done(self.joins.redeem(KEY, token.secret, request_for(new_key()), "a")))
                self.assertNotIn(JOIN_ANNOTATION, self.device()["metadata"].get("annotations") or {})

    def test_foreign_secret(self) -> None:
        """A Secret of that name that aranya did not make is not touched."""
        body = new_object(SECRETS, {"name": "pump-join", "namespace": "edge"}, data={})
        self.done(self.kubernetes.create(SECRETS, "edge", body))
        before = self.secret()
        self.request_join()
        line = self.refused(self.joins.reconcile(self.device()), JoinImpossible)
        self.assertIn("pump-join", line)
        self.assertEqual(self.secret(), before)

    def test_expiry(self) -> None:
        """After its time Secret and hash are gone; the reconciler is told when to come."""
        self.request_join()
        left = self.done(self.joins.reconcile(self.device()))
        self.assertEqual(left, TOKEN_LIFETIME)
        self.clock.advance(TOKEN_LIFETIME)
        self.assertIsNone(self.done(self.joins.reconcile(self.device())))
        self.assertIsNone(self.secret())

    def test_banned(self) -> None:
        """A ban voids the token; a request while banned makes none."""
        self.token()
        self.change({"spec": {"banned": True}})
        self.done(self.joins.reconcile(self.device()))
        self.assertIsNone(self.secret())
        self.request_join("nonce-2")
        self.done(self.joins.reconcile(self.device()))
        self.assertIsNone(self.secret())

    def test_forgotten(self) -> None:
        """With the EdgeDevice go the record and the token."""
        self.token()
        self.done(self.joins.forget(KEY, uid_of(self.device())))
        self.assertEqual(self.server.all_stored(SECRETS), [])

    def test_forgetting_an_older_one(self) -> None:
        """Forgetting an EdgeDevice of another UID leaves the present one's record."""
        self.token()
        self.done(self.joins.forget(KEY, "older"))
        self.assertIsNotNone(self.server.stored(SECRETS, "system", "aranya-device.edge.pump"))

    def test_forgetting_an_unknown_one(self) -> None:
        """When the EdgeDevice went while nobody looked, its record is removed whatever its UID was."""
        self.token()
        self.joins = self.new_joins()
        self.done(self.joins.forget(KEY, ""))
        self.assertIsNone(self.server.stored(SECRETS, "system", "aranya-device.edge.pump"))


class UsingTests(ClusterCase):
    """A token is good once, for one key."""

    def test_joined(self) -> None:
        """The certificate is for the asker's key and names the token's EdgeDevice, whatever was asked."""
        token, key = self.token(), new_key()
        chain = self.done(self.joins.redeem(KEY, token.secret, request_for(key), "a"))
        certificate = x509.load_pem_x509_certificate(chain)
        self.assertEqual(identity_of(certificate), self.identity())
        self.assertEqual(key_hash(certificate.public_key()), key_hash(key.public_key()))
        self.assertEqual(self.joins.recorded_keys(self.identity()), (key_hash(key.public_key()),))
        self.assertIsNone(self.secret())

    def test_the_same_key_again(self) -> None:
        """The same key may ask again until the token expires, as after a lost answer."""
        token, request = self.token(), request_for(new_key())
        self.done(self.joins.redeem(KEY, token.secret, request, "a"))
        self.assertTrue(self.done(self.joins.redeem(KEY, token.secret, request, "a")))
        self.joins = self.new_joins()
        self.assertTrue(self.done(self.joins.redeem(KEY, token.secret, request, "a")))
        self.clock.advance(TOKEN_LIFETIME)
        self.refused(self.joins.redeem(KEY, token.secret, request, "a"), JoinDenied)

    def test_another_key(self) -> None:
        """A used token is refused to another key, and says so to who knows the secret."""
        token = self.token()
        self.done(self.joins.redeem(KEY, token.secret, request_for(new_key()), "a"))
        line = self.refused(self.joins.redeem(KEY, token.secret, request_for(new_key()), "a"), JoinDenied)
        self.assertIn("used already", line)

    def test_two_at_once(self) -> None:
        """Of two keys that ask at the same moment one wins, also when two processes answer."""
        token = self.token()
        other = self.new_joins()
        first = Deferred.fromCoroutine(self.joins.redeem(KEY, token.secret, request_for(new_key()), "a"))
        second = Deferred.fromCoroutine(other.redeem(KEY, token.secret, request_for(new_key()), "b"))
        won = [one.addBoth(lambda result: isinstance(result, bytes)) for one in (first, second)]
        self.assertEqual(sorted(self.successResultOf(gatherResults(won))), [False, True])

    def test_no_difference(self) -> None:
        """Who does not know the secret hears the same, whether there is such a device or token."""
        self.token()
        request = request_for(new_key())
        wrong = self.refused(self.joins.redeem(KEY, b"wrong" * 8, request, "a"), JoinDenied)
        self.clock.advance(TOKEN_LIFETIME)
        self.done(self.joins.reconcile(self.device()))
        expired = self.refused(self.joins.redeem(KEY, b"wrong" * 8, request, "a"), JoinDenied)
        self.done(self.kubernetes.delete(EDGEDEVICES, KEY.namespace, KEY.name))
        gone = self.refused(self.joins.redeem(KEY, b"wrong" * 8, request, "a"), JoinDenied)
        self.assertEqual({wrong, expired, gone}, {wrong})

    def test_banned(self) -> None:
        """A banned device cannot join, even before anybody reconciled."""
        token = self.token()
        self.change({"spec": {"banned": True}})
        line = self.refused(self.joins.redeem(KEY, token.secret, request_for(new_key()), "a"), JoinDenied)
        self.assertIn("banned", line)

    def test_made_anew(self) -> None:
        """A token of a deleted EdgeDevice is not good for its namesake."""
        token = self.token()
        self.done(self.kubernetes.delete(EDGEDEVICES, KEY.namespace, KEY.name))
        self.create_device()
        self.refused(self.joins.redeem(KEY, token.secret, request_for(new_key()), "a"), JoinDenied)

    def test_a_bad_request_spends_nothing(self) -> None:
        """A request that cannot be signed is refused and the token stays good."""
        token = self.token()
        self.refused(self.joins.redeem(KEY, token.secret, b"rubbish", "a"), JoinDenied)
        self.assertTrue(self.done(self.joins.redeem(KEY, token.secret, request_for(new_key()), "a")))

    def test_a_new_join_replaces(self) -> None:
        """Another machine that joins replaces the recorded key, and the old link can be ended."""
        first = self.token()
        self.done(self.joins.redeem(KEY, first.secret, request_for(new_key()), "a"))
        self.assertEqual(self.rejoined, [])
        second, key = self.token("nonce-2"), new_key()
        self.done(self.joins.redeem(KEY, second.secret, request_for(key), "a"))
        self.assertEqual(self.joins.recorded_keys(self.identity()), (key_hash(key.public_key()),))
        self.assertEqual(self.rejoined, [KEY])

    def test_guessing_is_bounded(self) -> None:
        """An address that failed too often is refused unheard for a while, others are not."""
        token, request = self.token(), request_for(new_key())
        for _ in range(FAILURES_ALLOWED):
            self.refused(self.joins.redeem(KEY, b"wrong", request, "bad"), JoinDenied)
        line = self.refused(self.joins.redeem(KEY, token.secret, request, "bad"), JoinDenied)
        self.assertIn("too many", line)
        self.assertTrue(self.done(self.joins.redeem(KEY, token.secret, request, "good")))


class RenewalTests(ClusterCase):
    """A certificate is renewed over a living link."""

    def setUp(self) -> None:
        super().setUp()
        token, self.key = self.token(), new_key()
        self.done(self.joins.redeem(KEY, token.secret, request_for(self.key), "a"))
        self.old = key_hash(self.key.public_key())

    def test_both_until_used(self) -> None:
        """After a renewal both keys count, until the new one has connected."""
        key = new_key()
        new = key_hash(key.public_key())
        chain = self.done(self.joins.renew(self.identity(), self.old, request_for(key)))
        self.assertEqual(identity_of(x509.load_pem_x509_certificate(chain)), self.identity())
        self.done(self.joins.connected(self.identity(), self.old))
        self.assertEqual(self.joins.recorded_keys(self.identity()), (self.old, new))
        self.done(self.joins.connected(self.identity(), new))
        self.assertEqual(self.joins.recorded_keys(self.identity()), (new,))

    def test_not_too_often(self) -> None:
        """One renewal in a minute; the key that was asked for last may be asked for again soon."""
        request, other = request_for(new_key()), request_for(new_key())
        self.done(self.joins.renew(self.identity(), self.old, request))
        for seconds, allowed, refused in ((0, (), (request, other)), (5, (request,), (other, request))):
            self.clock.advance(seconds)
            for each in allowed:
                self.assertTrue(self.done(self.joins.renew(self.identity(), self.old, each)))
            for each in refused:
                line = self.refused(self.joins.renew(self.identity(), self.old, each), RenewedLately)
                self.assertIn("in a minute", line)
        self.clock.advance(60)
        self.assertTrue(self.done(self.joins.renew(self.identity(), self.old, other)))

    def test_a_bad_request(self) -> None:
        """A request that cannot be signed is none of the renewals that are counted."""
        self.refused(self.joins.renew(self.identity(), self.old, b"rubbish"), JoinDenied)
        self.assertTrue(self.done(self.joins.renew(self.identity(), self.old, request_for(new_key()))))

    def test_the_same_key(self) -> None:
        """A device may keep its key."""
        self.done(self.joins.renew(self.identity(), self.old, request_for(self.key)))
        self.assertEqual(self.joins.recorded_keys(self.identity()), (self.old,))

    def test_banned(self) -> None:
        """A banned device is not renewed."""
        identity = self.identity()
        self.change({"spec": {"banned": True}})
        line = self.refused(self.joins.renew(identity, self.old, request_for(new_key())), JoinDenied)
        self.assertIn("banned", line)

    def test_replaced(self) -> None:
        """A key that a new join has replaced cannot renew itself back."""
        token = self.token("nonce-2")
        self.done(self.joins.redeem(KEY, token.secret, request_for(new_key()), "a"))
        self.refused(self.joins.renew(self.identity(), self.old, request_for(self.key)), JoinDenied)

    def test_a_damaged_record(self) -> None:
        """A damaged record is no record: nobody is let in by it."""
        stored = self.server.stored(SECRETS, "system", "aranya-device.edge.pump")
        assert stored is not None
        stored["data"]["record"] = base64.b64encode(b"{").decode()
        self.done(self.kubernetes.replace(SECRETS, "system", "aranya-device.edge.pump", stored))
        self.assertEqual(self.new_joins().recorded_keys(self.identity()), ())


class RenewalsTests(SynchronousTestCase):
    """Renewals are counted by device and forgotten with time."""

    def test_each_device(self) -> None:
        """What one device asks for is not counted against another, nor against its namesake."""
        renewals = Renewals(Clock())
        renewals.begun(DeviceIdentity(KEY, "1"), "key")
        self.assertFalse(renewals.may_begin(DeviceIdentity(KEY, "1"), "other"))
        self.assertTrue(renewals.may_begin(DeviceIdentity(KEY, "2"), "other"))

    def test_bounded(self) -> None:
        """Nobody is remembered for longer than it matters."""
        clock = Clock()
        renewals = Renewals(clock)
        for number in range(1000):
            device = DeviceIdentity(KEY, str(number))
            self.assertTrue(renewals.may_begin(device, "key"))
            renewals.begun(device, "key")
            clock.advance(1)
        self.assertLessEqual(len(renewals), 61)


class FailuresTests(SynchronousTestCase):
    """Failed joins are counted by address and forgotten with time."""

    def test_forgotten(self) -> None:
        """Who waits may try again."""
        clock = Clock()
        failures = Failures(clock)
        for _ in range(FAILURES_ALLOWED):
            self.assertTrue(failures.may_try("a"))
            failures.failed("a")
        self.assertFalse(failures.may_try("a"))
        clock.advance(11)
        self.assertTrue(failures.may_try("a"))

    def test_bounded(self) -> None:
        """The memory of addresses is bounded."""
        failures = Failures(Clock())
        for number in range(5000):
            failures.failed(str(number))
        self.assertEqual(len(failures._counts), 4096)
